"""What the global scheduler knows of nodes, kept so that no decision looks at all of them.

Purpose: views, what was promised on top of them, nodes that went lately, and for a *shape* (demand and strategy) the nodes that are worth a look.

Design. A thousand nodes ask thousands of times a second, and a look at every node for each question was what saturated first in simulated
clusters. So:

- which nodes could ever serve a shape is remembered with the shape, until membership or somebody's total changes (`_epoch`);
- up to SAMPLE_MAX such nodes are all looked at. Of more, SAMPLE_MIN with room and two more for each that is placed are taken, up to SAMPLE_MAX, from
  where the dice say on, after at most SCANNED_MAX looks: random samples of that size are nearly as level as a look at all. For what asks for CPUs
  the nodes without a free one are in no list at all, so a full cluster costs nothing;
- nodes that a wish names (affinity, inputs, labels that it likes) are always in the sample.

Who is not found by a sample that has nobody with room waits, and is found by the next heartbeat of any node with room.

What it does not do: choose (`scheduling.node_policy`), remember who waits (`global_scheduler`).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from shoal.protocol.gcs_messages import NodeLoad
from shoal.protocol.resources import CPU, Resources, add, fits, subtract
from shoal.protocol.strategies import KIND, LABELS, NODE_AFFINITY, keeps
from shoal.scheduling.node_policy import Dice, NodeView, Wish, can_ever

PROMISE_SEEN_S = 0.02
PROMISED_S = 0.25
REPLACED_WITHIN_S = 30.0
SAMPLE_MIN = 8
SAMPLE_MAX = 64
SCANNED_MAX = 256
SHAPES_MAX = 256  #: shapes remembered that nobody waits with

assert PROMISE_SEEN_S < PROMISED_S
assert SAMPLE_MAX <= SCANNED_MAX


@dataclass(slots=True)
class Promise:
    """What was placed on a node that may not know it yet."""

    at: float
    demand: Resources
    count: int


@dataclass(slots=True, eq=False)
class Shape:
    """What is the same for all wishes of a demand and a strategy."""

    key: tuple[Any, ...]
    wish: Wish
    #: nodes that could ever serve it, as of `epoch`, in the order of joining
    able: list[NodeView] = field(default_factory=list)
    #: those of them that it likes best, if it has soft rules
    liked: list[NodeView] = field(default_factory=list)
    epoch: int = -1
    #: how many wait with it
    waiting: int = 0


class _Roomy:
    """Nodes with a free CPU: a list in which any place is found, and any node removed, at once."""

    __slots__ = ("_index", "views")

    def __init__(self) -> None:
        self.views: list[NodeView] = []
        self._index: dict[bytes, int] = {}

    def update(self, view: NodeView, belongs: bool) -> None:
        """A node has room now, or has none."""
        index = self._index.get(view.node_id)
        if belongs == (index is not None):
            return
        if index is None:
            self._index[view.node_id] = len(self.views)
            self.views.append(view)
            return
        last = self.views.pop()
        del self._index[view.node_id]
        if last is not view:
            self.views[index] = last
            self._index[last.node_id] = index


class NodeViews:
    """All nodes that are not dead."""

    __slots__ = ("_epoch", "_ghosts", "_promised_at", "_promises", "_roomy", "_shapes", "_views")

    def __init__(self) -> None:
        #: in the order of joining. `available` is what the node said last, less its promises
        self._views: dict[bytes, NodeView] = {}
        #: nodes that died or drain, as they were -> until when they may be replaced
        self._ghosts: dict[bytes, tuple[NodeView, float]] = {}
        #: node -> what was promised there, oldest first; never empty
        self._promises: dict[bytes, deque[Promise]] = {}
        #: when something was promised to whom, oldest first; longer than the promises
        self._promised_at: deque[tuple[float, bytes]] = deque()
        self._roomy = _Roomy()
        #: shapes looked at lately; all that somebody waits with
        self._shapes: OrderedDict[tuple[Any, ...], Shape] = OrderedDict()
        #: grows when it may have changed who could ever serve what
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._views)

    def get(self, node_id: bytes) -> NodeView | None:
        """What is known of a node; None if it is dead or unknown."""
        return self._views.get(node_id)

    def all(self) -> list[NodeView]:
        """What is known of each node."""
        return list(self._views.values())

    # ------------------------------------------------------------ nodes

    def up(self, node_id: bytes, name: str, total: Resources, labels: dict[str, str]) -> NodeView:
        """A node is connected (again); what is free there is not known yet."""
        view = self._views.get(node_id)
        if view is None:
            view = self._views[node_id] = NodeView(node_id, name, total, {}, labels)
        else:
            view.alive, view.total, view.available = True, total, {}
        self._promises.pop(node_id, None)
        self._changed(view)
        return view

    def away(self, node_id: bytes) -> None:
        """A node is not connected."""
        view = self._views.get(node_id)
        if view is not None:
            view.alive = False
            self._note_room(view)

    def gone(self, node_id: bytes, now: float) -> None:
        """A node is dead: another one like it may come."""
        view = self._views.pop(node_id, None)
        self._promises.pop(node_id, None)
        if view is not None:
            view.alive = False
            self._haunt(view, now)

    def drains(self, view: NodeView, now: float) -> None:
        """A node takes no new work."""
        view.draining = True
        self._haunt(view, now)

    def _haunt(self, view: NodeView, now: float) -> None:
        ghost = replace(view, alive=False, draining=False, available={})
        self._ghosts[view.node_id] = (ghost, now + REPLACED_WITHIN_S)
        self._changed(view)

    def spoke(self, view: NodeView, load: NodeLoad, now: float) -> None:
        """A heartbeat."""
        view.queued = sum(count for _, count in load.waiting)
        view.task_time_s = load.task_time_s
        view.actors = load.actors
        view.held = load.held
        view.available = dict(load.available)
        promises = self._promises.get(view.node_id)
        if promises is not None:
            while promises and now - promises[0].at >= PROMISE_SEEN_S:
                promises.popleft()
            if not promises:
                del self._promises[view.node_id]
            for promise in promises:
                self._take(view, promise)
        if view.total != load.total:
            view.total = load.total
            self._changed(view)
        else:
            self._note_room(view)

    def _changed(self, view: NodeView) -> None:
        self._epoch += 1
        self._note_room(view)

    def _note_room(self, view: NodeView) -> None:
        self._roomy.update(view, view.alive and not view.draining and view.available.get(CPU, 0) > 0)

    # ------------------------------------------------------------ promises

    def promise(self, view: NodeView, demand: Resources, count: int, now: float) -> None:
        """Something was placed on a node."""
        promise = Promise(now, demand, count)
        promises = self._promises.get(view.node_id)
        if promises is None:
            promises = self._promises[view.node_id] = deque()
        promises.append(promise)
        self._promised_at.append((now, view.node_id))
        self._take(view, promise)
        self._note_room(view)

    def end_promises(self, now: float) -> list[NodeView]:
        """Forget promises that are too old to be true; the nodes that have more room by that."""
        freed: dict[bytes, NodeView] = {}
        while self._promised_at and now - self._promised_at[0][0] >= PROMISED_S:
            node_id = self._promised_at.popleft()[1]
            promises = self._promises.get(node_id)
            while promises and now - promises[0].at >= PROMISED_S:
                promise = promises.popleft()
                view = freed[node_id] = self._views[node_id]
                add(view.available, {name: units * promise.count for name, units in promise.demand.items()})
                self._note_room(view)
            if not promises:
                self._promises.pop(node_id, None)
        return list(freed.values())

    @staticmethod
    def _take(view: NodeView, promise: Promise) -> None:
        subtract(view.available, {name: units * promise.count for name, units in promise.demand.items()})

    # ------------------------------------------------------------ ghosts

    def next_ghost_end(self) -> float | None:
        """When a node that went will not be waited for any more."""
        return min((until for _, until in self._ghosts.values()), default=None)

    def end_ghosts(self, now: float) -> bool:
        """Forget nodes that nobody has replaced in time; whether there were any."""
        over = [node_id for node_id, (_, until) in self._ghosts.items() if until <= now]
        for node_id in over:
            del self._ghosts[node_id]
        return bool(over)

    # ------------------------------------------------------------ shapes

    def shape(self, wish: Wish) -> Shape:
        """The shape of a wish.

        Raises:
            KeyError, TypeError, ValueError: its strategy makes no sense.
        """
        strategy = {name: value for name, value in wish.strategy.items() if name != "locality"}
        key = (tuple(sorted(wish.demand.items())), repr(strategy))
        shape = self._shapes.get(key)
        if shape is None:
            shape = Shape(key, Wish(wish.demand, strategy))
            self._refresh(shape)
            self._shapes[key] = shape
            if len(self._shapes) > SHAPES_MAX:
                self._forget_shapes()
        else:
            self._shapes.move_to_end(key)
            self._refresh(shape)
        return shape

    def _forget_shapes(self) -> None:
        for shape in [each for each in self._shapes.values() if not each.waiting][: SHAPES_MAX // 4]:
            del self._shapes[shape.key]

    def _refresh(self, shape: Shape) -> None:
        if shape.epoch == self._epoch:
            return
        shape.epoch = self._epoch
        wish = shape.wish
        shape.able = [view for view in self._views.values() if can_ever(view, wish)]
        soft = wish.strategy.get("soft") if wish.strategy.get(KIND) == LABELS else None
        shape.liked = [view for view in shape.able if keeps(soft, view.labels)] if soft else []

    def possible(self, shape: Shape) -> bool:
        """Whether some node could ever serve it, or could have until lately, and another one like it could."""
        self._refresh(shape)
        return bool(shape.able) or self.was_possible(shape)

    def was_possible(self, shape: Shape) -> bool:
        """Whether a node that went lately could have served it."""
        strategy = shape.wish.strategy
        if strategy.get(KIND) == NODE_AFFINITY and not strategy.get("soft"):
            return False  # another one is not that one
        return any(can_ever(ghost, shape.wish) for ghost, _ in self._ghosts.values())

    # ------------------------------------------------------------ samples

    def is_sampled(self, shape: Shape) -> bool:
        """Whether `with_room` looks at some only of the nodes that could serve a shape."""
        return len(shape.able) > SAMPLE_MAX

    def with_room(self, shape: Shape, wish: Wish, count: int, dice: Dice) -> list[NodeView]:
        """Nodes among which to place `count` of a wish of this shape: all that could ever, or a sample of those that can now."""
        self._refresh(shape)
        if len(shape.able) <= SAMPLE_MAX:
            return shape.able
        found: dict[bytes, NodeView] = {view.node_id: view for view in self._named(shape, wish)}
        enough = min(SAMPLE_MAX, SAMPLE_MIN + 2 * count)
        if shape.liked:
            self._scan(shape.liked, shape, dice, found, len(found) + enough)
        roomy = self._roomy.views
        source = roomy if CPU in wish.demand and len(roomy) < len(shape.able) else shape.able
        self._scan(source, shape, dice, found, len(found) + enough)
        return list(found.values())

    def _scan(
        self, source: list[NodeView], shape: Shape, dice: Dice, found: dict[bytes, NodeView], enough: int
    ) -> None:
        if not source:
            return
        start, demand, wish = dice(len(source)), shape.wish.demand, shape.wish
        for step in range(min(SCANNED_MAX, len(source))):
            view = source[(start + step) % len(source)]
            if view.alive and fits(demand, view.available) and can_ever(view, wish):
                found[view.node_id] = view
                if len(found) >= enough:
                    return

    def any_of(self, shape: Shape, wish: Wish, dice: Dice) -> list[NodeView]:
        """Nodes in whose queues a wish of this shape may wait: all that could serve it, or a sample."""
        self._refresh(shape)
        able = shape.able
        if len(able) <= SAMPLE_MAX:
            return able
        start = dice(len(able))
        found = {view.node_id: view for view in self._named(shape, wish)}
        for view in (able + able)[start : start + SAMPLE_MAX]:
            found[view.node_id] = view
        return list(found.values())

    def _named(self, shape: Shape, wish: Wish) -> Iterable[NodeView]:
        """The nodes that a wish names."""
        names = list(wish.locality)
        if wish.strategy.get(KIND) == NODE_AFFINITY:
            names.append(wish.strategy["node_id"])
        for node_id in names[:SAMPLE_MAX]:
            view = self._views.get(node_id)
            if view is not None and can_ever(view, shape.wish):
                yield view
