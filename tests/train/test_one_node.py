"""Shared memory of a group's members, whose threads stand for their processes."""

from __future__ import annotations

import mmap
import os
import subprocess
import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.train import one_node
from shoal.train.one_node import MemberGone, Shared

TEXT = b"x" * one_node.TEXT_BYTES


def members(count: int, timeout_s: float = 60.0, pids: list[int] | None = None) -> list[Shared]:
    memory = mmap.mmap(-1, one_node._head_bytes(count) + 2 * count * one_node.CHUNK_BYTES)
    return [Shared(memory, rank, pids or [os.getpid()] * count, timeout_s) for rank in range(count)]


def all_at_once(group: list[Shared], call: Any) -> list[Any]:
    found: list[Any] = [None] * len(group)

    def run(rank: int) -> None:
        try:
            found[rank] = call(rank, group[rank])
        except MemberGone as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(group))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    for one in group:
        one.close()
    return found


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 4),
    st.lists(st.integers(0, 70), min_size=1, max_size=3),
    st.sampled_from(["sum", "product", "min", "max"]),
    st.sampled_from(["float64", "float32", "int32", "uint8"]),
)
def test_results_are_those_of_numpy(count: int, sizes: list[int], op: str, kind: str) -> None:
    rng = np.random.default_rng(count)
    rows = [rng.integers(1, 4, (count, size)).astype(kind) for size in sizes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_node, "CHUNK_BYTES", 64)  # so several chunks, and a rest

        def reduce(rank: int, shared: Shared) -> list[Any]:
            own = [row[rank].copy() for row in rows]
            for number, array in enumerate(own):
                said = shared.agree(b"%d" % number * one_node.TEXT_BYTES)
                assert len(set(said)) == 1
                shared.allreduce(array, op)
            return own

        for found in all_at_once(members(count), reduce):
            for row, result in zip(rows, found, strict=True):
                np.testing.assert_array_equal(result, one_node.UFUNCS[op].reduce(row, dtype=kind))


def test_who_does_not_come_is_told_and_the_group_has_failed_for_all() -> None:
    group = members(3, timeout_s=0.05)
    last = threading.Event()

    def meet(rank: int, shared: Shared) -> None:
        if rank == 2:
            last.wait(60)
        try:
            shared.agree(TEXT)
        finally:
            last.set()

    first, second, third = all_at_once(group, meet)
    assert "did not come within 0.05 s" in f"{first} {second}"  # on a busy machine perhaps the other of the two
    assert str(third) == one_node.GIVEN_UP, "who comes later does not wait"


def test_the_dead_are_told_before_time_is_up() -> None:
    with subprocess.Popen(["true"]) as process:
        group = members(2, pids=[os.getpid(), process.pid])
        began = time.monotonic()
        with pytest.raises(MemberGone, match="member 1 has died"):
            group[0].agree(TEXT)
        assert time.monotonic() - began < 50
    for one in group:
        one.close()
