"""Objects whose bytes are gone are made anew: spilled files are damaged and deleted under running programs.

Every task that matters appends a line to a file each time it runs, so that the tests know how often it did.
"""

from __future__ import annotations

import gc
import glob
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shoal
from shoal.exceptions import (
    ObjectReconstructionFailedError,
    ObjectReconstructionFailedMaxAttemptsExceededError,
    StreamingGeneratorReplayInconsistentError,
    TaskCancelledError,
)
from shoal.runtime import core

STORE_BYTES = 24 << 20
ITEM = 250_000  #: float64 numbers: 2 MB


@pytest.fixture(scope="module", autouse=True)
def small_store() -> Iterator[None]:
    shoal.shutdown()
    shoal.init(num_cpus=2, object_store_memory=STORE_BYTES, log_to_driver=False)
    yield
    shoal.shutdown()


def runs(path: Path, name: str) -> int:
    """How often the task that notes `name` has run."""
    return path.read_text().split().count(name) if path.exists() else 0


def note(path: str, name: str) -> None:
    with open(path, "a") as file:
        file.write(name + "\n")


def spill_files() -> list[str]:
    return glob.glob(os.path.join(core.current().session_dir, "spill", "*"))


def spill(ref: Any) -> str:
    """Fill the store until the object lies on disk only; its file."""
    name = ref.hex()
    time.sleep(0.15)  # what was just read is spared
    for _ in range(60):
        fill = [shoal.put(np.zeros(ITEM)) for _ in range(13)]
        del fill
        found = [file for file in spill_files() if os.path.basename(file).startswith(name)]
        if found and not _resident(ref):
            return found[0]
        time.sleep(0.05)
    raise AssertionError("the store does not spill")


def _resident(ref: Any) -> bool:
    """Whether the place that this process knows is still valid."""
    from shoal.store.client import StaleBlock

    runtime = core.current()
    value = ref._entry.value
    try:
        runtime.store.read(value)  # type: ignore[union-attr]
    except StaleBlock:
        return False
    return True


def lose(*refs: Any, damage: bool = False) -> None:
    """Spill objects and take their files away."""
    for ref in refs:
        file = spill(ref)
        if damage:
            with open(file, "r+b") as opened:
                opened.seek(1000)
                opened.write(b"damaged!")
        else:
            os.unlink(file)


@shoal.remote
def made(path: str, name: str, number: float, *inputs: Any) -> Any:
    note(path, name)
    return np.full(ITEM, number) + sum(value[0] for value in inputs)


@shoal.remote
def made_slowly(path: str, name: str) -> Any:
    """Zeros; from its second run on only when the daemon has had time to free what nobody holds."""
    note(path, name)
    time.sleep(0.3 if runs(Path(path), name) > 1 else 0)
    return np.zeros(ITEM)


@shoal.remote
def first_of(value: Any) -> float:
    return float(value[0])


@pytest.mark.parametrize("damage", [False, True], ids=["deleted", "damaged"])
def test_a_lost_result_is_made_anew(tmp_path: Path, damage: bool) -> None:
    path = tmp_path / "runs"
    ref = made.remote(str(path), "a", 7.0)
    assert shoal.get(ref, timeout=60)[0] == 7
    lose(ref, damage=damage)
    assert shoal.get(ref, timeout=60)[0] == 7
    assert runs(path, "a") == 2


def test_a_task_finds_its_argument_lost(tmp_path: Path) -> None:
    path = tmp_path / "runs"
    ref = made.remote(str(path), "a", 7.0)
    shoal.wait([ref], timeout=60)
    lose(ref)
    assert shoal.get([first_of.remote(ref) for _ in range(4)], timeout=60) == [7.0] * 4
    assert runs(path, "a") == 2


def test_a_borrower_finds_it_lost(tmp_path: Path) -> None:
    path = tmp_path / "runs"

    @shoal.remote
    def nested(refs: Any) -> float:
        return float(shoal.get(refs[0])[0])

    ref = made.remote(str(path), "a", 7.0)
    shoal.wait([ref], timeout=60)
    assert shoal.get(nested.remote([ref]), timeout=60) == 7
    lose(ref)
    assert shoal.get([nested.remote([ref]) for _ in range(3)], timeout=60) == [7.0] * 3
    assert shoal.get(ref, timeout=60)[0] == 7
    assert runs(path, "a") == 2


def test_an_input_that_another_process_owned_and_nobody_holds_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "runs"

    @shoal.remote(num_cpus=0)
    class Owner:
        def submit(self) -> Any:
            return [made.remote(str(path), "first", 1.0)]

    owner = Owner.remote()
    [first] = shoal.get(owner.submit.remote(), timeout=60)
    second = made.remote(str(path), "second", 10.0, first)
    shoal.wait([second], timeout=60)
    name = first.binary()
    del first
    deadline = time.monotonic() + 60
    while any(row["oid"] == name for row in core.current().call("node.stored")["stored"]):
        assert time.monotonic() < deadline, "it stays"
        time.sleep(0.02)
    lose(second)
    assert shoal.get(second, timeout=60)[0] == 11


def test_inputs_that_were_freed_long_ago_are_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "runs"
    small = shoal.remote(lambda: 3.0).remote()
    first = made.remote(str(path), "first", 1.0)
    second = made.remote(str(path), "second", 10.0, first)
    argument = np.full(ITEM, 100.0)  # travels through the store
    slow = made_slowly.remote(str(path), "slow")  # meanwhile nobody but the run that waits uses what is made anew
    third = made.remote(str(path), "third", 1000.0, second, second, argument, slow)
    scaled = shoal.remote(lambda value, factor: value * factor).remote(third, small)
    assert shoal.get(scaled, timeout=60)[0] == 3 * 1122
    del first, second, third, small, argument, slow
    lose(scaled)
    assert shoal.get(scaled, timeout=60)[0] == 3 * 1122
    assert [runs(path, name) for name in ("first", "second", "third", "slow")] == [2, 2, 2, 2]


def test_a_chain_of_lost_inputs_runs_each_once(tmp_path: Path) -> None:
    path = tmp_path / "runs"
    refs = [made.remote(str(path), "0", 0.0)]
    for number in range(1, 5):
        refs.append(made.remote(str(path), str(number), 1.0, refs[-1]))
    assert shoal.get(refs[-1], timeout=60)[0] == 4
    lose(*refs)
    assert shoal.get(refs[-1], timeout=60)[0] == 4
    assert [runs(path, str(number)) for number in range(5)] == [2] * 5
    assert [shoal.get(ref, timeout=60)[0] for ref in refs] == [0, 1, 2, 3, 4]


def test_several_results_lost_together_are_made_by_one_run(tmp_path: Path) -> None:
    path = tmp_path / "runs"

    @shoal.remote(num_returns=3)
    def three() -> Any:
        note(str(path), "three")
        return np.full(ITEM, 1.0), "small", np.full(ITEM, 2.0)

    one, small, two = three.remote()
    shoal.wait([one, small, two], num_returns=3, timeout=60)
    lose(one, two)
    assert shoal.get(one, timeout=60)[0] == 1 and shoal.get(small) == "small" and shoal.get(two, timeout=20)[0] == 2
    assert runs(path, "three") == 2


def test_of_several_results_only_the_lost_one_is_written(tmp_path: Path) -> None:
    @shoal.remote(num_returns=2)
    def two() -> Any:
        return np.full(ITEM, 1.0), np.full(ITEM, 2.0)

    lost, kept = two.remote()
    view = shoal.get(kept, timeout=60)
    shoal.wait([lost], timeout=60)
    lose(lost)
    assert shoal.get(lost, timeout=60)[0] == 1
    again = shoal.get(kept, timeout=60)
    assert again.ctypes.data == view.ctypes.data, "a value that is there stays where it is"


def test_items_of_a_stream(tmp_path: Path) -> None:
    path = tmp_path / "runs"

    @shoal.remote
    def stream(count: int) -> Any:
        note(str(path), "stream")
        for number in range(count):
            yield np.full(ITEM, float(number))

    refs = list(stream.remote(6))
    assert [shoal.get(ref, timeout=60)[0] for ref in refs] == [0, 1, 2, 3, 4, 5]
    lose(refs[1], refs[4])
    assert [shoal.get(ref, timeout=60)[0] for ref in refs] == [0, 1, 2, 3, 4, 5]
    assert runs(path, "stream") == 2


def test_a_stream_that_is_shorter_the_second_time(tmp_path: Path) -> None:
    path = tmp_path / "runs"

    @shoal.remote
    def stream() -> Any:
        note(str(path), "stream")
        for number in range(3 if runs(path, "stream") == 1 else 1):
            yield np.full(ITEM, float(number))

    refs = list(stream.remote())
    shoal.wait(refs, num_returns=3, timeout=60)
    lose(refs[2])
    with pytest.raises(StreamingGeneratorReplayInconsistentError, match="stream"):
        shoal.get(refs[2], timeout=60)


@pytest.mark.parametrize("retries", [0, 2])
def test_results_of_actor_methods(tmp_path: Path, retries: int) -> None:
    path = tmp_path / "runs"

    @shoal.remote(max_task_retries=retries, max_restarts=1)
    class Maker:
        def make(self, number: float) -> Any:
            note(str(path), "make")
            return np.full(ITEM, number)

    maker = Maker.remote()
    ref = maker.make.remote(5.0)
    assert shoal.get(ref, timeout=60)[0] == 5
    lose(ref)
    if retries:
        assert shoal.get(ref, timeout=60)[0] == 5
        assert runs(path, "make") == 2
    else:
        with pytest.raises(ObjectReconstructionFailedError, match=r"(?s)Maker.make.*max_task_retries=1"):
            shoal.get(ref, timeout=60)


def test_what_cannot_be_made_again_says_why(tmp_path: Path) -> None:
    path = str(tmp_path / "runs")
    put = shoal.put(np.zeros(ITEM))
    once = made.options(max_retries=0).remote(path, "once", 1.0)
    shoal.wait([once], timeout=60)
    lose(put, once)
    with pytest.raises(
        ObjectReconstructionFailedError, match=r"(?s)put by this driver.*spilled copy.*let a task return"
    ) as failed:
        shoal.get(put, timeout=60)
    assert put.hex() in str(failed.value) and failed.value.object_id == put.hex()
    with pytest.raises(ObjectReconstructionFailedError, match=r"(?s)made by made\(\).*max_retries=0"):
        shoal.get(once, timeout=60)
    twice = made.options(max_retries=1).remote(path, "twice", 1.0)
    shoal.wait([twice], timeout=60)
    lose(twice)
    assert shoal.get(twice, timeout=60)[0] == 1
    lose(twice)
    with pytest.raises(ObjectReconstructionFailedMaxAttemptsExceededError, match=r"max_retries=1"):
        shoal.get(twice, timeout=60)


def test_who_cancels_a_task_that_runs_again_is_told_so(tmp_path: Path) -> None:
    path, told = tmp_path / "runs", []

    @shoal.remote
    def slow_again(path: str) -> Any:
        note(path, "slow")
        if runs(Path(path), "slow") > 1:
            for _ in range(600):
                time.sleep(0.1)
        return np.zeros(ITEM)

    ref = slow_again.remote(str(path))
    shoal.wait([ref], timeout=60)
    lose(ref)

    refs = [ref]

    def get() -> None:
        with pytest.raises(TaskCancelledError) as caught:
            shoal.get(refs[0], timeout=60)
        told.append(str(caught.value))

    getting = threading.Thread(target=get)
    getting.start()
    deadline = time.monotonic() + 60
    while runs(path, "slow") < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    shoal.cancel(ref)
    getting.join(60)
    assert len(told) == 1 and "slow_again() was cancelled" in told[0]
    assert f"It was to run again: object {ref.hex()}, made by slow_again(), is lost: " in told[0]
    del ref, refs[:]
    gc.collect()  # the error's frames had the ref, which must not outlive the session: it would be let go in the next one


def test_a_task_fails_with_the_reason_why_its_argument_is_lost() -> None:
    put = shoal.put(np.zeros(ITEM))
    lose(put)
    with pytest.raises(ObjectReconstructionFailedError, match=r"let a task return"):
        shoal.get(first_of.remote(put), timeout=60)


def test_the_worker_of_a_rerun_dies(tmp_path: Path) -> None:
    path = tmp_path / "runs"

    @shoal.remote
    def fragile() -> Any:
        note(str(path), "fragile")
        if runs(path, "fragile") == 2:
            os.kill(os.getpid(), 9)
        return np.full(ITEM, 4.0)

    ref = fragile.remote()
    shoal.wait([ref], timeout=60)
    lose(ref)
    assert shoal.get(ref, timeout=60)[0] == 4
    assert runs(path, "fragile") == 3


def test_records_go_with_their_refs(tmp_path: Path) -> None:
    lineage = core.current().lineage

    def records() -> int:
        with core.current().reactor.lock:
            core.current().objects.drain_dropped()
        return lineage.statistics()["records"]

    gc.collect()
    before = records()
    first = made.remote(str(tmp_path / "runs"), "a", 1.0)
    second = made.remote(str(tmp_path / "runs"), "b", 1.0, first)
    shoal.wait([second], timeout=60)
    del first
    assert records() == before + 2, "the record of an input stays with what was made from it"
    del second
    deadline = time.monotonic() + 60
    while records() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert records() == before and lineage.statistics()["promised"] == 0


def test_a_long_chain_of_freed_inputs_is_made_anew() -> None:
    """Every link is in the store, and all but the last are freed."""

    @shoal.remote
    def step(value: Any) -> Any:
        return value + 1

    depth = int(os.environ.get("SHOAL_LINEAGE_DEPTH", "300"))
    ref = step.remote(np.zeros(13_000))
    for _ in range(depth - 1):
        ref = step.remote(ref)
    assert shoal.get(ref, timeout=120)[0] == depth
    lose(ref)
    assert shoal.get(ref, timeout=120)[0] == depth
