"""Threads that move the bytes of objects between shared memory and TCP.

Purpose: bulk bytes never pass through the daemon's loop, and a peer that is slow, silent or hostile holds up nobody but itself.

Design: two threads for each direction at most (`Movers`), each with an epoll and many sockets that never block; in their system calls, which
move up to MOVE_BYTES, other threads run. The loop gives orders (`post`), the threads answer with notices, many to one wake of the loop.

    receiving    `expect(number, place)`, then a header with that number: its bytes go straight into the place (`recv_into`)
    sending      `order(number, place)`: header and bytes leave straight from the mapping (`send`)

On a connection bytes go one way only: a header (magic, length, number, version), then `length` bytes, again and again. The receiver knows what it
waits for: a number that it has forgotten is read and thrown away, any other fault ends the connection. Once a connection is closed, or a number
forgotten (`forget`), its place is not touched any more; a notice says so.

`send` from the mapping was faster than `sendfile` in every trial (2.4 to 4.7 against 0.7 to 2.2 GB/s on loopback, 2 cores), and more than two
connections gained nothing; pages of the receiver that are present gain most, so its store keeps freed ranges, and others are populated chunk
by chunk right before they are filled.

What it does not do: decide what is sent or expected (`transfer`), or know objects.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shoal.node.pulls import CHUNK_BYTES_MAX
from shoal.store.mapping import Mapping

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger("shoal.node")

MOVE_BYTES = 4 << 20  #: in one system call
TURNS = 4  #: system calls for one socket before others have their turn
SEND_STALL_S = 30.0  #: a peer that takes nothing for so long while something is to be sent is left
LOOK_S = 5.0
SCRATCH_BYTES = 256 << 10
HEADER = struct.Struct("<4sIQQ")  #: magic, length, number, version
MAGIC = b"SHCH"
EPOLLRDHUP = select.EPOLLRDHUP


@dataclass(slots=True)
class Place:
    """A range of shared memory. `fresh_start` and `fresh_bytes`: pages around it that were never touched."""

    mapping: Mapping
    offset: int
    length: int
    fresh_start: int = 0
    fresh_bytes: int = 0

    def populate(self) -> None:
        """Make its fresh pages present."""
        start = max(self.offset, self.fresh_start)
        end = min(self.offset + self.length, self.fresh_start + self.fresh_bytes)
        if start < end:
            self.mapping.populate(start, end - start)


#: what a thread tells the loop: ("arrived", lane, number, version), ("forgotten", lane, number, 0), ("sent", lane, number, 0),
#: ("dropped", lane, number, 0): an order that was not sent, ("closed", lane, 0, 0): after it nothing more comes of this lane
Notice = tuple[str, "Lane", int, int]


class Lane:
    """One connection. `fail` is why it ended; everything else is written by its thread alone."""

    __slots__ = ("closed", "fail", "fd", "key", "mover", "sock")

    def __init__(self, sock: socket.socket, mover: _Mover, key: Any) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.fd = sock.fileno()
        self.mover = mover
        self.key = key
        self.fail = ""
        self.closed = False

    events = select.EPOLLIN | EPOLLRDHUP

    def ready(self, events: int, now: float) -> None:
        """The socket can be read or written. Raises OSError, ValueError or MemoryError: the connection ends."""
        raise NotImplementedError

    def look(self, now: float) -> None:
        """Time has passed."""


class InLane(Lane):
    """Bytes come in."""

    __slots__ = ("_at", "_expected", "_got", "_header", "_number", "_place", "_rest", "_version")

    def __init__(self, sock: socket.socket, mover: _Mover, key: Any) -> None:
        super().__init__(sock, mover, key)
        self._expected: dict[int, Place] = {}
        self._header = memoryview(bytearray(HEADER.size))
        self._got = 0  #: bytes of the next header
        self._number = 0  #: of the chunk that comes in; 0: a header is awaited
        self._place: Place | None = None  #: None: it is thrown away
        self._at = 0
        self._rest = 0
        self._version = 0

    def expect(self, number: int, place: Place) -> None:
        """On its thread: bytes under `number` belong there."""
        self._expected[number] = place

    def forget(self, number: int) -> None:
        """On its thread: bytes under `number` are not wanted; from the notice on their place is not touched."""
        if self._number == number:
            self._place = None
        if self._expected.pop(number, None) is not None or self._number == number:
            self.mover.notify(("forgotten", self, number, 0))

    def ready(self, events: int, now: float) -> None:
        """Take what is there."""
        del now
        for _ in range(TURNS):
            if not (self._receive_payload() if self._number else self._receive_header()):
                return

    def _receive_header(self) -> bool:
        try:
            count = self.sock.recv_into(self._header[self._got :])
        except BlockingIOError:
            return False
        if not count:
            raise ConnectionError("the other node closed the connection")
        self._got += count
        if self._got < HEADER.size:
            return False
        self._got = 0
        magic, length, number, version = HEADER.unpack(self._header)
        place = self._expected.get(number)
        if place is None:  # perhaps it was asked for a moment ago, and the answer came before that was read here
            self.mover.take_posted()
            if self.closed:
                return False
            place = self._expected.get(number)
        if (
            magic != MAGIC
            or not number
            or length > CHUNK_BYTES_MAX
            or (place is not None and (place.length != length or not version))
        ):
            raise ValueError("the other node sent something else than what was asked for")
        self._number, self._version, self._rest = number, version, length
        if place is not None:
            place.populate()
            self._at = place.offset
        self._place = place
        if not length:
            self._finish()
        return True

    def _receive_payload(self) -> bool:
        place = self._place
        try:
            if place is None:
                count = self.sock.recv_into(self.mover.scratch[: min(self._rest, SCRATCH_BYTES)])
            else:
                count = self.sock.recv_into(place.mapping.view[self._at : self._at + min(self._rest, MOVE_BYTES)])
        except BlockingIOError:
            return False
        if not count:
            raise ConnectionError("the other node closed the connection in the middle of a chunk")
        self._at += count
        self._rest -= count
        if not self._rest:
            self._finish()
        return True

    def _finish(self) -> None:
        number, self._number = self._number, 0
        if self._place is not None:
            self._place = None
            del self._expected[number]
            self.mover.notify(("arrived", self, number, self._version))


class OutLane(Lane):
    """Bytes go out."""

    __slots__ = ("_at", "_end", "_header", "_orders", "_watched", "moved_at")

    def __init__(self, sock: socket.socket, mover: _Mover, key: Any) -> None:
        super().__init__(sock, mover, key)
        #: number -> (place, version); the first is being sent
        self._orders: dict[int, tuple[Place, int]] = {}
        self._header = b""  #: what is left of it
        self._at = self._end = -1  #: -1: the first order is not begun
        self._watched = False
        self.moved_at = 0.0

    def order(self, number: int, place: Place, version: int) -> None:
        """On its thread: send this, after all that was ordered before."""
        if not self._orders:
            self.moved_at = time.monotonic()
        self._orders[number] = (place, version)
        if len(self._orders) == 1:
            self.ready(select.EPOLLOUT, self.moved_at)

    def drop(self, number: int) -> None:
        """On its thread: leave this out, if it is not begun."""
        if number in self._orders and not (self._at >= 0 and next(iter(self._orders)) == number):
            del self._orders[number]
            self.mover.notify(("dropped", self, number, 0))

    def ready(self, events: int, now: float) -> None:
        """Give the kernel what it takes."""
        if events & ~select.EPOLLOUT:
            self._see_end()
        for _ in range(TURNS):
            if not self._orders or not self._send(now):
                break
        if self._watched != bool(self._orders):
            self._watched = not self._watched
            self.mover.watch(self, Lane.events | (select.EPOLLOUT if self._watched else 0))

    def _see_end(self) -> None:
        with contextlib.suppress(BlockingIOError):
            raise ConnectionError("the other node sent bytes that do not belong here" if self.sock.recv(1) else "")

    def _send(self, now: float) -> bool:
        number, (place, version) = next(iter(self._orders.items()))
        if self._at < 0:
            self._at, self._end = place.offset, place.offset + place.length
            self._header = HEADER.pack(MAGIC, place.length, number, version)
        payload = place.mapping.view[self._at : min(self._end, self._at + MOVE_BYTES)]
        try:
            if self._header:
                count = self.sock.sendmsg((self._header, payload))
                headed = min(count, len(self._header))
                self._header = self._header[headed:]
                count -= headed
            else:
                count = self.sock.send(payload)
        except BlockingIOError:
            return False
        self.moved_at = now
        self._at += count
        if self._at == self._end and not self._header:
            del self._orders[number]
            self._at = -1
            self.mover.notify(("sent", self, number, 0))
        return True

    def look(self, now: float) -> None:
        """Is anything taken?"""
        if self._orders and now - self.moved_at > SEND_STALL_S:
            raise TimeoutError(f"the other node takes nothing that it asked for, for {SEND_STALL_S:g} s")


class _Mover(threading.Thread):
    """One thread."""

    def __init__(self, name: str, notify: Callable[[Notice], None]) -> None:
        super().__init__(name=name, daemon=True)
        self.notify = notify
        self.scratch = memoryview(bytearray(SCRATCH_BYTES))
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._lanes: dict[int, Lane] = {}
        self._posted: deque[tuple[Callable[..., None], Lane, tuple[Any, ...]]] = deque()
        self._ending = False
        self.count = 0  #: lanes given to it; of the loop

    def post(self, call: Callable[..., None], lane: Lane, *args: Any) -> None:
        """From any thread: call `call(lane, *args)` on this one, unless the lane is closed by then."""
        self._posted.append((call, lane, args))
        if not self._ending:
            os.eventfd_write(self._wake_fd, 1)

    def end(self) -> None:
        """From the loop: close everything and leave."""
        self._ending = True
        os.eventfd_write(self._wake_fd, 1)

    def watch(self, lane: Lane, events: int) -> None:
        """What a lane waits for."""
        self._epoll.modify(lane.fd, events)

    def run(self) -> None:
        """The thread."""
        look_at = time.monotonic() + LOOK_S
        while not self._ending:
            ready = self._epoll.poll(LOOK_S)
            if any(fd == self._wake_fd for fd, _ in ready):
                os.eventfd_read(self._wake_fd)  # first: what is posted from now on wakes this thread again
            self.take_posted()
            now = time.monotonic()
            for fd, events in ready:
                lane = self._lanes.get(fd)
                if lane is not None:
                    self._do(lane, type(lane).ready, (events, now))
            if now >= look_at:
                look_at = now + LOOK_S
                for lane in list(self._lanes.values()):
                    self._do(lane, type(lane).look, (now,))
        for lane in list(self._lanes.values()):
            self.close(lane)
        self._epoll.close()
        os.close(self._wake_fd)

    def take_posted(self) -> None:
        """On this thread: do what was asked for."""
        while self._posted:
            call, lane, args = self._posted.popleft()
            if not lane.closed:
                self._do(lane, call, args)

    def _do(self, lane: Lane, call: Callable[..., None], args: tuple[Any, ...]) -> None:
        try:
            call(lane, *args)
        except (OSError, ValueError, MemoryError) as error:
            lane.fail = str(error)
            self.close(lane)
        except Exception as error:
            log.exception("internal error while moving bytes of objects; please report it")
            lane.fail = f"internal error: {error!r}"
            self.close(lane)

    def open(self, lane: Lane) -> None:
        """On this thread: begin to watch a lane."""
        self._lanes[lane.fd] = lane
        self._epoll.register(lane.fd, Lane.events)

    def close(self, lane: Lane) -> None:
        """On this thread: the end of a lane."""
        if not lane.closed:
            lane.closed = True
            if self._lanes.pop(lane.fd, None) is not None:
                self._epoll.unregister(lane.fd)
            lane.sock.close()
            self.notify(("closed", lane, 0, 0))


class Movers:
    """The threads of one node; they start with the first connection.

    Args:
        take: called on the loop with each notice, in the order of a thread's telling.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, take: Callable[[Notice], None]) -> None:
        self._loop = loop
        self._take = take
        self._movers: dict[type[Lane], list[_Mover]] = {InLane: [], OutLane: []}
        self._notices: deque[Notice] = deque()
        self._woken = False
        self._closed = False

    def open_in(self, sock: socket.socket, key: Any) -> InLane:
        """From now on bytes come in on this socket."""
        lane = InLane(sock, self._mover(InLane), key)
        lane.mover.post(lane.mover.open, lane)
        return lane

    def open_out(self, sock: socket.socket, key: Any) -> OutLane:
        """From now on bytes go out on this socket."""
        lane = OutLane(sock, self._mover(OutLane), key)
        lane.mover.post(lane.mover.open, lane)
        return lane

    def expect(self, lane: InLane, number: int, place: Place) -> None:
        """Bytes under `number` belong there. To be said before they are asked for."""
        lane.mover.post(InLane.expect, lane, number, place)

    def forget(self, lane: InLane, number: int) -> None:
        """They are not wanted any more. Noticed, unless they have arrived."""
        lane.mover.post(InLane.forget, lane, number)

    def order(self, lane: OutLane, number: int, place: Place, version: int) -> None:
        """Send this."""
        lane.mover.post(OutLane.order, lane, number, place, version)

    def drop(self, lane: OutLane, number: int) -> None:
        """Do not send this, if it is not begun."""
        lane.mover.post(OutLane.drop, lane, number)

    def close_lane(self, lane: Lane) -> None:
        """End a connection; noticed."""
        lane.mover.post(lane.mover.close, lane)

    def _mover(self, kind: type[Lane]) -> _Mover:
        movers = self._movers[kind]
        most = max(1, min(2, (os.cpu_count() or 1) // 4))
        if len(movers) < most:
            mover = _Mover(f"shoal-{'in' if kind is InLane else 'out'}-{len(movers)}", self._notify)
            movers.append(mover)
            mover.start()
        mover = min(movers, key=lambda mover: mover.count)
        mover.count += 1
        return mover

    def _notify(self, notice: Notice) -> None:
        self._notices.append(notice)
        if not self._woken:
            self._woken = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
                self._loop.call_soon_threadsafe(self._take_notices)

    def _take_notices(self) -> None:
        self._woken = False  # first: what is noticed from now on wakes the loop again
        while self._notices and not self._closed:
            notice = self._notices.popleft()
            if notice[0] == "closed":
                notice[1].mover.count -= 1
            self._take(notice)

    def close(self) -> None:
        """The node ends."""
        self._closed = True
        for movers in self._movers.values():
            for mover in movers:
                mover.end()
        for movers in self._movers.values():
            for mover in movers:
                mover.join(2.0)
