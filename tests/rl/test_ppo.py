"""PPO and the policy server with real processes."""

from __future__ import annotations

import functools
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tests.rl.environments_for_tests import Corridor, Dying, Hanging, Raising, once

pytest.importorskip("torch")
from shoal import rl  # noqa: E402

SMALL = {"players": 1, "environments": 4, "steps": 64, "hidden": (16,), "minibatch": 64, "learning_rate": 3e-3}


def test_learns_without_a_barrier(shoal_shared: ModuleType) -> None:
    trainer = rl.PPO(rl.PPOConfig("CartPole-v1", steps=128, environments=4, seed=1))
    results = []
    while len(results) < 60 and (not results or results[-1].reward < 150):
        results.append(trainer.train())
    assert results[-1].reward >= 150, [round(one.reward) for one in results]
    assert results[-1].steps == len(results) * 2 * 4 * 128
    assert trainer.act(np.zeros(4)) in (0, 1)
    trainer.close()


def test_a_seed_gives_the_same_curve_when_players_are_waited_for(shoal_shared: ModuleType, tmp_path: Path) -> None:
    def curve() -> tuple[list[float], rl.PPO]:
        trainer = rl.PPO(rl.PPOConfig(Corridor, **SMALL, asynchronous=False, seed=5))
        return [trainer.train().reward for _ in range(5)], trainer

    (first, trainer), (second, other) = curve(), curve()
    assert first == second
    trainer.save(tmp_path / "state")
    for one in (trainer, other):
        one.close()
    again = rl.PPO(rl.PPOConfig(Corridor, **SMALL, asynchronous=False, seed=6))
    again.restore(tmp_path / "state")
    assert again.update == 5
    assert np.array_equal(again.weights["policy.0.weight"], trainer.weights["policy.0.weight"])
    assert again.train().update == 6
    again.close()
    rl.EvolutionStrategies(rl.ESConfig(Corridor, noise_size=10_000)).save(tmp_path / "evolution")
    with pytest.raises(ValueError, match="not one by PPO"):
        again.restore(tmp_path / "evolution")


def test_continuous_actions_and_scales(shoal_shared: ModuleType) -> None:
    trainer = rl.PPO(rl.PPOConfig("Pendulum-v1", **SMALL, normalize=True, gamma=0.9))
    results = [trainer.train() for _ in range(4)]
    assert all(np.isfinite(list(one.learner.values())).all() for one in results)
    assert not np.allclose(trainer.weights["inverse_deviation"], 1)
    action = trainer.act([1.0, 0.0, 0.0])
    assert action.shape == (1,) and -2 <= action[0] <= 2
    trainer.close()


def test_environments_that_raise_or_hang_end_the_training_when_they_are_many(shoal_shared: ModuleType) -> None:
    trainer = rl.PPO(rl.PPOConfig(Raising, **SMALL, failures_max=0))
    with pytest.raises(rl.EnvironmentFailed, match=r"1 players .* more than 0 .*last: Raising .*lost a wheel"):
        trainer.train()
    trainer.close()
    trainer = rl.PPO(rl.PPOConfig(Hanging, **SMALL, rollout_timeout_s=1, failures_max=0))
    with pytest.raises(rl.EnvironmentFailed, match="rollout_timeout_s"):
        trainer.train()
    trainer.close()


def test_an_environment_that_fails_costs_its_player(shoal_shared: ModuleType, tmp_path: Path) -> None:
    settings = {**SMALL, "environments": 1, "steps": 16, "failures_max": 2}
    trainer = rl.PPO(rl.PPOConfig(functools.partial(once, tmp_path / "failed", Raising), **settings))
    result = trainer.train()
    assert result.steps == 16 and len(result.failures) == 1 and "lost a wheel" in result.failures[0]
    # One that has not answered for so long is given up as well; here its rollout is made to look old.
    ((ref, (number, asked_at)),) = trainer._under_way.items()
    before = trainer._players[number]
    trainer._under_way[ref] = number, asked_at - 1000
    trainer._give_up_the_late()
    assert trainer._players[number] is not before and "rollout_timeout_s" in trainer._failures[-1]
    assert len(trainer._under_way) == 1 and ref not in trainer._under_way
    trainer.close()


def test_a_player_that_dies_is_replaced(shoal_shared: ModuleType, tmp_path: Path) -> None:
    trainer = rl.PPO(rl.PPOConfig(functools.partial(Dying, tmp_path / "died"), **SMALL))
    assert [trainer.train().update for _ in range(3)] == [1, 2, 3]
    assert (tmp_path / "died").exists()
    trainer.close()


def test_server_answers_many_callers_with_few_calls(shoal_shared: ModuleType) -> None:
    server = rl.PolicyServer.remote(lambda: lambda states: states * 2)
    refs = [server.act.remote(np.full((1, 3), number)) for number in range(300)]
    for number, answer in enumerate(shoal_shared.get(refs)):
        assert np.array_equal(answer, np.full((1, 3), 2 * number))
    told = shoal_shared.get(server.statistics.remote())
    assert told["rows"] == 300 and told["calls"] < 300


def test_server_survives_requests_that_are_none(shoal_shared: ModuleType) -> None:
    server = rl.PolicyServer.remote(lambda: lambda states: states.sum(axis=1))
    refs = [server.act.remote(np.full((2, 3 if number % 10 else 4), number)) for number in range(100)]
    for nothing in (None, np.float32(3), "states"):
        with pytest.raises(ValueError, match="one row each"):
            shoal_shared.get(server.act.remote(nothing))
    assert [answer[0] for answer in shoal_shared.get(refs)] == [
        number * (3 if number % 10 else 4) for number in range(100)
    ]


def test_server_passes_on_what_the_model_raises(shoal_shared: ModuleType) -> None:
    def make_model():  # noqa: ANN202
        def model(states):  # noqa: ANN001, ANN202
            if states[0, 0] < 0:
                raise ValueError("no such state")
            return states[:1]

        return model

    server = rl.PolicyServer.remote(make_model)
    with pytest.raises(ValueError, match="no such state"):
        shoal_shared.get(server.act.remote(-np.ones((1, 1))))
    with pytest.raises(ValueError, match="1 rows for 2 states"):
        shoal_shared.get(server.act.remote(np.ones((2, 1))))
    assert shoal_shared.get(server.act.remote(np.ones((1, 1)))) == 1
