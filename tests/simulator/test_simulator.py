"""The simulator: it repeats itself, it computes what it should, and its checks can fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shoal.gcs import actor_manager
from shoal.gcs.actor_logs import StoredLogs
from shoal.gcs.shard import ACTORS_TABLE
from shoal.gcs.storage.backend import Write
from shoal.gcs.tables import Answers, KeyValues
from shoal.protocol.limits import HEARTBEATS_MISSED_S
from shoal.protocol.messages import ActorSpec
from shoal.protocol.sharding import shard_of
from shoal.protocol.strategies import node_affinity
from shoal.scheduling import forwarding
from shoal.scheduling.forwarding import Forwarding, GcsReturned, GrantedHere
from shoal.scheduling.local_scheduler import LocalScheduler
from shoal.simulator.actors import Actor, Call, Leash, TwoLivesError
from shoal.simulator.campaign import run_seed
from shoal.simulator.cluster import Cluster, Violation
from shoal.simulator.gcs import Gcs
from shoal.simulator.scenarios import everywhere, latency, linear
from shoal.simulator.tasks import Task, tree
from shoal.simulator.world import Channel, Costs, Station, World

COMMAND = [sys.executable, "-m", "shoal.simulator"]


def run(*arguments: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=100, env=environment, check=False
    )


def test_a_seed_gives_the_same_run_whatever_the_hashes() -> None:
    rows = []
    for hash_seed in ("1", "2"):
        found = run("scenario", "everywhere", "--nodes", "7", "--tasks", "900", hash_seed=hash_seed)
        assert found.returncode == 0, found.stderr
        row = json.loads(found.stdout)
        del row["real_s"]
        rows.append(row)
    assert rows[0] == rows[1]
    told = [run("campaign", "--seeds", "12", hash_seed=each).stdout.split(",", 1)[0] for each in ("1", "2")]
    assert told[0] == told[1]


def test_another_seed_gives_another_run() -> None:
    rows = [everywhere(seed, 5, 2, 200, 0.01) for seed in (1, 2)]
    assert rows[0]["start_p50_ms"] != rows[1]["start_p50_ms"]


def test_channels_keep_order_and_stations_take_turns() -> None:
    world = World(3, Costs(network_spread=50.0))
    station, channel, heard = Station(world, 1, "x"), Channel(world, 0, 1), []
    for number in range(50):
        channel.send(station, 1e-3, heard.append, number)
    world.run(10.0)
    assert heard == list(range(50))
    assert station.busy_s == pytest.approx(0.05) and station.free_at >= 0.05


def test_a_partition_holds_back_and_heals() -> None:
    world = World(1, Costs())
    station, channel, heard = Station(world, 1, "x"), Channel(world, 0, 1), []
    world.cut_off(1, 2.0)
    channel.send(station, 0.0, lambda: heard.append(world.now))
    world.run(10.0)
    assert heard[0] >= 2.0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_after_deaths_a_node_that_joins_is_used_whole_at_once(seed: int) -> None:
    """14 chains of 100 ms tasks on five nodes of two CPUs, of which two die. Eight chains wait, and are queued at full nodes, too; then comes one
    with room for all of them."""
    cluster = Cluster(seed, 5, 2)
    cluster.settle()
    first, *_, fourth, fifth = list(cluster.nodes.values())
    driver, world = cluster.add_driver(first), cluster.world

    def link(_: Task | None = None) -> None:
        cluster.submit(driver, [Task(0.1, on_end=link)])

    for _ in range(14):
        link()
    world.run(world.now + 4.0)
    cluster.kill_node(fourth)
    cluster.kill_node(fifth)
    world.run(world.now + 3.5)
    joined = cluster.add_node(8)
    world.run(world.now + 0.02)
    assert joined.machine.available().get("CPU", 0) == 0


def test_empty_tasks_scale_with_the_nodes() -> None:
    """Paper section 5.1, figure 8b: throughput grows with the number of nodes; the GCS and the daemons see leases, not tasks."""
    small, large = linear(1, 5, 8, 20_000), linear(1, 50, 8, 200_000)
    assert large["tasks_s"] > 8 * small["tasks_s"] > 0
    assert large["gcs_messages_s"] * large["virtual_s"] < 200_000 / 100


def test_one_driver_fills_all_nodes() -> None:
    """Paper section 4.2.2: what a node cannot serve, the global scheduler deals out."""
    row = everywhere(1, 20, 4, 4_000, 0.01)
    assert row["virtual_s"] < 1.5 * 4_000 * 0.01 / 80
    assert row["tasks_a_node"]["least"] > 0.7 * row["tasks_a_node"]["mean"]


def test_added_scheduling_latency_is_paid_once_not_in_every_round() -> None:
    """Paper figure 12b: with a scheduler in the path of each task 10 ms double an iteration; leases pay them once."""
    plain, *_, slow = list(latency(1, nodes=4, rounds=6))
    assert slow["round_ms_first"] > plain["round_ms_first"] + 9
    assert slow["round_ms_median"] < plain["round_ms_median"] * 1.1


def test_a_tree_of_waiting_tasks_ends_on_few_cpus() -> None:
    cluster = Cluster(5, 2, 2)
    cluster.settle()
    root = tree(3, 6, 0.001)
    cluster.submit(cluster.add_driver(next(iter(cluster.nodes.values()))), [root])
    cluster.run(cluster.world.now + 60)
    assert root.end == "done"
    cluster.world.run(cluster.world.now + 10)
    cluster.check_drained()


def test_campaigns_end_well() -> None:
    for seed in range(int(os.environ.get("SHOAL_SIMULATOR_SEEDS", "20"))):
        run_seed(seed)


def without(machine: Any, event: type) -> Callable[[Any, Any, Any], None]:
    """A machine that overlooks an event."""
    return lambda self, event, *rest: None


@pytest.mark.parametrize(("event", "first"), [(GrantedHere, 45), (GcsReturned, 0)])
def test_campaigns_find_a_machine_that_overlooks_something(
    event: type, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shoal.scheduling.forwarding as module

    monkeypatch.setitem(module._HANDLERS, event, without(Forwarding, event))
    with pytest.raises(Violation, match=r"seed \d+: (.|\n)*python -m shoal.simulator campaign --seed"):
        for seed in range(first, 600):
            run_seed(seed)


def test_tasks_do_not_wait_at_a_dead_node_that_a_shard_takes_for_living(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node is cut off and declared dead by shard 0. Its connection to the other shard ends minutes later: until then that one names it."""

    def ended() -> bool:
        cluster = Cluster(1, 2, 2, shards=2)
        cluster.settle()
        (head, other), world = list(cluster.nodes.values()), cluster.world
        driver = cluster.add_driver(head)
        while shard_of(driver.process_id, 2) != 1:
            driver = cluster.add_driver(head)
        cluster.submit(driver, [Task(100.0) for _ in range(2)])
        world.run(world.now + 1.0)
        world.cut_off(other.place, 60.0)
        world.run(world.now + HEARTBEATS_MISSED_S + 2.0)
        assert other.node_id in head.dead_nodes
        waiting = [Task(0.1, demand={"CPU": 5_000}) for _ in range(2)]
        cluster.submit(driver, waiting)
        world.run(world.now + 10.0)  # asked again after longer and longer times, it would be named again and again
        cluster.add_node(2)
        world.run(world.now + 1.0)
        return all(task.end for task in waiting)

    assert ended()
    monkeypatch.setattr(forwarding, "DEAD_MAX", 0)  # no death is remembered
    assert not ended()


@pytest.mark.parametrize(("what", "broken", "seed"), [(Answers, "find", 74), (KeyValues, "restore", 8)])
def test_campaigns_find_a_shard_that_forgets(
    what: type, broken: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(what, broken, lambda *about: (False, None))
    with pytest.raises(Violation):
        for each in range(seed, 600):
            run_seed(each)


def test_campaigns_find_lost_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    real = LocalScheduler._on_worker_died
    count = 0

    def forgetful(self: LocalScheduler, *arguments: Any) -> None:
        nonlocal count
        count += 1
        if count % 3:
            real(self, *arguments)

    monkeypatch.setattr(LocalScheduler, "_on_worker_died", forgetful)
    with pytest.raises(Violation):
        for seed in range(300):
            run_seed(seed)


def test_a_scenario_with_a_wrong_option_says_so() -> None:
    found = run("scenario", "evolution", "--nodes", "3")
    assert found.returncode == 2 and "evolution takes no --nodes" in found.stderr


def test_a_generation_takes_the_times_that_were_measured(tmp_path: Path) -> None:
    (tmp_path / "times.json").write_text("[0.5]")
    found = run("scenario", "evolution", "--tasks", "256", "--times", str(tmp_path / "times.json"))
    rows = [json.loads(line) for line in found.stdout.splitlines()]
    assert rows[0]["cores"] == 64 and rows[0]["work_s"] == 128.0 and 2.0 <= rows[0]["virtual_s"] < 2.6
    (tmp_path / "times.json").write_text('["long"]')
    found = run("scenario", "evolution", "--times", str(tmp_path / "times.json"))
    assert found.returncode == 2 and "a list of seconds is wanted" in found.stderr


def test_two_lives_of_an_actor_never_both_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that is cut off withholds its actors' answers; without that the check finds both lives answering."""

    def cut_off() -> Cluster:
        cluster = Cluster(1, 3, 2)
        cluster.settle()
        first, second, _ = list(cluster.nodes.values())
        maker, neighbour = cluster.add_driver(first), cluster.add_driver(second)
        strategy = node_affinity(second.node_id, True)
        spec = ActorSpec(
            cluster.new_id(), b"c", "A", maker.job_id, "", "", {}, {}, b"", None, max_restarts=1, strategy=strategy
        )
        actor = Actor(spec, 0.01)
        cluster.create_actor(maker, actor)
        for caller in (maker, neighbour):
            cluster.world.after(0.2, cluster.call, caller, actor, [Call(0.0, 1)])
        cluster.world.run(cluster.world.now + 0.5)
        cluster.world.cut_off(second.place, HEARTBEATS_MISSED_S + 2)
        for tenth in range(100):
            for caller in (maker, neighbour):
                cluster.world.after(tenth / 10, cluster.call, caller, actor, [Call(0.0, 1)])
        cluster.world.run(cluster.world.now + 12)
        return cluster

    cluster = cut_off()
    (actor,) = cluster.actors.values()
    assert len(actor.lives) == 2 and sum(call.end == "done" for call in actor.calls) > 90
    monkeypatch.setattr(Leash, "silences", lambda self, spec: False)
    with pytest.raises(TwoLivesError):
        cut_off()


def test_campaigns_find_calls_that_an_actor_with_checkpoints_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    real = StoredLogs.claim
    monkeypatch.setattr(StoredLogs, "claim", lambda *about: {**real(*about), "records": []})
    with pytest.raises(Violation, match="are both number"):
        for seed in range(9, 300):
            run_seed(seed)


def test_campaigns_find_actors_that_a_lost_node_takes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(actor_manager._HANDLERS, actor_manager.NodeLost, lambda self, event, *rest: None)
    with pytest.raises(Violation):
        for seed in range(200):
            run_seed(seed)


def test_campaigns_find_a_server_that_stores_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Gcs._store

    def forgetful(self: Gcs, write: Write) -> None:
        if write.table != ACTORS_TABLE or self.world.dice.random() < 0.8:
            real(self, write)

    monkeypatch.setattr(Gcs, "_store", forgetful)
    with pytest.raises(Violation, match="but stored as"):
        for seed in range(60):
            run_seed(seed)
