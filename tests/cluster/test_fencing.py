"""Two lives of one actor never both answer: a frozen node's actors are silent before others take their place."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import shoal
from shoal.protocol.limits import ANSWERS_WITHHELD_AFTER_S
from shoal.testing import Cluster

StartCluster = Callable[..., Cluster]
SOON_S = 60.0
STOPS_WITHIN_S = 0.2  #: a process that was sent SIGSTOP


@shoal.remote(num_cpus=0, resources={"out": 1}, max_restarts=-1, max_task_retries=-1)
class Life:
    def which(self) -> tuple[int, str]:
        return os.getpid(), str(shoal.get_runtime_context().get_node_id())


@shoal.remote(num_cpus=0, resources={"out": 1}, max_retries=0)
def listen(life: shoal.actor.ActorHandle, path: str) -> None:  # type: ignore[name-defined]
    """Ask the actor again and again, and write down which process answered when."""
    with open(path, "a", buffering=1) as file:
        while True:
            pid, _ = shoal.get(life.which.remote())
            file.write(f"{time.monotonic():.6f} {pid}\n")
            time.sleep(0.01)


def answers(path: Path) -> list[tuple[float, int]]:
    rows = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [(float(row[0]), int(row[1])) for row in rows if len(row) == 2]


def test_the_actor_of_a_frozen_node_is_silent_before_it_lives_elsewhere(
    start_cluster: StartCluster, tmp_path: Path
) -> None:
    cluster = start_cluster(num_cpus=1)
    nodes = [cluster.add_node(num_cpus=1, resources={"out": 4}) for _ in range(2)]
    cluster.connect(log_to_driver=False)
    life = Life.remote()
    first_pid, home = shoal.get(life.which.remote(), timeout=SOON_S)
    [frozen] = [node for node in nodes if node.node_id == home]
    near = tmp_path / "near"  # a caller on the same node, which is cut off with the actor
    strategy = shoal.util.scheduling_strategies.NodeAffinitySchedulingStrategy(home, soft=False)
    caller = listen.options(scheduling_strategy=strategy).remote(life, str(near))
    deadline = time.monotonic() + SOON_S
    while len(answers(near)) < 20:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(frozen.pid, signal.SIGSTOP)  # the daemon alone: actor and caller go on
    try:
        while (seen := shoal.get(life.which.remote(), timeout=SOON_S))[1] == home:
            time.sleep(0.01)
        second_at = time.monotonic()
        assert seen[0] != first_pid
        time.sleep(0.5)
        old = [at for at, pid in answers(near) if pid == first_pid]
        assert old and old[-1] < second_at - 0.5, "both lives answered"
    finally:
        os.kill(frozen.pid, signal.SIGCONT)
    while frozen.is_alive():
        assert time.monotonic() < deadline + SOON_S
        time.sleep(0.01)
    assert old == [at for at, pid in answers(near) if pid == first_pid], "what was withheld came out"
    del caller


def test_a_gcs_that_is_away_for_long_silences_restartable_actors_and_kills_nobody(start_cluster: StartCluster) -> None:
    cluster = start_cluster(num_cpus=1)
    cluster.add_node(num_cpus=1, resources={"out": 4})
    cluster.connect(log_to_driver=False)
    life = Life.remote()
    plain = Life.options(max_restarts=0).remote()
    pids = [shoal.get(each.which.remote(), timeout=SOON_S)[0] for each in (life, plain)]
    gcs_pid = cluster.head.call("node.stats")["gcs"]["pid"]
    os.kill(gcs_pid, signal.SIGSTOP)
    silent_from = time.monotonic() + ANSWERS_WITHHELD_AFTER_S + STOPS_WITHIN_S
    try:
        while time.monotonic() < silent_from:
            if shoal.wait([life.which.remote()], timeout=0.1)[0]:
                time.sleep(0.05)
        # What is asked now cannot have been answered before: no clock here depends on how fast this machine is.
        late = life.which.remote()
        assert shoal.wait([late], timeout=0.5)[0] == [], "it answered after its leash had ended"
        assert shoal.get(plain.which.remote(), timeout=SOON_S)[0] == pids[1]
    finally:
        os.kill(gcs_pid, signal.SIGCONT)
    assert shoal.get(late, timeout=SOON_S)[0] == pids[0]
    assert shoal.get(life.which.remote(), timeout=SOON_S)[0] == pids[0]
