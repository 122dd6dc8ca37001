"""Where blocks lie in a segment: a pure allocator of ranges, exact to the byte.

A segment is a sparse file much larger than what its writer may use. Its pages are *cold* (never touched, or punched) or *warm* (present: they count
against the writer's *budget*). Copying into warm pages runs at the speed of memory and into cold ones ten times slower, so freed
ranges stay warm and are taken first.

    |==live==|..warm free..|==live==|      cold      |==live==|          cold ...          |
    ^ start                                                                                ^ end

Design: the free warm ranges and the cold ones are two `FreeRanges`, each with an index by size (best fit, lowest address first) and by both ends
(coalescing). Boundaries between warm and cold lie on pages, small blocks on 64 bytes, others on whole pages, so that punching them leaves no
rest that would keep holes apart. Small blocks warm a megabyte at a time. A block that ends up against the largest cold range grows into it.

What it does not do: touch memory, know who reads a block (a block is freed here when nobody does), or talk to the daemon.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from shoal.protocol.limits import BLOCK_ALIGN_BYTES

PAGE_BYTES = 4096
WARM_STEP_BYTES = 1 << 20
WHOLE_PAGES_BYTES_MIN = 64 << 10  #: blocks from this size on take whole pages (at most 6% more)
_OFFSET_BITS = 48
_OFFSET_MASK = (1 << _OFFSET_BITS) - 1


def page_floor(value: int) -> int:
    """`value` rounded down to a page boundary."""
    return value & -PAGE_BYTES


def page_ceil(value: int) -> int:
    """`value` rounded up to a page boundary."""
    return (value + PAGE_BYTES - 1) & -PAGE_BYTES


def block_bytes(size: int) -> int:
    """What a block of `size` bytes takes; the same for what it returns."""
    return page_ceil(size) if size >= WHOLE_PAGES_BYTES_MIN else (size + BLOCK_ALIGN_BYTES - 1) & -BLOCK_ALIGN_BYTES


def _aligned(start: int, size: int) -> int:
    """The first place from `start` on where a block of `size` may lie."""
    return page_ceil(start) if size >= WHOLE_PAGES_BYTES_MIN else start


class FreeRanges:
    """A set of disjoint ranges that coalesce, found by size or by either end. Everything O(log n)."""

    #: `_size_at` start -> size; `_start_of_end` end -> start; `_by_size` sorted (size << 48 | start); `total_bytes` the sum.
    __slots__ = ("_by_size", "_size_at", "_start_of_end", "total_bytes")

    def __init__(self) -> None:
        self._size_at: dict[int, int] = {}
        self._start_of_end: dict[int, int] = {}
        self._by_size: list[int] = []
        self.total_bytes = 0

    def __len__(self) -> int:
        return len(self._by_size)

    def ranges(self) -> list[tuple[int, int]]:
        """(start, size) of each, by address."""
        return sorted(self._size_at.items())

    def largest_first(self) -> list[tuple[int, int]]:
        """(start, size) of each, the largest first."""
        return [(key & _OFFSET_MASK, key >> _OFFSET_BITS) for key in reversed(self._by_size)]

    def largest_bytes(self) -> int:
        """Size of the largest range, 0 for none."""
        return self._by_size[-1] >> _OFFSET_BITS if self._by_size else 0

    def add(self, start: int, size: int) -> None:
        """Put a range in, joined with its neighbours."""
        if size == 0:
            return
        self.total_bytes += size
        before = self._start_of_end.get(start)
        if before is not None:
            size += self._remove(before)
            start = before
        if start + size in self._size_at:
            size += self._remove(start + size)
        self._size_at[start] = size
        self._start_of_end[start + size] = start
        bisect.insort(self._by_size, size << _OFFSET_BITS | start)

    def take(self, whole_start: int, start: int, size: int) -> None:
        """Take the part [start, start+size) out of the range that begins at `whole_start`."""
        end = start + size
        whole_size = self._remove(whole_start)
        self.total_bytes -= size
        assert whole_start <= start and end <= whole_start + whole_size
        for left, right in ((whole_start, start), (end, whole_start + whole_size)):
            if left < right:
                self._size_at[left] = right - left
                self._start_of_end[right] = left
                bisect.insort(self._by_size, (right - left) << _OFFSET_BITS | left)

    def best_fit(self, size: int) -> int | None:
        """Start of the smallest range of at least `size`, the lowest of equals."""
        index = bisect.bisect_left(self._by_size, size << _OFFSET_BITS)
        return self._by_size[index] & _OFFSET_MASK if index < len(self._by_size) else None

    def size_at(self, start: int) -> int:
        """Size of the range that begins at `start`, 0 for none."""
        return self._size_at.get(start, 0)

    def start_of_end(self, end: int) -> int | None:
        """Start of the range that ends at `end`."""
        return self._start_of_end.get(end)

    def _remove(self, start: int) -> int:
        size = self._size_at.pop(start)
        del self._start_of_end[start + size]
        index = bisect.bisect_left(self._by_size, size << _OFFSET_BITS | start)
        del self._by_size[index]
        return size


@dataclass(slots=True)
class Block:
    """An allocated range. `fresh_bytes` from `fresh_start` on were cold until now: populate them before use."""

    offset: int
    size: int
    fresh_start: int = 0
    fresh_bytes: int = 0


class RangeAllocator:
    """The ranges of one segment between `start` and `end` (both on pages).

    Invariants: live blocks, warm free ranges and cold ranges partition [start, end); `warm_bytes` = end - start - cold <= `budget`.
    """

    __slots__ = ("_cold", "_free", "_live", "budget_bytes", "end", "live_bytes", "start")

    def __init__(self, start: int, end: int, budget_bytes: int = 0) -> None:
        assert start % PAGE_BYTES == 0 and end % PAGE_BYTES == 0 and start < end <= _OFFSET_MASK
        self.start = start
        self.end = end
        self.budget_bytes = budget_bytes
        self.live_bytes = 0
        self._live: dict[int, int] = {}
        self._free = FreeRanges()
        self._cold = FreeRanges()
        self._cold.add(start, end - start)

    # ---------------------------------------------------------------- what there is

    @property
    def warm_bytes(self) -> int:
        """Bytes of pages that are present, live or free."""
        return self.end - self.start - self._cold.total_bytes

    @property
    def free_warm_bytes(self) -> int:
        """Bytes that could be allocated without touching a cold page."""
        return self._free.total_bytes

    @property
    def spare_bytes(self) -> int:
        """Budget that no page uses, in whole pages."""
        return page_floor(self.budget_bytes - self.warm_bytes)

    @property
    def live_count(self) -> int:
        """Number of allocated blocks."""
        return len(self._live)

    def size_of(self, offset: int) -> int:
        """Size of the live block at `offset`, 0 when there is none."""
        return self._live.get(offset, 0)

    def missing_bytes(self, size: int) -> int:
        """How much more budget `allocate(size)` may need, 0 when what there is suffices."""
        size = block_bytes(size)
        if self._free.largest_bytes() >= size + (PAGE_BYTES if size >= WHOLE_PAGES_BYTES_MIN else 0):
            return 0
        return max(page_ceil(size) - self.spare_bytes, 0)

    # ---------------------------------------------------------------- allocate and free

    def allocate(self, size: int) -> Block | None:
        """A block of at least `size` bytes, warm if possible. None when neither the free ranges nor the budget allow it."""
        size = block_bytes(size)
        assert size > 0
        start = self._free.best_fit(size)
        if start is not None and _aligned(start, size) != start:
            # The tightest range does not begin on a page: one page more is enough anywhere, unless this one is.
            if self._free.size_at(start) < size + _aligned(start, size) - start:
                start = self._free.best_fit(size + PAGE_BYTES)
        if start is not None:
            offset = _aligned(start, size)
            self._free.take(start, offset, size)
            return self._made(Block(offset, size))
        return self._grow_into_cold(size) or self._allocate_cold(size)

    def _allocate_cold(self, size: int) -> Block | None:
        pages = page_ceil(size)
        spare = self.spare_bytes
        if pages > spare:
            return None
        start = self._cold.best_fit(pages)
        if start is None:
            return None
        warmed = min(max(pages, WARM_STEP_BYTES), spare, self._cold.size_at(start))
        self._cold.take(start, start, warmed)
        self._free.add(start + size, warmed - size)
        return self._made(Block(start, size, start, warmed))

    def _grow_into_cold(self, size: int) -> Block | None:
        """Use the free range that touches the largest cold one, if there is such a range."""
        cold_size = self._cold.largest_bytes()
        border = self._cold.best_fit(cold_size) if cold_size else None
        start = None if border is None else self._free.start_of_end(border)
        if border is None or start is None:
            return None
        offset = _aligned(start, size)
        if offset > border:
            return None
        wanted = page_ceil(offset + size - border)
        spare = self.spare_bytes
        if wanted > min(spare, cold_size):
            return None
        warmed = min(max(wanted, WARM_STEP_BYTES), spare, cold_size)
        self._free.take(start, offset, border - offset)
        self._cold.take(border, border, warmed)
        self._free.add(offset + size, border + warmed - offset - size)
        return self._made(Block(offset, size, border, warmed))

    def _made(self, block: Block) -> Block:
        self._live[block.offset] = block.size
        self.live_bytes += block.size
        return block

    def free(self, offset: int) -> int:
        """The block at `offset` is empty and stays warm. Returns its size.

        Raises:
            KeyError: there is no live block.
        """
        size = self._live.pop(offset)
        self.live_bytes -= size
        self._free.add(offset, size)
        return size

    def free_punched(self, offset: int) -> int:
        """The block at `offset` is gone with the whole pages inside it (`punchable`), and their budget. Returns how much budget."""
        size = self._live.pop(offset)
        self.live_bytes -= size
        start, length = punchable(offset, size)
        if length == 0:
            self._free.add(offset, size)
            return 0
        self._free.add(offset, start - offset)
        self._free.add(start + length, offset + size - start - length)
        self._cold.add(start, length)
        self.budget_bytes -= length
        return length

    def trim(self, want_bytes: int) -> tuple[int, list[tuple[int, int]]]:
        """Give up to `want_bytes` of budget back: first what no page uses, then free pages, the largest ranges first.

        Returns:
            Bytes given back, and the ranges (start, length) to punch.
        """
        returned = min(self.spare_bytes, page_ceil(want_bytes))
        self.budget_bytes -= returned
        punched: list[tuple[int, int]] = []
        if returned < want_bytes:
            for free_start, free_size in self._free.largest_first():
                start, length = punchable(free_start, free_size)
                if returned >= want_bytes:
                    break
                if length == 0:
                    continue
                # The end of a range goes first: it is what may touch the cold tail.
                kept = length - min(length, page_ceil(want_bytes - returned))
                start, length = start + kept, length - kept
                self._free.take(free_start, start, length)
                self._cold.add(start, length)
                punched.append((start, length))
                returned += length
                self.budget_bytes -= length
        return returned, punched

    def check(self) -> None:
        """Assert every invariant (tests)."""
        covered = [(start, size, "live") for start, size in self._live.items()]
        covered += [(start, size, "free") for start, size in self._free.ranges()]
        covered += [(start, size, "cold") for start, size in self._cold.ranges()]
        at = self.start
        for start, size, kind in sorted(covered):
            assert start == at and size > 0, (start, at, kind)
            assert kind != "cold" or (start % PAGE_BYTES == 0 and size % PAGE_BYTES == 0)
            at = start + size
        assert at == self.end
        assert self.warm_bytes <= self.budget_bytes
        assert self.live_bytes == sum(self._live.values())
        assert self.warm_bytes == self.live_bytes + self.free_warm_bytes


def punchable(start: int, size: int) -> tuple[int, int]:
    """The whole pages inside a range, as (start, length); length 0 for none."""
    first = page_ceil(start)
    return first, max(page_floor(start + size) - first, 0)
