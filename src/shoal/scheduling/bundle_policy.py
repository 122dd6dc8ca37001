"""On which nodes the bundles of a placement group go: the four strategies, as pure functions of what there is.

Purpose: `place_bundles(bundles, strategy, views, ...)` names a node for each bundle, or says that there is no way; `why_never` and `why_not_now` put
that into words.

    STRICT_PACK     all on one node: the one that is left fullest          STRICT_SPREAD   no two on one node, or not at all
    PACK            on as few nodes as possible                            SPREAD          on as many nodes as possible

Design. Finding out whether bundles of several resources fit into nodes is bin packing, so there are two stages: a greedy placement, and a search
that improves on it or finds what it missed, over at most SEARCH_STEPS_MAX steps, for up to SEARCH_SIZE_MAX pairs. For a few nodes and bundles the
answer is therefore exact (the tests compare with one that tries everything); for many it is the greedy one if there is one. STRICT_SPREAD is a
matching and always exact.

Equal bundles are interchangeable: the search gives them to nodes in order. There are no dice: the same question has the same answer.

A group that has lost some bundles asks for those alone: `kept` are the nodes of the others.

How to extend: a strategy gets a constant, and a row in `_STRATEGIES`.

What it does not do: reserve (`gcs.placement_groups`), know tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from shoal.protocol.resources import Resources, add, fits, format_resources, format_total, subtract
from shoal.protocol.strategies import Rule, keeps
from shoal.scheduling.node_policy import NodeView

PACK = "PACK"
SPREAD = "SPREAD"
STRICT_PACK = "STRICT_PACK"
STRICT_SPREAD = "STRICT_SPREAD"

SEARCH_STEPS_MAX = 5_000
SEARCH_SIZE_MAX = 4_000  #: bundles x nodes
NODES_SHOWN_MAX = 5


@dataclass(slots=True)
class Question:
    """What is to be placed, and where it may go. Bundles and nodes are numbers here."""

    bundles: Sequence[Resources]
    free: list[Resources]  #: of each node; changed while trying, and as before after it
    allowed: list[list[int]]  #: of each bundle: the nodes that keep its rules, in order
    kept: set[int]  #: nodes that have bundles of the group
    permitted: list[set[int]]  #: the same as sets
    steps: int = 0  #: of the search
    order: list[int] = field(default_factory=list)  #: bundles, the largest first; equal ones stand together

    @property
    def searchable(self) -> bool:
        """Whether it is small enough for the search, and that has not gone on for too long."""
        return self.steps < SEARCH_STEPS_MAX and len(self.bundles) * len(self.free) <= SEARCH_SIZE_MAX

    def fits(self, bundle: int, node: int) -> bool:
        """Whether a bundle has room on a node beside what was put there."""
        return fits(self.bundles[bundle], self.free[node])

    def put(self, bundle: int, node: int) -> None:
        """Try a bundle on a node."""
        subtract(self.free[node], self.bundles[bundle])

    def take(self, bundle: int, node: int) -> None:
        """Undo `put`."""
        add(self.free[node], self.bundles[bundle])


Placement = dict[int, int]  #: bundle -> node


def place_bundles(
    bundles: Sequence[Resources],
    strategy: str,
    views: Sequence[NodeView],
    rules: Sequence[Sequence[Rule]] = (),
    kept: Sequence[bytes] = (),
) -> list[bytes] | None:
    """The node of each bundle, None if they cannot be placed on what is `available` in the views.

    Args:
        rules: those about labels of each bundle; empty for none.
        kept: the nodes of other bundles of the group, which stay.
    """
    nodes = [view for view in views if view.alive and not view.draining]
    numbers = {view.node_id: number for number, view in enumerate(nodes)}
    allowed = []
    for index in range(len(bundles)):
        mine = rules[index] if rules else ()
        allowed.append([number for number, view in enumerate(nodes) if keeps(mine, view.labels)])
    stay = {numbers[node_id] for node_id in kept if node_id in numbers}
    question = Question(bundles, [dict(view.available) for view in nodes], allowed, stay, list(map(set, allowed)))
    total: Resources = {}
    for view in nodes:
        add(total, view.total)
    question.order = sorted(range(len(bundles)), key=lambda index: _order(bundles[index], allowed[index], total))
    placement = _STRATEGIES[strategy](question, len(nodes))
    return None if placement is None else [nodes[placement[index]].node_id for index in range(len(bundles))]


def _order(bundle: Resources, allowed: list[int], total: Resources) -> tuple[object, ...]:
    """The largest first, by its share of what is scarcest for it; among equals those with the fewest nodes; equal bundles together."""
    share = max((units / total[name] for name, units in bundle.items() if total.get(name)), default=0.0)
    return -share, len(allowed), sorted(bundle.items()), allowed


# ---------------------------------------------------------------- STRICT_PACK, PACK


def _strict_pack(question: Question, nodes: int) -> Placement | None:
    candidates = [node for node in range(nodes) if node in question.kept] if question.kept else list(range(nodes))
    best, best_left = None, 0.0
    for node in candidates:
        left = _left_if_all_on(question, node)
        if left is not None and (best is None or left < best_left):
            best, best_left = node, left
    return None if best is None else dict.fromkeys(range(len(question.bundles)), best)


def _left_if_all_on(question: Question, node: int) -> float | None:
    """How much of its fullest resource would be free if all went to a node; None if that is not possible."""
    if any(node not in permitted for permitted in question.permitted):
        return None
    rest = dict(question.free[node])
    for bundle in question.bundles:
        subtract(rest, bundle)
    names = {name for bundle in question.bundles for name in bundle}
    if any(rest.get(name, 0) < 0 for name in names):
        return None
    return min((rest[name] / max(1, question.free[node][name]) for name in names), default=0.0)


def _pack(question: Question, nodes: int) -> Placement | None:
    if not question.kept and (single := _strict_pack(question, nodes)) is not None:
        return single
    best = _pack_greedily(question, nodes)
    most = len(question.order)
    if best is not None:
        most = len(set(best.values()) - question.kept) - 1
    # Fewer new nodes than the greedy way, or any way at all.
    for count in range(most + 1):
        if not question.searchable:
            break
        better = _search(question, _can_pack(question, count), lambda chosen, node: (node not in chosen, node))
        if better is not None:
            return better
    return best


def _pack_greedily(question: Question, nodes: int) -> Placement | None:
    """Fill the node that takes the most bundles, then the next; those that have bundles of the group come first."""
    placement: Placement = {}
    left = list(question.order)
    #: how many each node took when it was last looked at: seldom more than it takes now
    heap = [(node not in question.kept, -len(left), node) for node in range(nodes)]
    heapify(heap)
    while left and heap:
        is_new, _, node = heappop(heap)
        taken = _taken(question, node, left)
        if not taken:
            continue
        if heap and (is_new, -len(taken), node) > heap[0]:
            heappush(heap, (is_new, -len(taken), node))
            continue
        for bundle in taken:
            question.put(bundle, node)
            placement[bundle] = node
        left = [bundle for bundle in left if bundle not in placement]
    _clear(question, placement)
    return placement if not left else None


def _taken(question: Question, node: int, left: list[int]) -> list[int]:
    """The bundles that a node takes, the largest first."""
    taken = []
    for bundle in left:
        if node in question.permitted[bundle] and question.fits(bundle, node):
            question.put(bundle, node)
            taken.append(bundle)
    for bundle in taken:
        question.take(bundle, node)
    return taken


def _clear(question: Question, placement: Placement) -> None:
    for bundle, node in placement.items():
        question.take(bundle, node)


def _can_pack(question: Question, count: int) -> Callable[[Placement, int], bool]:
    """At most `count` nodes that have no bundle of the group yet."""
    return lambda placement, left: len(set(placement.values()) - question.kept) <= count


# ---------------------------------------------------------------- SPREAD, STRICT_SPREAD


def _strict_spread(question: Question, nodes: int) -> Placement | None:
    """A matching of bundles and nodes: each bundle finds a node, sending others to another if need be."""
    holder: dict[int, int] = {}
    for bundle in question.order:
        if not _match(question, bundle, holder, set()):
            return None
    return {bundle: node for node, bundle in holder.items()}


def _match(question: Question, bundle: int, holder: dict[int, int], seen: set[int]) -> bool:
    """Augment `holder` (node -> bundle) by a path that begins at `bundle`, found in breadth, as it may be long."""
    came_from: dict[int, int] = {}  # node -> the bundle that would take it
    queue = [bundle]
    for current in queue:
        for node in question.allowed[current]:
            if node in seen or node in question.kept or not question.fits(current, node):
                continue
            seen.add(node)
            came_from[node] = current
            if node in holder:
                queue.append(holder[node])
                continue
            while True:  # everybody on the path moves on
                mover = came_from[node]
                before = next((each for each, held in holder.items() if held == mover), None)
                holder[node] = mover
                if before is None:
                    return True
                node = before
    return False


def _spread(question: Question, nodes: int) -> Placement | None:
    strict = _strict_spread(question, nodes)
    if strict is not None:
        return strict
    best = _spread_greedily(question)
    upper = min(len(question.order), nodes - len(question.kept))
    least = 0 if best is None else len(set(best.values()) - question.kept) + 1
    for count in range(upper, least - 1, -1):
        if not question.searchable:
            break
        better = _search(question, _can_spread(question, count), lambda chosen, node: (node in chosen, node))
        if better is not None:
            return better
    return best


def _spread_greedily(question: Question) -> Placement | None:
    """Each bundle to the node with the fewest bundles of the group in which it has room."""
    placement: Placement = {}
    counts = dict.fromkeys(question.kept, 1)
    for bundle in question.order:
        able = [node for node in question.allowed[bundle] if question.fits(bundle, node)]
        if not able:
            _clear(question, placement)
            return None
        node = min(able, key=lambda node: (counts.get(node, 0), node))
        counts[node] = counts.get(node, 0) + 1
        question.put(bundle, node)
        placement[bundle] = node
    _clear(question, placement)
    return placement


def _can_spread(question: Question, count: int) -> Callable[[Placement, int], bool]:
    """At least `count` nodes that have no bundle of the group yet, in the end."""
    return lambda placement, left: len(set(placement.values()) - question.kept) + left >= count


# ---------------------------------------------------------------- the search


def _search(
    question: Question,
    hopeful: Callable[[Placement, int], bool],
    prefer: Callable[[set[int], int], tuple[bool, int]],
) -> Placement | None:
    """Try bundles on nodes, one after the other and back, as long as it is `hopeful(placement, bundles left)`; None also when it takes too long."""
    order = question.order
    placement: Placement = {}
    tried: list[list[int]] = [[]]  # of each level: the nodes still to be tried, the next one last
    tried[0] = _candidates(question, 0, placement, prefer)
    while True:
        level = len(tried) - 1
        if level == len(order):
            _clear(question, placement)
            return placement
        bundle = order[level]
        if bundle in placement:
            question.take(bundle, placement.pop(bundle))
        while tried[level]:
            node = tried[level].pop()
            question.steps += 1
            if question.fits(bundle, node):
                placement[bundle] = node
                if hopeful(placement, len(order) - level - 1):
                    question.put(bundle, node)
                    break
                del placement[bundle]
        if bundle in placement:
            following = level + 1
            tried.append(_candidates(question, following, placement, prefer) if following < len(order) else [])
            continue
        tried.pop()
        if not tried or question.steps >= SEARCH_STEPS_MAX:
            _clear(question, placement)
            return None


def _candidates(
    question: Question, level: int, placement: Placement, prefer: Callable[[set[int], int], tuple[bool, int]]
) -> list[int]:
    """The nodes for the bundle of a level, the best one last. Of equal bundles a later one is on no earlier node than the one before it."""
    bundle = question.order[level]
    nodes = question.allowed[bundle]
    if level:
        before = question.order[level - 1]
        if question.bundles[before] == question.bundles[bundle] and question.allowed[before] == nodes:
            nodes = [node for node in nodes if node >= placement[before]]
    chosen = set(placement.values()) | question.kept
    return sorted(nodes, key=lambda node: prefer(chosen, node), reverse=True)


_STRATEGIES: dict[str, Callable[[Question, int], Placement | None]] = {
    PACK: _pack,
    SPREAD: _spread,
    STRICT_PACK: _strict_pack,
    STRICT_SPREAD: _strict_spread,
}
STRATEGIES = tuple(_STRATEGIES)


# ---------------------------------------------------------------- reasons


def why_never(
    bundles: Sequence[Resources],
    strategy: str,
    views: Sequence[NodeView],
    rules: Sequence[Sequence[Rule]] = (),
    kept: Sequence[bytes] = (),
    indices: Sequence[int] = (),
) -> str:
    """Why the nodes that there are could not take the bundles even if nothing else ran there; empty if they could.

    Args:
        indices: the numbers of the bundles in their group, if these are not all of it.
    """
    empty = [
        NodeView(view.node_id, view.name, view.total, view.total, view.labels, alive=True, draining=view.draining)
        for view in views
    ]
    if place_bundles(bundles, strategy, empty, rules, kept) is not None:
        return ""
    for index, bundle in enumerate(bundles):
        mine = rules[index] if rules else ()
        able = [view for view in empty if not view.draining and keeps(mine, view.labels)]
        if not any(fits(bundle, view.total) for view in able):
            where = " with the labels that it asks for" if mine else ""
            number = indices[index] if indices else index
            return (
                f"bundle {number} asks for {format_resources(bundle)}, and no node{where} has that: {_nodes_text(able, bundle)}. "
                "Ask for less, or start a node that has it"
            )
    asked: Resources = {}
    for bundle in bundles:
        add(asked, bundle)
    way = {
        STRICT_PACK: "on one node",
        STRICT_SPREAD: f"on {len(bundles)} different nodes" + (" beside those of the others" if kept else ""),
    }.get(strategy, "together")
    return (
        f"its {len(bundles)} bundles ({format_resources(asked)}) do not fit {way} into the nodes there are: {_nodes_text(empty, asked)}. "
        "Ask for less, or start more nodes"
    )


def why_not_now(bundles: Sequence[Resources], strategy: str, views: Sequence[NodeView]) -> str:
    """Why the bundles wait, though the nodes could take them if less ran there."""
    asked: Resources = {}
    for bundle in bundles:
        add(asked, bundle)
    shown = []
    for view in views[:NODES_SHOWN_MAX]:
        free = {name: max(0, view.available.get(name, 0)) for name in asked}
        shown.append(f"{view.name} has {format_resources(free)} free")
    more = f"; and {len(views) - NODES_SHOWN_MAX} more nodes" if len(views) > NODES_SHOWN_MAX else ""
    return f"its {len(bundles)} bundles ({format_resources(asked)}, {strategy}) wait for room: {'; '.join(shown)}{more}"


def _nodes_text(views: Sequence[NodeView], asked: Resources) -> str:
    shown = [f"{view.name} has {format_total(view.total, asked)}" for view in views[:NODES_SHOWN_MAX]]
    if len(views) > NODES_SHOWN_MAX:
        shown.append(f"{len(views) - NODES_SHOWN_MAX} more nodes")
    return "; ".join(shown) or "there is none"
