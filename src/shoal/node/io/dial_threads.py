"""Threads that dial other nodes for the daemon.

Purpose: a dial blocks, for seconds when the other node is frozen or its machine is gone; that delays neither the loop nor dials to others.

Design: a thread for each dial, so that none waits for another, and none is kept when all is connected; at most DIALS_MAX at a time, in the order of
asking. They are not waited for when the node ends.

    dial -> thread -> its end -> the future, on the loop -> the next one that waits

What it does not do: dial again, or know what a connection is for (`node_links`, `transfer`).
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import deque
from collections.abc import Callable

DIALS_MAX = 64  #: at a time; so many nodes would have to be frozen before others wait


class DialThreads:
    """Dials of one part of the daemon. Used on the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[tuple[asyncio.Future[socket.socket], Callable[[], socket.socket]]] = deque()
        self._busy = 0

    def dial(self, connect: Callable[[], socket.socket]) -> asyncio.Future[socket.socket]:
        """What `connect`, which blocks, returns or raises."""
        future = self._loop.create_future()
        self._waiting.append((future, connect))
        self._next()
        return future

    def _next(self) -> None:
        while self._waiting and self._busy < DIALS_MAX:
            self._busy += 1
            threading.Thread(target=self._work, args=self._waiting.popleft(), name="shoal-dial", daemon=True).start()

    def _work(self, future: asyncio.Future[socket.socket], connect: Callable[[], socket.socket]) -> None:
        """On a thread."""
        sock: socket.socket | None = None
        error: Exception | None = None
        try:
            sock = connect()
        except Exception as raised:
            error = raised
        try:
            self._loop.call_soon_threadsafe(self._ended, future, sock, error)
        except RuntimeError:  # the node has ended meanwhile
            if sock is not None:
                sock.close()

    def _ended(
        self, future: asyncio.Future[socket.socket], sock: socket.socket | None, error: Exception | None
    ) -> None:
        self._busy -= 1
        self._next()
        if sock is not None:
            future.set_result(sock)
        else:
            future.set_exception(error or ConnectionError("nothing came of it"))
