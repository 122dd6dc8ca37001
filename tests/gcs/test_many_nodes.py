"""Many nodes on a shard, and over restarts of it: membership, leases and actors."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from shoal.gcs.node_table import LOOK_S, LOOKS, NodeTable
from shoal.gcs.node_views import REPLACED_WITHIN_S
from shoal.gcs.shard import GcsShard
from shoal.gcs.shard_events import (
    CloseConnection,
    ConnectionLost,
    MessageReceived,
    NodeRefuses,
    ProbeNode,
    Send,
    TimePassed,
)
from shoal.gcs.storage.backend import Write
from shoal.protocol import strategies
from shoal.protocol.gcs_messages import (
    CHANNEL_ACTOR,
    ActorChanged,
    ActorConstructed,
    ActorWorkerDied,
    ActorWorkerStarted,
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
    StartActor,
    StopActor,
    SubscribeKey,
)
from shoal.protocol.limits import HEARTBEATS_MISSED_S, NODE_AWAY_S, NODES_DEAD_MAX, PROTOCOL_VERSION
from shoal.protocol.messages import ActorSpec, Hello
from shoal.protocol.sharding import HEIRS, shards_of_call

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
            elif type(effect) is not ProbeNode and effect.connection in node_of:
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


@pytest.mark.parametrize("looks", range(LOOKS + 1))
def test_a_server_that_stood_still_listens_before_it_gives_anybody_up(world: World, looks: int) -> None:
    world.beat(1)
    world.lose(2)
    world.now += HEARTBEATS_MISSED_S - LOOKS * LOOK_S
    for _ in range(looks):
        world.perform(world.shard.handle(TimePassed(), world.now))
        world.now += LOOK_S
    world.now += 60  # it is stopped, between two looks; then its timer comes first
    if looks < LOOKS:
        world.perform(world.shard.handle(TimePassed(), world.now))
        assert not world.closed and all(record.alive for record in world.shard.nodes.records())
        assert [row["state"] for row in world.call(0, "nodes")["nodes"]] == ["alive", "suspect", "suspect"]
        world.beat(1)
        world.join(2)
        world.sleep(LOOKS * LOOK_S)
        assert [row["state"] for row in world.call(0, "nodes")["nodes"]] == ["alive"] * 3
    world.sleep(HEARTBEATS_MISSED_S)
    assert [record.alive for record in world.shard.nodes.records()] == [True, False, looks < LOOKS]


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
    assert world.call(0, "explain", process=b"p", class_no=3)["why"] == demand["why"]
    assert world.call(0, "explain", process=b"p", class_no=4)["why"] == ""
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
    assert not any(type(message) is LeasesPlaced for message in world.told[0])  # it may be replaced
    world.sleep(REPLACED_WITHIN_S)
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


def test_a_node_that_is_drained_while_it_is_away_hears_of_it_when_it_returns(world: World) -> None:
    world.lose(1)
    assert world.call(0, "drain_node", node_id=node_id(1), reason="maintenance", deadline_s=5) == {"draining": True}
    assert DrainNode("maintenance", 5.0) not in world.told[1]
    world.restart()
    for number in range(3):
        world.join(number)
    assert world.told[1].count(DrainNode("maintenance", 5.0)) == 1
    world.beat(1)  # the message may have been lost with the connection
    world.lose(1)
    world.join(1)
    assert world.told[1].count(DrainNode("maintenance", 5.0)) == 2
    world.beat(1, draining=True)
    world.restart()
    for number in range(3):
        world.join(number)
    assert world.told[1].count(DrainNode("maintenance", 5.0)) == 2, "it knows, and its time runs"


# ---------------------------------------------------------------- actors over nodes


def actor(number: int, cpus: int = 1, **changes: Any) -> ActorSpec:
    units = {"CPU": cpus * CPU} if cpus else {}
    return ActorSpec(node_id(100 + number), b"c" * 16, "Counter", b"job1", "", "space", {}, units, b"", None, **changes)


def starts(world: World) -> dict[int, list[tuple[int, int]]]:
    """(actor, incarnation) that each node was told to start."""
    return {
        number: [
            (int.from_bytes(message.actor_id, "big") - 100, message.incarnation)
            for message in messages
            if type(message) is StartActor
        ]
        for number, messages in world.told.items()
    }


def begins(world: World, number: int, which: int, incarnation: int = 1) -> None:
    world.say(number, ActorWorkerStarted(node_id(100 + which), incarnation, b"w" * 16, "addr", 5, 7))
    world.say(number, ActorConstructed(node_id(100 + which), incarnation))


def test_actors_are_spread_over_rooms_then_by_count_then_near(world: World) -> None:
    for number in range(3):
        world.beat(number)
    for which in range(6):
        world.call(1, "actor_create", spec=actor(which))
    assert {number: len(each) for number, each in starts(world).items()} == {0: 2, 1: 2, 2: 2}
    for which in range(6, 12):
        world.call(1, "actor_create", spec=actor(which, 0))
    assert {number: len(each) for number, each in starts(world).items()} == {0: 4, 1: 4, 2: 4}
    assert starts(world)[1][0] == (0, 1)  # among equals the node that asked


def test_an_actor_without_room_queues_and_moves_to_who_has_room_first(world: World) -> None:
    world.beat(0, 0, waiting=2)
    world.beat(1, 0, waiting=1)
    world.beat(2, 0, waiting=9)
    world.call(0, "actor_create", spec=actor(1))
    assert starts(world)[1] == [(1, 1)]
    world.sleep(0.4)
    world.beat(2, 1)
    assert starts(world)[2] == []  # give the first one a moment
    world.sleep(0.2)
    assert StopActor(node_id(101), 1, True, "it begins on another node, which has room") in world.told[1]
    assert starts(world)[2] == [(1, 2)]
    begins(world, 1, 1)  # too late: node 1 had not heard of it
    assert world.call(0, "actors_list")["actors"][0]["state"] == "pending"
    begins(world, 2, 1, 2)
    world.say(1, ActorWorkerDied(node_id(101), 1, "killed"))
    [row] = world.call(0, "actors_list")["actors"]
    assert (row["state"], row["node_id"], row["restarts"]) == ("alive", node_id(2), 0)
    assert world.call(0, "cluster_load")["demands"] == []


def test_actors_of_a_dead_node_live_elsewhere(world: World) -> None:
    for number in range(3):
        world.beat(number)
    pinned = strategies.node_affinity(node_id(2), True)
    world.call(0, "actor_create", spec=actor(1, max_restarts=1, strategy=pinned))
    world.call(0, "actor_create", spec=actor(2, strategy=pinned))
    world.say(0, SubscribeKey(CHANNEL_ACTOR, node_id(101)))
    begins(world, 2, 1)
    begins(world, 2, 2)
    world.lose(2, "killed")
    world.sleep(NODE_AWAY_S)
    assert (1, 2) in starts(world)[0] + starts(world)[1]
    states = [each.state for each in world.told[0] if type(each) is ActorChanged]
    assert [state.state for state in states][-1] == "restarting" and states[-1].node_id != node_id(2)
    assert [row["state"] for row in world.call(0, "actors_list")["actors"]] == ["restarting", "dead"]


def test_an_actor_that_no_node_can_take_is_refused_but_a_restart_waits(world: World) -> None:
    world.call(0, "actor_create", spec=actor(1, 9))
    assert "asks for 9 CPU" in world.call(0, "actors_list")["actors"][0]["cause"]
    world.join(5, name="big")
    world.say(5, NodeLoad(1, {"CPU": 9 * CPU}, {"CPU": 9 * CPU}))
    world.call(0, "actor_create", spec=actor(2, 9, max_restarts=-1))
    begins(world, 5, 2)
    world.lose(5)
    world.sleep(NODE_AWAY_S)
    world.call(0, "actor_create", spec=actor(3, 9))
    assert world.call(0, "actors_list")["actors"][2]["state"] == "pending"
    for number in (2, 3):
        why = world.call(0, "explain", actor_id=node_id(100 + number))["why"]
        assert why == "it asks for 9 CPU; no node that is there now can give that"
    assert world.call(0, "explain", actor_id=node_id(199))["why"] == ""
    world.sleep(REPLACED_WITHIN_S)
    assert world.call(0, "actors_list")["actors"][2]["death"] == "unschedulable"
    row = world.call(0, "actors_list")["actors"][1]
    assert row["state"] == "restarting" and "asks for 9 CPU" in row["waits"]
    world.connection += 1
    world.connections[6] = world.connection
    world.say(6, Hello(PROTOCOL_VERSION, node_id(6), b"", 1))
    world.say(6, RegisterNode(node_id(6), 1, "host", "tcp:h:6", {"CPU": 9 * CPU}))
    assert starts(world)[6] == [(2, 2)]


def test_an_actor_waits_for_a_node_that_is_away(world: World) -> None:
    pinned = strategies.node_affinity(node_id(2), False)
    world.lose(2)
    world.call(0, "actor_create", spec=actor(1, strategy=pinned))
    world.call(0, "actor_create", spec=actor(2, strategy=pinned))
    world.join(2)
    assert starts(world)[2] == [(1, 1), (2, 1)]
    world.restart()
    world.join(0)
    world.lose(0)
    world.sleep(NODE_AWAY_S)
    assert [record.state for record in world.shard.actors.records()] == ["dead", "dead"]


def test_jobs_end_with_the_node_of_their_driver(world: World) -> None:
    job_id = world.call(1, "register_job", namespace="s", pid=7)["job_id"]
    spec = actor(1, strategy=strategies.node_affinity(node_id(2), False))
    spec.job_id = job_id
    world.call(1, "actor_create", spec=spec)
    begins(world, 2, 1)
    world.lose(1)
    world.sleep(NODE_AWAY_S)
    [job] = world.call(0, "jobs")["jobs"]
    assert job["state"] == "ended" and "node of its driver died" in job["end_reason"]
    assert any(type(message) is StopActor for message in world.told[2])


def test_a_node_whose_process_is_gone_is_dead_at_once(world: World) -> None:
    connection = world.connections.pop(1)
    [probe] = [
        each
        for each in world.shard.handle(ConnectionLost(connection, "it was closed"), world.now)
        if type(each) is ProbeNode
    ]
    assert probe == ProbeNode(node_id(1), "tcp:h:1")
    world.perform(world.shard.handle(NodeRefuses(node_id(1)), world.now))
    assert "process is gone (it was closed)" in world.heard_of(0, 1)[-1].cause
    assert world.shard.handle(NodeRefuses(node_id(1)), world.now) == []
    assert world.shard.handle(NodeRefuses(node_id(2)), world.now) == []  # it has come back meanwhile


# ---------------------------------------------------------------- a replica of the global scheduler


def test_a_replica_places_and_acknowledges_no_heartbeats(world: World) -> None:
    replica = World()
    replica.shard = GcsShard(42, lambda below: 0, shard=1, shards=2)
    for number in range(3):
        assert not replica.join(number, node_no=number).refused
    assert replica.beat(0, 0) == [] and replica.beat(1) == []
    ask = PlaceLeases(b"p", 3, b"job1", {"CPU": CPU}, 6, name="f")
    assert replica.say(0, ask) == [LeasesPlaced(b"p", 3, [(node_id(1), 4)])]
    replica.lose(1)
    replica.told[0].clear()
    replica.beat(2)
    assert replica.told[0] == [LeasesPlaced(b"p", 3, [(node_id(2), 2)])]
    assert replica.disk == {} and replica.shard.nodes.records() == []
    replica.sleep(1000)
    assert not replica.closed


def test_a_replica_that_is_told_of_a_death_names_that_node_no_more(world: World) -> None:
    """A node that is cut off keeps its connection for minutes, and shard 0 does not speak with the others."""
    replica = World()
    replica.shard = GcsShard(42, lambda below: 0, shard=1, shards=2)
    for number in range(3):
        replica.join(number, node_no=number)
    replica.beat(0, 0)
    replica.beat(1)
    ask = PlaceLeases(b"p", 3, b"job1", {"CPU": CPU}, 4)
    assert replica.say(0, ask) == [LeasesPlaced(b"p", 3, [(node_id(1), 4)])]
    assert replica.say(0, msgspec.structs.replace(ask, dead=[node_id(1)])) == []
    replica.beat(1)  # sent before it died
    replica.told[0].clear()
    replica.beat(2)
    assert replica.told[0] == [LeasesPlaced(b"p", 3, [(node_id(2), 4)])]


def test_keys_of_heirs_go_with_them(world: World) -> None:
    for heir in (1, 2):
        key = b"object%d" % heir
        assert world.call(heir, "kv_put", namespace=HEIRS, key=key, value=node_id(heir), overwrite=False)["added"]
    world.lose(2)
    world.sleep(NODE_AWAY_S + 1)
    assert world.call(1, "kv_list", namespace=HEIRS, prefix=b"")["keys"] == [b"object1"]
    assert world.call(1, "kv_put", namespace=HEIRS, key=b"object2", value=node_id(1), overwrite=False)["added"]
    assert shards_of_call("gcs.kv_put", {"namespace": HEIRS, "key": b"any"}, 8) == (0,), "who knows of deaths has them"
