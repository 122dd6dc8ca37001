"""The parts of shoal.rl that need no process: advantages, noise, ranks, networks, environments, the state file."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.rl.environments_for_tests import Corridor, Raising

from shoal.rl.advantages import advantages_of
from shoal.rl.environments import EnvironmentFailed, Environments, Spaces, make_environment, spaces_in_task, spaces_of
from shoal.rl.evolution import ESConfig, Generation, Moments, centered_ranks, play
from shoal.rl.networks import FlatNetwork
from shoal.rl.noise import noise_table, offsets, weighted_sum
from shoal.rl.ppo import PPOConfig
from shoal.rl.state_file import StateDamaged, read_state, write_state

gymnasium = pytest.importorskip("gymnasium")


def plain_advantages(rewards, values, ended, cut, after_cut, last_values, gamma, lambda_):  # noqa: ANN001, ANN201
    """The definition: a discounted sum of surprises up to the end of the episode."""
    steps, count = rewards.shape
    found = np.zeros((steps, count))
    for row in range(count):
        for begin in range(steps):
            weight = 1.0
            for step in range(begin, steps):
                if ended[step, row]:
                    ahead = 0.0
                elif cut[step, row]:
                    ahead = after_cut[step, row]
                else:
                    ahead = values[step + 1, row] if step + 1 < steps else last_values[row]
                found[begin, row] += weight * (rewards[step, row] + gamma * ahead - values[step, row])
                if ended[step, row] or cut[step, row]:
                    break
                weight *= gamma * lambda_
    return found


@given(st.integers(1, 12), st.integers(1, 3), st.floats(0, 1), st.floats(0, 1), st.integers(0, 1 << 30))
def test_advantages_are_those_of_the_definition(
    steps: int, count: int, gamma: float, lambda_: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rewards, values, after_cut = rng.normal(size=(3, steps, count)).astype(np.float32)
    ended = rng.random((steps, count)) < 0.2
    cut = (rng.random((steps, count)) < 0.2) & ~ended
    last = rng.normal(size=count).astype(np.float32)
    got = advantages_of(rewards, values, ended, cut, after_cut, last, gamma, lambda_)
    wanted = plain_advantages(rewards, values, ended, cut, after_cut, last, gamma, lambda_)
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3)


@given(st.lists(st.sampled_from([1.0, 2.0, 5.0, -3.0, float("nan")]), min_size=2, max_size=20))
def test_ranks(returns: list[float]) -> None:
    flat = np.array(returns)
    ranks = centered_ranks(flat)
    assert np.all(np.abs(ranks) <= 0.5)
    for one in range(len(flat)):
        for other in range(len(flat)):
            if flat[one] < flat[other]:
                assert ranks[one] < ranks[other]
            if flat[one] == flat[other]:
                assert ranks[one] == ranks[other]
    assert np.all(ranks[np.isnan(flat)] == 0)


def test_noise_is_the_same_everywhere_and_large_enough() -> None:
    table = noise_table(1000, 7)
    assert np.array_equal(table, noise_table(1000, 7)) and not np.array_equal(table, noise_table(1000, 8))
    starts = offsets(1000, 10, 20, [1, 2])
    assert starts.min() >= 0 and starts.max() <= 990
    weights = np.arange(20, dtype=np.float32)
    wanted = sum(weight * table[start : start + 10] for start, weight in zip(starts, weights, strict=True))
    np.testing.assert_allclose(weighted_sum(table, starts, weights, 10), wanted, rtol=1e-5)
    with pytest.raises(ValueError, match="raise noise_size"):
        offsets(1000, 999, 20, [1])


def test_network_gives_actions_of_its_space() -> None:
    discrete = FlatNetwork(Spaces(3, 4, True), (5,))
    weights = discrete.initial(1)
    assert weights.shape == (discrete.size,) == (3 * 5 + 5 + 5 * 4 + 4,)
    assert discrete.act(discrete.layers(weights), np.ones(3, np.float32)) in range(4)
    bounds = np.full(2, 0.5, np.float32)
    continuous = FlatNetwork(Spaces(3, 2, False, -bounds, bounds), ())
    action = continuous.act(continuous.layers(100 * np.ones(continuous.size, np.float32)), np.ones(3, np.float32))
    np.testing.assert_array_equal(action, bounds)


def test_moments() -> None:
    rows = np.random.default_rng(1).normal(3, 2, size=(5000, 1))
    seen = Moments.of(1)
    for half in (rows[:10], rows[10:]):
        seen.add(Moments(half.sum(0), (half**2).sum(0), len(half)))
    mean, inverse = seen.scale()
    assert abs(mean[0] - 3) < 0.1 and abs(1 / inverse[0] - 2) < 0.1


def test_environments_begin_anew_and_keep_what_was_cut() -> None:
    together = Environments(Corridor, 2, seed=3)
    episodes = []
    for _ in range(45):
        step = together.step([1, 0])  # one walks to the end, the other never does
        assert not step.cut[0] and not step.ended[1]
        assert set(step.last) == ({1} if step.cut[1] else set())
        episodes += step.episodes
    assert (-20.0, 20) in episodes and any(steps <= 5 for _, steps in episodes)


def test_a_failing_environment_is_named_with_its_seed() -> None:
    together = Environments(Raising, 1, seed=11)
    together.step([1])
    together.step([0])
    with pytest.raises(
        EnvironmentFailed, match=r"Raising \(seed 11\) raised in step, step 2: ValueError: the simulator lost a wheel"
    ):
        together.step([0])


@pytest.mark.parametrize(
    ("reward", "seen", "text"), [(float("nan"), 0.0, "the reward is nan"), (1.0, float("inf"), "not finite")]
)
def test_numbers_that_are_none_are_failures_too(reward: float, seen: float, text: str) -> None:
    class Nonsense(Corridor):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            super().step(action)
            return np.array([seen, 1.0], np.float32), reward, False, False, {}

    with pytest.raises(EnvironmentFailed, match=rf"Nonsense \(seed 4\) raised in step, .*{text}"):
        Environments(Nonsense, 1, seed=4).step([1])
    config = ESConfig(Nonsense, hidden=())
    network = FlatNetwork(spaces_of(Nonsense), ())
    weights = network.initial(0)
    at = Generation(0, weights, np.zeros(2, np.float32), np.ones(2, np.float32))
    with pytest.raises(EnvironmentFailed, match=text):
        play(config, network, weights, at, [1], None)


@pytest.mark.parametrize(
    ("first", "second", "reward", "text"),
    [
        ([np.nan, 1], [0, 1], 1.0, "reset, step 0: .*not finite"),
        ([0, 1, 2], [0, 1], 1.0, "reset, step 0: .*3 numbers are observed, the space says 2"),
        ([0, 1], [0], 1.0, "step, step 0: .*1 numbers are observed"),
        ([0, 1], [0, 1], None, "step, step 0: TypeError"),
    ],
)
def test_what_an_environment_shows_is_checked_from_the_first(first: Any, second: Any, reward: Any, text: str) -> None:
    class Nonsense(Corridor):
        def reset(self, **more: Any) -> tuple[Any, dict[str, Any]]:
            return np.array(first, np.float32), {}

        def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
            return np.array(second, np.float32), reward, False, False, {}

    with pytest.raises(EnvironmentFailed, match=rf"Nonsense \(seed 4\) raised in {text}"):
        Environments(Nonsense, 1, seed=4).step([1])


def test_the_last_observation_of_an_episode_that_was_cut_must_be_finite() -> None:
    class Nonsense(Corridor):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            return np.array([np.nan, 1.0], np.float32), 1.0, False, True, {}

    with pytest.raises(EnvironmentFailed, match=r"step 0: .*not finite"):
        Environments(Nonsense, 1, seed=4).step([1])


def test_actions_have_the_shape_of_their_space() -> None:
    class Square(Corridor):
        action_space = gymnasium.spaces.Box(-1, 1, (2, 2), np.float32)

    spaces = spaces_of(Square)
    assert spaces.action(np.array([3, 0, 0, -3], np.float32)).tolist() == [[1, 0], [0, -1]]
    assert spaces.action(np.zeros((5, 4), np.float32)).shape == (5, 2, 2)


def test_environments_that_are_not_there_or_not_for_us() -> None:
    with pytest.raises(EnvironmentFailed, match="NoSuchThing-v1 could not be made"):
        make_environment("NoSuchThing-v1")

    class Odd(Corridor):
        action_space = gymnasium.spaces.MultiBinary(3)

    with pytest.raises(EnvironmentFailed, match="only Discrete and Box actions"):
        spaces_of(Odd)
    with pytest.raises(EnvironmentFailed, match="made no environment"):
        spaces_of(lambda: None)


def hang() -> None:
    time.sleep(3600)


def die() -> None:
    os._exit(7)


def test_an_environment_that_hangs_or_dies_while_it_is_made_spares_the_driver(shoal_shared: ModuleType) -> None:
    with pytest.raises(EnvironmentFailed, match=r"hang was not made within 1 s \(here\)"):
        spaces_in_task(hang, 1.0, "here")
    with pytest.raises(EnvironmentFailed, match="die could not be made: its process died"):
        spaces_in_task(die, 60.0, "here")
    with pytest.raises(EnvironmentFailed, match=r"^NoSuchThing-v1 could not be made: [^\n]*$"):
        spaces_in_task("NoSuchThing-v1", 60.0, "here")


@pytest.mark.parametrize("wrong", [{"pairs": 0}, {"sigma": -1.0}, {"fan_out": 1}])
def test_wrong_settings_of_evolution(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ESConfig("CartPole-v1", **wrong)


@pytest.mark.parametrize("wrong", [{"players": 0}, {"gamma": 1.5}, {"lambda_": -0.1}, {"minibatch": 0}])
def test_wrong_settings_of_ppo(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PPOConfig("CartPole-v1", **wrong)


def test_state_is_whole_or_the_one_before_or_an_error(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "training.state"
    with pytest.raises(FileNotFoundError, match="no saved training"):
        read_state(path)
    write_state(path, {"number": 1})
    write_state(path, {"number": 2})
    assert read_state(path) == {"number": 2}
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.warns(UserWarning, match="goes on from the state before"):
        assert read_state(path) == {"number": 1}
    Path(f"{path}.previous").write_bytes(b"")
    with pytest.raises(StateDamaged, match="begin anew"):
        read_state(path)
    assert sorted(one.name for one in path.parent.iterdir()) == ["training.state", "training.state.previous"]
