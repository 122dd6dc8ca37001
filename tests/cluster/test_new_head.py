"""The head is lost with its machine: another one takes the cluster over, and what ran elsewhere goes on."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.gcs.redis_servers import replica_set, running_redis

import shoal
from shoal.gcs.storage.backend import open_backend
from shoal.launch.local_nodes import node_at
from shoal.launch.nodes import HeadOptions, NodeStartError, default_parent_dir, start_head
from shoal.system.tls_files import make_tls_files
from shoal.testing import Cluster, ClusterNode

StartCluster = Callable[..., Cluster]
SOON_S = 60.0


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    with running_redis(tmp_path) as path:
        yield f"unix://{path}?prefix=test"


@pytest.fixture(params=["redis", "sqlite"])
def kept_storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Tables that outlive the head's machine, or its processes."""
    if request.param == "sqlite":
        yield f"sqlite:{tmp_path / 'kept.sqlite'}"
        return
    with running_redis(tmp_path) as path:
        yield f"unix://{path}?prefix=test&lease=0.5"


@shoal.remote(resources={"two": 0.1})
def wait_for(path: str) -> str:
    deadline = time.monotonic() + SOON_S
    while not Path(path).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return "done"


@shoal.remote(resources={"two": 0.1})
class Counter:
    def __init__(self) -> None:
        self.number = 0

    def count(self) -> int:
        self.number += 1
        return self.number


@shoal.remote
def where() -> str:
    return str(shoal.get_runtime_context().get_node_id())


def put_keys(node: ClusterNode, numbers: range) -> None:
    """Rows of all shards."""
    for number in numbers:
        assert node.call("gcs.kv_put", namespace="s", key=b"%d" % number, value=b"v") == {"added": True}


def keys_of(node: ClusterNode) -> list[int]:
    """Waits for all shards: a node's daemon does, the command that asks it less."""
    deadline = time.monotonic() + SOON_S
    while True:
        try:
            return sorted(int(key) for key in node.call("gcs.kv_list", namespace="s", prefix=b"")["keys"])
        except RuntimeError:
            assert time.monotonic() < deadline


def test_a_new_head_takes_over(start_cluster: StartCluster, kept_storage: str, tmp_path: Path) -> None:
    cluster = start_cluster(num_cpus=1, resources={"head": 1}, gcs_shards=2, gcs_storage=kept_storage)
    one = cluster.add_node(num_cpus=1)
    two = cluster.add_node(num_cpus=1, resources={"two": 1})
    cluster.connect(one, log_to_driver=False)
    counter = Counter.options(name="counter", lifetime="detached").remote()
    group = shoal.util.placement_group([{"two": 0.1}], name="group", lifetime="detached")
    assert shoal.get([counter.count.remote(), group.ready()], timeout=SOON_S)[0] == 1
    on_head = Counter.options(max_restarts=1, max_task_retries=3, resources={"head": 0.1}).remote()
    assert shoal.get(on_head.count.remote(), timeout=SOON_S) == 1
    put_keys(one, range(8))
    running = wait_for.remote(str(tmp_path / "go"))
    lost, former_address = cluster.head, cluster.address
    head = cluster.replace_head(wait=False)
    cluster.wait_for_nodes(timeout=SOON_S)
    (tmp_path / "go").touch()
    assert shoal.get(running, timeout=SOON_S) == "done"
    assert shoal.get(counter.count.remote(), timeout=SOON_S) == 2
    assert shoal.get(shoal.get_actor("counter").count.remote(), timeout=SOON_S) == 3
    assert keys_of(two) == list(range(8)), "of both shards"
    assert [shard["kv"] > 0 for shard in two.call("gcs.statistics")["shards"]] == [True, True]
    assert shoal.util.get_placement_group("group").id == group.id
    assert shoal.get(on_head.count.remote(), timeout=SOON_S) == 1, "restarted"
    late = Counter.remote()
    assert shoal.get(late.count.remote(), timeout=SOON_S) == 1
    alive = {row["NodeID"]: row["Alive"] for row in shoal.nodes()}
    assert alive[head.node_id] and not alive[lost.node_id] and sum(alive.values()) == 3
    if cluster.address != former_address:  # programs may go on with the old one
        found = node_at(former_address, default_parent_dir())
        assert found.session_dir in [node.session_dir for node in cluster.nodes if not node.is_head]
    shoal.shutdown()
    with shoal.init(address=cluster.address, log_to_driver=False):
        assert shoal.get(where.remote(), timeout=SOON_S) in alive


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl command makes the certificates")
def test_head_and_primary_are_lost_at_once(start_cluster: StartCluster, tmp_path: Path) -> None:
    """With TLS, two shards, and the tables in Redis servers that ask for a password, of which one was on the head's machine."""
    make_tls_files(str(tmp_path / "tls"))
    with replica_set(tmp_path, "secret") as replicas:
        cluster = start_cluster(
            num_cpus=0, gcs_shards=2, gcs_storage=replicas.url + "&lease=0.5", tls_folder=str(tmp_path / "tls")
        )
        two = cluster.add_node(num_cpus=1, resources={"two": 1})
        cluster.connect(two, log_to_driver=False)
        counter = Counter.options(name="counter", lifetime="detached").remote()
        assert shoal.get(counter.count.remote(), timeout=SOON_S) == 1
        put_keys(two, range(8))
        running = wait_for.remote(str(tmp_path / "go"))
        replicas.kill_primary()
        cluster.replace_head(wait=False)
        cluster.wait_for_nodes(timeout=SOON_S)
        (tmp_path / "go").touch()
        assert shoal.get(running, timeout=SOON_S) == "done"
        assert shoal.get(shoal.get_actor("counter").count.remote(), timeout=SOON_S) == 2
        assert keys_of(two) == list(range(8))
        late = Counter.remote()
        assert shoal.get(late.count.remote(), timeout=SOON_S) == 1
        cluster.shutdown()


def test_a_second_head_is_refused_while_the_first_lives(redis_url: str) -> None:
    claimed, over = threading.Event(), threading.Event()

    async def live() -> None:
        """What the first head's GCS server does to its claim."""
        first = open_backend(f"{redis_url}&lease=60")
        await first.claim(b"the first", True)
        claimed.set()
        while not over.is_set():
            await first.renew()
            await asyncio.sleep(0.02)
        await first.close()

    living = threading.Thread(target=asyncio.run, args=(live(),))
    living.start()
    try:
        assert claimed.wait(SOON_S)
        with pytest.raises(NodeStartError, match=r"lives: stop it first"):
            settings = {"gcs_storage": redis_url}
            start_head(HeadOptions(num_cpus=1, listen="127.0.0.1", settings=settings, object_store_memory=64 << 20))
    finally:
        over.set()
        living.join()
