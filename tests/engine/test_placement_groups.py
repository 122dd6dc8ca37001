"""Placement groups and scheduling strategies on one node, as a user sees them."""

from __future__ import annotations

import asyncio
import os
import pickle
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from tests.engine.explanations import comes_to_say

import shoal
from shoal.exceptions import (
    ActorPlacementGroupRemoved,
    TaskPlacementGroupRemoved,
    TaskUnschedulableError,
)
from shoal.util import (
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from shoal.util.scheduling_strategies import (
    DoesNotExist,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

IN_TIME_S = 60.0


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    """A node with 4 CPUs, 2 GPUs and a label."""
    shoal.shutdown()
    shoal.init(num_cpus=4, num_gpus=2, resources={"x": 2}, labels={"zone": "a"}, log_to_driver=False)
    yield
    shoal.shutdown()


@pytest.fixture
def make_group() -> Iterator[Callable[..., Any]]:
    """Placed groups, removed at the end of the test."""
    made: list[Any] = []

    def make(*bundles: dict[str, float], **more: Any) -> Any:
        group = placement_group(list(bundles), **more)
        made.append(group)
        assert group.wait(IN_TIME_S)
        return group

    yield make
    for group in made:
        remove_placement_group(group)
    wait_until_free("CPU", 4)
    wait_until_free("GPU", 2)


def wait_until_free(name: str, amount: float) -> None:
    """Workers that were killed give back what they held soon."""
    deadline = time.monotonic() + IN_TIME_S
    while shoal.available_resources().get(name, 0) != amount:
        assert time.monotonic() < deadline, shoal.available_resources()
        time.sleep(0.01)


def in_group(group: Any, index: int = -1, capture: bool | None = None) -> dict[str, Any]:
    return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, index, capture)}


@shoal.remote
def where() -> str | None:
    return shoal.get_runtime_context().get_placement_group_id()


@shoal.remote
def hold(path: str) -> str:
    """Runs until the file is there."""
    with open(f"{path}.{os.getpid()}", "w"):
        pass
    while not os.path.exists(path):
        time.sleep(0.01)
    return "held"


@shoal.remote
class Counter:
    def __init__(self) -> None:
        self.count = 0

    def add(self) -> int:
        self.count += 1
        return self.count

    def where(self) -> str | None:
        return shoal.get_runtime_context().get_placement_group_id()

    def child(self) -> str | None:
        return shoal.get(where.remote())

    def pid(self) -> int:
        return os.getpid()


# ---------------------------------------------------------------- groups


def test_a_group_takes_its_resources_and_gives_them_back(make_group: Callable[..., Any]) -> None:
    group = make_group({"CPU": 1, "x": 0.5}, {"CPU": 1.5})
    assert shoal.available_resources()["CPU"] == 1.5
    assert shoal.available_resources()["x"] == 1.5
    assert shoal.cluster_resources()["CPU"] == 4
    assert group.bundle_count == 2
    assert group.bundle_specs == [{"CPU": 1, "x": 0.5}, {"CPU": 1.5}]
    assert shoal.get(group.ready()) == group
    row = placement_group_table(group)
    assert row["state"] == "CREATED" and row["strategy"] == "PACK"
    assert row["bundles"] == {0: {"CPU": 1, "x": 0.5}, 1: {"CPU": 1.5}}
    assert set(row["bundles_to_node_id"].values()) == {shoal.get_runtime_context().get_node_id()}
    assert placement_group_table()[group.id.hex()] == row
    remove_placement_group(group)
    wait_until_free("CPU", 4)
    assert placement_group_table(group)["state"] == "REMOVED"
    remove_placement_group(group)  # again: no effect


def test_it_may_be_sent_anywhere(make_group: Callable[..., Any]) -> None:
    group = make_group({"CPU": 1})
    assert pickle.loads(pickle.dumps(group)) == group
    assert hash(pickle.loads(pickle.dumps(group))) == hash(group)

    @shoal.remote
    def ready_there(group: Any, ref: list[Any]) -> bool:
        return group.wait(IN_TIME_S) and shoal.get(ref[0]) == group

    assert shoal.get(ready_there.remote(group, [group.ready()]), timeout=IN_TIME_S)

    @shoal.remote
    def bundles(group: Any) -> int:
        return group.bundle_count

    assert shoal.get(bundles.remote(group.ready()), timeout=IN_TIME_S) == 1


def test_ready_works_in_coroutines_and_futures() -> None:
    group = placement_group([{"CPU": 1}])

    async def wait() -> Any:
        return await group.ready()

    assert asyncio.run(wait()) == group
    assert group.ready().future().result(IN_TIME_S) == group
    remove_placement_group(group)


def test_names(make_group: Callable[..., Any]) -> None:
    group = make_group({"CPU": 1}, name="mine")
    assert get_placement_group("mine") == group
    assert get_placement_group("mine").bundle_specs == [{"CPU": 1}]
    with pytest.raises(ValueError, match="taken"):
        placement_group([{"CPU": 1}], name="mine")
    remove_placement_group(group)
    with pytest.raises(ValueError, match="no placement group named 'mine'"):
        get_placement_group("mine")


def test_an_infeasible_group_waits_and_says_why() -> None:
    group = placement_group([{"CPU": 1}, {"CPU": 100}])
    assert not group.wait(0.1)
    comes_to_say(group.ready(), r"bundle 1 asks for 100 CPU, and no node has that")
    assert placement_group_table(group)["state"] == "PENDING"
    assert "100 CPU" in placement_group_table(group)["reason"]
    waiting = where.options(**in_group(group)).remote()
    ready = group.ready()
    comes_to_say(waiting, "100 CPU")
    assert shoal.available_resources()["CPU"] == 4, "nothing is taken before all is there"
    remove_placement_group(group)
    for ref in (waiting, ready):
        with pytest.raises(TaskPlacementGroupRemoved, match="removed"):
            shoal.get(ref, timeout=IN_TIME_S)


def test_a_group_waits_for_what_tasks_hold(tmp_path: Any) -> None:
    path = str(tmp_path / "go")
    holders = [hold.remote(path) for _ in range(3)]
    deadline = time.monotonic() + IN_TIME_S
    while len(os.listdir(tmp_path)) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    group = placement_group([{"CPU": 2}])
    assert not group.wait(0.3)
    with open(path, "w"):
        pass
    assert shoal.get(holders, timeout=IN_TIME_S) == ["held"] * 3
    assert group.wait(IN_TIME_S), "idle leases end for it"
    remove_placement_group(group)
    wait_until_free("CPU", 4)


def test_one_group_after_another_takes_the_same_room() -> None:
    groups = [placement_group([{"CPU": 3}]) for _ in range(5)]
    for group in groups:
        assert group.wait(IN_TIME_S)
        remove_placement_group(group)
    wait_until_free("CPU", 4)


# ---------------------------------------------------------------- tasks


def test_tasks_run_in_their_bundle(make_group: Callable[..., Any]) -> None:
    group = make_group({"CPU": 1}, {"CPU": 2})
    for index in (-1, 0, 1):
        refs = [where.options(**in_group(group, index)).remote() for _ in range(20)]
        assert shoal.get(refs, timeout=IN_TIME_S) == [group.id.hex()] * 20
    assert shoal.get(where.remote(), timeout=IN_TIME_S) is None
    assert get_current_placement_group() is None
    older = where.options(placement_group=group, placement_group_bundle_index=1)
    assert shoal.get(older.remote(), timeout=IN_TIME_S) == group.id.hex()


def test_a_bundle_is_a_bound(make_group: Callable[..., Any], tmp_path: Any) -> None:
    """Of five tasks of one CPU two run in bundles of 1 CPU each, though the node has more."""
    group = make_group({"CPU": 1}, {"CPU": 1})
    path = str(tmp_path / "go")
    refs = [hold.options(**in_group(group)).remote(path) for _ in range(5)]
    deadline = time.monotonic() + IN_TIME_S
    while len(os.listdir(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert len(os.listdir(tmp_path)) == 2
    assert shoal.get(where.remote(), timeout=IN_TIME_S) is None, "others run beside the group"
    with open(path, "w"):
        pass
    assert shoal.get(refs, timeout=IN_TIME_S) == ["held"] * 5


def test_children_are_captured_when_asked(make_group: Callable[..., Any]) -> None:
    group = make_group({"CPU": 1})

    @shoal.remote
    def parent(how: str) -> Any:
        if how == "default":
            return shoal.get(where.options(scheduling_strategy="DEFAULT").remote())
        if how == "refuse":
            return shoal.get(where.options(placement_group_capture_child_tasks=False).remote())
        if how == "actor":
            return shoal.get(Counter.remote().where.remote())
        return shoal.get(where.remote()), get_current_placement_group() == group

    mine = group.id.hex()
    run = parent.options(**in_group(group, 0, True))
    assert shoal.get(run.remote(""), timeout=IN_TIME_S) == (mine, True), "the child uses the CPU that its parent lends"
    assert shoal.get(run.remote("actor"), timeout=IN_TIME_S) == mine
    assert shoal.get(run.remote("default"), timeout=IN_TIME_S) is None
    assert shoal.get(run.remote("refuse"), timeout=IN_TIME_S) is None
    assert shoal.get(parent.options(**in_group(group, 0)).remote(""), timeout=IN_TIME_S) == (None, True)
    assert shoal.get(run.remote(""), timeout=IN_TIME_S) == (mine, True), (
        "what is bound for one is not used for the other"
    )


def test_deep_recursion_within_one_cpu(make_group: Callable[..., Any]) -> None:
    group = make_group({"CPU": 1})

    @shoal.remote
    def deep(levels: int) -> int:
        return 0 if levels == 0 else 1 + shoal.get(deep.remote(levels - 1))

    assert shoal.get(deep.options(**in_group(group, -1, True)).remote(15), timeout=60) == 15


def test_gpus_have_the_ids_of_their_bundle(make_group: Callable[..., Any]) -> None:
    group = make_group({"GPU": 1, "CPU": 1}, {"GPU": 0.5, "CPU": 1})

    @shoal.remote(num_cpus=0)
    def ids() -> tuple[list[int], str | None]:
        return shoal.get_gpu_ids(), os.environ.get("CUDA_VISIBLE_DEVICES")

    whole = ids.options(num_gpus=1, **in_group(group, 0))
    half = ids.options(num_gpus=0.5, **in_group(group, 1))
    first = shoal.get([whole.remote() for _ in range(3)], timeout=IN_TIME_S)
    second = shoal.get([half.remote() for _ in range(3)], timeout=IN_TIME_S)
    assert len({str(each) for each in first}) == 1 and len({str(each) for each in second}) == 1
    assert first[0][0] != second[0][0] and first[0][1] == str(first[0][0][0])
    outside = shoal.get(ids.options(num_gpus=0.5).remote(), timeout=IN_TIME_S)
    assert outside[0] == second[0][0], "the other half is free for others"


def test_what_fits_no_bundle_is_refused_at_once(make_group: Callable[..., Any]) -> None:
    group = make_group({"CPU": 1}, {"CPU": 1, "x": 1})
    with pytest.raises(ValueError, match="bundle 0 has 1 CPU"):
        where.options(num_cpus=2, **in_group(group, 0))
    with pytest.raises(ValueError, match="none of the group's bundles"):
        where.options(num_cpus=2, **in_group(group))
    with pytest.raises(ValueError, match="0 to 1"):
        PlacementGroupSchedulingStrategy(group, 2)
    with pytest.raises(ValueError, match="asks for"):
        Counter.options(num_gpus=1, **in_group(group))


def test_removal_ends_what_runs_and_what_waits(make_group: Callable[..., Any], tmp_path: Any) -> None:
    group = make_group({"CPU": 1})
    stuck = hold.options(**in_group(group))
    running, waiting = stuck.remote(str(tmp_path / "never")), stuck.remote(str(tmp_path / "never"))
    deadline = time.monotonic() + IN_TIME_S
    while not os.listdir(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    remove_placement_group(group)
    for ref in (running, waiting, stuck.remote(""), where.options(**in_group(group)).remote()):
        with pytest.raises(TaskPlacementGroupRemoved):
            shoal.get(ref, timeout=IN_TIME_S)
    wait_until_free("CPU", 4)


# ---------------------------------------------------------------- actors


def test_actors_live_in_bundles(make_group: Callable[..., Any]) -> None:
    group = make_group({"CPU": 1}, {"CPU": 1})
    actors = [Counter.options(num_cpus=1, **in_group(group, -1, True)).remote() for _ in range(2)]
    assert shoal.get([actor.where.remote() for actor in actors], timeout=IN_TIME_S) == [group.id.hex()] * 2
    third = Counter.options(num_cpus=1, **in_group(group)).remote()
    ref = third.where.remote()
    assert shoal.wait([ref], timeout=0.2)[0] == [], "there is no room in the group"
    del actors[0]
    assert shoal.get(ref, timeout=IN_TIME_S) == group.id.hex()
    assert shoal.get(actors[0].child.remote(), timeout=IN_TIME_S) == group.id.hex(), "an actor lends its CPU too"


def test_an_actor_restarts_in_its_bundle(make_group: Callable[..., Any]) -> None:
    group = make_group({"CPU": 1})
    actor = Counter.options(num_cpus=1, max_restarts=1, max_task_retries=1, **in_group(group, 0)).remote()
    os.kill(shoal.get(actor.pid.remote(), timeout=IN_TIME_S), 9)
    assert shoal.get(actor.where.remote(), timeout=IN_TIME_S) == group.id.hex()


def test_removal_ends_actors_for_good(make_group: Callable[..., Any]) -> None:
    group = make_group({"CPU": 1})
    actor = Counter.options(num_cpus=1, max_restarts=-1, lifetime="detached", name="a", **in_group(group)).remote()
    assert shoal.get(actor.add.remote(), timeout=IN_TIME_S) == 1
    remove_placement_group(group)
    with pytest.raises(ActorPlacementGroupRemoved, match="placement group was removed"):
        shoal.get(actor.add.remote(), timeout=IN_TIME_S)
    late = Counter.options(num_cpus=1, **in_group(group)).remote()
    with pytest.raises(shoal.exceptions.ShoalError, match="removed"):
        shoal.get(late.add.remote(), timeout=IN_TIME_S)
    wait_until_free("CPU", 4)


def test_a_worker_that_dies_leaves_its_bundle_whole(make_group: Callable[..., Any]) -> None:
    group = make_group({"CPU": 1})

    @shoal.remote(max_retries=1)
    def die_once(path: str) -> str | None:
        if not os.path.exists(path):
            with open(path, "w"):
                pass
            os._exit(1)
        return shoal.get_runtime_context().get_placement_group_id()

    path = f"/tmp/shoal-test-{os.getpid()}-{time.time_ns()}"
    try:
        assert shoal.get(die_once.options(**in_group(group, 0)).remote(path), timeout=IN_TIME_S) == group.id.hex()
    finally:
        os.unlink(path)


# ---------------------------------------------------------------- other strategies


def test_affinity_and_labels_on_one_node() -> None:
    here = shoal.get_runtime_context().get_node_id()
    elsewhere = "00" * 16

    def run(strategy: Any) -> Any:
        return shoal.get(where.options(scheduling_strategy=strategy).remote(), timeout=IN_TIME_S)

    assert run(NodeAffinitySchedulingStrategy(here, soft=False)) is None
    assert run(NodeAffinitySchedulingStrategy(elsewhere, soft=True)) is None
    assert run("SPREAD") is None
    with pytest.raises(TaskUnschedulableError, match="never part of this cluster"):
        run(NodeAffinitySchedulingStrategy(elsewhere, soft=False))
    assert run(NodeLabelSchedulingStrategy({"zone": In("a", "b"), "other": DoesNotExist()})) is None
    assert run(NodeLabelSchedulingStrategy(soft={"zone": In("z")})) is None
    with pytest.raises(TaskUnschedulableError, match="'zone' is one of 'z'"):
        run(NodeLabelSchedulingStrategy({"zone": In("z")}))
    assert shoal.get(where.options(label_selector={"zone": "in(a, b)"}).remote(), timeout=IN_TIME_S) is None
    with pytest.raises(TaskUnschedulableError):
        shoal.get(where.options(label_selector={"zone": "!a"}).remote(), timeout=IN_TIME_S)
    actor = Counter.options(scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False)).remote()
    assert shoal.get(actor.add.remote(), timeout=IN_TIME_S) == 1
    lost = Counter.options(label_selector={"zone": "z"}).remote()
    with pytest.raises(shoal.exceptions.ActorUnschedulableError):
        shoal.get(lost.add.remote(), timeout=IN_TIME_S)


def test_bundles_with_labels() -> None:
    group = placement_group([{"CPU": 1}], bundle_label_selector=[{"zone": "a"}])
    assert group.wait(IN_TIME_S)
    remove_placement_group(group)
    group = placement_group([{"CPU": 1}], bundle_label_selector=[{"zone": "b"}])
    assert not group.wait(0.1)
    assert "with the labels" in placement_group_table(group)["reason"]
    remove_placement_group(group)


def test_a_job_takes_its_groups_along_unless_detached(shoal_start: Callable[..., ModuleType]) -> None:
    shoal_start(num_cpus=2)
    placement_group([{"CPU": 1}])
    assert placement_group([{"CPU": 1}], name="stays", lifetime="detached").wait(IN_TIME_S)
    assert len(placement_group_table()) == 2
    shoal.shutdown()
