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
QUEUED_AFTER_S, then of a second and a third one (`LeasesPlaced.queued`): there the local scheduler keeps room free for who has waited long. It goes
on waiting here, whole: the node that asks counts what is queued apart, takes it back when all was placed, and says when a queue has granted.

*Actors* are placed at once, with room or in a queue, since a node constructs many a second; one that has not begun MOVE_AFTER_S later is moved
(`ActorPlaced` again) to a node that has room then.

    ActorWanted -> ActorPlaced ... ActorSettled    (or ActorRefused; or nothing: only nodes that are away could take it)

A node that is not connected gets nothing, but as long as it may come back nothing is refused that it could serve. A node that died or drains may be
replaced: what it could have served waits REPLACED_WITHIN_S more before it is refused (unless it wants that very node).

*Many nodes.* No decision looks at all nodes or at all that wait: nodes are sampled (`node_views`), and what waits is kept by shape (demand and
strategy), so that a heartbeat costs one look for each shape.

How to extend: an event gets a row in `_HANDLERS`; strategies belong into `scheduling.node_policy`.

What it does not do: know tasks or workers; grant anything (nodes do); decide that a node is dead (`node_table`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import Any

from shoal.gcs.node_views import PROMISED_S, NodeViews, Shape
from shoal.protocol.gcs_messages import LeasesPlaced, NodeLoad, PlaceLeases
from shoal.protocol.resources import Resources, fits
from shoal.protocol.strategies import GLOBAL_KINDS, KIND, NODE_AFFINITY
from shoal.scheduling.node_policy import Dice, NodeView, Wish, best_queue, can_ever, place, why_never, why_waiting

QUEUED_AFTER_S = 1.0
QUEUES_MAX = 3
MOVE_AFTER_S = 0.5
LOOK_S = 0.1  #: while something waits
MOVED_MAX = 100  #: actors looked at in one go

Key = tuple[bytes, bytes, int]  #: (node that asks, process, class number)

assert PROMISED_S < QUEUED_AFTER_S


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
    begins_s: float = 0.0  #: it is not to begin before, so until then it is not stuck


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
    shape: Shape
    name: str
    job_id: bytes
    backlog: int
    since: float
    #: living nodes in whose queues a lease of it was sent besides, `backlog` unchanged
    queued_at: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class WaitingActor:
    """An actor that was placed and has not begun."""

    wish: Wish
    shape: Shape
    name: str
    job_id: bytes
    node_id: bytes
    since: float
    begins_s: float


class GlobalScheduler:
    """The machine. `dice(n)` is a number below n."""

    __slots__ = ("_actors", "_demands", "_dice", "_looked_at", "_nodes", "_placed", "_refused", "_waiting")

    def __init__(self, dice: Dice) -> None:
        self._dice = dice
        self._nodes = NodeViews()
        #: what waits, in the order of asking
        self._demands: dict[Key, Demand] = {}
        #: the same by shape, each in the order of asking; none is empty
        self._waiting: dict[tuple[Any, ...], dict[Key, Demand]] = {}
        #: actors that were placed and have not begun, by id; those placed first are first
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
        waits = self._demands or (self._actors and len(self._nodes) > 1)
        looks_at = self._looked_at + LOOK_S if waits else None
        ends_at = self._nodes.next_ghost_end()
        return min((at for at in (looks_at, ends_at) if at is not None), default=None)

    def views(self) -> list[NodeView]:
        """What is known of each node that is not dead."""
        return self._nodes.all()

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
                    "why": self._why(demand),
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
                    "why": self._why(actor),
                }
            )
        return rows

    def explain(self, key: Key) -> str:
        """Why a class of a process waits here; empty when it does not."""
        demand = self._demands.get(key)
        return self._why(demand) if demand is not None else ""

    def explain_actor(self, actor_id: bytes) -> str:
        """Why an actor that was sent to a node has not begun; empty when it has."""
        actor = self._actors.get(actor_id)
        return self._why(actor) if actor is not None else ""

    def _why(self, waiting: Demand | WaitingActor) -> str:
        return why_waiting(self._nodes.any_of(waiting.shape, waiting.wish, _first), waiting.wish, waiting.name)

    def statistics(self) -> dict[str, int]:
        """Sizes and counts."""
        return {
            "nodes": len(self._nodes),
            "waiting": sum(demand.backlog for demand in self._demands.values()),
            "actors_waiting": len(self._actors),
            "placed": self._placed,
            "refused": self._refused,
        }

    # ------------------------------------------------------------ nodes

    def _on_up(self, event: NodeUp, now: float, effects: list[Effect]) -> None:
        self._nodes.up(event.node_id, event.name, event.total, event.labels)
        for key, demand in list(self._demands.items()):  # one may wait for this very node, full or not
            if demand.wish.strategy.get(KIND) == NODE_AFFINITY:
                self._try(key, None, now, effects)

    def _on_away(self, event: NodeAway, now: float, effects: list[Effect]) -> None:
        self._nodes.away(event.node_id)
        for key in [key for key in self._demands if key[0] == event.node_id]:
            self._forget(key)

    def _on_gone(self, event: NodeGone, now: float, effects: list[Effect]) -> None:
        self._on_away(NodeAway(event.node_id), now, effects)
        self._nodes.gone(event.node_id, now)
        for demand in self._demands.values():
            if event.node_id in demand.queued_at:
                demand.queued_at.remove(event.node_id)
        for actor_id in [each for each, actor in self._actors.items() if actor.node_id == event.node_id]:
            del self._actors[actor_id]  # asked for again
        self._refuse_impossible(effects)

    def _on_drains(self, event: NodeDrains, now: float, effects: list[Effect]) -> None:
        view = self._nodes.get(event.node_id)
        if view is not None:
            self._nodes.drains(view, now)
            self._refuse_impossible(effects)

    def _on_spoke(self, event: NodeSpoke, now: float, effects: list[Effect]) -> None:
        view = self._nodes.get(event.node_id)
        if view is None:
            return
        self._nodes.spoke(view, event.load, now)
        if event.load.draining and not view.draining:
            self._on_drains(NodeDrains(event.node_id), now, effects)
        if self._demands or self._actors:
            self._offer(view, now, effects)

    # ------------------------------------------------------------ demands

    def _on_wanted(self, event: Wanted, now: float, effects: list[Effect]) -> None:
        message = event.message
        for dead in message.dead:  # only shard 0 hears of deaths otherwise
            self._on_gone(NodeGone(dead), now, effects)
        key = (event.node_id, message.process, message.class_no)
        if message.backlog <= 0:
            self._forget(key)
            return
        demand = self._demands.get(key)
        if demand is None:
            units = {name: amount for name, amount in message.demand.items() if amount > 0}
            wish = Wish(units, message.strategy, message.locality, event.node_id)
            try:
                shape = self._nodes.shape(wish)
            except (KeyError, TypeError, ValueError) as error:
                reason = f"the scheduling strategy {message.strategy!r} makes no sense: {error!r}"
                effects.append(TellPlaced(key[0], LeasesPlaced(key[1], key[2], [], reason)))
                return
            demand = Demand(wish, shape, message.name, message.job_id, message.backlog, now)
            self._keep(key, demand, now)
        demand.backlog = message.backlog
        demand.wish.locality = message.locality
        if not self._nodes.possible(demand.shape):
            self._refuse(key, effects)
            return
        self._nodes.end_promises(now)
        self._try(key, None, now, effects)

    def _keep(self, key: Key, demand: Demand, now: float) -> None:
        if not self._demands and not self._actors:
            self._looked_at = now
        self._demands[key] = demand
        self._waiting.setdefault(demand.shape.key, {})[key] = demand
        demand.shape.waiting += 1

    def _forget(self, key: Key) -> None:
        demand = self._demands.pop(key, None)
        if demand is None:
            return
        demand.shape.waiting -= 1
        same = self._waiting[demand.shape.key]
        del same[key]
        if not same:
            del self._waiting[demand.shape.key]

    def _try(self, key: Key, view: NodeView | None, now: float, effects: list[Effect]) -> None:
        """Place what can be placed of a demand, on a node or (None) where it is best."""
        demand = self._demands[key]
        placements: dict[bytes, int] = {}
        while demand.backlog:
            if view is not None:
                found = place([view], demand.wish, demand.backlog, self._dice)
            else:
                views = self._nodes.with_room(demand.shape, demand.wish, demand.backlog, self._dice)
                found = place(views, demand.wish, demand.backlog, self._dice, all_can=True)
            for chosen, count in found:
                self._nodes.promise(chosen, demand.wish.demand, count, now)
                demand.backlog -= count
                self._placed += count
                placements[chosen.node_id] = placements.get(chosen.node_id, 0) + count
            # A sample that was of use: there may be more. Else who asks for much would wait until all the others have spoken.
            if not found or view is not None or not self._nodes.is_sampled(demand.shape):
                break
        if not placements:
            return
        self._tell(key, list(placements.items()), effects)
        if not demand.backlog:
            self._forget(key)

    def _offer(self, view: NodeView, now: float, effects: list[Effect]) -> None:
        """A node may have room: who waits is tried there, the shape whose first has waited longest first."""
        if not view.alive or view.draining:
            return
        open_to = [same for same in self._waiting.values() if fits(_oldest(same).wish.demand, view.available)]
        for same in sorted(open_to, key=lambda same: _oldest(same).since):
            for key, demand in list(same.items()):
                if not fits(demand.wish.demand, view.available):
                    break
                self._try(key, None if demand.wish.locality else view, now, effects)
        self._move_actors(view, now, effects)

    def _refuse_impossible(self, effects: list[Effect]) -> None:
        for same in list(self._waiting.values()):
            if not self._nodes.possible(_oldest(same).shape):
                for key in list(same):
                    self._refuse(key, effects)

    def _refuse(self, key: Key, effects: list[Effect]) -> None:
        demand = self._demands[key]
        self._forget(key)
        self._refused += 1
        reason = why_never(self.views(), demand.wish, demand.name)
        effects.append(TellPlaced(key[0], LeasesPlaced(key[1], key[2], [], reason)))

    # ------------------------------------------------------------ actors

    def _on_actor_wanted(self, event: ActorWanted, now: float, effects: list[Effect]) -> None:
        demand = {name: units for name, units in event.demand.items() if units > 0}
        wish = Wish(demand, event.strategy, {}, event.near, True)
        try:
            shape = self._nodes.shape(wish)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"the scheduling strategy {event.strategy!r} makes no sense: {error!r}"
            effects.append(ActorRefused(event.actor_id, reason))
            return
        self._actors.pop(event.actor_id, None)
        if not shape.able and (not self._nodes or self._nodes.was_possible(shape)):
            return  # the cluster begins, or a node may be replaced
        if not shape.able:
            self._refused += 1
            effects.append(ActorRefused(event.actor_id, why_never(self.views(), wish, event.name)))
            return
        view = self._choose(event, shape, wish, now)
        if view is None:  # only nodes that are away could take it
            return
        if not self._demands and not self._actors:
            self._looked_at = now
        self._actors[event.actor_id] = WaitingActor(
            wish, shape, event.name, event.job_id, view.node_id, now, event.begins_s
        )
        self._settle_on(view, wish, now)
        effects.append(ActorPlaced(event.actor_id, view.node_id))

    def _choose(self, event: ActorWanted, shape: Shape, wish: Wish, now: float) -> NodeView | None:
        near = self._nodes.get(event.near)
        if event.stay and near is not None and near.alive and can_ever(near, wish):
            return near
        self._nodes.end_promises(now)
        found = place(self._nodes.with_room(shape, wish, 1, self._dice), wish, 1, self._dice, all_can=True)
        return found[0][0] if found else best_queue(self._nodes.any_of(shape, wish, self._dice), wish, self._dice)

    def _settle_on(self, view: NodeView, wish: Wish, now: float) -> None:
        """An actor goes to a node, whose next heartbeat says what came of it."""
        if not fits(wish.demand, view.available):
            view.queued += 1
        self._nodes.promise(view, wish.demand, 1, now)
        view.actors += 1
        self._placed += 1

    def _on_actor_settled(self, event: ActorSettled, now: float, effects: list[Effect]) -> None:
        self._actors.pop(event.actor_id, None)

    def _move_actors(self, view: NodeView | None, now: float, effects: list[Effect]) -> None:
        """Actors that wait elsewhere for long go to a node if it has room, or (None) to any that has."""
        waiting = takewhile(lambda item: now - item[1].since >= MOVE_AFTER_S, self._actors.items())
        stuck = (item for item in waiting if now - item[1].begins_s >= MOVE_AFTER_S)
        for actor_id, actor in list(islice(stuck, MOVED_MAX)):
            wish = actor.wish
            if wish.strategy.get(KIND) == NODE_AFFINITY or (view and not fits(wish.demand, view.available)):
                continue
            views = [view] if view else self._nodes.with_room(actor.shape, wish, 1, self._dice)
            found = place([each for each in views if each.node_id != actor.node_id], wish, 1, self._dice)
            if found:
                actor.node_id, actor.since = found[0][0].node_id, now
                self._actors[actor_id] = self._actors.pop(actor_id)
                self._settle_on(found[0][0], wish, now)
                effects.append(ActorPlaced(actor_id, actor.node_id))

    # ------------------------------------------------------------ answers

    @staticmethod
    def _tell(key: Key, placements: list[tuple[bytes, int]], effects: list[Effect], queued: bool = False) -> None:
        effects.append(TellPlaced(key[0], LeasesPlaced(key[1], key[2], placements, queued=queued)))

    # ------------------------------------------------------------ time

    def _on_time(self, event: TimePassed, now: float, effects: list[Effect]) -> None:
        self._looked_at = now
        if self._nodes.end_ghosts(now):
            self._refuse_impossible(effects)
            effects.append(AskActorsAgain())
        for view in self._nodes.end_promises(now):
            self._offer(view, now, effects)
        for key, demand in list(self._demands.items()):
            if (
                now - demand.since >= QUEUED_AFTER_S * (len(demand.queued_at) + 1)
                and len(demand.queued_at) < QUEUES_MAX
            ):
                self._queue_somewhere(key, demand, effects)
        self._move_actors(None, now, effects)

    def _queue_somewhere(self, key: Key, demand: Demand, effects: list[Effect]) -> None:
        able = self._nodes.any_of(demand.shape, demand.wish, self._dice)
        others = [view for view in able if view.node_id not in demand.queued_at]
        if demand.wish.strategy.get(KIND) not in GLOBAL_KINDS:  # at home it waits anyway
            others = [view for view in others if view.node_id != demand.wish.asker]
        view = best_queue(others, demand.wish, self._dice)
        if view is None:
            return
        demand.queued_at.append(view.node_id)
        self._tell(key, [(view.node_id, 1)], effects, queued=True)


def _oldest(same: dict[Key, Demand]) -> Demand:
    """Of those that wait with a shape, the one that has waited longest."""
    return next(iter(same.values()))


def _first(_below: int) -> int:
    """Dice for texts."""
    return 0


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
