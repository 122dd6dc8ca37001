"""One socket of a process, as the reactor knows it: what is to be written, and what must be written first.

Purpose: the order of frames. To the daemon before everybody else; to submitters, only when holds on other nodes' objects count.

Design: a flush of a peer's connection flushes the daemon's before. On a connection that `withholds` each byte waits for the holds that were
written to the daemon before it: `marks` remembers how long `out` was at each number of them. An actor that may live elsewhere by now (its node has
not been heard by the GCS for long) says nothing to anybody but its daemon.

What it does not do: read (`reactor`).
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shoal.wire.framing import FrameDecoder, append_frame

if TYPE_CHECKING:
    from shoal.runtime.reactor import Reactor


class Connection:
    """A stream socket with its out-buffer and decoder. Written under the reactor's lock, read by the leader."""

    __slots__ = (
        "attachment",
        "causal",
        "closed",
        "decoder",
        "dirty",
        "fd",
        "growing",
        "on_closed",
        "out",
        "reactor",
        "sock",
        "marks",
        "stalled",
        "withholds",
        "writable",
    )

    def __init__(
        self, reactor: Reactor, sock: socket.socket, on_closed: Callable[[Connection], None], causal: bool = False
    ) -> None:
        self.reactor = reactor
        self.sock = sock
        self.fd = sock.fileno()
        #: lent by the reactor for one read; stays while a part of a frame waits in it. A thousand connections need no thousand buffers
        self.decoder: FrameDecoder[Any] | None = None
        self.out = bytearray()
        #: the last message, if more may be put into it: it is encoded before the next one, or when `out` is written
        self.growing: Any = None
        self.on_closed = on_closed
        #: messages here must be written before those of other connections
        self.causal = causal
        self.closed = False
        self.stalled = False  #: the kernel's buffer is full: epoll watches for room
        self.dirty = False  #: stands in the reactor's list of connections to flush
        #: what is written here makes others let go of refs: it waits until the holds of this process on other nodes' objects count
        self.withholds = False
        #: while it waits: (holds written by then, length of `out`), and how much of `out` need not wait
        self.marks: deque[tuple[int, int]] | None = None
        self.writable = 0
        self.attachment: Any = None  #: what the owner of the connection keeps with it

    def send(self, message: Any) -> None:
        """Queue a message; it goes out at the next flush. Caller holds the lock."""
        if self.growing is not None:
            self._end_growing()
        append_frame(self.out, message)
        if not self.dirty:
            self.dirty = True
            self.reactor.dirty.append(self)

    def send_now(self, message: Any) -> None:
        """Queue a message and write what can be written. Caller holds the lock."""
        if self.growing is not None:
            self._end_growing()
        append_frame(self.out, message)
        self.flush()

    def grow(self, message: Any) -> None:
        """Queue a message to the daemon that may get longer as long as it is `growing`. Caller holds the lock."""
        if self.growing is not None:
            self._end_growing()
        self.growing = message
        self.reactor.has_notes = True
        if not self.dirty:
            self.dirty = True
            self.reactor.dirty.append(self)

    def _end_growing(self) -> None:
        message, self.growing = self.growing, None
        append_frame(self.out, message)

    def flush(self) -> None:
        """Write the out-buffer as far as the kernel takes it. Caller holds the lock."""
        reactor = self.reactor
        if self.causal:
            if reactor.has_notes:
                reactor.write_notes()
                if self.growing is not None:
                    self._end_growing()
        else:
            daemon = reactor.causal
            if daemon is not None and (daemon.out or reactor.has_notes):
                daemon.flush()
                if daemon.out and not daemon.closed:
                    self._watch_later()
                    return
            if reactor.leash is not None and reactor.leash.is_silenced():
                self._be_silent()
                return
            if reactor.unconfirmed and self.withholds:
                self._flush_confirmed()
                return
        out = self.out
        if not out or self.closed:
            return
        try:
            sent = self.sock.send(out)
        except BlockingIOError:
            sent = 0
        except OSError:
            out.clear()
            return  # the reader will see the end of the connection and handle it there
        if sent == len(out):
            out.clear()
            if self.stalled:
                self.stalled = False
                self.reactor.watch(self)
        else:
            del out[:sent]
            if not self.stalled:
                self.stalled = True
                self.reactor.watch(self)

    def _flush_confirmed(self) -> None:
        """Write what no unconfirmed hold stands before."""
        reactor, out = self.reactor, self.out
        if self.closed:
            return
        if reactor.leash is not None and reactor.leash.is_silenced():
            self._be_silent()
            return
        marks = self.marks
        if marks is None:
            marks = self.marks = deque()
            self.writable = 0
        written = reactor.holds_written
        if marks and marks[-1][0] == written:
            marks[-1] = (written, len(out))
        else:
            marks.append((written, len(out)))
        while marks and marks[0][0] <= reactor.holds_confirmed:
            self.writable = marks.popleft()[1]
        if self.writable:
            try:
                sent = self.sock.send(memoryview(out)[: self.writable])
            except BlockingIOError:
                sent = 0
            except OSError:
                out.clear()
                marks.clear()
                self.writable = 0
                return  # the reader will see the end of the connection and handle it there
            if sent:
                del out[:sent]
                self.writable -= sent
                self.marks = deque((count, length - sent) for count, length in marks)
        if self.stalled != (self.writable > 0):
            self.stalled = not self.stalled
            reactor.watch(self)
        reactor.withheld[self] = None

    def _be_silent(self) -> None:
        """Write nothing until the actor may speak again, nor wait for room to write."""
        self.reactor.silenced[self] = None
        if self.stalled:
            self.stalled = False
            self.reactor.watch(self)

    def _watch_later(self) -> None:
        if not self.dirty:
            self.dirty = True
            self.reactor.dirty.append(self)
