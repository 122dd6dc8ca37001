"""Placement groups: one rule at a time, and a world of played nodes in which messages are slow, nodes and the server die, and nothing may leak."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from shoal.gcs import placement_groups as pg
from shoal.gcs.placement_groups import GroupRecord, PlacementGroups
from shoal.protocol.gcs_messages import (
    BundleLife,
    BundleReserved,
    CommitBundle,
    GroupSpec,
    NodeLoad,
    ReserveBundle,
    ReturnBundle,
)
from shoal.protocol.limits import GROUPS_REMOVED_MAX, RESERVE_PAUSE_S
from shoal.protocol.messages import ActorSpec
from shoal.protocol.resources import Resources, add, fits, subtract, to_units
from shoal.protocol.strategies import placement_group
from shoal.scheduling.bundle_policy import STRATEGIES, place_bundles
from shoal.scheduling.node_policy import NodeView

JOB = b"job1"


def spec_of(group_id: bytes, *bundles: dict[str, float], strategy: str = "PACK", **more: Any) -> GroupSpec:
    spec = GroupSpec(group_id, JOB, "", "ns", strategy, [to_units(bundle) for bundle in bundles])
    return msgspec.structs.replace(spec, **more)


# ---------------------------------------------------------------- one rule at a time


class Bench:
    """A manager, what it stored, and what it said."""

    def __init__(self, **nodes: float) -> None:
        self.manager = PlacementGroups()
        self.stored: dict[bytes, bytes] = {}
        self.said: list[tuple[bytes, Any]] = []
        self.states: list[tuple[bytes, str]] = []
        self.now = 100.0
        for name, cpus in nodes.items():
            self.join(name.encode(), cpus)

    def tell(self, event: Any, after_s: float = 0.0) -> list[Any]:
        self.now += after_s
        effects = self.manager.handle(event, self.now)
        for effect in effects:
            if isinstance(effect, pg.StoreGroup):
                if effect.record is None:
                    self.stored.pop(effect.group_id, None)
                else:
                    self.stored[effect.group_id] = msgspec.msgpack.encode(effect.record)
            elif isinstance(effect, pg.SendToNode):
                self.said.append((effect.node_id, effect.message))
            else:
                self.states.append((effect.state.group_id, effect.state.state))
        return effects

    def join(self, node_id: bytes, cpus: float, lives: list[BundleLife] | None = None) -> None:
        self.tell(pg.NodeJoined(node_id, node_id.decode(), to_units({"CPU": cpus}), {}))
        self.tell(pg.NodeReported(node_id, lives or []))

    def create(self, group_id: bytes, *bundles: dict[str, float], **more: Any) -> None:
        self.tell(pg.GroupRequested(spec_of(group_id, *bundles, **more)))

    def take(self, kind: type) -> list[tuple[bytes, Any]]:
        """What was said of a kind since the last look at it."""
        found = [each for each in self.said if type(each[1]) is kind]
        self.said = [each for each in self.said if type(each[1]) is not kind]
        return found

    def answer(self, done: bool = True, *, but: tuple[int, ...] = ()) -> None:
        """The nodes answer what they were asked for."""
        for node_id, message in self.take(ReserveBundle):
            if message.index not in but:
                answer = BundleReserved(message.group_id, message.index, message.attempt, done, "" if done else "full")
                self.tell(pg.BundleAnswered(node_id, answer))

    def state(self, group_id: bytes) -> str:
        record = self.manager.get(group_id)
        assert record is not None
        return record.state

    def restart(self) -> None:
        """Another server with the same storage."""
        self.manager = PlacementGroups()
        for row in self.stored.values():
            self.manager.restore(msgspec.msgpack.decode(row, type=GroupRecord))


def test_two_phases() -> None:
    bench = Bench(a=2, b=2)
    bench.create(b"g", {"CPU": 1}, {"CPU": 1}, strategy="STRICT_SPREAD")
    stored = msgspec.msgpack.decode(bench.stored[b"g"], type=GroupRecord)
    assert stored.attempt == 1 and stored.state == pg.PENDING, "the attempt is stored before anybody is told"
    asked = bench.take(ReserveBundle)
    assert [node_id for node_id, _ in asked] == [b"a", b"b"]
    bench.said = list(asked)
    bench.answer(but=(1,))
    assert not bench.take(CommitBundle) and bench.state(b"g") == pg.PENDING
    effects = bench.tell(pg.BundleAnswered(b"b", BundleReserved(b"g", 1, 1, True)))
    kinds = [type(each) for each in effects]
    assert kinds == [pg.StoreGroup, pg.SendToNode, pg.SendToNode, pg.AnnounceGroup]
    assert [node_id for node_id, _ in bench.take(CommitBundle)] == [b"a", b"b"]
    assert bench.states == [(b"g", pg.PLACED)]


def test_a_refusal_returns_all_and_is_tried_again_later() -> None:
    bench = Bench(a=1, b=1)
    bench.create(b"g", {"CPU": 1}, {"CPU": 1})
    bench.said = [each for each in bench.said if each[1].index == 1] + [
        each for each in bench.said if each[1].index != 1
    ]
    first = bench.said[0]
    bench.said = []
    bench.tell(pg.BundleAnswered(first[0], BundleReserved(b"g", 1, 1, False, "its tasks hold it")))
    assert [message.index for _, message in bench.take(ReturnBundle)] == [0], "the one that refused has nothing"
    assert bench.states == [(b"g", pg.PENDING)]
    record = bench.manager.get(b"g")
    assert record is not None and record.reason == "its tasks hold it"
    deadline = bench.manager.next_deadline()
    assert deadline == pytest.approx(bench.now + RESERVE_PAUSE_S)
    bench.tell(pg.TimePassed(), RESERVE_PAUSE_S)
    assert [message.attempt for _, message in bench.take(ReserveBundle)] == [2, 2]
    bench.tell(pg.BundleAnswered(b"a", BundleReserved(b"g", 0, 1, True)))
    assert bench.state(b"g") == pg.PENDING, "an answer to the attempt before says nothing"


def test_infeasible_groups_wait_for_nodes_with_the_reason() -> None:
    bench = Bench(a=1)
    bench.create(b"g", {"CPU": 4})
    record = bench.manager.get(b"g")
    assert record is not None and "no node has that: a has 1 CPU" in record.reason
    assert not bench.said and bench.manager.next_deadline() is None
    bench.create(b"h", {"CPU": 1})
    bench.answer()
    assert bench.state(b"h") == pg.PLACED, "others pass by"
    bench.join(b"b", 4)
    bench.answer()
    assert bench.state(b"g") == pg.PLACED


def test_removal_makes_room_for_who_waits() -> None:
    bench = Bench(a=1)
    bench.create(b"g", {"CPU": 1})
    bench.answer()
    bench.create(b"h", {"CPU": 1})
    assert not bench.take(ReserveBundle)
    bench.tell(pg.GroupRemoveAsked(b"g"))
    returned = bench.take(ReturnBundle)
    assert returned[0][1].removed
    assert b"g" not in bench.stored
    bench.answer()
    assert bench.state(b"h") == pg.PLACED
    assert bench.manager.state_of(b"g")[1].state == pg.REMOVED
    assert bench.manager.state_of(b"never")[1].state == pg.REMOVED


def test_jobs_take_their_groups_along_but_for_detached_ones() -> None:
    bench = Bench(a=4)
    bench.create(b"g", {"CPU": 1})
    bench.create(b"h", {"CPU": 1}, detached=True, name="mine")
    bench.answer()
    bench.create(b"i", {"CPU": 1})
    bench.tell(pg.JobEnded(JOB, "it left"))
    assert (bench.state(b"g"), bench.state(b"h"), bench.state(b"i")) == (pg.REMOVED, pg.PLACED, pg.REMOVED)
    assert {message.group_id for _, message in bench.take(ReturnBundle)} == {b"g", b"i"}
    found = bench.manager.find("ns", "mine")
    assert found is not None and found.spec.group_id == b"h"


def test_a_dead_node_costs_only_its_bundles() -> None:
    bench = Bench(a=1, b=1, c=1)
    bench.create(b"g", {"CPU": 1}, {"CPU": 1}, strategy="STRICT_SPREAD")
    bench.answer()
    bench.take(CommitBundle)
    bench.tell(pg.NodeLost(b"b", "it was killed"))
    assert bench.states[-1] == (b"g", pg.RESCHEDULING)
    assert [(node, each.index, each.attempt) for node, each in bench.take(ReserveBundle)] == [(b"c", 1, 2)]
    bench.tell(pg.BundleAnswered(b"c", BundleReserved(b"g", 1, 2, True)))
    assert [(node, each.index, each.attempt) for node, each in bench.take(CommitBundle)] == [(b"c", 1, 2)]
    assert bench.manager.state_of(b"g")[1].nodes == [b"a", b"c"]
    bench.tell(pg.NodeLost(b"c", "it was killed"))
    record = bench.manager.get(b"g")
    assert record is not None and "beside those of the others" in record.reason


def test_what_is_reserved_after_its_attempt_was_over_is_returned() -> None:
    bench = Bench(a=1, b=1)
    bench.create(b"g", {"CPU": 1}, {"CPU": 1}, strategy="STRICT_SPREAD")
    bench.take(ReserveBundle)
    bench.restart()
    for name in (b"a", b"b"):
        bench.join(name, 1)  # what waits on them for room is no bundle yet: they report none
    bench.answer()
    bench.take(CommitBundle)
    assert bench.state(b"g") == pg.PLACED
    bench.tell(pg.BundleAnswered(b"a", BundleReserved(b"g", 1, 1, True)))
    assert [(node, each.index, each.attempt) for node, each in bench.take(ReturnBundle)] == [(b"a", 1, 1)]
    bench.tell(pg.BundleAnswered(b"b", BundleReserved(b"g", 1, 2, True)))  # said twice
    assert not bench.take(ReturnBundle)
    bench.tell(pg.GroupRemoveAsked(b"g"))
    bench.take(ReturnBundle)
    bench.tell(pg.BundleAnswered(b"a", BundleReserved(b"g", 0, 1, True)))
    assert [each.removed for _, each in bench.take(ReturnBundle)] == [True]


def test_a_node_that_goes_away_ends_the_attempts_with_it() -> None:
    bench = Bench(a=1, b=1, c=1)
    bench.create(b"g", {"CPU": 1}, {"CPU": 1}, strategy="STRICT_SPREAD")
    bench.take(ReserveBundle)
    bench.tell(pg.NodeAway(b"b"))
    assert [node for node, _ in bench.take(ReturnBundle)] == [b"a"]
    bench.tell(pg.TimePassed(), RESERVE_PAUSE_S)
    bench.answer()
    assert bench.manager.state_of(b"g")[1].nodes == [b"a", b"c"]
    bench.join(b"b", 1, [BundleLife(b"g", 1, 1, False)])
    assert [(node, each.attempt) for node, each in bench.take(ReturnBundle)] == [(b"b", 1)]


def test_bundles_leave_a_node_that_drains_and_what_runs_there_ends_there() -> None:
    bench = Bench(a=2, b=2)
    bench.create(b"g", {"CPU": 1}, {"CPU": 1}, strategy="STRICT_PACK")
    bench.answer()
    assert bench.manager.state_of(b"g")[1].nodes == [b"a", b"a"]
    bench.take(CommitBundle)
    bench.tell(pg.NodeDrains(b"a"))
    assert bench.states[-1] == (b"g", pg.RESCHEDULING)
    assert not bench.take(ReturnBundle), "nothing is killed"
    bench.answer()
    assert bench.manager.state_of(b"g")[1].nodes == [b"b", b"b"] and bench.state(b"g") == pg.PLACED
    bench.take(CommitBundle)
    bench.join(b"a", 2, [BundleLife(b"g", 0, 1, True), BundleLife(b"g", 1, 1, True)])
    bench.tell(pg.GroupRemoveAsked(b"g"))
    assert {node for node, _ in bench.take(ReturnBundle)} == {b"a", b"b"}, "now it is"


def test_what_drains_and_finds_no_room_waits_as_after_a_death() -> None:
    bench = Bench(a=2)
    bench.create(b"g", {"CPU": 2})
    bench.answer()
    load = NodeLoad(1, {}, to_units({"CPU": 2}), draining=True)
    bench.tell(pg.NodeSpoke(b"a", load))
    bench.tell(pg.NodeSpoke(b"a", NodeLoad(2, {}, to_units({"CPU": 2}))))  # was on its way
    record = bench.manager.get(b"g")
    assert record is not None and record.state == pg.RESCHEDULING and record.nodes == [b""]
    assert record.reason.startswith(
        "bundle 0 leaves node a, which drains. bundle 0 asks for 2 CPU, and no node has that"
    )
    bench.create(b"h", {"CPU": 0.5})
    assert not bench.take(ReserveBundle), "it gets no new ones"
    bench.join(b"b", 2)
    bench.answer()
    assert bench.manager.state_of(b"g")[1].nodes == [b"b"]


def test_an_attempt_with_a_node_that_drains_is_over() -> None:
    bench = Bench(a=1, b=1, c=1)
    bench.create(b"g", {"CPU": 1}, {"CPU": 1}, strategy="STRICT_SPREAD")
    bench.take(ReserveBundle)
    bench.tell(pg.BundleAnswered(b"a", BundleReserved(b"g", 0, 1, True)))
    bench.tell(pg.NodeDrains(b"a"))
    assert [node for node, _ in bench.take(ReturnBundle)] == [b"a", b"b"]
    bench.answer()
    assert set(bench.manager.state_of(b"g")[1].nodes) == {b"b", b"c"}


def test_a_new_server_finds_out_what_nodes_have() -> None:
    bench = Bench(a=1, b=1)
    bench.create(b"g", {"CPU": 1}, {"CPU": 1}, strategy="STRICT_SPREAD")
    bench.answer()
    bench.create(b"h", {"CPU": 0.5})  # no room
    bench.restart()
    bench.said = []
    # a heard of the commit, b did not; both have something of a group that is unknown
    bench.join(b"a", 1, [BundleLife(b"g", 0, 1, True), BundleLife(b"x", 0, 3, True)])
    bench.join(b"b", 1, [BundleLife(b"g", 1, 1, False)])
    assert [node for node, _ in bench.take(CommitBundle)] == [b"b"]
    assert [(node, each.group_id, each.removed) for node, each in bench.take(ReturnBundle)] == [(b"a", b"x", True)]
    assert bench.state(b"g") == pg.PLACED
    bench.tell(pg.GroupRemoveAsked(b"g"))
    bench.answer()
    assert bench.state(b"h") == pg.PLACED


def test_what_a_node_has_not_kept_is_placed_anew() -> None:
    bench = Bench(a=1)
    bench.create(b"g", {"CPU": 1})
    bench.answer()
    bench.restart()
    bench.said = []
    bench.join(b"a", 1, [])
    assert bench.states[-1][1] == pg.RESCHEDULING
    bench.answer()
    assert bench.state(b"g") == pg.PLACED


def test_what_nodes_say_is_free_is_preferred() -> None:
    bench = Bench(a=2, b=2)
    bench.tell(pg.NodeSpoke(b"a", NodeLoad(1, to_units({"CPU": 0.5}), to_units({"CPU": 2}))))
    bench.create(b"g", {"CPU": 1})
    assert [node for node, _ in bench.take(ReserveBundle)] == [b"b"]
    bench.tell(pg.NodeSpoke(b"b", NodeLoad(1, {}, to_units({"CPU": 2}))))
    bench.create(b"h", {"CPU": 1})
    assert [node for node, _ in bench.take(ReserveBundle)] == [b"b"], "a node may make room: leases can end"


def test_removed_groups_are_remembered_in_bounds() -> None:
    bench = Bench(a=1)
    for number in range(GROUPS_REMOVED_MAX + 5):
        group_id = b"g%d" % number
        bench.create(group_id, {"CPU": 1})
        bench.answer()
        bench.tell(pg.GroupRemoveAsked(group_id))
        bench.said.clear()
    assert len(bench.manager.records()) == GROUPS_REMOVED_MAX
    assert not bench.stored


def actor(actor_id: bytes, group_id: bytes, bundle: int, cpus: float) -> ActorSpec:
    demand = to_units({"CPU": cpus})
    strategy = placement_group(group_id, bundle, False)
    return ActorSpec(actor_id, b"c", "A", JOB, "", "", demand, demand, b"", None, strategy=strategy)


def test_actors_go_where_their_bundle_is() -> None:
    bench = Bench(a=2, b=2)
    bench.create(b"g", {"CPU": 2}, {"CPU": 2}, strategy="STRICT_SPREAD")
    manager = bench.manager
    assert manager.place_actor(actor(b"1", b"g", 1, 1)) == (b"", "")
    bench.answer()
    assert manager.place_actor(actor(b"1", b"g", 1, 1)) == (b"b", "")
    assert [manager.place_actor(actor(b"%d" % each, b"g", -1, 1))[0] for each in (2, 3, 4)] == [b"a", b"a", b"b"]
    manager.leaves(b"3")
    assert manager.place_actor(actor(b"5", b"g", -1, 1)) == (b"a", "")
    assert "bundle 0 has 2 CPU" in manager.place_actor(actor(b"6", b"g", 0, 3))[1]
    bench.tell(pg.GroupRemoveAsked(b"g"))
    assert "is removed" in manager.place_actor(actor(b"7", b"g", -1, 1))[1]


# ---------------------------------------------------------------- a world in which everything goes wrong


@dataclass
class PlayedNode:
    node_id: bytes
    total: Resources
    free: Resources
    bundles: dict[tuple[bytes, int], tuple[int, Resources, bool]] = field(default_factory=dict)
    connected: bool = False
    draining: bool = False
    inbox: deque[Any] = field(default_factory=deque)
    outbox: deque[Any] = field(default_factory=deque)

    def handle(self, message: Any) -> None:
        if message == "drain":
            self.draining = True
            self.outbox.append("beat")
            return
        key = (message.group_id, message.index)
        known = self.bundles.get(key)
        if type(message) is ReserveBundle:
            if known is not None and known[0] > message.attempt:
                return
            if known is not None and known[0] < message.attempt:
                self.drop(key)
                known = None
            done = known is not None or (fits(message.resources, self.free) and not self.draining)
            if done and known is None:
                subtract(self.free, message.resources)
                self.bundles[key] = (message.attempt, message.resources, False)
            self.outbox.append(BundleReserved(*key, message.attempt, done, "" if done else "full"))
        elif type(message) is CommitBundle:
            assert known is not None and known[0] == message.attempt, "only what is reserved is committed"
            self.bundles[key] = (known[0], known[1], True)
        elif known is not None and message.attempt >= known[0]:
            self.drop(key)

    def drop(self, key: tuple[bytes, int]) -> None:
        add(self.free, self.bundles.pop(key)[1])


class World:
    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.bench = Bench()
        self.nodes: dict[bytes, PlayedNode] = {}
        self.names = 0
        self.draining: set[bytes] = set()  #: nodes of which the server has stored that they drain
        self.groups: dict[bytes, GroupSpec] = {}
        for _ in range(self.dice.randint(1, 4)):
            self.new_node()

    def tell(self, event: Any) -> None:
        self.bench.tell(event)
        for node_id, message in self.bench.said:
            node = self.nodes.get(node_id)
            if node is not None and node.connected:
                node.inbox.append(message)
        self.bench.said.clear()

    def new_node(self) -> None:
        self.names += 1
        total = to_units({"CPU": self.dice.randint(1, 4), "GPU": self.dice.choice([0, 0, 1])})
        node = PlayedNode(b"n%d" % self.names, total, dict(total))
        self.nodes[node.node_id] = node
        self.connect(node)

    def connect(self, node: PlayedNode) -> None:
        node.connected = True
        self.tell(pg.NodeJoined(node.node_id, node.node_id.decode(), node.total, {}))
        if node.node_id in self.draining:
            self.tell(pg.NodeDrains(node.node_id))
            node.inbox.append("drain")
        node.outbox.extend(["report", "beat"])

    def disconnect(self, node: PlayedNode) -> None:
        node.connected = False
        node.inbox.clear()
        node.outbox.clear()

    def step(self) -> None:
        dice = self.dice
        what = dice.random()
        node = dice.choice(list(self.nodes.values())) if self.nodes else None
        if what < 0.12:
            self.names += 1
            bundles = [
                dice.choice([{"CPU": 1}, {"CPU": 2}, {"CPU": 0.5, "GPU": 0.5}]) for _ in range(dice.randint(1, 3))
            ]
            spec = spec_of(b"g%d" % self.names, *bundles, strategy=dice.choice(STRATEGIES))
            self.groups[spec.group_id] = spec
            self.tell(pg.GroupRequested(spec))
        elif what < 0.2 and self.groups:
            group_id = dice.choice(list(self.groups))
            del self.groups[group_id]
            self.tell(pg.GroupRemoveAsked(group_id))
        elif what < 0.22:
            self.new_node()
        elif what < 0.24 and node is not None:
            self.disconnect(node)
            del self.nodes[node.node_id]
            self.tell(pg.NodeLost(node.node_id, "it was killed"))
        elif what < 0.28 and node is not None and node.connected:
            self.disconnect(node)
            if dice.random() < 0.7:  # else the server sees the new connection before the end of the old one
                self.tell(pg.NodeAway(node.node_id))
        elif what < 0.34 and node is not None and not node.connected:
            self.connect(node)
        elif what < 0.36:
            self.restart()
        elif what < 0.375 and node is not None and node.connected:
            if dice.random() < 0.5:  # the server was asked, or the node decides by itself
                self.draining.add(node.node_id)
                self.tell(pg.NodeDrains(node.node_id))
                node.inbox.append("drain")
            else:
                node.handle("drain")
        elif what < 0.42:
            self.bench.now += dice.choice([0.05, 0.5, 5.0])
            self.tell(pg.TimePassed())
        elif node is not None:
            self.deliver(node, dice.random() < 0.5)
        self.check()

    def restart(self) -> None:
        """The server dies with all that was on its way, and another one begins."""
        for node in self.nodes.values():
            self.disconnect(node)
        self.bench.restart()
        for node in self.nodes.values():
            if self.dice.random() < 0.7:
                self.connect(node)

    def deliver(self, node: PlayedNode, to_node: bool) -> None:
        if to_node and node.inbox:
            node.handle(node.inbox.popleft())
        elif not to_node and node.outbox:
            message = node.outbox.popleft()
            if message == "report":
                lives = [BundleLife(*key, each[0], each[2]) for key, each in node.bundles.items()]
                self.tell(pg.NodeReported(node.node_id, lives))
            elif message == "beat":
                if node.draining:
                    self.draining.add(node.node_id)
                self.tell(pg.NodeSpoke(node.node_id, NodeLoad(1, node.free, node.total, draining=node.draining)))
            else:
                self.tell(pg.BundleAnswered(node.node_id, message))

    def check(self) -> None:
        """Nobody gives more than it has; what is committed was placed there."""
        for node in self.nodes.values():
            assert all(units >= 0 for units in node.free.values())
            for (group_id, index), (attempt, _, committed) in node.bundles.items():
                record = self.bench.manager.get(group_id)
                if committed and record is not None and record.state == pg.PLACED:
                    assert record.attempts[index] >= attempt

    def settle(self) -> None:
        """Nothing goes wrong any more: what must come true does."""
        for node in self.nodes.values():
            if not node.connected:
                self.connect(node)
        for _ in range(200):
            for node in self.nodes.values():
                while node.inbox or node.outbox:
                    self.deliver(node, bool(node.inbox))
            deadline = self.bench.manager.next_deadline()
            if deadline is not None:
                self.bench.now = max(self.bench.now, deadline)
                self.tell(pg.TimePassed())
            elif not any(node.inbox or node.outbox for node in self.nodes.values()):
                return
        raise AssertionError("it does not come to rest")

    def check_settled(self) -> None:
        manager = self.bench.manager
        placed: dict[bytes, dict[tuple[bytes, int], int]] = {node_id: {} for node_id in self.nodes}
        for group_id, spec in self.groups.items():
            record = manager.get(group_id)
            assert record is not None
            for index, node_id in enumerate(record.nodes):
                if node_id:
                    placed[node_id][group_id, index] = record.attempts[index]
            if record.state == pg.PLACED:
                assert all(record.nodes)
                if spec.strategy == "STRICT_PACK":
                    assert len(set(record.nodes)) == 1
                if spec.strategy == "STRICT_SPREAD":
                    assert len(set(record.nodes)) == len(record.nodes)
            else:
                assert record.reason
                views = [
                    NodeView(each.node_id, "", each.total, each.free, draining=each.draining)
                    for each in self.nodes.values()
                ]
                lacking = [bundle for bundle, node_id in zip(spec.bundles, record.nodes, strict=True) if not node_id]
                kept = [node_id for node_id in record.nodes if node_id]
                assert place_bundles(lacking, spec.strategy, views, (), kept) is None, "it waits in vain"
        there = {
            node.node_id: {key: attempt for key, (attempt, _, committed) in node.bundles.items() if committed}
            for node in self.nodes.values()
        }
        for node in self.nodes.values():
            if node.draining:  # what is there ends there
                assert not placed[node.node_id] and all(key[0] in self.groups for key in there[node.node_id])
                placed[node.node_id] = there[node.node_id]
        assert there == placed
        assert all(len(node.bundles) == len(there[node.node_id]) for node in self.nodes.values()), "nothing leaks"
        assert set(self.bench.stored) == set(self.groups)
        assert not manager._attempts


@pytest.mark.parametrize("seed", range(60))
def test_nothing_leaks_and_nobody_waits_in_vain(seed: int) -> None:
    world = World(seed)
    for _ in range(400):
        world.step()
    world.settle()
    world.check_settled()
    for group_id in list(world.groups):
        del world.groups[group_id]
        world.tell(pg.GroupRemoveAsked(group_id))
    world.settle()
    world.check_settled()
    assert all(node.free == node.total for node in world.nodes.values())
    assert all(not node.taken and not node.left for node in world.bench.manager._nodes.values())
