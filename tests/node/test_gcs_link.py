"""The daemon's line to the GCS over real sockets: everything is said once, however often the server dies or is mute."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from shoal.gcs.io.server import GcsServer
from shoal.gcs.storage.memory import MemoryBackend
from shoal.node.io import gcs_link
from shoal.node.io.gcs_link import GcsLink
from shoal.protocol.gcs_messages import NodeLoad, NodeReport, RegisterNode, TaskEventBatch

NODE = b"n" * 16


class Disk(MemoryBackend):
    """Rows that outlive servers; a server may be made to die right after a commit, before anybody hears of it."""

    def __init__(self) -> None:
        super().__init__()
        self.commits = 0
        self.die_after = 0
        self.died = asyncio.Event()

    async def commit(self, writes: Any) -> None:
        await super().commit(writes)
        self.commits += 1
        if self.commits == self.die_after:
            self.died.set()
            await asyncio.Event().wait()  # never returns, like a process that was killed


class Side:
    """A link, and a server that can be replaced."""

    def __init__(self, tmp_path: Path) -> None:
        self.path = str(tmp_path / "gcs.sock")
        self.disk = Disk()
        self.server: GcsServer | None = None
        self.stuck: list[str] = []
        self.refused: list[str] = []
        self.connected = 0
        self.link = GcsLink(lambda push: None, self.on_connected, self.stuck.append, self.refused.append)

    def on_connected(self) -> None:
        self.connected += 1
        self.link.tell(NodeReport([]))

    def start_link(self) -> None:
        self.link.start(asyncio.get_running_loop(), self.path, RegisterNode(NODE, 1, "host", "addr", {}))

    async def start_server(self) -> None:
        self.server = GcsServer(self.path, self.disk)
        await self.server.start()

    async def kill_server(self) -> None:
        server, self.server = self.server, None
        assert server is not None
        if server._commit is not None:
            server._commit.cancel()
            server._commit = None
        server._after_writes.clear()
        await server.stop()

    async def ask(self, method: str, **body: Any) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.link.call(method, body, lambda answer, error: future.set_result((answer, error)))
        answer, error = await asyncio.wait_for(future, 60)
        assert not error, error
        return answer

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.005)


def run(body: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(body)


def batch(seq: int) -> TaskEventBatch:
    return TaskEventBatch(b"w" * 16, seq, 1, NODE, b"", 1, b"\x90")


@pytest.mark.parametrize("seed", range(6))
def test_what_is_committed_when_the_server_dies_is_not_done_again(tmp_path: Path, seed: int) -> None:
    """It dies after each commit in turn: answers that nobody heard are the same the second time."""
    dice = random.Random(seed)

    async def body() -> None:
        side = Side(tmp_path)
        side.start_link()
        keys = [b"%d" % n for n in range(40)]
        all_done = asyncio.Event()
        deaths = 0

        async def reaper() -> None:
            nonlocal deaths
            for _ in range(8):
                await side.start_server()
                side.disk.died.clear()
                side.disk.die_after = side.disk.commits + dice.randint(1, 4)
                waits = [asyncio.ensure_future(event.wait()) for event in (side.disk.died, all_done)]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for wait in waits:
                    wait.cancel()
                if not side.disk.died.is_set():
                    return
                deaths += 1
                await side.kill_server()
            side.disk.die_after = 0
            await side.start_server()

        reaping = asyncio.ensure_future(reaper())

        async def once(key: bytes) -> None:
            await asyncio.sleep(dice.random() * 0.1)
            assert await side.ask("gcs.kv_put", namespace="s", key=key, value=b"1", overwrite=False) == {"added": True}
            assert await side.ask("gcs.kv_del", namespace="s", key=key) == {"deleted": 1}

        for seq in range(1, 21):
            side.link.report(batch(seq))
        for some in range(0, 40, 10):  # however slow it is, these are several commits
            await asyncio.gather(*map(once, keys[some : some + 10]))
        all_done.set()
        await reaping
        if side.server is None:
            await side.start_server()
        await side.until(lambda: side.link.statistics()["kept"] == 0)
        statistics = await side.ask("gcs.statistics")
        assert (statistics["task_events"], statistics["answers"]) == (20, 0)
        assert side.connected == side.link.reconnects + 1
        assert deaths > 0
        side.link.close()
        await side.kill_server()

    run(body())


def test_a_mute_server_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.node.io.gcs_link.GCS_SILENT_S", 0.1)

    async def body() -> None:
        side = Side(tmp_path)
        await side.start_server()
        side.start_link()
        await side.ask("gcs.jobs")
        await asyncio.sleep(0.3)
        assert side.stuck == []  # nothing is owed, so silence means nothing
        side.disk.die_after = side.disk.commits + 1
        side.link.call("gcs.kv_put", {"namespace": "s", "key": b"k", "value": b"v"})
        await side.until(lambda: side.stuck)
        assert "has not answered" in side.stuck[0]
        side.link.close()
        await side.kill_server()

    run(body())


def test_a_server_that_stands_still_while_nobody_asks_it_anything_is_found_by_heartbeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.node.io.gcs_link.GCS_SILENT_S", 0.1)

    async def body() -> None:
        side = Side(tmp_path)
        await side.start_server()
        side.start_link()
        await side.ask("gcs.jobs")
        load = NodeLoad(1, {}, {})
        side.link.beat(load)
        await side.until(lambda: side.link.silent_s() == 0.0)
        assert side.server is not None
        monkeypatch.setattr(side.server, "take", lambda number, message: None)
        side.link.beat(load)
        await side.until(lambda: len(side.stuck) == 2)
        assert side.link.silent_s() >= 0.2, "it goes on counting"
        side.link.close()
        await side.kill_server()

    run(body())


def test_a_server_that_accepts_and_says_nothing_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.node.io.gcs_link.GCS_SILENT_S", 0.1)

    async def body() -> None:
        side = Side(tmp_path)
        silent = await asyncio.start_unix_server(lambda reader, writer: None, side.path)
        side.start_link()
        await side.until(lambda: side.stuck)
        silent.close()
        side.link.close()

    run(body())


def test_what_waits_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.node.io.gcs_link.GCS_QUEUE_MAX", 10)

    async def body() -> None:
        side = Side(tmp_path)
        side.start_link()
        for seq in range(1, 21):
            side.link.report(batch(seq))
        refused: list[Any] = []
        side.link.call("gcs.jobs", {}, lambda answer, error: refused.append(error))
        assert refused[0][0] == "GcsUnavailable" and "gcs.jobs" in refused[0][1]
        assert side.link.statistics() == {"connected": 0, "kept": 10, "reconnects": 0, "task_events_dropped": 10}
        await side.start_server()
        await side.until(lambda: side.link.statistics()["kept"] == 0)
        assert (await side.ask("gcs.statistics"))["task_events"] == 10
        side.link.close()
        await side.kill_server()

    run(body())


def test_refusals_are_answers(tmp_path: Path) -> None:
    async def body() -> None:
        side = Side(tmp_path)
        await side.start_server()
        side.start_link()
        errors: list[Any] = []
        side.link.call("gcs.nonsense", {}, lambda answer, error: errors.append(error))
        side.link.call("gcs.also_nonsense", {})
        await side.until(lambda: errors and side.link.statistics()["kept"] == 0)
        assert errors[0][0] == "UnknownMethod"
        side.link.close()
        await side.kill_server()

    run(body())


@pytest.mark.parametrize(
    ("sent_s", "gcs_s", "heard_s", "text"),
    [
        (100.0, 100.2, 100.5, ""),
        (100.0, 99.5, 100.0, ""),
        (100.0, 97.0, 100.1, "3.0 s ahead of"),
        (100.0, 104.6, 100.1, "4.5 s behind"),
    ],
)
def test_clocks_that_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent_s: float, gcs_s: float, heard_s: float, text: str
) -> None:
    """Only what the time of the way cannot explain is a difference."""
    link = Side(tmp_path).link
    link._node = RegisterNode(NODE, 1, "host", "addr", {}, time_s=sent_s)
    monkeypatch.setattr("time.time", lambda: heard_s)
    link._note_skew(gcs_s)
    assert text in link.skew_warning()
    assert bool(text) == bool(link.skew_warning())


def test_a_server_that_is_somewhere_else_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs_link, "ADDRESS_WAIT_S", 0.05)

    async def body() -> None:
        side = Side(tmp_path)
        moved: list[str] = []
        side.link.on_moved = moved.append
        other = str(tmp_path / "other.sock")
        facts = RegisterNode(NODE, 1, "host", "addr", {})
        side.link.start(asyncio.get_running_loop(), side.path, facts, others=[side.path, other])
        await side.start_server()
        await side.until(lambda: side.connected == 1)
        await side.ask("gcs.kv_put", namespace="s", key=b"k", value=b"v")
        assert moved == []
        await side.kill_server()
        side.path = other
        await side.start_server()
        await side.until(lambda: side.connected == 2)
        assert moved == [other]
        assert (await side.ask("gcs.kv_get", namespace="s", key=b"k"))["value"] == b"v"
        side.link.close()
        await side.kill_server()

    run(body())
