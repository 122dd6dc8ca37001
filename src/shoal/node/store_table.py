"""The memory of a node's store: who may use how much, what lies where, what goes to disk and what comes back.

Purpose: one pure machine, `handle(event, now) -> list[Effect]`, that divides the pool among the writers, knows every sealed object, and spills the
least recently used when somebody needs room.

An object (a row is kept by its generation):

                 room is needed           written              grace over, nobody reads it
    RESIDENT ------------------> WRITING ---------> MARKED ------------------------------> SPILLED
       ^  ^        somebody asked for it |             | somebody reads it                    | asked for, and room found
       |  +------------------------------+             |                                      v
       +-----------------------------------------------+<------------------------------- RESTORING

    freed: RESIDENT, WRITING, MARKED -> DYING (until nobody reads it) -> gone;  SPILLED, RESTORING -> gone

A copy of another node's object is never written to disk: it makes room for others, and is pulled again.

    asked for -> COMING -- room found --> RECEIVING -- whole --> RESIDENT -- room is needed --> MARKED -- nobody reads it --> gone

Bytes: the sum of all segments' budgets is at most the capacity. A writer's budget goes down when it gives free pages back (TrimBudget) or
when the daemon punches its blocks; a dead writer's segment is the daemon's, with the pages of its live blocks as budget; restored objects
and copies lie in the daemon's own segment, whose places this machine allocates itself.

Room is given in the order of asking. For the first in the queue: the daemon's own free pages, then the free pages of other writers, who have
TRIM_WAIT_S to answer, then spilling. It is refused when it can never be had, when the disk refuses, and when nothing has moved
for FULL_WAIT_S because all that is left is being read.

How to extend: an event gets a row in `_HANDLERS`.

What it does not do: touch memory, disk or pins (`io.store_shell`), count references (`object_directory`), or move objects between nodes (`pulls`).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

from shoal.node import store_events as ev
from shoal.node.store_rows import (
    COMING,
    DYING,
    MARKED,
    RECEIVING,
    RESIDENT,
    RESTORING,
    SPILLED,
    WRITING,
    ObjectRow,
    SegmentRow,
    SpaceRequest,
    StoreTableStatistics,
    pinned_by_reader,
    step_bytes,
    store_statistics,
    too_large,
    why_full,
)
from shoal.node.store_victims import choose_victims
from shoal.protocol.limits import BLOCK_ALIGN_BYTES, EVICTION_GRACE_S
from shoal.protocol.messages import FreeBlocks, SegmentBudget, TrimBudget
from shoal.store.allocator import RangeAllocator, page_ceil, page_floor, punchable
from shoal.store.client import DISK_REASON
from shoal.store.segment import first_generation

SEGMENT_CAPACITY_FACTOR = 4  #: addresses of a segment per byte of the pool, against fragmentation of addresses
_ABSENT = "the object store of this node does not have it: it was freed, or its ref is of a session that has ended"
TRIM_WAIT_S = 0.05
TRIM_AGAIN_S = 0.2  #: a writer that had less to give than thought is left alone so long
TRIM_BYTES_MIN = 256 << 10  #: a writer with less free is not asked
RECENT_S = 0.1  #: what was just asked for is not spilled before its reader could pin it
RESCAN_S = 0.05
FULL_WAIT_S = 3.0  #: patience when what is being read fills the pool
HELD_WAIT_S = 10.0  #: patience when memory is held by processes that do not answer
DYING_DELAY_S_MAX = 0.5
DISK_RETRY_S = 5.0
EARLY_FREE_S = 5.0  #: how long an id is remembered that was freed before it was sealed


class StoreTable:
    """The machine. `capacity_bytes` is the pool; with `spill_allowed` False nothing goes to disk."""

    #: `_rows` by generation; `_by_oid` oid -> generation; `_lru` the RESIDENT rows, least recently used first; `_own` the daemon's segment
    #: for restored objects and copies with its allocator; `_freed_early` oid -> when, of objects freed before their Sealed was read;
    #: `_trims` segment -> (bytes asked back, until when we count on them), `_trim_again` segment -> when it may be asked again.
    def __init__(self, capacity_bytes: int, spill_allowed: bool = True) -> None:
        self.capacity_bytes = page_floor(capacity_bytes)
        self._spill_allowed = spill_allowed
        self._rows: dict[int, ObjectRow] = {}
        self._by_oid: dict[bytes, int] = {}
        self._lru: OrderedDict[int, None] = OrderedDict()
        self._segments: dict[int, SegmentRow] = {}
        self._segment_of: dict[bytes, int] = {}
        self._creating: set[bytes] = set()
        self._own: SegmentRow | None = None
        self._own_ranges: RangeAllocator | None = None
        self._own_generation = 0
        self._comings = 0  #: rows made without a place, named by negative numbers
        self._waiting: deque[SpaceRequest] = deque()
        self._spilling_bytes = 0
        self._trims: dict[int, tuple[int, float]] = {}
        self._trim_again: dict[int, float] = {}
        self._scanning = False
        self._waking = False
        self._stuck_since: float | None = None
        self._disk_error = ""
        self._disk_retry_at = 0.0
        self._freed_early: OrderedDict[bytes, float] = OrderedDict()
        self._freed_blocks: dict[int, list[tuple[int, int, bool]]] = {}
        self._last_pins: dict[tuple[int, int], list[str]] = {}
        self._spills = 0
        self._restores = 0
        self._now = 0.0
        self._effects: list[ev.Effect] = []

    # ---------------------------------------------------------------- the door and the windows

    def handle(self, event: ev.Event, now: float) -> list[ev.Effect]:
        """What follows from an event at time `now` (monotonic seconds), in the order in which it must be done."""
        effects: list[ev.Effect] = []
        self._effects = effects
        self._now = now
        if not self._waiting:
            self._stuck_since = None  # whoever asks next has a patience of its own
        self._HANDLERS[type(event)](self, event)
        # After the punching and before the grants: a writer must know of budget it lost before it gets more.
        for number, blocks in self._freed_blocks.items():
            segment = self._segments.get(number)
            if segment is not None and segment.writer:
                effects.append(ev.SendToWriter(segment.writer, FreeBlocks(number, blocks)))
        self._freed_blocks = {}
        if self._waiting:
            self._serve_waiting()
        self._effects = []
        return effects

    def row_of(self, oid: bytes) -> ObjectRow | None:
        """The row of an object, to be read only."""
        generation = self._by_oid.get(oid)
        return None if generation is None else self._rows[generation]

    def blocks_of(self, process: bytes) -> list[ObjectRow]:
        """The objects in the segment that a process writes, to be read only."""
        segment = self._segments.get(self._segment_of.get(process, 0))
        return [] if segment is None else [self._rows[generation] for generation in segment.live.values()]

    def rows(self) -> list[ObjectRow]:
        """All objects, to be read only."""
        return list(self._rows.values())

    def is_written_by_live_writer(self, segment: int) -> bool:
        """Whether the segment's writer lives, so that it may be reusing freed blocks by itself."""
        row = self._segments.get(segment)
        return row is not None and row.writer is not None

    @property
    def available_bytes(self) -> int:
        """The part of the pool that is nobody's budget."""
        return self.capacity_bytes - sum(segment.budget for segment in self._segments.values())

    @property
    def resident_bytes(self) -> int:
        """What lies in memory."""
        return sum(segment.live_bytes for segment in self._segments.values())

    def statistics(self) -> StoreTableStatistics:
        """What there is now; walks all objects."""
        return store_statistics(
            self._rows.values(),
            capacity_bytes=self.capacity_bytes,
            budget_bytes=self.capacity_bytes - self.available_bytes,
            resident_bytes=self.resident_bytes,
            spills=self._spills,
            restores=self._restores,
            segments=len(self._segments),
            waiting=len(self._waiting),
        )

    # ---------------------------------------------------------------- writers and budget

    def _on_budget_asked(self, event: ev.BudgetAsked) -> None:
        self._waiting.append(SpaceRequest(page_ceil(max(event.message.need, 1)), event.process, event.message.request))

    def _on_segment_created(self, event: ev.SegmentCreated) -> None:
        self._creating.discard(event.process)
        if event.segment == 0:
            for waiting in [waiting for waiting in self._waiting if waiting.process == event.process]:
                self._waiting.remove(waiting)
                self._refuse(waiting, f"no segment could be made: {event.reason}")
            return
        segment = SegmentRow(event.segment, event.process or None, event.start, event.end)
        self._segments[event.segment] = segment
        if event.process:
            self._segment_of[event.process] = event.segment
        else:
            self._own = segment
            self._own_ranges = RangeAllocator(event.start, event.end)
            self._own_generation = first_generation(event.segment)

    def _on_budget_given_back(self, event: ev.BudgetGivenBack) -> None:
        segment = self._segments.get(event.message.segment)
        if segment is not None and segment.writer == event.process:
            returned = max(min(event.message.returned, segment.budget), 0)
            segment.budget -= returned
            want, _ = self._trims.pop(segment.number, (0, 0.0))
            if returned < want:
                self._trim_again[segment.number] = self._now + TRIM_AGAIN_S

    def _on_writer_died(self, event: ev.WriterDied) -> None:
        self._waiting = deque(waiting for waiting in self._waiting if waiting.process != event.process)
        self._creating.discard(event.process)
        segment = self._segments.get(self._segment_of.pop(event.process, 0))
        if segment is None:
            return
        self._trims.pop(segment.number, None)
        self._trim_again.pop(segment.number, None)
        for generation in event.taken:
            row = self._rows.get(generation)
            if row is not None and row.segment == segment.number:
                self._forget_taken(row)
        segment.writer = None
        at = segment.start
        covered = 0
        for offset in sorted(segment.live):
            row = self._rows[segment.live[offset]]
            self._punch(segment.number, at, offset - at)
            at = max(at, offset + row.bytes)
            covered += row.outward
        self._punch(segment.number, at, segment.end - at)
        segment.budget = min(segment.budget, covered)
        self._close_if_empty(segment)

    def _punch(self, segment: int, start: int, size: int) -> None:
        offset, length = punchable(start, max(size, 0))
        if length:
            self._effects.append(ev.PunchRange(segment, offset, length))

    def _close_if_empty(self, segment: SegmentRow) -> None:
        if segment.writer is None and segment is not self._own and not segment.live:
            del self._segments[segment.number]
            self._effects.append(ev.CloseSegment(segment.number))

    # ---------------------------------------------------------------- objects come and go

    def _on_objects_sealed(self, event: ev.ObjectsSealed) -> None:
        for oid, number, offset, size, generation, owner in event.items:
            segment = self._segments.get(number)
            if segment is None or segment.writer != event.process or generation in self._rows:
                continue
            if offset < segment.start or offset % BLOCK_ALIGN_BYTES or size < 0 or offset + size > segment.end:
                continue
            # A block at the same place: its writer has freed it, and says so in a frame still to be read.
            former = segment.live.get(offset)
            if former is not None:
                self._forget_taken(self._rows[former])
            older = self._by_oid.get(oid)
            if older is not None:
                self._replace(self._rows[older])
            row = ObjectRow(oid, number, offset, size, generation, owner, writer=event.process, version=generation)
            self._rows[generation] = row
            self._by_oid[oid] = generation
            self._lru[generation] = None
            segment.live[offset] = generation
            segment.live_bytes += row.bytes
            # Who seals for itself frees what it has sealed: what was freed before had another owner (an actor's former life).
            if self._freed_early.pop(oid, float("-inf")) >= self._now - EARLY_FREE_S and owner != event.process:
                self._free(row, taken=False)

    def _replace(self, row: ObjectRow) -> None:
        """The same object was made once more (a retry): the older copy goes. Its own writer may be freeing it: then it is left alone."""
        segment = self._segments.get(row.segment)
        del self._by_oid[row.oid]
        if segment is None or segment.writer is None or segment.writer != row.owner:
            self._free(row, taken=False)

    def _on_objects_freed(self, event: ev.ObjectsFreed) -> None:
        for oid, taken in event.items:
            row = self.row_of(oid)
            writer_lives = row is not None and row.writer in self._segment_of  # also of what lies on disk
            if row is not None:
                self._free(row, taken)
            # The owner may mean what a retry has sealed, in a frame that is still to be read.
            if not (writer_lives or event.of_dead):
                self._freed_early[oid] = self._now
        while self._freed_early and next(iter(self._freed_early.values())) < self._now - EARLY_FREE_S:
            self._freed_early.popitem(last=False)

    def _free(self, row: ObjectRow, taken: bool) -> None:
        if row.asked and row.state != DYING:
            row.asked = False
            self._effects.append(ev.ReportAbsent(row.oid, True, "it was freed: nobody refers to it any more"))
        if row.state == SPILLED:
            self._delete_file(row)
            self._drop(row)
        elif row.state in (RESTORING, RECEIVING):
            row.freed = True
        elif row.state == COMING:
            self._effects.append(ev.RefuseCopy(row.oid, "it was freed: nobody refers to it any more"))
            self._drop(row)
        elif row.state == DYING:
            pass
        elif taken and self.is_written_by_live_writer(row.segment):
            self._forget_taken(row)
        elif row.state == WRITING:
            row.freed = True
        else:
            self._start_dying(row)

    def _start_dying(self, row: ObjectRow) -> None:
        """The block is the daemon's now; it is given back when nobody reads it."""
        was_marked = row.state == MARKED
        self._leave_eviction(row)
        row.state = DYING
        row.delay_s = EVICTION_GRACE_S
        self._lru.pop(row.generation, None)
        if self._by_oid.get(row.oid) == row.generation:
            del self._by_oid[row.oid]
        self._effects.append(ev.MarkEvicted(row.segment, row.offset))
        if not was_marked:  # else its grace is running
            self._await_grace(row, EVICTION_GRACE_S)

    def _await_grace(self, row: ObjectRow, delay_s: float) -> None:
        self._effects.append(ev.AwaitGrace(row.generation, row.oid, row.segment, row.offset, row.size, delay_s))

    def _forget_taken(self, row: ObjectRow) -> None:
        """The writer has reused the block: nothing of it is ours."""
        if row.state == MARKED:
            self._effects.append(ev.UnlistEvicting(row.segment, row.offset))
        if row.state != WRITING:  # SpillWritten removes the file otherwise
            self._delete_file(row)
        self._leave_eviction(row)
        self._leave_segment(row)
        self._drop(row)

    def _leave_eviction(self, row: ObjectRow) -> None:
        if row.state in (WRITING, MARKED):
            self._spilling_bytes -= row.gain
            segment = self._segments.get(row.segment)
            if segment is not None:
                segment.evicting -= 1

    def _leave_segment(self, row: ObjectRow) -> SegmentRow:
        segment = self._segments[row.segment]
        assert segment.live.pop(row.offset) == row.generation, f"two objects at {row.segment}:{row.offset}"
        segment.live_bytes -= row.bytes
        return segment

    def _delete_file(self, row: ObjectRow) -> None:
        if row.file_generation:
            self._effects.append(ev.DeleteSpill(row.oid, row.file_generation))
            row.file_generation = 0

    def _drop(self, row: ObjectRow) -> None:
        self._lru.pop(row.generation, None)
        del self._rows[row.generation]
        if self._by_oid.get(row.oid) == row.generation:
            del self._by_oid[row.oid]

    # ---------------------------------------------------------------- reading

    def _on_object_used(self, event: ev.ObjectUsed) -> None:
        row = self.row_of(event.oid)
        if row is not None:
            self._touch(row)

    def _touch(self, row: ObjectRow) -> None:
        row.used_at = self._now
        if row.generation in self._lru:
            self._lru.move_to_end(row.generation)

    def _on_residency_asked(self, event: ev.ResidencyAsked) -> None:
        row = self.row_of(event.oid)
        if row is None:
            self._effects.append(ev.ReportAbsent(event.oid, True, _ABSENT))
            return
        self._touch(row)
        if row.state in (RESIDENT, WRITING):
            row.asked = row.state == WRITING  # then it is not taken away once written
            self._effects.append(ev.ReportResident(row.oid, row.stored))
        else:
            if row.state == SPILLED and not row.asked:
                self._waiting.append(SpaceRequest(page_ceil(row.bytes), generation=row.generation))
            row.asked = True

    def _settle(self, row: ObjectRow) -> None:
        """The object is resident and stays so for now."""
        row.state = RESIDENT
        self._lru[row.generation] = None
        if row.asked:
            row.asked = False
            row.used_at = self._now
            self._effects.append(ev.ReportResident(row.oid, row.stored))

    # ---------------------------------------------------------------- spilling

    def _on_pins_scanned(self, event: ev.PinsScanned) -> None:
        self._scanning = False
        self._last_pins = event.pins
        if not self._waiting:
            return
        head = self._waiting[0]
        deficit = self._deficit(head)
        stuck_s = 0.0 if self._stuck_since is None else self._now - self._stuck_since
        spare_after = self._now - RECENT_S if stuck_s < 2 * RECENT_S else self._now + 1
        rows = [self._rows[generation] for generation in self._lru] if deficit > 0 else []
        disk_refuses = self._now < self._disk_retry_at
        for row in choose_victims(
            rows, self._segments, event.pins, deficit, self._spill_allowed, disk_refuses, spare_after
        ):
            self._start_spill(row)
        if self._spilling_bytes or self._expected_trims():
            self._stuck_since = None
        elif deficit > 0:
            self._still_stuck(head)

    def _start_spill(self, row: ObjectRow) -> None:
        del self._lru[row.generation]
        self._segments[row.segment].evicting += 1
        self._spilling_bytes += row.gain
        if row.file_generation or row.copy_of:
            self._mark(row)
        else:
            row.state = WRITING
            self._effects.append(ev.WriteSpill(row.oid, row.generation, row.segment, row.offset, row.size))

    def _mark(self, row: ObjectRow) -> None:
        row.state = MARKED
        self._effects.append(ev.ListEvicting(row.segment, row.offset))
        self._await_grace(row, EVICTION_GRACE_S)

    def _on_spill_written(self, event: ev.SpillWritten) -> None:
        row = self._rows.get(event.generation)
        if row is None or row.state != WRITING:
            self._effects.append(ev.DeleteSpill(event.oid, event.generation))
            return
        self._disk_error = ""
        row.file_generation = event.generation
        if row.freed:
            self._start_dying(row)
        elif row.asked:
            row.asked = False
            self._leave_eviction(row)
            self._settle(row)
        else:
            self._mark(row)

    def _on_spill_failed(self, event: ev.SpillFailed) -> None:
        self._disk_error = event.reason
        self._disk_retry_at = self._now + DISK_RETRY_S
        row = self._rows.get(event.generation)
        if row is None or row.state != WRITING:
            return
        if row.freed:
            self._start_dying(row)
            return
        row.asked = False
        self._leave_eviction(row)
        self._settle(row)

    def _on_grace_over(self, event: ev.GraceOver) -> None:
        for block in event.blocks:
            row = self._rows.get(block.generation)
            if row is None:
                continue
            if row.state == DYING:
                self._check_dying(row, block)
            elif row.state == MARKED:
                self._check_marked(row, block)

    def _check_dying(self, row: ObjectRow, block: ev.BlockChecked) -> None:
        if block.readers:
            row.delay_s = min(2 * row.delay_s, DYING_DELAY_S_MAX)
            self._await_grace(row, row.delay_s)
            return
        segment = self._leave_segment(row)
        if segment.writer is not None:
            self._freed_blocks.setdefault(segment.number, []).append((row.offset, row.generation, False))
        elif segment is self._own:
            assert self._own_ranges is not None
            self._own_ranges.free(row.offset)
        else:
            self._punch(segment.number, row.offset, row.bytes)
            segment.budget = max(segment.budget - row.outward, 0)
            self._close_if_empty(segment)
        self._delete_file(row)
        self._drop(row)

    def _check_marked(self, row: ObjectRow, block: ev.BlockChecked) -> None:
        segment = self._segments[row.segment]
        if segment.writer is not None and block.taken:
            self._forget_taken(row)
            return
        if segment.writer is not None and block.undecided:
            self._await_grace(row, EVICTION_GRACE_S)
            return
        if block.readers or (row.copy_of and row.asked):
            self._unmark(row)
        else:
            self._evict(row)

    def _unmark(self, row: ObjectRow) -> None:
        self._effects.append(ev.UnlistEvicting(row.segment, row.offset))
        self._leave_eviction(row)
        self._settle(row)

    def _evict(self, row: ObjectRow) -> None:
        """It is on disk, or a copy, and nobody reads it: its pages go."""
        self._leave_eviction(row)
        segment = self._leave_segment(row)
        start, length = punchable(row.offset, row.bytes)
        self._effects.append(ev.MarkEvicted(row.segment, row.offset))
        self._effects.append(ev.PunchRange(row.segment, start, length))
        if segment.writer is not None:
            segment.budget -= length
            self._freed_blocks.setdefault(segment.number, []).append((row.offset, row.generation, True))
        elif segment is self._own:
            assert self._own_ranges is not None
            self._own_ranges.free_punched(row.offset)
            segment.budget = self._own_ranges.budget_bytes
        else:
            segment.budget = max(segment.budget - row.outward, 0)
            self._close_if_empty(segment)
        if row.copy_of:
            self._drop(row)
            self._effects.append(ev.ReportDropped(row.oid, row.copy_of))
            return
        row.state = SPILLED
        row.segment = row.offset = 0
        self._spills += 1
        self._effects.append(ev.ReportMoved(row.oid, None))
        if row.asked:
            self._waiting.append(SpaceRequest(page_ceil(row.bytes), generation=row.generation))

    # ---------------------------------------------------------------- restoring, and copies

    def _on_copy_asked(self, event: ev.CopyAsked) -> None:
        if self.row_of(event.oid) is not None:
            self._effects.append(ev.RefuseCopy(event.oid, ""))
            return
        self._comings += 1
        row = ObjectRow(event.oid, 0, 0, event.size, -self._comings, b"", COMING, copy_of=event.origin)
        self._rows[row.generation] = row
        self._by_oid[row.oid] = row.generation
        self._waiting.append(SpaceRequest(page_ceil(row.bytes), generation=row.generation))

    def _on_copy_arrived(self, event: ev.CopyArrived) -> None:
        row = self._rows[event.generation]
        row.version = event.version
        if row.freed:
            self._start_dying(row)
            return
        row.used_at = self._now
        self._settle(row)

    def _on_copy_given_up(self, event: ev.CopyGivenUp) -> None:
        row = self._rows[event.generation]
        assert self._own_ranges is not None and row.state == RECEIVING, f"given up unasked: {event}"
        self._leave_segment(row)
        self._own_ranges.free(row.offset)
        self._drop(row)
        if row.asked:
            self._effects.append(ev.ReportAbsent(row.oid, False, "its transfer was given up"))

    def _on_copy_kept(self, event: ev.CopyKept) -> None:
        row = self.row_of(event.oid)
        if row is None or not row.copy_of or row.state not in (RESIDENT, MARKED):
            return
        row.copy_of, row.owner = b"", event.owner
        if row.state == MARKED:  # it was about to make room: it may not go without being written to disk
            self._unmark(row)

    def _on_copies_freed(self, event: ev.CopiesFreed) -> None:
        oids = [row.oid for row in self._rows.values()] if event.oids is None else event.oids
        for row in map(self.row_of, oids):
            if row is not None and row.copy_of == event.origin:
                self._free(row, taken=False)

    def _start_restore(self, head: SpaceRequest, row: ObjectRow) -> bool:
        """Find a place in the daemon's segment, for what is on disk or comes from another node; False when there is none yet."""
        ranges = self._own_ranges
        if ranges is None or self._own is None:
            self._create_segment(b"")
            return False
        for _ in range(2):
            missing = ranges.missing_bytes(row.bytes)
            if missing > self.available_bytes:
                return False
            ranges.budget_bytes += missing
            self._own.budget = ranges.budget_bytes
            block = ranges.allocate(row.bytes)
            if block is not None:
                break
            self._trim_own(ranges.free_warm_bytes)  # enough bytes, but not in one piece: free pages that are cold join
        else:
            self._refuse(head, "its memory is in pieces too small for this object")
            return True
        self._stuck_since = None
        file_generation = row.file_generation
        del self._rows[row.generation]
        row.generation = self._own_generation
        self._own_generation += 1
        comes = row.state == COMING
        row.segment, row.offset, row.state = self._own.number, block.offset, RECEIVING if comes else RESTORING
        self._rows[row.generation] = row
        self._by_oid[row.oid] = row.generation
        self._own.live[row.offset] = row.generation
        self._own.live_bytes += row.bytes
        place = (row.generation, row.segment, row.offset, row.size, block.fresh_start, block.fresh_bytes)
        if comes:
            self._effects.append(ev.ReceiveCopy(row.oid, *place))
        else:
            self._effects.append(ev.RestoreObject(row.oid, file_generation, *place))
        return True

    def _on_object_restored(self, event: ev.ObjectRestored) -> None:
        row = self._rows.get(event.generation)
        assert row is not None and row.state == RESTORING, f"restored unasked: {event}"
        self._restores += 1
        if row.freed:
            self._start_dying(row)
            return
        self._effects.append(ev.ReportMoved(row.oid, row.stored))
        row.asked = True
        self._settle(row)

    def _on_restore_failed(self, event: ev.RestoreFailed) -> None:
        row = self._rows.get(event.generation)
        assert row is not None and row.state == RESTORING and self._own_ranges is not None
        self._leave_segment(row)
        self._own_ranges.free(row.offset)
        row.segment = row.offset = 0
        row.state = SPILLED
        row.asked = False
        self._effects.append(ev.ReportAbsent(row.oid, event.lost, event.reason, row.owner))
        if event.lost or row.freed:
            self._delete_file(row)
            self._drop(row)

    # ---------------------------------------------------------------- room

    def _serve_waiting(self) -> None:
        while self._waiting:
            head = self._waiting[0]
            if head.generation:
                row = self._rows.get(head.generation)
                if row is None or row.state not in (SPILLED, COMING) or self._start_restore(head, row):
                    self._waiting.popleft()
                    continue
                if self._creating:
                    return
            elif head.process not in self._segment_of:
                self._create_segment(head.process)
                return
            elif self.available_bytes >= head.need:
                self._waiting.popleft()
                self._grant(head)
                continue
            if head.need > self.capacity_bytes:
                self._waiting.popleft()
                self._refuse(head, too_large(self.capacity_bytes))
                continue
            if not self._reclaim(head):
                return

    def _create_segment(self, process: bytes) -> None:
        if process not in self._creating:
            self._creating.add(process)
            self._effects.append(ev.CreateSegment(process, SEGMENT_CAPACITY_FACTOR * self.capacity_bytes))

    def _grant(self, head: SpaceRequest) -> None:
        segment = self._segments[self._segment_of[head.process]]
        granted = min(max(head.need, step_bytes(self.capacity_bytes)), page_floor(self.available_bytes))
        segment.budget += granted
        self._stuck_since = None
        self._tell_budget(head, segment.number, segment.end, granted)

    def _deficit(self, head: SpaceRequest) -> int:
        """Bytes that `head` lacks and that are not yet on their way."""
        need = head.need
        if head.generation and self._own_ranges is not None:
            need = self._own_ranges.missing_bytes(need)
        if need > 0 and self._spilling_bytes == 0 and not self._expected_trims():
            need = min(
                max(need, step_bytes(self.capacity_bytes)), self.capacity_bytes
            )  # a little more, since it takes a grace each time
        return need - self.available_bytes - self._spilling_bytes - self._expected_trims()

    def _expected_trims(self) -> int:
        return sum(want for want, until in self._trims.values() if until > self._now)

    def _reclaim(self, head: SpaceRequest) -> bool:
        """Make room for the first in the queue. True when there is more at once."""
        deficit = self._deficit(head)
        if deficit <= 0:
            return False
        if self._trim_own(deficit):
            return True
        asked = self._ask_trims(head, deficit)
        if deficit > asked and not self._scanning:
            self._scanning = True
            self._effects.append(ev.ScanPins(RESCAN_S if head.scans else 0.0))
            head.scans += 1
        return False

    def _trim_own(self, want: int) -> int:
        """Give free pages of the daemon's own segment back to the pool; how many bytes."""
        if self._own_ranges is None or self._own is None:
            return 0
        returned, ranges = self._own_ranges.trim(want)
        self._own.budget = self._own_ranges.budget_bytes
        for start, length in ranges:
            self._effects.append(ev.PunchRange(self._own.number, start, length))
        return returned

    def _ask_trims(self, head: SpaceRequest, deficit: int) -> int:
        """Ask the writers with the most free bytes to give some back; those who did not answer in time are asked again, but not counted on."""
        asked = 0
        surplus = [
            (segment.budget - segment.live_bytes, segment)
            for segment in self._segments.values()
            if segment.writer is not None
            and segment.writer != head.process
            and segment.number not in self._trims
            and self._trim_again.get(segment.number, 0.0) <= self._now
        ]
        for free, segment in sorted(surplus, key=lambda pair: -pair[0]):
            if free < TRIM_BYTES_MIN or asked >= deficit:
                break
            want = min(free, deficit - asked)
            asked += want
            self._trims[segment.number] = (want, self._now + TRIM_WAIT_S)
            assert segment.writer is not None
            self._effects.append(ev.SendToWriter(segment.writer, TrimBudget(want)))
        if asked and not self._waking:
            self._waking = True
            self._effects.append(ev.Wake(TRIM_WAIT_S))
        return asked

    def _on_woken(self, event: ev.Woken) -> None:
        """Those who have not answered are not counted on any more."""
        del event
        late = self._now + TRIM_WAIT_S / 10  # a timer may be a little early
        self._trims = {number: (want, until if until > late else 0.0) for number, (want, until) in self._trims.items()}
        self._waking = self._expected_trims() > 0
        if self._waking:
            self._effects.append(ev.Wake(TRIM_WAIT_S))

    def _still_stuck(self, head: SpaceRequest) -> None:
        """Nothing can be spilled and nothing is on its way."""
        if self._stuck_since is None:
            self._stuck_since = self._now
        held = pinned_by_reader(self._last_pins, self._segments, self._rows)
        pinned = sum(held.values())
        if self._disk_error and self._now < self._disk_retry_at:
            self._waiting.popleft()
            self._refuse(head, f"{DISK_REASON} {self._disk_error}")
            return
        patience = FULL_WAIT_S if pinned + head.need > self.capacity_bytes or not self._spill_allowed else HELD_WAIT_S
        if self._now - self._stuck_since >= patience:
            self._waiting.popleft()
            self._refuse(head, why_full(self.capacity_bytes, held, self.available_bytes))

    def _refuse(self, head: SpaceRequest, reason: str) -> None:
        if head.generation:
            row = self._rows.get(head.generation)
            if row is not None and row.state == COMING:
                self._effects.append(ev.RefuseCopy(row.oid, reason))
                self._drop(row)
            elif row is not None:
                row.asked = False
                self._effects.append(ev.ReportAbsent(row.oid, False, reason))
            return
        number = self._segment_of.get(head.process, 0)
        self._tell_budget(head, number, self._segments[number].end if number else 0, 0, reason)

    def _tell_budget(self, head: SpaceRequest, *answer: Any) -> None:
        self._effects.append(ev.SendToWriter(head.process, SegmentBudget(head.request, *answer)))

    _HANDLERS: dict[type[Any], Callable[[StoreTable, Any], None]] = {
        ev.BudgetAsked: _on_budget_asked,
        ev.BudgetGivenBack: _on_budget_given_back,
        ev.SegmentCreated: _on_segment_created,
        ev.ObjectsSealed: _on_objects_sealed,
        ev.ObjectsFreed: _on_objects_freed,
        ev.ObjectUsed: _on_object_used,
        ev.ResidencyAsked: _on_residency_asked,
        ev.PinsScanned: _on_pins_scanned,
        ev.GraceOver: _on_grace_over,
        ev.SpillWritten: _on_spill_written,
        ev.SpillFailed: _on_spill_failed,
        ev.ObjectRestored: _on_object_restored,
        ev.RestoreFailed: _on_restore_failed,
        ev.CopyAsked: _on_copy_asked,
        ev.CopyArrived: _on_copy_arrived,
        ev.CopyGivenUp: _on_copy_given_up,
        ev.CopyKept: _on_copy_kept,
        ev.CopiesFreed: _on_copies_freed,
        ev.WriterDied: _on_writer_died,
        ev.Woken: _on_woken,
    }
