"""Objects between nodes: the shell around `pulls` and `servings`.

Purpose: a value in another node's store becomes a copy in this one's, and others get what lies here.

Design: what is said goes over the nodes' lines (ordered, once, also over reconnects), bytes go over connections of their own, which only threads
touch (`movers`). The node that wants bytes dials, tells under which numbers it expects what, and where, and asks for it by `FetchChunk`.

    process --Pull--> daemon --FetchChunk-----------------------> daemon of the origin, or of whom it was referred to
                        |     <-ChunkRefused, ChunkReferred------   |  pins the block, restores it from disk before
                      room in the store                            |
                        |     <=======header, bytes=============  thread
    process <-Answer-- sealed --PullEnded------------------------> origin: tells FreeCopies some day

Between two nodes there is one connection for small objects, so that they do not stand behind large ones, and BULK_CONNECTIONS for the others. Idle
ones are closed after IDLE_S.

A process may tell another node of an object before its own daemon has read of it (`Sealed`): what is not known here is looked for again after all
local sockets were read.

How to extend: a new effect of a machine gets a row in `_PERFORM`.

What it does not do: decide (`pulls`, `servings`), find room (`store_shell`), or count who holds an object (`objects`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from shoal.node import pull_events as ev
from shoal.node.io.dial_threads import DialThreads
from shoal.node.io.movers import InLane, Movers, Notice, OutLane, Place
from shoal.node.io.node_links import UNKNOWN_WAIT_S, NodeLinks
from shoal.node.pulls import CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, Pulls
from shoal.node.servings import Servings
from shoal.node.store_events import ReceiveCopy
from shoal.node.store_rows import COMING, RECEIVING
from shoal.protocol import node_messages as nm
from shoal.protocol.errors import ObjectLostError, OutOfDiskError, ShoalError
from shoal.protocol.limits import BLOCK_HEADER_BYTES, CONNECT_TIMEOUT_S, PROTOCOL_VERSION
from shoal.protocol.messages import Answer, Pull, Stored
from shoal.wire.framing import encode_frame

if TYPE_CHECKING:
    from shoal.node.io.store_shell import StoreShell

log = logging.getLogger("shoal.node")

BULK_CONNECTIONS = 2
OUTLETS_PER_NODE_MAX = 16
IDLE_S = 60.0
ORPHANED_S = 30.0  #: copies outlive their origin's node so long: others may be getting them
REDIAL_S = 0.1
SPARES_FULL_SHARE = 0.5  #: a store that is this full takes no spare copies

Dial = Callable[[str], socket.socket]


class _Inlet:
    """A connection on which another node sends chunks to this one."""

    __slots__ = ("asked", "bulk", "lane", "node", "number", "reason", "used_at", "waiting")

    def __init__(self, number: int, node: bytes, bulk: bool, now: float) -> None:
        self.number = number
        self.node = node
        self.bulk = bulk
        self.lane: InLane | None = None  #: None while it is dialled
        self.asked: dict[int, ev.AskChunk] = {}  #: FetchChunk was sent
        self.waiting: dict[int, ev.AskChunk] = {}  #: for the dialling
        self.used_at = now
        self.reason = ""  #: why this node closes it

    @property
    def load(self) -> int:
        """Chunks that are to come on it."""
        return len(self.asked) + len(self.waiting)


class _Outlet:
    """A connection on which this node sends chunks to another."""

    __slots__ = ("lane", "sends")

    def __init__(self, lane: OutLane) -> None:
        self.lane = lane
        self.sends: dict[int, Stored] = {}  #: pinned until they have left


class Transfer:
    """The transfers of one node.

    Args:
        send: sends a message to a process of this node.
        when_read: calls what it is given once all that local processes have written is read.
        on_lost: told (oid, node, reason) when no copy can be had of an object that lay on another node.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        node_id: bytes,
        links: NodeLinks,
        store: StoreShell,
        send: Callable[[bytes, Any], None],
        when_read: Callable[[Callable[[], None]], None],
        on_lost: Callable[[bytes, bytes, str], None],
    ) -> None:
        self._loop = loop
        self._node_id = node_id
        self._links = links
        self._store = store
        self._dial: Dial | None = None
        self._dials = DialThreads(loop)
        self._send = send
        self._when_read = when_read
        self._on_lost = on_lost
        self._capacity_bytes = store.statistics().capacity_bytes
        self._pulls = Pulls(self._capacity_bytes)
        self._servings = Servings()
        self._movers = Movers(loop, self._take_notice)
        self._events: deque[Any] = deque()
        self._handling = False
        self._connections = 0
        self._inlets: dict[int, _Inlet] = {}
        self._inlets_from: dict[tuple[bytes, bool], list[_Inlet]] = {}  #: the same, by node and kind
        self._outlets: dict[tuple[bytes, int], _Outlet] = {}
        #: chunk -> its inlet
        self._inlet_of: dict[int, _Inlet] = {}
        #: what the source has said of chunks whose lane is still to forget them
        self._said: dict[int, ev.ChunkRefused | ev.ChunkReferred] = {}
        self._places: dict[bytes, ReceiveCopy] = {}  #: of pulls that have room
        self._given_up: list[ReceiveCopy] = []  #: parts of them are still being sent
        self._fetches = 0
        self._fetching: dict[int, Callable[[Stored | None, str], None]] = {}  #: what this node wants for itself
        self._dropped: dict[bytes, list[bytes]] = {}  #: copies by origin, to be told of
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        store.receiver = self
        for kind, method in _FROM_NODES.items():
            links.handlers[kind] = method.__get__(self)
        links.on_died.append(self._on_node_died)
        loop.call_later(IDLE_S, self._close_idle)

    def use(self, dial: Dial) -> None:
        """How to connect to another node's address: blocking, called on a thread; raises OSError."""
        self._dial = dial

    def _feed(self, event: Any) -> None:
        """Give a machine an event and do what it says; what arises meanwhile comes after."""
        if self._closed:
            return
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._events:
                event = self._events.popleft()
                now = time.monotonic()
                effects: list[Any] = []
                if type(event) in _OF_PULLS:
                    effects += self._pulls.handle(event, now)
                if type(event) in _OF_SERVINGS:
                    effects += self._servings.handle(event, now)
                for effect in effects:
                    _PERFORM[type(effect)](self, effect)
        finally:
            self._handling = False

    def statistics(self) -> dict[str, int]:
        """What is on its way, and what was moved."""
        return {
            **self._pulls.statistics(),
            **self._servings.statistics(),
            "inlets": len(self._inlets),
            "outlets": len(self._outlets),
        }

    # ---------------------------------------------------------------- processes of this node

    def on_pull(self, process: Any, message: Pull) -> None:
        """A process wants a value that lies on another node."""
        stored = message.stored
        node = stored.node
        row = self._store.row_of(stored.oid)
        if (row is not None and row.state not in (COMING, RECEIVING)) or node in (b"", self._node_id):
            self._answer(ev.AnswerPull(process.worker_id, message.request, stored.oid))
            return
        cause = self._links.is_dead(node)
        if cause or self._links.alone:
            reason = f"node {node.hex()[:8]}, where it lay, is dead: {cause}" if cause else "this node is of no cluster"
            self._report_lost(ev.ReportLost(stored.oid, node, reason))
            self._fail(ev.FailPull(process.worker_id, message.request, stored.oid, ev.FAILED_LOST, reason))
            return
        if message.look:
            self._fail(ev.FailPull(process.worker_id, message.request, stored.oid, ev.NOT_HERE, "its node lives"))
            return
        priority = ev.ARGUMENT if message.for_task else ev.BACKGROUND if message.background else ev.GET
        self._feed(ev.PullAsked(process.worker_id, message.request, stored.oid, stored.size, node, priority))

    def fetch(self, stored: Stored, then: Callable[[Stored | None, str], None], priority: int = ev.BACKGROUND) -> None:
        """Bring a value of another node here for the node itself, after what processes want; `then` gets its place here, or None and why not."""
        cause = self._links.is_dead(stored.node)
        if cause:
            then(None, f"node {stored.node.hex()[:8]}, where it lies, is dead: {cause}")
            return
        self._fetches += 1
        self._fetching[self._fetches] = then
        row = self._store.row_of(stored.oid)
        if (row is not None and row.state not in (COMING, RECEIVING)) or stored.node in (b"", self._node_id):
            self._answer(ev.AnswerPull(b"", self._fetches, stored.oid))
        else:
            self._feed(ev.PullAsked(b"", self._fetches, stored.oid, stored.size, stored.node, priority))

    def keep_here(self, process: Any, body: dict[str, Any], answered: Callable[[Any, list[str]], None]) -> None:
        """A process wants a spare copy of its value, which lies on another node, if there is plenty of room for it: see `runtime.spares`."""
        stored = msgspec.convert(body["stored"], Stored)
        if self._store.resident_bytes + stored.size > SPARES_FULL_SHARE * self._capacity_bytes:
            answered(None, ["ObjectStoreFull", "there is too little room for spare copies"])
            return

        def fetched(place: Stored | None, reason: str) -> None:
            kept = self._store.keep_copy(stored.oid, process.worker_id) if place is not None else None
            if kept is not None and process.dead:
                self._store.free([stored.oid])
            kept_or_why = reason or "it has made room for others"
            answered(
                {"stored": kept} if kept is not None else None, [] if kept is not None else ["NotKept", kept_or_why]
            )

        self.fetch(stored, fetched)

    def process_died(self, process_id: bytes) -> None:
        """Nobody waits for what it wanted."""
        self._feed(ev.ProcessGone(process_id))

    def _answer(self, effect: ev.AnswerPull) -> None:
        if not effect.request:
            return
        place = self._store.place_of(effect.oid)
        if place is not None:
            self._store.used(effect.oid)
            self._deliver(effect, place)
        else:
            self._run(self._answer_resident(effect))

    async def _answer_resident(self, effect: ev.AnswerPull) -> None:
        try:
            place = await self._store.ensure_resident(effect.oid)
        except ShoalError as error:
            self._fail(ev.FailPull(effect.process, effect.request, effect.oid, _kind_of(error), str(error)))
        else:
            self._deliver(effect, place)

    def _deliver(self, effect: ev.AnswerPull, place: Stored) -> None:
        if effect.process:
            self._send(effect.process, Answer(effect.request, {"stored": place}))
        else:
            # Not at once: the store may be in the middle of something.
            self._loop.call_soon(self._fetching.pop(effect.request), place, "")

    def _fail(self, effect: ev.FailPull) -> None:
        if not effect.process:
            self._loop.call_soon(self._fetching.pop(effect.request), None, effect.reason)
        elif effect.request:
            text = f"object {effect.oid.hex()} cannot be brought to this node: {effect.reason}"
            self._send(effect.process, Answer(effect.request, None, [effect.kind, text]))

    def _run(self, coroutine: Any) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---------------------------------------------------------------- the store

    def room_made(self, place: ReceiveCopy) -> None:
        """There is room for a copy."""
        self._places[place.oid] = place
        self._feed(ev.RoomMade(place.oid))

    def room_refused(self, oid: bytes, error: Exception | None) -> None:
        """There is none, or no need."""
        kind = ev.FAILED_DISK if isinstance(error, OutOfDiskError) else ev.FAILED_FULL
        self._feed(ev.RoomRefused(oid, kind, str(error) if error is not None else ""))

    def copy_dropped(self, oid: bytes, origin: bytes) -> None:
        """A copy has made room for others."""
        if not self._dropped:
            self._loop.call_soon(self._tell_dropped)
        self._dropped.setdefault(origin, []).append(oid)

    def _tell_dropped(self) -> None:
        dropped, self._dropped = self._dropped, {}
        for origin, oids in dropped.items():
            self._links.send(origin, nm.CopiesDropped(oids))

    def freed(self, oids: list[bytes]) -> None:
        """Nobody refers to these objects of this node."""
        self._feed(ev.ObjectsFreed(oids))

    def _ask_room(self, effect: ev.AskRoom) -> None:
        self._store.receive(effect.oid, effect.size, effect.origin)

    def _seal(self, effect: ev.SealCopy) -> None:
        self._store.copy_whole(self._places.pop(effect.oid), effect.version)
        row = self._store.row_of(effect.oid)
        if row is not None and self._links.is_dead(row.copy_of):
            self._loop.call_later(ORPHANED_S, self._store.free_copies, [effect.oid], row.copy_of)
        self._feed(ev.CopyEnded(effect.oid, True))

    def _give_up(self, effect: ev.GiveUpCopy) -> None:
        place = self._places.pop(effect.oid, None)
        self._feed(ev.CopyEnded(effect.oid, False))
        if place is None:
            return
        if self._store.is_pinned(place.segment, place.offset):
            self._given_up.append(place)
        else:
            self._store.give_up_copy(place)

    def _unpin(self, stored: Stored) -> None:
        self._store.unpin(stored)
        for place in self._given_up:
            if place.generation == stored.generation and not self._store.is_pinned(place.segment, place.offset):
                self._given_up.remove(place)
                self._store.give_up_copy(place)
                break

    def _note_part(self, effect: ev.NotePart) -> None:
        self._feed(ev.PartCame(effect.oid, effect.offset, effect.length))

    def _drop_parts(self, effect: ev.DropParts) -> None:
        self._feed(ev.CopyEnded(effect.oid, False))

    def _report_lost(self, effect: ev.ReportLost) -> None:
        self._on_lost(effect.oid, effect.origin, effect.reason)

    def _wake(self, effect: ev.Wake) -> None:
        self._loop.call_later(effect.delay_s, self._feed, ev.Ticked())

    # ---------------------------------------------------------------- receiving

    def _ask_chunk(self, effect: ev.AskChunk) -> None:
        inlet = self._inlet_for(effect.node, effect.length > CHUNK_BYTES_MIN)
        self._inlet_of[effect.number] = inlet
        if inlet.lane is None:
            inlet.waiting[effect.number] = effect
        else:
            self._fetch(inlet, effect)

    def _inlet_for(self, node: bytes, bulk: bool) -> _Inlet:
        """The connection with the least to do; a new one while there may be more of them and none is idle."""
        known = self._inlets_from.setdefault((node, bulk), [])
        best = min(known, key=lambda inlet: inlet.load, default=None)
        if best is None or (best.load and len(known) < (BULK_CONNECTIONS if bulk else 1)):
            self._connections += 1
            best = self._inlets[self._connections] = _Inlet(self._connections, node, bulk, self._loop.time())
            known.append(best)
            self._open(best, self._loop.time() + UNKNOWN_WAIT_S)
        return best

    def _open(self, inlet: _Inlet, until: float) -> None:
        """Dial, when the node's address is known."""
        if self._closed or inlet.number not in self._inlets:
            return
        address = self._links.address_of(inlet.node)
        cause = self._links.is_dead(inlet.node)
        if not address and not cause and self._loop.time() < until:
            self._loop.call_later(REDIAL_S, self._open, inlet, until)
        elif not address:
            # Not at once: whoever asked for it is in the middle of asking.
            self._loop.call_soon(self._inlet_closed, inlet, cause or "the GCS does not know it")
        else:
            future = self._dials.dial(partial(self._connect, address, inlet.number))
            future.add_done_callback(lambda dialled: self._dialled(inlet, dialled))

    def _connect(self, address: str, number: int) -> socket.socket:
        """On a thread: a connection that the other node is ready to send on. Raises OSError."""
        assert self._dial is not None, "`use` was called"
        sock = self._dial(address)
        try:
            sock.settimeout(CONNECT_TIMEOUT_S)
            sock.sendall(encode_frame(nm.OpenTransfer(PROTOCOL_VERSION, self._node_id, number)))
            if sock.recv(1) != b"1":
                raise ConnectionError(f"{address} takes no connection for objects")
        except BaseException:
            sock.close()
            raise
        return sock

    def _dialled(self, inlet: _Inlet, dialled: asyncio.Future[socket.socket]) -> None:
        error = None if dialled.cancelled() else dialled.exception()
        if dialled.cancelled() or error is not None:
            self._inlet_closed(inlet, str(error))
            return
        if self._closed or inlet.number not in self._inlets:
            dialled.result().close()
            return
        inlet.lane = self._movers.open_in(dialled.result(), inlet)
        waiting, inlet.waiting = inlet.waiting, {}
        for effect in waiting.values():
            self._fetch(inlet, effect)

    def _fetch(self, inlet: _Inlet, effect: ev.AskChunk) -> None:
        assert inlet.lane is not None, "the connection is there"
        place = self._places[effect.oid]
        inlet.asked[effect.number] = effect
        offset = place.offset + BLOCK_HEADER_BYTES + effect.offset
        mapping = self._store.mapping_of(place.segment)
        self._movers.expect(
            inlet.lane, effect.number, Place(mapping, offset, effect.length, place.fresh_start, place.fresh_bytes)
        )
        message = nm.FetchChunk(
            effect.number, inlet.number, effect.oid, effect.version, effect.offset, effect.length, effect.fresh
        )
        if not self._links.send(effect.node, message):
            self._movers.forget(inlet.lane, effect.number)

    def _cancel_chunk(self, effect: ev.CancelChunk) -> None:
        inlet = self._inlet_of.get(effect.number)
        if inlet is None:
            return  # how it ended is about to be told
        if inlet.waiting.pop(effect.number, None) is not None:
            del self._inlet_of[effect.number]
            self._feed(ev.ChunkFailed(effect.number, "cancelled"))
        elif effect.number not in self._said:
            assert inlet.lane is not None, "it was asked for"
            self._movers.forget(inlet.lane, effect.number)
            self._links.send(inlet.node, nm.ChunksForgotten([effect.number]))

    def _on_refused(self, node: bytes, message: nm.ChunkRefused) -> None:
        self._heed(node, ev.ChunkRefused(message.number, message.kind, message.reason))

    def _on_referred(self, node: bytes, message: nm.ChunkReferred) -> None:
        self._heed(node, ev.ChunkReferred(message.number, message.version, message.sources))

    def _heed(self, node: bytes, event: ev.ChunkRefused | ev.ChunkReferred) -> None:
        """A source says that a chunk will not come: once its place is not written to, the machine is told."""
        inlet = self._inlet_of.get(event.number)
        if inlet is not None and inlet.node == node and inlet.lane is not None and event.number in inlet.asked:
            self._said[event.number] = event
            self._movers.forget(inlet.lane, event.number)

    def _take_notice(self, notice: Notice) -> None:
        """A thread has done something."""
        what, lane, number, version = notice
        if isinstance(lane, OutLane):
            self._take_out_notice(what, lane, number)
            return
        inlet: _Inlet = lane.key
        if what == "closed":
            self._inlet_closed(inlet, inlet.reason or lane.fail)
            return
        inlet.asked.pop(number, None)
        inlet.used_at = self._loop.time()
        if self._inlet_of.pop(number, None) is None:
            return
        said = self._said.pop(number, None)
        if what == "arrived":
            self._feed(ev.ChunkArrived(number, version))
        else:
            self._feed(said or ev.ChunkFailed(number, "cancelled"))

    def _inlet_closed(self, inlet: _Inlet, reason: str) -> None:
        """Nothing more comes on a connection."""
        if not self._drop_inlet(inlet):
            return
        numbers = [*inlet.asked, *inlet.waiting]
        for number in numbers:  # first: the failure of one may have the others cancelled
            del self._inlet_of[number]
        for number in numbers:
            self._feed(self._said.pop(number, None) or ev.ChunkFailed(number, reason))

    def _drop_inlet(self, inlet: _Inlet) -> bool:
        """Nothing is asked for on it any more; whether it was known."""
        if self._inlets.pop(inlet.number, None) is None:
            return False
        left = self._inlets_from[inlet.node, inlet.bulk]
        left.remove(inlet)
        if not left:
            del self._inlets_from[inlet.node, inlet.bulk]
        return True

    def _close_idle(self) -> None:
        now = self._loop.time()
        for inlet in list(self._inlets.values()):
            if inlet.lane is not None and not inlet.load and now - inlet.used_at > IDLE_S:
                inlet.reason = "it is idle"
                # What is asked for from now on takes another one.
                self._drop_inlet(inlet)
                self._movers.close_lane(inlet.lane)
        if not self._closed:
            self._loop.call_later(IDLE_S, self._close_idle)

    def _tell_ended(self, effect: ev.TellPullEnded) -> None:
        self._links.send(effect.node, nm.PullEnded(effect.oid, effect.whole))

    # ---------------------------------------------------------------- sending

    def accepted(self, sock: socket.socket, message: nm.OpenTransfer) -> None:
        """Another node has dialled, to be sent chunks."""
        node, key = message.node_id, (message.node_id, message.number)
        many = sum(other[0] == node for other in self._outlets) >= OUTLETS_PER_NODE_MAX
        if self._links.is_dead(node) or many or key in self._outlets or self._closed:
            sock.close()
            return
        try:
            sock.send(b"1")
        except OSError:
            sock.close()
            return
        self._outlets[key] = _Outlet(self._movers.open_out(sock, key))

    def _on_fetch(self, node: bytes, message: nm.FetchChunk) -> None:
        wanted = self._look_up(node, message)
        if wanted.state == ev.NOTHING:
            # Whoever told of it may have told this daemon only in bytes that it has not read yet.
            self._when_read(lambda: self._feed(self._look_up(node, message)))
        else:
            self._feed(wanted)

    def _look_up(self, node: bytes, message: nm.FetchChunk) -> ev.ChunkWanted:
        oid, offset, length = message.oid, message.offset, message.length
        state, version, original = ev.NOTHING, 0, False
        row = self._store.row_of(oid)
        if row is not None and 0 <= offset <= offset + length <= row.size and length <= CHUNK_BYTES_MAX:
            if row.state in (COMING, RECEIVING):
                state, version = self._pulls.part(oid, offset, length)
            else:
                state, version, original = ev.WHOLE, row.version, not row.copy_of
        return ev.ChunkWanted(
            node,
            message.number,
            message.connection,
            oid,
            message.version,
            offset,
            length,
            message.fresh,
            state,
            version,
            original,
        )

    def _serve(self, effect: ev.Serve) -> None:
        wanted = effect.wanted
        row = self._store.row_of(wanted.oid)
        if row is None:
            self._not_served(wanted, ev.REFUSED_ABSENT, "it was freed")
        elif row.state == RECEIVING:
            self._order(wanted, row.stored, self._pulls.part(wanted.oid, wanted.offset, wanted.length)[1])
        elif (place := self._store.place_of(wanted.oid)) is not None:
            self._store.used(wanted.oid)
            self._order(wanted, place, row.version)
        else:
            self._run(self._serve_restored(wanted, row.version))

    async def _serve_restored(self, wanted: ev.ChunkWanted, version: int) -> None:
        try:
            place = await self._store.ensure_resident(wanted.oid)
        except ShoalError as error:
            kind = ev.REFUSED_LOST if isinstance(error, ObjectLostError) else ev.REFUSED_BUSY
            self._not_served(wanted, kind, str(error))
            return
        row = self._store.row_of(wanted.oid)
        if row is None or row.version != version or row.generation != place.generation:
            self._not_served(wanted, ev.REFUSED_BUSY, "it was moved meanwhile")
        else:
            self._order(wanted, place, version)

    def _order(self, wanted: ev.ChunkWanted, stored: Stored, version: int) -> None:
        outlet = self._outlets.get((wanted.node, wanted.connection))
        if outlet is None:  # it is closed: the other node sees it too
            self._feed(ev.ServeEnded(wanted.node, wanted.number))
            return
        self._store.pin(stored)
        outlet.sends[wanted.number] = stored
        offset = stored.offset + BLOCK_HEADER_BYTES + wanted.offset
        mapping = self._store.mapping_of(stored.segment)
        self._movers.order(outlet.lane, wanted.number, Place(mapping, offset, wanted.length), version)

    def _not_served(self, wanted: ev.ChunkWanted, kind: str, reason: str) -> None:
        self._refuse(ev.Refuse(wanted.node, wanted.number, kind, reason))
        self._feed(ev.ServeEnded(wanted.node, wanted.number))

    def _take_out_notice(self, what: str, lane: OutLane, number: int) -> None:
        outlet = self._outlets.get(lane.key)
        if outlet is None or outlet.lane is not lane:
            return
        if what == "closed":
            del self._outlets[lane.key]
            if outlet.sends:
                log.warning("a connection on which node %s is sent objects ended: %s", lane.key[0].hex()[:8], lane.fail)
            ended, outlet.sends = outlet.sends, {}
        else:
            ended = {number: outlet.sends.pop(number)}
        for each, stored in ended.items():
            self._unpin(stored)
            self._feed(ev.ServeEnded(lane.key[0], each))

    def _refuse(self, effect: ev.Refuse) -> None:
        self._links.send(effect.node, nm.ChunkRefused(effect.number, effect.kind, effect.reason))

    def _refer(self, effect: ev.Refer) -> None:
        self._links.send(effect.node, nm.ChunkReferred(effect.number, effect.version, effect.sources))

    def _drop_serve(self, effect: ev.DropServe) -> None:
        for key, outlet in self._outlets.items():
            if key[0] == effect.node and effect.number in outlet.sends:
                self._movers.drop(outlet.lane, effect.number)

    def _free_copies_at(self, effect: ev.FreeCopiesAt) -> None:
        self._links.send(effect.node, nm.FreeCopies(effect.oids))

    # ---------------------------------------------------------------- other nodes

    def _on_pull_ended(self, node: bytes, message: nm.PullEnded) -> None:
        self._feed(ev.PullEndedThere(node, message.oid, message.whole))

    def _on_copies_dropped(self, node: bytes, message: nm.CopiesDropped) -> None:
        self._feed(ev.CopiesDroppedThere(node, message.oids))

    def _on_chunks_forgotten(self, node: bytes, message: nm.ChunksForgotten) -> None:
        self._feed(ev.ChunksForgotten(node, message.numbers))

    def _on_free_copies(self, node: bytes, message: nm.FreeCopies) -> None:
        self._feed(ev.OriginalsFreed(message.oids, node))
        self._store.free_copies(message.oids, node)

    def _on_node_died(self, node: bytes, cause: str) -> None:
        self._feed(ev.NodeGone(node, cause))
        self._loop.call_later(ORPHANED_S, self._store.free_copies, None, node)
        for inlet in list(self._inlets.values()):
            if inlet.node == node:
                inlet.reason = f"the node is dead: {cause}"
                if inlet.lane is not None:
                    self._movers.close_lane(inlet.lane)
                else:
                    self._inlet_closed(inlet, inlet.reason)
        for key, outlet in self._outlets.items():
            if key[0] == node:
                self._movers.close_lane(outlet.lane)

    def close(self) -> None:
        """The node ends."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(RuntimeError):  # no thread was started
            self._movers.close()


def _kind_of(error: Exception) -> str:
    if isinstance(error, ObjectLostError):
        return ev.FAILED_LOST
    return ev.FAILED_DISK if isinstance(error, OutOfDiskError) else ev.FAILED_FULL


_OF_PULLS = frozenset(
    (
        ev.PullAsked,
        ev.RoomMade,
        ev.RoomRefused,
        ev.ChunkArrived,
        ev.ChunkFailed,
        ev.ChunkRefused,
        ev.ChunkReferred,
        ev.OriginalsFreed,
        ev.ProcessGone,
        ev.NodeGone,
        ev.Ticked,
    )
)
_OF_SERVINGS = frozenset(
    (
        ev.ChunkWanted,
        ev.ServeEnded,
        ev.PartCame,
        ev.CopyEnded,
        ev.PullEndedThere,
        ev.CopiesDroppedThere,
        ev.ChunksForgotten,
        ev.ObjectsFreed,
        ev.NodeGone,
    )
)

_PERFORM: dict[type, Callable[[Transfer, Any], None]] = {
    ev.AskRoom: Transfer._ask_room,
    ev.AskChunk: Transfer._ask_chunk,
    ev.CancelChunk: Transfer._cancel_chunk,
    ev.NotePart: Transfer._note_part,
    ev.DropParts: Transfer._drop_parts,
    ev.SealCopy: Transfer._seal,
    ev.GiveUpCopy: Transfer._give_up,
    ev.AnswerPull: Transfer._answer,
    ev.FailPull: Transfer._fail,
    ev.ReportLost: Transfer._report_lost,
    ev.TellPullEnded: Transfer._tell_ended,
    ev.Wake: Transfer._wake,
    ev.Serve: Transfer._serve,
    ev.Refuse: Transfer._refuse,
    ev.Refer: Transfer._refer,
    ev.DropServe: Transfer._drop_serve,
    ev.FreeCopiesAt: Transfer._free_copies_at,
}

_FROM_NODES: dict[type, Any] = {
    nm.FetchChunk: Transfer._on_fetch,
    nm.ChunkRefused: Transfer._on_refused,
    nm.ChunkReferred: Transfer._on_referred,
    nm.PullEnded: Transfer._on_pull_ended,
    nm.CopiesDropped: Transfer._on_copies_dropped,
    nm.ChunksForgotten: Transfer._on_chunks_forgotten,
    nm.FreeCopies: Transfer._on_free_copies,
}
