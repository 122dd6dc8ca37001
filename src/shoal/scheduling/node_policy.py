"""On which nodes work goes: the policies of the global scheduler, as pure functions of what there is.

Purpose: `place(views, wish, count, dice)` deals out leases or actors; `can_ever` and `why_never` say whether anybody could ever take them.

Design. A node that can take something now has *room*: so many times the demand fits into what is free there. What is placed is
taken from the room of the nodes by the caller; nothing here changes a view.

*Default*: the lowest estimated waiting time. A node with room makes nobody wait. With inputs elsewhere the estimate is

    (queue + 1) x average task time / how many run side by side       (0 with room)
    + bytes of the inputs that the node does not have / bandwidth

so a task goes to its data even where it has to queue, if moving the data would take longer. Without inputs all nodes with room are equal and
the leases are dealt out so that the *room left* is level: a node that is nearly full keeps what it has for the tasks that its own tasks submit.

*SPREAD*: equal shares for all nodes with room, the least used ones first. *Affinity*: the node, full or not, since nobody else will do.
*Labels*: the default among those that keep the hard rules, and among those that keep the soft ones too as long as they have room.

An *actor* goes where the most room is, among equals where the fewest actors are, then to the node that asked for it.

Ties: candidates are turned by a throw of the dice, and sorting is stable. Dice are an argument (`dice(n)` is a number below n).

How to extend: a strategy gets a constant in `protocol.strategies` and a branch in `can_ever` and `place`.

What it does not do: remember what was placed (`gcs.global_scheduler`), place groups of bundles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.protocol.resources import Resources, fits, format_resources, format_total
from shoal.protocol.strategies import GLOBAL_KINDS, KIND, LABELS, NODE_AFFINITY, SPREAD, describe, keeps

#: `dice(n)` is one of 0 ... n - 1
Dice = Callable[[int], int]

BANDWIDTH_BYTES_S = 1e9  #: between nodes, as long as nobody has measured it
TASK_TIME_UNKNOWN_S = 0.1  #: what a node is taken to need for a task, as long as it has not said
ROOM_MAX = 1 << 20  #: of a node for what asks for nothing
LOCAL_PLACED_MAX = 64  #: leases with inputs elsewhere that are placed in one go: each is weighed alone
NODES_SHOWN_MAX = 5
NOBODY_NOW = "no node that is there now can give that"


@dataclass(slots=True)
class NodeView:
    """What a policy sees of a node."""

    node_id: bytes
    name: str  #: for texts
    total: Resources
    available: Resources  #: what was promised since the node spoke last is taken off
    labels: dict[str, str] = field(default_factory=dict)
    queued: int = 0  #: how many wait there
    task_time_s: float = 0.0  #: exponential average; 0: not known
    actors: int = 0  #: how many live or wait there
    held: Resources = field(default_factory=dict)  #: by actors and bundles
    alive: bool = True  #: connected; one that is not may come back
    draining: bool = False


@dataclass(slots=True)
class Wish:
    """What is to be placed."""

    demand: Resources
    strategy: dict[str, Any] = field(default_factory=dict)
    #: bytes of its inputs by node
    locality: dict[bytes, int] = field(default_factory=dict)
    #: the node that cannot serve it at once: not asked again, unless its strategy or inputs say so
    asker: bytes = b""
    #: an actor: one, for long. The asker is as good as others, and preferred to its equals
    is_actor: bool = False


# ---------------------------------------------------------------- single nodes


def can_ever(view: NodeView, wish: Wish) -> bool:
    """Whether the node could serve it if nothing else ran there."""
    if view.draining or not fits(wish.demand, view.total):
        return False
    strategy = wish.strategy
    kind = strategy.get(KIND)
    if kind == NODE_AFFINITY and not strategy.get("soft"):
        return bool(view.node_id == strategy["node_id"])
    if kind == LABELS:
        return keeps(strategy.get("hard") or (), view.labels)
    return True


def room(view: NodeView, demand: Resources) -> int:
    """How many times `demand` fits into what is free."""
    available = view.available
    times = ROOM_MAX
    for name, units in demand.items():
        times = min(times, max(0, available.get(name, 0)) // units)
    return times


def waiting_s(view: NodeView, wish: Wish, queued: int, bandwidth: float = BANDWIDTH_BYTES_S) -> float:
    """After how long a task would start there, if `queued` wait before it; 0 wait before it when there is room. Who would wait for actors or
    bundles to end waits for ever."""
    wait_s = 0.0
    if queued:
        side_by_side = ROOM_MAX
        for name, units in wish.demand.items():
            side_by_side = min(side_by_side, (view.total.get(name, 0) - view.held.get(name, 0)) // units)
        if side_by_side <= 0:
            return math.inf
        wait_s = queued * (view.task_time_s or TASK_TIME_UNKNOWN_S) / side_by_side
    here = wish.locality.get(view.node_id, 0)
    return wait_s + (sum(wish.locality.values()) - here) / bandwidth


def used_share(view: NodeView) -> float:
    """How much of its scarcest resource a node has given away: 0 for an idle one."""
    share = 0.0
    for name, units in view.total.items():
        if units:
            share = max(share, 1 - view.available.get(name, 0) / units)
    return share


# ---------------------------------------------------------------- dealing out


def level_rest(rooms: Sequence[int], count: int) -> list[int]:
    """Deal out `count` so that what is left of the rooms is level: the same as giving one after the other to the one with the most room (the first
    of equals)."""
    given = [0] * len(rooms)
    order = sorted(range(len(rooms)), key=lambda index: -rooms[index])
    left = min(count, sum(rooms))
    level = rooms[order[0]] if order else 0
    for position in range(len(order)):
        # All before this one stand at `level`, and this one joins them.
        below = rooms[order[position + 1]] if position + 1 < len(order) else 0
        step = min(level - below, left // (position + 1))
        left -= step * (position + 1)
        level -= step
        if level > below or not left:
            for each in order[: position + 1]:
                given[each] = rooms[each] - level
            for each in sorted(order[: position + 1])[:left]:
                given[each] += 1
            break
    return given


def equal_shares(rooms: Sequence[int], count: int) -> list[int]:
    """Deal out `count` by turns, to each as much as it has room for."""
    given = [0] * len(rooms)
    left = min(count, sum(rooms))
    open_to = [index for index, size in enumerate(rooms) if size]
    while left:
        share = max(1, left // len(open_to))
        still = []
        for index in open_to:
            gift = min(share, rooms[index] - given[index], left)
            given[index] += gift
            left -= gift
            if given[index] < rooms[index]:
                still.append(index)
        open_to = still
    return given


# ---------------------------------------------------------------- placing


def place(
    views: Sequence[NodeView], wish: Wish, count: int, dice: Dice, *, all_can: bool = False
) -> list[tuple[NodeView, int]]:
    """Where up to `count` of it go now; what is not dealt out must wait for room. `all_can`: `can_ever` is true for all `views`."""
    strategy = wish.strategy
    kind = strategy.get(KIND)
    if kind == NODE_AFFINITY:
        for view in views:
            if view.node_id == strategy["node_id"] and view.alive and can_ever(view, wish):
                return [(view, count)]
        if not strategy.get("soft"):
            return []
    able = [view for view in views if view.alive and (all_can or can_ever(view, wish))]
    if not able:
        return []
    turn = dice(len(able))
    able = able[turn:] + able[:turn]
    if wish.is_actor:
        able.sort(key=lambda view: (view.actors, view.node_id != wish.asker))
    if kind == SPREAD:
        able.sort(key=used_share)
        return _dealt(able, wish, count, equal_shares)
    if kind == LABELS and strategy.get("soft"):
        soft = strategy["soft"]
        first = _by_waiting([view for view in able if keeps(soft, view.labels)], wish, count)
        left = count - sum(number for _, number in first)
        if not left:
            return first
        return first + _by_waiting([view for view in able if not keeps(soft, view.labels)], wish, left)
    return _by_waiting(able, wish, count)


def _by_waiting(able: list[NodeView], wish: Wish, count: int) -> list[tuple[NodeView, int]]:
    if wish.locality:
        return _by_inputs(able, wish, count)
    if wish.strategy.get(KIND) not in GLOBAL_KINDS and not wish.is_actor:
        able = [view for view in able if view.node_id != wish.asker]
    return _dealt(able, wish, count, level_rest)


def _dealt(
    able: list[NodeView], wish: Wish, count: int, deal: Callable[[Sequence[int], int], list[int]]
) -> list[tuple[NodeView, int]]:
    given = deal([room(view, wish.demand) for view in able], count)
    return [(view, number) for view, number in zip(able, given, strict=True) if number]


def _by_inputs(able: list[NodeView], wish: Wish, count: int) -> list[tuple[NodeView, int]]:
    """One after the other to the node where it starts first, queueing and moving inputs included."""
    rooms = [room(view, wish.demand) for view in able]
    given = [0] * len(able)

    def start_s(index: int) -> tuple[float, int]:
        over = given[index] - rooms[index]
        queued = able[index].queued + over + 1 if over >= 0 else 0
        return waiting_s(able[index], wish, queued), queued

    for _ in range(min(count, LOCAL_PLACED_MAX) if able else 0):
        given[min(range(len(able)), key=start_s)] += 1
    return [(view, number) for view, number in zip(able, given, strict=True) if number]


def best_queue(views: Sequence[NodeView], wish: Wish, dice: Dice) -> NodeView | None:
    """Where something that waits for room in vain starts first, room or not."""
    able = [view for view in views if view.alive and can_ever(view, wish)]
    if not able:
        return None
    turn = dice(len(able))
    return min(able[turn:] + able[:turn], key=lambda view: (waiting_s(view, wish, view.queued + 1), view.queued))


# ---------------------------------------------------------------- reasons


def why_never(views: Sequence[NodeView], wish: Wish, name: str) -> str:
    """The reason why no node can ever serve it: what was asked, what there is, and what to do."""
    asked = f"{name or 'a task'} asks for {format_resources(wish.demand)}"
    wanted = describe(wish.strategy)
    if wanted:
        asked += f" {wanted}"
    strategy = wish.strategy
    if strategy.get(KIND) == NODE_AFFINITY and not strategy.get("soft"):
        target = next((view for view in views if view.node_id == strategy["node_id"]), None)
        if target is None:
            return f"{asked}, which is dead or was never part of this cluster; soft=True lets it run elsewhere then"
        if target.draining:
            return f"{asked}, which is draining and takes no new work; soft=True lets it run elsewhere then"
        return f"{asked}, which has {format_total(target.total, wish.demand)} in all"
    there = [
        f"{view.name} has {format_total(view.total, wish.demand)}{_state(view)}" for view in views[:NODES_SHOWN_MAX]
    ]
    if len(views) > NODES_SHOWN_MAX:
        there.append(f"{len(views) - NODES_SHOWN_MAX} more nodes have no more of it")
    nodes = "; ".join(there) or "there is no node"
    return f"{asked}; no node of the cluster can ever give that: {nodes}. Ask for less, or start a node that has it"


def why_waiting(views: Sequence[NodeView], wish: Wish, name: str) -> str:
    """The reason why it is not placed now."""
    able = [view for view in views if can_ever(view, wish)]
    asked = f"{name or 'a task'} asks for {format_resources(wish.demand)}"
    there = []
    for view in able[:NODES_SHOWN_MAX]:
        free = {each: max(0, view.available.get(each, 0)) for each in wish.demand}
        of = {each: view.total.get(each, 0) for each in wish.demand}
        there.append(f"{view.name} has {format_resources(free)} free of {format_resources(of)}{_state(view)}")
    if len(able) > NODES_SHOWN_MAX:
        there.append(f"{len(able) - NODES_SHOWN_MAX} more nodes have no room either")
    return f"{asked}; {'; '.join(there) or NOBODY_NOW}"


def _state(view: NodeView) -> str:
    if not view.alive:
        return " (not connected now)"
    return " (draining)" if view.draining else ""
