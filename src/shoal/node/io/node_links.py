"""Lines between node daemons: what one node says to another arrives once and in order, as long as both live.

Purpose: `send(node_id, message)` and be done with it; broken connections are this part's business.

Design: each node dials the line on which it speaks, and only `LinkWelcome` and `LinkReceived` come back on it; what the other has to say comes on the
line that the other dials. What was said is kept until the receiver has counted it (`LinkReceived`), and is said again after a reconnect from
where the receiver's count stands (`LinkWelcome`). Lines are dialled when there is something to say.

    send -> kept -> sent -> counted by the receiver: forgotten
             ^        `- the connection ends: dial again, ask how much was received, send the rest
             `------------------'

Who belongs to the cluster, at which address, and who is dead, the GCS says (`on_cluster`). What is for a dead node is dropped; a node that the GCS
has not spoken of yet may have dialled first: what is for it waits UNKNOWN_WAIT_S.

The node's TCP listener hands each new connection, which has proved that it knows the cluster's token, to `Arrivals`: its first frame
says what it is for.

How to extend: a message between nodes is a struct in `protocol.node_messages` and a row in `handlers`.

What it does not do: carry bytes of objects (`transfer`) or tasks (those go from process to process); decide that a node is dead (the GCS).
"""

from __future__ import annotations

import logging
import socket
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from shoal.node.io.connections import Connection, Outbox
from shoal.node.io.dial_threads import DialThreads
from shoal.protocol.gcs_messages import ClusterNodes, NodeEntry
from shoal.protocol.limits import CONNECT_TIMEOUT_S, FRAME_HEADER_BYTES, PROTOCOL_VERSION
from shoal.protocol.node_messages import (
    BetweenNodes,
    LinkHello,
    LinkReceived,
    LinkWelcome,
    OpenTransfer,
    RouteToWorker,
)

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger("shoal.node")

REDIAL_S = 0.05
REDIAL_MAX_S = 1.0
#: what is for a node of which the GCS has not spoken waits so long
UNKNOWN_WAIT_S = 30.0
#: how often a receiver says what it has handled, in messages and in seconds
COUNTED_EVERY = 256
COUNTED_EVERY_S = 0.05
DEAD_NODES_MAX = 10_000
FIRST_FRAME_BYTES_MAX = 4096

Dial = Callable[[str], socket.socket]
Handler = Callable[[bytes, Any], None]


class Line:
    """What this node says to one other. Written by `NodeLinks` alone."""

    __slots__ = ("attempts", "base", "connection", "dialling", "kept", "node_id", "since", "welcomed")

    def __init__(self, node_id: bytes, since: float) -> None:
        self.node_id = node_id
        self.since = since
        #: messages that the receiver has not counted; the first has number `base` + 1
        self.kept: deque[Any] = deque()
        self.base = 0
        self.connection: Connection | None = None
        self.welcomed = False
        self.dialling = False
        self.attempts = 0


class Heard:
    """What one other node has said to this one."""

    __slots__ = ("connection", "count", "counted", "timer")

    def __init__(self) -> None:
        self.count = 0  #: messages handled
        self.counted = 0  #: of which the sender was told
        self.connection: Connection | None = None
        self.timer: asyncio.TimerHandle | None = None


class NodeLinks:
    """All lines of one node.

    Args:
        dial: connects to an address and proves the token; blocking, called on a thread.

    Attributes:
        nodes: the other nodes that live.
        handlers: by type of message, what takes it: called with the sender's NodeID and the message.
        on_joined, on_drains, on_died: called with a NodeEntry (more than once of a node that drains), and with (NodeID, cause).
        on_died_before: called with the NodeID of one that had died before this node could know it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, node_id: bytes, dial: Dial | None = None) -> None:
        self._loop = loop
        self._node_id = node_id
        self._dial = dial
        self._dials = DialThreads(loop)
        self._outbox = Outbox(loop, BetweenNodes)
        self._lines: dict[bytes, Line] = {}
        self._heard: dict[bytes, Heard] = {}
        self._dead: dict[bytes, str] = {}
        self._version = 0
        self._closed = False
        self.nodes: dict[bytes, NodeEntry] = {}
        self.handlers: dict[type, Handler] = {}
        self.on_joined: list[Callable[[NodeEntry], None]] = []
        self.on_drains: list[Callable[[NodeEntry], None]] = []
        self.on_died: list[Callable[[bytes, str], None]] = []
        self.on_died_before: list[Callable[[bytes], None]] = []

    def use(self, dial: Dial) -> None:
        """From now on the node belongs to a cluster, whose nodes are reached by `dial`."""
        self._dial = dial

    @property
    def alone(self) -> bool:
        """Whether this node belongs to no cluster."""
        return self._dial is None

    # ---------------------------------------------------------------- who there is

    def on_cluster(self, message: ClusterNodes) -> None:
        """The GCS tells of nodes."""
        for entry in message.nodes:
            if entry.node_id == self._node_id:
                continue
            if not entry.alive:
                self._bury(entry.node_id, entry.cause or "it is dead")
            elif entry.node_id not in self._dead:
                fresh = entry.node_id not in self.nodes
                self.nodes[entry.node_id] = entry
                if fresh:
                    for joined in self.on_joined:
                        joined(entry)
                if entry.draining:
                    for drains in self.on_drains:
                        drains(entry)
                line = self._lines.get(entry.node_id)
                if line is not None:
                    self._connect(line)

    def _bury(self, node_id: bytes, cause: str) -> None:
        if node_id in self._dead:
            return
        self._dead[node_id] = cause
        if len(self._dead) > DEAD_NODES_MAX:
            del self._dead[next(iter(self._dead))]
        known = self.nodes.pop(node_id, None) is not None
        line = self._lines.pop(node_id, None)
        heard = self._heard.pop(node_id, None)
        for end in (line, heard):
            connection = end.connection if end is not None else None
            if connection is not None:
                connection.drain()  # it may see the end, and then `end` has no connection any more
                connection.close("")
        if known or line is not None or heard is not None:
            for died in self.on_died:
                died(node_id, cause)
        else:
            for died_before in self.on_died_before:
                died_before(node_id)

    def is_dead(self, node_id: bytes) -> str:
        """Why a node is dead; "" when it is not known to be."""
        return self._dead.get(node_id, "")

    def address_of(self, node_id: bytes) -> str:
        """Where a node listens; "" when it is not known to live."""
        entry = self.nodes.get(node_id)
        return "" if entry is None else entry.address

    def worker_address(self, node_id: bytes, worker_id: bytes) -> str:
        """Where processes of this node reach a worker of another; "" when its node is not known to live."""
        address = self.address_of(node_id)
        return f"{address}/{worker_id.hex()}" if address else ""

    def node_of_number(self, number: int) -> bytes:
        """The living node with a number, b"" if there is none."""
        return next((entry.node_id for entry in self.nodes.values() if entry.node_no == number), b"")

    def waiting_for(self, node_id: bytes) -> int:
        """How many messages for a node it has not counted yet."""
        line = self._lines.get(node_id)
        return 0 if line is None else len(line.kept)

    # ---------------------------------------------------------------- speaking

    def send(self, node_id: bytes, message: Any) -> bool:
        """Say something to another node, some time; False (and nothing is said) when it is dead."""
        if node_id in self._dead or self._closed:
            return False
        line = self._lines.get(node_id)
        if line is None:
            line = self._lines[node_id] = Line(node_id, self._loop.time())
        line.kept.append(message)
        if line.welcomed:
            assert line.connection is not None, "a welcomed line is connected"
            line.connection.send(message)
        else:
            self._connect(line)
        return True

    def _connect(self, line: Line) -> None:
        """Dial, unless that is being done, or is not possible yet."""
        if line.dialling or line.connection is not None or self._closed or not line.kept:
            return
        address = self.address_of(line.node_id)
        if not address or self._dial is None:
            if self._loop.time() - line.since > UNKNOWN_WAIT_S:
                self._lines.pop(line.node_id, None)
                log.warning(
                    "%d messages for node %s, which the GCS does not know, are dropped",
                    len(line.kept),
                    line.node_id.hex()[:8],
                )
            else:
                line.dialling = True
                self._loop.call_later(REDIAL_S, self._again, line)
            return
        line.dialling = True
        future = self._dials.dial(partial(self._dial, address))
        future.add_done_callback(lambda dialled: self._dialled(line, dialled))

    def _dialled(self, line: Line, dialled: asyncio.Future[socket.socket]) -> None:
        line.dialling = False
        error = None if dialled.cancelled() else dialled.exception()
        if self._lines.get(line.node_id) is not line or self._closed or dialled.cancelled() or error is not None:
            if not dialled.cancelled() and error is None:
                dialled.result().close()
            elif self._lines.get(line.node_id) is line and not self._closed:
                if line.attempts % 10 == 0:
                    log.warning(
                        "node %s cannot be reached at %s: %s; trying again",
                        line.node_id.hex()[:8],
                        self.address_of(line.node_id),
                        error,
                    )
                self._redial(line)
            return
        connection = line.connection = Connection(dialled.result(), self._outbox, self._on_answer, self._on_line_lost)
        connection.peer = line
        connection.send(LinkHello(PROTOCOL_VERSION, self._node_id, line.node_id))

    def _redial(self, line: Line) -> None:
        line.attempts += 1
        line.dialling = True
        self._loop.call_later(min(REDIAL_MAX_S, REDIAL_S * line.attempts), self._again, line)

    def _again(self, line: Line) -> None:
        line.dialling = False
        if self._lines.get(line.node_id) is line:
            self._connect(line)

    def _on_answer(self, connection: Connection, message: Any) -> None:
        line: Line = connection.peer
        if type(message) is LinkWelcome:
            if message.refused:
                log.error("node %s refuses this node: %s", line.node_id.hex()[:8], message.refused)
                connection.close("")
                return
            self._forget(line, message.received)
            line.welcomed = True
            line.attempts = 0
            for said in line.kept:
                connection.send(said)
        elif type(message) is LinkReceived:
            self._forget(line, message.count)
        else:
            connection.close(f"it sent {type(message).__name__} on a line that it did not dial")

    def _forget(self, line: Line, count: int) -> None:
        while line.base < count and line.kept:
            line.kept.popleft()
            line.base += 1

    def _on_line_lost(self, connection: Connection, _reason: str) -> None:
        line: Line = connection.peer
        line.connection = None
        line.welcomed = False
        if self._lines.get(line.node_id) is line and not self._closed and line.kept:
            self._redial(line)

    # ---------------------------------------------------------------- hearing

    def accepted(self, sock: socket.socket, hello: LinkHello) -> None:
        """Another node has dialled."""
        connection = Connection(sock, self._outbox, self._on_said, self._on_heard_lost)
        sender = hello.sender
        if hello.protocol_version != PROTOCOL_VERSION:
            reason = f"it speaks protocol version {hello.protocol_version}, this node {PROTOCOL_VERSION}: run the same version of shoal everywhere"
        elif hello.receiver != self._node_id:
            reason = "it looks for another node, which was here before"
        elif sender in self._dead:
            reason = f"it was declared dead: {self._dead[sender]}"
        else:
            reason = ""
        if reason:
            connection.send(LinkWelcome(0, reason))
            connection.flush()
            connection.close("")
            return
        heard = self._heard.get(sender)
        if heard is None:
            heard = self._heard[sender] = Heard()
        former = heard.connection
        if former is not None:  # the sender has given it up; what stands in it counts, and maybe its end
            former.drain()
            former.close("")
        heard.connection = connection
        connection.peer = (sender, heard)
        connection.spoke = True
        heard.counted = heard.count
        connection.send(LinkWelcome(heard.count))

    def _on_said(self, connection: Connection, message: Any) -> None:
        sender, heard = connection.peer
        if heard.connection is not connection:
            return  # a newer one has taken over: it is said again there
        heard.count += 1
        handler = self.handlers.get(type(message))
        try:
            if handler is None:
                log.error("node %s sent %s, which nobody takes here", sender.hex()[:8], type(message).__name__)
            else:
                handler(sender, message)
        except Exception:
            # The line must go on: said again, the message would do the same.
            log.exception(
                "internal error while handling %s of node %s; please report it",
                type(message).__name__,
                sender.hex()[:8],
            )
        if heard.count - heard.counted >= COUNTED_EVERY:
            self._tell_count(heard)
        elif heard.timer is None:
            heard.timer = self._loop.call_later(COUNTED_EVERY_S, self._count_later, heard)

    def _count_later(self, heard: Heard) -> None:
        heard.timer = None
        if heard.count > heard.counted:
            self._tell_count(heard)

    def _tell_count(self, heard: Heard) -> None:
        heard.counted = heard.count
        if heard.connection is not None:
            heard.connection.send(LinkReceived(heard.count))

    def _on_heard_lost(self, connection: Connection, _reason: str) -> None:
        if connection.peer is not None and connection.peer[1].connection is connection:
            connection.peer[1].connection = None

    # ---------------------------------------------------------------- the end

    def statistics(self) -> dict[str, int]:
        """Sizes of the tables."""
        return {
            "nodes": len(self.nodes),
            "lines": sum(line.welcomed for line in self._lines.values()),
            "unconfirmed": self.unconfirmed,
        }

    @property
    def unconfirmed(self) -> int:
        """How many messages other nodes have not said to have."""
        return sum(len(line.kept) for line in self._lines.values())

    def close(self) -> None:
        """The node ends."""
        self._closed = True
        for line in self._lines.values():
            if line.connection is not None:
                line.connection.close("")
        for heard in self._heard.values():
            if heard.connection is not None:
                heard.connection.close("")


_decoder = msgspec.msgpack.Decoder(LinkHello | RouteToWorker | OpenTransfer)


class Arrivals:
    """New authenticated connections: reads the first frame of each, and not one byte more, then hands the socket to whom it is for.

    Args:
        takers: by type of first frame, what takes the socket: called with it and the frame.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, takers: dict[type, Callable[[socket.socket, Any], None]]
    ) -> None:
        self._loop = loop
        self._takers = takers
        self._reading: dict[int, tuple[socket.socket, bytearray]] = {}

    def accepted(self, sock: socket.socket, leftover: bytes = b"") -> None:
        """A connection has proved that it may speak. `leftover` was read beyond the proof."""
        sock.setblocking(False)
        fd = sock.fileno()
        self._reading[fd] = (sock, bytearray(leftover))
        self._loop.add_reader(fd, self._readable, fd)
        self._loop.call_later(CONNECT_TIMEOUT_S, self._give_up, fd, sock)
        self._readable(fd)

    def _readable(self, fd: int) -> None:
        sock, got = self._reading[fd]
        try:
            while (missing := _missing(got)) > 0:
                piece = sock.recv(missing)
                if not piece:
                    self._drop(fd)
                    return
                got += piece
            if missing < 0:
                raise ValueError("the first frame is too long, or something follows it before its answer")
            message = _decoder.decode(memoryview(got)[FRAME_HEADER_BYTES:])
        except BlockingIOError:
            return
        except (OSError, ValueError, msgspec.DecodeError) as error:
            log.warning("closed a connection of another node: %s", error)
            self._drop(fd)
            return
        del self._reading[fd]
        self._loop.remove_reader(fd)
        if type(message) is not LinkHello and message.protocol_version != PROTOCOL_VERSION:
            sock.close()
            return
        self._takers[type(message)](sock, message)

    def _drop(self, fd: int) -> None:
        sock, _ = self._reading.pop(fd)
        self._loop.remove_reader(fd)
        sock.close()

    def _give_up(self, fd: int, sock: socket.socket) -> None:
        if self._reading.get(fd, (None,))[0] is sock:
            self._drop(fd)

    def close(self) -> None:
        """The node ends."""
        for fd in list(self._reading):
            self._drop(fd)


def _missing(got: bytearray) -> int:
    """How many bytes the first frame lacks; negative when it is too long."""
    if len(got) < FRAME_HEADER_BYTES:
        return FRAME_HEADER_BYTES - len(got)
    length = int.from_bytes(got[:FRAME_HEADER_BYTES], "little")
    if length > FIRST_FRAME_BYTES_MAX:
        return -1
    return FRAME_HEADER_BYTES + length - len(got)
