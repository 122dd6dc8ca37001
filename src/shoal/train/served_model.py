"""A torch model whose weights are a parameter server's.

    server = serve_model(make_model(), shards=2)                  # the driver
    served = ServedModel(make_model(), server, worker, workers)   # each worker
    loss(served.model(batch)).backward()                          # gradients leave while backward goes on
    served.step()                                                 # the new weights are in the model

Design: the model's tensors are views of one flat vector, cut into blocks along the layers. Backward begins at the last layer: as soon
as all gradients of a block are there, it is pushed (a hook of torch's), and its shard adds up and applies while the worker computes those of earlier
layers. `step` pushes what has had no gradient as zeros, and copies the new weights in. With `lag`, `step` does not wait for the newest weights but
for those of as many steps before: hardly anybody waits, and gradients are that old.

What it does not do: buffers (running means of batch norms) stay each worker's own; one backward pass for each `step`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import shoal
from shoal.train.memory import keep_freed_memory
from shoal.train.parameter_server import ROUND_TIMEOUT_S, Momentum, ParameterServer


def block_sizes(sizes: Sequence[int], shards: int) -> list[int]:
    """Blocks for tensors of these sizes: each of at most a shard's share of all, and ending where a tensor does when it is at least half full."""
    share = -(-sum(sizes) // shards)
    found: list[int] = []
    filled = 0
    for size in reversed(sizes):  # in the order in which backward completes them
        filled += size
        while filled >= share:
            found.append(share)
            filled -= share
        if 2 * filled >= share:
            found.append(filled)
            filled = 0
    if filled:
        found.append(filled)
    found.reverse()
    return found


def serve_model(
    model: Any, shards: int = 2, rule: Callable[[], Any] = Momentum, options: dict[str, Any] | None = None
) -> ParameterServer:
    """A parameter server with the weights of a torch model, in blocks along its layers."""
    parameters = list(model.parameters())
    flat = np.concatenate([each.detach().cpu().numpy().ravel() for each in parameters]).astype(np.float32)
    shards = min(shards, len(flat))
    server = ParameterServer(flat, shards, rule, options, block_sizes([each.numel() for each in parameters], shards))
    server.shapes = [tuple(each.shape) for each in parameters]
    return server


class ServedModel:
    """A worker's model.

    Args:
        model: like the one that `server` was made from, with float32 weights on the CPU; gets the server's weights.
        server: made by `serve_model`.
        worker, workers: this worker's number from 0, and how many train together (synchronous); `workers=None`: each trains for itself
            (asynchronous).
        lag: see the module's text.
        timeout_s: how long a synchronous step waits for the other workers.

    Raises:
        ValueError: the model is another one than the server's.
    """

    def __init__(
        self,
        model: Any,
        server: ParameterServer,
        worker: int = 0,
        workers: int | None = None,
        *,
        lag: int = 0,
        timeout_s: float = ROUND_TIMEOUT_S,
    ) -> None:
        import torch

        keep_freed_memory()
        self.model, self._server, self._torch = model, server, torch
        self._worker, self._workers, self._lag, self._timeout_s = worker, workers, lag, timeout_s
        self._parameters = list(model.parameters())
        flat = torch.nn.utils.parameters_to_vector(self._parameters).detach()
        if flat.numel() != sum(server.sizes) or flat.dtype != torch.float32 or flat.device.type != "cpu":
            raise ValueError(
                f"the model has {flat.numel()} weights ({flat.dtype}, {flat.device}), the server {sum(server.sizes)} (float32 on the CPU)"
            )
        shapes = [tuple(each.shape) for each in self._parameters]
        if server.shapes is not None and shapes != server.shapes:
            raise ValueError(f"the model has tensors of {shapes}, the server's of {server.shapes}")
        torch.nn.utils.vector_to_parameters(flat, self._parameters)
        self._blocks = server.split(flat.numpy())
        self._take(server.split(server.pull()))
        #: of each block, which part of which parameter lies in it: (parameter, begin, end)
        self._pieces = pieces_of([each.numel() for each in self._parameters], server.sizes)
        self._blocks_of: dict[int, list[int]] = {}
        for block, pieces in enumerate(self._pieces):
            for parameter, _, _ in pieces:
                self._blocks_of.setdefault(parameter, []).append(block)
        self._missing = [len(pieces) for pieces in self._pieces]
        self._pushed: list[Any] = [None] * len(self._pieces)
        self._under_way: deque[list[Any]] = deque()
        for number, parameter in enumerate(self._parameters):
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda _, number=number: self._has_gradient(number))

    def step(self) -> None:
        """Push what is left, and have the new weights.

        Raises:
            RoundIncomplete: another worker did not come this far within `timeout_s`.
        """
        for block, ref in enumerate(self._pushed):
            if ref is None:
                self._push(block)
        self._under_way.append(self._pushed)
        self._pushed = [None] * len(self._pieces)
        self._missing = [len(pieces) for pieces in self._pieces]
        for parameter in self._parameters:
            parameter.grad = None
        if len(self._under_way) > self._lag:
            self._take(self._under_way.popleft())

    def _has_gradient(self, number: int) -> None:
        for block in self._blocks_of[number]:
            self._missing[block] -= 1
            if self._missing[block] == 0:
                self._push(block)
            elif self._missing[block] < 0:
                raise RuntimeError("a second backward pass before step(): gradients of the first are pushed already")

    def _push(self, block: int) -> None:
        gradient = [self._piece(*piece) for piece in self._pieces[block]]
        if self._workers is None:
            self._pushed[block] = self._server.push_block(block, gradient)
        else:
            self._pushed[block] = self._server.exchange_block(
                block, self._worker, self._workers, gradient, self._timeout_s
            )

    def _piece(self, parameter: int, begin: int, end: int) -> Any:
        gradient = self._parameters[parameter].grad
        if gradient is None:
            return np.zeros(end - begin, np.float32)
        return gradient.detach().reshape(-1)[begin:end].numpy()

    def _take(self, weights: list[Any]) -> None:
        """Copy new weights, or what refs to them give, into the model. Blocks of the last layers were pushed first, and are there first."""
        for block in reversed(range(len(weights))):
            new = weights[block]
            self._blocks[block][:] = new if isinstance(new, np.ndarray) else shoal.get(new)


def pieces_of(tensors: Sequence[int], blocks: Sequence[int]) -> list[list[tuple[int, int, int]]]:
    """How blocks lie over tensors of these sizes, both one after the other: (tensor, begin, end) of each piece of each block."""
    found: list[list[tuple[int, int, int]]] = []
    tensor = at = 0
    for block in blocks:
        pieces: list[tuple[int, int, int]] = []
        while block:
            if at == tensors[tensor]:
                tensor, at = tensor + 1, 0
                continue
            end = min(tensors[tensor], at + block)
            pieces.append((tensor, at, end))
            block -= end - at
            at = end
        found.append(pieces)
    return found
