"""Objects: values that live in the store and travel as refs. Ends with a word count over the standard library's sources."""

import re
import sysconfig
from collections import Counter
from pathlib import Path

import numpy as np

import shoal

shoal.init(num_cpus=2)

# `put` stores a value once. Every task that gets the ref reads the same memory: 32 MB here, copied once and never again.
matrix = np.arange(4_000_000, dtype=np.float64).reshape(2000, 2000)
matrix_ref = shoal.put(matrix)


@shoal.remote
def column_sum(table, column):
    return float(table[:, column].sum())


print("sums of 3 columns:", shoal.get([column_sum.remote(matrix_ref, column) for column in range(3)]))

# What comes out of the store is shared, so it is read-only. Copy it to change it.
shared = shoal.get(matrix_ref)
try:
    shared[0, 0] = 1.0
except ValueError as error:
    print("read-only:", error)
mine = shared.copy()
mine[0, 0] = 1.0


# Large results stay in the store as well: only the ref comes back, and it can be passed on without passing through here.
@shoal.remote
def scaled(table, factor):
    return table * factor


print("a column of the scaled matrix:", shoal.get(column_sum.remote(scaled.remote(matrix_ref, 2.0), 0)))


# Inside a container a ref stays a ref: the task decides what it needs, and when.
@shoal.remote
def first_of(refs):
    return shoal.get(refs[0])


print("the first of the refs:", shoal.get(first_of.remote([shoal.put("one"), shoal.put("two")])))


# `wait` splits refs into those that are ready and the rest: handle results as they come.
@shoal.remote
def delayed(seconds):
    import time

    time.sleep(seconds)
    return seconds


pending = [delayed.remote(seconds) for seconds in (0.6, 0.0)]
ready, pending = shoal.wait(pending, num_returns=1)
print("first to finish:", shoal.get(ready[0]), "- still running:", len(pending))


# Word count. Map: each task reads a few files and returns one small counter per reducer. Reduce: each task adds up its share.
REDUCERS = 4


@shoal.remote(num_returns=REDUCERS)
def count_words(paths):
    shares = [Counter() for _ in range(REDUCERS)]
    for path in paths:
        for word in re.findall(r"[a-z]{4,}", path.read_text(encoding="utf-8", errors="replace").lower()):
            shares[sum(word.encode()) % REDUCERS][word] += 1
    return shares


@shoal.remote
def add_up(*shares):
    return sum(shares, Counter())


files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
mapped = [count_words.remote(files[start : start + 20]) for start in range(0, len(files), 20)]
reduced = [add_up.remote(*[shares[number] for shares in mapped]) for number in range(REDUCERS)]
words = sum(shoal.get(reduced), Counter())
print(
    f"{len(files)} files, {words.total():,} words; 'return' and 'self' among the top 3:",
    {"return", "self"} <= {w for w, _ in words.most_common(3)},
)

shoal.shutdown()
