"""Connections to workers are made without waiting for anybody.

Purpose: a node or worker that stands still (frozen, swapped out, cut off) must hold up nothing but what is for it. All of a runtime's work is under
the reactor's lock, so nobody may wait for another process there.

Design: a worker of this node is connected to at once, as a Unix socket either takes a connection, refuses it, or says that its queue is full; then
it is tried again at each tick. To a worker of another node the socket is non-blocking and watched by the reactor like the others; `RouteHello`
says what is to be said. Meanwhile calls and grants wait at whoever asked, who is told how it ended.

    dial --> connected at once: the socket is returned
         `-> under way: None; later `on_dialled(dial, socket)`, or `on_dialled(dial, None)`: refused, gone, DIAL_TIMEOUT_S over, given up

Whoever asks again while a dial is under way gets None and changes nothing. After a failure the worker is not dialled for REDIAL_PAUSE_S.

What it does not do: decide what becomes of what waits (`submitter`, `actor_calls`); speak on a connection (`connection`).
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING

from shoal.protocol.limits import PROTOCOL_VERSION
from shoal.runtime.abroad import RouteHello, is_abroad
from shoal.system.process import UnsupportedSystemError, raise_file_limit

if TYPE_CHECKING:
    from shoal.protocol.messages import LeaseGranted
    from shoal.runtime.core import Runtime

DIAL_TIMEOUT_S = 10.0  #: a node that stood still for less goes on where it was
REDIAL_PAUSE_S = 0.05
SLOW_DIAL_S = 0.1  #: what waits for a longer one looks for another worker too


class Dial:
    """One connection that is being made. Written under the reactor's lock."""

    __slots__ = ("address", "began", "fd", "grants", "hello", "is_slow", "pid", "sock", "target", "worker_id")

    def __init__(self, worker_id: bytes, address: str, pid: int, sock: socket.socket) -> None:
        self.worker_id = worker_id
        self.address = address
        self.pid = pid
        self.sock = sock
        self.fd = -1  #: the reactor watches it
        self.target: str | tuple[str, int] = address  #: what the socket connects to
        self.hello: RouteHello | None = None  #: for a worker of another node
        self.began = perf_counter()
        self.is_slow = False  #: `on_slow` was called
        self.grants: list[LeaseGranted] = []  #: leases of the worker that wait for the connection


class Dialler:
    """All connections that this process is making.

    Args:
        on_dialled: called under the lock, with the socket or None, when a dial that was under way has ended.
        on_slow: called under the lock, once, when it takes longer than SLOW_DIAL_S.
    """

    def __init__(
        self,
        runtime: Runtime,
        on_dialled: Callable[[Dial, socket.socket | None], None],
        on_slow: Callable[[Dial], None],
    ) -> None:
        self._runtime = runtime
        self._reactor = runtime.reactor
        self._on_dialled = on_dialled
        self._on_slow = on_slow
        self.dials: dict[bytes, Dial] = {}  #: under way, by worker
        self._paused: dict[bytes, float] = {}  #: failed: until when they are not dialled
        #: why a worker could not be reached the last time; forgotten when it was, or has died
        self._why: dict[bytes, str] = {}

    def grants_under_way(self, class_no: int) -> int:
        """How many leases a class will have when their workers are connected; not those of workers that let others wait for long."""
        return sum(
            grant.class_no == class_no for dial in self.dials.values() if not dial.is_slow for grant in dial.grants
        )

    def dial(self, worker_id: bytes, address: str, pid: int) -> socket.socket | None:
        """A socket to a worker if there is one at once; None while it is being made (`dials` has it then), or when it cannot be.

        Caller holds the lock.

        Raises:
            OSError: no more files can be opened in this process.
        """
        if worker_id in self.dials or worker_id in self._paused:
            return None
        if is_abroad(address):
            self._dial_abroad(worker_id, address, pid)
            return None
        sock = new_socket(socket.AF_UNIX)
        sock.setblocking(False)
        try:
            sock.connect(address)
        except BlockingIOError:
            self.dials[worker_id] = Dial(worker_id, address, pid, sock)  # its queue is full
            self._reactor.attend()
            return None
        except OSError:
            sock.close()
            return None
        return sock

    def _dial_abroad(self, worker_id: bytes, address: str, pid: int) -> None:
        from shoal.protocol.node_messages import RouteToWorker
        from shoal.wire.framing import encode_frame
        from shoal.wire.tcp import parse_address

        runtime = self._runtime
        config = runtime.config
        node_address, _, worker = address.rpartition("/")
        host, port = parse_address(node_address)
        gateway = config.get("tls_gateway", "")
        family = socket.AF_UNIX if gateway else socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = new_socket(family)
        sock.setblocking(False)
        dial = self.dials[worker_id] = Dial(worker_id, address, pid, sock)
        dial.target = gateway or (host, port)
        route = encode_frame(RouteToWorker(PROTOCOL_VERSION, bytes.fromhex(worker), runtime.node_id, runtime.worker_id))
        dial.hello = RouteHello(config["cluster_token"], bytes(route), f"{host}:{port}" if gateway else "")
        self._reactor.attend()
        self._connect(dial)

    def _connect(self, dial: Dial) -> None:
        """Begin, or for a Unix socket whose other end had no room: try again."""
        try:
            error = dial.sock.connect_ex(dial.target)
        except OSError as raised:  # of a name that is no address
            self._end(dial, None, str(raised))
            return
        if error == errno.EAGAIN:
            return  # until the next tick
        if error not in (0, errno.EINPROGRESS):
            self._end(dial, None, os.strerror(error))
        elif dial.hello is None:
            self._end(dial, dial.sock)
        else:
            dial.fd = dial.sock.fileno()
            self._reactor.add_listener(dial.fd, lambda: self._connected(dial), select.EPOLLOUT)

    def _connected(self, dial: Dial) -> None:
        if self.dials.get(dial.worker_id) is not dial or dial.hello is None:
            return
        error = dial.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._end(dial, None, os.strerror(error))
            return
        if dial.sock.family != socket.AF_UNIX:
            from shoal.wire.tcp import set_options

            set_options(dial.sock)
        self._reactor.remove_listener(dial.fd)
        self._reactor.add_listener(dial.fd, lambda: self._readable(dial))
        self._say(dial, dial.hello.first)

    def _readable(self, dial: Dial) -> None:
        hello = dial.hello
        while hello is not None and self.dials.get(dial.worker_id) is dial:
            try:
                data = dial.sock.recv(1)  # what follows is not the dial's to read
                if not data:
                    raise ConnectionError("it closed the connection: it ends, or has no such worker")
                answer = hello.receive(data)
            except BlockingIOError:
                return
            except OSError as error:
                self._end(dial, None, error.strerror or str(error))
                return
            if hello.done:
                self._end(dial, dial.sock)
            elif answer:
                self._say(dial, answer)

    def _say(self, dial: Dial, data: bytes) -> None:
        """A new socket takes some hundred bytes at once."""
        try:
            if dial.sock.send(data) == len(data):
                return
            why = "it does not read"
        except OSError as error:
            why = error.strerror or str(error)
        self._end(dial, None, why)

    def _end(self, dial: Dial, sock: socket.socket | None, why: str = "") -> None:
        del self.dials[dial.worker_id]
        if dial.fd >= 0:
            self._reactor.remove_listener(dial.fd)
        if sock is None:
            dial.sock.close()
            self._paused[dial.worker_id] = perf_counter() + REDIAL_PAUSE_S  # before anybody asks again, below
            self._why[dial.worker_id] = f"{_shown(dial)} cannot be reached: {why}"
        else:
            self._why.pop(dial.worker_id, None)
        self._on_dialled(dial, sock)

    def why(self, worker_id: bytes) -> str:
        """Why a worker is not connected; "" for no reason that is known. Caller holds the lock."""
        dial = self.dials.get(worker_id)
        if dial is not None and dial.is_slow and worker_id not in self._why:
            return f"{_shown(dial)} has not answered for {perf_counter() - dial.began:.1f} s"
        return self._why.get(worker_id, "")

    def worker_died(self, worker_id: bytes) -> None:
        """Nobody is there any more. Caller holds the lock."""
        dial = self.dials.get(worker_id)
        if dial is not None:
            self._end(dial, None, "it has died")
        self._why.pop(worker_id, None)

    def tick(self, now: float) -> None:
        """Try again where there was no room; give up what takes too long. Caller holds the lock."""
        for worker_id in [each for each, until in self._paused.items() if now >= until]:
            del self._paused[worker_id]
        for dial in list(self.dials.values()):
            if now - dial.began >= DIAL_TIMEOUT_S:
                self._end(dial, None, f"it did not answer within {DIAL_TIMEOUT_S:g} s; it is frozen, or cut off")
                continue
            if now - dial.began >= SLOW_DIAL_S and not dial.is_slow:
                dial.is_slow = True
                self._on_slow(dial)
            if dial.fd < 0:
                self._connect(dial)

    def close(self) -> None:
        """The session is over: nobody is told. Caller holds the lock."""
        dials, self.dials = self.dials, {}
        for dial in dials.values():
            if dial.fd >= 0:
                self._reactor.remove_listener(dial.fd)
            dial.sock.close()


def _shown(dial: Dial) -> str:
    where = f" on the node at {dial.address.partition('/')[0]}" if is_abroad(dial.address) else ""
    return f"its process (pid {dial.pid}){where}"


def new_socket(family: int) -> socket.socket:
    """A socket for a peer; the soft limit of open files, often 1024, is raised when it is reached.

    Raises:
        OSError: no more files can be opened.
    """
    try:
        return socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
    try:
        raise_file_limit()
        return socket.socket(family, socket.SOCK_STREAM)
    except (OSError, UnsupportedSystemError) as error:
        raise OSError(
            errno.EMFILE,
            f"this process cannot connect to a worker: too many open files ({error}). Each actor that it calls takes one; "
            "raise the limit with `ulimit -n 65536`, or close what is not needed",
        ) from None
