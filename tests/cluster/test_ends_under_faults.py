"""Cancelling, killing, leaving and dying while a node stands still, a node is dead or the GCS is away: each is answered in time, and nothing of it
is left afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.chaos.victims import family_of

import shoal
from shoal.exceptions import ActorDiedError, TaskCancelledError
from shoal.testing import Cluster, ClusterNode

StartCluster = Callable[..., Cluster]
SOON_S = 60.0


@shoal.remote(resources={"two": 1}, max_retries=0)
def hang(begun: Path) -> None:
    begun.touch()
    time.sleep(600)


@shoal.remote(resources={"two": 1}, num_cpus=0)
class Subject:
    def pid(self) -> int:
        return os.getpid()

    def hang(self) -> None:
        time.sleep(600)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def frozen(node: ClusterNode) -> Iterator[None]:
    """A node all of whose processes stand still. Its daemon first, so that it starts no more."""
    os.kill(node.pid, signal.SIGSTOP)
    pids = [node.pid, *(process.pid for process in family_of(node.pid))]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def is_idle(node: ClusterNode) -> bool:
    """Whether nothing runs there, is stored or taken."""
    statistics, resources = node.call("node.stats"), node.call("node.resources")
    scheduler, objects = statistics["scheduler"], statistics["objects"]
    counts = [scheduler[name] for name in ("leases", "actors", "tasks_waiting", "actors_waiting")]
    counts += [objects["objects"], objects["holds"], len(node.call("node.stored")["stored"])]
    return not any(counts) and resources["available"] == resources["total"]


@pytest.mark.parametrize("fault", ["frozen", "dead"])
def test_a_program_ends_what_it_has_on_a_node_that_does_not_answer(
    start_cluster: StartCluster, tmp_path: Path, fault: str
) -> None:
    cluster = start_cluster(num_cpus=1)
    node = cluster.add_node(num_cpus=4, resources={"two": 4})
    cluster.connect(log_to_driver=False)
    actor, detached = Subject.remote(), Subject.options(name="stays", lifetime="detached", max_restarts=-1).remote()
    pids = shoal.get([actor.pid.remote(), detached.pid.remote()], timeout=SOON_S)
    running = hang.remote(tmp_path / "begun")
    queued = hang.options(resources={"two": 4}).remote(tmp_path / "never")
    hanging = actor.hang.remote()
    wait_until((tmp_path / "begun").exists)

    def end_everything() -> None:
        shoal.cancel(queued)
        shoal.cancel(running)
        shoal.kill(actor)
        shoal.kill(detached)
        with pytest.raises(TaskCancelledError):
            shoal.get(queued, timeout=SOON_S)
        for call in (hanging, actor.pid.remote(), detached.pid.remote()):
            with pytest.raises(ActorDiedError):
                shoal.get(call, timeout=SOON_S)
        with pytest.raises(ValueError, match="no actor named"):
            shoal.get_actor("stays")
        shoal.shutdown()

    if fault == "dead":
        cluster.remove_node(node, kill=True)
        end_everything()
    else:
        with frozen(node):
            end_everything()
        wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))
        wait_until(
            lambda: not node.is_alive() or is_idle(node)
        )  # it was frozen for so long that it is fenced, or it goes on
    wait_until(lambda: is_idle(cluster.head))
    assert not (tmp_path / "never").exists()
    assert [row["state"] for row in cluster.head.call("gcs.jobs")["jobs"]] == ["ended"]


PROGRAM = """
import sys, time, shoal
from tests.cluster.test_ends_under_faults import Subject, hang
from pathlib import Path
shoal.init(sys.argv[1], namespace="n", log_to_driver=False)
begun = Path(sys.argv[2])
actor, detached = Subject.remote(), Subject.options(name="stays", lifetime="detached").remote()
group = shoal.util.placement_group([{"CPU": 1}, {"CPU": 1}], strategy="SPREAD")
assert group.wait(60)
kept = [hang.remote(begun), hang.options(resources={"two": 4}).remote(begun), shoal.put(bytes(300_000))]
elsewhere = shoal.get(shoal.remote(lambda: [shoal.put(bytes(300_000))]).options(resources={"two": 0.1}).remote())
print(*shoal.get([actor.pid.remote(), detached.pid.remote()]), flush=True)
sys.stdin.readline()
late = [Subject.remote(), shoal.util.placement_group([{"CPU": 0.1}])]
time.sleep(600)
"""


def test_a_program_that_is_killed_while_the_gcs_is_away_leaves_only_what_is_detached(
    start_cluster: StartCluster, tmp_path: Path
) -> None:
    cluster = start_cluster(num_cpus=1)
    node = cluster.add_node(num_cpus=4, resources={"two": 4})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", PROGRAM, cluster.head.node_socket, str(tmp_path / "begun")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as program:
        assert program.stdin is not None and program.stdout is not None
        own, detached = map(int, program.stdout.readline().split())
        wait_until((tmp_path / "begun").exists)
        gcs_pid = cluster.head.call("node.stats")["gcs"]["pid"]
        os.kill(gcs_pid, signal.SIGSTOP)
        program.stdin.write("\n")  # what it asks for now waits for the GCS
        program.stdin.flush()
        program.kill()
    wait_until(lambda: not cluster.head.call("node.stored")["stored"])  # its daemon has seen its end
    with suppress(ProcessLookupError):  # its daemon has given it up before
        os.kill(gcs_pid, signal.SIGKILL)
    wait_until(lambda: not os.path.exists(f"/proc/{own}"))
    wait_until(lambda: not node.call("node.stored")["stored"] and is_idle(cluster.head))
    cluster.connect(namespace="n", log_to_driver=False)
    wait_until(lambda: {row["state"] for row in shoal.util.placement_group_table().values()} == {"REMOVED"})
    stays = shoal.get_actor("stays")
    assert shoal.get(stays.pid.remote(), timeout=SOON_S) == detached
    shoal.kill(stays)
    wait_until(lambda: is_idle(node))
    states: dict[str, Any] = {row["job_id"].hex(): row["state"] for row in cluster.head.call("gcs.jobs")["jobs"]}
    assert sorted(states.values()) == ["ended", "running"]


OWNER = """
import sys, time, shoal
shoal.init(sys.argv[1], log_to_driver=False)
make = shoal.remote(lambda number: bytes([number]) * 300_000).options(resources={"two": 1})
kept = [make.remote(number) for number in range(6)]
shoal.wait(kept, num_returns=6, fetch_local=False)
print("made", flush=True)
time.sleep(600)
"""


def test_what_a_program_had_elsewhere_goes_with_it_at_once(start_cluster: StartCluster) -> None:
    """Its leases there are over. What its workers do not know to be read they would keep, for heirs that there are not."""
    cluster = start_cluster(num_cpus=1)
    node = cluster.add_node(num_cpus=4, resources={"two": 4})
    command = [sys.executable, "-c", OWNER, cluster.head.node_socket]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None and program.stdout.readline() == "made\n"
        wait_until(lambda: not node.call("node.stats")["scheduler"]["leases"])
        assert len(node.call("node.stored")["stored"]) == 6
        program.kill()
    wait_until(lambda: not node.call("node.stored")["stored"] or node.call("node.stats")["objects"]["claims"])
    assert not node.call("node.stored")["stored"]
