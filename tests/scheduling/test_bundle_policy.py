"""Placing bundles on nodes, compared with a twin that tries every way."""

from __future__ import annotations

from itertools import product
from time import process_time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.protocol.resources import fits, subtract, to_units
from shoal.protocol.strategies import EXISTS, IN, keeps
from shoal.scheduling.bundle_policy import (
    PACK,
    SPREAD,
    STRATEGIES,
    STRICT_PACK,
    STRICT_SPREAD,
    place_bundles,
    why_never,
    why_not_now,
)
from shoal.scheduling.node_policy import NodeView


def view(name: str, available: dict[str, float], total: dict[str, float] | None = None, **more: Any) -> NodeView:
    return NodeView(name.encode(), name, to_units(total or available), to_units(available), **more)


def every_way(bundles: Any, strategy: str, views: list[NodeView], rules: Any, kept: list[bytes]) -> list[list[bytes]]:
    """All placements that a strategy allows, tried one by one."""
    ways = []
    usable = [each for each in views if each.alive and not each.draining]
    for nodes in product(usable, repeat=len(bundles)):
        free = {each.node_id: dict(each.available) for each in usable}
        for index, (bundle, node) in enumerate(zip(bundles, nodes, strict=True)):
            if not fits(bundle, free[node.node_id]) or not keeps(rules[index] if rules else (), node.labels):
                break
            subtract(free[node.node_id], bundle)
        else:
            names = [node.node_id for node in nodes]
            everywhere = {*names, *kept}
            if strategy == STRICT_PACK and len(everywhere) > 1:
                continue
            if strategy == STRICT_SPREAD and (len(set(names)) < len(names) or set(names) & set(kept)):
                continue
            ways.append(names)
    return ways


AMOUNTS = st.sampled_from([{"CPU": 1}, {"CPU": 2}, {"CPU": 0.5, "GPU": 1}, {"GPU": 2}, {"x": 1, "CPU": 1}])
NODES = st.lists(
    st.tuples(
        st.fixed_dictionaries({"CPU": st.integers(0, 4), "GPU": st.integers(0, 3), "x": st.integers(0, 1)}),
        st.sampled_from([{}, {"zone": "a"}, {"zone": "b"}]),
        st.booleans(),
    ),
    min_size=0,
    max_size=4,
)
RULES = st.sampled_from([[], [], [], [["zone", IN, ["a"]]], [["zone", EXISTS, []]]])


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.tuples(AMOUNTS, RULES), min_size=1, max_size=4), st.sampled_from(STRATEGIES), NODES, st.integers(0, 2)
)
def test_as_good_as_trying_everything(asked: Any, strategy: str, nodes: Any, keeping: int) -> None:
    views = [
        view(f"n{number}", amounts, labels=labels, draining=drains and number == 1)
        for number, (amounts, labels, drains) in enumerate(nodes)
    ]
    kept = [each.node_id for each in views[:keeping]] if strategy != STRICT_PACK else []
    bundles = [to_units(amounts) for amounts, _ in asked]
    rules = [rules for _, rules in asked]
    before = [dict(each.available) for each in views]
    found = place_bundles(bundles, strategy, views, rules, kept)
    assert [each.available for each in views] == before, "a policy changes nothing"
    assert found == place_bundles(bundles, strategy, views, rules, kept)
    ways = every_way(bundles, strategy, views, rules, kept)
    if found is None:
        assert not ways
        assert why_never(bundles, strategy, views, rules, kept)
        return
    assert found in ways
    assert not why_never(bundles, strategy, views, rules, kept)
    if strategy == PACK:
        assert len(set(found) - set(kept)) == min(len(set(way) - set(kept)) for way in ways)
    if strategy == SPREAD:
        assert len(set(found) - set(kept)) == max(len(set(way) - set(kept)) for way in ways)


def test_strict_pack_takes_the_node_that_it_fills() -> None:
    views = [view("big", {"CPU": 16}), view("small", {"CPU": 2}), view("tiny", {"CPU": 1})]
    assert place_bundles([to_units({"CPU": 1})] * 2, STRICT_PACK, views) == [b"small", b"small"]


def test_a_matching_moves_others() -> None:
    """The flexible bundle gives way to the one that fits on one node only."""
    views = [view("a", {"CPU": 4, "GPU": 1}), view("b", {"CPU": 4})]
    bundles = [to_units({"CPU": 4}), to_units({"GPU": 1, "CPU": 1})]
    assert place_bundles(bundles, STRICT_SPREAD, views) == [b"b", b"a"]


def test_lost_bundles_join_or_avoid_those_that_are_left() -> None:
    views = [view("a", {"CPU": 4}), view("b", {"CPU": 4}), view("c", {"CPU": 4})]
    bundle = [to_units({"CPU": 1})]
    assert place_bundles(bundle, PACK, views, (), [b"b"]) == [b"b"]
    assert place_bundles(bundle, SPREAD, views, (), [b"a"]) == [b"b"]
    assert place_bundles(bundle, STRICT_SPREAD, views, (), [b"a", b"b"]) == [b"c"]
    assert place_bundles(bundle, STRICT_SPREAD, views[:2], (), [b"a", b"b"]) is None


def test_nodes_that_are_away_or_drain_take_nothing() -> None:
    views = [view("a", {"CPU": 4}, alive=False), view("b", {"CPU": 4}, draining=True)]
    assert place_bundles([to_units({"CPU": 1})], PACK, views) is None


def test_reasons_name_what_lacks() -> None:
    views = [view("a", {"CPU": 1}, {"CPU": 4}), view("b", {"CPU": 0}, {"CPU": 4})]
    assert "bundle 1 asks for 8 CPU, and no node has that: a has 4 CPU; b has 4 CPU" in why_never(
        [to_units({"CPU": 1}), to_units({"CPU": 8})], PACK, views
    )
    assert "do not fit on one node" in why_never([to_units({"CPU": 3})] * 2, STRICT_PACK, views)
    assert "do not fit on 3 different nodes" in why_never([to_units({"CPU": 1})] * 3, STRICT_SPREAD, views)
    assert "with the labels" in why_never([to_units({"CPU": 1})], PACK, views, [[("zone", IN, ["z"])]])
    assert "a has 1 CPU free; b has 0 CPU free" in why_not_now([to_units({"CPU": 3})], PACK, views)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_large_clusters_are_answered_soon(strategy: str) -> None:
    views = [view(f"n{number}", {"CPU": 8 + number % 3, "GPU": number % 2}) for number in range(500)]
    bundles = [to_units({"CPU": 3, **({"GPU": 1} if number % 7 == 0 else {})}) for number in range(300)]
    if strategy == STRICT_PACK:
        bundles = bundles[1:4]
    start = process_time()
    found = place_bundles(bundles, strategy, views)
    took_s = process_time() - start
    if strategy == STRICT_PACK:
        assert found is not None or why_never(bundles, strategy, views)
    else:
        assert found is not None
        print(f"{strategy}: {took_s * 1e3:.0f} ms, {len(set(found))} nodes")
    assert took_s < 5
