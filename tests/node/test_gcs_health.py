"""Why the GCS does not answer: who is told what, and when."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from shoal.node.io import gcs_process
from shoal.node.io.gcs_health import KEEPS_DYING, NOTICED_S, GcsHealth
from shoal.node.io.gcs_process import GcsElsewhere, GcsProcess, last_words
from shoal.node.io.processes import End
from shoal.protocol.limits import CONNECT_TIMEOUT_S, GCS_STILLBIRTHS_MAX, GCS_STORAGE_AWAY_EXIT
from shoal.protocol.node_messages import GcsTrouble


class Clock:
    """The loop, as far as it is asked."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now


@dataclass
class Link:
    silent: float = 0.0
    why: Any = None
    on_trouble: Any = None
    on_back: Any = None

    def silent_s(self) -> float:
        return self.silent

    def statistics(self) -> dict[str, int]:
        return {"connected": int(not self.silent)}


@dataclass
class Server:
    deaths: int = 0
    pid: int = 7
    restarts: int = 0

    def explain(self) -> str:
        return "it said: no room"

    def recent_deaths(self) -> int:
        return self.deaths


@dataclass
class Driver:
    log_to_driver: bool = True
    heard: list[str] = field(default_factory=list)

    def send(self, notice: Any) -> None:
        self.heard.append(notice.text)


class Node:
    def __init__(self) -> None:
        self.clock, self.link, self.server = Clock(), Link(), Server()
        self.driver, self.deaf = Driver(), Driver(log_to_driver=False)
        self.shards: Any = None
        everybody: Any = self
        self.health = GcsHealth(everybody.clock, everybody, everybody.link, everybody.server, lambda: self.shards)

    def drivers(self) -> list[Driver]:
        return [self.driver, self.deaf]


def test_a_death_that_is_over_soon_is_no_news() -> None:
    node = Node()
    node.server.deaths = 1
    node.link.on_trouble()
    node.link.on_back()
    assert node.driver.heard == [] and node.health.statistics()["trouble"] == ""


def test_who_is_away_for_long_is_told_of_once_and_so_is_its_return() -> None:
    node = Node()
    node.link.silent = 2 * NOTICED_S
    node.link.on_trouble()
    assert node.health.trouble() == node.link.why() == "the GCS has not answered for 2 s: it said: no room"
    node.link.silent = 0.0
    node.link.on_back()
    node.link.on_back()
    away, back = node.driver.heard
    assert "new actors, names and listings wait: the GCS has not answered for 2 s: it said: no room" in away
    assert back == "the GCS answers again" and node.deaf.heard == []


def test_one_that_keeps_dying_is_told_of_though_it_answers_in_between() -> None:
    node = Node()
    for node.server.deaths in range(KEEPS_DYING + 3):
        node.clock.now += 5.0
        node.link.on_trouble()
        node.link.on_back()
    [told] = node.driver.heard
    assert f"died {KEEPS_DYING} times within 60 s: it said: no room" in told


def test_a_shard_that_is_away() -> None:
    node = Node()

    class Shards:
        processes = (GcsElsewhere("x", None, lambda reason: None), Server())  # type: ignore[arg-type]

        def silent_s(self) -> list[float]:
            return [0.0, 3.0]

        def statistics(self) -> list[Any]:
            return []

    node.shards = Shards()
    Shards.processes[1].shard = 2  # type: ignore[union-attr]
    assert node.health.trouble() == "shard 2 of the GCS has not answered for 3 s: it said: no room"


class Start:
    """What a GCS process needs of a daemon's start."""

    def __init__(self, folder: Path) -> None:
        self.log_path = str(folder / "node.log")
        self.gcs_pid = 1
        self.options = {"gcs_storage": "redis://somewhere"}
        self.log = folder / "node.log"
        self.log.write_text("shoal:gcs: of long ago\n")


class Watches:
    def __init__(self) -> None:
        self.loop = Clock()
        self.killed = 0

    def watch(self, pid: int, died: Any) -> Any:
        return self

    def kill(self) -> None:
        self.killed += 1


def test_one_that_cannot_reach_its_storage_is_started_again_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gcs_process, "respawn_gcs", lambda *args, **kwargs: 2)
    failed: list[str] = []
    start: Any = Start(tmp_path)
    watches: Any = Watches()
    process = GcsProcess(start, watches, failed.append)
    process.watch()
    process.answered()
    assert process.explain() == "its server (process 1) runs", "what was said before is of former troubles"
    with start.log.open("a") as log:
        log.write("shoal:gcs: the server cannot be reached\nanother line\n")
    for _ in range(GCS_STILLBIRTHS_MAX + 40):
        process._died(End(exit_code=GCS_STORAGE_AWAY_EXIT))
    assert failed == [] and process.restarts == GCS_STILLBIRTHS_MAX + 40 and process.recent_deaths() == 0
    assert process.explain().endswith("exit code 4. It said: the server cannot be reached")
    process.end("it does not answer")
    assert watches.killed == 0, "it has just begun"
    watches.loop.now += CONNECT_TIMEOUT_S
    process.end("it does not answer")
    assert watches.killed == 1
    for _ in range(GCS_STILLBIRTHS_MAX + 1):
        process._died(End(exit_code=1))
    assert [reason.endswith("It said: the server cannot be reached") for reason in failed] == [True]


def test_what_is_known_of_one_elsewhere() -> None:
    async def run() -> None:
        server = GcsElsewhere("tcp:h:1", asyncio.get_running_loop(), lambda reason: None)
        server.answered()
        server.end("no route")
        assert server.explain().startswith("nobody answers at tcp:h:1 (no route)")
        server.answered()
        assert "no route" not in server.explain() and server.recent_deaths() == 0

    asyncio.run(run())


def test_no_log_says_nothing(tmp_path: Path) -> None:
    assert last_words(str(tmp_path / "none")) == "" and gcs_process.log_size(str(tmp_path / "none")) == 0


class Links:
    def __init__(self) -> None:
        self.nodes = {b"one": None, b"two": None}
        self.handlers: dict[type, Any] = {}
        self.sent: list[tuple[bytes, str]] = []

    def send(self, node_id: bytes, message: Any) -> None:
        self.sent.append((node_id, message.text))


def test_the_other_nodes_hear_from_the_head_what_ails_its_gcs_also_when_it_gives_it_up() -> None:
    head, links = Node(), Links()
    nothing: Any = None
    head.health.join_cluster(links, True, nothing, None, nothing)  # type: ignore[arg-type]
    head.link.silent = 3.0
    head.link.on_trouble()
    text = "the GCS has not answered for 3 s: it said: no room"
    assert links.sent == [(b"one", text), (b"two", text)]
    head.link.silent = 0.0
    head.link.on_back()
    assert links.sent[2:] == [(b"one", ""), (b"two", "")]
    assert head.health.given_up("it died 4 times") > 0
    assert links.sent[4:] == [(b"one", "it died 4 times"), (b"two", "it died 4 times")]
    assert Node().health.given_up("it died 4 times") == 0, "nobody to be told"


def test_a_node_that_joined_says_what_its_head_has_said() -> None:
    node, links = Node(), Links()
    given_up: list[str] = []
    nothing: Any = None
    node.health.join_cluster(links, False, nothing, None, given_up.append)  # type: ignore[arg-type]
    node.health._head.away = lambda: None  # type: ignore[method-assign,union-attr]
    node.link.silent = 3.0
    assert node.health.trouble() == "the GCS has not answered for 3 s: it said: no room"
    links.handlers[GcsTrouble](b"head", GcsTrouble("its disk is full"))
    assert node.health.trouble() == "the GCS has not answered for 3 s: its head says: its disk is full"
    node.health._head._give_up("the head node is lost")  # type: ignore[union-attr]
    assert given_up == ["the head node is lost. It had said: its disk is full"]
    node.link.silent = 0.0
    node.link.on_back()
    node.link.silent = 3.0
    assert "disk" not in node.health.trouble()
