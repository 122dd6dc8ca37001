"""Membership: joining, numbers, refusals, heartbeats, death, fencing; on a shard, and over restarts of it."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.gcs.node_table import ANEW_S, NodeTable
from shoal.gcs.shard import CloseConnection, ConnectionLost, GcsShard, MessageReceived, Send, TimePassed
from shoal.gcs.storage.backend import Write
from shoal.protocol.gcs_messages import (
    ClusterNodes,
    DrainNode,
    GcsAnswer,
    GcsCall,
    HeartbeatAcknowledged,
    LeasesPlaced,
    NodeLoad,
    NodeRegistered,
    PlaceLeases,
    RegisterNode,
)
from shoal.protocol.limits import HEARTBEATS_MISSED_S, NODE_AWAY_S, NODES_DEAD_MAX, PROTOCOL_VERSION
from shoal.protocol.messages import Hello

CPU = 10_000


def node_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


class World:
    """A shard, its disk, and nodes 0 (the head), 1, 2 ...; connection numbers are made up as needed."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.disk: dict[tuple[str, bytes], bytes] = {}
        self.shard = GcsShard(42, lambda below: 0)
        self.connection = 0
        self.connections: dict[int, int] = {}
        self.known_no: dict[int, int] = {}
        self.told: dict[int, list[Any]] = {}
        self.closed: dict[int, str] = {}
        self.request = 0

    def perform(self, effects: list[Any]) -> None:
        node_of = {connection: number for number, connection in self.connections.items()}
        for effect in effects:
            if type(effect) is Write:
                if effect.value is None:
                    self.disk.pop((effect.table, effect.key), None)
                else:
                    self.disk[effect.table, effect.key] = effect.value
            elif effect.connection in node_of:
                number = node_of[effect.connection]
                if type(effect) is Send:
                    self.told.setdefault(number, []).append(effect.message)
                else:
                    self.closed[number] = effect.reason

    def restart(self) -> None:
        """The server is killed; another one reads the disk."""
        self.shard = GcsShard(43, lambda below: 0)
        for (table, key), value in sorted(self.disk.items()):
            self.shard.restore(table, key, value)
        self.shard.begin(self.now)
        self.connections.clear()

    def say(self, number: int, message: Any) -> list[Any]:
        """A node says something; what it hears because of it."""
        before = len(self.told.get(number, []))
        self.perform(self.shard.handle(MessageReceived(self.connections[number], message), self.now))
        return self.told.get(number, [])[before:]

    def join(self, number: int, **changes: Any) -> NodeRegistered:
        self.connection += 1
        self.connections[number] = self.connection
        self.say(number, Hello(PROTOCOL_VERSION, node_id(number), b"", 1))
        facts: dict[str, Any] = {"is_head": number == 0, "name": f"n{number}", "node_no": self.known_no.get(number, 0)}
        facts |= changes
        answers = self.say(
            number, RegisterNode(node_id(number), 1, "host", f"tcp:h:{number}", {"CPU": 4 * CPU}, **facts)
        )
        answer = answers[0]
        assert type(answer) is NodeRegistered
        if not answer.refused:
            self.known_no[number] = answer.node_no
        return answer

    def beat(self, number: int, free: int = 4, waiting: int = 0, draining: bool = False) -> list[Any]:
        demands = [({"CPU": CPU}, waiting)] if waiting else []
        return self.say(number, NodeLoad(7, {"CPU": free * CPU}, {"CPU": 4 * CPU}, demands, 0.0, 0, draining))

    def lose(self, number: int, cause: str = "it was closed") -> None:
        self.perform(self.shard.handle(ConnectionLost(self.connections.pop(number), cause), self.now))

    def sleep(self, seconds: float) -> None:
        """Time passes, with the timer when it is due."""
        until = self.now + seconds
        while (deadline := self.shard.next_deadline()) is not None and deadline <= until:
            self.now = max(self.now, deadline)
            self.perform(self.shard.handle(TimePassed(), self.now))
        self.now = until

    def call(self, number: int, method: str, **body: Any) -> Any:
        self.request += 1
        [answer] = [e for e in self.say(number, GcsCall(self.request, f"gcs.{method}", body)) if type(e) is GcsAnswer]
        return answer.error or answer.body

    def heard_of(self, number: int, about: int) -> list[Any]:
        """What a node was told about another, in order."""
        entries = [each for message in self.told[number] if type(message) is ClusterNodes for each in message.nodes]
        return [entry for entry in entries if entry.node_id == node_id(about)]


@pytest.fixture
def world() -> World:
    made = World()
    for number in range(3):
        made.join(number)
    return made


def test_numbers_count_up_and_everybody_hears_of_everybody(world: World) -> None:
    assert world.known_no == {0: 0, 1: 1, 2: 2}
    for number in range(3):
        for other in range(3):
            heard = world.heard_of(number, other)
            assert [entry.alive for entry in heard] == [True] and heard[0].node_no == other
    versions = [message.version for message in world.told[0] if type(message) is ClusterNodes]
    assert versions == sorted(set(versions))
    assert world.join(1).node_no == 1  # it reconnects


def test_numbers_are_never_used_again_not_even_after_a_restart(world: World) -> None:
    world.lose(2)
    world.sleep(NODE_AWAY_S)
    world.restart()
    assert world.join(0).node_no == 0 and world.join(1).node_no == 1
    assert world.join(3).node_no == 3


@pytest.mark.parametrize(
    ("number", "changes", "says"),
    [
        (7, {"name": "n1"}, "is taken by a node at tcp:h:1"),
        (7, {"is_head": True}, "has a head node already: n0 at tcp:h:0"),
        (7, {"node_no": 3}, "declared dead long ago"),
    ],
)
def test_who_may_not_join_is_told_why_and_changes_nothing(
    world: World, number: int, changes: dict[str, Any], says: str
) -> None:
    disk = dict(world.disk)
    told = {each: len(messages) for each, messages in world.told.items()}
    assert says in world.join(number, **changes).refused
    assert world.disk == disk and len(world.shard.nodes.records()) == 3
    assert {each: len(world.told[each]) for each in told} == told
    assert not world.join(8).refused


def test_a_heartbeat_is_acknowledged_and_a_silent_node_is_dead(world: World) -> None:
    assert HeartbeatAcknowledged(7) in world.beat(1)
    world.beat(2)
    world.sleep(HEARTBEATS_MISSED_S - 1)
    world.beat(2)
    world.sleep(1.5)
    assert [entry.alive for entry in world.heard_of(0, 1)] == [True, False]
    assert "said nothing for 5.0 s" in world.heard_of(2, 1)[-1].cause and "declared dead" in world.closed[1]
    assert [row["state"] for row in world.call(0, "nodes")["nodes"]] == ["alive", "dead", "alive"]
    # The head never sent a heartbeat: a lone node sends none, and is not given up for it.
    world.sleep(100)
    assert 0 not in world.closed


def test_a_node_that_was_declared_dead_is_fenced_also_by_the_next_server(world: World) -> None:
    world.lose(1, "killed")
    world.sleep(NODE_AWAY_S)
    assert "declared dead: killed" in world.join(1).refused
    world.restart()
    world.join(0)
    refused = world.join(1).refused
    assert "declared dead: killed" in refused and "start it again" in refused


def test_a_new_server_waits_for_the_nodes_of_the_old_one(world: World) -> None:
    world.sleep(100)
    world.restart()
    world.join(0)
    world.sleep(NODE_AWAY_S - 1)
    assert not world.join(1).refused
    assert world.known_no[1] == 1
    world.sleep(2)
    assert [entry.alive for entry in world.heard_of(0, 2)][-1] is False
    assert "started again" in world.heard_of(1, 2)[-1].cause


def test_a_server_that_stood_still_gives_everybody_time(world: World) -> None:
    world.beat(1)
    world.lose(2)
    world.now += 60
    world.perform(world.shard.handle(TimePassed(), world.now))
    assert not world.closed and all(record.alive for record in world.shard.nodes.records())
    world.join(2)
    world.sleep(ANEW_S / 2)
    world.beat(1)
    world.sleep(ANEW_S)
    assert all(record.alive for record in world.shard.nodes.records())
    world.sleep(HEARTBEATS_MISSED_S)
    assert [record.alive for record in world.shard.nodes.records()] == [True, False, True]


def test_a_name_is_free_again_after_a_death(world: World) -> None:
    world.lose(1)
    assert "taken" in world.join(7, name="n1").refused  # it may come back
    world.sleep(NODE_AWAY_S)
    assert not world.join(7, name="n1").refused


def test_the_dead_are_remembered_up_to_a_limit() -> None:
    table = NodeTable()
    writes: list[Write] = []
    for number in range(1, NODES_DEAD_MAX + 6):
        node = RegisterNode(node_id(number), 1, "h", "a", {})
        assert table.register(node, number, writes) == ""
        table.bury(node_id(number), "it ended", number + 0.5, writes)
    assert len(table.records()) == NODES_DEAD_MAX and table.get(node_id(5)) is None
    disk: dict[bytes, bytes] = {}
    for write in writes:
        if write.value is None:
            del disk[write.key]
        else:
            disk[write.key] = write.value
    restored = NodeTable()
    for key, value in sorted(disk.items()):
        restored.restore(key, value)
    restored.begin(0)
    assert restored.records() == table.records() and restored.next_deadline() is None
    fresh = RegisterNode(node_id(9999), 1, "h", "a", {})
    restored.register(fresh, 0, writes)
    assert fresh.node_no == NODES_DEAD_MAX + 6


# ---------------------------------------------------------------- placing through the shard


def test_leases_are_placed_and_placed_again_after_a_death(world: World) -> None:
    world.beat(0, 0)
    world.beat(1)
    ask = PlaceLeases(b"p", 3, b"job1", {"CPU": CPU}, 6, name="f")
    assert world.say(0, ask) == [LeasesPlaced(b"p", 3, [(node_id(1), 4)])]
    [demand] = world.call(0, "cluster_load")["demands"]
    assert demand["count"] == 2 and "n1 has 0 CPU free of 4 CPU" in demand["why"]
    world.told[0].clear()
    world.beat(2)
    assert LeasesPlaced(b"p", 3, [(node_id(2), 2)]) in world.told[0]
    assert world.call(0, "cluster_load")["demands"] == []
    world.lose(2)
    assert world.say(0, ask) == []


def test_what_no_node_can_ever_do_is_refused_also_when_the_last_one_dies(world: World) -> None:
    ask = PlaceLeases(b"p", 3, b"job1", {"GPU": CPU}, 6, name="train")
    [answer] = world.say(0, ask)
    assert "train asks for 1 GPU" in answer.refused and "n2 has 4 CPU" in answer.refused
    world.join(5, name="gpus")
    load = NodeLoad(1, {}, {"GPU": CPU}, [], 0.0, 0)
    world.say(5, load)
    assert world.say(0, ask) == []  # busy, but possible
    world.lose(5)
    assert world.say(0, ask) == []  # it may come back
    world.told[0].clear()
    world.sleep(NODE_AWAY_S)
    assert any(type(message) is LeasesPlaced and message.refused for message in world.told[0])


def test_a_nonsensical_strategy_is_refused(world: World) -> None:
    [answer] = world.say(0, PlaceLeases(b"p", 3, b"job1", {}, 6, {"kind": "node_affinity"}))
    assert "makes no sense" in answer.refused
    hard = [["zone", "like", []]]
    [answer] = world.say(0, PlaceLeases(b"p", 3, b"job1", {}, 6, {"kind": "labels", "hard": hard}))
    assert "makes no sense" in answer.refused and "like" in answer.refused


def test_draining(world: World) -> None:
    assert world.call(0, "drain_node", node_id=node_id(1), reason="maintenance", deadline_s=5) == {"draining": True}
    assert DrainNode("maintenance", 5.0) in world.told[1]
    assert world.heard_of(2, 1)[-1].draining
    world.beat(0, 0)
    world.beat(1)
    assert world.say(0, PlaceLeases(b"p", 3, b"job1", {"CPU": CPU}, 1)) == []
    assert world.call(0, "drain_node", node_id=node_id(9))[0] == "NodeNotFound"
    assert world.call(0, "drain_node", node_id=node_id(0))[0] == "BadRequest"
    world.beat(2, draining=True)  # a node may decide by itself
    assert world.heard_of(0, 2)[-1].draining
    world.restart()
    world.join(0)
    world.join(1)
    assert world.heard_of(0, 1)[-1].draining
    assert CloseConnection not in map(type, world.told[1])
