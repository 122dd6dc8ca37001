"""Placement groups: resources of several nodes, or parts of one, that are reserved together.

    group = placement_group([{"CPU": 2}, {"CPU": 2}], strategy="STRICT_SPREAD")
    shoal.get(group.ready())
    f.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, 0)).remote()
    remove_placement_group(group)

Design: a `PlacementGroup` is a name and the bundles as the user wrote them; it may be sent anywhere. What the group is doing the GCS knows, and the
runtime follows (`runtime.groups`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from shoal import serialization
from shoal.api.mistakes import did_you_mean
from shoal.protocol.gcs_messages import GroupSpec
from shoal.protocol.ids import PlacementGroupID
from shoal.protocol.limits import BUNDLES_MAX
from shoal.protocol.resources import to_floats, to_units
from shoal.runtime import core
from shoal.runtime.objects import ObjectRef

STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
#: states as programs know them
_STATES = {"pending": "PENDING", "placed": "CREATED", "rescheduling": "RESCHEDULING", "removed": "REMOVED"}


class PlacementGroup:
    """A group of bundles. Equal and hashable by id; may be sent anywhere."""

    def __init__(self, group_id: bytes, bundles: list[dict[str, float]]) -> None:
        self._group_id = group_id
        self._bundles = bundles

    @staticmethod
    def empty() -> PlacementGroup:
        """The group that is none."""
        return PlacementGroup(b"", [])

    @property
    def id(self) -> PlacementGroupID:
        """Its id."""
        return PlacementGroupID(self._group_id)

    @property
    def is_empty(self) -> bool:
        """Whether it stands for no group."""
        return not self._group_id

    @property
    def bundle_specs(self) -> list[dict[str, float]]:
        """The bundles, as they were asked for."""
        return [dict(bundle) for bundle in self._bundles]

    @property
    def bundle_count(self) -> int:
        """How many bundles there are."""
        return len(self._bundles)

    def ready(self) -> ObjectRef:
        """A ref that has this group as its value as soon as all bundles are placed; `get` raises if the group is removed before."""
        return core.current().groups.ready(self._group_id, serialization.dumps_inline(self))

    def wait(self, timeout_seconds: float = 30) -> bool:
        """Wait until all bundles are placed, at most `timeout_seconds`; whether they are.

        Raises:
            TaskPlacementGroupRemoved: the group is removed.
        """
        ref = self.ready()
        runtime = core.current()
        ready, _ = runtime.wait([ref], 1, timeout_seconds)
        if ready:
            runtime.get(ref)
        return bool(ready)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlacementGroup) and other._group_id == self._group_id

    def __hash__(self) -> int:
        return hash(self._group_id)

    def __repr__(self) -> str:
        return f"PlacementGroup({self._group_id.hex()}, {self._bundles})"

    def __reduce__(self) -> tuple[Any, ...]:
        return PlacementGroup, (self._group_id, self._bundles)


def placement_group(
    bundles: Sequence[Mapping[str, float]],
    strategy: str = "PACK",
    name: str = "",
    lifetime: str | None = None,
    _soft_target_node_id: str | None = None,
    bundle_label_selector: Sequence[Mapping[str, str]] | None = None,
) -> PlacementGroup:
    """Reserve resources for what belongs together. Returns at once; `ready()` and `wait()` tell when they are there.

    Args:
        bundles: for each bundle its resources, e.g. {"CPU": 2, "GPU": 1}. A bundle is on one node.
        strategy: PACK (on few nodes), SPREAD (on many), STRICT_PACK (on one), STRICT_SPREAD (each on another one).
        name: for `get_placement_group`, in this program's namespace.
        lifetime: "detached" lets it outlive the program.
        bundle_label_selector: for each bundle the labels that its node must have (as the option label_selector).

    Raises:
        ValueError: there are no bundles, one asks for nothing, the strategy is none, or the name is taken.
        TypeError: an argument has the wrong type.
    """
    runtime = core.current()
    units = _checked_bundles(bundles)
    if strategy is None:
        strategy = "PACK"
    if strategy not in STRATEGIES:
        hint = did_you_mean(str(strategy).upper(), STRATEGIES)
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}; got {strategy!r}{hint}")
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {name!r}")
    if lifetime not in (None, "detached"):
        raise ValueError(f"lifetime must be None or 'detached', got {lifetime!r}")
    rules = _checked_rules(bundle_label_selector, len(units))
    spec = GroupSpec(
        os.urandom(16), runtime.job_id, name, runtime.namespace, strategy, units, rules, lifetime == "detached"
    )
    runtime.groups.create(spec)
    return PlacementGroup(spec.group_id, [dict(bundle) for bundle in bundles])


def _checked_bundles(bundles: Any) -> list[dict[str, int]]:
    if not isinstance(bundles, (list, tuple)):
        raise TypeError(f"bundles must be a list of dicts, got {bundles!r} of type {type(bundles).__name__}")
    if not bundles:
        raise ValueError("a placement group needs at least one bundle, e.g. [{'CPU': 1}]")
    if len(bundles) > BUNDLES_MAX:
        raise ValueError(f"a placement group has at most {BUNDLES_MAX} bundles, got {len(bundles)}")
    checked = []
    for index, bundle in enumerate(bundles):
        if not isinstance(bundle, Mapping):
            raise TypeError(f"bundle {index} must be a dict from resources to amounts, got {bundle!r}")
        for option, resource in (("num_cpus", "CPU"), ("num_gpus", "GPU")):
            if option in bundle:
                raise ValueError(f"bundle {index} names the resource {option!r}; write {resource!r}")
        try:
            units = to_units(bundle)
        except (TypeError, ValueError) as error:
            raise type(error)(f"bundle {index}: {error}") from None
        if not units:
            raise ValueError(f"bundle {index} asks for nothing: {dict(bundle)!r}")
        checked.append(units)
    return checked


def _checked_rules(selectors: Any, count: int) -> list[list[tuple[str, str, list[str]]]]:
    from shoal.api.scheduling_strategies import check_label_selector  # which knows placement groups

    if not selectors:
        return []
    if not isinstance(selectors, (list, tuple)) or len(selectors) != count:
        raise ValueError(
            f"bundle_label_selector must be a list of {count} dicts, one for each bundle; got {selectors!r}"
        )
    rules = [check_label_selector(f"bundle_label_selector[{index}]", each) for index, each in enumerate(selectors)]
    return [[(label, operator, list(values)) for label, operator, values in mine] for mine in rules]


def remove_placement_group(placement_group: PlacementGroup) -> None:
    """Give a group's resources back. What runs in it ends: tasks with TaskPlacementGroupRemoved, actors with ActorPlacementGroupRemoved.

    Raises:
        TypeError: it is no group.
    """
    if not isinstance(placement_group, PlacementGroup):
        raise TypeError(f"remove_placement_group takes a PlacementGroup, got {placement_group!r}")
    core.current().call("gcs.group_remove", {"group_id": placement_group._group_id})


def get_placement_group(placement_group_name: str) -> PlacementGroup:
    """The group of this name in this program's namespace.

    Raises:
        ValueError: there is none.
    """
    if not placement_group_name or not isinstance(placement_group_name, str):
        raise ValueError(f"a placement group's name is a non-empty string, got {placement_group_name!r}")
    runtime = core.current()
    body = {"name": placement_group_name, "namespace": runtime.namespace}
    return _of_record(runtime.call("gcs.group_by_name", body))


def get_current_placement_group() -> PlacementGroup | None:
    """The group in which the running task or actor is; None outside of groups, and in drivers."""
    from shoal.api.scheduling_strategies import current_group

    group = current_group()
    if not group:
        return None
    record = core.current().groups.record(group["group_id"])
    return _of_record(record) if record is not None else None


def _of_record(record: Mapping[str, Any]) -> PlacementGroup:
    return PlacementGroup(record["group_id"], [to_floats(bundle) for bundle in record["bundles"]])


def placement_group_table(placement_group: PlacementGroup | None = None) -> dict[str, Any]:
    """What the GCS knows of all groups, by id in hex, or of one: name, state, bundles, their nodes, and why it waits or is gone.

    Args:
        placement_group: this one only; empty if the GCS does not know it.
    """
    runtime = core.current()
    if placement_group is not None:
        record = runtime.groups.record(placement_group._group_id)
        return _row(record) if record is not None else {}
    return {record["group_id"].hex(): _row(record) for record in runtime.call("gcs.groups")["groups"]}


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "placement_group_id": record["group_id"].hex(),
        "name": record["name"],
        "bundles": {index: to_floats(bundle) for index, bundle in enumerate(record["bundles"])},
        "bundles_to_node_id": {index: node_id.hex() for index, node_id in enumerate(record["nodes"])},
        "strategy": record["strategy"],
        "state": _STATES.get(record["state"], record["state"]),
        "reason": record["reason"],
        "is_detached": record.get("detached", False),
        "stats": {"attempts": record.get("attempts", 0), "created_s": record.get("created_s", 0.0)},
    }
