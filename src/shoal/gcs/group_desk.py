"""Placement groups in a shard: calls and messages become events of their manager, its effects become writes, messages and news.

Purpose: the part of `shard` that is about placement groups.

Design: an effect of the manager is performed through what the shard gives: `send` to a node, `publish` on a channel, `on_actors` for the actors in
the groups. The order of effects is the manager's.

What it does not do: decide (`placement_groups`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from shoal.gcs import global_scheduler
from shoal.gcs.actor_manager import DEAD, ActorRecord, GroupRemoved, PlacingMayWork
from shoal.gcs.placement_groups import (
    PLACED,
    REMOVED,
    BundleAnswered,
    Event,
    GroupRemoveAsked,
    GroupRequested,
    NodeAway,
    NodeDrains,
    NodeJoined,
    NodeSpoke,
    PlacementGroups,
    SendToNode,
    StoreGroup,
    TimePassed,
)
from shoal.gcs.storage.backend import Write
from shoal.gcs.tables import Jobs, TableError, bytes_of
from shoal.protocol.gcs_messages import CHANNEL_GROUP, BundleReserved, GroupChanged, GroupSpec
from shoal.protocol.strategies import KIND, PLACEMENT_GROUP

GROUPS_TABLE = "placement_groups"

Effects = list[Any]  #: of the shard


class GroupDesk:
    """The shell of the group manager inside of a shard.

    Args:
        send: (node, message, effects).
        publish: (channel, key, message, effects, whether it is the last one).
        on_actors: an event for the manager of actors.
    """

    def __init__(
        self,
        manager: PlacementGroups,
        jobs: Jobs,
        send: Callable[[bytes, Any, Effects], None],
        publish: Callable[[str, bytes, Any, Effects, bool], None],
        on_actors: Callable[[Any, float, Effects], None],
    ) -> None:
        self._manager = manager
        self._jobs = jobs
        self._send = send
        self._publish = publish
        self._on_actors = on_actors

    def begin(self, actors: list[ActorRecord]) -> None:
        """All rows are restored."""
        for actor in actors:
            if actor.state != DEAD and actor.spec.strategy.get(KIND) == PLACEMENT_GROUP:
                self._manager.resides(actor.spec, actor.node_id)

    def feed(self, event: Event, now: float, effects: Effects) -> None:
        """Something has happened that concerns groups."""
        for effect in self._manager.handle(event, now):
            if type(effect) is StoreGroup:
                stored = None if effect.record is None else msgspec.msgpack.encode(effect.record)
                effects.append(Write(GROUPS_TABLE, effect.group_id, stored))
            elif type(effect) is SendToNode:
                self._send(effect.node_id, effect.message, effects)
            else:
                assert not isinstance(effect, (StoreGroup, SendToNode))
                state = effect.state
                message = GroupChanged(effect.version, state)
                self._publish(CHANNEL_GROUP, state.group_id, message, effects, effect.final)
                if effect.final:
                    self._on_actors(GroupRemoved(state.group_id, state.reason), now, effects)
                elif state.state == PLACED:
                    self._on_actors(PlacingMayWork(), now, effects)

    def on_scheduler_event(self, event: global_scheduler.Event, now: float, effects: Effects) -> None:
        """What the global scheduler hears of nodes that live, groups are to know too."""
        if type(event) is global_scheduler.NodeSpoke:
            self.feed(NodeSpoke(event.node_id, event.load), now, effects)
        elif type(event) is global_scheduler.NodeUp:
            self.feed(NodeJoined(event.node_id, event.name, event.total, event.labels), now, effects)
        elif type(event) is global_scheduler.NodeAway:
            self.feed(NodeAway(event.node_id), now, effects)
        elif type(event) is global_scheduler.NodeDrains:
            self.feed(NodeDrains(event.node_id), now, effects)

    def on_time(self, now: float, effects: Effects) -> None:
        """It may be time for another attempt."""
        deadline = self._manager.next_deadline()
        if deadline is not None and deadline <= now:
            self.feed(TimePassed(), now, effects)

    def on_reserved(self, node_id: bytes, message: BundleReserved, now: float, effects: Effects) -> None:
        """A node has answered ReserveBundle."""
        self.feed(BundleAnswered(node_id, message), now, effects)

    # ---------------------------------------------------------------- calls

    def create(self, body: dict[str, Any], now: float, effects: Effects) -> dict[str, Any]:
        """gcs.group_create"""
        spec = msgspec.convert(body["spec"], GroupSpec)
        if self._manager.get(spec.group_id) is not None:  # said before
            return {"group_id": spec.group_id}
        holder = self._manager.find(spec.namespace, spec.name) if spec.name else None
        if holder is not None:
            held_by = f"{holder.spec.group_id.hex()}, which is {holder.state}"
            text = f"the name {spec.name!r} is taken in namespace {spec.namespace!r} by placement group {held_by}"
            raise TableError("GroupAlreadyExists", text)
        if self._jobs.has_ended(spec.job_id):
            raise TableError("BadRequest", f"job {spec.job_id.hex()} has ended: it makes no placement groups")
        self.feed(GroupRequested(spec), now, effects)
        return {"group_id": spec.group_id}

    def remove(self, body: dict[str, Any], now: float, effects: Effects) -> dict[str, Any]:
        """gcs.group_remove"""
        self.feed(GroupRemoveAsked(bytes_of(body, "group_id")), now, effects)
        return {"state": REMOVED}

    def by_name(self, body: dict[str, Any], now: float, effects: Effects) -> dict[str, Any]:
        """gcs.group_by_name"""
        name, namespace = str(body["name"]), str(body["namespace"])
        record = self._manager.find(namespace, name)
        if record is None:
            raise TableError("GroupNotFound", f"there is no placement group named {name!r} in namespace {namespace!r}")
        return record.row()

    def listing(self, body: dict[str, Any], now: float, effects: Effects) -> dict[str, Any]:
        """gcs.groups"""
        group_id = body.get("group_id")
        records = self._manager.records() if group_id is None else [self._manager.get(group_id)]
        return {"groups": [record.row() for record in records if record is not None]}
