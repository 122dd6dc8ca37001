"""Players: actors that step environments with the weights they are given and hand back what they saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

import shoal
from shoal.rl.environments import Environments, EnvironmentSpec, Floats, Step, spaces_of


@dataclass(slots=True)
class Fragment:
    """Steps of one player's environments. Arrays have the shape (steps, environments, ...). `version` is that of the weights."""

    player: int
    version: int
    observations: Floats
    actions: np.ndarray
    log_probabilities: Floats
    values: Floats
    rewards: Floats
    ended: np.ndarray
    cut: np.ndarray
    after_cut: Floats
    last_values: Floats
    #: (return, steps) of the episodes that were over
    episodes: list[tuple[float, int]]


class Player:
    """Plays `environments` side by side; restarted with fresh ones when its process dies."""

    def __init__(
        self, number: int, spec: EnvironmentSpec, environments: int, steps: int, hidden: tuple[int, ...], seed: int
    ) -> None:
        import torch

        from shoal.rl.torch_policy import TorchPolicy

        torch.set_num_threads(1)
        self._number, self._steps = number, steps
        self._spaces = spaces_of(spec)
        self._policy = TorchPolicy(self._spaces, hidden)
        self._random = torch.Generator().manual_seed(seed)
        self._environments = Environments(spec, environments, seed)

    def play(self, weights: dict[str, np.ndarray], version: int) -> Fragment:
        """Take the next steps with these weights.

        Raises:
            EnvironmentFailed: an environment raised.
        """
        self._policy.load(weights)
        seen: list[np.ndarray] = []
        acted: list[np.ndarray] = []
        chances: list[np.ndarray] = []
        values: list[np.ndarray] = []
        steps: list[Step] = []
        episodes: list[tuple[float, int]] = []
        count = len(self._environments.observations)
        after_cut = np.zeros((self._steps, count), np.float32)
        for number in range(self._steps):
            observations = self._environments.observations
            actions, log_probabilities, worth = self._policy.act(observations, self._random)
            step = self._environments.step(self._spaces.action(actions))
            if step.last:
                rows = list(step.last)
                after_cut[number, rows] = self._policy.values(np.stack([step.last[row] for row in rows]))
            for kept, value in ((seen, observations), (acted, actions), (chances, log_probabilities), (values, worth)):
                kept.append(value)
            steps.append(step)
            episodes += step.episodes
        return Fragment(
            self._number,
            version,
            np.stack(seen),
            np.stack(acted),
            np.stack(chances),
            np.stack(values),
            np.stack([step.rewards for step in steps]),
            np.stack([step.ended for step in steps]),
            np.stack([step.cut for step in steps]),
            after_cut,
            self._policy.values(self._environments.observations),
            episodes,
        )


PlayerActor: Any = shoal.remote(max_restarts=3)(Player)
