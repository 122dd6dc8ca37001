"""Environments that are small, fail, hang or kill their process, for the tests of shoal.rl."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np


class Corridor(gymnasium.Env[Any, Any]):
    """Walk right to the end of a corridor: -1 a step; cut after 20 steps. Learnt in seconds."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, length: int = 5) -> None:
        self._length, self._at, self._steps = length, 0, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._at, self._steps = int(self.np_random.integers(self._length)), 0
        return self._seen(), {}

    def _seen(self) -> Any:
        return np.array([self._at / self._length, 1.0], np.float32)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._at = max(0, self._at + (1 if action else -1))
        self._steps += 1
        ended = self._at >= self._length
        return self._seen(), -1.0, ended, self._steps >= 20, {}


class Raising(Corridor):
    """Raises in its third step: it begins at the far end, so no episode is over before."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._at = 0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self._steps == 2:
            raise ValueError("the simulator lost a wheel")
        return super().step(action)


class Hanging(Corridor):
    """Does not answer its first step."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        time.sleep(3600)
        raise AssertionError


class Dying(Corridor):
    """Takes its process with it, once: the first to make `marker`."""

    def __init__(self, marker: Path) -> None:
        super().__init__()
        self._marker = marker

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        try:
            self._marker.touch(exist_ok=False)
        except FileExistsError:
            return super().step(action)
        os._exit(1)


def once(marker: Path, trouble: type[Corridor]) -> Corridor:
    """The first to be reset makes `marker` and is in trouble; all others are well."""

    class Troubled(Corridor):
        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            try:
                marker.touch(exist_ok=False)
                self._troubled = trouble()
                self._troubled.reset()
            except FileExistsError:
                pass
            return super().reset(seed=seed, options=options)

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            troubled = getattr(self, "_troubled", None)
            return super().step(action) if troubled is None else troubled.step(action)

    return Troubled()
