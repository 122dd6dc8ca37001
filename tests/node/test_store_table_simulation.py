"""The store's table in a small world of writers, readers, a disk and late messages, drawn by a seed.

Safety: nobody's memory is reused or punched while it is read; budgets never exceed the pool; a reader always sees the object it asked for.
Liveness: when the world calms down every request has its answer, and when everything is freed nothing is left.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import pytest

from shoal.node import store_events as ev
from shoal.node.store_table import StoreTable
from shoal.protocol.limits import BLOCK_HEADER_BYTES
from shoal.protocol.messages import (
    BudgetReturned,
    FreeBlocks,
    OpenSegment,
    SegmentBudget,
    Stored,
    TrimBudget,
)
from shoal.store.allocator import PAGE_BYTES, RangeAllocator, block_bytes
from shoal.store.segment import first_generation, segment_number

POOL = 64 * 16 * PAGE_BYTES
Place = tuple[int, int]


@dataclass
class Header:
    oid: bytes
    generation: int
    size: int
    state: str = "sealed"
    freed: str = "kept"


@dataclass
class Writer:
    name: bytes
    segment: int = 0
    ranges: RangeAllocator | None = None
    generation_of: dict[int, int] = field(default_factory=dict)
    next_generation: int = 0
    inbox: deque[Any] = field(default_factory=deque)
    outbox: deque[ev.Event] = field(default_factory=deque)
    wanted: tuple[bytes, int] | None = None  #: the put that waits for budget
    refused: int = 0
    dead: bool = False


class World:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.disk_trouble = self.rng.choice([0.0, 0.0, 0.005, 0.1])
        self.table = StoreTable(POOL)
        self.now = 0.0
        self.serial = 0
        self.writers: dict[bytes, Writer] = {}
        self.headers: dict[Place, Header] = {}
        self.listed: set[Place] = set()
        self.pins: dict[Place, int] = {}
        self.extent: dict[Place, tuple[bytes, int]] = {}  #: pinned blocks: their object and bytes
        self.disk: set[tuple[bytes, int]] = set()
        self.later: list[tuple[float, int, ev.Event | ev.Effect]] = []
        self.events: deque[ev.Event] = deque()
        self.owned: dict[bytes, tuple[Writer, Stored, bool]] = {}  #: live objects: owner and writer, first place, shown
        self.asked: set[bytes] = set()
        self.pinned_oids: list[tuple[bytes, Place]] = []
        self.copies: dict[bytes, int] = {}  #: asked for and not freed: their sizes
        self.coming: set[bytes] = set()  #: of them, those without an answer to CopyAsked
        self.kept: set[bytes] = set()  #: they were copies, and are originals
        self.receiving: dict[Place, tuple[bytes, int]] = {}  #: places that bytes from other nodes are written to
        self.count = 0
        self.closed: set[int] = set()

    # -- the daemon

    def feed(self, event: ev.Event) -> None:
        self.events.append(event)
        while self.events:
            for effect in self.table.handle(self.events.popleft(), self.now):
                self.perform(effect)
            assert 0 <= self.table.available_bytes <= POOL

    def after(self, delay: float, what: ev.Event | ev.Effect) -> None:
        self.count += 1
        self.later.append((self.now + delay, self.count, what))

    def perform(self, effect: ev.Effect) -> None:
        place: Place
        match effect:
            case ev.SendToWriter(process, message):
                self.writers[process].inbox.append(message)
            case ev.CreateSegment(process, capacity):
                self.serial += 1
                number = segment_number(self.serial, self.serial)
                self.events.append(ev.SegmentCreated(process, number, PAGE_BYTES, PAGE_BYTES + capacity))
            case ev.CloseSegment(segment):
                assert not any(place[0] == segment for place in self.pins), "closed under a reader"
                self.closed.add(segment)
            case ev.PunchRange(segment, offset, length):
                self.overwrite(segment, offset, length, "punched")
            case ev.ListEvicting(segment, offset):
                self.listed.add((segment, offset))
            case ev.UnlistEvicting(segment, offset):
                self.listed.discard((segment, offset))
            case ev.MarkEvicted(segment, offset):
                place = (segment, offset)
                assert self.headers[place].freed != "taken", "marked a block that its writer has reused"
                self.headers[place].state = "evicted"
                self.listed.discard(place)
            case ev.AwaitGrace() | ev.ScanPins():
                self.after(effect.delay_s, effect)
            case ev.WriteSpill(oid, generation):
                if self.rng.random() < self.disk_trouble:
                    self.after(self.rng.random() * 0.05, ev.SpillFailed(generation, "the disk is full"))
                else:
                    self.disk.add((oid, generation))
                    self.after(self.rng.random() * 0.05, ev.SpillWritten(oid, generation))
            case ev.DeleteSpill(oid, generation):
                self.disk.discard((oid, generation))
            case ev.RestoreObject():
                assert (effect.oid, effect.file_generation) in self.disk
                self.overwrite(
                    effect.segment, effect.offset, block_bytes(effect.size + BLOCK_HEADER_BYTES), "restored over"
                )
                self.headers[effect.segment, effect.offset] = Header(effect.oid, effect.generation, effect.size)
                self.after(self.rng.random() * 0.05, ev.ObjectRestored(effect.generation))
            case ev.ReceiveCopy():
                place, size = (effect.segment, effect.offset), block_bytes(effect.size + BLOCK_HEADER_BYTES)
                self.overwrite(*place, size, "received over")
                self.coming.discard(effect.oid)
                self.receiving[place] = (effect.oid, size)
                self.after(self.rng.random() * 0.1, effect)
            case ev.RefuseCopy(oid):
                self.coming.discard(oid)
                self.copies.pop(oid, None)
            case ev.ReportDropped(oid, origin):
                assert origin == b"origin"
                del self.copies[oid]
            case ev.ReportResident(oid, stored):
                self.asked.discard(oid)
                self.read(stored)
            case ev.ReportAbsent(oid):
                self.asked.discard(oid)
            case ev.Wake(delay):
                self.after(delay, ev.Woken())
            case ev.ReportMoved():
                pass
            case _:
                raise AssertionError(effect)

    def due(self, what: ev.Event | ev.Effect) -> None:
        if isinstance(what, ev.ScanPins):
            self.feed(ev.PinsScanned({place: ["a reader"] for place in self.pins}))
        elif isinstance(what, ev.ReceiveCopy):
            place = (what.segment, what.offset)
            del self.receiving[place]
            if self.rng.random() < 0.2:
                self.copies.pop(what.oid, None)
                self.feed(ev.CopyGivenUp(what.generation))
            else:
                self.headers[place] = Header(what.oid, what.generation, what.size)
                self.feed(ev.CopyArrived(what.generation, 7))
        elif isinstance(what, ev.AwaitGrace):
            place = (what.segment, what.offset)
            header = self.headers.get(place)
            same = header is not None and header.generation == what.generation
            taken = header is None or not same or header.freed == "taken"
            self.feed(
                ev.GraceOver([ev.BlockChecked(what.generation, ["a reader"] if place in self.pins else [], taken)])
            )
        else:
            self.feed(what)  # type: ignore[arg-type]

    # -- memory

    def overwrite(self, segment: int, offset: int, length: int, how: str) -> None:
        """Bytes change: no block that is being read may be among them."""
        for place in self.pins:
            if place[0] == segment:
                size = self.extent[place][1]
                assert place[1] + size <= offset or offset + length <= place[1], f"{how} while read: {place}"
        for (number, start), (oid, size) in self.receiving.items():
            assert number != segment or start + size <= offset or offset + length <= start, f"{how} while {oid!r} comes"
        for place in [place for place in self.headers if place[0] == segment and offset <= place[1] < offset + length]:
            del self.headers[place]

    def read(self, stored: Stored) -> bool:
        place = (stored.segment, stored.offset)
        header = self.headers.get(place)
        stale = (
            place in self.listed or header is None or header.state != "sealed" or header.generation != stored.generation
        )
        if stale:
            return False
        assert header is not None and header.oid == stored.oid
        if self.rng.random() < 0.7:
            self.pins[place] = self.pins.get(place, 0) + 1
            self.extent[place] = (stored.oid, block_bytes(stored.size + BLOCK_HEADER_BYTES))
            self.pinned_oids.append((stored.oid, place))
        return True

    def unpin(self) -> None:
        if self.pinned_oids:
            _, place = self.pinned_oids.pop(self.rng.randrange(len(self.pinned_oids)))
            self.pins[place] -= 1
            if not self.pins[place]:
                del self.pins[place]

    # -- writers

    def put(self, writer: Writer, oid: bytes, size: int) -> None:
        need = block_bytes(size + BLOCK_HEADER_BYTES)
        block = writer.ranges.allocate(need) if writer.ranges is not None else None
        if block is None:
            missing = max(writer.ranges.missing_bytes(need), 1) if writer.ranges is not None else need
            writer.wanted = (oid, size)
            writer.outbox.append(ev.BudgetAsked(writer.name, OpenSegment(1, missing)))
            return
        writer.wanted = None
        generation = writer.next_generation
        writer.next_generation += 1
        writer.generation_of[block.offset] = generation
        self.overwrite(writer.segment, block.offset, block.size, "written over")
        self.headers[writer.segment, block.offset] = Header(oid, generation, size)
        owner = self.rng.choice([each for each in self.writers.values() if not each.dead])
        writer.outbox.append(
            ev.ObjectsSealed(writer.name, [(oid, writer.segment, block.offset, size, generation, owner.name)])
        )
        self.owned[oid] = (owner, Stored(oid, writer.segment, block.offset, size, generation), owner is not writer)

    def free(self, oid: bytes) -> None:
        owner, stored, shown = self.owned.pop(oid)
        place = (stored.segment, stored.offset)
        header = self.headers.get(place)
        if (
            not shown
            and owner.generation_of.get(stored.offset) == stored.generation
            and header is not None
            and header.state == "sealed"
        ):
            if place in self.listed:
                header.freed = "left"
            elif place not in self.pins:
                header.freed, header.state = "taken", "evicted"
                del owner.generation_of[stored.offset]
                assert owner.ranges is not None
                owner.ranges.free(stored.offset)
        owner.outbox.append(ev.ObjectsFreed([(oid, False)]))

    def free_copy(self, oid: bytes) -> None:
        del self.copies[oid]
        self.feed(ev.CopiesFreed([oid], b"another"))
        self.feed(ev.CopiesFreed([oid], b"origin"))

    def keep_copy(self, oid: bytes) -> None:
        self.feed(ev.CopyKept(oid, b"somebody"))
        row = self.table.row_of(oid)
        if row is not None and not row.copy_of:
            del self.copies[oid]
            self.kept.add(oid)
            self.feed(ev.CopiesFreed([oid], b"origin"))
            assert self.table.row_of(oid) is row, "it does not end with what it was a copy of"

    def deliver(self, writer: Writer) -> None:
        if writer.outbox and self.rng.random() < 0.7:
            self.handle_in_daemon(writer.outbox.popleft())
        if not writer.inbox or writer.dead:
            return
        message = writer.inbox.popleft()
        if isinstance(message, SegmentBudget):
            if message.granted and writer.ranges is None:
                writer.segment = message.segment
                writer.next_generation = first_generation(message.segment)
                writer.ranges = RangeAllocator(PAGE_BYTES, message.capacity)
            if message.granted:
                assert writer.ranges is not None
                writer.ranges.budget_bytes += message.granted
            else:
                assert message.reason
                writer.refused += 1
            wanted, writer.wanted = writer.wanted, None
            if message.granted and wanted is not None:
                self.put(writer, *wanted)
        elif isinstance(message, FreeBlocks):
            assert writer.ranges is not None
            for offset, generation, punched in message.blocks:
                if writer.generation_of.get(offset) == generation:
                    del writer.generation_of[offset]
                    if punched:
                        writer.ranges.free_punched(offset)
                    else:
                        writer.ranges.free(offset)
        elif isinstance(message, TrimBudget):
            assert writer.ranges is not None
            returned, ranges = writer.ranges.trim(message.want)
            for start, length in ranges:
                self.overwrite(writer.segment, start, length, "trimmed")
            writer.outbox.append(ev.BudgetGivenBack(writer.name, BudgetReturned(writer.segment, returned)))

    def handle_in_daemon(self, event: ev.Event) -> None:
        if isinstance(event, ev.ObjectsFreed):
            event = ev.ObjectsFreed([(oid, self.is_taken(oid)) for oid, _ in event.items])
        self.feed(event)

    def is_taken(self, oid: bytes) -> bool:
        row = self.table.row_of(oid)
        if (
            row is None
            or row.state not in ("resident", "writing", "marked")
            or not self.table.is_written_by_live_writer(row.segment)
        ):
            return False
        header = self.headers.get((row.segment, row.offset))
        return header is None or header.generation != row.generation or header.freed == "taken"

    def kill(self, writer: Writer) -> None:
        writer.dead = True
        while writer.outbox:
            self.handle_in_daemon(writer.outbox.popleft())
        taken = []
        for row in self.table.blocks_of(writer.name):
            header = self.headers.get((row.segment, row.offset))
            if row.state in ("resident", "writing", "marked") and (
                header is None or header.generation != row.generation or header.freed == "taken"
            ):
                taken.append(row.generation)
        self.feed(ev.WriterDied(writer.name, taken))
        for oid in [oid for oid, (owner, _, _) in self.owned.items() if owner is writer]:
            del self.owned[oid]
            self.handle_in_daemon(ev.ObjectsFreed([(oid, False)]))

    # -- the run

    def advance(self, seconds: float) -> None:
        until = self.now + seconds
        while self.later and min(self.later)[0] <= until:
            entry = min(self.later, key=lambda each: each[:2])
            self.later.remove(entry)
            self.now = max(self.now, entry[0])
            self.due(entry[2])
        self.now = until

    def step(self) -> None:
        rng = self.rng
        alive = [writer for writer in self.writers.values() if not writer.dead]
        if not alive or (len(self.writers) < 12 and rng.random() < 0.02):
            name = b"writer%d" % len(self.writers)
            self.writers[name] = Writer(name)
            return
        writer = rng.choice(alive)
        what = rng.random()
        if what < 0.3 and writer.wanted is None:
            self.count += 1
            size = rng.choice([5_000, 50_000, 100_000, 400_000, 900_000])
            self.put(writer, self.count.to_bytes(20, "big"), size + rng.randrange(64))
        elif what < 0.45 and self.owned:
            self.free(rng.choice(sorted(self.owned)))
        elif what < 0.52 and self.copies:
            oid = rng.choice(sorted(self.copies))
            row = self.table.row_of(oid)
            if row is not None and row.state == "resident":
                self.read(row.stored)
        elif what < 0.6 and self.owned:
            oid = rng.choice(sorted(self.owned))
            if not self.read(self.owned[oid][1]) and self.table.row_of(oid) is not None:
                self.asked.add(oid)
                self.feed(ev.ResidencyAsked(oid))
        elif what < 0.7:
            self.unpin()
        elif what < 0.74:
            self.count += 1
            oid = b"copy" + self.count.to_bytes(16, "big")
            self.copies[oid] = size = rng.choice([5_000, 400_000, 900_000])
            self.coming.add(oid)
            self.feed(ev.CopyAsked(oid, size, b"origin"))
        elif what < 0.75 and self.copies:
            self.free_copy(rng.choice(sorted(self.copies)))
        elif what < 0.76 and self.copies:
            self.keep_copy(rng.choice(sorted(self.copies)))
        elif what < 0.77 and self.kept:
            oid = rng.choice(sorted(self.kept))
            self.asked.add(oid)
            self.feed(ev.ResidencyAsked(oid))
        elif what < 0.775 and len(alive) > 1:
            self.kill(writer)
        for each in list(self.writers.values()):
            self.deliver(each)
        self.advance(rng.random() * 0.01)

    def settle(self, seconds: float = 40.0) -> None:
        for _ in range(int(seconds / 0.02)):
            while self.pinned_oids:
                self.unpin()
            for writer in list(self.writers.values()):
                self.deliver(writer)
            self.advance(0.02)


@pytest.mark.parametrize("seed", range(16))
def test_no_memory_is_reused_while_it_is_read_and_everybody_is_answered(seed: int) -> None:
    world = World(seed)
    for _ in range(500):
        world.step()
    world.settle()
    assert not world.asked, "somebody still waits for an object"
    assert all(writer.wanted is None or writer.dead for writer in world.writers.values()), (
        "a writer still waits for room"
    )
    assert not world.coming, "a copy still waits for room"
    for oid in sorted(world.copies):
        row = world.table.row_of(oid)
        assert row is not None and row.state == "resident" and row.version == 7
        world.free_copy(oid)
    for oid in sorted(world.kept):
        row = world.table.row_of(oid)
        assert row is not None or world.disk_trouble, "only a bad disk loses one"
        world.feed(ev.ObjectsFreed([(oid, False)]))
    for oid in sorted(world.owned):
        world.free(oid)
    world.settle(5.0)
    statistics = world.table.statistics()
    assert statistics.objects == 0 and statistics.spilled_bytes == 0 and statistics.resident_bytes == 0
    assert not world.disk, "files are left behind"
    assert not world.listed
