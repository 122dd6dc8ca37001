"""Policies over nodes: single rules, and dumb twins for dealing out."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.protocol import strategies
from shoal.scheduling.node_policy import (
    LOCAL_PLACED_MAX,
    ROOM_MAX,
    NodeView,
    Wish,
    best_queue,
    can_ever,
    equal_shares,
    level_rest,
    place,
    room,
    used_share,
    why_never,
    why_waiting,
)

CPU = 10_000


def first(_below: int) -> int:
    return 0


def node(number: int, free: float = 4, total: float = 4, **more: Any) -> NodeView:
    return NodeView(bytes([number]) * 16, f"n{number}", {"CPU": int(total * CPU)}, {"CPU": int(free * CPU)}, **more)


def placed(views: list[NodeView], count: int, cpus: float = 1, **wish: Any) -> dict[str, int]:
    demand = {"CPU": int(cpus * CPU)} if cpus else {}
    found = place(views, Wish(demand, **wish), count, first)
    return {view.name: number for view, number in found}


# ---------------------------------------------------------------- dealing out


@given(st.lists(st.integers(0, 12), max_size=8), st.integers(0, 60))
def test_the_rest_is_levelled_as_by_hand(rooms: list[int], count: int) -> None:
    left, given_ = list(rooms), [0] * len(rooms)
    for _ in range(count):
        if not any(left):
            break
        index = left.index(max(left))
        left[index] -= 1
        given_[index] += 1
    assert level_rest(rooms, count) == given_


@given(st.lists(st.integers(0, 12), max_size=8), st.integers(0, 60))
def test_equal_shares_are_equal_but_for_room(rooms: list[int], count: int) -> None:
    given_ = equal_shares(rooms, count)
    assert sum(given_) == min(count, sum(rooms))
    assert all(number <= size for number, size in zip(given_, rooms, strict=True))
    unfilled = [number for number, size in zip(given_, rooms, strict=True) if number < size]
    assert not unfilled or max(given_) <= min(unfilled) + 1


def test_dealing_out_to_many_nodes_is_cheap() -> None:
    assert level_rest([64] * 10_000, 500_000) == [50] * 10_000
    assert equal_shares([ROOM_MAX] * 10_000, 500_000) == [50] * 10_000


# ---------------------------------------------------------------- default


def test_the_default_leaves_level_rooms_and_does_not_ask_the_asker() -> None:
    views = [node(1, 4), node(2, 2), node(3, 4)]
    assert placed(views, 4) == {"n1": 2, "n3": 2}
    assert placed(views, 100) == {"n1": 4, "n2": 2, "n3": 4}
    assert placed(views, 4, asker=views[0].node_id) == {"n2": 1, "n3": 3}


def test_nobody_gets_what_does_not_fit_now_or_ever() -> None:
    views = [node(1, 0), node(2, 4, alive=False), node(3, 4, draining=True), node(4, 1, total=1)]
    assert placed(views, 5) == {"n4": 1}
    assert placed(views, 5, cpus=2) == {}
    wide = Wish({"CPU": 2 * CPU})
    assert [view.name for view in views if can_ever(view, wide)] == ["n1", "n2"]


def test_what_asks_for_nothing_is_shared() -> None:
    assert placed([node(1), node(2)], 10, cpus=0) == {"n1": 5, "n2": 5}
    assert room(node(1, -1), {"CPU": 1}) == 0


def test_dice_break_ties() -> None:
    views = [node(1), node(2), node(3)]
    found = {place(views, Wish({"CPU": CPU}), 1, lambda n, turn=turn: turn)[0][0].name for turn in range(3)}
    assert found == {"n1", "n2", "n3"}


# ---------------------------------------------------------------- inputs


def test_a_task_goes_to_its_inputs() -> None:
    views = [node(1), node(2)]
    assert placed(views, 1, locality={views[1].node_id: 10**8}) == {"n2": 1}
    assert placed(views, 1, locality={views[0].node_id: 10**6, views[1].node_id: 10**8}) == {"n2": 1}


def test_it_queues_at_its_inputs_only_if_that_is_shorter() -> None:
    views = [node(1), node(2, 0, queued=3, task_time_s=0.04)]  # (3 + 1) x 0.04 / 4 = 40 ms
    assert placed(views, 1, locality={views[1].node_id: 10**8}) == {"n2": 1}  # 100 ms to move
    assert placed(views, 1, locality={views[1].node_id: 10**7}) == {"n1": 1}  # 10 ms to move


def test_it_does_not_wait_for_actors_to_end() -> None:
    inputs = {node(1).node_id: 5_000_000}
    assert placed([node(1, 0, task_time_s=0.001), node(2)], 1, locality=inputs) == {"n1": 1}
    assert placed([node(1, 0, task_time_s=0.001, held={"CPU": 3 * CPU}), node(2)], 1, locality=inputs) == {"n1": 1}
    assert placed([node(1, 0, task_time_s=0.001, held={"CPU": 4 * CPU}), node(2)], 1, locality=inputs) == {"n2": 1}
    full = [node(number, 0, held={"CPU": 4 * CPU}) for number in (1, 2)]
    assert placed(full, 4, locality=inputs) == {"n1": 2, "n2": 2}, "if there is nothing else"


def test_many_with_the_same_inputs_overflow_to_others() -> None:
    views = [node(1), node(2, task_time_s=0.1)]
    found = placed(views, 6, locality={views[1].node_id: 5 * 10**7})  # 50 ms to move
    assert found == {"n2": 5, "n1": 1}  # the 5th queues for 25 ms, a 6th would for 50
    assert placed([node(1, 0), node(2, 0)], 5, locality={views[1].node_id: 10**9}) == {"n2": 5}
    assert sum(placed([node(1, 10**6, 10**6)], 1000, locality={b"x": 1}).values()) == LOCAL_PLACED_MAX


# ---------------------------------------------------------------- strategies


def test_spread_deals_equal_shares_to_the_least_used_first() -> None:
    views = [node(1, 1), node(2, 4), node(3, 3)]
    assert placed(views, 6, strategy=strategies.spread()) == {"n2": 3, "n3": 2, "n1": 1}
    assert placed(views, 1, strategy=strategies.spread(), asker=views[1].node_id) == {"n2": 1}
    assert used_share(views[0]) == 0.75


def test_affinity_hard_and_soft() -> None:
    views = [node(1), node(2, 0)]
    for soft in (False, True):
        on_second = strategies.node_affinity(views[1].node_id, soft)
        assert placed(views, 3, strategy=on_second) == {"n2": 3}  # it queues there
        wide = placed(views, 3, cpus=5, strategy=on_second)
        assert wide == {}
    gone = b"g" * 16
    assert placed(views, 3, strategy=strategies.node_affinity(gone, False)) == {}
    assert placed(views, 3, strategy=strategies.node_affinity(gone, True)) == {"n1": 3}
    views[1].draining = True
    assert placed(views, 1, strategy=strategies.node_affinity(views[1].node_id, False)) == {}
    assert placed(views, 1, strategy=strategies.node_affinity(views[1].node_id, True)) == {"n1": 1}


def test_labels_hard_and_soft() -> None:
    views = [node(1, labels={"zone": "a", "disk": "ssd"}), node(2, labels={"zone": "b"}), node(3)]

    def on(hard: list[Any], soft: list[Any] | None = None, count: int = 9) -> dict[str, int]:
        return placed(views, count, strategy=strategies.labels(hard, soft or []))

    assert on([("zone", strategies.IN, ["a", "c"])]) == {"n1": 4}
    assert on([("zone", strategies.NOT_IN, ["a"])]) == {"n2": 4, "n3": 4}
    assert on([("zone", strategies.EXISTS, [])], count=2) == {"n1": 1, "n2": 1}
    assert on([("zone", strategies.NOT_EXISTS, [])]) == {"n3": 4}
    assert on([("zone", strategies.EXISTS, []), ("disk", strategies.NOT_EXISTS, [])]) == {"n2": 4}
    assert on([], [("disk", strategies.IN, ["ssd"])], count=6) == {"n1": 4, "n2": 1, "n3": 1}
    assert on([("zone", strategies.IN, ["z"])]) == {}
    with pytest.raises(ValueError, match="operator"):
        strategies.keeps([("zone", "like", ["a"])], {})


def test_the_shortest_queue_when_there_is_no_room() -> None:
    views = [node(1, 0, queued=9, task_time_s=0.01), node(2, 0, queued=3, task_time_s=1), node(3, 4, alive=False)]
    found = best_queue(views, Wish({"CPU": CPU}), first)
    assert found is views[0]
    assert best_queue(views, Wish({"GPU": CPU}), first) is None


@given(st.integers(0, 2**32))
def test_random_wishes_never_exceed_rooms_or_rules(seed: int) -> None:
    rng = random.Random(seed)
    views = []
    for number in range(rng.randrange(6)):
        total = rng.randrange(5)
        views.append(
            node(
                number,
                rng.randint(-1, total),
                total,
                labels=rng.choice([{}, {"a": "1"}, {"a": "2"}]),
                queued=rng.randrange(3),
                alive=rng.random() < 0.8,
                draining=rng.random() < 0.2,
            )
        )
    target = rng.choice([view.node_id for view in views] or [b"x"])
    strategy = rng.choice(
        [
            {},
            strategies.spread(),
            strategies.node_affinity(target, rng.random() < 0.5),
            strategies.labels([("a", strategies.IN, ["1"])], []),
            strategies.labels([], [("a", strategies.EXISTS, [])]),
        ]
    )
    locality = {target: rng.randrange(10**8)} if rng.random() < 0.3 else {}
    wish = Wish({"CPU": rng.randrange(3) * CPU}, strategy, locality)
    wish.demand = {name: units for name, units in wish.demand.items() if units}
    count = rng.randrange(1, 20)
    found = place(views, wish, count, rng.randrange)
    assert sum(number for _, number in found) <= count
    assert len({view.node_id for view, _ in found}) == len(found)
    for view, number in found:
        assert number > 0 and view.alive and can_ever(view, wish)
        may_queue = locality or strategy.get("kind") == "node_affinity"
        assert may_queue or number <= room(view, wish.demand)
    if not locality and strategy.get("kind") != "node_affinity":
        rooms = [room(view, wish.demand) for view in views if view.alive and can_ever(view, wish)]
        assert sum(number for _, number in found) == min(count, sum(rooms))


# ---------------------------------------------------------------- reasons


def test_reasons_name_what_was_asked_and_what_there_is() -> None:
    views = [node(number) for number in range(1, 8)]
    text = why_never(views, Wish({"GPU": CPU}), "train")
    assert "train asks for 1 GPU" in text and "n1 has 4 CPU" in text and "2 more nodes" in text
    assert "dead or was never" in why_never(views, Wish({}, strategies.node_affinity(b"g" * 16, False)), "f")
    assert "has 4 CPU in all" in why_never(
        views, Wish({"CPU": 9 * CPU}, strategies.node_affinity(views[0].node_id, False)), "f"
    )
    assert "'zone' is one of 'a'" in why_never(views, Wish({}, strategies.labels([("zone", "in", ["a"])], [])), "f")
    assert "there is no node" in why_never([], Wish({"CPU": CPU}), "f")
    assert "n2 has 0 CPU free of 4 CPU" in why_waiting([node(2, -1)], Wish({"CPU": CPU}), "f")
