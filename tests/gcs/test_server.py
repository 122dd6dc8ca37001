"""The GCS as a process: real sockets, garbage, death of the parent."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop
from tests.gcs.actor_specs import actor_spec

from shoal.gcs.client import GcsCallError, GcsClient, GcsLostError
from shoal.gcs.io.server import GcsServer
from shoal.gcs.node_table import LOOK_S, LOOKS
from shoal.gcs.storage.backend import StorageError
from shoal.gcs.storage.memory import MemoryBackend
from shoal.protocol.gcs_messages import (
    CHANNEL_KV,
    ActorConstructed,
    ActorWorkerStarted,
    Published,
    RegisterNode,
    StartActor,
    SubscribeKey,
)
from shoal.wire.framing import encode_frame

NODE = b"n" * 16


def serving(tmp_path: Path, body: Callable[[GcsServer, str], Coroutine[Any, Any, None]], backend: Any = None) -> None:
    async def run() -> None:
        path = str(tmp_path / "gcs.sock")
        server = GcsServer(path, backend or MemoryBackend())
        await server.start()
        try:
            await asyncio.wait_for(body(server, path), 60)
        finally:
            await server.stop()
        assert not os.path.exists(path)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def test_a_node_creates_an_actor(tmp_path: Path) -> None:
    async def body(server: GcsServer, path: str) -> None:
        pushes: asyncio.Queue[Any] = asyncio.Queue()
        client = await GcsClient.connect(path, NODE, pushes.put_nowait)
        answer = await client.register(RegisterNode(NODE, 1, "host", "addr", {"CPU": 20_000}))
        assert answer.gcs_pid == os.getpid()
        made = await client.call("gcs.actor_create", {"spec": actor_spec(name="bob")})
        assert made == {"actor_id": actor_spec().actor_id, "existing": None}
        assert [entry.node_id for entry in (await pushes.get()).nodes] == [NODE]
        start = await pushes.get()
        assert start == StartActor(actor_spec().actor_id, 1, actor_spec(name="bob"))
        client.send(SubscribeKey("actor", start.actor_id))
        assert (await pushes.get()).state.state == "pending"
        client.send(ActorWorkerStarted(start.actor_id, 1, b"w" * 16, "/w.sock", 42, 7))
        client.send(ActorConstructed(start.actor_id, 1))
        assert (await pushes.get()).state.pid == 42
        alive = await pushes.get()
        assert (alive.state.state, alive.state.lease_id, alive.state.address) == ("alive", 7, "/w.sock")
        with pytest.raises(GcsCallError) as refused:
            await client.call("gcs.actor_create", {"spec": actor_spec(2, name="bob")})
        assert refused.value.kind == "ActorAlreadyExists"
        client.close()

    serving(tmp_path, body)


def test_only_this_user_reaches_the_socket(tmp_path: Path) -> None:
    async def body(server: GcsServer, path: str) -> None:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600

    serving(tmp_path, body)


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, b"\x01\0\0\0\xc1", os.urandom(4096)])
def test_garbage_closes_its_connection_and_no_other(tmp_path: Path, garbage: bytes) -> None:
    async def body(server: GcsServer, path: str) -> None:
        good = await GcsClient.connect(path, NODE)
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(garbage)
        writer.write_eof()
        await asyncio.wait_for(reader.read(), 60)
        assert await good.call("gcs.jobs") == {"jobs": []}
        good.close()
        writer.close()

    serving(tmp_path, body)


def test_a_message_before_hello_is_refused_with_a_reason(tmp_path: Path) -> None:
    async def body(server: GcsServer, path: str) -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(encode_frame(SubscribeKey(CHANNEL_KV, b"x")))
        assert b"Hello" in await asyncio.wait_for(reader.read(), 60)
        writer.close()

    serving(tmp_path, body)


def test_calls_fail_at_once_when_the_server_goes(tmp_path: Path) -> None:
    async def body(server: GcsServer, path: str) -> None:
        reasons: list[str] = []
        client = await GcsClient.connect(path, NODE, on_lost=reasons.append)
        await client.call("gcs.jobs")
        waiting = client.call_nowait("gcs.jobs")
        await server.stop()
        with pytest.raises(GcsLostError):
            await asyncio.wait_for(waiting, 60)
        assert len(reasons) == 1
        with pytest.raises(GcsLostError):
            await client.call("gcs.jobs")

    serving(tmp_path, body)


def test_connecting_to_nothing_ends_with_a_reason(tmp_path: Path) -> None:
    async def run() -> None:
        with pytest.raises(GcsLostError, match="no GCS server"):
            await GcsClient.connect(str(tmp_path / "none.sock"), NODE, timeout_s=0.05)

    asyncio.run(run())


class SlowBackend(MemoryBackend):
    """A commit takes a turn of the loop and more; what is durable is counted."""

    def __init__(self) -> None:
        super().__init__()
        self.commits = 0
        self.durable = 0

    async def commit(self, writes: Any) -> None:
        await asyncio.sleep(0.01)
        await super().commit(writes)
        self.commits += 1
        self.durable += sum(write.table == "kv" for write in writes)


def test_answers_wait_for_their_writes_and_commits_are_grouped(tmp_path: Path) -> None:
    backend = SlowBackend()

    async def body(server: GcsServer, path: str) -> None:
        pushes: list[Any] = []
        client = await GcsClient.connect(path, NODE, pushes.append)
        client.send(SubscribeKey(CHANNEL_KV, b"s\0k"))
        order: list[int] = []
        puts = []
        for number in range(50):
            puts.append(client.call_nowait("gcs.kv_put", {"namespace": "s", "key": b"k", "value": b"%d" % number}))
            puts[-1].add_done_callback(lambda _, number=number: order.append(number))
        read = client.call_nowait("gcs.kv_get", {"namespace": "s", "key": b"k"})
        await puts[0]
        assert backend.durable >= 1
        await asyncio.gather(*puts)
        assert (await read) == {"value": b"49"}
        assert backend.durable == 50 and backend.commits < 50 and order == list(range(50))
        assert [push.value for push in pushes] == [None] + [b"%d" % number for number in range(50)]
        versions = [push.version for push in pushes if isinstance(push, Published)]
        assert versions == sorted(set(versions))
        client.close()

    serving(tmp_path, body, backend)


class BrokenBackend(MemoryBackend):
    async def commit(self, writes: Any) -> None:
        if any(write.table == "kv" for write in writes):
            raise StorageError("disk full")


def test_a_failing_storage_ends_the_server_without_an_answer(tmp_path: Path) -> None:
    async def body(server: GcsServer, path: str) -> None:
        client = await GcsClient.connect(path, NODE)
        put = client.call_nowait("gcs.kv_put", {"namespace": "s", "key": b"k", "value": b"v"})
        await asyncio.wait_for(server.failed.wait(), 60)
        assert not put.done()
        client.close()
        with pytest.raises(GcsLostError):
            await put

    serving(tmp_path, body, BrokenBackend())


def test_an_internal_error_is_answered_and_the_server_lives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def body(server: GcsServer, path: str) -> None:
        client = await GcsClient.connect(path, NODE)
        server.shard.jobs.rows = lambda: 1 // 0  # type: ignore[assignment]
        with pytest.raises(GcsCallError, match="report"):
            await client.call("gcs.jobs")
        assert await client.call("gcs.nodes") == {"nodes": []}
        client.close()

    serving(tmp_path, body)
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_new_server_on_the_same_storage_knows_what_the_old_one_knew(tmp_path: Path) -> None:
    backend = MemoryBackend()

    async def first(server: GcsServer, path: str) -> None:
        client = await GcsClient.connect(path, NODE)
        await client.register(RegisterNode(NODE, 1, "host", "addr", {"CPU": 20_000}))
        await client.call("gcs.kv_put", {"namespace": "s", "key": b"k", "value": b"v"})
        await client.call("gcs.function_put", {"function_id": b"f" * 16, "code": b"code"})
        await client.call("gcs.register_job", {"namespace": "s", "pid": 5})
        await client.call("gcs.actor_create", {"spec": actor_spec(name="bob", detached=True)})

    async def second(server: GcsServer, path: str) -> None:
        client = await GcsClient.connect(path, NODE)
        assert await client.call("gcs.kv_list", {"namespace": "s", "prefix": b""}) == {"keys": [b"k"]}
        assert await client.call("gcs.function_get", {"function_id": b"f" * 16}) == {"code": b"code"}
        assert (await client.call("gcs.register_job", {"namespace": "s", "pid": 6}))["job_id"] == b"\0\0\0\2"
        found = await client.call("gcs.actor_by_name", {"name": "bob", "namespace": "space"})
        assert found["actor_id"] == actor_spec().actor_id
        client.close()

    serving(tmp_path, first, backend)
    serving(tmp_path, second, backend)


def test_another_session_on_the_same_storage_finds_keys_but_no_lives(tmp_path: Path) -> None:
    backend = MemoryBackend()

    async def serve(session: str, look: Callable[[GcsClient], Coroutine[Any, Any, None]]) -> None:
        server = GcsServer(str(tmp_path / "gcs.sock"), backend, session)
        await server.start()
        client = await GcsClient.connect(str(tmp_path / "gcs.sock"), NODE)
        await client.register(RegisterNode(NODE, 1, "host", "addr", {"CPU": 20_000}))
        await look(client)
        client.close()
        await server.stop()

    async def fill(client: GcsClient) -> None:
        await client.call("gcs.kv_put", {"namespace": "s", "key": b"k", "value": b"v"})
        await client.call("gcs.register_job", {"namespace": "s", "pid": 5})
        await client.call("gcs.actor_create", {"spec": actor_spec(name="bob", detached=True)})

    async def look(client: GcsClient) -> None:
        assert await client.call("gcs.kv_list", {"namespace": "s", "prefix": b""}) == {"keys": [b"k"]}
        assert await client.call("gcs.jobs") == {"jobs": []}
        assert await client.call("gcs.actors_list") == {"actors": []}

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve("one", fill))
        runner.run(serve("two", look))


def test_a_node_that_does_not_come_back_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.gcs.node_table.NODE_AWAY_S", 0.1)
    backend = MemoryBackend()

    async def first(server: GcsServer, path: str) -> None:
        client = await GcsClient.connect(path, NODE)
        await client.register(RegisterNode(NODE, 1, "host", "addr", {"CPU": 20_000}))
        await client.call("gcs.register_job", {"namespace": "s", "pid": 5})

    async def second(server: GcsServer, path: str) -> None:
        client = await GcsClient.connect(path, b"o" * 16)
        assert (await client.call("gcs.jobs"))["jobs"][0]["state"] == "running"
        async with asyncio.timeout(60 + LOOKS * LOOK_S):
            while (job := (await client.call("gcs.jobs"))["jobs"][0])["state"] == "running":
                await asyncio.sleep(0.02)
        assert job["state"] == "ended" and "did not come back" in job["end_reason"]
        client.close()

    serving(tmp_path, first, backend)
    serving(tmp_path, second, backend)


# ---------------------------------------------------------------- the process

PARENT = """
import os, sys, time
pid = os.fork()
if pid == 0:
    from shoal.gcs.io.server import main
    os._exit(main(sys.argv[1], parent_pid=os.getppid()))
print(pid, flush=True)
time.sleep(60)
"""


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_process_ends_with_its_parent_and_removes_the_session(tmp_path: Path, number: int) -> None:
    session = tmp_path / f"shoal-{os.geteuid()}" / "0123abcd"
    session.mkdir(parents=True)
    path = session / "gcs.sock"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    try:
        assert wait_for(path.exists)
        with open(f"/proc/{pid}/cmdline") as file:
            assert file.read().startswith("shoal:gcs")
        with socket.socket(socket.AF_UNIX) as probe:
            assert wait_for(lambda: probe.connect_ex(str(path)) == 0)  # bound is not yet listening
        parent.send_signal(number)
        parent.wait()
        assert wait_for(lambda: not runs(pid))
        assert wait_for(lambda: not session.exists())
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()


def _run_main(path: str) -> None:
    from shoal.gcs.io.server import main

    sys.exit(main(path))


def test_sigterm_ends_the_process_in_order_and_ctrl_c_does_not(tmp_path: Path) -> None:
    path = tmp_path / "gcs.sock"
    process = multiprocessing.get_context("spawn").Process(target=_run_main, args=(str(path),))
    process.start()
    try:
        assert wait_for(path.exists)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
        time.sleep(0.05)
        assert process.is_alive()
        process.terminate()
        process.join(60)
        assert process.exitcode == 0
        assert not path.exists() and tmp_path.exists()
    finally:
        process.kill()
