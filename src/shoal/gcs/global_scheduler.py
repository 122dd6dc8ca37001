"""The global scheduler: on which nodes the leases go that their own nodes cannot serve.

Purpose: the upper half of bottom-up scheduling (paper 4.2.2). Nodes ask by `PlaceLeases`, and are told nodes to ask by `LeasesPlaced`.

Design: one machine beside the tables, one door: `handle(event, now) -> list[Effect]`. It owns nothing that must outlive it: what it knows of nodes
they say again with every heartbeat, and what they want they ask again of a new server. So it can move out, and there can be several.

    Wanted -> placed on nodes with room (`scheduling.node_policy`) -> TellPlaced
       |        `- what finds no room is kept, in the order of asking, and tried again when a node has more room than before
       `- no node can ever serve it -> TellPlaced(refused): what was asked, what there is; also when the last node that could dies

*Promises.* A node's heartbeat does not know yet of what was placed there a moment ago. A placement is therefore taken off what is free until the
node has spoken PROMISE_SEEN_S or more after it, or for PROMISED_S: a promise that was not used must not hide room for long.

*Who finds no room for long* (a wide demand beside a stream of narrow ones) is also sent into the queue of the node where it starts first, by
QUEUED_AFTER_S, then of a second and a third one: there the local scheduler keeps room free for who has waited long. It goes on waiting here: a
lease too many is returned at once.

*Actors* are placed at once, with room or in a queue, since a node constructs many a second; one that has not begun MOVE_AFTER_S later is moved
(`ActorPlaced` again) to a node that has room then.

    ActorWanted -> ActorPlaced ... ActorSettled    (or ActorRefused; or nothing: only nodes that are away could take it)

A node that is not connected gets nothing, but as long as it may come back nothing is refused that it could serve. A node that died or drains may be
replaced: what it could have served waits REPLACED_WITHIN_S more before it is refused (unless it wants that very node).

How to extend: an event gets a row in `_HANDLERS`; strategies belong into `scheduling.node_policy`.

What it does not do: know tasks or workers; grant anything (nodes do); decide that a node is dead (`node_table`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from shoal.protocol.gcs_messages import LeasesPlaced, NodeLoad, PlaceLeases
from shoal.protocol.resources import Resources, add, fits, subtract
from shoal.protocol.strategies import GLOBAL_KINDS, KIND, NODE_AFFINITY
from shoal.scheduling.node_policy import Dice, NodeView, Wish, best_queue, can_ever, place, why_never, why_waiting

PROMISE_SEEN_S = 0.02
PROMISED_S = 0.25
QUEUED_AFTER_S = 1.0
QUEUES_MAX = 3
MOVE_AFTER_S = 0.5
REPLACED_WITHIN_S = 30.0
LOOK_S = 0.1  #: while something waits
MOVED_MAX = 100  #: actors looked at in one go

Key = tuple[bytes, bytes, int]  #: (node that asks, process, class number)

assert PROMISE_SEEN_S < PROMISED_S < QUEUED_AFTER_S


# ---------------------------------------------------------------- events


@dataclass(slots=True)
class NodeUp:
    """A node is connected (again); what is free there is known when it has spoken."""

    node_id: bytes
    name: str
    total: Resources
    labels: dict[str, str]


@dataclass(slots=True)
class NodeAway:
    """A node is not connected; it may come back. What it wanted it will ask again."""

    node_id: bytes


@dataclass(slots=True)
class NodeGone:
    """A node is dead."""

    node_id: bytes


@dataclass(slots=True)
class NodeDrains:
    """A node takes no new work."""

    node_id: bytes


@dataclass(slots=True)
class NodeSpoke:
    """A heartbeat."""

    node_id: bytes
    load: NodeLoad


@dataclass(slots=True)
class Wanted:
    """A node asks for places."""

    node_id: bytes
    message: PlaceLeases


@dataclass(slots=True)
class ActorWanted:
    """An actor (or its next life) is to be placed; `near` is the node that asked, or where it was: with `stay` it goes there if it can."""

    actor_id: bytes
    near: bytes
    stay: bool
    demand: Resources
    strategy: dict[str, Any]
    name: str
    job_id: bytes


@dataclass(slots=True)
class ActorSettled:
    """An actor has begun where it was placed, or is not wanted any more."""

    actor_id: bytes


@dataclass(slots=True)
class TimePassed:
    """Promises may be over, and who waits may have waited long: said when `next_deadline` has come."""


Event = NodeUp | NodeAway | NodeGone | NodeDrains | NodeSpoke | Wanted | ActorWanted | ActorSettled | TimePassed


@dataclass(slots=True)
class TellPlaced:
    """Answer a node."""

    node_id: bytes
    message: LeasesPlaced


@dataclass(slots=True)
class ActorPlaced:
    """Construct the actor on this node; not where it waits now."""

    actor_id: bytes
    node_id: bytes


@dataclass(slots=True)
class ActorRefused:
    """No node can ever take the actor."""

    actor_id: bytes
    reason: str


@dataclass(slots=True)
class AskActorsAgain:
    """Actors without a node may have one now, or be refused: ask for each again."""


Effect = TellPlaced | ActorPlaced | ActorRefused | AskActorsAgain


@dataclass(slots=True)
class Demand:
    """What a node wants for one class of one process and has not got. `backlog` is positive."""

    wish: Wish
    name: str
    job_id: bytes
    backlog: int
    since: float
    #: nodes in whose queues a lease of it waits, besides
    queued_at: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class WaitingActor:
    """An actor that was placed and has not begun."""

    wish: Wish
    name: str
    job_id: bytes
    node_id: bytes
    since: float


@dataclass(slots=True)
class Promise:
    """What was placed on a node that may not know it yet."""

    at: float
    demand: Resources
    count: int


class GlobalScheduler:
    """The machine. `dice(n)` is a number below n."""

    __slots__ = ("_actors", "_demands", "_dice", "_ghosts", "_looked_at", "_placed", "_promises", "_refused", "_views")

    def __init__(self, dice: Dice) -> None:
        self._dice = dice
        #: all nodes that are not dead, in the order of joining. `available` is what the node said last, less its promises
        self._views: dict[bytes, NodeView] = {}
        #: nodes that died or drain, as they were -> until when they may be replaced
        self._ghosts: dict[bytes, tuple[NodeView, float]] = {}
        #: node -> what was promised there, oldest first; never empty
        self._promises: dict[bytes, deque[Promise]] = {}
        #: what waits, in the order of asking
        self._demands: dict[Key, Demand] = {}
        #: actors that were placed and have not begun, by id
        self._actors: dict[bytes, WaitingActor] = {}
        #: when all that waits was looked at last
        self._looked_at = 0.0
        self._placed = 0
        self._refused = 0

    def handle(self, event: Event, now: float) -> list[Effect]:
        """The one door. `now` in s since the epoch."""
        effects: list[Effect] = []
        _HANDLERS[type(event)](self, event, now, effects)
        return effects

    # ------------------------------------------------------------ queries

    def next_deadline(self) -> float | None:
        """When TimePassed is due; None while nothing waits."""
        waits = self._demands or (self._actors and len(self._views) > 1)
        looks_at = self._looked_at + LOOK_S if waits else None
        ends_at = min((until for _, until in self._ghosts.values()), default=None)
        return min((at for at in (looks_at, ends_at) if at is not None), default=None)

    def views(self) -> list[NodeView]:
        """What is known of each node that is not dead."""
        return list(self._views.values())

    def demands(self, limit: int) -> list[dict[str, Any]]:
        """The first `limit` who wait, and why."""
        rows: list[dict[str, Any]] = []
        for (node_id, process, class_no), demand in self._demands.items():
            if len(rows) == limit:
                break
            rows.append(
                {
                    "node_id": node_id,
                    "process": process,
                    "class_no": class_no,
                    "job_id": demand.job_id,
                    "name": demand.name,
                    "demand": demand.wish.demand,
                    "count": demand.backlog,
                    "since_s": demand.since,
                    "why": why_waiting(self.views(), demand.wish, demand.name),
                }
            )
        for actor_id, actor in self._actors.items():
            if len(rows) == limit:
                break
            rows.append(
                {
                    "node_id": actor.node_id,
                    "actor_id": actor_id,
                    "job_id": actor.job_id,
                    "name": actor.name,
                    "demand": actor.wish.demand,
                    "count": 1,
                    "since_s": actor.since,
                    "why": why_waiting(self.views(), actor.wish, actor.name),
                }
            )
        return rows

    def statistics(self) -> dict[str, int]:
        """Sizes and counts."""
        return {
            "nodes": len(self._views),
            "waiting": sum(demand.backlog for demand in self._demands.values()),
            "actors_waiting": len(self._actors),
            "placed": self._placed,
            "refused": self._refused,
        }

    # ------------------------------------------------------------ nodes

    def _on_up(self, event: NodeUp, now: float, effects: list[Effect]) -> None:
        known = self._views.get(event.node_id)
        if known is None:
            self._views[event.node_id] = NodeView(event.node_id, event.name, event.total, {}, event.labels)
        else:
            known.alive, known.total, known.available = True, event.total, {}
        self._promises.pop(event.node_id, None)
        for key in list(self._demands):  # one may wait for this very node, full or not
            self._try(key, self.views(), now, effects)

    def _on_away(self, event: NodeAway, now: float, effects: list[Effect]) -> None:
        view = self._views.get(event.node_id)
        if view is not None:
            view.alive = False
        for key in [key for key in self._demands if key[0] == event.node_id]:
            del self._demands[key]

    def _on_gone(self, event: NodeGone, now: float, effects: list[Effect]) -> None:
        self._on_away(NodeAway(event.node_id), now, effects)
        view = self._views.pop(event.node_id, None)
        if view is not None:
            self._haunt(view, now)
        self._promises.pop(event.node_id, None)
        for actor_id in [each for each, actor in self._actors.items() if actor.node_id == event.node_id]:
            del self._actors[actor_id]  # asked for again
        self._refuse_impossible(effects)

    def _on_drains(self, event: NodeDrains, now: float, effects: list[Effect]) -> None:
        view = self._views.get(event.node_id)
        if view is not None:
            view.draining = True
            self._haunt(view, now)
            self._refuse_impossible(effects)

    def _haunt(self, view: NodeView, now: float) -> None:
        """A node goes: another one like it may come."""
        ghost = replace(view, alive=False, draining=False, available={})
        self._ghosts[view.node_id] = (ghost, now + REPLACED_WITHIN_S)

    def _on_spoke(self, event: NodeSpoke, now: float, effects: list[Effect]) -> None:
        view, load = self._views.get(event.node_id), event.load
        if view is None:
            return
        before = view.available
        view.total = load.total
        view.queued = sum(count for _, count in load.waiting)
        view.task_time_s = load.task_time_s
        view.actors = load.actors
        view.available = dict(load.available)
        promises = self._promises.get(event.node_id)
        if promises is not None:
            while promises and now - promises[0].at >= PROMISE_SEEN_S:
                promises.popleft()
            if not promises:
                del self._promises[event.node_id]
            for promise in promises:
                self._take(view, promise)
        if load.draining and not view.draining:
            self._on_drains(NodeDrains(event.node_id), now, effects)
        if (self._demands or self._actors) and any(
            units > before.get(name, 0) for name, units in view.available.items()
        ):
            self._offer(view, now, effects)

    # ------------------------------------------------------------ demands

    def _on_wanted(self, event: Wanted, now: float, effects: list[Effect]) -> None:
        message = event.message
        key = (event.node_id, message.process, message.class_no)
        if message.backlog <= 0:
            self._demands.pop(key, None)
            return
        demand = self._demands.get(key)
        if demand is None:
            units = {name: amount for name, amount in message.demand.items() if amount > 0}
            wish = Wish(units, message.strategy, message.locality, event.node_id)
            if not self._demands:
                self._looked_at = now
            demand = self._demands[key] = Demand(wish, message.name, message.job_id, message.backlog, now)
        demand.backlog = message.backlog
        demand.wish.locality = message.locality
        try:
            possible = self._possible(demand.wish)
        except (KeyError, TypeError, ValueError) as error:
            del self._demands[key]
            reason = f"the scheduling strategy {message.strategy!r} makes no sense: {error!r}"
            effects.append(TellPlaced(key[0], LeasesPlaced(key[1], key[2], [], reason)))
            return
        if not possible:
            self._refuse(key, effects)
            return
        self._end_promises(now)
        self._try(key, self.views(), now, effects)

    def _try(self, key: Key, views: list[NodeView], now: float, effects: list[Effect]) -> None:
        """Place what can be placed of a demand on some of these nodes."""
        demand = self._demands[key]
        found = place(views, demand.wish, demand.backlog, self._dice)
        if not found:
            return
        for view, count in found:
            promise = Promise(now, demand.wish.demand, count)
            self._promises.setdefault(view.node_id, deque()).append(promise)
            self._take(view, promise)
            demand.backlog -= count
            self._placed += count
        self._tell(key, [(view.node_id, count) for view, count in found], effects)
        if not demand.backlog:
            del self._demands[key]

    def _offer(self, view: NodeView, now: float, effects: list[Effect]) -> None:
        """A node has more room than before: who waits is tried there."""
        if not view.alive or view.draining:
            return
        for key, demand in list(self._demands.items()):
            self._try(key, self.views() if demand.wish.locality else [view], now, effects)
        self._move_actors([view], now, effects)

    def _possible(self, wish: Wish) -> bool:
        return any(can_ever(view, wish) for view in self._views.values()) or self._was_possible(wish)

    def _was_possible(self, wish: Wish) -> bool:
        """Whether a node that went lately could have served it, and another one like it could."""
        if wish.strategy.get(KIND) == NODE_AFFINITY and not wish.strategy.get("soft"):
            return False
        return any(can_ever(ghost, wish) for ghost, _ in self._ghosts.values())

    def _refuse_impossible(self, effects: list[Effect]) -> None:
        for key in [key for key, demand in self._demands.items() if not self._possible(demand.wish)]:
            self._refuse(key, effects)

    def _refuse(self, key: Key, effects: list[Effect]) -> None:
        demand = self._demands.pop(key)
        self._refused += 1
        reason = why_never(self.views(), demand.wish, demand.name)
        effects.append(TellPlaced(key[0], LeasesPlaced(key[1], key[2], [], reason)))

    # ------------------------------------------------------------ actors

    def _on_actor_wanted(self, event: ActorWanted, now: float, effects: list[Effect]) -> None:
        demand = {name: units for name, units in event.demand.items() if units > 0}
        wish = Wish(demand, event.strategy, {}, event.near, True)
        try:
            able = [view for view in self._views.values() if can_ever(view, wish)]
        except (KeyError, TypeError, ValueError) as error:
            reason = f"the scheduling strategy {event.strategy!r} makes no sense: {error!r}"
            effects.append(ActorRefused(event.actor_id, reason))
            return
        self._actors.pop(event.actor_id, None)
        if not able and (not self._views or self._was_possible(wish)):
            return  # the cluster begins, or a node may be replaced
        if not able:
            self._refused += 1
            effects.append(ActorRefused(event.actor_id, why_never(self.views(), wish, event.name)))
            return
        view = self._choose(event, wish, now)
        if view is None:  # only nodes that are away could take it
            return
        if not self._demands and not self._actors:
            self._looked_at = now
        self._actors[event.actor_id] = WaitingActor(wish, event.name, event.job_id, view.node_id, now)
        self._settle_on(view, wish, now)
        effects.append(ActorPlaced(event.actor_id, view.node_id))

    def _choose(self, event: ActorWanted, wish: Wish, now: float) -> NodeView | None:
        near = self._views.get(event.near)
        if event.stay and near is not None and near.alive and can_ever(near, wish):
            return near
        self._end_promises(now)
        found = place(self.views(), wish, 1, self._dice)
        return found[0][0] if found else best_queue(self.views(), wish, self._dice)

    def _settle_on(self, view: NodeView, wish: Wish, now: float) -> None:
        """An actor goes to a node, whose next heartbeat says what came of it."""
        promise = Promise(now, wish.demand, 1)
        self._promises.setdefault(view.node_id, deque()).append(promise)
        if not fits(wish.demand, view.available):
            view.queued += 1
        self._take(view, promise)
        view.actors += 1
        self._placed += 1

    def _on_actor_settled(self, event: ActorSettled, now: float, effects: list[Effect]) -> None:
        self._actors.pop(event.actor_id, None)

    def _move_actors(self, views: list[NodeView], now: float, effects: list[Effect]) -> None:
        """Actors that wait elsewhere for long go to nodes with room."""
        stuck = ((actor_id, each) for actor_id, each in self._actors.items() if now - each.since >= MOVE_AFTER_S)
        for actor_id, actor in list(islice(stuck, MOVED_MAX)):
            if actor.wish.strategy.get(KIND) == NODE_AFFINITY:
                continue
            found = place([view for view in views if view.node_id != actor.node_id], actor.wish, 1, self._dice)
            if found:
                view = found[0][0]
                actor.node_id, actor.since = view.node_id, now
                self._settle_on(view, actor.wish, now)
                effects.append(ActorPlaced(actor_id, view.node_id))

    # ------------------------------------------------------------ answers

    @staticmethod
    def _tell(key: Key, placements: list[tuple[bytes, int]], effects: list[Effect]) -> None:
        effects.append(TellPlaced(key[0], LeasesPlaced(key[1], key[2], placements)))

    # ------------------------------------------------------------ time

    def _on_time(self, event: TimePassed, now: float, effects: list[Effect]) -> None:
        self._looked_at = now
        gone = [node_id for node_id, (_, until) in self._ghosts.items() if until <= now]
        for node_id in gone:
            del self._ghosts[node_id]
        if gone:
            self._refuse_impossible(effects)
            effects.append(AskActorsAgain())
        for view in self._end_promises(now):
            self._offer(view, now, effects)
        for key, demand in list(self._demands.items()):
            if (
                now - demand.since >= QUEUED_AFTER_S * (len(demand.queued_at) + 1)
                and len(demand.queued_at) < QUEUES_MAX
            ):
                self._queue_somewhere(key, demand, effects)
        self._move_actors(self.views(), now, effects)

    def _queue_somewhere(self, key: Key, demand: Demand, effects: list[Effect]) -> None:
        others = [view for node_id, view in self._views.items() if node_id not in demand.queued_at]
        if demand.wish.strategy.get(KIND) not in GLOBAL_KINDS:  # at home it waits anyway
            others = [view for view in others if view.node_id != demand.wish.asker]
        view = best_queue(others, demand.wish, self._dice)
        if view is None:
            return
        demand.queued_at.append(view.node_id)
        self._tell(key, [(view.node_id, 1)], effects)

    def _end_promises(self, now: float) -> list[NodeView]:
        """Forget promises that are too old to be true; the nodes that have more room by that."""
        freed = []
        for node_id, promises in list(self._promises.items()):
            if now - promises[0].at < PROMISED_S:
                continue
            view = self._views[node_id]
            while promises and now - promises[0].at >= PROMISED_S:
                promise = promises.popleft()
                add(view.available, {name: units * promise.count for name, units in promise.demand.items()})
            if not promises:
                del self._promises[node_id]
            freed.append(view)
        return freed

    @staticmethod
    def _take(view: NodeView, promise: Promise) -> None:
        subtract(view.available, {name: units * promise.count for name, units in promise.demand.items()})


_HANDLERS: dict[type, Callable[[GlobalScheduler, Any, float, list[Effect]], None]] = {
    NodeUp: GlobalScheduler._on_up,
    NodeAway: GlobalScheduler._on_away,
    NodeGone: GlobalScheduler._on_gone,
    NodeDrains: GlobalScheduler._on_drains,
    NodeSpoke: GlobalScheduler._on_spoke,
    Wanted: GlobalScheduler._on_wanted,
    ActorWanted: GlobalScheduler._on_actor_wanted,
    ActorSettled: GlobalScheduler._on_actor_settled,
    TimePassed: GlobalScheduler._on_time,
}
