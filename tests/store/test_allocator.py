"""The allocator against a dumb twin that colours every 64 bytes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.store.allocator import PAGE_BYTES, RangeAllocator, block_bytes, page_ceil, punchable

START = PAGE_BYTES
END = START + 96 * PAGE_BYTES
GRAIN = 64


class Twin:
    """One letter for every 64 bytes: cold, free (warm), or live."""

    def __init__(self) -> None:
        self.cells = ["cold"] * ((END - START) // GRAIN)

    def paint(self, offset: int, size: int, letter: str, allowed: set[str]) -> None:
        cells = range((offset - START) // GRAIN, (offset + size - START) // GRAIN)
        assert size % GRAIN == 0 and offset % GRAIN == 0
        assert all(self.cells[i] in allowed for i in cells)
        for i in cells:
            self.cells[i] = letter

    def bytes_of(self, letter: str) -> int:
        return self.cells.count(letter) * GRAIN

    def longest(self, letters: set[str]) -> int:
        best = run = 0
        for cell in self.cells:
            run = run + GRAIN if cell in letters else 0
            best = max(best, run)
        return best


operations = st.lists(
    st.one_of(
        st.tuples(st.just("allocate"), st.integers(1, 30 * PAGE_BYTES)),
        st.tuples(st.just("allocate"), st.integers(1, 2000)),
        st.tuples(st.just("free"), st.integers(0, 1 << 30)),
        st.tuples(st.just("punch"), st.integers(0, 1 << 30)),
        st.tuples(st.just("trim"), st.integers(1, 20 * PAGE_BYTES)),
        st.tuples(st.just("grant"), st.integers(1, 40 * PAGE_BYTES)),
    ),
    max_size=60,
)


def allocate(real: RangeAllocator, twin: Twin, live: dict[int, int], size: int) -> None:
    could = twin.longest({"free"})
    block = real.allocate(size)
    if block is None:
        assert could < block_bytes(size) + (PAGE_BYTES if block_bytes(size) % PAGE_BYTES == 0 else 0)
        assert real.missing_bytes(size) > 0 or twin.longest({"cold"}) < page_ceil(size)
        return
    assert block.size == block_bytes(size)
    if block.fresh_bytes:
        twin.paint(block.fresh_start, block.fresh_bytes, "free", {"cold"})
    twin.paint(block.offset, block.size, "live", {"free"})
    live[block.offset] = block.size


@settings(max_examples=150, deadline=None)
@given(operations)
def test_allocator_agrees_with_the_twin(steps: list[tuple[str, int]]) -> None:
    real, twin, live = RangeAllocator(START, END), Twin(), {}
    for what, number in steps:
        if what == "allocate":
            allocate(real, twin, live, number)
        elif what == "grant":
            real.budget_bytes += number
        elif what == "trim":
            budget = real.budget_bytes
            returned, ranges = real.trim(number)
            for start, length in ranges:
                assert start % PAGE_BYTES == 0 and length % PAGE_BYTES == 0
                twin.paint(start, length, "cold", {"free"})
            assert returned == budget - real.budget_bytes <= page_ceil(number)
        elif live:
            offset = sorted(live)[number % len(live)]
            size = live.pop(offset)
            twin.paint(offset, size, "free", {"live"})
            if what == "free":
                assert real.free(offset) == size
            else:
                start, length = punchable(offset, size)
                twin.paint(start, length, "cold", {"free"})
                assert real.free_punched(offset) == length
        real.check()
        assert real.live_bytes == twin.bytes_of("live") == sum(live.values())
        assert real.free_warm_bytes == twin.bytes_of("free")


def test_freed_memory_is_reused_before_cold_memory() -> None:
    ranges = RangeAllocator(START, END, budget_bytes=END - START)
    first = ranges.allocate(10 * PAGE_BYTES)
    assert first is not None and first.fresh_bytes
    ranges.free(first.offset)
    again = ranges.allocate(10 * PAGE_BYTES)
    assert again is not None and (again.offset, again.fresh_bytes) == (first.offset, 0)


def test_a_growing_block_extends_the_free_range_below_the_cold_tail() -> None:
    ranges = RangeAllocator(START, START + (64 << 20), budget_bytes=64 << 20)
    for size in range(1 << 20, 20 << 20, 3 << 20):
        block = ranges.allocate(size)
        assert block is not None and block.offset == START
        ranges.free(block.offset)
    assert ranges.warm_bytes < 22 << 20


def test_no_budget_no_block_and_the_missing_amount_is_enough() -> None:
    ranges = RangeAllocator(START, END)
    assert ranges.allocate(100_000) is None
    ranges.budget_bytes += ranges.missing_bytes(100_000)
    assert ranges.allocate(100_000) is not None
    assert ranges.spare_bytes == 0


def test_trim_gives_back_unused_budget_before_it_punches() -> None:
    ranges = RangeAllocator(START, END, budget_bytes=20 * PAGE_BYTES)
    block = ranges.allocate(16 * PAGE_BYTES)
    assert block is not None
    ranges.free(block.offset)
    spare = ranges.spare_bytes
    assert ranges.trim(spare) == (spare, [])
    returned, punched = ranges.trim(8 * PAGE_BYTES)
    assert returned == 8 * PAGE_BYTES == sum(length for _, length in punched)
    ranges.check()
