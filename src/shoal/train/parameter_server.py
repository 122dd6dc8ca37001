"""A parameter server out of actors: the paper's own way to train (sections 2 and 5.2.1).

Purpose: weights lie in several actors (shards), each a slice of one flat vector; workers push gradients and pull weights.

    workers --gradient slices (zero-copy through the store)--> shards --weights--> workers

Design: `step` is synchronous: every shard adds up the gradients of all workers and answers once; `push` is asynchronous: a shard applies each
gradient as it comes, and answers with its weights. A gradient's slice travels as a task argument: above 16 kB it lies in shared memory, and the shard
reads it there.

How to extend: another update rule is a class with `step(weights, gradient)`, in place, named by `rule`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

import shoal

Vector = npt.NDArray[np.float32]


class Momentum:
    """Stochastic gradient descent with momentum."""

    def __init__(self, learning_rate: float = 0.1, momentum: float = 0.9) -> None:
        self._learning_rate, self._momentum = learning_rate, momentum
        self._velocity: Vector | None = None

    def step(self, weights: Vector, gradient: Vector) -> None:
        """Change the weights in place."""
        if self._velocity is None:
            self._velocity = gradient.copy()
        else:
            self._velocity = self._momentum * self._velocity  # a new array: one that was loaded is read-only
            self._velocity += gradient
        weights -= np.float32(self._learning_rate) * self._velocity


class Shard:
    """One slice of the weights."""

    def __init__(self, weights: Vector, make_rule: Callable[[], Any]) -> None:
        self._weights = np.array(weights, dtype=np.float32)
        self._rule = make_rule()

    def pull(self) -> Vector:
        """The weights now."""
        return self._weights

    def step(self, *gradients: Vector) -> Vector:
        """Apply the mean of these gradients; the new weights."""
        mean = gradients[0]  # of one worker: where it lies in shared memory, not copied
        if len(gradients) > 1:
            mean = gradients[0] + gradients[1]
            for gradient in gradients[2:]:
                mean += gradient
            mean /= np.float32(len(gradients))
        self._rule.step(self._weights, mean)
        return self._weights

    def state(self) -> tuple[Vector, Any]:
        """Weights and the state of the rule, for a checkpoint."""
        return self._weights, self._rule

    def load(self, weights: Vector, rule: Any) -> None:
        """Go on from a checkpoint."""
        self._weights, self._rule = np.array(weights, dtype=np.float32), rule


ShardActor: Any = shoal.remote(num_cpus=0)(Shard)


class ParameterServer:
    """The driver's and the workers' door to the shards; may be passed to tasks and actors.

    Args:
        weights: the flat vector to begin with.
        shards: how many actors share it.
        rule: called in each shard; makes its update rule.
        options: of the shards' actors (resources, placement).
    """

    def __init__(
        self,
        weights: Vector,
        shards: int = 2,
        rule: Callable[[], Any] = Momentum,
        options: dict[str, Any] | None = None,
    ) -> None:
        if not 1 <= shards <= len(weights):
            raise ValueError(f"{shards} shards cannot share {len(weights)} weights")
        self._bounds = np.linspace(0, len(weights), shards + 1).astype(int).tolist()
        make = ShardActor.options(**(options or {}))
        self.shards = [make.remote(part, rule) for part in self.split(weights)]

    def split(self, vector: Vector) -> list[Vector]:
        """A flat vector's slices, one a shard: views."""
        return [vector[begin:end] for begin, end in zip(self._bounds[:-1], self._bounds[1:], strict=True)]

    def pull(self) -> Vector:
        """The weights now, gathered from all shards."""
        return np.concatenate(shoal.get([shard.pull.remote() for shard in self.shards]))

    def push(self, gradient: Vector) -> Vector:
        """Asynchronous: apply one worker's gradient now; the weights after it."""
        refs = [shard.step.remote(part) for shard, part in zip(self.shards, self.split(gradient), strict=True)]
        return np.concatenate(shoal.get(refs))

    def step(self, gradients: Sequence[Sequence[Any]]) -> list[Any]:
        """Synchronous: apply the mean of the workers' gradients.

        Args:
            gradients: a row for each worker: refs to its slices, one a shard (a task or method with `num_returns=len(shards)` that returns
                `server.split(gradient)` gives such a row).

        Returns:
            Refs to the new slices, one a shard: arguments for the workers' next step.
        """
        return [
            shard.step.remote(*column) for shard, column in zip(self.shards, zip(*gradients, strict=True), strict=True)
        ]

    def state(self) -> list[Any]:
        """A checkpoint of all shards."""
        found: list[Any] = shoal.get([shard.state.remote() for shard in self.shards])
        return found

    def load(self, state: list[Any]) -> None:
        """Go on from `state`.

        Raises:
            ValueError: it is of another number of shards.
        """
        if len(state) != len(self.shards):
            raise ValueError(f"the state is of {len(state)} shards, this server has {len(self.shards)}")
        shoal.get([shard.load.remote(*part) for shard, part in zip(self.shards, state, strict=True)])
