"""Scheduling strategies as they travel in messages, in one place for those who write them (api) and those who follow them (scheduling, gcs).

Purpose: a strategy is a dict with a kind and what the kind needs; no kind means the default.

    {}                                                              where the wait is shortest
    {"kind": "SPREAD"}                                              over all nodes
    {"kind": "node_affinity", "node_id": bytes, "soft": bool}       on this node; soft: elsewhere if it is gone or too small
    {"kind": "labels", "hard": [rule, ...], "soft": [rule, ...]}    on nodes that keep all hard rules, rather on those that keep the soft ones too
    {"kind": "placement_group", "group_id": bytes,                  in a bundle of a placement group, -1 for any of them; capture: what the task
     "bundle": int, "capture": bool}                                submits goes into the group too

A rule is [label, operator, values]: the label's value is one of `values` (IN) or none of them (NOT_IN, also without the label), or the label is
there (EXISTS) or not (NOT_EXISTS).

Any of them may have "locality": bytes of the inputs by NodeID.

How to extend: a kind gets a constant, a maker, and a row in `describe`; who follows it is `scheduling.node_policy`.

What it does not do: follow them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

KIND = "kind"
LOCALITY = "locality"
SPREAD = "SPREAD"
NODE_AFFINITY = "node_affinity"
LABELS = "labels"
PLACEMENT_GROUP = "placement_group"
#: kinds that a node cannot follow alone: the global scheduler places them
GLOBAL_KINDS = frozenset({SPREAD, NODE_AFFINITY, LABELS})

IN = "in"
NOT_IN = "not_in"
EXISTS = "exists"
NOT_EXISTS = "not_exists"

#: (label, operator, values)
Rule = tuple[str, str, Sequence[str]]


def spread() -> dict[str, Any]:
    """Over all nodes."""
    return {KIND: SPREAD}


def node_affinity(node_id: bytes, soft: bool) -> dict[str, Any]:
    """On one node."""
    return {KIND: NODE_AFFINITY, "node_id": node_id, "soft": soft}


def labels(hard: Sequence[Rule], soft: Sequence[Rule]) -> dict[str, Any]:
    """On nodes with labels."""
    return {
        KIND: LABELS,
        "hard": [[name, operator, list(values)] for name, operator, values in hard],
        "soft": [[name, operator, list(values)] for name, operator, values in soft],
    }


def placement_group(group_id: bytes, bundle: int, capture: bool) -> dict[str, Any]:
    """In a placement group."""
    return {KIND: PLACEMENT_GROUP, "group_id": group_id, "bundle": bundle, "capture": capture}


def keeps(rules: Sequence[Rule], of_node: Mapping[str, str]) -> bool:
    """Whether the labels of a node keep all rules."""
    for name, operator, values in rules:
        value = of_node.get(name)
        if operator == IN:
            kept = value is not None and value in values
        elif operator == NOT_IN:
            kept = value not in values
        elif operator == EXISTS:
            kept = value is not None
        elif operator == NOT_EXISTS:
            kept = value is None
        else:
            raise ValueError(
                f"a rule about labels has the operator {operator!r}; there are {IN}, {NOT_IN}, {EXISTS}, {NOT_EXISTS}"
            )
        if not kept:
            return False
    return True


def describe(strategy: Mapping[str, Any]) -> str:
    """What a strategy asks for, as part of a sentence: "on node 0123abcd"; empty for the default."""
    kind = strategy.get(KIND)
    if kind == SPREAD:
        return "spread over all nodes"
    if kind == NODE_AFFINITY:
        return f"{'rather ' if strategy.get('soft') else ''}on node {strategy['node_id'].hex()}"
    if kind == LABELS:
        hard = ", ".join(_rule_text(rule) for rule in strategy.get("hard") or ())
        return f"on nodes where {hard}" if hard else ""
    if kind == PLACEMENT_GROUP:
        bundle = "any bundle" if strategy["bundle"] < 0 else f"bundle {strategy['bundle']}"
        return f"in {bundle} of placement group {strategy['group_id'].hex()}"
    return ""


def _rule_text(rule: Rule) -> str:
    name, operator, values = rule
    if operator == EXISTS:
        return f"the label {name!r} is set"
    if operator == NOT_EXISTS:
        return f"the label {name!r} is not set"
    return f"{name!r} is {'none' if operator == NOT_IN else 'one'} of {', '.join(map(repr, values))}"
