"""What this node brings from other nodes: who wants it, where it comes from, and when.

Purpose: one pure machine, `handle(event, now) -> list[Effect]`, for the receiving side of transfers.

A pull, one an object however many ask for it:

    asked for -> QUEUED -- its turn --> ROOM -- place found --> PULLING -- all chunks here --> ENDING -- no chunk on its way --> gone
                                         |                        |  source refuses, fails,          ^        (sealed, or given up)
                                         `--- no room: failed     |  freed, nobody asks any more ----'
                                                                  `- made anew at its origin: ENDING, and from the beginning

Its turn: who is blocked in `get` before arguments of tasks, these before what may be wanted later; all that is under way takes at most
PULL_SHARE of the store, and more only if it is alone. One of each urgency waits for room at a time.

Sources: the origin, unless it refers to others (`servings`). The first source is asked for WINDOW chunks at a time, the others are there in case it
fails: when a source has been silent for PATIENCE_S, the next one is asked for one chunk more at every look; when it speaks again the others are left.
At the end of an object the same chunk may be asked for twice: both bring the same bytes. A chunk whose connection broke is asked for again;
a source that fails FAILURES_MAX times in a row is left. Without a source, or without a chunk for STALL_S, the pull fails.

Bytes have a version (`ObjectRow.version`): parts of different versions never make one copy.

How to extend: an event gets a row in `_HANDLERS`; another choice of sources belongs in `_fill` and `_look`.

What it does not do: move bytes, dial, or find room (`io.transfer`, `store_table`); know what an object is for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from shoal.node import pull_events as ev

CHUNKS_AIM = 64  #: an object is cut into so many chunks, if they are between the next two in size
CHUNK_BYTES_MIN = 256 << 10
CHUNK_BYTES_MAX = 4 << 20
WINDOW = 4  #: chunks on their way from one source
PATIENCE_S = 0.25
LOOK_S = 0.1
STALL_S = 60.0
FAILURES_MAX = 5
RETRY_S = 0.1
RESTARTS_MAX = 3
PULL_SHARE = 0.5  #: of the store
#: pulls under way, by urgency
ACTIVE_MAX = {ev.GET: 64, ev.ARGUMENT: 16, ev.BACKGROUND: 4}

QUEUED, ROOM, PULLING, ENDING = "queued", "room", "pulling", "ending"


def chunk_bytes(size: int) -> int:
    """How an object of `size` bytes is cut: the same on all nodes, a power of two."""
    aim = max(size // CHUNKS_AIM, 1)
    return min(max(1 << (aim - 1).bit_length(), CHUNK_BYTES_MIN), CHUNK_BYTES_MAX)


class _Source:
    """One node that an object is asked of."""

    __slots__ = ("failures", "flying", "retry_at", "spoke_at", "window")

    def __init__(self, window: int, now: float) -> None:
        self.window = window
        self.flying = 0
        self.failures = 0
        self.retry_at = 0.0
        self.spoke_at = now


class _Chunk:
    """One chunk that was asked for."""

    __slots__ = ("cancelled", "index", "node", "pull")

    def __init__(self, pull: _Pull, node: bytes, index: int) -> None:
        self.pull = pull
        self.node = node
        self.index = index
        self.cancelled = False


class _Pull:
    """One object that is wanted. Written by `Pulls` alone."""

    __slots__ = (
        "again",
        "askers",
        "chunk_bytes",
        "done",
        "failed",
        "flying",
        "introduced",
        "left",
        "oid",
        "origin",
        "priority",
        "progress_at",
        "restarting",
        "restarts",
        "size",
        "sources",
        "spoke",
        "state",
        "todo",
        "version",
    )

    def __init__(self, event: ev.PullAsked) -> None:
        self.oid = event.oid
        self.size = event.size
        self.origin = event.origin
        self.priority = event.priority
        self.state = QUEUED
        #: (process, request) in the order of asking
        self.askers: dict[tuple[bytes, int], None] = {}
        #: who asked while it was ending
        self.again: list[ev.PullAsked] = []
        self.chunk_bytes = chunk_bytes(event.size)
        self.sources: dict[bytes, _Source] = {}  #: the first choice first
        self.flying: dict[int, _Chunk] = {}
        self.failed: tuple[str, str] | None = (
            None  #: of an ending one: kind and reason; None: it is whole, or nobody wants it
        )
        self.restarts = 0
        self.progress_at = 0.0
        self.spoke = False  #: the origin was asked for something
        self.reset()

    def reset(self) -> None:
        """Nothing of it is here."""
        count = max(-(-self.size // self.chunk_bytes), 1)
        self.done = bytearray(count)
        self.left = count
        self.todo = deque(range(count))  #: chunks that are neither here nor on their way
        self.version = 0
        self.introduced = False  #: the origin has answered
        self.restarting = False

    def range_of(self, index: int) -> tuple[int, int]:
        """Offset and length of a chunk."""
        offset = index * self.chunk_bytes
        return offset, min(self.chunk_bytes, self.size - offset)


class Pulls:
    """The receiving side of one node. `capacity_bytes` is that of its store."""

    #: `_pulls` by oid; `_chunks` by number, of all pulls; `_queues` by urgency, oids of QUEUED pulls (and of some that left: skipped);
    #: `_active_bytes` and `_active` are of those in ROOM, PULLING and ENDING.
    def __init__(self, capacity_bytes: int) -> None:
        self._limit_bytes = int(PULL_SHARE * capacity_bytes)
        self._pulls: dict[bytes, _Pull] = {}
        self._chunks: dict[int, _Chunk] = {}
        self._numbers = 0
        self._queues: dict[int, deque[bytes]] = {priority: deque() for priority in ACTIVE_MAX}
        self._active: dict[bytes, _Pull] = {}
        self._active_bytes = 0
        self._ticking = False
        self._now = 0.0
        self._effects: list[ev.PullEffect] = []
        self._pulled = self._pulled_bytes = self._failures = 0

    # ---------------------------------------------------------------- the door and the windows

    def handle(self, event: ev.PullEvent, now: float) -> list[ev.PullEffect]:
        """What follows from an event at time `now` (monotonic seconds), in the order in which it must be done."""
        effects: list[ev.PullEffect] = []
        self._effects = effects
        self._now = now
        _HANDLERS[type(event)](self, event)
        self._admit()
        if self._active and not self._ticking:
            self._ticking = True
            effects.append(ev.Wake(LOOK_S))
        self._effects = []
        return effects

    def part(self, oid: bytes, offset: int, length: int) -> tuple[str, int]:
        """What is here of a part of an object (PART, COMING, NOTHING), and the version of its bytes, 0 while not known."""
        pull = self._pulls.get(oid)
        if pull is None or pull.state != PULLING or offset < 0 or length < 0 or offset + length > pull.size:
            return ev.NOTHING, 0
        first, last = offset // pull.chunk_bytes, max(offset + length - 1, offset) // pull.chunk_bytes
        return (ev.PART if all(pull.done[first : last + 1]) else ev.COMING), pull.version

    def node_of(self, number: int) -> bytes:
        """Whom a chunk, still on its way, was asked of; b"" if it is not."""
        chunk = self._chunks.get(number)
        return b"" if chunk is None else chunk.node

    def statistics(self) -> dict[str, int]:
        """Sizes of the tables, and what was done."""
        return {
            "pulls": len(self._pulls),
            "active": len(self._active),
            "active_bytes": self._active_bytes,
            "chunks": len(self._chunks),
            "pulled": self._pulled,
            "pulled_bytes": self._pulled_bytes,
            "failed": self._failures,
        }

    # ---------------------------------------------------------------- who wants what

    def _on_asked(self, event: ev.PullAsked) -> None:
        pull = self._pulls.get(event.oid)
        if pull is None:
            pull = self._pulls[event.oid] = _Pull(event)
            self._queues[pull.priority].append(pull.oid)
        elif pull.state == ENDING:
            pull.again.append(event)
            return
        elif event.priority < pull.priority:
            pull.priority = event.priority
            if pull.state == QUEUED:
                self._queues[pull.priority].append(pull.oid)
        pull.askers[event.process, event.request] = None

    def _admit(self) -> None:
        """Let pulls begin whose turn it is."""
        for priority, queue in self._queues.items():
            while queue:
                pull = self._pulls.get(queue[0])
                if pull is None or pull.state != QUEUED or pull.priority != priority:
                    queue.popleft()
                    continue
                if not self._may_begin(pull):
                    return
                queue.popleft()
                pull.state = ROOM
                self._active[pull.oid] = pull
                self._active_bytes += pull.size
                self._effects.append(ev.AskRoom(pull.oid, pull.size, pull.origin))

    def _may_begin(self, pull: _Pull) -> bool:
        if not self._active:
            return True
        same = [other for other in self._active.values() if other.priority <= pull.priority]
        return (
            self._active_bytes + pull.size <= self._limit_bytes
            and len(same) < ACTIVE_MAX[pull.priority]
            and not any(other.state == ROOM for other in same)
        )

    def _on_room_made(self, event: ev.RoomMade) -> None:
        pull = self._pulls[event.oid]
        if pull.state == ENDING:  # nobody wants it any more
            self._conclude(pull)
            return
        self._begin(pull)

    def _begin(self, pull: _Pull) -> None:
        pull.state = PULLING
        pull.progress_at = self._now
        pull.sources = {pull.origin: _Source(WINDOW, self._now)}
        self._fill(pull)

    def _on_room_refused(self, event: ev.RoomRefused) -> None:
        pull = self._pulls[event.oid]
        if event.reason and pull.failed is None:
            pull.failed = (event.kind, event.reason)
        self._leave(pull, whole=not event.reason)

    # ---------------------------------------------------------------- chunks

    def _fill(self, pull: _Pull) -> None:
        """Ask the sources for as much as each may have on its way."""
        for node, source in pull.sources.items():
            while pull.todo and source.flying < source.window and source.retry_at <= self._now:
                self._ask(pull, node, source, pull.todo.popleft())

    def _ask(self, pull: _Pull, node: bytes, source: _Source, index: int) -> None:
        self._numbers += 1
        number = self._numbers
        if not source.flying:
            source.spoke_at = self._now
        source.flying += 1
        pull.flying[number] = self._chunks[number] = _Chunk(pull, node, index)
        offset, length = pull.range_of(index)
        at_origin = node == pull.origin
        pull.spoke |= at_origin
        fresh = at_origin and not pull.introduced
        self._effects.append(ev.AskChunk(number, node, pull.oid, pull.version, offset, length, fresh))

    def _take(self, number: int) -> tuple[_Chunk, _Source | None]:
        """A chunk is not on its way any more."""
        chunk = self._chunks.pop(number)
        del chunk.pull.flying[number]
        source = chunk.pull.sources.get(chunk.node)
        if source is not None:
            source.flying -= 1
        return chunk, source

    def _on_arrived(self, event: ev.ChunkArrived) -> None:
        chunk, source = self._take(event.number)
        pull = chunk.pull
        if pull.state == ENDING:
            self._conclude(pull)
            return
        pull.progress_at = self._now
        if chunk.node == pull.origin:
            pull.introduced = True
        if source is not None:
            source.failures = 0
            source.spoke_at = self._now
            if source is next(iter(pull.sources.values())):
                for other in pull.sources.values():
                    if other is not source:
                        other.window = 0
        if not pull.version:
            pull.version = event.version
        if pull.version != event.version:
            self._restart(pull)
            return
        if not pull.done[chunk.index]:
            pull.done[chunk.index] = 1
            pull.left -= 1
            self._effects.append(ev.NotePart(pull.oid, *pull.range_of(chunk.index)))
        if pull.left:
            self._fill(pull)
        else:
            self._end(pull)

    def _missed(self, chunk: _Chunk) -> bool:
        """A chunk did not come. False when its pull ends, and that is seen to."""
        pull = chunk.pull
        if pull.state == ENDING:
            self._conclude(pull)
            return False
        if not pull.done[chunk.index] and all(other.index != chunk.index for other in pull.flying.values()):
            pull.todo.appendleft(chunk.index)
        return True

    def _on_failed(self, event: ev.ChunkFailed) -> None:
        chunk, source = self._take(event.number)
        if self._missed(chunk):
            if source is not None and not chunk.cancelled:
                self._count_failure(chunk.pull, chunk.node, source, ev.FAILED_LOST, event.reason)
            if chunk.pull.state == PULLING:
                self._fill(chunk.pull)

    def _count_failure(self, pull: _Pull, node: bytes, source: _Source, kind: str, reason: str) -> None:
        if self._now >= source.retry_at:  # what broke together counts once
            source.failures += 1
            source.retry_at = self._now + RETRY_S * source.failures
        if source.failures > FAILURES_MAX:
            self._leave_source(pull, node, kind, f"node {node.hex()[:8]} does not send it: {reason}")

    def _leave_source(self, pull: _Pull, node: bytes, kind: str, reason: str) -> None:
        """Nothing more is asked of a source."""
        pull.sources.pop(node, None)
        if not pull.sources:
            self._fail(pull, kind, reason)
        elif not any(source.window for source in pull.sources.values()):
            next(iter(pull.sources.values())).window = WINDOW

    def _on_refused(self, event: ev.ChunkRefused) -> None:
        chunk, source = self._take(event.number)
        if not self._missed(chunk):
            return
        pull, node = chunk.pull, chunk.node
        if source is not None and not chunk.cancelled:
            source.spoke_at = self._now
            if event.kind == ev.REFUSED_CHANGED and node == pull.origin:
                self._restart(pull)
            elif event.kind == ev.REFUSED_BUSY:
                self._count_failure(pull, node, source, ev.FAILED_SLOW, event.reason)
            elif node == pull.origin:
                self._fail(pull, ev.FAILED_LOST, f"node {node.hex()[:8]}, where it lay, says: {event.reason}")
            else:
                self._leave_source(pull, node, ev.FAILED_LOST, event.reason)
        if pull.state == PULLING:
            self._fill(pull)

    def _on_referred(self, event: ev.ChunkReferred) -> None:
        chunk, source = self._take(event.number)
        if not self._missed(chunk):
            return
        pull = chunk.pull
        if source is None or chunk.node != pull.origin:
            self._fill(pull)
            return
        pull.progress_at = self._now
        if not pull.version:
            pull.version = event.version
        if not pull.introduced:
            pull.introduced = True
            source.window = 0
            others = {node: _Source(0, self._now) for node in event.sources if node != pull.origin}
            pull.sources = {**others, **pull.sources}
            next(iter(pull.sources.values())).window = WINDOW
        self._fill(pull)

    # ---------------------------------------------------------------- time

    def _on_ticked(self, event: ev.Ticked) -> None:
        del event
        self._ticking = False
        for pull in list(self._active.values()):
            if pull.state == PULLING:
                self._look(pull)

    def _look(self, pull: _Pull) -> None:
        """Is it going on?"""
        now = self._now
        if now - pull.progress_at > STALL_S:
            nodes = ", ".join(node.hex()[:8] for node in pull.sources)
            self._fail(pull, ev.FAILED_SLOW, f"nothing of it came for {STALL_S:g} s from nodes {nodes}")
            return
        self._fill(pull)
        first, *others = pull.sources.items()
        waits = first[1].flying or first[1].retry_at > now
        if not others or not waits or now - first[1].spoke_at <= PATIENCE_S:
            return
        node, source = min(others, key=lambda pair: pair[1].window)
        source.window = min(source.window + 1, WINDOW)
        self._fill(pull)
        if not pull.todo and source.flying < source.window and source.retry_at <= now:
            twice = {chunk.index for chunk in pull.flying.values() if chunk.node != first[0]}
            index = next(
                (c.index for c in pull.flying.values() if c.index not in twice and not pull.done[c.index]), None
            )
            if index is not None:
                self._ask(pull, node, source, index)

    # ---------------------------------------------------------------- ends

    def _fail(self, pull: _Pull, kind: str, reason: str) -> None:
        pull.failed = (kind, reason)
        self._end(pull)

    def _restart(self, pull: _Pull) -> None:
        """Other bytes have taken the place of those that were here."""
        pull.restarts += 1
        if pull.restarts > RESTARTS_MAX:
            self._fail(pull, ev.FAILED_LOST, "it was made anew again and again while it was pulled")
        else:
            pull.restarting = True
            self._end(pull)

    def _end(self, pull: _Pull) -> None:
        """Ask for nothing more, and conclude when nothing is on its way."""
        pull.state = ENDING
        for number, chunk in pull.flying.items():
            if not chunk.cancelled:
                chunk.cancelled = True
                self._effects.append(ev.CancelChunk(number))
        self._conclude(pull)

    def _conclude(self, pull: _Pull) -> None:
        if pull.flying:
            return
        if pull.restarting and pull.askers:
            pull.reset()
            self._effects.append(ev.DropParts(pull.oid))
            self._begin(pull)
            return
        whole = not pull.left and pull.failed is None
        if whole:
            self._effects.append(ev.SealCopy(pull.oid, pull.version))
        else:
            self._effects.append(ev.GiveUpCopy(pull.oid))
        self._leave(pull, whole)

    def _leave(self, pull: _Pull, whole: bool) -> None:
        """The end of a pull: everybody is told."""
        del self._pulls[pull.oid]
        if self._active.pop(pull.oid, None) is not None:
            self._active_bytes -= pull.size
        if whole:
            self._pulled += 1
            self._pulled_bytes += pull.size
        elif pull.failed is not None:
            self._failures += 1
            if pull.failed[0] == ev.FAILED_LOST:
                self._effects.append(ev.ReportLost(pull.oid, pull.origin, pull.failed[1]))
        for process, request in pull.askers:
            if whole:
                self._effects.append(ev.AnswerPull(process, request, pull.oid))
            elif pull.failed is not None:
                self._effects.append(ev.FailPull(process, request, pull.oid, *pull.failed))
        if pull.spoke:
            self._effects.append(ev.TellPullEnded(pull.origin, pull.oid, whole))
        for event in pull.again:
            self._on_asked(event)

    def _give_up(self, pull: _Pull, failed: tuple[str, str] | None) -> None:
        """End a pull in whatever state it is."""
        if pull.state == ENDING:
            return
        pull.failed = failed
        if pull.state == QUEUED:
            self._leave(pull, whole=False)
        elif pull.state == ROOM:
            pull.state = ENDING  # and concluded when the store has answered
        else:
            self._end(pull)

    def _on_freed(self, event: ev.OriginalsFreed) -> None:
        for oid in event.oids:
            pull = self._pulls.get(oid)
            if pull is not None and pull.origin == event.origin:
                self._give_up(pull, (ev.FAILED_LOST, "it was freed: nobody refers to it any more"))

    def _on_process_gone(self, event: ev.ProcessGone) -> None:
        for pull in list(self._pulls.values()):
            pull.again = [asked for asked in pull.again if asked.process != event.process]
            gone = [asker for asker in pull.askers if asker[0] == event.process]
            for asker in gone:
                del pull.askers[asker]
            if gone and not pull.askers:
                self._give_up(pull, None)

    def _on_node_gone(self, event: ev.NodeGone) -> None:
        reason = f"node {event.node.hex()[:8]}, where it lay, is dead: {event.cause}"
        for pull in list(self._pulls.values()):
            if pull.state == PULLING and event.node in pull.sources:
                self._leave_source(pull, event.node, ev.FAILED_LOST, reason)
                if pull.state == PULLING:
                    self._fill(pull)
            elif pull.state in (QUEUED, ROOM) and pull.origin == event.node:
                self._give_up(pull, (ev.FAILED_LOST, reason))


_HANDLERS: dict[type, Callable[[Pulls, Any], None]] = {
    ev.PullAsked: Pulls._on_asked,
    ev.RoomMade: Pulls._on_room_made,
    ev.RoomRefused: Pulls._on_room_refused,
    ev.ChunkArrived: Pulls._on_arrived,
    ev.ChunkFailed: Pulls._on_failed,
    ev.ChunkRefused: Pulls._on_refused,
    ev.ChunkReferred: Pulls._on_referred,
    ev.OriginalsFreed: Pulls._on_freed,
    ev.ProcessGone: Pulls._on_process_gone,
    ev.NodeGone: Pulls._on_node_gone,
    ev.Ticked: Pulls._on_ticked,
}
