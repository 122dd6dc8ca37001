"""Programs on a cluster: what they see of it, what they hear from it, and that several live side by side."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.engine.driver_process import HEARD, Driver, run

import shoal
from shoal.testing import Cluster

StartCluster = Callable[..., Cluster]
SOON_S = 60.0


def until(condition: Callable[[], Any], what: str, timeout_s: float = SOON_S) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (result := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.01)
    return result


def test_what_the_cluster_has(start_cluster: StartCluster) -> None:
    cluster = start_cluster(num_cpus=1, labels={"zone": "a"})
    node = cluster.add_node(num_cpus=2, resources={"two": 3}, labels={"zone": "b"}, name="the second")
    cluster.connect(log_to_driver=False)
    total = shoal.cluster_resources()
    assert total["CPU"] == 3
    assert total["two"] == 3
    assert total["node:__internal_head__"] == 1
    rows = {row["NodeID"]: row for row in shoal.nodes()}
    assert set(rows) == {cluster.head.node_id, node.node_id}
    second = rows[node.node_id]
    assert second["NodeName"] == "the second"
    assert second["Resources"]["two"] == 3
    assert "node:__internal_head__" not in second["Resources"]
    assert second["Labels"] == {"zone": "b"}
    assert (second["Alive"], second["IsHead"], rows[cluster.head.node_id]["IsHead"]) == (True, False, True)
    assert f"{second['NodeManagerAddress']}:{second['NodeManagerPort']}" != cluster.address
    until(lambda: shoal.available_resources().get("two") == 3, "all of it is free in the end")

    holder = shoal.remote(resources={"two": 2})(lambda: time.sleep(600)).remote()
    until(lambda: shoal.available_resources().get("two") == 1, "a task has two of three")
    shoal.cancel(holder, force=True)
    until(lambda: shoal.available_resources().get("two") == 3, "all of it is free again")
    cluster.remove_node(node, kill=True)
    dead = until(lambda: next((row for row in shoal.nodes() if not row["Alive"]), None), "the death is seen")
    assert dead["NodeID"] == node.node_id
    assert dead["Resources"] == {}
    assert dead["DeathReasonMessage"]
    assert shoal.cluster_resources()["CPU"] == 1


def test_logs_of_other_nodes(start_cluster: StartCluster) -> None:
    cluster = start_cluster(num_cpus=1)
    cluster.add_node(num_cpus=1, resources={"two": 1}, name="far")
    program = f"""
shoal.init({cluster.address!r}, **OPTIONS)
@shoal.remote(resources={{"two": 0.1}})
def talk():
    print("over there")
    print("in trouble", file=sys.stderr)
@shoal.remote
def here():
    print("here")
shoal.get([talk.remote(), here.remote()])
"""
    until_heard = """
for stream, words in ((sys.stdout, "over there"), (sys.stdout, "here pid"), (sys.stderr, "in trouble")):
    stream.wait_for(words)
"""
    heard = HEARD + "sys.stdout, sys.stderr = Heard(sys.stdout), Heard(sys.stderr)\n"
    out, err = run(heard + program.replace("OPTIONS", "{}") + until_heard)
    assert re.search(r"^\(talk pid=\d+, node=far\) over there$", out, re.MULTILINE), out
    assert re.search(r"^\(talk pid=\d+, node=far\) in trouble$", err, re.MULTILINE), err
    assert re.search(r"^\(here pid=\d+\) here$", out, re.MULTILINE), out
    out, err = run(program.replace("OPTIONS", "{'log_to_driver': False}"))
    assert "over there" not in out
    assert "in trouble" not in err


def test_programs_side_by_side(start_cluster: StartCluster) -> None:
    """Each has its job and namespace; a shared namespace is shared; the end of one does not touch the other."""
    cluster = start_cluster(num_cpus=2)
    second = cluster.add_node(num_cpus=2, resources={"two": 2})
    program = """
context = shoal.init(ADDRESS, namespace=NAMESPACE)
@shoal.remote(resources={"two": 0.1})
def far(number):
    return number, shoal.get_runtime_context().get_job_id(), shoal.get_runtime_context().namespace
rows = shoal.get([far.remote(number) for number in range(100)])
assert [row[0] for row in rows] == list(range(100))
print("JOB", *sorted({row[1] for row in rows}), *{row[2] for row in rows}, flush=True)
refs = [far.remote(number) for number in range(100)]
time.sleep(600)
"""
    first = program.replace("ADDRESS", repr(cluster.address)).replace("NAMESPACE", "'first'")
    other = program.replace("ADDRESS", repr(second.node_socket)).replace("NAMESPACE", "'other'")
    cluster.connect(log_to_driver=False)
    with Driver(first) as one, Driver(other) as two:
        jobs = {one.wait_line("JOB"), two.wait_line("JOB")}
        assert {job.split()[1] for job in jobs} == {"first", "other"}
        assert len({job.split()[0] for job in jobs}) == 2
        one.process.kill()
        assert shoal.get(shoal.remote(lambda: 7).options(resources={"two": 0.1}).remote(), timeout=SOON_S) == 7
    until(lambda: shoal.available_resources().get("two") == 2, "what the programs had is free")
    until(lambda: shoal.available_resources().get("CPU") == 4, "their CPUs too")


def test_timeline_names_nodes(start_cluster: StartCluster) -> None:
    cluster = start_cluster(num_cpus=1)
    cluster.add_node(num_cpus=1, resources={"two": 1}, name="far")
    cluster.connect(log_to_driver=False)
    work = shoal.remote(lambda: time.sleep(0.01))
    shoal.get([work.options(resources={"two": 0.1}, name="there").remote(), work.options(name="here").remote()])

    def both() -> dict[str, int]:
        trace = shoal.timeline() or []
        return {row["name"]: row["pid"] for row in trace if row["ph"] == "X"}

    pids = until(lambda: both() if set(both()) >= {"here", "there"} else None, "both are in the trace")
    assert pids["here"] != pids["there"]
    names = {row["pid"]: row["args"]["name"] for row in shoal.timeline() or [] if row["name"] == "process_name"}
    assert names[pids["there"]] == "node far"


def test_a_program_through_another_node(start_cluster: StartCluster, tmp_path: Path) -> None:
    """The driver's node need not be the head; when it dies, the program is told, and what it had on other nodes ends."""
    cluster = start_cluster(num_cpus=1)
    node = cluster.add_node(num_cpus=1, resources={"two": 1})
    cluster.connect(node, log_to_driver=False)
    assert shoal.get_runtime_context().get_node_id() == node.node_id
    where = shoal.remote(lambda: shoal.get_runtime_context().get_node_id())
    assert (
        shoal.get(where.options(resources={"node:__internal_head__": 0.1}).remote(), timeout=SOON_S)
        == cluster.head.node_id
    )
    assert shoal.get(where.options(resources={"two": 0.1}).remote(), timeout=SOON_S) == node.node_id
    begun = tmp_path / "begun"
    endless = shoal.remote(lambda: (begun.touch(), time.sleep(600))).options(resources={"node:__internal_head__": 0.1})
    ref = endless.remote()
    until(begun.exists, "a task without end runs on the head")
    cluster.remove_node(node, kill=True)
    with pytest.raises(shoal.exceptions.ShoalError):
        shoal.get(where.remote(), timeout=SOON_S)
    shoal.shutdown()
    del ref
    cluster.connect(log_to_driver=False)
    assert shoal.get(where.remote(), timeout=SOON_S) == cluster.head.node_id, "the head's one CPU is free"
    assert os.path.exists(cluster.head.session_dir)
