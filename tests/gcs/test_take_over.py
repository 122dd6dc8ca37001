"""A head is lost, and another one goes on with its tables: what the shard does, and who may write to the tables."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.gcs.redis_servers import running_redis
from tests.gcs.test_many_nodes import World, node_id

from shoal.gcs.client import GcsClient, find_head
from shoal.gcs.io.server import GcsServer
from shoal.gcs.shard import GcsShard
from shoal.gcs.shard_events import NodeAnswers, NodeRefuses
from shoal.gcs.storage.backend import Backend, ClaimRefusedError, StorageError, Write, open_backend
from shoal.protocol.gcs_messages import NodeRegistered, RegisterNode
from shoal.protocol.limits import NODE_AWAY_S, TAKEN_OVER_AWAY_S
from shoal.system.sockets import listening_unix_socket
from shoal.wire.tcp_listener import TcpListener

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


def is_alive(world: World, number: int) -> bool:
    record = world.shard.nodes.get(node_id(number))
    assert record is not None
    return record.alive


def test_the_lost_head_is_buried_and_others_have_time_while_they_answer() -> None:
    world = lost_world()
    assert not is_alive(world, 0)
    while world.now < 1000.0 + TAKEN_OVER_AWAY_S - 2:
        world.sleep(NODE_AWAY_S - 0.1)
        for number in (1, 2):
            world.perform(world.shard.handle(NodeAnswers(node_id(number)), world.now))
    assert world.join(1) == NodeRegistered(44, 1, "", world.now, [], "redis://somewhere/0")
    assert [entry.alive for entry in world.heard_of(1, 0)][-1] is False
    assert is_alive(world, 2)
    while world.now < 1000.0 + TAKEN_OVER_AWAY_S + 2:
        world.perform(world.shard.handle(NodeAnswers(node_id(2)), world.now))
        world.sleep(1.0)
    assert not is_alive(world, 2), "it answers, and does not come"


def test_who_does_not_answer_a_new_head_is_dead_as_soon_as_ever() -> None:
    world = lost_world()
    world.perform(world.shard.handle(NodeRefuses(node_id(1)), world.now))
    assert not is_alive(world, 1) and is_alive(world, 2)
    world.sleep(NODE_AWAY_S - 0.1)
    assert is_alive(world, 2)
    world.sleep(0.1)
    assert not is_alive(world, 2)
    world.perform(world.shard.handle(NodeAnswers(node_id(2)), world.now))
    assert not is_alive(world, 2), "too late"
    assert "declared dead" in world.join(2).refused


def test_answers_are_of_use_only_to_who_has_not_come_yet() -> None:
    world = lost_world()
    world.join(1)
    world.lose(1)
    world.sleep(NODE_AWAY_S - 0.1)
    world.perform(world.shard.handle(NodeAnswers(node_id(1)), world.now))
    world.sleep(0.1)
    assert not is_alive(world, 1)


def test_the_nodes_of_a_lost_head_are_asked_whether_they_live(tmp_path: Path) -> None:
    """One answers, one is gone, one is frozen: its kernel still accepts."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        living = TcpListener("127.0.0.1", 0, b"token", loop, lambda sock, leftover: sock.close())
        gone, frozen = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
        ports = (living.port, gone.getsockname()[1], frozen.getsockname()[1])
        gone.close()
        nodes = [bytes([number]) * 16 for number in range(3)]
        (tmp_path / "first").mkdir()
        first = GcsServer(str(tmp_path / "one"), open_backend(f"sqlite:{tmp_path / 'kept'}"), str(tmp_path / "first"))
        await first.start()
        for node, port in zip(nodes, ports, strict=True):
            client = await GcsClient.connect(str(tmp_path / "one"), node)
            await client.register(RegisterNode(node, 1, "host", f"tcp:127.0.0.1:{port}", {}))
        await first.stop()
        second = GcsServer(str(tmp_path / "two"), open_backend(f"sqlite:{tmp_path / 'kept'}"), str(tmp_path / "second"))
        events: list[Any] = []
        handle = second.shard.handle
        second.shard.handle = lambda event, now: (events.append(event), handle(event, now))[1]  # type: ignore[method-assign]
        await second.start()
        second.listen_for_nodes(socket.create_server(("127.0.0.1", 0)), b"token")
        async with asyncio.timeout(60):
            while events.count(NodeAnswers(nodes[0])) < 2 or NodeRefuses(nodes[1]) not in events:
                await asyncio.sleep(0.01)
        assert NodeAnswers(nodes[1]) not in events and NodeAnswers(nodes[2]) not in events
        assert not second.shard.nodes.get(nodes[1]).alive  # type: ignore[union-attr]
        await second.stop()
        living.close()
        frozen.close()

    asyncio.run(run())


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


def test_a_commit_that_comes_twice_undoes_nothing(tmp_path: Path) -> None:
    """One that was given up when its connection ended may still be on its way, and is done again meanwhile."""

    async def body(make: Callable[[], Backend], url: str) -> None:
        backend: Any = make()
        await backend.claim(b"one", True)
        first: list[Any] = []
        sent = backend._add_fenced
        backend._add_fenced = lambda pipeline, writes: (first.append(list(writes)), sent(pipeline, writes))
        await backend.commit([Write("t", b"k", b"first")])
        await backend.commit([Write("t", b"k", b"second")])
        backend._commit_no -= 1  # the first one, once more
        async with backend._client.pipeline(transaction=False) as late:
            sent(late, first[0])
            await late.execute()
        assert await backend.get("t", b"k") == b"second"

    with_redis(tmp_path, body)


def test_a_renewal_that_was_on_its_way_is_no_life(tmp_path: Path) -> None:
    async def body(make: Callable[[], Backend], url: str) -> None:
        first = make()
        second: Any = make()
        looks: list[int] = []
        look = second._client.pttl

        async def counted(key: str) -> int:
            looks.append(await look(key))
            return looks[-1]

        async def looked(count: int) -> None:
            while len(looks) < count and not claiming.done():
                await asyncio.sleep(0.005)

        second._client.pttl = counted
        await first.claim(b"one", True)
        claiming = asyncio.create_task(second.claim(b"two", True))
        await looked(3)
        await first.renew()  # and its server dies
        await looked(len(looks) + 2)
        await end_claim(first)
        await claiming

    with_redis(tmp_path, body, lease_s=60)


def test_time_that_this_process_stood_still_is_not_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.gcs.storage.redis.RETRY_S", 0.0)
    pytest.importorskip("redis", reason="redis-py is not installed (pip install 'shoal[redis]')")

    async def run(failures: int) -> str:
        backend: Any = open_backend("redis://127.0.0.1:1/0")
        left = iter(range(failures))

        async def attempt() -> str:
            if next(left, None) is not None:
                raise ConnectionResetError("gone")
            return "done"

        try:
            return str(await backend._retried(attempt))
        finally:
            await backend.close()

    assert asyncio.run(run(2)) == "done"
    with pytest.raises(StorageError, match="could not be reached for 0 s: gone"):
        asyncio.run(run(3))


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


def test_servers_take_over_and_end_in_order(tmp_path: Path) -> None:
    def server(make: Callable[[], Backend], name: str, fresh: bool = True) -> GcsServer:
        return GcsServer(str(tmp_path / name), make(), name, fresh=fresh, storage="s")

    async def joined(name: str, node: bytes, **facts: Any) -> GcsClient:
        client = await GcsClient.connect(str(tmp_path / name), node)
        answer = await client.register(RegisterNode(node, 1, "host", "addr", {}, **facts))
        assert not answer.refused
        return client

    async def body(make: Callable[[], Backend], url: str) -> None:
        first = server(make, "first")
        await first.start()
        client = await joined("first", HEAD, is_head=True, gcs_address="tcp:first:1")
        assert await find_head(url) == "tcp:first:1"
        await client.call("gcs.kv_put", {"namespace": "s", "key": b"k", "value": b"v"})
        await joined("first", NODE)
        await first.stop()  # without order: the rows stay
        second = server(make, "second")
        await second.start()
        client = await joined("second", OTHER, is_head=True, gcs_address="tcp:second:1")
        nodes = (await client.call("gcs.nodes"))["nodes"]
        assert [(row["node_id"], row["alive"]) for row in nodes] == [(HEAD, False), (NODE, True), (OTHER, True)]
        assert (await client.call("gcs.kv_get", {"namespace": "s", "key": b"k"}))["value"] == b"v"
        assert await find_head(url) == "tcp:second:1"
        late = server(make, "first", fresh=False)
        with pytest.raises(ClaimRefusedError):
            await late.start()
        await second.stop(for_good=True)
        assert await find_head(url) == ""
        third = server(make, "third")
        await third.start()
        client = await joined("third", HEAD, is_head=True)
        assert len((await client.call("gcs.nodes"))["nodes"]) == 1, "nothing of a session that was ended"
        await third.stop(for_good=True)

    with_redis(tmp_path, body)


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


# ---------------------------------------------------------------- a file


async def claimed(path: Path, session: Path, fresh: bool = True) -> Backend:
    """The file at `path`, open for a session that has the folder `session`."""
    backend = open_backend(f"sqlite:{path}")
    try:
        await backend.claim(str(session).encode(), fresh)
    except BaseException:
        await backend.close()
        raise
    return backend


def test_a_file_goes_to_another_session_when_its_node_is_dead(tmp_path: Path) -> None:
    path, first, second = tmp_path / "kept", tmp_path / "first", tmp_path / "second"
    first.mkdir()

    async def run() -> None:
        backend = await claimed(path, first)
        await backend.commit([Write("session", b"", str(first).encode()), Write("t", b"k", b"v")])
        await backend.close()  # its server is killed, and started again
        await (await claimed(path, first, fresh=False)).close()
        with listening_unix_socket(str(first / "node.sock")):
            with pytest.raises(ClaimRefusedError, match=r"whose head runs, in .*first: end it first"):
                await claimed(path, second)
        backend = await claimed(path, second)  # the socket is there, nobody listens
        assert await backend.get("t", b"k") == b"v"
        await backend.commit([Write("session", b"", str(second).encode())])
        await backend.close()
        with pytest.raises(ClaimRefusedError, match=r"another head has taken over .*: that of .*second"):
            await claimed(path, first, fresh=False)
        backend = await claimed(path, second, fresh=False)
        await backend.release(["t"])
        assert await backend.get("t", b"k") is None and await backend.get("session", b"") is None
        await backend.close()
        await (await claimed(path, first)).close()

    asyncio.run(run())


@pytest.mark.parametrize("in_order", [False, True])
def test_a_server_takes_over_a_file_unless_its_session_ended_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], in_order: bool
) -> None:
    async def run() -> None:
        for session in ("one", "two"):
            server = GcsServer(str(tmp_path / "gcs"), open_backend(f"sqlite:{tmp_path / 'kept'}"), session)
            await server.start()
            await server.stop(for_good=in_order)

    asyncio.run(run())
    assert ("takes over the cluster whose head was one" in capsys.readouterr().err) is not in_order
