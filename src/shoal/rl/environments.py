"""Environments: made from a name or a function, played in batches, and errors that say which one failed and how.

Design: an environment is Gymnasium's id ("CartPole-v1") or a function without arguments that makes one. What it raises while it is made or
played becomes `EnvironmentFailed`, with the seed that shows it again; so do rewards and observations that are not finite. `Environments` plays
several side by side and begins an episode anew as soon as one ends; the observation with which an episode was cut off (not ended) is kept, because
its value still counts.

What it does not do: bound the time of a step: a hanging environment is its caller's to kill (`evolution`, `ppo`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import shoal

Floats = npt.NDArray[np.float32]
EnvironmentSpec = str | Callable[[], Any]
NOT_FINITE = "what is observed is not finite"


class EnvironmentFailed(RuntimeError):
    """An environment could not be made, raised while it was played, or did not answer in time. The text names it and its seed."""


def name_of(spec: EnvironmentSpec) -> str:
    """What people call it."""
    return spec if isinstance(spec, str) else getattr(spec, "__name__", repr(spec))


def make_environment(spec: EnvironmentSpec) -> Any:
    """One environment.

    Raises:
        ImportError: Gymnasium is not installed.
        EnvironmentFailed: there is none of this name, or making it raised.
    """
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError("shoal.rl needs Gymnasium: pip install 'shoal[rl]'") from error
    try:
        return gymnasium.make(spec) if isinstance(spec, str) else spec()
    except Exception as error:
        raise EnvironmentFailed(f"{name_of(spec)} could not be made: {type(error).__name__}: {error}") from error


@dataclass(slots=True)
class Spaces:
    """What a policy must know of an environment. Sizes are numbers of values."""

    inputs: int
    outputs: int
    discrete: bool
    #: bounds of continuous actions, shape (outputs,)
    low: Floats | None = None
    high: Floats | None = None
    #: of a continuous action as the environment takes it; None: (outputs,)
    shape: tuple[int, ...] | None = None

    def action(self, output: Any) -> Any:
        """What the environment is given for a policy's continuous output, or a batch of them: cut to its bounds, in its shape."""
        if self.low is None:
            return output
        cut = np.clip(output, self.low, self.high)
        return cut if self.shape is None else cut.reshape(*cut.shape[:-1], *self.shape)


def spaces_of(spec: EnvironmentSpec) -> Spaces:
    """Look at an environment's spaces.

    Raises:
        EnvironmentFailed: it cannot be made, or its spaces are none that a policy here can serve.
    """
    environment = make_environment(spec)  # says what lacks where Gymnasium does
    if environment is None:
        raise EnvironmentFailed(f"{name_of(spec)} made no environment: it returned None")
    from gymnasium.spaces import Box, Discrete

    try:
        seen, done = environment.observation_space, environment.action_space
    finally:
        environment.close()
    if not isinstance(seen, Box):
        raise EnvironmentFailed(
            f"{name_of(spec)} is observed as {seen}; only Box is supported: wrap it (FlattenObservation)"
        )
    inputs = int(np.prod(seen.shape))
    if isinstance(done, Discrete):
        if done.start != 0:
            raise EnvironmentFailed(f"{name_of(spec)} counts its actions from {done.start}; wrap it to count from 0")
        return Spaces(inputs, int(done.n), True)
    if isinstance(done, Box):
        return Spaces(
            inputs,
            int(np.prod(done.shape)),
            False,
            done.low.ravel().astype(np.float32),
            done.high.ravel().astype(np.float32),
            done.shape,
        )
    raise EnvironmentFailed(f"{name_of(spec)} takes {done}; only Discrete and Box actions are supported: wrap it")


def spaces_in_task(spec: EnvironmentSpec, limit_s: float, limit_name: str) -> Spaces:
    """`spaces_of` in a process of its own: one that hangs or dies while an environment is made does not take this one with it.

    Raises:
        ImportError: Gymnasium is not installed.
        EnvironmentFailed: as there, or it was not made within `limit_s`, or making it ended its process.
    """
    look = shoal.remote(num_cpus=0, max_retries=0)(spaces_of).remote(spec)
    try:
        found: Spaces = shoal.get(look, timeout=limit_s)
    except EnvironmentFailed as error:
        raise EnvironmentFailed(str(getattr(error, "cause", error))) from None  # the text alone
    except shoal.exceptions.GetTimeoutError:
        shoal.cancel(look, force=True)
        raise EnvironmentFailed(
            f"{name_of(spec)} was not made within {limit_s:g} s ({limit_name}): making it hangs"
        ) from None
    except shoal.exceptions.WorkerCrashedError as error:
        raise EnvironmentFailed(f"{name_of(spec)} could not be made: its process died: {error}") from error
    return found


@dataclass(slots=True)
class Step:
    """What a batch of actions brought. Arrays have one row an environment."""

    rewards: Floats
    #: the episode is over by its own rules: nothing comes after it
    ended: npt.NDArray[np.bool_]
    #: the episode was cut off: its last observation has a value
    cut: npt.NDArray[np.bool_]
    #: last observations of episodes that were cut, by row
    last: dict[int, Floats]
    #: (return, steps) of the episodes that are over
    episodes: list[tuple[float, int]]


class Environments:
    """Several environments played side by side, each with a seed of its own.

    Args:
        spec: which.
        count: how many.
        seed: of the first; the others follow.
    """

    def __init__(self, spec: EnvironmentSpec, count: int, seed: int) -> None:
        self._spec = spec
        self._seed = seed
        self._made = [make_environment(spec) for _ in range(count)]
        self._size = int(np.prod(self._made[0].observation_space.shape))
        self._returns = [0.0] * count
        self._steps = [0] * count
        #: what is seen now, shape (count, inputs)
        self.observations: Floats = np.stack([self._reset(row, seed + row) for row in range(count)])

    def _reset(self, row: int, seed: int | None = None) -> Floats:
        self._returns[row], self._steps[row] = 0.0, 0
        try:
            seen, _ = self._made[row].reset(seed=seed)
            observation = self._observed(seen)
            check_finite(observation)
        except Exception as error:
            raise self._failed(row, "reset", error) from error
        return observation

    def _observed(self, seen: Any) -> Floats:
        """What an environment shows, flat; ValueError if it is not what its space says."""
        observation: Floats = np.asarray(seen, dtype=np.float32).ravel()
        if observation.size != self._size:
            raise ValueError(f"{observation.size} numbers are observed, the space says {self._size}")
        return observation

    def _failed(self, row: int, doing: str, error: Exception) -> EnvironmentFailed:
        return EnvironmentFailed(
            f"{name_of(self._spec)} (seed {self._seed + row}) raised in {doing}, step {self._steps[row]}: "
            f"{type(error).__name__}: {error}"
        )

    def step(self, actions: Any) -> Step:
        """One step in each. `actions` has a row an environment. `observations` is new afterwards, of new episodes where one is over."""
        count = len(self._made)
        step = Step(
            np.zeros(count, np.float32), np.zeros(count, np.bool_), np.zeros(count, np.bool_), last={}, episodes=[]
        )
        observations = np.empty_like(self.observations)
        for row, environment in enumerate(self._made):
            try:
                seen, reward, ended, cut, _ = environment.step(actions[row])
                gained = float(reward)
                if not math.isfinite(gained):
                    raise ValueError(f"the reward is {reward}")
                observation = self._observed(seen)
                if cut and not ended:
                    check_finite(observation)
            except Exception as error:
                raise self._failed(row, "step", error) from error
            self._returns[row] += gained
            self._steps[row] += 1
            step.rewards[row], step.ended[row], step.cut[row] = gained, ended, cut and not ended
            if ended or cut:
                step.episodes.append((self._returns[row], self._steps[row]))
                if not ended:
                    step.last[row] = observation
                observation = self._reset(row)
            observations[row] = observation
        if not np.isfinite(observations).all():
            row = int(np.argmin(np.isfinite(observations).all(axis=1)))
            raise self._failed(row, "step", ValueError(f"{NOT_FINITE}: {observations[row]}"))
        self.observations = observations
        return step


def check_finite(observation: Floats) -> None:
    """Refuse what no policy can use.

    Raises:
        ValueError: a number of it is NaN or infinite.
    """
    if not np.isfinite(observation).all():
        raise ValueError(f"{NOT_FINITE}: {observation}")
