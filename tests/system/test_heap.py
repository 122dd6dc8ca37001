"""What a batch of small blocks frees stays in the heap for the next one."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
from shoal.system.heap import learn_large_blocks

learn_large_blocks()
for turn in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    batch = [bytes(bytearray(10_000)) for _ in range(1000)]
    del batch
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc learns")
def test_the_next_batch_finds_the_memory_of_the_last_one() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert int(done.stdout) < 250  # of 2,441 pages; all of them without it
