"""MapReduce (OSDI'04): word count and sort, with a combiner, a shuffle, backup tasks, skipped bad records, and a worker that is killed.

    python examples/systems/mapreduce.py

A map task returns one object for each reducer (`num_returns`), so the shuffle is the passing of refs: large ones lie in shared memory and are read
there. A straggler gets a backup task; whichever ends first counts. A record that a map function cannot read is skipped and counted.
"""

import collections
import itertools
import os
import random
import time
import zlib

import numpy as np

import shoal

REDUCERS = 4


def mapreduce(chunks, map_function, combine, reduce_function, partition, backup_after_s=0.5):
    """Run it; the reducers' results, and how many records were skipped."""

    @shoal.remote(num_returns=REDUCERS + 1, max_retries=3)
    def map_task(chunk):
        parts, skipped = [collections.defaultdict(list) for _ in range(REDUCERS)], 0
        for record in chunk:
            try:
                for key, value in map_function(record):
                    parts[partition(key)][key].append(value)
            except ValueError:
                skipped += 1
        return [{key: combine(values) for key, values in part.items()} for part in parts] + [skipped]

    @shoal.remote
    def reduce_task(*parts):
        merged = collections.defaultdict(list)
        for part in parts:
            for key, value in part.items():
                merged[key].append(value)
        return {key: reduce_function(values) for key, values in merged.items()}

    outputs = with_backups([lambda chunk=chunk: map_task.remote(chunk) for chunk in chunks], backup_after_s)
    reduced = [reduce_task.remote(*[output[number] for output in outputs]) for number in range(REDUCERS)]
    return shoal.get(reduced), sum(shoal.get([output[-1] for output in outputs]))


def with_backups(starts, backup_after_s):
    """Start everything; what is not done when most is, is started once more. The refs of whichever ended first."""
    first = [start() for start in starts]
    tries = [[refs] for refs in first]
    done = [None] * len(starts)
    began = time.monotonic()
    while None in done:
        waiting = {refs[-1]: (place, refs) for place, each in enumerate(tries) if done[place] is None for refs in each}
        ready, _ = shoal.wait(list(waiting), num_returns=1, timeout=0.05)
        for ref in ready:
            place, refs = waiting[ref]
            done[place] = done[place] or refs
        late = [place for place, refs in enumerate(done) if refs is None]
        if len(late) <= len(starts) // 4 and time.monotonic() - began > backup_after_s:
            for place in late:
                if len(tries[place]) == 1:
                    tries[place].append(starts[place]())
    for place, each in enumerate(tries):
        for refs in each:
            if refs is not done[place]:
                shoal.cancel(refs[-1], force=True)
    return done


def word_count(folder):
    dice = random.Random(1)
    words = ["shoal", "ray", "ciel", "dask", "mpi"]
    lines = [" ".join(dice.choice(words) for _ in range(20)) for _ in range(4000)]
    lines[17] = lines[2222] = "\0 not a line"
    chunks = [lines[at : at + 250] for at in range(0, len(lines), 250)]
    slow, killed = os.path.join(folder, "slow"), os.path.join(folder, "killed")

    def map_line(line):
        if "\0" in line:
            raise ValueError("a bad record")
        if line is not None and line == lines[0] and once(slow):
            time.sleep(30)  # a straggler
        if line == lines[300] and once(killed):
            os._exit(1)  # its worker dies
        return [(word, 1) for word in line.split()]

    results, skipped = mapreduce(chunks, map_line, sum, sum, lambda word: zlib.crc32(word.encode()) % REDUCERS)
    counts = {word: count for part in results for word, count in part.items()}
    expected = collections.Counter(word for line in lines if "\0" not in line for word in line.split())
    print("word count is right:", counts == expected, "- skipped records:", skipped)
    print("a straggler was overtaken:", os.path.exists(slow), "- a worker was killed:", os.path.exists(killed))


def once(marker):
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        return True
    except FileExistsError:
        return False


def sort(count=4_000_000, mappers=8):
    """Sort numbers by sampling: mappers split by range, reducers sort their range."""

    @shoal.remote(num_returns=REDUCERS)
    def split(seed, bounds):
        numbers = np.sort(np.random.default_rng(seed).random(count // mappers))
        return [part.copy() for part in np.split(numbers, np.searchsorted(numbers, bounds))]

    @shoal.remote
    def merge(*parts):
        return np.sort(np.concatenate(parts), kind="mergesort")

    bounds = np.quantile(np.random.default_rng(0).random(10_000), [number / REDUCERS for number in range(1, REDUCERS)])
    began = time.perf_counter()
    parts = [split.remote(seed, bounds) for seed in range(mappers)]
    merged = shoal.get([merge.remote(*column) for column in zip(*parts, strict=True)])
    elapsed = time.perf_counter() - began
    ends = [(part[0], part[-1]) for part in merged]
    in_order = all(np.all(part[:-1] <= part[1:]) for part in merged) and all(
        left[1] <= right[0] for left, right in itertools.pairwise(ends)
    )
    print(f"{sum(map(len, merged)):,} numbers are sorted:", bool(in_order))
    print(f"million numbers a second: {count / elapsed / 1e6:.1f}")


def main():
    import tempfile

    shoal.init(num_cpus=4, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        word_count(folder)
    sort()
    shoal.shutdown()


if __name__ == "__main__":
    main()
