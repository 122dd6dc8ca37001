"""Refs in asyncio code and as futures: `await ref`, `ref.future()`.

Purpose: a value that arrives wakes a coroutine or completes a future, with no thread of its own for each.

Design: an entry gets a callback that runs outside of the reactor's lock, in the thread that reads; while anybody awaits, the background thread
leads at once and stays. Loops are woken by `call_soon_threadsafe`, or directly when the loop's own thread reads (asyncio actors).

What it does not do: wait in threads (`core`, `waiting`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future

    from shoal.runtime.core import Runtime
    from shoal.runtime.objects import ObjectEntry, ObjectRef


def on_ready(runtime: Runtime, entry: ObjectEntry, callback: Callable[[], None]) -> None:
    """Call `callback` when the entry has a value, on this node: by the reading thread, outside of the lock."""

    def known(entry: ObjectEntry) -> None:
        if runtime.pulling.when_here(entry, callback):
            runtime.reactor.later.append(callback)

    with runtime.reactor.lock:
        if entry.value is None and runtime.lost is None:
            if entry.waiters is None:
                entry.waiters = []
            entry.waiters.append(known)
            runtime.objects.resolve([entry])
            runtime.reactor.attend()
            return
    if runtime.pulling.when_here(entry, callback):
        callback()


def future(runtime: Runtime, ref: ObjectRef) -> Future[Any]:
    """A concurrent.futures.Future of a ref's value."""
    from concurrent.futures import Future

    future: Future[Any] = Future()
    entry = ref._entry
    if runtime.reactor.async_wait_began():
        runtime.submitter.flush()  # from now on replies send what was gathered meanwhile

    def deliver() -> None:
        runtime.reactor.async_wait_ended()
        if not future.set_running_or_notify_cancel():
            return
        try:
            value = runtime.load(ref._entry)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(value)

    on_ready(runtime, entry, deliver)
    return future


async def await_ref(runtime: Runtime, ref: ObjectRef) -> Any:
    """The value of a ref, in asyncio code."""
    entry = ref._entry
    if entry.value is None or not runtime.pulling.is_here(entry):
        import asyncio

        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[None] = loop.create_future()
        here = threading.get_ident()

        def finish() -> None:
            if not arrived.done():
                arrived.set_result(None)

        def deliver() -> None:
            if threading.get_ident() == here:
                finish()
                return
            try:
                loop.call_soon_threadsafe(finish)
            except RuntimeError:
                pass  # the loop was closed meanwhile

        if runtime.reactor.async_wait_began():
            runtime.submitter.flush()  # from now on replies send what was gathered meanwhile
        try:
            on_ready(runtime, entry, deliver)
            await arrived
        finally:
            runtime.reactor.async_wait_ended()
    return runtime.load(entry)
