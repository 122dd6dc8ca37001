"""Memory of a training's processes: what one step frees, the next one takes again.

Design: a step of torch on the CPU allocates and frees the same tensors each time. glibc gives them back to the system in between, so that each step
pays for thousands of page faults (3,400 in benchmarks/training.py: 6 of 25 ms). Here it is told to keep them: blocks below 32 MB come from the heap,
of which up to half a gigabyte may stay free. Whoever sets one of glibc's MALLOC_ variables has decided for himself, and nothing is changed.

What it does not do: anything under another C library, or with another allocator (jemalloc, tcmalloc).
"""

from __future__ import annotations

import ctypes
import os

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3

KEPT_BYTES_MAX = 512 << 20
HEAP_BYTES_MAX = 64 << 20  #: glibc's heaps of threads are that large; with so much padding none is given back
BLOCK_BYTES_MAX = HEAP_BYTES_MAX // 2  #: the largest threshold that glibc takes


def keep_freed_memory() -> bool:
    """Have this process keep freed memory for its next step; whether that was possible."""
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - only glibc has it
        mallopt = library.mallopt
    except (OSError, AttributeError):
        return False
    return all(
        mallopt(option, value) == 1
        for option, value in (
            (M_MMAP_THRESHOLD, BLOCK_BYTES_MAX),
            (M_TRIM_THRESHOLD, KEPT_BYTES_MAX),
            (M_TOP_PAD, HEAP_BYTES_MAX),
        )
    )
