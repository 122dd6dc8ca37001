"""Dials of the daemon: frozen nodes delay only dials to themselves."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from shoal.node.io import dial_threads
from shoal.node.io.dial_threads import DialThreads


def test_dials_to_frozen_nodes_delay_no_other() -> None:
    thawed = threading.Event()

    def frozen() -> socket.socket:
        assert thawed.wait(60)
        raise ConnectionError("frozen")

    async def run() -> None:
        dials = DialThreads(asyncio.get_running_loop())
        slow = [dials.dial(frozen) for _ in range(40)]
        try:
            (await asyncio.wait_for(dials.dial(socket.socket), 60)).close()
            assert not any(each.done() for each in slow)
        finally:
            thawed.set()
        ends = await asyncio.gather(*slow, return_exceptions=True)
        assert {type(end) for end in ends} == {ConnectionError}

    asyncio.run(run())


def test_there_are_not_too_many_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial_threads, "DIALS_MAX", 2)
    counts: list[int] = []
    running, lock = [0], threading.Lock()

    def connect() -> socket.socket:
        with lock:
            running[0] += 1
            counts.append(running[0])
        sock = socket.socket()
        with lock:
            running[0] -= 1
        return sock

    async def run() -> None:
        dials = DialThreads(asyncio.get_running_loop())
        for sock in await asyncio.gather(*(dials.dial(connect) for _ in range(20))):
            sock.close()

    asyncio.run(run())
    assert len(counts) == 20 and max(counts) <= 2


def test_what_is_connected_after_the_end_is_closed() -> None:
    gate, made = threading.Event(), socket.socket()
    loop = asyncio.new_event_loop()

    def connect() -> socket.socket:
        gate.wait(60)
        return made

    dials = DialThreads(loop)
    dials.dial(connect)
    loop.close()
    gate.set()
    for thread in threading.enumerate():
        if thread.name == "shoal-dial":
            thread.join(60)
    assert made.fileno() == -1
