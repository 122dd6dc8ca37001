"""A TCP listener that hands on only connections which have proved that they know the cluster's token.

Purpose: the one way in from other machines, for node daemons and the GCS server alike.

Design: each new connection has a `ServerHandshake` and a deadline. Until it has proved itself at most one record is read of it, nothing is
decoded, and it is closed without a word when it errs. At most UNPROVED_MAX connections may be unproved; beyond them the oldest goes,
so that silent ones cannot keep others out.

What it does not do: frames (the one who gets the socket reads them).
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from shoal.wire.handshake import HELLO_BYTES, HandshakeError, ServerHandshake
from shoal.wire.tcp import ACCEPT_BACKLOG, listening_socket, set_options

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger("shoal.node")

PROOF_WITHIN_S = 5.0
UNPROVED_MAX = 128
ACCEPT_PAUSE_S = 0.1


class _Unproved:
    """A connection before its proof."""

    __slots__ = ("handshake", "peer", "sock", "timer")

    def __init__(self, sock: socket.socket, peer: str, token: bytes, timer: asyncio.TimerHandle) -> None:
        self.sock = sock
        self.peer = peer
        self.handshake = ServerHandshake(token)
        self.timer = timer


class TcpListener:
    """Listens at once.

    Args:
        host, port: where to listen, as for `listening_socket`; `port` says which it got.
        accepted: called with each proved socket (non-blocking) and with what came after the proof.
        sock: one that listens already; host and port are its own then.

    Raises:
        OSError: the address cannot be bound.
    """

    def __init__(
        self,
        host: str,
        port: int,
        token: bytes,
        loop: asyncio.AbstractEventLoop,
        accepted: Callable[[socket.socket, bytes], None],
        sock: socket.socket | None = None,
    ) -> None:
        self._token = token
        self._loop = loop
        self._accepted = accepted
        self._unproved: dict[int, _Unproved] = {}
        self.sock = sock if sock is not None else listening_socket(host, port)
        self.sock.setblocking(False)
        #: for a Unix socket (behind a TLS gateway) its path, and 0
        self.host: str
        self.port: int
        self._is_tcp = self.sock.family != socket.AF_UNIX
        self.host, self.port = self.sock.getsockname()[:2] if self._is_tcp else (self.sock.getsockname(), 0)
        loop.add_reader(self.sock.fileno(), self._accept_ready)

    def _accept_ready(self) -> None:
        for _ in range(ACCEPT_BACKLOG):
            try:
                sock, peer = self.sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.error("cannot accept a connection at %s:%d: %s; trying again", self.host, self.port, error)
                self._loop.remove_reader(self.sock.fileno())
                self._loop.call_later(ACCEPT_PAUSE_S, self._resume)
                return
            sock.setblocking(False)
            if self._is_tcp:
                set_options(sock)
            fd = sock.fileno()
            if len(self._unproved) >= UNPROVED_MAX:
                self._drop(next(iter(self._unproved)), "too many connections have not proved themselves")
            timer = self._loop.call_later(PROOF_WITHIN_S, self._drop, fd, "it proved nothing in time")
            self._unproved[fd] = _Unproved(
                sock, f"{peer[0]}:{peer[1]}" if self._is_tcp else "the TLS gateway", self._token, timer
            )
            self._loop.add_reader(fd, self._readable, fd)

    def _resume(self) -> None:
        if self.sock.fileno() >= 0:
            self._loop.add_reader(self.sock.fileno(), self._accept_ready)

    def _readable(self, fd: int) -> None:
        unproved = self._unproved[fd]
        handshake = unproved.handshake
        try:
            data = unproved.sock.recv(HELLO_BYTES)
            if not data:
                self._drop(fd, "it left")
                return
            answer = handshake.receive(data)
            if answer and unproved.sock.send(answer) < len(answer):
                self._drop(fd, "it does not read")
                return
        except (BlockingIOError, InterruptedError):
            return
        except HandshakeError as error:
            self._drop(fd, str(error))
            return
        except OSError as error:
            self._drop(fd, str(error))
            return
        if handshake.done:
            self._forget(fd)
            self._accepted(unproved.sock, handshake.leftover)

    def _forget(self, fd: int) -> _Unproved:
        unproved = self._unproved.pop(fd)
        unproved.timer.cancel()
        self._loop.remove_reader(fd)
        return unproved

    def _drop(self, fd: int, reason: str) -> None:
        unproved = self._forget(fd)
        unproved.sock.close()
        log.warning("refused a connection from %s: %s", unproved.peer, reason)

    def close(self) -> None:
        """Stop listening; unproved connections are closed."""
        for fd in list(self._unproved):
            self._forget(fd).sock.close()
        if self.sock.fileno() >= 0:
            self._loop.remove_reader(self.sock.fileno())
            self.sock.close()
