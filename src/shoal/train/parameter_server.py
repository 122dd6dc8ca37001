"""A parameter server out of actors: the paper's own way to train (sections 2 and 5.2.1).

Purpose: weights lie in several actors (shards); workers push gradients and have the new weights.

    workers --gradient blocks (zero-copy through the store)--> shards --weights--> workers

Design: the flat vector of weights is cut into blocks, and each block lies in one shard: one block a shard, or as many as `sizes` says, so that a
worker can push the gradient of some layers while it computes that of others (`served_model`). There are three ways to train:

- `exchange`: synchronous, called by the workers: a shard keeps what comes until all have pushed, applies the mean, and answers all of them.
  One round trip a step, and the driver has no part in it.
- `step`: synchronous, called by the driver with refs to gradients.
- `push`: asynchronous: a shard applies each gradient as it comes, and answers with its weights.

A gradient's block travels as an argument: above 16 kB it lies in shared memory, and the shard reads it there. It may be a list of pieces (the
gradients of several layers), which nobody has to put together. A worker that dies in the middle of a round leaves the others an error,
`RoundIncomplete`.

How to extend: another update rule is a class with `step(weights, gradient)`, in place, named by `rule`.

What it does not do: survive the death of a shard: keep `state()` and make a new server.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

import shoal

Vector = npt.NDArray[np.float32]
#: a block's gradient: whole, or in pieces that follow one another
Gradient = Vector | list[Vector]

ROUND_TIMEOUT_S = 60.0


class RoundIncomplete(RuntimeError):
    """A synchronous step did not get the gradients of all workers in time: one is dead, hangs, or takes fewer steps than the others."""


class Momentum:
    """Stochastic gradient descent with momentum (0: without)."""

    def __init__(self, learning_rate: float = 0.1, momentum: float = 0.9) -> None:
        self._learning_rate, self._momentum = learning_rate, momentum
        self._velocity: Vector | None = None
        self._scratch: Vector | None = None

    def step(self, weights: Vector, gradient: Vector) -> None:
        """Change the weights in place."""
        if self._scratch is None:
            self._scratch = np.empty_like(weights)
        if self._momentum:
            if self._velocity is None:
                self._velocity = gradient.copy()
            else:
                if not self._velocity.flags.writeable:  # it was loaded, and lies in shared memory
                    self._velocity = self._velocity.copy()
                self._velocity *= np.float32(self._momentum)
                self._velocity += gradient
            gradient = self._velocity
        np.multiply(gradient, np.float32(self._learning_rate), out=self._scratch)
        weights -= self._scratch

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_scratch": None}


@dataclass(slots=True)
class Round:
    """Gradients of one block's step that have come so far, by worker, and who waits for the others'."""

    workers: int
    gradients: dict[int, Gradient] = field(default_factory=dict)
    complete: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Shard:
    """Some blocks of the weights, each with an update rule of its own."""

    def __init__(self, weights: dict[int, Vector], make_rule: Callable[[], Any]) -> None:
        self._weights = {block: np.array(part, dtype=np.float32) for block, part in weights.items()}
        self._rules = {block: make_rule() for block in weights}
        self._sums = {block: np.empty_like(part) for block, part in self._weights.items()}
        self._rounds: dict[int, Round] = {}

    async def pull(self, block: int) -> Vector:
        """The weights now."""
        return self._weights[block]

    def step(self, block: int, *gradients: Gradient) -> Vector:
        """Apply the mean of these gradients; the new weights."""
        self._apply(block, gradients)
        return self._weights[block]

    async def exchange(self, block: int, worker: int, workers: int, gradient: Gradient, timeout_s: float) -> Vector:
        """One worker's part of a synchronous step; the new weights, as soon as all `workers` have given theirs.

        Raises:
            RoundIncomplete: not all came within `timeout_s`; the step is given up for all.
            ValueError: there is no such worker, or the others speak of another number of them.
        """
        current = self._rounds.get(block) or Round(workers)
        if not 0 <= worker < workers or workers != current.workers:
            raise ValueError(f"worker {worker} of {workers} (from 0) cannot be in a step of {current.workers} workers")
        self._rounds[block] = current
        current.gradients[worker] = gradient
        if len(current.gradients) < workers:
            await self._others(block, current, workers, timeout_s)
        else:
            del self._rounds[block]
            try:
                self._apply(block, [current.gradients[number] for number in sorted(current.gradients)])
            except Exception as error:
                self._fail(current, error)
                raise
            current.complete.set_result(None)
        return self._weights[block]

    async def _others(self, block: int, current: Round, workers: int, timeout_s: float) -> None:
        done, _ = await asyncio.wait([current.complete], timeout=timeout_s)
        if not done:
            del self._rounds[block]
            missing = sorted(set(range(workers)) - set(current.gradients))
            text = f"no gradient of workers {missing} (of {workers}) came within {timeout_s:g} s (timeout_s): dead, or out of step"
            self._fail(current, RoundIncomplete(text))
        current.complete.result()

    @staticmethod
    def _fail(current: Round, error: Exception) -> None:
        current.complete.set_exception(error)
        current.complete.exception()  # seen, even if nobody else waits

    def _apply(self, block: int, gradients: Sequence[Gradient]) -> None:
        weights, total = self._weights[block], self._sums[block]
        if len(gradients) == 1 and not isinstance(gradients[0], list):
            total = gradients[0]  # where it lies in shared memory, not copied
            if total.shape != weights.shape:
                raise _misfit(total.size, weights.size)
        else:
            _add_up(gradients, total)
        self._rules[block].step(weights, total)

    def state(self) -> dict[int, tuple[Vector, Any]]:
        """Weights and the state of the rule of each block, for a checkpoint."""
        return {block: (weights, self._rules[block]) for block, weights in self._weights.items()}

    def load(self, state: dict[int, tuple[Vector, Any]]) -> None:
        """Go on from a checkpoint."""
        for block, (weights, rule) in state.items():
            self._weights[block], self._rules[block] = np.array(weights, dtype=np.float32), rule


def _add_up(gradients: Sequence[Gradient], total: Vector) -> None:
    """The mean of gradients that are whole or in pieces, into `total`."""
    at = 0
    rows = [gradient if isinstance(gradient, list) else [gradient] for gradient in gradients]
    for pieces in zip(*rows, strict=True):
        if any(piece.shape != pieces[0].shape for piece in pieces):
            raise ValueError(f"gradients of one block have pieces of {[piece.size for piece in pieces]} numbers")
        part = total[at : at + pieces[0].size]
        at += pieces[0].size
        if len(pieces) == 1:
            part[:] = pieces[0]
        else:
            np.add(pieces[0], pieces[1], out=part)
            for piece in pieces[2:]:
                part += piece
    if at != total.size:
        raise _misfit(at, total.size)
    if len(gradients) > 1:
        total *= np.float32(1 / len(gradients))


def _misfit(given: int, wanted: int) -> ValueError:
    return ValueError(f"a gradient has {given} numbers, the block of weights {wanted}")


ShardActor: Any = shoal.remote(num_cpus=0)(Shard)


class ParameterServer:
    """The driver's and the workers' door to the shards; may be passed to tasks and actors.

    Args:
        weights: the flat vector to begin with.
        shards: how many actors share it.
        rule: called for each block; makes its update rule.
        options: of the shards' actors (resources, placement).
        sizes: of the blocks, in the vector's order; one block a shard by default.
    """

    def __init__(
        self,
        weights: Vector,
        shards: int = 2,
        rule: Callable[[], Any] = Momentum,
        options: dict[str, Any] | None = None,
        sizes: Sequence[int] | None = None,
    ) -> None:
        if sizes is None:
            if not 1 <= shards <= len(weights):
                raise ValueError(f"{shards} shards cannot share {len(weights)} weights")
            self._bounds = np.linspace(0, len(weights), shards + 1).astype(int).tolist()
        else:
            self._bounds = [0, *accumulate(sizes)]
            if self._bounds[-1] != len(weights) or min(sizes, default=0) < 1 or not 1 <= shards <= len(sizes):
                raise ValueError(f"blocks of {list(sizes)} do not cut {len(weights)} weights for {shards} shards")
        home = _spread(self.sizes, shards)
        make, parts = ShardActor.options(**(options or {})), self.split(weights)
        self.shards = [
            make.remote({block: part for block, part in enumerate(parts) if home[block] == number}, rule)
            for number in range(shards)
        ]
        #: of a model's tensors, if the weights are one's (`serve_model`)
        self.shapes: list[tuple[int, ...]] | None = None
        #: the shard of each block
        self.homes = [self.shards[number] for number in home]

    @property
    def sizes(self) -> list[int]:
        """How many weights each block has."""
        return [end - begin for begin, end in pairwise(self._bounds)]

    def split(self, vector: Vector) -> list[Vector]:
        """A flat vector's blocks: views.

        Raises:
            ValueError: it has not as many numbers as there are weights.
        """
        if np.shape(vector) != (self._bounds[-1],):
            raise ValueError(
                f"a flat vector of {self._bounds[-1]} numbers is wanted, not one of shape {np.shape(vector)}"
            )
        return [vector[begin:end] for begin, end in pairwise(self._bounds)]

    def pull(self) -> Vector:
        """The weights now, gathered from all shards."""
        return np.concatenate(shoal.get([shard.pull.remote(block) for block, shard in enumerate(self.homes)]))

    def push_block(self, block: int, gradient: Gradient) -> Any:
        """Asynchronous: apply one worker's gradient of a block as soon as it has come; a ref to the weights after it."""
        return self.homes[block].step.remote(block, gradient)

    def push(self, gradient: Vector) -> Vector:
        """Asynchronous: apply one worker's gradient now; the weights after it."""
        return _joined([self.push_block(block, part) for block, part in enumerate(self.split(gradient))])

    def exchange_block(
        self, block: int, worker: int, workers: int, gradient: Gradient, timeout_s: float = ROUND_TIMEOUT_S
    ) -> Any:
        """Synchronous: one worker's gradient of a block; a ref to the weights after the mean of all `workers` gradients was applied."""
        return self.homes[block].exchange.remote(block, worker, workers, gradient, timeout_s)

    def exchange(self, gradient: Vector, worker: int, workers: int, timeout_s: float = ROUND_TIMEOUT_S) -> Vector:
        """Synchronous, called by each of `workers` workers equally often: apply the mean of their gradients; the weights after it.

        Raises:
            RoundIncomplete: a worker did not call within `timeout_s`.
        """
        parts = enumerate(self.split(gradient))
        return _joined([self.exchange_block(block, worker, workers, part, timeout_s) for block, part in parts])

    def step(self, gradients: Sequence[Sequence[Any]]) -> list[Any]:
        """Synchronous, called by the driver: apply the mean of the workers' gradients.

        Args:
            gradients: a row for each worker: refs to its blocks (a task or method with `num_returns=len(server.sizes)` that returns
                `server.split(gradient)` gives such a row).

        Returns:
            Refs to the new blocks: arguments for the workers' next step.
        """
        columns = zip(self.homes, zip(*gradients, strict=True), strict=True)
        return [shard.step.remote(block, *column) for block, (shard, column) in enumerate(columns)]

    def state(self) -> list[Any]:
        """A checkpoint of all shards."""
        found: list[Any] = shoal.get([shard.state.remote() for shard in self.shards])
        return found

    def load(self, state: list[Any]) -> None:
        """Go on from `state`.

        Raises:
            ValueError: it is of another number of shards, or of other blocks.
        """
        if len(state) != len(self.shards):
            raise ValueError(f"the state is of {len(state)} shards, this server has {len(self.shards)}")
        loaded = {block: len(weights) for part in state for block, (weights, _) in part.items()}
        if loaded != dict(enumerate(self.sizes)):
            raise ValueError(f"the state has blocks of {list(loaded.values())} weights, this server of {self.sizes}")
        shoal.get([shard.load.remote(part) for shard, part in zip(self.shards, state, strict=True)])


def _joined(refs: list[Any]) -> Vector:
    """The blocks behind refs, one after the other. When one fails, the others' errors are heard too: they are no news."""
    try:
        return np.concatenate(shoal.get(refs))
    except Exception:
        for ref in refs:
            with contextlib.suppress(Exception):
                shoal.get(ref, timeout=1)
        raise


def _spread(sizes: Sequence[int], shards: int) -> list[int]:
    """The shard of each block: the largest first, each to the shard that has least."""
    loads, home = [0] * shards, [0] * len(sizes)
    for block in sorted(range(len(sizes)), key=lambda block: -sizes[block]):
        home[block] = loads.index(min(loads))
        loads[home[block]] += sizes[block]
    return home
