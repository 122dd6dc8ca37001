"""A world of nodes that pull objects from each other: the real machines over a played network, store and clock.

Every node sends with a rate of its own, one chunk after the other; messages and chunks may break, nodes may die, objects may be freed, made anew and
dropped. The world checks what no order of events may break:

    a copy that is sealed has every part, all of one version
    nobody's place is given up or sealed while a chunk may still be written to it
    each chunk that was asked for has one answer, each process that asked has one
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from shoal.node import pull_events as ev
from shoal.node.pulls import Pulls, chunk_bytes
from shoal.node.servings import Servings

LATENCY_S = 0.0005
ORPHANED_S = 30.0
OF_PULLS = (
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


@dataclass
class Copy:
    """A place for a copy: offset -> version of the bytes there."""

    origin: bytes
    size: int
    parts: dict[int, int] = field(default_factory=dict)
    expected: set[int] = field(default_factory=set)  #: numbers that may be written
    sealed: int = 0


class Node:
    """The two machines of one node, and what stands around them."""

    def __init__(self, world: World, node_id: bytes) -> None:
        self.world = world
        self.node_id = node_id
        self.alive = True
        self.pulls = Pulls(world.capacity)
        self.servings = Servings()
        self.originals: dict[bytes, tuple[int, int]] = {}  #: size, version
        self.copies: dict[bytes, Copy] = {}
        self.events: deque[Any] = deque()
        self.handling = False
        self.asked: dict[int, ev.AskChunk] = {}
        self.answers: dict[tuple[bytes, int], list[str]] = {}
        self.sends_until = 0.0  #: its link is busy so long
        self.sent_bytes = 0
        self.full = 0.0  #: how often there is no room

    def feed(self, event: Any) -> None:
        if not self.alive:
            return
        self.events.append(event)
        if self.handling:
            return
        self.handling = True
        while self.events:
            event = self.events.popleft()
            now = self.world.now
            machine: Any = self.pulls if isinstance(event, OF_PULLS) else self.servings
            for effect in machine.handle(event, now):
                self.perform(effect)
            if isinstance(event, ev.NodeGone):
                for effect in self.servings.handle(event, now):
                    self.perform(effect)
        self.handling = False

    def perform(self, effect: Any) -> None:
        world = self.world
        match effect:
            case ev.AskRoom(oid, size, origin):
                world.after(world.dice.random() * 0.01, self.room, oid, size, origin)
            case ev.AskChunk():
                copy = self.copies[effect.oid]
                assert not copy.sealed
                copy.expected.add(effect.number)
                self.asked[effect.number] = effect
                world.say(self, effect.node, lambda node: node.wanted(self, effect), lambda: self.miss(effect.number))
            case ev.CancelChunk(number):
                if number in self.asked:
                    node = self.asked[number].node
                    world.after(0.0001, self.miss, number)
                    world.say(self, node, lambda node: node.feed(ev.ChunksForgotten(self.node_id, [number])))
            case ev.NotePart(oid, offset, length):
                self.feed(ev.PartCame(oid, offset, length))
            case ev.DropParts(oid):
                self.copies[oid].parts.clear()
                self.feed(ev.CopyEnded(oid, False))
            case ev.SealCopy(oid, version):
                copy = self.copies[oid]
                assert not copy.expected, "sealed while chunks may come"
                step = chunk_bytes(copy.size)
                assert copy.parts == dict.fromkeys(range(0, max(copy.size, 1), step), version)
                copy.sealed = version
                if not world.nodes[copy.origin].alive:
                    world.after(ORPHANED_S, self.drop_orphans, copy.origin)
                self.feed(ev.CopyEnded(oid, True))
            case ev.GiveUpCopy(oid):
                assert not self.copies.pop(oid).expected, "given up while chunks may come"
                self.feed(ev.CopyEnded(oid, False))
            case ev.AnswerPull(process, request, oid):
                assert oid in self.originals or self.copies[oid].sealed
                self.answers.setdefault((process, request), []).append("here")
            case ev.FailPull(process, request, _, kind, reason):
                assert reason
                self.answers.setdefault((process, request), []).append(kind)
            case ev.ReportLost(_, origin):
                assert origin != self.node_id
            case ev.TellPullEnded(node, oid, whole):
                world.say(self, node, lambda node: node.feed(ev.PullEndedThere(self.node_id, oid, whole)))
            case ev.Wake(delay):
                world.after(delay, self.feed, ev.Ticked())
            case ev.Serve(wanted):
                self.serve(wanted)
            case ev.Refuse(node, number, kind, reason):
                world.say(self, node, lambda node: node.outcome(ev.ChunkRefused(number, kind, reason)))
            case ev.Refer(node, number, version, sources):
                assert sources and node not in sources
                world.say(self, node, lambda node: node.outcome(ev.ChunkReferred(number, version, sources)))
            case ev.DropServe():
                pass
            case ev.FreeCopiesAt(node, oids):
                world.say(self, node, lambda node: node.free_copies(self.node_id, oids))
            case _:
                raise AssertionError(effect)

    def room(self, oid: bytes, size: int, origin: bytes) -> None:
        if self.world.dice.random() < self.full:
            self.feed(ev.RoomRefused(oid, ev.FAILED_FULL, "no room"))
        else:
            assert oid not in self.copies
            self.copies[oid] = Copy(origin, size)
            self.feed(ev.RoomMade(oid))

    def ask(self, process: bytes, request: int, oid: bytes, origin: Node, priority: int = ev.GET) -> None:
        copy = self.copies.get(oid)
        if copy is not None and copy.sealed:
            self.answers.setdefault((process, request), []).append("here")
            return
        size = self.world.sizes[oid]
        if not origin.alive:
            self.answers.setdefault((process, request), []).append(ev.FAILED_LOST)
            return
        self.feed(ev.PullAsked(process, request, oid, size, origin.node_id, priority))

    # -------- sending

    def wanted(self, asker: Node, effect: ev.AskChunk) -> None:
        state, version, original = ev.NOTHING, 0, False
        copy = self.copies.get(effect.oid)
        if effect.oid in self.originals:
            state, version, original = ev.WHOLE, self.originals[effect.oid][1], True
        elif copy is not None and copy.sealed:
            state, version = ev.WHOLE, copy.sealed
        elif copy is not None:
            state, version = self.pulls.part(effect.oid, effect.offset, effect.length)
            assert state != ev.PART or copy.parts[effect.offset] == version
        self.feed(
            ev.ChunkWanted(
                asker.node_id,
                effect.number,
                1,
                effect.oid,
                effect.version,
                effect.offset,
                effect.length,
                effect.fresh,
                state,
                version,
                original,
            )
        )

    def serve(self, wanted: ev.ChunkWanted) -> None:
        world = self.world
        copy = self.copies.get(wanted.oid)
        if wanted.oid in self.originals:
            version = self.originals[wanted.oid][1]
        elif copy is not None and (copy.sealed or wanted.offset in copy.parts):
            version = copy.sealed or copy.parts[wanted.offset]
        else:
            self.feed(ev.ServeEnded(wanted.node, wanted.number))
            world.say(
                self,
                wanted.node,
                lambda node: node.outcome(ev.ChunkRefused(wanted.number, ev.REFUSED_ABSENT, "it was freed")),
            )
            return
        self.sends_until = max(self.sends_until, world.now) + wanted.length / world.rate_of(self)
        self.sent_bytes += wanted.length
        world.after(self.sends_until - world.now, self.sent, wanted, version)

    def sent(self, wanted: ev.ChunkWanted, version: int) -> None:
        self.feed(ev.ServeEnded(wanted.node, wanted.number))
        receiver = self.world.nodes[wanted.node]
        if self.world.dice.random() < self.world.breaks:
            self.world.after(LATENCY_S, receiver.miss, wanted.number, "the connection broke")
        else:
            self.world.after(LATENCY_S, receiver.bytes_came, wanted, version)

    def bytes_came(self, wanted: ev.ChunkWanted, version: int) -> None:
        effect = self.asked.pop(wanted.number, None)
        if effect is None or not self.alive:
            return  # it was forgotten
        copy = self.copies[effect.oid]
        assert not copy.sealed
        copy.expected.remove(effect.number)
        copy.parts[effect.offset] = version
        self.feed(ev.ChunkArrived(effect.number, version))

    def miss(self, number: int, reason: str = "cancelled") -> None:
        self.outcome(ev.ChunkFailed(number, reason))

    def outcome(self, event: Any) -> None:
        effect = self.asked.pop(event.number, None)
        if effect is not None and self.alive:
            self.copies[effect.oid].expected.discard(event.number)
            self.feed(event)

    # -------- the store

    def free_copies(self, origin: bytes, oids: list[bytes]) -> None:
        self.feed(ev.OriginalsFreed(oids, origin))
        for oid in oids:
            copy = self.copies.get(oid)
            if copy is not None and copy.sealed and copy.origin == origin:
                del self.copies[oid]

    def drop_orphans(self, origin: bytes) -> None:
        for oid, copy in list(self.copies.items()):
            if copy.origin == origin and copy.sealed:
                del self.copies[oid]

    def drop_copy(self, oid: bytes) -> None:
        """It makes room for others."""
        copy = self.copies.pop(oid)
        assert copy.sealed
        self.world.say(self, copy.origin, lambda node: node.feed(ev.CopiesDroppedThere(self.node_id, [oid])))

    def free(self, oid: bytes) -> None:
        del self.originals[oid]
        self.feed(ev.ObjectsFreed([oid]))


class World:
    """Nodes, the lines between them, and time."""

    def __init__(self, seed: int, nodes: int, capacity: int = 1 << 30, rate: float = 1e8) -> None:
        self.dice = random.Random(seed)
        self.capacity = capacity
        self.now = 100.0
        self.rate = rate
        self.rates: dict[bytes, float] = {}
        self.breaks = 0.0
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self.sizes: dict[bytes, int] = {}
        self.versions = 0
        self.nodes = {bytes([65 + n]) * 16: Node(self, bytes([65 + n]) * 16) for n in range(nodes)}
        self._lines: dict[tuple[bytes, bytes], float] = {}

    def rate_of(self, node: Node) -> float:
        return self.rates.get(node.node_id, self.rate)

    def after(self, delay_s: float, call: Callable[..., None], *args: Any) -> None:
        self._count += 1
        heapq.heappush(self._due, (self.now + delay_s, self._count, call, args))

    def say(
        self, sender: Node, node_id: bytes, then: Callable[[Node], None], refused: Callable[[], None] | None = None
    ) -> None:
        """In order on each line; nothing reaches the dead."""
        receiver = self.nodes[node_id]
        if not receiver.alive:
            if refused is not None:
                self.after(0.0, refused)
            return
        at = max(self._lines.get((sender.node_id, node_id), 0.0), self.now + LATENCY_S * (1 + self.dice.random()))
        self._lines[sender.node_id, node_id] = at
        self.after(at - self.now, lambda: then(receiver) if receiver.alive and sender.alive else None)

    def make(self, node: Node, size: int, oid: bytes = b"") -> bytes:
        """A new object of a node, or an old one anew."""
        oid = oid or len(self.sizes).to_bytes(20, "big")
        self.sizes[oid] = size
        self.versions += 1
        node.originals[oid] = (size, self.versions)
        return oid

    def kill(self, node: Node) -> None:
        node.alive = False
        for other in self.nodes.values():
            if other.alive:
                self.after(self.dice.random() * 0.05, self._tell_death, other, node)

    def _tell_death(self, other: Node, node: Node) -> None:
        other.feed(ev.NodeGone(node.node_id, "killed"))
        for number, effect in list(other.asked.items()):
            if effect.node == node.node_id:
                other.miss(number, "the node is dead")
        self.after(ORPHANED_S, other.drop_orphans, node.node_id)

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self._due and self._due[0][0] <= until:
            self.now, _, call, args = heapq.heappop(self._due)
            call(*args)
        self.now = until

    def run_until(self, done: Callable[[], bool], seconds: float = 1000.0) -> float:
        """Until something holds; how long that took."""
        start = self.now
        while not done():
            assert self._due and self.now < start + seconds, "it never came to that"
            self.now, _, call, args = heapq.heappop(self._due)
            call(*args)
        return self.now - start
