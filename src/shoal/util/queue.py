"""A first-in first-out queue that any task, actor or driver can share.

Design: an asyncio actor holds an `asyncio.Queue`; waiting calls sleep there and cost nobody anything. A `Queue` is a handle to it: pass it to
tasks and actors like any value.

What it does not do: outlive its last handle, unless `actor_options` make the actor detached.
"""

from __future__ import annotations

import asyncio
import queue as stdlib_queue
from collections.abc import Iterable
from typing import Any

import shoal

#: calls that may sleep in the queue's actor at once; beyond that a put could wait behind gets that wait for it
WAITERS_MAX = 100_000


class Empty(stdlib_queue.Empty):
    """Nothing to get, now or within the time-out."""


class Full(stdlib_queue.Full):
    """No room, now or within the time-out."""


class Queue:
    """A queue of at most `maxsize` items (0: no limit), in an actor made with `actor_options`."""

    def __init__(self, maxsize: int = 0, actor_options: dict[str, Any] | None = None) -> None:
        self.maxsize = maxsize
        options = {"max_concurrency": WAITERS_MAX, **(actor_options or {})}
        self.actor = shoal.remote(_QueueActor).options(**options).remote(maxsize)

    def __len__(self) -> int:
        return self.size()

    def size(self) -> int:
        """Number of items now."""
        return int(shoal.get(self._living().qsize.remote()))

    def qsize(self) -> int:
        """Number of items now."""
        return self.size()

    def empty(self) -> bool:
        """Whether there is nothing to get."""
        return bool(shoal.get(self._living().empty.remote()))

    def full(self) -> bool:
        """Whether there is no room."""
        return bool(shoal.get(self._living().full.remote()))

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Add an item. While full, wait (`timeout` seconds, or for ever) if `block`; then raise Full."""
        try:
            if block:
                shoal.get(self._living().put.remote(item, _checked(timeout)))
            else:
                shoal.get(self._living().put_nowait.remote(item))
        except Full as error:
            raise Full(*error.args[:1]) from None

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the oldest item. While empty, wait (`timeout` seconds, or for ever) if `block`; then raise Empty."""
        try:
            if block:
                return shoal.get(self._living().get.remote(_checked(timeout)))
            return shoal.get(self._living().get_nowait.remote())
        except Empty as error:
            raise Empty(*error.args[:1]) from None

    async def put_async(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """`put` for asyncio code."""
        try:
            if block:
                await self._living().put.remote(item, _checked(timeout))
            else:
                await self._living().put_nowait.remote(item)
        except Full as error:
            raise Full(*error.args[:1]) from None

    async def get_async(self, block: bool = True, timeout: float | None = None) -> Any:
        """`get` for asyncio code."""
        try:
            if block:
                return await self._living().get.remote(_checked(timeout))
            return await self._living().get_nowait.remote()
        except Empty as error:
            raise Empty(*error.args[:1]) from None

    def put_nowait(self, item: Any) -> None:
        """Add an item, or raise Full."""
        self.put(item, block=False)

    def get_nowait(self) -> Any:
        """Take the oldest item, or raise Empty."""
        return self.get(block=False)

    def put_nowait_batch(self, items: Iterable[Any]) -> None:
        """Add all items in order, or none and raise Full."""
        if not isinstance(items, Iterable):
            raise TypeError(f"put_nowait_batch needs an iterable of items, got {type(items).__name__}")
        try:
            shoal.get(self._living().put_nowait_batch.remote(list(items)))
        except Full as error:
            raise Full(*error.args[:1]) from None

    def get_nowait_batch(self, num_items: int) -> list[Any]:
        """Take the oldest `num_items`, or none and raise Empty."""
        if not isinstance(num_items, int) or isinstance(num_items, bool):
            raise TypeError(f"num_items must be an int, got {type(num_items).__name__}")
        if num_items < 0:
            raise ValueError(f"num_items must not be negative, got {num_items}")
        try:
            items: list[Any] = shoal.get(self._living().get_nowait_batch.remote(num_items))
        except Empty as error:
            raise Empty(*error.args[:1]) from None
        return items

    def _living(self) -> Any:
        """The actor.

        Raises:
            RuntimeError: `shutdown` was called.
        """
        if self.actor is None:
            raise RuntimeError("this queue was shut down: make a new Queue")
        return self.actor

    def shutdown(self, force: bool = False, grace_period_s: float = 5) -> None:
        """End the queue's actor: at once with `force`, else after what it is doing, but within `grace_period_s` seconds."""
        if self.actor is None:
            return
        if not force:
            done = self.actor.__ray_terminate__.remote()
            _, late = shoal.wait([done], num_returns=1, timeout=grace_period_s)
            force = bool(late)
        if force:
            shoal.kill(self.actor, no_restart=True)
        self.actor = None


class _QueueActor:
    """What runs in the actor."""

    def __init__(self, maxsize: int) -> None:
        self._queue: asyncio.Queue[Any] = asyncio.Queue(maxsize)

    async def qsize(self) -> int:
        return self._queue.qsize()

    async def empty(self) -> bool:
        return self._queue.empty()

    async def full(self) -> bool:
        return self._queue.full()

    async def put(self, item: Any, timeout_s: float | None = None) -> None:
        if timeout_s is None:
            await self._queue.put(item)
            return
        try:
            await asyncio.wait_for(self._queue.put(item), timeout_s)
        except TimeoutError:
            raise Full(f"the queue of {self._queue.maxsize} stayed full for {timeout_s} s") from None

    async def get(self, timeout_s: float | None = None) -> Any:
        if timeout_s is None:
            return await self._queue.get()
        try:
            return await asyncio.wait_for(self._queue.get(), timeout_s)
        except TimeoutError:
            raise Empty(f"the queue stayed empty for {timeout_s} s") from None

    async def put_nowait(self, item: Any) -> None:
        try:
            self._queue.put_nowait(item)
        except asyncio.QueueFull:
            raise Full(f"the queue holds {self._queue.maxsize} items already") from None

    async def get_nowait(self) -> Any:
        try:
            return self._queue.get_nowait()
        except asyncio.QueueEmpty:
            raise Empty("the queue is empty") from None

    async def put_nowait_batch(self, items: list[Any]) -> None:
        room = self._queue.maxsize - self._queue.qsize()
        if self._queue.maxsize > 0 and len(items) > room:
            raise Full(f"{len(items)} items do not fit: the queue of {self._queue.maxsize} has room for {room}")
        for item in items:
            self._queue.put_nowait(item)

    async def get_nowait_batch(self, num_items: int) -> list[Any]:
        if num_items > self._queue.qsize():
            raise Empty(f"{num_items} items were asked for, the queue has {self._queue.qsize()}")
        return [self._queue.get_nowait() for _ in range(num_items)]


def _checked(timeout_s: float | None) -> float | None:
    if timeout_s is not None and timeout_s < 0:
        raise ValueError(f"timeout must not be negative, got {timeout_s}")
    return timeout_s
