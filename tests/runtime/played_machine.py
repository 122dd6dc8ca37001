"""What the simulation plays of the operating system: sockets in memory, epoll, the status page, and a reactor whose waits hand the turn over.

Sockets behave as Unix sockets do: what is written can be read at once, in pieces of any size, also after the writer's death; a full buffer stalls
the writer.
"""

from __future__ import annotations

import errno
import select
from typing import TYPE_CHECKING, Any

from shoal.runtime.reactor import Reactor

if TYPE_CHECKING:
    from tests.runtime.simulation import Process, World

CURRENT: list[World] = []  #: the world that runs now: what the tasks' code finds


class Killed(BaseException):
    """Unwinds the thread of a worker that was killed."""


# ---------------------------------------------------------------- sockets


class FakeSocket:
    """One end of a stream in memory."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.fd = next(world.fds)
        self.incoming = bytearray()
        self.peer: FakeSocket | None = None
        self.closed = False

    @classmethod
    def pair(cls, world: World) -> tuple[FakeSocket, FakeSocket]:
        one, other = cls(world), cls(world)
        one.peer, other.peer = other, one
        return one, other

    def fileno(self) -> int:
        return self.fd

    def setblocking(self, flag: bool) -> None:
        pass

    def settimeout(self, timeout_s: float) -> None:
        pass

    def connect(self, address: str) -> None:
        process = self.world.by_address.get(address)
        if process is None or process.dead or self.world.refuses_connect():
            raise ConnectionRefusedError
        if self.world.is_full():
            raise BlockingIOError(errno.EAGAIN, "full")
        self.peer = FakeSocket(self.world)
        self.peer.peer = self
        process.accept(self.peer)

    def connect_ex(self, address: str) -> int:
        try:
            self.connect(address)
        except BlockingIOError:
            return errno.EAGAIN
        except ConnectionRefusedError:
            return errno.ECONNREFUSED
        return 0

    def send(self, data: Any) -> int:
        if self.closed or self.peer is None or self.peer.closed:
            raise BrokenPipeError
        room = self.world.capacity - len(self.peer.incoming)
        if room <= 0:
            raise BlockingIOError
        count = min(room, len(data))
        self.peer.incoming += bytes(data[:count])
        return count

    def recv_into(self, view: memoryview) -> int:
        if self.closed:
            raise OSError("closed")
        if self.incoming:
            count = min(len(view), self.world.piece(len(self.incoming)))
            view[:count] = self.incoming[:count]
            del self.incoming[:count]
            return count
        if self.peer is None or self.peer.closed:
            return 0
        raise BlockingIOError

    def close(self) -> None:
        self.closed = True

    @property
    def readable(self) -> bool:
        return bool(self.incoming) or self.peer is None or self.peer.closed

    @property
    def writable(self) -> bool:
        return self.peer is None or self.peer.closed or len(self.peer.incoming) < self.world.capacity


class FakeEpoll:
    """Says which of a process's sockets are ready; some at a time."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.masks: dict[int, int] = {}
        self.connections: dict[int, Any] = {}

    def register(self, fd: int, mask: int) -> None:
        self.masks[fd] = mask

    modify = register

    def unregister(self, fd: int) -> None:
        del self.masks[fd]

    def close(self) -> None:
        pass

    def poll(self, timeout: float = 0) -> list[tuple[int, int]]:
        events = []
        for fd, mask in self.masks.items():
            connection = self.connections.get(fd)
            if connection is None:
                continue
            ready = (select.EPOLLIN if connection.sock.readable else 0) | (
                select.EPOLLOUT if connection.sock.writable else 0
            )
            if ready & mask:
                events.append((fd, ready & mask))
        return self.world.some(events)


class SimReactor(Reactor):
    """A reactor whose waits hand the turn over."""

    def __init__(self) -> None:
        super().__init__()
        self.epoll.close()
        self.epoll = FakeEpoll(CURRENT[-1])  # type: ignore[assignment]
        self.epoll.connections = self.connections  # type: ignore[attr-defined]
        self.process: Process = None  # type: ignore[assignment]

    def wait(self, waiter: Any, deadline: float | None = None) -> bool:
        while not waiter.done:
            if deadline is not None and self.process.world.clock() >= deadline:
                return False
            for callback in self.before_sleep:
                callback()
            self.flush_dirty()
            self.process.pause("wait")
            self.poll_once()
        return True


def bytes_waiting(sock: FakeSocket) -> int:
    return len(sock.incoming) or int(sock.readable)


class FakePage:
    """The status page."""

    def __init__(self) -> None:
        self.started = (0, 0)
        self.kept: list[tuple[int, int]] = []

    def set_runs_once(self, lease_id: int, seq: int) -> None:
        pass

    def set_started(self, lease_id: int, seq: int) -> None:
        self.started = (lease_id, seq)

    def is_leashed(self) -> bool:
        return False

    def keep_started(self) -> None:
        self.kept.append(self.started)
