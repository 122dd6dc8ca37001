"""The shell of a node's patience with its head: who is asked, what is said, and when the node ends."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any

from shoal.node.io.head_watch import HeadWatch
from shoal.protocol.gcs_messages import NodeEntry
from shoal.protocol.limits import GCS_RECONNECT_TIMEOUT_S, GCS_RETURN_TIMEOUT_S

TIMEOUT_S = 0.05
BOUND_S = 60.0
HEAD = NodeEntry(b"h" * 16, 0, "tcp:10.0.0.1:77", "attic", {}, {}, True, is_head=True, name="main")
OTHER = NodeEntry(b"o" * 16, 1, "tcp:10.0.0.2:77", "cellar", {}, {}, True)


class World:
    """A node, a GCS that is silent, and a head that lives until `head_lives` is False."""

    def __init__(self, timeout_s: float | None = TIMEOUT_S, may_move: bool = False, may_return: bool = False) -> None:
        self.head_lives = False
        self.silent_s = 3.0
        self.dialled: list[str] = []
        self.asked = asyncio.Event()
        self.lost = 0
        self.given_up: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        links: Any = SimpleNamespace(nodes={each.node_id: each for each in (OTHER, HEAD)})
        gcs: Any = SimpleNamespace(silent_s=lambda: self.silent_s, may_move=may_move, may_return=may_return)
        loop = asyncio.get_running_loop()
        self.watch = HeadWatch(loop, links, gcs, self.dial, timeout_s, self.on_lost, self.given_up.set_result)

    def dial(self, address: str) -> socket.socket:
        self.dialled.append(address)
        asyncio_loop = self.given_up.get_loop()
        asyncio_loop.call_soon_threadsafe(self.asked.set)
        if not self.head_lives:
            raise ConnectionError("nobody answers")
        mine, other = socket.socketpair()
        other.close()
        return mine

    def on_lost(self) -> None:
        self.lost += 1

    async def asked_again(self) -> None:
        self.asked.clear()
        await asyncio.wait_for(self.asked.wait(), BOUND_S)


def test_a_node_ends_when_its_head_is_lost_and_says_what_can_be_done() -> None:
    async def run() -> None:
        world = World()
        world.watch.away()
        reason = await asyncio.wait_for(world.given_up, BOUND_S)
        assert set(world.dialled) == {HEAD.address} and world.lost == 1
        for part in ("head node main at 10.0.0.1:77 (attic) is lost", "--gcs-reconnect-timeout", "redis", "--head"):
            assert part in reason

    asyncio.run(run())


def test_a_gcs_that_is_away_while_its_head_lives_ends_no_node() -> None:
    async def run() -> None:
        world = World()
        world.head_lives = True
        world.watch.away()
        for _ in range(5):  # each when the patience would have been over
            await world.asked_again()
        assert not world.given_up.done() and not world.lost and world.watch.explain() == ""
        world.head_lives = False
        await asyncio.wait_for(world.given_up, BOUND_S)
        assert world.lost == 1

    asyncio.run(run())


def test_nothing_is_asked_any_more_when_the_gcs_answers_on_the_connection_that_there_was() -> None:
    async def run() -> None:
        world = World()
        world.head_lives = True
        world.watch.away()
        await world.asked_again()
        world.silent_s = 0.0
        while world.watch._patience.is_away:
            await asyncio.sleep(0.001)
        asked = len(world.dialled)
        world.watch.away()
        await asyncio.sleep(2 * TIMEOUT_S)
        assert len(world.dialled) == asked and world.watch._timer is None

    asyncio.run(asyncio.wait_for(run(), BOUND_S))


def test_a_head_that_can_be_replaced_is_waited_for_unless_a_time_was_given() -> None:
    async def run() -> None:
        world = World(timeout_s=None, may_move=True)
        world.watch.away()
        while not world.lost:
            await asyncio.sleep(0.001)
        assert "another head may take its place" in world.watch.explain()
        world.watch.answers()
        assert world.watch.explain() == "" and not world.given_up.done()
        bounded = World(may_move=True)
        bounded.watch.away()
        await asyncio.wait_for(bounded.given_up, BOUND_S)

    asyncio.run(asyncio.wait_for(run(), BOUND_S))


def test_by_default_it_is_said_how_long_it_is_waited_for() -> None:
    async def run() -> None:
        world = World(timeout_s=None)
        world.watch.away()
        while not world.lost:
            await asyncio.sleep(0.001)
        text = world.watch.explain()
        assert "does not answer either" in text and "this node ends (--gcs-reconnect-timeout)" in text
        world.watch.answers()
        assert world.watch._patience.patience_s == GCS_RECONNECT_TIMEOUT_S
        longer = World(timeout_s=None, may_return=True)
        longer.watch.away()
        while not longer.lost:
            await asyncio.sleep(0.001)
        assert "start it again with the same --storage and --port" in longer.watch.explain()
        assert longer.watch._patience.patience_s == GCS_RETURN_TIMEOUT_S
        longer.watch.answers()

    asyncio.run(asyncio.wait_for(run(), BOUND_S))
