"""`StoreClient`: the one door of a process to the store of its node.

Purpose: `put` copies a value once, into memory that every process of the node can read; `read` returns a read-only view of such memory
and keeps it in place while any view or array made from it lives.

Design: the process writes into its own segment only, and asks the daemon for *budget*, not for places: in the steady state nothing here
crosses a process boundary. What is freed stays warm and is reused first. `read` costs a slot in the process page, a comparison of the
block's header and a ctypes object, whose finalizer appends to a deque; the deque is drained by the next operation.
All methods are safe in threads; no lock is held while the daemon is asked or memory is copied.

Measured (2 cores, CPython 3.11): see benchmarks/store_microbench.py.

What it does not do: say `Sealed` and `FreeObjects` to the daemon (the runtime does, in its order of frames), or know owners and counts.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from shoal.protocol.errors import ObjectLostError, ObjectStoreFullError, OutOfDiskError
from shoal.protocol.limits import BLOCK_HEADER_BYTES
from shoal.protocol.messages import BudgetReturned, FreeBlocks, SegmentBudget, Stored, TrimBudget
from shoal.store.allocator import Block, RangeAllocator
from shoal.store.mapping import pin_class
from shoal.store.page import ProcessPage
from shoal.store.segment import (
    ASKED,
    BLOCKS_START,
    EVICTED,
    LEFT,
    SEALED,
    TAKEN,
    WRITING,
    Segment,
    first_generation,
)

#: who gives up a value of this size is looked after soon, also if its process does nothing else
ATTEND_BYTES_MIN = 1 << 20
POPULATE_READ_BYTES_MIN = 256 << 10  #: smaller values are left to the kernel's fault-around
#: of a larger value only so much is mapped before somebody reads it. All of 100 MB would take 8.7 ms, needed or not; met fault by fault they take 14
POPULATE_READ_BYTES_MAX = 4 << 20
#: of other writers; beyond it those without pins are unmapped, the least recently mapped first
MAPPED_SEGMENTS_MAX = 64
BUDGET_ATTEMPTS = 8  #: times the daemon is asked for one put: others may trim what was just granted
DISK_REASON = "disk:"  #: a refusal whose reason begins so is an OutOfDiskError


class StaleBlock(Exception):  # noqa: N818
    """The place is not valid any more: the object was spilled, moved or freed. Ask the daemon to resolve it again."""


class Writable(Protocol):
    """A serialized value that knows its size and writes itself."""

    @property
    def total_bytes(self) -> int: ...

    def write_into(self, target: memoryview) -> Any: ...


@dataclass(slots=True)
class StoreStatistics:
    """What one process uses of the store, in bytes and counts."""

    budget_bytes: int = 0
    warm_bytes: int = 0
    live_bytes: int = 0
    live_blocks: int = 0
    pinned_blocks: int = 0
    puts: int = 0
    put_bytes: int = 0
    budget_requests: int = 0
    mapped_segments: int = 0


@dataclass(slots=True)
class _Pin:
    slot: int
    count: int  #: live holders in this process
    segment: int
    offset: int
    freed: bool = False  #: our own block, freed while pinned here: reusable when the last holder goes


class StoreClient:
    """The store as one process sees it.

    Args:
        daemon_pid: process that holds the segments' descriptors.
        page: this process's page (`ProcessPage.open`).
        open_segment: asks the daemon for so many bytes of budget and blocks, in bounded time, for the answer.
    """

    #: `_own` the segment written to, None before the first put; `_generation_of` offset -> generation of our live blocks;
    #: `_pins` generation -> _Pin; `_unpinned` generations whose holder died, drained under the lock; `_segments` those of others, in
    #: the order of mapping; `_populated` (segment, offset) -> generation whose pages this process has mapped.
    def __init__(self, daemon_pid: int, page: ProcessPage, open_segment: Callable[[int], SegmentBudget]) -> None:
        self._daemon_pid = daemon_pid
        self._page = page
        self._open_segment = open_segment
        self._lock = threading.Lock()
        self._grow_lock = threading.Lock()
        self._own: Segment | None = None
        self._allocator: RangeAllocator | None = None
        self._next_generation = 0
        self._generation_of: dict[int, int] = {}
        self._pins: dict[int, _Pin] = {}
        self._unpinned: deque[int] = deque()
        self._segments: dict[int, Segment] = {}
        self._populated: dict[tuple[int, int], int] = {}
        self._statistics = StoreStatistics()
        self._inert = ""  #: why nothing works any more
        #: called by finalizers of large values: have `drain` called soon
        self.attend: Callable[[], None] | None = None
        _clients.add(self)

    # ---------------------------------------------------------------- put

    def put(self, oid: bytes, value: Writable | bytes) -> Stored:
        """Copy a value into the store and seal it; its place.

        Raises:
            ObjectStoreFullError: the pool is full of objects in use, or the system has no memory for it.
            OutOfDiskError: nothing can be spilled for lack of disk.
        """
        size = len(value) if isinstance(value, bytes) else value.total_bytes
        block = self._allocate(BLOCK_HEADER_BYTES + size)
        segment = self._own
        assert segment is not None
        offset = block.offset
        try:
            if block.fresh_bytes:
                segment.populate(block.fresh_start, block.fresh_bytes)
            with self._lock:
                generation = self._next_generation
                self._next_generation = generation + 1
                self._generation_of[offset] = generation
            segment.write_header(offset, generation, oid, size, WRITING)
            payload = segment.view[offset + BLOCK_HEADER_BYTES : offset + BLOCK_HEADER_BYTES + size]
            if isinstance(value, bytes):
                payload[:] = value
            else:
                value.write_into(payload)
            segment.set_state(offset, SEALED)
        except MemoryError as error:
            self._give_up(offset)
            raise ObjectStoreFullError(
                f"no memory for an object of {_megabytes(size)} in the store: {error}"
            ) from error
        except BaseException:
            self._give_up(offset)
            raise
        statistics = self._statistics
        statistics.puts += 1
        statistics.put_bytes += size
        return Stored(oid, segment.number, offset, size, generation)

    def _give_up(self, offset: int) -> None:
        assert self._allocator is not None
        with self._lock:
            self._generation_of.pop(offset, None)
            self._allocator.free(offset)

    def _allocate(self, need: int) -> Block:
        allocator = self._allocator
        if allocator is not None and not self._inert:
            with self._lock:
                if self._unpinned:
                    self._drain_locked()
                block = allocator.allocate(need)
            if block is not None:
                return block
        return self._allocate_with_more_budget(need)

    def _allocate_with_more_budget(self, need: int) -> Block:
        """Own fragments first when they are half of what we have, then the daemon, then own fragments again."""
        with self._grow_lock:
            reason = "others took back what was granted"
            for _ in range(BUDGET_ATTEMPTS):
                self._check_usable()
                missing = need
                if self._allocator is not None:
                    block, missing = self._allocate_or_defragment(need, only_if_half=True)
                    if block is not None:
                        return block
                    if missing == 0:
                        reason = "its free memory is in pieces too small for this object"
                        break
                answer = self._open_segment(missing)
                self._statistics.budget_requests += 1
                if answer.granted > 0:
                    self._take_budget(answer)
                    continue
                if self._allocator is not None:
                    block, _ = self._allocate_or_defragment(need, only_if_half=False)
                    if block is not None:
                        return block
                reason = answer.reason
                break
            what = f"cannot put an object of {_megabytes(need)} into the object store: {reason}"
            raise OutOfDiskError(what) if reason.startswith(DISK_REASON) else ObjectStoreFullError(what)

    def _allocate_or_defragment(self, need: int, only_if_half: bool) -> tuple[Block | None, int]:
        """(a block, 0) or (None, the budget that lacks). Punching free pages turns them into budget, and joins the cold ranges."""
        allocator = self._allocator
        assert allocator is not None and self._own is not None
        with self._lock:
            self._drain_locked()
            block = allocator.allocate(need)
            if block is not None:
                return block, 0
            missing = allocator.missing_bytes(need)
            free = allocator.free_warm_bytes
            if missing == 0 or (missing <= free and (not only_if_half or 2 * free >= allocator.budget_bytes)):
                self._trim_locked((missing or free) + allocator.spare_bytes, keep_budget=True)
                block = allocator.allocate(need)
                missing = 0 if block is not None else allocator.missing_bytes(need)
            return block, missing

    def _take_budget(self, answer: SegmentBudget) -> None:
        if self._own is None:
            own = Segment.open(self._daemon_pid, answer.segment, writable=True)
            with self._lock:
                self._next_generation = first_generation(own.number)
                self._allocator = RangeAllocator(BLOCKS_START, own.mapping.size_bytes, answer.granted)
                self._own = own
            return
        assert self._own.number == answer.segment and self._allocator is not None
        with self._lock:
            self._allocator.budget_bytes += answer.granted

    # ---------------------------------------------------------------- read

    def read(self, stored: Stored) -> memoryview:
        """A read-only view of a stored value. It stays in place while any view or array made from it lives. Measured: 3 us.

        Raises:
            StaleBlock: the place is not valid any more.
            ObjectLostError: the daemon is gone.
        """
        generation = stored.generation
        number = stored.segment
        offset = stored.offset
        size = stored.size
        with self._lock:
            if self._unpinned:
                self._drain_locked()
            pin = self._pins.get(generation)
            if pin is not None and (pin.segment != number or pin.offset != offset):
                raise StaleBlock(f"generation {generation} is of another session")
            if pin is not None:
                own = self._own
                segment = own if own is not None and own.number == number else self._segments[number]
                pin.count += 1
            else:
                segment = self._segment_locked(number)
                self._pins[generation] = self._pin_locked(segment, stored)
        mapping = segment.mapping
        holder = pin_class(mapping.size_bytes).from_address(mapping.address)
        holder.token = generation
        holder.mapping = mapping
        holder.queue = self._unpinned
        holder.attend = self.attend if size >= ATTEND_BYTES_MIN else None
        start = offset + BLOCK_HEADER_BYTES
        if (
            size >= POPULATE_READ_BYTES_MIN
            and not mapping.writable
            and self._populated.get((number, offset)) != generation
        ):
            # Not fatal when it fails: the pages exist, this process would only meet them one fault at a time.
            with contextlib.suppress(MemoryError):
                mapping.populate(start, min(size, POPULATE_READ_BYTES_MAX))
            self._populated[(number, offset)] = generation
        return memoryview(holder).cast("B")[start : start + size].toreadonly()

    def _pin_locked(self, segment: Segment, stored: Stored) -> _Pin:
        self._check_usable()
        offset = stored.offset
        page = self._page
        slot = page.pin(segment.number, offset)
        # The order matters: pin, list, header (see segment.py).
        if segment.is_listed(offset) or not segment.is_sealed(offset, stored.generation, stored.oid, stored.size):
            page.unpin(slot)
            raise StaleBlock(stored.oid.hex())
        return _Pin(slot, 1, segment.number, offset)

    def _segment_locked(self, number: int) -> Segment:
        own = self._own
        if own is not None and own.number == number:
            return own
        segment = self._segments.get(number)
        if segment is not None:
            return segment
        try:
            segment = Segment.open(self._daemon_pid, number, writable=False)
        except OSError as error:
            if os.path.exists(f"/proc/{self._daemon_pid}"):
                raise StaleBlock(f"segment {number} is closed") from error
            raise ObjectLostError(
                f"the node daemon (pid {self._daemon_pid}) died, and the object store with it"
            ) from error
        if len(self._segments) >= MAPPED_SEGMENTS_MAX:
            self._unmap_idle_locked()
        self._segments[number] = segment
        return segment

    def _unmap_idle_locked(self) -> None:
        """Forget half of the segments that are not pinned, the oldest first; the memory is unmapped by the last reference."""
        pinned = {pin.segment for pin in self._pins.values()}
        idle = [number for number in self._segments if number not in pinned]
        dropped = set(idle[: max(len(idle) // 2, 1)])
        for number in dropped:
            del self._segments[number]
        self._populated = {place: gen for place, gen in self._populated.items() if place[0] not in dropped}

    # ---------------------------------------------------------------- unpin and free

    def drain(self) -> None:
        """Give up the pins of views that are gone. Every put and read does it; an idle process calls it now and then."""
        if self._unpinned:
            with self._lock:
                self._drain_locked()

    def _drain_locked(self) -> None:
        unpinned = self._unpinned
        if self._inert:
            unpinned.clear()
            return
        while unpinned:
            generation = unpinned.popleft()
            pin = self._pins[generation]
            pin.count -= 1
            if pin.count == 0:
                del self._pins[generation]
                self._page.unpin(pin.slot)
                if pin.freed:
                    self._free_locked(pin.offset)

    def free(self, stored: Stored) -> bool:
        """Reuse a block of our own that no other process has ever known. Pinned here, it is reused when the last view is gone.

        Returns:
            Whether the block is ours to reuse; False when the daemon has moved the object or is moving it: it frees the block when told
            that the object is not referred to any more (FreeObjects, which the runtime sends in either case).
        """
        own = self._own
        offset = stored.offset
        with self._lock:
            if self._unpinned:
                self._drain_locked()
            if (
                self._inert
                or own is None
                or own.number != stored.segment
                or self._generation_of.get(offset) != stored.generation
                or not own.is_sealed(offset, stored.generation, stored.oid, stored.size)
            ):
                return False
            own.set_freed(offset, ASKED)
            if own.is_listed(offset):
                own.set_freed(offset, LEFT)
                return False
            own.set_freed(offset, TAKEN)
            pin = self._pins.get(stored.generation)
            if pin is not None:
                pin.freed = True
            else:
                self._free_locked(offset)
            return True

    def _free_locked(self, offset: int) -> None:
        assert self._own is not None and self._allocator is not None
        self._own.set_state(offset, EVICTED)
        del self._generation_of[offset]
        self._allocator.free(offset)

    def on_free_blocks(self, message: FreeBlocks) -> None:
        """The daemon says that blocks of our segment hold nothing and nobody reads them; punched ones have lost their pages."""
        allocator = self._allocator
        if allocator is None or self._own is None or self._own.number != message.segment:
            return
        with self._lock:
            for offset, generation, punched in message.blocks:
                if self._generation_of.get(offset) != generation:
                    continue
                del self._generation_of[offset]
                if punched:
                    allocator.free_punched(offset)
                else:
                    allocator.free(offset)

    def on_trim(self, message: TrimBudget) -> BudgetReturned:
        """Give budget back that no live block uses. The answer goes to the daemon."""
        own = self._own
        if own is None or self._inert:
            return BudgetReturned(own.number if own is not None else 0, 0)
        with self._lock:
            self._drain_locked()
            return BudgetReturned(own.number, self._trim_locked(message.want, keep_budget=False))

    def _trim_locked(self, want: int, keep_budget: bool) -> int:
        assert self._allocator is not None and self._own is not None
        returned, ranges = self._allocator.trim(want)
        for start, length in ranges:
            self._own.punch(start, length)
        if keep_budget:
            self._allocator.budget_bytes += returned
        return returned

    # ---------------------------------------------------------------- the whole

    def statistics(self) -> StoreStatistics:
        """What this process uses now, and what it has done."""
        with self._lock:
            statistics = self._statistics
            allocator = self._allocator
            if allocator is not None:
                statistics.budget_bytes = allocator.budget_bytes
                statistics.warm_bytes = allocator.warm_bytes
                statistics.live_bytes = allocator.live_bytes
                statistics.live_blocks = allocator.live_count
            statistics.pinned_blocks = len(self._pins)
            statistics.mapped_segments = len(self._segments)
            return statistics

    def close(self) -> None:
        """No more puts. Views that are alive stay readable; their memory goes with them."""
        with self._lock:
            self._drain_locked()
            self._inert = "the object store of this process is closed"
            if self._own is not None:
                self._own.close()
            self._segments.clear()

    def _check_usable(self) -> None:
        if self._inert:
            raise RuntimeError(self._inert)

    def _become_inert(self) -> None:
        """In a forked child: the page, the segment and the locks belong to the parent."""
        self._inert = (
            f"this process (pid {os.getpid()}) was forked from one that uses shoal; it cannot use the object store: "
            "start it as a task, or call shoal.init in it"
        )
        self._lock = threading.Lock()
        self._grow_lock = threading.Lock()
        self._pins = {}


_clients: weakref.WeakSet[StoreClient] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for client in list(_clients):
        client._become_inert()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
