"""What glibc does with memory that a batch of tasks frees: keep it for the next batch.

Purpose: arguments and results of some kB, a thousand at a time, cost no page faults.

Design: glibc learns. A block beyond its threshold (128 kB at first) is mapped, and when it is freed the threshold becomes its size, up to 32 MB; the
top of the heap is given back to the system beyond twice as much. Until a process has freed such a block, what one batch of messages frees is
unmapped and fetched again by the next, unless something that was allocated later happens to lie above it: 0 to 3.6 page faults a task with 10 kB,
0 to 4 of its 11 us, by luck of each session (docs/benchmarks.md). So a process frees one such block when it begins. It is never touched, so it
takes no memory, and under the MALLOC_ variables and other C libraries nothing changes.

What it does not do: set limits for good, as `shoal.train.memory` does, whose steps free more than that.
"""

from __future__ import annotations

#: twice as much stays in the heap: more than all that is on its way in a batch of a thousand tasks with INLINE_ARGUMENT_BYTES_MAX each
FREED_BLOCK_BYTES = 16 << 20


def learn_large_blocks() -> None:
    """Have the C library know that blocks of FREED_BLOCK_BYTES come and go here."""
    try:
        bytes(FREED_BLOCK_BYTES)  # by calloc: mapped, and unmapped again
    except MemoryError:
        pass  # the process may not have so much: then it does not keep so much
