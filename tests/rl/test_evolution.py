"""Evolution strategies with real processes."""

from __future__ import annotations

import functools
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tests.rl.environments_for_tests import Corridor, Dying, Hanging, Raising, once

pytest.importorskip("gymnasium")
from shoal import rl  # noqa: E402

try:
    import imageio  # noqa: F401
    import mujoco  # noqa: F401

    NO_MUJOCO = ""
except ImportError as error:
    NO_MUJOCO = f"{error}: pip install 'shoal[mujoco]'"

SMALL = {"hidden": (8,), "pairs": 8, "evaluations": 4, "noise_size": 10_000, "sigma": 0.3}


def test_learns_and_goes_on_where_it_was(shoal_shared: ModuleType, tmp_path: Path) -> None:
    settings = {"hidden": (16,), "pairs": 24, "noise_size": 100_000, "seed": 1}
    trainer = rl.EvolutionStrategies(rl.ESConfig("CartPole-v1", **settings, aggregators=3, fan_out=2))
    rewards = [trainer.train().reward]
    while rewards[-1] < 150 and len(rewards) < 40:
        rewards.append(trainer.train().reward)
    assert rewards[0] < 100 and rewards[-1] >= 150, rewards
    trainer.save(tmp_path / "state")
    ahead = [trainer.train().reward for _ in range(2)]
    other = rl.EvolutionStrategies(rl.ESConfig("CartPole-v1", **settings, aggregators=3, fan_out=2))
    other.restore(tmp_path / "state")
    assert [other.train().reward for _ in range(2)] == ahead
    assert np.array_equal(other.weights, trainer.weights)
    assert other.act([0.0, 1.0, 0.0, 0.0]) in (0, 1)


def test_the_shape_of_the_tree_changes_nothing_but_rounding(shoal_shared: ModuleType) -> None:
    trainers = [
        rl.EvolutionStrategies(rl.ESConfig(Corridor, **SMALL, aggregators=leaves, fan_out=2)) for leaves in (1, 5)
    ]
    assert trainers[0].train().played == trainers[1].train().played
    np.testing.assert_allclose(trainers[0].weights, trainers[1].weights, atol=1e-4)


def test_a_state_that_does_not_fit(shoal_shared: ModuleType, tmp_path: Path) -> None:
    rl.EvolutionStrategies(rl.ESConfig(Corridor, **SMALL)).save(tmp_path / "state")
    other = rl.EvolutionStrategies(rl.ESConfig(Corridor, **{**SMALL, "hidden": (9,)}))
    with pytest.raises(ValueError, match="does not fit"):
        other.restore(tmp_path / "state")


def test_observations_are_scaled(shoal_shared: ModuleType) -> None:
    trainer = rl.EvolutionStrategies(rl.ESConfig(Corridor, **SMALL, normalize=True))
    trainer.train()
    mean, _ = trainer.seen.scale()
    assert abs(mean[1] - 1) < 0.01 and 0 <= mean[0] <= 1


def test_episodes_that_raise_end_the_training_when_they_are_many(shoal_shared: ModuleType) -> None:
    trainer = rl.EvolutionStrategies(rl.ESConfig(Raising, **SMALL, failures_max=2))
    with pytest.raises(rl.EnvironmentFailed, match=r"8 of 8 directions of generation 0 failed.*Raising.*lost a wheel"):
        trainer.train()


def test_episodes_that_hang_are_given_up(shoal_shared: ModuleType) -> None:
    trainer = rl.EvolutionStrategies(rl.ESConfig(Hanging, **SMALL, episode_timeout_s=0.5))
    with pytest.raises(rl.EnvironmentFailed, match="episode_timeout_s"):
        trainer.train()


@pytest.mark.parametrize("trouble", [Raising, Hanging])
def test_a_judging_episode_that_fails_is_left_out(
    shoal_shared: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: type[Corridor]
) -> None:
    environment = functools.partial(once, tmp_path / "failed", trouble)
    trainer = rl.EvolutionStrategies(rl.ESConfig(environment, **SMALL))
    wait = shoal_shared.wait

    def time_is_up_for_the_last(refs: list[Any], **more: Any) -> Any:
        # The others have come: the one that is left hangs. So no clock says whether a machine is slow or an episode hangs.
        return ([], refs) if len(refs) == 1 and trouble is Hanging else wait(refs, **more)

    monkeypatch.setattr(shoal_shared, "wait", time_is_up_for_the_last)
    reward, steps, failures = trainer._judge()
    assert -20 <= reward <= -1 and steps >= 3
    assert len(failures) == 1 and ("lost a wheel" if trouble is Raising else "episode_timeout_s") in failures[0]
    trainer.config.failures_max = 0
    (tmp_path / "failed").unlink()
    with pytest.raises(rl.EnvironmentFailed, match="1 of 4 episodes of the policy itself"):
        trainer._judge()


def test_an_environment_that_kills_its_process_costs_a_retry(shoal_shared: ModuleType, tmp_path: Path) -> None:
    trainer = rl.EvolutionStrategies(rl.ESConfig(functools.partial(Dying, tmp_path / "died"), **SMALL))
    assert trainer.train().failures == []
    assert (tmp_path / "died").exists()


def test_a_dead_aggregator_is_replaced(shoal_shared: ModuleType) -> None:
    trainer = rl.EvolutionStrategies(rl.ESConfig(Corridor, **SMALL))
    trainer.train()
    shoal_shared.kill(trainer._root, no_restart=False)
    assert trainer.train().generation == 2


@pytest.mark.skipif(bool(NO_MUJOCO), reason=NO_MUJOCO)
def test_humanoid_is_played(shoal_shared: ModuleType) -> None:
    config = rl.tuned.evolution("Humanoid-v5", pairs=2, evaluations=2, noise_size=100_000, aggregators=1)
    trainer = rl.EvolutionStrategies(config)
    result = trainer.train()
    assert result.failures == [] and result.reward > 50 and result.steps >= 6 * 10
    assert trainer.act(np.zeros(trainer.seen.total.size)).shape == (17,)


def test_tuned_settings_can_be_changed_and_are_named_when_there_are_none() -> None:
    assert rl.tuned.evolution("CartPole-v1", pairs=3).pairs == 3
    assert rl.tuned.ppo("Pendulum-v1", seed=7).seed == 7
    with pytest.raises(KeyError, match=r"no tuned settings for 'Tetris', only for CartPole-v1"):
        rl.tuned.ppo("Tetris")
