"""Bundles: parts of a node that are set aside for placement groups.

Purpose: the nouns and the arithmetic of bundles for the local scheduler.

Design: a bundle's resources are resources of the node under names of their own, so everything that compares, grants, lends and revokes by name works
inside a bundle as it does outside, exactly and with fractions:

    {"CPU": 1} in bundle 2 of group 0a1b...   is   {"CPU\\0 0a1b....2": 1, "bundle\\0 0a1b....2": 1}        (amounts in units; no blank)

The last one is a mark of which a committed bundle has plenty: by it a lease that asks for nothing is in the bundle too. Accelerators move with
their ids. A bundle's life on a node:

    (waits like an actor's placement) --granted--> reserved --BundleCommitted--> committed: the names exist --BundleReturned--> gone

When a bundle goes, what is still held in it becomes held of the node itself, until those leases have ended.

Who may use any bundle of its group (index -1) is *aimed* at one of those on this node: at the first in which it fits now, else by turns.

What it does not do: choose nodes (`bundle_policy`), decide when anything is reserved (`local_scheduler`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shoal.protocol.messages import UNSCHEDULABLE_BUNDLE_GONE
from shoal.protocol.resources import CPU, IN_BUNDLE, Assigned, Resources, add, fits, format_resources

ANY_BUNDLE = -1
MARK = "bundle"
MARK_UNITS = 1 << 40

BundleKey = tuple[bytes, int]  #: (group, index)


@dataclass(slots=True, eq=False)
class Bundle:
    """A bundle that is reserved on this node."""

    group_id: bytes
    index: int
    attempt: int
    job_id: bytes
    resources: Resources
    #: ids of its accelerators
    assigned: Assigned
    committed: bool = False
    #: what stands behind the names of its resources
    suffix: str = ""
    cpu: str = ""  #: its CPU

    def __post_init__(self) -> None:
        self.suffix = f"{IN_BUNDLE}{self.group_id.hex()}.{self.index}"
        self.cpu = CPU + self.suffix

    @property
    def key(self) -> BundleKey:
        """Its name on this node."""
        return self.group_id, self.index

    def inside(self, demand: Resources) -> Resources:
        """A demand as one for a part of this bundle."""
        suffix = self.suffix
        inside = {name + suffix: units for name, units in demand.items()}
        inside[MARK + suffix] = 1
        return inside

    def contents(self) -> Resources:
        """What the node has while the bundle is committed, under the bundle's names."""
        suffix = self.suffix
        contents = {name + suffix: units for name, units in self.resources.items()}
        contents[MARK + suffix] = MARK_UNITS
        return contents


def outside(inside: Resources) -> Resources:
    """Amounts in a bundle under the names that they have outside; other amounts stay as they are."""
    return {base_name(name): units for name, units in inside.items() if not is_mark(name)}


def outside_ids(assigned: Assigned) -> Assigned:
    """Accelerators assigned in a bundle under the names that they have outside."""
    return {base_name(name): ids for name, ids in assigned.items()}


def is_mark(name: str) -> bool:
    """Whether this is no resource, but says that something is in a bundle."""
    return name.startswith(MARK + IN_BUNDLE)


def base_name(name: str) -> str:
    """The name of a resource without its bundle."""
    return name.partition(IN_BUNDLE)[0]


def lasting(held_by_actors: Resources, bundles: Iterable[Bundle]) -> Resources:
    """What a node has given away for longer than tasks take: to actors outside of bundles, and to bundles."""
    held = without_bundles(held_by_actors)
    for bundle in bundles:
        add(held, bundle.resources)
    return held


def without_bundles(resources: Resources) -> Resources:
    """Only what is in no bundle."""
    return {name: units for name, units in resources.items() if IN_BUNDLE not in name}


@dataclass(slots=True)
class BundleTable:
    """The bundles that are reserved on this node. `of` is read by the policy; only the local scheduler changes it."""

    groups: dict[bytes, dict[int, Bundle]] = field(default_factory=dict)

    def get(self, group_id: bytes, index: int) -> Bundle | None:
        """A bundle."""
        return self.groups.get(group_id, {}).get(index)

    def of(self, group_id: bytes, asked: Resources) -> list[Bundle]:
        """The bundles of a group in which `asked` has room when they are empty, by index."""
        bundles = self.groups.get(group_id)
        if not bundles:
            return []
        return [bundles[index] for index in sorted(bundles) if fits(asked, bundles[index].resources)]

    def find(self, need: Resources, strategy: Mapping[str, Any], name: str) -> tuple[Bundle | None, str, str]:
        """A bundle that a strategy names and in which `need` has room; None, the kind of refusal and its reason when there is none."""
        group_id, index = strategy["group_id"], strategy["bundle"]
        bundles = self.groups.get(group_id, {})
        if not bundles or (index != ANY_BUNDLE and index not in bundles):
            which = "no bundle" if index == ANY_BUNDLE else f"not bundle {index}"
            return None, UNSCHEDULABLE_BUNDLE_GONE, f"this node has {which} of placement group {group_id.hex()}"
        candidates = [bundles[index]] if index != ANY_BUNDLE else [bundles[each] for each in sorted(bundles)]
        for bundle in candidates:
            if fits(need, bundle.resources):
                return bundle, "", ""
        there = "; ".join(f"bundle {each.index} has {format_resources(each.resources)}" for each in candidates)
        return None, "", f"{name} asks for {format_resources(need)} in placement group {group_id.hex()}, but {there}"

    def all(self) -> list[Bundle]:
        """Every bundle."""
        return [bundle for bundles in self.groups.values() for bundle in bundles.values()]

    def add(self, bundle: Bundle) -> None:
        """A bundle is reserved."""
        self.groups.setdefault(bundle.group_id, {})[bundle.index] = bundle

    def remove(self, bundle: Bundle) -> None:
        """A bundle is gone."""
        bundles = self.groups[bundle.group_id]
        del bundles[bundle.index]
        if not bundles:
            del self.groups[bundle.group_id]
