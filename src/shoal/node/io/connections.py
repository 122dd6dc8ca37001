"""The daemon's sockets: one `Connection` for each process of the node, and the `Listener` that accepts them.

Purpose: bytes in, typed messages out to one handler; messages in, bytes out in few system calls; nothing else.

Design: the daemon owns its sockets and only asks the loop for readiness, because three rules of docs/ARCHITECTURE.md need what a transport
hides: `flush()` says whether the bytes are in the peer's kernel buffer *now* (a lease is started before it is granted), `drain()` reads
to the end before a death is handled, and "seen empty" is a fact about the socket, not about a buffer in between (sweeps). Messages
sent while one loop iteration runs leave in one system call a connection at its end.

    send(message) -> _out ... end of the iteration ... flush() -> kernel      full? a writer callback goes on, `when_written` waits for it

A `FrameDecoder` with its buffer is lent to a connection for one read, and stays only while part of a frame waits in it; a thousand idle
connections need no thousand buffers.

Garbage, an oversize frame, an error in the handler, or a reader so slow that OUT_BYTES_MAX gathered closes that connection and no other.

What it does not do: know what a message means or which process speaks (`peer` belongs to the owner of the table).
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shoal.protocol.limits import RECEIVE_BUFFER_BYTES
from shoal.protocol.messages import Shutdown, ToDaemon
from shoal.wire.framing import FrameDecoder, ProtocolError, append_frame

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger("shoal.node")

#: what may wait for one slow reader before its connection is closed
OUT_BYTES_MAX = 256 << 20
#: how much one drain reads before it gives way to others; a peer that floods is seen empty some iterations later
DRAIN_READS_MAX = 64
DECODERS_SPARE = 4
ACCEPT_BACKLOG = 1024
ACCEPT_PAUSE_S = 0.1  #: before accepting again when the process has no file descriptor left


class Connection:
    """One accepted socket.

    `on_message(connection, message)` handles what arrives; `on_lost(connection, reason)` is called once, after the last message, with the
    reason in words ("" for an orderly end of the stream).
    """

    __slots__ = (
        "_decoder",
        "_loop",
        "_on_lost",
        "_on_message",
        "_out",
        "_outbox",
        "_reading",
        "_waiting",
        "_writing",
        "closed",
        "dirty",
        "fd",
        "peer",
        "sock",
        "spoke",
    )

    def __init__(
        self,
        sock: socket.socket,
        outbox: Outbox,
        on_message: Callable[[Connection, Any], None],
        on_lost: Callable[[Connection, str], None],
    ) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.fd = sock.fileno()
        #: who speaks here; set by the owner of the table of processes, None until registered
        self.peer: Any = None
        self.spoke = False  #: at least one message came; set by the owner
        self.closed = False
        self.dirty = False  #: is in the outbox's list of this iteration
        self._outbox = outbox
        self._loop = outbox.loop
        #: holds part of a frame; None between frames
        self._decoder: FrameDecoder[Any] | None = None
        self._on_message = on_message
        self._on_lost = on_lost
        self._out = bytearray()
        self._waiting: deque[Callable[[], None]] = deque()  #: run when `_out` is empty again
        self._writing = False  #: the loop watches for room in the kernel's buffer
        self._reading = False  #: guards against a handler that drains the connection it serves
        self._loop.add_reader(self.fd, self._read_ready)

    # ---------------------------------------------------------------- in

    def _read_ready(self) -> None:
        self._read_once()

    def _read_once(self) -> bool:
        """Receive once and handle what it completes; False when there was nothing (or nothing more will come)."""
        if self.closed or self._reading:
            return False
        decoder = self._decoder or self._outbox.borrow_decoder()
        count = self._receive(decoder)
        if count == 0:
            return False
        self._reading = True
        try:
            for message in decoder.received(count):
                self._on_message(self, message)
                if self.closed:
                    break
            else:
                if _is_empty(decoder):
                    self._outbox.return_decoder(decoder)
                    self._decoder = None
                else:
                    self._decoder = decoder
        except ProtocolError as error:
            self.close(f"it sent garbage: {error}")
        except Exception as error:
            log.exception("internal error while handling a message of %s; please report it", self.describe())
            self.close(f"internal error while handling its message: {error!r}")
        finally:
            self._reading = False
        return not self.closed

    def _receive(self, decoder: FrameDecoder[Any]) -> int:
        """Bytes received into a decoder; 0 when there is nothing now, or never will be."""
        reason = ""
        try:
            count = self.sock.recv_into(decoder.writable())
            if count:
                return count
        except (BlockingIOError, InterruptedError):
            if self._decoder is None:
                self._outbox.return_decoder(decoder)
            return 0
        except OSError as error:
            if error.errno != errno.ECONNRESET:
                reason = f"receiving failed: {error}"
        self.close(reason)
        return 0

    def drain(self) -> bool:
        """Read and handle everything that is there; True when the socket was seen empty (or at its end)."""
        for _ in range(DRAIN_READS_MAX):
            if not self._read_once():
                return not self._reading
        return False

    # ---------------------------------------------------------------- out

    def send(self, message: Any) -> None:
        """Queue one message; it leaves at the end of this loop iteration. Sending to a closed connection does nothing."""
        if self.closed:
            return
        append_frame(self._out, message)
        if not self.dirty:
            self.dirty = True
            self._outbox.add(self)
        if len(self._out) > OUT_BYTES_MAX:
            self._loop.call_soon(self.close, f"it does not read: {len(self._out) >> 20} MB wait for it")

    def flush(self) -> bool:
        """Write what is queued; True when nothing is left, so that the peer can read it all, even should it read before anything else."""
        out = self._out
        if not self.closed:
            self._send_now()
        if out and not self._writing and not self.closed:
            self._writing = True
            self._loop.add_writer(self.fd, self._write_ready)
        return not out

    def _send_now(self) -> None:
        """Give the kernel what it takes."""
        out = self._out
        while out:
            try:
                sent = self.sock.send(out)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                # The reader side may hold last messages of a peer that is gone: they are read before the end is told.
                self._loop.call_soon(self._broken, f"sending failed: {error}" if error.errno != errno.EPIPE else "")
                out.clear()
                return
            if sent == len(out):
                out.clear()
            else:
                del out[:sent]

    def when_written(self, then: Callable[[], None]) -> None:
        """Call `then` once everything queued so far is in the peer's kernel buffer: at once if that is possible now.

        A connection that closes first also releases `then`: nobody is left to see the order.
        """
        if self.flush() and not self._waiting:
            then()
        else:
            self._waiting.append(then)

    @property
    def waiting_bytes(self) -> int:
        """Bytes queued and not yet taken by the kernel."""
        return len(self._out)

    def _write_ready(self) -> None:
        if self.flush():
            self._writing = False
            if not self.closed:
                self._loop.remove_writer(self.fd)
            self._release_waiting()

    def _release_waiting(self) -> None:
        waiting = self._waiting
        while waiting:
            waiting.popleft()()

    def _broken(self, reason: str) -> None:
        self.drain()
        self.close(reason)

    # ---------------------------------------------------------------- end

    def close(self, reason: str) -> None:
        """End the connection, once; `reason` is "" for an orderly end, otherwise the peer is told if it can be."""
        if self.closed:
            return
        if reason:
            append_frame(self._out, Shutdown(f"the node closed the connection of this process: {reason}"))
            self._send_now()
        self.closed = True
        self._loop.remove_reader(self.fd)
        if self._writing:
            self._loop.remove_writer(self.fd)
            self._writing = False
        self._out.clear()
        if reason:
            log.warning("closed the connection of %s: %s", self.describe(), reason)
        self.sock.close()
        try:
            self._on_lost(self, reason)
        except Exception:
            log.exception("internal error while ending the connection of %s; please report it", self.describe())
        self._release_waiting()

    def describe(self) -> str:
        """Who speaks here, for log lines."""
        return str(self.peer) if self.peer is not None else "a process that has not registered"


def _is_empty(decoder: FrameDecoder[Any]) -> bool:
    """Whether no part of a frame waits in a decoder: then its whole buffer is writable."""
    room = decoder.writable()
    return room.nbytes == len(room.obj)  # type: ignore[arg-type]


class Outbox:
    """What all connections share: those with something to send, flushed together at the end of the loop iteration, and spare decoders."""

    __slots__ = ("_decoders", "_dirty", "_expected", "_scheduled", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, expected: Any = ToDaemon) -> None:
        self.loop = loop
        self._expected = expected
        self._decoders: list[FrameDecoder[Any]] = []
        self._dirty: list[Connection] = []
        self._scheduled = False

    def add(self, connection: Connection) -> None:
        """`connection` has something to send."""
        self._dirty.append(connection)
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what every connection has queued."""
        self._scheduled = False
        dirty, self._dirty = self._dirty, []
        for connection in dirty:
            connection.dirty = False
            connection.flush()

    def borrow_decoder(self) -> FrameDecoder[Any]:
        """An empty decoder."""
        return self._decoders.pop() if self._decoders else FrameDecoder(self._expected)

    def return_decoder(self, decoder: FrameDecoder[Any]) -> None:
        """Give back a decoder that is empty again; one that a large frame has grown is dropped."""
        if len(self._decoders) < DECODERS_SPARE and len(decoder.writable()) == RECEIVE_BUFFER_BYTES:
            self._decoders.append(decoder)


class Listener:
    """The Unix socket at `path`; `on_accepted(socket)` gets every new one. Mode 0600 in a 0700 folder: only this user connects."""

    __slots__ = ("_loop", "_on_accepted", "path", "sock")

    def __init__(
        self,
        path: str,
        loop: asyncio.AbstractEventLoop,
        on_accepted: Callable[[socket.socket], None],
        sock: socket.socket | None = None,
    ) -> None:
        self.path = path
        self._loop = loop
        self._on_accepted = on_accepted
        if sock is None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.bind(path)
            os.chmod(path, 0o600)
            sock.listen(ACCEPT_BACKLOG)
        sock.setblocking(False)
        self.sock = sock
        loop.add_reader(sock.fileno(), self._accept_ready)

    def _accept_ready(self) -> None:
        for _ in range(ACCEPT_BACKLOG):
            try:
                accepted, _address = self.sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.error(
                    "cannot accept a connection at %s: %s; trying again in %s s", self.path, error, ACCEPT_PAUSE_S
                )
                self._loop.remove_reader(self.sock.fileno())
                self._loop.call_later(ACCEPT_PAUSE_S, self._resume)
                return
            self._on_accepted(accepted)

    def _resume(self) -> None:
        if self.sock.fileno() >= 0:
            self._loop.add_reader(self.sock.fileno(), self._accept_ready)

    def close(self) -> None:
        """Stop listening; the file stays for the folder's removal."""
        if self.sock.fileno() >= 0:
            self._loop.remove_reader(self.sock.fileno())
            self.sock.close()
