"""The head's machine is lost, and nobody can take its place: no program waits for it without end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

import shoal
from shoal.exceptions import NodeDaemonDiedError
from shoal.testing import Cluster

StartCluster = Callable[..., Cluster]
SOON_S = 60.0


@shoal.remote(num_cpus=0, resources={"head": 1}, max_restarts=1, max_task_retries=1)
class OnHead:
    def pid(self) -> int:
        return os.getpid()

    def stay(self) -> None:
        time.sleep(1000)


def test_programs_elsewhere_hear_that_the_head_is_lost_and_nothing_of_their_node_stays(
    start_cluster: StartCluster,
) -> None:
    cluster = start_cluster(num_cpus=1, resources={"head": 1})
    node = cluster.add_node(num_cpus=1, gcs_reconnect_timeout=0.5)
    cluster.connect(node, log_to_driver=False)
    actor = OnHead.remote()
    shoal.get(actor.pid.remote(), timeout=SOON_S)
    call = actor.stay.remote()
    os.kill(cluster.head.pid, signal.SIGKILL)
    with pytest.raises(NodeDaemonDiedError) as lost:
        shoal.get(call, timeout=SOON_S)
    for part in (
        f"the head node {cluster.head.node_id[:8]} at ",
        "is lost: neither its daemon nor the GCS has answered since",
        "redis",
    ):
        assert part in str(lost.value)
    shoal.shutdown()
    deadline = time.monotonic() + SOON_S
    while node.is_alive() or os.path.exists(node.session_dir):
        assert time.monotonic() < deadline
        time.sleep(0.01)
