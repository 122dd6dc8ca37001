"""Where tasks and actors run: the strategies that users write, checked and brought into the form that travels (`protocol.strategies`).

    "DEFAULT", "SPREAD"                             PlacementGroupSchedulingStrategy(group, index, capture)
    NodeAffinitySchedulingStrategy(node_id, soft)   NodeLabelSchedulingStrategy({label: In(...)}, soft={label: Exists()})

The option `label_selector` is the short form of rules about labels: {"zone": "a", "kind": "!spot", "accelerator": "in(A100,H100)"}.

A task in a placement group that says so (capture_child_tasks) takes what it submits into the group, unless that says where it wants to be.

How to extend: a strategy is a class here, a branch of `check_strategy`, and a kind in `protocol.strategies`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal.api.mistakes import did_you_mean
from shoal.api.placement_groups import PlacementGroup
from shoal.protocol import strategies
from shoal.protocol.ids import NodeID
from shoal.protocol.resources import Resources, fits, format_resources, to_units
from shoal.protocol.strategies import EXISTS, IN, KIND, NOT_EXISTS, NOT_IN, PLACEMENT_GROUP, SPREAD
from shoal.runtime import core


class PlacementGroupSchedulingStrategy:
    """In a bundle of a placement group.

    Args:
        placement_group: the group.
        placement_group_bundle_index: which bundle; -1 for any.
        placement_group_capture_child_tasks: whether what the task (or actor) submits goes into the group too. None: as its own parent does.
    """

    def __init__(
        self,
        placement_group: PlacementGroup,
        placement_group_bundle_index: int = -1,
        placement_group_capture_child_tasks: bool | None = None,
    ) -> None:
        check_group("placement_group", placement_group)
        _check_index(placement_group, placement_group_bundle_index)
        if placement_group_capture_child_tasks not in (None, True, False):
            raise TypeError(
                f"placement_group_capture_child_tasks must be True, False or None; got {placement_group_capture_child_tasks!r}"
            )
        self.placement_group = placement_group
        self.placement_group_bundle_index = placement_group_bundle_index
        self.placement_group_capture_child_tasks = placement_group_capture_child_tasks


class NodeAffinitySchedulingStrategy:
    """On one node.

    Args:
        node_id: in hex, as `nodes()` and `get_node_id()` have it.
        soft: whether it may run elsewhere, if that node is dead or can never do it.
    """

    def __init__(
        self, node_id: str, soft: bool, _spill_on_unavailable: bool = False, _fail_on_unavailable: bool = False
    ) -> None:
        if isinstance(node_id, NodeID):
            node_id = node_id.hex()
        try:
            NodeID(bytes.fromhex(node_id))
        except (TypeError, ValueError):
            raise ValueError(f"node_id must be the id of a node in hex, as nodes() has it; got {node_id!r}") from None
        if not isinstance(soft, bool):
            raise TypeError(f"soft must be True or False, got {soft!r}")
        self.node_id = node_id
        self.soft = soft or _spill_on_unavailable


class _LabelRule:
    """What is asked of a label's value."""

    OPERATOR = ""

    def __init__(self, *values: str) -> None:
        for value in values:
            if not isinstance(value, str):
                raise TypeError(f"{type(self).__name__} takes strings, got {value!r}")
        self.values = list(values)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.values))})"


class In(_LabelRule):
    """The label has one of these values."""

    OPERATOR = IN


class NotIn(_LabelRule):
    """The label has none of these values, or is not there."""

    OPERATOR = NOT_IN


class Exists(_LabelRule):
    """The label is there."""

    OPERATOR = EXISTS

    def __init__(self) -> None:
        super().__init__()


class DoesNotExist(_LabelRule):
    """The label is not there."""

    OPERATOR = NOT_EXISTS

    def __init__(self) -> None:
        super().__init__()


class NodeLabelSchedulingStrategy:
    """On nodes whose labels keep all `hard` rules, and rather on those that keep the `soft` ones too."""

    def __init__(self, hard: Mapping[str, Any] | None = None, *, soft: Mapping[str, Any] | None = None) -> None:
        self.hard = dict(hard or {})
        self.soft = dict(soft or {})
        if not self.hard and not self.soft:
            raise ValueError("NodeLabelSchedulingStrategy needs a rule, e.g. hard={'zone': In('a', 'b')}")
        self._hard, self._soft = _rules("hard", self.hard), _rules("soft", self.soft)


def _rules(name: str, given: Mapping[str, Any]) -> list[strategies.Rule]:
    rules: list[strategies.Rule] = []
    for label, rule in given.items():
        if not isinstance(label, str) or not isinstance(rule, _LabelRule):
            raise ValueError(
                f"{name} must map labels to In(...), NotIn(...), Exists() or DoesNotExist(); got {label!r}: {rule!r}"
            )
        if rule.OPERATOR in (IN, NOT_IN) and not rule.values:
            raise ValueError(f"{name}[{label!r}] is {rule!r}, which names no value")
        rules.append((label, rule.OPERATOR, rule.values))
    return rules


# ---------------------------------------------------------------- checks of options


def check_strategy(name: str, value: Any) -> Any:
    """A scheduling strategy, as a dict, or the group's strategy as it is.

    Raises:
        ValueError: it is none.
    """
    if value == "DEFAULT" or value == "SPREAD":
        return {} if value == "DEFAULT" else {KIND: SPREAD}
    if isinstance(value, PlacementGroupSchedulingStrategy):
        return value
    if isinstance(value, NodeAffinitySchedulingStrategy):
        return strategies.node_affinity(bytes.fromhex(value.node_id), value.soft)
    if isinstance(value, NodeLabelSchedulingStrategy):
        return strategies.labels(value._hard, value._soft)
    hint = did_you_mean(value, ("DEFAULT", "SPREAD")) if isinstance(value, str) else ""
    raise ValueError(
        f"{name} must be 'DEFAULT', 'SPREAD', or a strategy of shoal.util.scheduling_strategies; got {value!r}{hint}"
    )


def check_group(name: str, value: Any) -> Any:
    """A placement group; None for "default" and the empty one.

    Raises:
        TypeError: it is no group.
    """
    if value in ("default", ""):
        return None
    if not isinstance(value, PlacementGroup):
        raise TypeError(f"{name} must be a PlacementGroup, got {value!r} of type {type(value).__name__}")
    if value.is_empty:
        return None
    return value


def check_label_selector(name: str, value: Any) -> list[strategies.Rule]:
    """Rules out of a label selector.

    Raises:
        TypeError, ValueError: it is no dict of texts, or a text is no rule.
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict from labels to values, got {value!r} of type {type(value).__name__}")
    rules: list[strategies.Rule] = []
    for label, text in value.items():
        if not isinstance(label, str) or not isinstance(text, str) or not label:
            raise TypeError(f"{name} must map strings to strings, got {label!r}: {text!r}")
        plain = text.removeprefix("!")
        values = [plain]
        if plain.startswith("in(") and plain.endswith(")"):
            values = [each.strip() for each in plain[3:-1].split(",")]
        if not all(values) or any(mark in each for each in values for mark in "!()"):
            raise ValueError(
                f"{name}[{label!r}] is {text!r}; write a value, '!value', 'in(one, other)' or '!in(one, other)'"
            )
        rules.append((label, NOT_IN if text.startswith("!") else IN, values))
    return rules


def _check_index(group: PlacementGroup, index: Any) -> None:
    if not isinstance(index, int) or isinstance(index, bool):
        raise TypeError(f"placement_group_bundle_index must be an integer, got {index!r}")
    if not group.is_empty and not -1 <= index < group.bundle_count:
        raise ValueError(
            f"placement_group_bundle_index is {index}, but the group has {group.bundle_count} bundles: "
            f"0 to {group.bundle_count - 1}, or -1 for any"
        )


def strategy_of(values: Mapping[str, Any], need: Resources) -> tuple[dict[str, Any], bool | None]:
    """The strategy that checked options ask for, and whether to inherit one (None: if the parent says so).

    Raises:
        ValueError: they contradict each other, or what is needed fits into no bundle.
    """
    strategy = values.get("scheduling_strategy")
    group = values.get("placement_group")
    index = values.get("placement_group_bundle_index", -1)
    capture = values.get("placement_group_capture_child_tasks")
    rules = values.get("label_selector")
    if strategy is not None and group is not None:
        raise ValueError("give either scheduling_strategy or placement_group, not both")
    if isinstance(strategy, PlacementGroupSchedulingStrategy):
        group, index = strategy.placement_group, strategy.placement_group_bundle_index
        if strategy.placement_group_capture_child_tasks is not None:
            capture = strategy.placement_group_capture_child_tasks
        strategy = {}
    if group is not None and not group.is_empty:
        if rules:
            raise ValueError(
                "label_selector does not go with a placement group: give the group a bundle_label_selector instead"
            )
        _check_index(group, index)
        _check_fits(group, index, need)
        return strategies.placement_group(group.id.binary(), index, bool(capture)), capture
    if index != -1:
        raise ValueError(f"placement_group_bundle_index={index} needs a placement_group")
    if rules:
        if strategy:
            raise ValueError(
                "label_selector does not go with this scheduling_strategy: use NodeLabelSchedulingStrategy, or leave one of them out"
            )
        return strategies.labels(rules, ()), False
    if strategy is not None:
        return strategy, False
    return {}, capture


def _check_fits(group: PlacementGroup, index: int, need: Resources) -> None:
    """What runs in a group must fit into its bundle (or one of them)."""
    specs = group.bundle_specs if index < 0 else [group.bundle_specs[index]]
    if any(fits(need, to_units(spec)) for spec in specs):
        return
    where = f"bundle {index} has {format_resources(to_units(specs[0]))}"
    if index < 0:
        where = (
            f"none of the group's bundles has that: {'; '.join(format_resources(to_units(spec)) for spec in specs[:5])}"
        )
    raise ValueError(
        f"it asks for {format_resources(need)}, but {where}. Ask for less (num_cpus is 1 unless given), or make larger bundles"
    )


# ---------------------------------------------------------------- inheritance


def current_group() -> dict[str, Any]:
    """The strategy that put the caller into a placement group; empty outside of groups."""
    task = core.running_task.get()
    if task is None or task.lease is None:
        return {}
    group: dict[str, Any] = task.lease.started.group
    return group


def inherited_strategy(own: dict[str, Any], capture: bool | None) -> dict[str, Any]:
    """The strategy of what the caller submits: its own, or that of the caller's placement group."""
    if own.get(KIND) == PLACEMENT_GROUP and capture is None:
        return {**own, "capture": bool(current_group().get("capture"))}
    if own or capture is False:
        return own
    group = current_group()
    if not group or not (capture or group.get("capture")):
        return own
    return strategies.placement_group(group["group_id"], -1, bool(group.get("capture")))
