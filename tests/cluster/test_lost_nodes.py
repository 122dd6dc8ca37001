"""A node dies with what lay in its store: whoever needs it gets it, made anew on another node."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.engine.node_counts import eventually

import shoal
from shoal.exceptions import ObjectReconstructionFailedError
from shoal.runtime import spares
from shoal.runtime.core import current
from shoal.testing import Cluster, ClusterNode
from shoal.util.scheduling_strategies import NodeAffinitySchedulingStrategy

StartCluster = Callable[..., Cluster]
SOON_S = 60.0
ITEM = 250_000


def note(path: str, name: str) -> None:
    with open(path, "a") as file:
        file.write(name + "\n")


def runs(path: Path, name: str) -> int:
    return path.read_text().split().count(name) if path.exists() else 0


def here() -> str:
    return str(shoal.get_runtime_context().get_node_id())


@shoal.remote(resources={"gripper": 1})
def made(path: str, name: str, number: float, *inputs: Any) -> Any:
    note(path, name)
    return np.full(ITEM, number) + sum(value[0] for value in inputs)


@shoal.remote
def first_of(value: Any) -> float:
    return float(value[0])


@shoal.remote
def first_inside(refs: Any) -> float:
    return float(shoal.get(refs[0])[0])


@pytest.fixture
def two(start_cluster: StartCluster, monkeypatch: pytest.MonkeyPatch) -> tuple[Cluster, ClusterNode]:
    """A head with the driver, and a node that has the resource which `made` asks for. No spare copies (slow machines make some): runs are counted."""
    monkeypatch.setattr(spares, "is_worth_a_copy", lambda cost_s, size: False)
    cluster = start_cluster(num_cpus=2)
    node = cluster.add_node(num_cpus=2, resources={"gripper": 4})
    cluster.connect(log_to_driver=False)
    return cluster, node


def replace(cluster: Cluster, node: ClusterNode) -> ClusterNode:
    """Kill a node, and give the cluster another one like it."""
    cluster.remove_node(node, kill=True)
    return cluster.add_node(num_cpus=2, resources={"gripper": 4})


def test_results_are_made_anew(two: tuple[Cluster, ClusterNode], tmp_path: Path) -> None:
    cluster, node = two
    path = tmp_path / "runs"
    first = made.remote(str(path), "first", 1.0)
    second = made.remote(str(path), "second", 10.0, first)
    shoal.wait([second], timeout=SOON_S, fetch_local=False)
    cluster.remove_node(node, kill=True)
    eventually(lambda: shoal.wait([second], timeout=0)[0] or current().remaker.reruns)
    assert shoal.wait([first, second], num_returns=2, timeout=0) == ([], [first, second])
    assert shoal.wait([first, second], num_returns=2, timeout=0, fetch_local=False) == ([], [first, second])
    cluster.add_node(num_cpus=2, resources={"gripper": 4})
    assert shoal.wait([first, second], num_returns=2, timeout=SOON_S) == ([first, second], [])
    assert shoal.get([second, first], timeout=0)[0][0] == 11
    assert runs(path, "first") == runs(path, "second") == 2


@shoal.remote(num_returns=5, resources={"gripper": 1})
def many(path: str) -> Any:
    note(path, "many")
    return tuple(np.full(ITEM, number) for number in range(5))


@shoal.remote(num_returns="streaming", resources={"gripper": 1})
def stream(path: str) -> Any:
    note(path, "stream")
    for number in range(5):
        yield np.full(ITEM, number)


def several(path: str) -> list[Any]:
    """Large results of one task with several, and of a stream."""
    return [*many.remote(path), *stream.remote(path)]


def test_what_is_lost_together_is_made_by_one_run(two: tuple[Cluster, ClusterNode], tmp_path: Path) -> None:
    """Whether it is asked for at once or one after the other, and whoever owned it: the driver, a process that died before, or one of that node."""
    cluster, node = two
    at_once, in_turn, of_dead, of_there = (
        str(tmp_path / name) for name in ("at_once", "in_turn", "of_dead", "of_there")
    )
    dead = Owner.options(resources={}, scheduling_strategy=NodeAffinitySchedulingStrategy(here(), soft=False)).remote()  # type: ignore[attr-defined]
    there = Owner.remote()
    refs = {at_once: several(at_once), in_turn: several(in_turn)}
    refs[of_dead], refs[of_there] = shoal.get(
        [dead.several.remote(of_dead), there.several.remote(of_there)], timeout=SOON_S
    )
    every = [ref for some in refs.values() for ref in some]
    shoal.wait(every, num_returns=len(every), timeout=SOON_S, fetch_local=False)
    shoal.kill(dead)
    replace(cluster, node)
    assert [value[0] for value in shoal.get(refs.pop(at_once), timeout=SOON_S)] == [0, 1, 2, 3, 4] * 2
    for some in refs.values():
        assert [shoal.get(ref, timeout=SOON_S)[0] for ref in some] == [0, 1, 2, 3, 4] * 2
    for path in (at_once, in_turn, of_dead, of_there):
        assert (path, runs(Path(path), "many"), runs(Path(path), "stream")) == (path, 2, 2)


def test_a_freed_input_is_made_anew_too(two: tuple[Cluster, ClusterNode], tmp_path: Path) -> None:
    cluster, node = two
    path = tmp_path / "runs"
    first = made.remote(str(path), "first", 1.0)
    second = made.remote(str(path), "second", 10.0, first)
    shoal.wait([second], timeout=SOON_S, fetch_local=False)
    del first
    replace(cluster, node)
    assert shoal.get(second, timeout=SOON_S)[0] == 11
    assert runs(path, "first") == runs(path, "second") == 2


def test_a_chain_begins_again_at_its_spare_copy(
    two: tuple[Cluster, ClusterNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, node = two
    path = tmp_path / "runs"
    runtime = current()

    def follow(ref: Any, count: int) -> Any:
        for _ in range(count):
            ref = made.remote(str(path), "link", 1.0, *([ref] if ref is not None else []))
        shoal.wait([ref], timeout=SOON_S, fetch_local=False)
        return ref

    monkeypatch.setattr(spares, "is_worth_a_copy", lambda cost_s, size: True)
    ref = follow(None, 8)
    deadline = time.monotonic() + SOON_S
    record = runtime.lineage.records[ref.binary()[:16]]
    while record.spare is None:
        assert time.monotonic() < deadline, "no copy was made"
        time.sleep(0.01)
        runtime.poll()
    monkeypatch.setattr(spares, "is_worth_a_copy", lambda cost_s, size: False)
    assert runtime.spares.bytes == record.spare.size, "of the newest only"
    ref = follow(ref, 2)
    del record
    replace(cluster, node)
    assert shoal.get(ref, timeout=SOON_S)[0] == 10
    assert runs(path, "link") == 8 + 2 + 2, "not from the beginning"
    assert runtime.spares.taken == 1 and runtime.spares.bytes == 0
    del ref
    head = cluster.nodes[0]
    while head.call("node.stats")["store"]["objects"]:
        assert time.monotonic() < deadline, head.call("node.stored")
        time.sleep(0.01)


def test_a_task_elsewhere_finds_its_argument_lost(two: tuple[Cluster, ClusterNode], tmp_path: Path) -> None:
    cluster, node = two
    path = tmp_path / "runs"
    ref = made.remote(str(path), "a", 7.0)
    shoal.wait([ref], timeout=SOON_S, fetch_local=False)
    replace(cluster, node)
    assert shoal.get([first_of.remote(ref) for _ in range(4)], timeout=SOON_S) == [7.0] * 4
    assert runs(path, "a") == 2


def test_borrowers_find_it_lost(two: tuple[Cluster, ClusterNode], tmp_path: Path) -> None:
    cluster, node = two
    path = tmp_path / "runs"
    ref = made.remote(str(path), "a", 7.0)
    shoal.wait([ref], timeout=SOON_S, fetch_local=False)
    replace(cluster, node)
    assert shoal.get([first_inside.remote([ref]) for _ in range(3)], timeout=SOON_S) == [7.0] * 3
    assert shoal.get(first_inside.options(resources={"gripper": 1}).remote([ref]), timeout=SOON_S) == 7
    assert runs(path, "a") == 2


def test_a_chain_that_runs_while_its_node_dies(two: tuple[Cluster, ClusterNode], tmp_path: Path) -> None:
    cluster, node = two
    path = tmp_path / "runs"
    ref = made.remote(str(path), "0", 0.0)
    for number in range(1, 40):
        ref = made.remote(str(path), str(number), 1.0, ref)
    time.sleep(0.5)
    replace(cluster, node)
    assert shoal.get(ref, timeout=SOON_S)[0] == 39


def test_a_put_says_why_not(two: tuple[Cluster, ClusterNode]) -> None:
    cluster, node = two

    @shoal.remote(resources={"gripper": 1}, max_retries=0)
    def once() -> Any:
        return np.zeros(ITEM)

    ref, other = once.remote(), once.remote()
    shoal.wait([ref, other], num_returns=2, timeout=SOON_S, fetch_local=False)
    replace(cluster, node)
    for each in (ref, first_of.remote(other)):
        with pytest.raises(ObjectReconstructionFailedError, match=r"(?s)once\(\), is lost: .* is dead.*max_retries=0"):
            shoal.get(each, timeout=SOON_S)


@shoal.remote(resources={"gripper": 1}, num_cpus=0)
class Owner:
    """Lives on the node that dies, and hands on refs, whose home that node is."""

    def submit(self, path: str, seconds: float) -> Any:
        first = slow.remote(path, "first", seconds)
        self.kept = [slow.remote(path, "second", 0.0, first)]
        return self.kept

    def large(self, path: str) -> Any:
        self.kept = [made.remote(path, "large", 5.0)]
        shoal.wait(self.kept)
        return self.kept

    def several(self, path: str) -> Any:
        self.kept = several(path)
        shoal.wait(self.kept, num_returns=len(self.kept), fetch_local=False)
        return self.kept

    def put(self, value: Any) -> Any:
        self.kept = [shoal.put(value)]
        return self.kept


@shoal.remote
def slow(path: str, name: str, seconds: float, *inputs: Any) -> str:
    note(path, name)
    time.sleep(seconds)
    return name


def test_the_node_of_an_owner_dies(two: tuple[Cluster, ClusterNode], tmp_path: Path) -> None:
    cluster, node = two
    path = tmp_path / "runs"
    owner = Owner.remote()
    [ref] = shoal.get(owner.submit.remote(str(path), 1.0), timeout=SOON_S)
    deadline = time.monotonic() + SOON_S
    while not runs(path, "first"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    cluster.remove_node(node, kill=True)
    assert shoal.get(ref, timeout=SOON_S) == "second"
    assert shoal.get(first_inside.remote([shoal.put([1.0])]), timeout=SOON_S) == 1


def test_what_lay_there_too_is_made_anew(two: tuple[Cluster, ClusterNode], tmp_path: Path) -> None:
    cluster, node = two
    path = tmp_path / "runs"
    owner = Owner.remote()
    [ref] = shoal.get(owner.large.remote(str(path)), timeout=SOON_S)
    replace(cluster, node)
    assert shoal.get(ref, timeout=SOON_S)[0] == 5
    assert runs(path, "large") == 2


def test_a_small_put_of_a_dead_node_is_still_known(two: tuple[Cluster, ClusterNode]) -> None:
    cluster, node = two
    owner = Owner.remote()
    [ref] = shoal.get(owner.put.remote("small"), timeout=SOON_S)
    time.sleep(0.2)
    cluster.remove_node(node, kill=True)
    assert shoal.get(ref, timeout=SOON_S) == "small"


def test_a_put_of_a_task_on_a_dead_node(two: tuple[Cluster, ClusterNode], tmp_path: Path) -> None:
    cluster, node = two
    path = tmp_path / "runs"

    @shoal.remote(resources={"gripper": 1})
    def putting() -> Any:
        note(str(path), "putting")
        return [shoal.put(np.full(ITEM, 3.0))]

    [ref] = shoal.get(putting.remote(), timeout=SOON_S)
    replace(cluster, node)
    assert shoal.get(ref, timeout=SOON_S)[0] == 3
    assert runs(path, "putting") == 2


def test_all_holders_agree_on_one_heir(start_cluster: StartCluster, tmp_path: Path) -> None:
    """Three nodes hold a ref of the dead one; its task runs once more, for all of them."""
    cluster = start_cluster(num_cpus=2)
    node = cluster.add_node(num_cpus=2, resources={"gripper": 4})
    for number in range(2):
        cluster.add_node(num_cpus=1, resources={f"holder{number}": 1})
    cluster.connect(log_to_driver=False)
    path = tmp_path / "runs"

    @shoal.remote(num_cpus=0)
    class Holder:
        def keep(self, refs: Any) -> None:
            self.refs = refs

        def read(self) -> float:
            return float(shoal.get(self.refs[0])[0])

    owner = Owner.remote()
    refs = shoal.get(owner.large.remote(str(path)), timeout=SOON_S)
    holders = [Holder.options(resources={f"holder{number}": 1}).remote() for number in range(2)]
    shoal.get([holder.keep.remote(refs) for holder in holders], timeout=SOON_S)
    replace(cluster, node)
    reads = [holder.read.remote() for holder in holders]
    assert shoal.get(refs[0], timeout=SOON_S)[0] == 5
    assert shoal.get(reads, timeout=SOON_S) == [5.0, 5.0]
    assert runs(path, "large") == 2


@shoal.remote(resources={"gripper": 1})
def stops_midway(path: str, taken: str) -> Any:
    """Six arrays, and when three have been taken it says so and waits, the first time."""
    note(path, here())
    for number in range(6):
        if number == 3 and len(Path(path).read_text().split()) == 1:
            eventually(lambda: Path(taken).exists(), SOON_S)
            time.sleep(600)  # until its node is dead
        yield np.full(ITEM, float(number))


def test_a_stream_goes_on_elsewhere_and_leaves_nothing(two: tuple[Cluster, ClusterNode], tmp_path: Path) -> None:
    cluster, node = two
    path, taken = tmp_path / "runs", tmp_path / "taken"
    items = stops_midway.remote(str(path), str(taken))
    assert [shoal.get(next(items), timeout=SOON_S)[0] for _ in range(3)] == [0, 1, 2]
    taken.touch()
    after = replace(cluster, node)
    assert [shoal.get(ref, timeout=SOON_S)[0] for ref in items] == [3, 4, 5]
    assert path.read_text().split() == [node.node_id, after.node_id]
    eventually(lambda: not after.call("node.stored")["stored"], SOON_S)


def test_a_file_of_another_node_is_damaged(start_cluster: StartCluster, tmp_path: Path) -> None:
    """The value was moved to disk there; a task there and a program here want it."""
    cluster = start_cluster(num_cpus=1)
    node = cluster.add_node(num_cpus=1, resources={"gripper": 4}, object_store_memory=16 << 20)
    cluster.connect(log_to_driver=False)
    path = tmp_path / "runs"
    ref = made.remote(str(path), "lost", 7.0)
    others = [made.remote(str(path), "other", float(number)) for number in range(10)]
    shoal.wait([ref, *others], num_returns=11, timeout=SOON_S, fetch_local=False)

    def file() -> Path | None:
        return next(
            (file for file in Path(node.session_dir, "spill").glob(f"{ref.hex()}*") if file.stat().st_size), None
        )

    eventually(lambda: file() is not None, SOON_S)
    found = file()
    assert found is not None
    with found.open("r+b") as opened:
        opened.seek(5000)
        opened.write(b"damaged!")
    there = first_of.options(resources={"gripper": 1}).remote(ref)
    assert shoal.get(there, timeout=SOON_S) == 7 and shoal.get(ref, timeout=SOON_S)[0] == 7
    assert [shoal.get(other, timeout=SOON_S)[0] for other in others] == list(range(10))
    assert runs(path, "lost") == 2 and runs(path, "other") == 10
