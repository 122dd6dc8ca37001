"""The lives of placement groups: pending, placed, rescheduling, removed.

Purpose: reserve the bundles of every group on nodes, all or none, keep them while nodes and servers die, and give them back.

Design: one pure machine, one door: `handle(event, now) -> list[Effect]`.

    GroupRequested -> PENDING --all reserved--> PLACED --node lost--> RESCHEDULING --all lost ones reserved--> PLACED
                         |                         |                       |
                         +-------------------------+-----------------------+--- removed, job ended --> REMOVED

*Two phases.* An attempt names a node for each bundle that has none (`scheduling.bundle_policy`), stores its number, and says ReserveBundle to all of
them. When all have answered that it is done, the places are stored and CommitBundle is said; before that nobody can use anything of it. When one
refuses, is lost, or is away, the attempt is over: ReturnBundle to all, and another one after a pause that grows.

*What can be lost on the way.* Numbers of attempts are never used again, as they are stored before they are told; so (group, bundle, attempt) names
one reservation for ever. A node that connects reports its bundles: one that is in its place is committed (again), any other one is returned; one
that should be there and is not is lost. Attempts with a node end when its connection does, and nothing is said to it between its next connection and
its report. A new server knows nothing of attempts, and begins new ones with higher numbers: nodes end lower ones of a bundle by themselves,
and report the others.

*A node that drains* takes no new work, in a bundle neither, so its bundles get other places at once, as after a death. But it is not told to return
what it has: what runs there ends there (or goes with the node). Only when the group is removed that is ended, too (`Node.left`).

*Where.* What is free of a node is its total less all bundles that are there or on their way, which is known exactly, and not more than what it said
last, as far as it has. If the group fits into that it goes there; else into what would be free without other work: the nodes make room for
it within RESERVE_WAIT_S, if leases can end. Groups are tried in the order of asking, one attempt each at a time. A group that could not be
placed even if nothing else ran waits for nodes, with the reason in its state.

How to extend: an event gets a row in `_HANDLERS`; a strategy belongs into `scheduling.bundle_policy`.

What it does not do: send (the shard does), route tasks (nodes follow their groups), restart actors (`actor_manager`, told by `AnnounceGroup`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from shoal.protocol.gcs_messages import (
    BundleLife,
    BundleReserved,
    CommitBundle,
    GroupSpec,
    NodeLoad,
    ReserveBundle,
    ReturnBundle,
)
from shoal.protocol.group_messages import GroupState
from shoal.protocol.limits import GROUPS_REMOVED_MAX, RESERVE_PAUSE_MAX_S, RESERVE_PAUSE_S
from shoal.protocol.messages import ActorSpec
from shoal.protocol.resources import Resources, add, fits, format_resources, subtract
from shoal.scheduling.bundle_policy import place_bundles, why_never, why_not_now
from shoal.scheduling.node_policy import NodeView

PENDING = "pending"
PLACED = "placed"
RESCHEDULING = "rescheduling"
REMOVED = "removed"


# ---------------------------------------------------------------- events


@dataclass(slots=True)
class GroupRequested:
    """A new group; its name was free (`find`) and its id unknown."""

    spec: GroupSpec


@dataclass(slots=True)
class GroupRemoveAsked:
    """remove_placement_group."""

    group_id: bytes


@dataclass(slots=True)
class JobEnded:
    """A job is over: its groups are removed, detached ones stay."""

    job_id: bytes
    reason: str


@dataclass(slots=True)
class NodeJoined:
    """A node has connected (again); it will report."""

    node_id: bytes
    name: str
    total: Resources
    labels: dict[str, str]


@dataclass(slots=True)
class NodeReported:
    """The bundles on a node that joined."""

    node_id: bytes
    bundles: list[BundleLife]


@dataclass(slots=True)
class NodeSpoke:
    """A heartbeat."""

    node_id: bytes
    load: NodeLoad


@dataclass(slots=True)
class NodeDrains:
    """A node takes no new work."""

    node_id: bytes


@dataclass(slots=True)
class NodeAway:
    """A node's connection ended; it may come back."""

    node_id: bytes


@dataclass(slots=True)
class NodeLost:
    """A node is dead, with its bundles."""

    node_id: bytes
    cause: str


@dataclass(slots=True)
class BundleAnswered:
    """A node's BundleReserved."""

    node_id: bytes
    message: BundleReserved


@dataclass(slots=True)
class TimePassed:
    """It may be time for another attempt: said when `next_deadline` has come."""


Event = (
    GroupRequested
    | GroupRemoveAsked
    | JobEnded
    | NodeJoined
    | NodeReported
    | NodeSpoke
    | NodeDrains
    | NodeAway
    | NodeLost
    | BundleAnswered
    | TimePassed
)


# ---------------------------------------------------------------- effects


@dataclass(slots=True)
class SendToNode:
    """Tell a node."""

    node_id: bytes
    message: ReserveBundle | CommitBundle | ReturnBundle


@dataclass(slots=True)
class AnnounceGroup:
    """Tell the group's subscribers, and whoever places its actors; after a `final` announcement nothing more comes."""

    version: int
    state: GroupState
    final: bool


@dataclass(slots=True)
class StoreGroup:
    """Make the record durable before anything else of this batch is done; None deletes it."""

    group_id: bytes
    record: GroupRecord | None


Effect = SendToNode | AnnounceGroup | StoreGroup


# ---------------------------------------------------------------- records


class GroupRecord(msgspec.Struct):
    """One placement group, as the GCS knows it. Written by `PlacementGroups` alone."""

    spec: GroupSpec
    state: str
    nodes: list[bytes]  #: of each bundle that is placed; b"" for one that is not
    attempts: list[int]  #: under which each bundle was placed
    created_s: float
    changed_s: float
    attempt: int = 0  #: number of the last attempt
    version: int = 0  #: grows with every announcement
    reason: str = ""  #: why it waits, or is gone
    lost: str = ""  #: what it has lost since it was placed last

    def wire_state(self) -> GroupState:
        """What subscribers are told."""
        spec = self.spec
        return GroupState(
            spec.group_id, self.state, list(self.nodes), spec.bundles, self.reason, spec.job_id, spec.name
        )

    def row(self) -> dict[str, Any]:
        """What listings show."""
        spec = self.spec
        return {
            "group_id": spec.group_id,
            "name": spec.name,
            "namespace": spec.namespace,
            "job_id": spec.job_id,
            "strategy": spec.strategy,
            "bundles": spec.bundles,
            "nodes": self.nodes,
            "state": self.state,
            "detached": spec.detached,
            "reason": self.reason,
            "attempts": self.attempt,
            "created_s": self.created_s,
            "changed_s": self.changed_s,
        }


@dataclass(slots=True)
class Attempt:
    """The present attempt of a group. A new server has none."""

    number: int
    nodes: dict[int, bytes]  #: of each bundle that has no place
    reserved: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Node:
    """What is known of a node that is not dead."""

    view: NodeView  #: `alive` when it has connected and reported
    told: Resources | None = None  #: what it said last is free, less what was reserved there since
    bundles: dict[tuple[bytes, int], Resources] = field(default_factory=dict)  #: there, or on their way
    taken: Resources = field(default_factory=dict)  #: their sum
    #: of a node that drains: bundles that still are there, and have a place elsewhere or wait for one; with their attempts
    left: dict[tuple[bytes, int], int] = field(default_factory=dict)


@dataclass(slots=True)
class Waiting:
    """A group that has bundles without a place."""

    retry_at: float = 0.0  #: no attempt before this; infinity: not before something changes
    failures: int = 0
    infeasible: bool = False  #: not before the nodes change


class PlacementGroups:
    """All placement groups of the cluster. Queries are free; only `handle` changes anything."""

    __slots__ = ("_attempts", "_group_of", "_groups", "_names", "_nodes", "_removed", "_residents", "_waiting")

    def __init__(self) -> None:
        #: every group that is not removed, and the last GROUPS_REMOVED_MAX removed ones
        self._groups: dict[bytes, GroupRecord] = {}
        #: ids of removed groups, oldest first; each is a key of `_groups`
        self._removed: deque[bytes] = deque()
        #: (namespace, name) of each named group that is not removed
        self._names: dict[tuple[str, str], bytes] = {}
        #: groups with bundles that have no place, in the order of asking; those with an attempt are there too
        self._waiting: dict[bytes, Waiting] = {}
        self._attempts: dict[bytes, Attempt] = {}
        #: nodes that are not dead, in the order of joining
        self._nodes: dict[bytes, Node] = {}
        #: by group: its living actors, where they are and what they hold; never empty
        self._residents: dict[bytes, dict[bytes, tuple[bytes, Resources]]] = {}
        self._group_of: dict[bytes, bytes] = {}  #: of each of them

    # ------------------------------------------------------------ queries

    def get(self, group_id: bytes) -> GroupRecord | None:
        """The record of a group, None if unknown or forgotten."""
        return self._groups.get(group_id)

    def find(self, namespace: str, name: str) -> GroupRecord | None:
        """The group that holds a name."""
        group_id = self._names.get((namespace, name))
        return None if group_id is None else self._groups[group_id]

    def state_of(self, group_id: bytes) -> tuple[int, GroupState]:
        """Version and state for a new subscriber. An unknown group is removed."""
        record = self._groups.get(group_id)
        if record is not None:
            return record.version, record.wire_state()
        return 0, GroupState(group_id, REMOVED, [], [], "the GCS does not know it: it was removed, or never created")

    def records(self) -> list[GroupRecord]:
        """All groups, oldest first."""
        return list(self._groups.values())

    def nodes(self) -> list[bytes]:
        """The nodes that have bundles."""
        return [node for record in self._groups.values() if record.state != REMOVED for node in record.nodes if node]

    def next_deadline(self) -> float | None:
        """When TimePassed is due; None for never."""
        times = [each.retry_at for group_id, each in self._waiting.items() if group_id not in self._attempts]
        least = min(times, default=NEVER)
        return None if least == NEVER else least

    def statistics(self) -> dict[str, int]:
        """How many groups there are in each state."""
        counts = dict.fromkeys((PENDING, PLACED, RESCHEDULING, REMOVED), 0)
        for record in self._groups.values():
            counts[record.state] += 1
        return counts

    # ------------------------------------------------------------ actors in groups

    def place_actor(self, spec: ActorSpec) -> tuple[bytes, str]:
        """The node for an actor of a group: that of its bundle, or, where any will do, the one with the fewest of the group's actors where it has
        room. b"" while there is no place, and with a reason when there will never be one."""
        strategy = spec.strategy
        group_id, bundle = strategy["group_id"], strategy["bundle"]
        record = self._groups.get(group_id)
        name = spec.name or spec.class_name
        if record is None or record.state == REMOVED:
            return b"", f"{name} was to be in placement group {group_id.hex()}, which is removed"
        bundles = record.spec.bundles
        need = {each: max(units, spec.demand.get(each, 0)) for each, units in spec.placement.items()}
        need = {**spec.demand, **need}
        indices = [bundle] if bundle >= 0 else list(range(len(bundles)))
        able = [index for index in indices if index < len(bundles) and fits(need, bundles[index])]
        if not able:
            sizes = "; ".join(f"bundle {index} has {format_resources(bundles[index])}" for index in indices[:5])
            return b"", f"{name} asks for {format_resources(need)} in placement group {group_id.hex()}, but {sizes}"
        rooms: dict[bytes, Resources] = {}
        for index in able:
            place = self._nodes.get(record.nodes[index])
            if place is not None and not place.view.draining:
                add(rooms.setdefault(record.nodes[index], {}), bundles[index])
        if not rooms:
            return b"", ""
        counts = dict.fromkeys(rooms, 0)
        for actor_id, (node_id, demand) in self._residents.get(group_id, {}).items():
            if node_id in rooms and actor_id != spec.actor_id:
                counts[node_id] += 1
                subtract(rooms[node_id], demand)
        best = min(rooms, key=lambda node_id: (not fits(need, rooms[node_id]), counts[node_id]))
        self.resides(spec, best)
        return best, ""

    def resides(self, spec: ActorSpec, node_id: bytes) -> None:
        """An actor of a group is, or will be, on a node."""
        group_id = spec.strategy["group_id"]
        self._residents.setdefault(group_id, {})[spec.actor_id] = (node_id, spec.demand)
        self._group_of[spec.actor_id] = group_id

    def leaves(self, actor_id: bytes) -> None:
        """An actor is dead."""
        group_id = self._group_of.pop(actor_id, None)
        if group_id is not None:
            residents = self._residents[group_id]
            del residents[actor_id]
            if not residents:
                del self._residents[group_id]

    # ------------------------------------------------------------ the door

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in what happened at `now` (s since the epoch); what to do about it, in this order."""
        effects: list[Effect] = []
        _HANDLERS[type(event)](self, event, now, effects)
        return effects

    def restore(self, record: GroupRecord) -> None:
        """Put back a record read from storage; before the first event. Removed groups are not stored."""
        spec = record.spec
        self._groups[spec.group_id] = record
        if spec.name:
            self._names[spec.namespace, spec.name] = spec.group_id
        if record.state != PLACED:
            self._waiting[spec.group_id] = Waiting()

    # ------------------------------------------------------------ groups

    def _on_requested(self, event: GroupRequested, now: float, effects: list[Effect]) -> None:
        spec = event.spec
        assert spec.group_id not in self._groups, f"group {spec.group_id.hex()} was requested twice"
        count = len(spec.bundles)
        record = GroupRecord(spec, PENDING, [b""] * count, [0] * count, now, now)
        self._groups[spec.group_id] = record
        if spec.name:
            self._names[spec.namespace, spec.name] = spec.group_id
        self._waiting[spec.group_id] = Waiting()
        effects.append(StoreGroup(spec.group_id, record))
        self._try(record, now, effects)

    def _on_remove(self, event: GroupRemoveAsked, now: float, effects: list[Effect]) -> None:
        record = self._groups.get(event.group_id)
        if record is not None and record.state != REMOVED:
            self._remove(record, "remove_placement_group() was called", now, effects)
            self._try_all(now, effects)

    def _on_job_ended(self, event: JobEnded, now: float, effects: list[Effect]) -> None:
        mine = [record for record in self._groups.values() if record.spec.job_id == event.job_id]
        for record in mine:
            if not record.spec.detached and record.state != REMOVED:
                self._remove(record, f"its job ended: {event.reason}", now, effects)
        if mine:
            self._try_all(now, effects)

    def _remove(self, record: GroupRecord, reason: str, now: float, effects: list[Effect]) -> None:
        group_id = record.spec.group_id
        record.state, record.reason, record.changed_s = REMOVED, reason, now
        returns: list[Effect] = []
        self._end_attempt(record, reason, returns, removed=True)
        for index, node_id in enumerate(record.nodes):
            if node_id:
                self._say_return(record, index, node_id, record.attempts[index], reason, returns, removed=True)
        record.nodes = [b""] * len(record.nodes)
        self._return_left(record, reason, returns)
        self._waiting.pop(group_id, None)
        if record.spec.name:
            del self._names[record.spec.namespace, record.spec.name]
        record.version += 1
        # Actors of it are ended (AnnounceGroup) before their workers are (ReturnBundle): nobody restarts them.
        effects.append(StoreGroup(group_id, None))
        effects.append(AnnounceGroup(record.version, record.wire_state(), True))
        effects += returns
        self._removed.append(group_id)
        if len(self._removed) > GROUPS_REMOVED_MAX:
            del self._groups[self._removed.popleft()]

    def _return_left(self, record: GroupRecord, reason: str, effects: list[Effect]) -> None:
        """A group is removed: what of it runs on nodes that drain is to end, too."""
        group_id = record.spec.group_id
        for node_id, node in self._nodes.items():
            for key in [key for key in node.left if key[0] == group_id]:
                attempt = node.left.pop(key)
                if node.view.alive:  # else it hears of it when it has reported
                    effects.append(SendToNode(node_id, ReturnBundle(group_id, key[1], attempt, reason, True)))

    def _announce(self, record: GroupRecord, now: float, effects: list[Effect]) -> None:
        record.version += 1
        record.changed_s = now
        effects.append(StoreGroup(record.spec.group_id, record))
        effects.append(AnnounceGroup(record.version, record.wire_state(), False))

    # ------------------------------------------------------------ attempts

    def _try_all(self, now: float, effects: list[Effect], only_due: bool = False) -> None:
        """Something may be free now that was not: those who wait are tried, in the order of asking."""
        failed: dict[str, tuple[str, bool]] = {}  # what was tried in vain just now need not be tried for others
        for group_id, waiting in list(self._waiting.items()):
            if group_id in self._attempts or waiting.infeasible or (only_due and now < waiting.retry_at < NEVER):
                continue
            record = self._groups[group_id]
            spec = record.spec
            kind = f"{spec.strategy} {spec.bundles} {spec.rules} {record.nodes}"
            if kind in failed:
                self._cannot(record, *failed[kind], now, effects)
            elif (why := self._try(record, now, effects)) is not None:
                failed[kind] = why

    def _try(self, record: GroupRecord, now: float, effects: list[Effect]) -> tuple[str, bool] | None:
        """Begin an attempt, if there is a way; else say why not, and whether the nodes must change for it."""
        spec = record.spec
        lacking = [index for index, node_id in enumerate(record.nodes) if not node_id]
        bundles = [spec.bundles[index] for index in lacking]
        rules = [spec.rules[index] for index in lacking] if spec.rules else []
        kept = [node_id for node_id in record.nodes if node_id]
        views = self._views(told=True)
        places = place_bundles(bundles, spec.strategy, views, rules, kept)
        if places is None:
            places = place_bundles(bundles, spec.strategy, self._views(told=False), rules, kept)
        if places is None:
            never = why_never(bundles, spec.strategy, views, rules, kept, lacking)
            why = never or why_not_now(bundles, spec.strategy, views), bool(never)
            self._cannot(record, *why, now, effects)
            return why
        record.attempt += 1
        attempt = self._attempts[spec.group_id] = Attempt(record.attempt, dict(zip(lacking, places, strict=True)))
        effects.append(StoreGroup(spec.group_id, record))
        for index, node_id in attempt.nodes.items():
            self._occupy(record, index, node_id)
            self._say_reserve(record, index, node_id, effects)
        return None

    def _cannot(self, record: GroupRecord, reason: str, infeasible: bool, now: float, effects: list[Effect]) -> None:
        """There is no way at present."""
        waiting = self._waiting[record.spec.group_id]
        news = not record.reason or infeasible != waiting.infeasible
        waiting.retry_at, waiting.infeasible = NEVER, infeasible
        record.reason = f"{record.lost}. {reason}" if record.lost else reason
        if news:  # not at every change of what is free
            self._announce(record, now, effects)

    def _say_reserve(self, record: GroupRecord, index: int, node_id: bytes, effects: list[Effect]) -> None:
        spec = record.spec
        message = ReserveBundle(spec.group_id, index, record.attempt, spec.bundles[index], spec.job_id)
        effects.append(SendToNode(node_id, message))

    def _say_return(
        self,
        record: GroupRecord,
        index: int,
        node_id: bytes,
        attempt: int,
        reason: str,
        effects: list[Effect],
        removed: bool = False,
    ) -> None:
        """Give a bundle's place up. A node that is away hears of it when it has reported."""
        node = self._nodes.get(node_id)
        if node is None:
            return
        self._vacate(record, index, node_id)
        if node.view.alive:
            effects.append(SendToNode(node_id, ReturnBundle(record.spec.group_id, index, attempt, reason, removed)))

    def _on_answered(self, event: BundleAnswered, now: float, effects: list[Effect]) -> None:
        message = event.message
        record = self._groups.get(message.group_id)
        attempt = self._attempts.get(message.group_id)
        if (
            record is None
            or attempt is None
            or attempt.number != message.attempt
            or attempt.nodes.get(message.index) != event.node_id
        ):
            if message.done:
                self._return_late(event, effects)
            return
        if message.done:
            self._reserved(record, attempt, message.index, now, effects)
        else:
            self._give_up(record, message.reason, now, effects, refused=message.index)

    def _return_late(self, event: BundleAnswered, effects: list[Effect]) -> None:
        """Something of an attempt that is over is reserved. The node may not have been told: it reports what it has when it connects, and this waited
        there at that time."""
        node_id, message = event.node_id, event.message
        node = self._nodes.get(node_id)
        if node is not None and node.view.alive:
            life = BundleLife(message.group_id, message.index, message.attempt, committed=False)
            self._compare(node_id, life, effects)

    def _reserved(self, record: GroupRecord, attempt: Attempt, index: int, now: float, effects: list[Effect]) -> None:
        attempt.reserved.add(index)
        if len(attempt.reserved) < len(attempt.nodes):
            return
        group_id = record.spec.group_id
        del self._attempts[group_id], self._waiting[group_id]
        for each, node_id in attempt.nodes.items():
            record.nodes[each], record.attempts[each] = node_id, attempt.number
        record.state, record.reason, record.lost = PLACED, "", ""
        commits = [
            SendToNode(node_id, CommitBundle(group_id, each, attempt.number)) for each, node_id in attempt.nodes.items()
        ]
        record.version += 1
        record.changed_s = now
        effects.append(StoreGroup(group_id, record))
        effects += commits  # before the announcement: a node that is asked for the bundle has it
        effects.append(AnnounceGroup(record.version, record.wire_state(), False))

    def _end_attempt(
        self, record: GroupRecord, reason: str, effects: list[Effect], removed: bool = False, refused: int = -1
    ) -> None:
        """The attempt is over; what it has reserved, or will have, is returned."""
        attempt = self._attempts.pop(record.spec.group_id, None)
        if attempt is None:
            return
        for index, node_id in attempt.nodes.items():
            if index == refused:
                self._vacate(record, index, node_id)
            else:
                self._say_return(record, index, node_id, attempt.number, reason, effects, removed)

    def _give_up(self, record: GroupRecord, reason: str, now: float, effects: list[Effect], refused: int = -1) -> None:
        """This attempt is in vain; another one follows after a pause."""
        self._end_attempt(record, "another bundle of the group could not be reserved", effects, refused=refused)
        waiting = self._waiting[record.spec.group_id]
        waiting.retry_at = now + min(RESERVE_PAUSE_MAX_S, RESERVE_PAUSE_S * 2.0 ** min(waiting.failures, 30))
        waiting.failures += 1
        if record.reason != reason:
            record.reason = reason
            self._announce(record, now, effects)

    # ------------------------------------------------------------ nodes

    def _views(self, told: bool) -> list[NodeView]:
        """The nodes, with what is free on them: beside other work as far as they have told, or beside other bundles only."""
        views = []
        for node in self._nodes.values():
            available = dict(node.view.total)
            subtract(available, node.taken)
            if told and node.told is not None:
                available = {name: min(units, node.told.get(name, 0)) for name, units in available.items()}
            views.append(replace(node.view, available=available))
        return views

    def _occupy(self, record: GroupRecord, index: int, node_id: bytes) -> None:
        node = self._nodes.get(node_id)
        if node is None:
            return
        resources = record.spec.bundles[index]
        node.bundles[record.spec.group_id, index] = resources
        add(node.taken, resources)
        if node.told is not None:
            subtract(node.told, resources)

    def _vacate(self, record: GroupRecord, index: int, node_id: bytes) -> None:
        node = self._nodes.get(node_id)
        resources = node.bundles.pop((record.spec.group_id, index), None) if node is not None else None
        if node is not None and resources is not None:
            subtract(node.taken, resources)
            node.taken = {name: units for name, units in node.taken.items() if units}

    def _on_joined(self, event: NodeJoined, now: float, effects: list[Effect]) -> None:
        self._on_away(NodeAway(event.node_id), now, effects)
        view = NodeView(event.node_id, event.name, event.total, {}, event.labels, alive=False)
        self._nodes[event.node_id] = Node(view)
        for record in self._groups.values():
            for index, node_id in enumerate(record.nodes):
                if node_id == event.node_id:
                    self._occupy(record, index, node_id)

    def _on_reported(self, event: NodeReported, now: float, effects: list[Effect]) -> None:
        node_id = event.node_id
        node = self._nodes.get(node_id)
        if node is None:
            return
        node.view.alive = True
        for life in event.bundles:
            self._compare(node_id, life, effects)
        there = {(life.group_id, life.index) for life in event.bundles}
        self._lose(node_id, there, f"is lost: node {node.view.name} has not kept it", now, effects)
        self._nodes_changed(now, effects)

    def _nodes_changed(self, now: float, effects: list[Effect]) -> None:
        """What was impossible may be possible now."""
        for waiting in self._waiting.values():
            waiting.infeasible = False
        self._try_all(now, effects)

    def _compare(self, node_id: bytes, life: BundleLife, effects: list[Effect]) -> None:
        """A bundle that a node has: is it to be there?"""
        record = self._groups.get(life.group_id)
        known = record is not None and life.index < len(record.nodes)
        if (
            record is not None
            and known
            and record.nodes[life.index] == node_id
            and record.attempts[life.index] == life.attempt
        ):
            if not life.committed:
                effects.append(SendToNode(node_id, CommitBundle(life.group_id, life.index, life.attempt)))
            return
        removed = record is None or record.state == REMOVED
        if self._nodes[node_id].view.draining and known and life.committed and not removed:
            self._nodes[node_id].left[life.group_id, life.index] = life.attempt
            return
        reason = record.reason if record is not None and removed else "the GCS does not want it there"
        effects.append(SendToNode(node_id, ReturnBundle(life.group_id, life.index, life.attempt, reason, removed)))

    def _on_spoke(self, event: NodeSpoke, now: float, effects: list[Effect]) -> None:
        node = self._nodes.get(event.node_id)
        if node is None:
            return
        load = event.load
        before = node.told or {}
        changed = node.view.total != load.total
        node.told = dict(load.available)
        node.view.total = dict(load.total)
        if load.draining:
            self._on_drains(NodeDrains(event.node_id), now, effects)
        if changed:
            self._nodes_changed(now, effects)
        elif self._waiting and any(units > before.get(name, 0) for name, units in load.available.items()):
            self._try_all(now, effects, only_due=True)

    def _on_drains(self, event: NodeDrains, now: float, effects: list[Effect]) -> None:
        node = self._nodes.get(event.node_id)
        if node is None or node.view.draining:
            return
        node.view.draining = True
        name = f"node {node.view.name}"
        self._leave_attempts(event.node_id, f"{name} drains", now, effects)
        for key in node.bundles:
            node.left[key] = self._groups[key[0]].attempts[key[1]]
        self._lose(event.node_id, set(), f"leaves {name}, which drains", now, effects)
        self._nodes_changed(now, effects)

    def _on_away(self, event: NodeAway, now: float, effects: list[Effect]) -> None:
        node = self._nodes.get(event.node_id)
        if node is None:
            return
        node.view.alive = False
        self._leave_attempts(event.node_id, f"node {node.view.name} is not connected", now, effects)

    def _leave_attempts(self, node_id: bytes, reason: str, now: float, effects: list[Effect]) -> None:
        for group_id, attempt in list(self._attempts.items()):
            if node_id in attempt.nodes.values():
                self._give_up(self._groups[group_id], reason, now, effects)

    def _on_lost(self, event: NodeLost, now: float, effects: list[Effect]) -> None:
        self._on_away(NodeAway(event.node_id), now, effects)
        self._nodes.pop(event.node_id, None)
        self._lose(event.node_id, set(), f"is lost: node {event.node_id.hex()[:8]} died: {event.cause}", now, effects)
        self._nodes_changed(now, effects)

    def _lose(
        self, node_id: bytes, there: set[tuple[bytes, int]], reason: str, now: float, effects: list[Effect]
    ) -> None:
        """Of the bundles that are to be on a node only those in `there` are."""
        for group_id, record in self._groups.items():
            lost = [
                index for index, place in enumerate(record.nodes) if place == node_id and (group_id, index) not in there
            ]
            if not lost:
                continue
            self._end_attempt(record, "the group has lost another bundle", effects)
            for index in lost:
                self._vacate(record, index, node_id)
                record.nodes[index] = b""
            record.state, record.reason = RESCHEDULING, f"bundle {lost[0]} {reason}"
            record.lost = record.reason
            self._waiting[group_id] = Waiting()
            self._announce(record, now, effects)

    # ------------------------------------------------------------ time

    def _on_time(self, event: TimePassed, now: float, effects: list[Effect]) -> None:
        self._try_all(now, effects, only_due=True)


NEVER = float("inf")

_HANDLERS: dict[type, Callable[[PlacementGroups, Any, float, list[Effect]], None]] = {
    GroupRequested: PlacementGroups._on_requested,
    GroupRemoveAsked: PlacementGroups._on_remove,
    JobEnded: PlacementGroups._on_job_ended,
    NodeJoined: PlacementGroups._on_joined,
    NodeReported: PlacementGroups._on_reported,
    NodeSpoke: PlacementGroups._on_spoke,
    NodeDrains: PlacementGroups._on_drains,
    NodeAway: PlacementGroups._on_away,
    NodeLost: PlacementGroups._on_lost,
    BundleAnswered: PlacementGroups._on_answered,
    TimePassed: PlacementGroups._on_time,
}
