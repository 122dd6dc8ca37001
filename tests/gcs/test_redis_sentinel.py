"""Tables in Redis servers of which the primary dies: nothing that was acknowledged is lost, and the GCS goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import uvloop
from tests.gcs.redis_servers import ReplicaSet, replica_set

from shoal.gcs.client import GcsClient
from shoal.gcs.io.server import GcsServer
from shoal.gcs.storage.backend import StorageError, Write, open_backend
from shoal.protocol.gcs_messages import RegisterNode

NODE = b"n" * 16
SOON_S = 60.0


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[ReplicaSet]:
    with replica_set(tmp_path) as made:
        yield made


def test_commits_go_on_when_the_primary_dies(replicas: ReplicaSet, capsys: pytest.CaptureFixture[str]) -> None:
    async def run() -> None:
        backend = open_backend(replicas.url)
        acknowledged = 0
        first = replicas.primary()

        async def write() -> None:
            nonlocal acknowledged
            while True:
                row = (acknowledged + 1).to_bytes(4, "big")
                await backend.commit([Write("t", row, b"v" + row), Write("u", b"last", row)])
                acknowledged += 1

        writing = asyncio.create_task(write())
        while acknowledged < 50:
            await asyncio.sleep(0.001)
        await asyncio.to_thread(replicas.kill_primary)
        before = acknowledged
        async with asyncio.timeout(60):
            while acknowledged < before + 50:
                assert not writing.done(), writing.exception()
                await asyncio.sleep(0.01)
        writing.cancel()
        assert replicas.primary() != first
        rows = dict(await backend.scan("t"))
        assert all(rows.get(n.to_bytes(4, "big")) == b"v" + n.to_bytes(4, "big") for n in range(1, acknowledged + 1))
        await backend.close()

    asyncio.run(run())
    assert "has no replica" in capsys.readouterr().err


def test_a_gcs_server_goes_on_when_the_primary_dies(replicas: ReplicaSet, tmp_path: Path) -> None:
    path = str(tmp_path / "gcs.sock")

    async def run() -> None:
        server = GcsServer(path, open_backend(replicas.url))
        await server.start()
        client = await GcsClient.connect(path, NODE)
        await client.register(RegisterNode(NODE, 1, "host", "addr", {}))
        await client.call("gcs.kv_put", {"namespace": "s", "key": b"before", "value": b"v"})
        await asyncio.to_thread(replicas.kill_primary)
        await client.call("gcs.kv_put", {"namespace": "s", "key": b"after", "value": b"v"}, timeout_s=30)
        client.close()
        await server.stop()
        # Another server, which has never seen the first primary.
        server = GcsServer(path, open_backend(replicas.url))
        await server.start()
        client = await GcsClient.connect(path, NODE)
        listed = await client.call("gcs.kv_list", {"namespace": "s", "prefix": b""})
        assert listed == {"keys": [b"after", b"before"]}
        client.close()
        await server.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def test_work_goes_on_when_the_primary_dies(replicas: ReplicaSet, shoal_start: Callable[..., ModuleType]) -> None:
    """Tasks need no tables; what does waits for the next primary, and what there was is there."""
    shoal = shoal_start(num_cpus=2, log_to_driver=False, _system={"gcs_storage": replicas.url})

    @shoal.remote(num_cpus=0)
    class Counter:
        count = 0

        def add(self) -> int:
            self.count += 1
            return self.count

    named = Counter.options(name="named").remote()
    group = shoal.util.placement_group([{"CPU": 0.1}], name="group")
    assert shoal.get([named.add.remote(), group.ready()], timeout=SOON_S)[0] == 1
    square = shoal.remote(lambda number: number * number)
    running = [square.remote(number) for number in range(100)]
    replicas.kill_primary()
    late = Counter.options(name="late").remote()
    assert shoal.get(running, timeout=SOON_S) == [number * number for number in range(100)]
    assert shoal.get([late.add.remote(), named.add.remote()], timeout=SOON_S) == [1, 2]
    for name, count in (("named", 3), ("late", 2)):
        assert shoal.get(shoal.get_actor(name).add.remote(), timeout=SOON_S) == count
    assert shoal.util.get_placement_group("group").id == group.id
    assert shoal.util.placement_group([{"CPU": 0.1}]).wait(SOON_S)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis+sentinel://127.0.0.1/tables", "HOST:PORT,HOST:PORT"),
        ("redis+sentinel://127.0.0.1:1", "name of the service"),
        ("redis+sentinel://127.0.0.1:1/tables/one", "name of the service"),
    ],
)
def test_names_that_make_no_sense(url: str, says: str) -> None:
    pytest.importorskip("redis", reason="redis-py is not installed (pip install 'shoal[redis]')")
    with pytest.raises(StorageError, match=says):
        open_backend(url)


def test_sentinels_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("redis", reason="redis-py is not installed (pip install 'shoal[redis]')")
    monkeypatch.setattr("shoal.gcs.storage.redis.SENTINEL_RETRY_S", 0.1)

    async def run() -> Any:
        backend = open_backend("redis+sentinel://user:secret@127.0.0.1:1/tables")
        try:
            await backend.commit([Write("t", b"k", b"v")])
        finally:
            await backend.close()

    with pytest.raises(StorageError, match="could not be reached") as refused:
        asyncio.run(run())
    assert "secret" not in str(refused.value)
