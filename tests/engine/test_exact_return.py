"""What a killed worker had comes back, to the byte: pins, memory that it was writing, CPUs that it had lent, GPUs, bundles. One session; its daemon's
accounts must be, after each kill, what they were before."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shoal
from shoal.exceptions import WorkerCrashedError
from shoal.runtime.core import current
from shoal.util import placement_group, remove_placement_group
from shoal.util.scheduling_strategies import PlacementGroupSchedulingStrategy

SOON_S = 60.0
MB = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    shoal.shutdown()
    shoal.init(num_cpus=2, num_gpus=2, log_to_driver=False)
    yield
    shoal.shutdown()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def accounts() -> dict[str, Any]:
    """What is free, lent, held and stored, as the daemon has it."""
    stats, resources = current().call("node.stats"), current().call("node.resources")
    scheduler, objects, store = stats["scheduler"], stats["objects"], stats["store"]
    return {
        "taken": {name: resources["total"][name] - resources["available"].get(name, 0) for name in resources["total"]},
        "leases": [
            scheduler[name] for name in ("leases", "leases_blocked", "leases_ending", "actors", "tasks_waiting")
        ],
        "refs": [objects[name] for name in ("objects", "holds", "handed", "candidates")],
        "store": [store[name] for name in ("objects", "resident_bytes", "spilled_bytes", "waiting")],
    }


NOTHING: dict[str, Any] = {"leases": [0] * 5, "refs": [0] * 4, "store": [0] * 4}


@pytest.fixture(autouse=True)
def exact(session: None) -> Iterator[None]:
    """Nothing is taken, held or stored before a test, nor after it; nor is there any budget but that of living writers."""
    yield
    deadline = time.monotonic() + SOON_S
    while True:
        found = accounts()
        taken = found.pop("taken")
        if found == NOTHING and not any(taken.values()):
            break
        assert time.monotonic() < deadline, (taken, found)
        time.sleep(0.02)
        current().poll()


@shoal.remote(max_retries=0)
def reads(array: Any, copy: Any) -> None:
    assert array[0] == 1 and copy is not None
    die()


def test_pins() -> None:
    """Two arrays are being read when their reader dies: their memory is free as soon as nobody refers to them."""
    one, two = shoal.put(np.ones(MB)), shoal.put(np.ones(MB))
    with pytest.raises(WorkerCrashedError):
        shoal.get(reads.remote(one, two), timeout=SOON_S)


@shoal.remote(max_retries=0)
def writes() -> Any:
    from shoal.store.segment import Segment

    Segment.set_state = lambda *_: die()  # type: ignore[method-assign,assignment,return-value]
    return np.ones(4 * MB)


def test_memory_that_was_being_written() -> None:
    """Whoever writes dies between the bytes and the seal: its whole segment goes, nothing of it is taken for an object."""
    before = current().call("node.stats")["store"]
    with pytest.raises(WorkerCrashedError):
        shoal.get(writes.remote(), timeout=SOON_S)
    deadline = time.monotonic() + SOON_S
    while (after := current().call("node.stats")["store"])["budget_bytes"] > before["budget_bytes"]:
        assert time.monotonic() < deadline, (before, after)
        time.sleep(0.02)
    assert after["segments"] <= before["segments"]


@shoal.remote
def waits_for(path: str) -> int:
    while not os.path.exists(path):
        time.sleep(0.005)
    return 1


@shoal.remote(max_retries=0, num_cpus=2)
def lends(pid_file: str, path: str) -> Any:
    child = waits_for.options(num_cpus=2).remote(path)
    with open(pid_file + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(pid_file + ".new", pid_file)
    return shoal.get(child)


def test_cpus_that_were_lent(tmp_path: Path) -> None:
    """A task that waits has lent both CPUs to its child when it dies: they are counted once, not twice."""
    pid_file, go = tmp_path / "pid", tmp_path / "go"
    ref = lends.remote(str(pid_file), str(go))
    deadline = time.monotonic() + SOON_S
    while not pid_file.exists() or not current().call("node.stats")["scheduler"]["leases_blocked"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(int(pid_file.read_text()), signal.SIGKILL)
    with pytest.raises(WorkerCrashedError):
        shoal.get(ref, timeout=SOON_S)
    go.touch()
    assert shoal.get(waits_for.options(num_cpus=2).remote(str(go)), timeout=SOON_S) == 1


@shoal.remote(num_gpus=1, num_cpus=0, max_retries=0)
def gpu(dies: bool, folder: str, others: int) -> list[int]:
    ids = shoal.get_runtime_context().get_accelerator_ids()["GPU"]
    Path(folder, f"{others}-{ids[0]}").touch()
    while len(list(Path(folder).glob(f"{others}-*"))) < 2 and not dies:
        time.sleep(0.005)
    if dies:
        die()
    return [int(each) for each in ids]


def test_gpu_ids(tmp_path: Path) -> None:
    """Two die with a GPU each; the same two GPUs are given to others, one to each."""
    for ref in [gpu.remote(True, str(tmp_path), 0) for _ in range(2)]:
        with pytest.raises(WorkerCrashedError):
            shoal.get(ref, timeout=SOON_S)
    found = shoal.get([gpu.remote(False, str(tmp_path), 1) for _ in range(2)], timeout=SOON_S)
    assert sorted(found) == [[0], [1]]


@shoal.remote(max_retries=0)
def dies_there() -> None:
    die()


def test_bundles() -> None:
    """Who dies in a bundle leaves it whole; and the bundle the node."""
    group = placement_group([{"CPU": 1, "GPU": 1}])
    shoal.get(group.ready(), timeout=SOON_S)
    there = {"scheduling_strategy": PlacementGroupSchedulingStrategy(group), "num_cpus": 1, "num_gpus": 1}
    with pytest.raises(WorkerCrashedError):
        shoal.get(dies_there.options(**there).remote(), timeout=SOON_S)
    assert shoal.get(waits_for.options(**there).remote("/"), timeout=SOON_S) == 1
    remove_placement_group(group)
