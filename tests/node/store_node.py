"""A node that is only a store: a real `StoreShell` on a loop in a thread, with clients in this process and in others."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec

from shoal.node.io.store_shell import StoreShell
from shoal.protocol.messages import (
    BudgetReturned,
    FreeBlocks,
    FreeObjects,
    OpenSegment,
    Resolve,
    Resolved,
    Sealed,
    SegmentBudget,
    Stored,
    TrimBudget,
)
from shoal.store.client import StaleBlock, StoreClient
from shoal.store.page import ProcessPage

ANSWER_TIMEOUT_S = 60.0


class StoreProcess:
    """One process's side: a `StoreClient`, and what the runtime would do around it."""

    def __init__(self, process: bytes, daemon_pid: int, page_fd: int, send: Callable[[Any], None]) -> None:
        self.process = process
        self._send = send
        self._answers: dict[int, tuple[threading.Event, list[SegmentBudget]]] = {}
        self._resolved: dict[bytes, tuple[threading.Event, list[Stored | str]]] = {}
        self._requests = 0
        self.page = ProcessPage.open(daemon_pid, page_fd)
        self.client = StoreClient(daemon_pid, self.page, self._open_segment)

    def _open_segment(self, need: int) -> SegmentBudget:
        self._requests += 1
        number = self._requests
        arrived, answer = self._answers[number] = (threading.Event(), [])
        self._send(OpenSegment(number, need))
        assert arrived.wait(ANSWER_TIMEOUT_S), "the daemon did not answer OpenSegment"
        del self._answers[number]
        return answer[0]

    def receive(self, message: Any) -> None:
        if isinstance(message, SegmentBudget):
            arrived, answer = self._answers[message.request]
            answer.append(message)
            arrived.set()
        elif isinstance(message, FreeBlocks):
            self.client.on_free_blocks(message)
        elif isinstance(message, TrimBudget):
            self._send(self.client.on_trim(message))
        elif isinstance(message, Resolved):
            resolved, value = self._resolved[message.oid]
            assert isinstance(message.value, Stored | bytes)
            value.append(message.value if isinstance(message.value, Stored) else message.value.decode())
            resolved.set()

    def put(self, oid: bytes, value: Any) -> Stored:
        stored = self.client.put(oid, value)
        self._send(Sealed([(oid, stored.segment, stored.offset, stored.size, stored.generation, self.process)]))
        return stored

    def get(self, stored: Stored) -> memoryview:
        """Read, asking the daemon for the place when it is stale."""
        for _ in range(50):
            try:
                return self.client.read(stored)
            except StaleBlock:
                arrived, value = self._resolved[stored.oid] = (threading.Event(), [])
                self._send(Resolve([stored.oid], stored.generation))
                assert arrived.wait(ANSWER_TIMEOUT_S), "the daemon did not answer Resolve"
                if isinstance(value[0], str):
                    raise LookupError(value[0]) from None
                stored = value[0]
        raise AssertionError("the place is always stale")

    def free(self, stored: Stored, shown: bool = False) -> None:
        if not shown:
            self.client.free(stored)
        self._send(FreeObjects([stored.oid]))


class StoreNode:
    """The daemon's side."""

    def __init__(self, session_dir: Path, capacity_bytes: int, **options: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.moves: list[tuple[bytes, Stored | None]] = []
        self.lost: dict[bytes, str] = {}
        self._sends: dict[bytes, Callable[[Any], None]] = {}
        self._children: list[Any] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.shell = StoreShell(
            self.loop,
            str(session_dir),
            capacity_bytes,
            lambda process, message: self._sends.get(process, lambda message: None)(message),
            on_moved=lambda oid, stored: self.moves.append((oid, stored)),
            on_lost=lambda oid, reason, owner: self.lost.__setitem__(oid, reason),
            **options,
        )

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run something on the loop."""

        async def run() -> Any:
            return function(*arguments)

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(ANSWER_TIMEOUT_S)

    def ensure_resident(self, oid: bytes) -> Stored:
        return asyncio.run_coroutine_threadsafe(self.shell.ensure_resident(oid), self.loop).result(ANSWER_TIMEOUT_S)

    def receive(self, process: bytes, message: Any) -> None:
        """A message of a process, on the loop."""
        if isinstance(message, OpenSegment):
            self.shell.on_open_segment(process, message)
        elif isinstance(message, Sealed):
            self.shell.on_sealed(process, message)
        elif isinstance(message, FreeObjects):
            self.shell.on_free_objects(process, message)
        elif isinstance(message, BudgetReturned):
            self.shell.on_budget_returned(process, message)
        elif isinstance(message, Resolve):
            task = self.loop.create_task(self._resolve(process, message.oids[0]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _resolve(self, process: bytes, oid: bytes) -> None:
        try:
            value: Stored | bytes = await self.shell.ensure_resident(oid)
        except Exception as error:
            value = str(error).encode()
        self._sends[process](Resolved(oid, value))

    def local_process(self, process: bytes) -> StoreProcess:
        """A client in this process; messages to it are handled on the loop's thread."""
        page = self.call(self.shell.add_process, process, f"pid {os.getpid()} ({process.decode()})")

        def send(message: Any) -> None:
            self.loop.call_soon_threadsafe(self.receive, process, message)

        made = StoreProcess(process, os.getpid(), page.fd, send)
        self._sends[process] = made.receive
        return made

    def start_process(self, process: bytes, body: Callable[..., None], *arguments: Any) -> multiprocessing.Process:
        """Run `body(store_process, *arguments)` in a process of its own; its death is noticed as a daemon would."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        page = self.call(self.shell.add_process, process, process.decode())
        child = context.Process(
            target=_child_main, args=(process, os.getpid(), page.fd, theirs, body, arguments), daemon=True
        )
        self._sends[process] = lambda message: _send_quietly(ours, message)
        child.start()
        theirs.close()
        threading.Thread(target=self._read_child, args=(process, ours), daemon=True).start()
        self._children.append(child)
        return child  # type: ignore[return-value]

    def _read_child(self, process: bytes, pipe: Connection) -> None:
        try:
            while True:
                message = pipe.recv()
                self.loop.call_soon_threadsafe(self.receive, process, message)
        except (EOFError, OSError):
            self.loop.call_soon_threadsafe(self.shell.remove_process, process)

    def statistics(self) -> Any:
        return self.call(self.shell.statistics)

    def close(self) -> None:
        for child in self._children:
            child.kill()
            child.join()
        self.call(self.shell.close)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


def _send_quietly(pipe: Connection, message: msgspec.Struct) -> None:
    try:
        pipe.send(message)
    except OSError:
        pass  # the process is gone; its death is on the way


def _child_main(
    process: bytes,
    daemon_pid: int,
    page_fd: int,
    pipe: Connection,
    body: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    lock = threading.Lock()

    def send(message: Any) -> None:
        with lock:
            pipe.send(message)

    store = StoreProcess(process, daemon_pid, page_fd, send)

    def read() -> None:
        while True:
            store.receive(pipe.recv())

    threading.Thread(target=read, daemon=True).start()
    body(store, *arguments)
