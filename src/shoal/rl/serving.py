"""A policy served inside the loop: an actor that answers many callers with few calls of the model.

Purpose: what the paper's section 5.2.2 (table 3) compares with a REST server: simulators ask a policy for actions thousands of times a second.

Design: an asyncio actor. Requests that arrive while the model computes wait together and are answered by its next call; nothing waits for a batch to
fill, so a lone caller pays for no batching. The model is any callable from an array (rows, ...) to an array (rows, ...), made in the actor's process.
States of one call of the model have one shape and one type: a request of another kind ends the batch, so it harms none but itself.

What it does not do: HTTP (callers are tasks and actors); several copies: make several servers.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable
from typing import Any

import numpy as np

import shoal

Model = Callable[[np.ndarray], np.ndarray]


def alike(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether both can be part of one array of states."""
    return one.shape[1:] == other.shape[1:] and one.dtype == other.dtype


@shoal.remote(num_cpus=0)
class PolicyServer:
    """`shoal.get(server.act.remote(states))` for callers; `states` and the answer have one row a state.

    Args:
        make_model: called once in the actor; gives the model.
        rows_max: at most so many states in a call of the model; a request of more rows is served alone.
    """

    def __init__(self, make_model: Callable[[], Model], rows_max: int = 256) -> None:
        if rows_max < 1:
            raise ValueError(f"rows_max must be at least 1, not {rows_max}")
        self._model = make_model()
        self._rows_max = rows_max
        self._waiting: collections.deque[tuple[np.ndarray, asyncio.Future[np.ndarray]]] = collections.deque()
        self._runs = False
        self._calls = self._rows = 0

    async def act(self, states: np.ndarray) -> np.ndarray:
        """The model's answer for these states.

        Raises:
            whatever the model raises for the batch in which they were.
            ValueError: these are no rows, or the model did not answer one row a state.
        """
        states = np.asarray(states)
        if states.ndim == 0 or states.dtype.hasobject:
            raise ValueError(
                f"states have one row each, an array of shape (states, ...) of numbers; this is {states!r}"
            )
        answer: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        self._waiting.append((states, answer))
        if not self._runs:
            self._runs = True
            asyncio.get_running_loop().call_soon(self._serve)
        return await answer

    def _serve(self) -> None:
        """One call of the model, for all that wait and fit."""
        batch = [self._waiting.popleft()]
        first, rows = batch[0][0], len(batch[0][0])
        while self._waiting and rows + len(self._waiting[0][0]) <= self._rows_max and alike(first, self._waiting[0][0]):
            batch.append(self._waiting.popleft())
            rows += len(batch[-1][0])
        self._answer(batch, rows)
        self._runs = bool(self._waiting)
        if self._runs:
            asyncio.get_running_loop().call_soon(self._serve)

    def _answer(self, batch: list[tuple[np.ndarray, asyncio.Future[np.ndarray]]], rows: int) -> None:
        try:
            answers = self._model(np.concatenate([states for states, _ in batch]) if len(batch) > 1 else batch[0][0])
            if len(answers) != rows:
                raise ValueError(f"the model answered {len(answers)} rows for {rows} states")
        except Exception as error:
            for _, answer in batch:
                if not answer.done():  # its caller may have cancelled
                    answer.set_exception(error)
            return
        self._calls += 1
        self._rows += rows
        at = 0
        for states, answer in batch:
            if not answer.done():
                answer.set_result(answers[at : at + len(states)])
            at += len(states)

    async def statistics(self) -> dict[str, Any]:
        """How many states were answered by how many calls of the model."""
        return {"calls": self._calls, "rows": self._rows}
