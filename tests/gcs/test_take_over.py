"""A head is lost, and another one goes on with its tables: what the shard does, and who may write to the tables."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.gcs.redis_servers import running_redis
from tests.gcs.test_many_nodes import World, node_id

from shoal.gcs.client import find_head
from shoal.gcs.io.server import GcsServer
from shoal.gcs.shard import GcsShard
from shoal.gcs.storage.backend import Backend, ClaimRefusedError, StorageError, Write, open_backend
from shoal.protocol.gcs_messages import NodeRegistered
from shoal.protocol.limits import NODE_AWAY_S, TAKEN_OVER_AWAY_S

HEAD, NODE, OTHER = b"h" * 16, b"n" * 16, b"o" * 16


# ---------------------------------------------------------------- the shard


def take_over(world: World) -> None:
    """Another server, of another head, reads the disk."""
    world.shard = GcsShard(44, lambda below: 0, storage="redis://somewhere/0")
    for (table, key), value in sorted(world.disk.items()):
        world.shard.restore(table, key, value)
    world.connections.clear()
    world.perform(world.shard.take_over(world.now))


def lost_world() -> World:
    world = World()
    for number in range(3):
        world.join(number)
    take_over(world)
    return world


def test_the_lost_head_is_buried_and_the_others_have_time() -> None:
    world = lost_world()
    assert not world.shard.nodes.get(node_id(0)).alive  # type: ignore[union-attr]
    world.sleep(TAKEN_OVER_AWAY_S - 2)
    assert NODE_AWAY_S < TAKEN_OVER_AWAY_S - 2
    assert world.join(1) == NodeRegistered(44, 1, "", world.now, [], "redis://somewhere/0")
    assert [entry.alive for entry in world.heard_of(1, 0)][-1] is False
    world.sleep(3)
    assert not world.shard.nodes.get(node_id(2)).alive, "it did not come"  # type: ignore[union-attr]


def test_the_new_head_has_a_number_of_its_own_and_says_where_it_is() -> None:
    world = lost_world()
    answer = world.join(5, is_head=True, gcs_address="tcp:new:1")
    assert answer.node_no == 3 and not answer.refused
    assert world.disk["session", b"head"] == b"tcp:new:1"
    world.restart()  # its own server dies
    assert world.join(5, is_head=True).node_no == 3


def test_the_lost_head_may_not_come_back() -> None:
    world = lost_world()
    assert "another one has taken over" in world.join(0).refused


def test_programs_of_the_lost_head_end_and_those_of_others_do_not() -> None:
    world = World()
    for number in range(2):
        world.join(number)
        world.call(number, "register_job", job_id=b"job%d" % number, namespace="", pid=1, config={})
    take_over(world)
    world.join(1)
    ended = {job["job_id"]: job["state"] for job in world.call(1, "jobs")["jobs"]}
    assert ended == {b"job0": "ended", b"job1": "running"}


# ---------------------------------------------------------------- who may write


async def end_claim(backend: Any) -> None:
    """As if its time were over, because its server is dead."""
    await backend._client.delete(backend._key("alive"))


def with_redis(
    folder: Path, body: Callable[[Callable[[], Backend], str], Awaitable[None]], lease_s: float = 0.3
) -> None:
    with running_redis(folder) as path:
        url = f"unix://{path}?prefix=t&lease={lease_s}"
        opened: list[Backend] = []

        def make() -> Backend:
            opened.append(open_backend(url))
            return opened[-1]

        async def run() -> None:
            try:
                await body(make, url)
            finally:
                for backend in opened:
                    await backend.close()

        asyncio.run(run())


def test_one_writes_at_a_time(tmp_path: Path) -> None:
    async def body(make: Callable[[], Backend], url: str) -> None:
        first, again, second = make(), make(), make()
        await first.claim(b"one", True)
        await first.commit([Write("t", b"k", b"first"), Write("u", b"k", b"x"), Write("u", b"k", None)])
        await again.claim(b"one", False)  # its server was started again
        with pytest.raises(StorageError, match="taken over"):
            await first.commit([Write("t", b"k", b"late")])
        await again.commit([Write("session", b"", b"one")])
        await second.claim(b"two", True)  # nobody renews: it waits for that
        await second.commit([Write("session", b"", b"two")])
        for write in (again.commit([Write("t", b"k", b"late")]), again.renew(), again.release(["t"])):
            with pytest.raises(StorageError, match="taken over"):
                await write
        await second.release([])  # leaves the rows, and no claim
        assert await second.get("t", b"k") == b"first" and await second.scan("u") == []

    with_redis(tmp_path, body)


def test_a_head_that_lives_is_left_alone_and_one_of_the_past_is_refused(tmp_path: Path) -> None:
    async def body(make: Callable[[], Backend], url: str) -> None:
        first, second, past = make(), make(), make()
        await first.claim(b"one", True)
        await first.commit([Write("session", b"", b"one")])

        claiming = asyncio.create_task(second.claim(b"two", True))
        while not claiming.done():
            await first.renew()
            await asyncio.sleep(0.01)
        with pytest.raises(ClaimRefusedError, match="lives: stop it first"):
            await claiming
        await end_claim(first)
        await second.claim(b"two", True)
        await second.commit([Write("session", b"", b"two")])
        await second.renew()
        await end_claim(second)
        with pytest.raises(ClaimRefusedError, match="of the past"):
            await past.claim(b"one", False)

    with_redis(tmp_path, body, lease_s=60)


def test_a_server_whose_place_is_taken_ends(tmp_path: Path) -> None:
    async def body(make: Callable[[], Backend], url: str) -> None:
        server = GcsServer(str(tmp_path / "gcs"), make(), "one")
        await server.start()
        usurper = make()
        await usurper.claim(b"one", False)  # another server of the same session
        async with asyncio.timeout(60):
            await server.failed.wait()
        await server.stop()

    with_redis(tmp_path, body)


def test_where_no_head_can_be_found(tmp_path: Path) -> None:
    assert asyncio.run(find_head(f"sqlite:{tmp_path / 'none.sqlite'}")) == ""


def test_unclaimed_storage_has_nobody_to_be_kept_from(tmp_path: Path) -> None:
    async def run() -> None:
        backend = open_backend("memory")
        await backend.claim(b"one", True)
        await backend.commit([Write("t", b"k", b"v")])
        await backend.renew()
        await backend.release(["t"])
        assert backend.renew_s == 0

    asyncio.run(run())
