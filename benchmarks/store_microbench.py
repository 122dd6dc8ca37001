"""What the shared-memory store costs in one process: GB/s of put beside plain memcpy, and microseconds of the small operations.

One JSON line: {"benchmark": "store", "put_1mb_gb_s": .., "memcpy_1mb_gb_s": .., .., "read_us": .., ..}. Every figure is the median of
repeated rounds, put and memcpy of one size in turn, because machines change their pace.
Targets: put of 1 / 100 / 800 MB at 6 / 10 / 10 GB/s or 85% of memcpy, 30,000 zero-copy reads a second of a 100 MB array.

    python benchmarks/store_microbench.py [--rounds 5] [--sizes 1,100,800]
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import statistics
import time
from collections.abc import Callable

import numpy as np

from shoal.protocol.messages import SegmentBudget, Stored
from shoal.store.client import StoreClient
from shoal.store.page import ProcessPage
from shoal.store.segment import Segment

MEGABYTE = 1 << 20
OID = b"o" * 20
ROUND_S = 0.2


class Payload:
    """A value that writes itself from one buffer."""

    def __init__(self, source: bytes | bytearray) -> None:
        self.source = source
        self.total_bytes = len(source)

    def write_into(self, target: memoryview) -> None:
        """Copy all of it."""
        target[:] = self.source


def seconds_of(work: Callable[[], object], at_least: int = 1) -> float:
    """Seconds a call, over enough calls to fill a round."""
    start = time.perf_counter()
    calls = 0
    while calls < at_least or time.perf_counter() - start < ROUND_S:
        work()
        calls += 1
    return (time.perf_counter() - start) / calls


def microseconds_of(work: Callable[[], object], rounds: int) -> float:
    """Median microseconds of a small operation."""
    results = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(20_000):
            work()
        results.append((time.perf_counter() - start) / 20_000 * 1e6)
    return round(statistics.median(results), 2)


def make_client(segment: Segment) -> tuple[StoreClient, ProcessPage]:
    """A client of a daemon that grants everything."""
    page = ProcessPage.create()

    def open_segment(need: int) -> SegmentBudget:
        return SegmentBudget(0, segment.number, segment.mapping.size_bytes, max(need, 64 * MEGABYTE))

    return StoreClient(os.getpid(), ProcessPage.open(os.getpid(), page.fd), open_segment), page


def measure_puts(client: StoreClient, size_mb: int, rounds: int) -> dict[str, float]:
    """Put and drop, warm, beside a plain copy between two warm buffers."""
    source = bytearray(os.urandom(MEGABYTE) * size_mb)
    target = memoryview(bytearray(len(source)))
    payload = Payload(source)

    def put() -> None:
        client.free(client.put(OID, payload))

    def copy() -> None:
        target[:] = source

    put()
    copy()
    put_s, copy_s = [], []
    for _ in range(rounds):
        put_s.append(seconds_of(put))
        copy_s.append(seconds_of(copy))
    size = len(source)
    put_rate, copy_rate = size / statistics.median(put_s) / 1e9, size / statistics.median(copy_s) / 1e9
    name = f"{size_mb}mb"
    return {
        f"put_{name}_gb_s": round(put_rate, 2),
        f"memcpy_{name}_gb_s": round(copy_rate, 2),
        f"share_{name}": round(put_rate / copy_rate, 2),
    }


def measure_reads(writer: StoreClient, reader: StoreClient, rounds: int) -> dict[str, float]:
    """A 100 MB array from another process's segment: the view alone, and as an array through pickle 5."""
    array = np.ones(100 * MEGABYTE // 8)
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(array, protocol=5, buffer_callback=buffers.append)
    stored = writer.put(OID, Payload(bytearray(buffers[0].raw())))
    start = time.perf_counter()
    held = reader.read(stored)
    first_s = time.perf_counter() - start
    del held

    def read() -> object:
        return reader.read(stored)

    def get() -> object:
        return pickle.loads(head, buffers=[reader.read(stored)])

    get_us = microseconds_of(get, rounds)
    result = {
        "first_read_100mb_ms": round(first_s * 1e3, 2),
        "read_us": microseconds_of(read, rounds),
        "get_array_us": get_us,
    }
    held = reader.read(stored)
    result["read_pinned_us"] = microseconds_of(read, rounds)
    result["gets_per_s"] = round(1e6 / get_us)
    del held
    writer.free(stored)
    return result


def measure_small(client: StoreClient, page: ProcessPage, segment: Segment, rounds: int) -> dict[str, float]:
    """Header, pin, started mark, and the smallest put."""
    stored: Stored = client.put(OID, b"x" * 1000)
    return {
        "header_check_us": microseconds_of(
            lambda: segment.is_sealed(stored.offset, stored.generation, OID, stored.size), rounds
        ),
        "pin_unpin_us": microseconds_of(lambda: page.unpin(page.pin(stored.segment, stored.offset)), rounds),
        "set_started_us": microseconds_of(lambda: page.set_started(5, 6), rounds),
        "put_free_1kb_us": microseconds_of(lambda: client.free(client.put(OID, b"y" * 1000)), rounds),
    }


def main() -> None:
    """Run and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", default="1,100,800", help="in MB, comma-separated")
    options = parser.parse_args()
    segment = Segment.create(1, 16 << 30)
    writer, page = make_client(segment)
    reader, _ = make_client(segment)
    result: dict[str, float | str] = {"benchmark": "store"}
    for size in options.sizes.split(","):
        result |= measure_puts(writer, int(size), options.rounds)
    result |= measure_reads(writer, reader, options.rounds)
    result |= measure_small(writer, page, segment, options.rounds)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
