"""Resource arithmetic: what tasks ask for, what a node has, and which accelerators an assignment names.

Purpose: one exact arithmetic for demands and totals, and one table of accelerators.

Design: users write floats, machines hold integers in 1/10,000 of a unit (`limits.RESOURCE_UNIT`), so that a thousand times 0.1 is
exactly 100 again. `Resources` is a plain dict from name to units; a name that is missing counts as zero and demands never hold
zeros. Accelerators have identities besides amounts: `AcceleratorPool` says which ids an assignment gets.

    {"CPU": 1, "GPU": 0.5}  --to_units-->  {"CPU": 10000, "GPU": 5000}  --AcceleratorPool.assign-->  {"GPU": [1]}
                                                                        --visible_variables-->      {"CUDA_VISIBLE_DEVICES": "1"}

How to extend: a new kind of accelerator is one row of `ACCELERATORS`.

What it does not do: detect hardware, or decide who gets what.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

from shoal.protocol.limits import RESOURCE_UNIT

#: amounts by resource name, in 1/10,000 units; missing means zero
Resources = dict[str, int]
#: accelerator ids by resource name
Assigned = dict[str, list[int]]

CPU = "CPU"
GPU = "GPU"
MEMORY = "memory"
OBJECT_STORE_MEMORY = "object_store_memory"

#: between the name of a resource and the bundle of a placement group in which it is (`scheduling.bundles`)
IN_BUNDLE = "\0"
#: begins the resources that each node has one of, and that name it
NODE_MARK = "node:"

QUANTITY_MAX = 1e12  #: of anything that is counted
QUANTITY_BYTES_MAX = 1e14  #: of memory, so that its units still fit 64 bits with a sign
_BYTE_RESOURCES = frozenset({MEMORY, OBJECT_STORE_MEMORY})

assert QUANTITY_MAX <= QUANTITY_BYTES_MAX
assert QUANTITY_BYTES_MAX * RESOURCE_UNIT < 2**63


@dataclass(slots=True)
class Accelerator:
    """A row of the table: `resource` is the name in demands; `variables` tell a vendor's libraries which devices they may see."""

    resource: str
    vendor: str
    variables: tuple[str, ...]


#: the first row of a resource is what is assumed when the vendor is not known
ACCELERATORS: tuple[Accelerator, ...] = (
    Accelerator(GPU, "nvidia", ("CUDA_VISIBLE_DEVICES",)),
    Accelerator(GPU, "amd", ("HIP_VISIBLE_DEVICES",)),
    Accelerator(GPU, "intel", ("ZE_AFFINITY_MASK",)),
    Accelerator("TPU", "google", ("TPU_VISIBLE_CHIPS",)),
    Accelerator("neuron_cores", "aws", ("NEURON_RT_VISIBLE_CORES",)),
    Accelerator("HPU", "habana", ("HABANA_VISIBLE_MODULES",)),
    Accelerator("NPU", "huawei", ("ASCEND_RT_VISIBLE_DEVICES",)),
)
ACCELERATOR_RESOURCES: frozenset[str] = frozenset(row.resource for row in ACCELERATORS)


# ---------------------------------------------------------------- amounts


def to_units(quantities: Mapping[str, float]) -> Resources:
    """Amounts as users write them, in 1/10,000 units; zeros are left out.

    A positive amount below 1/10,000 counts as 1/10,000, so that it is never free. Raises TypeError for what is no number, ValueError
    for what no resource can be; both name the resource.
    """
    units: Resources = {}
    for name, quantity in quantities.items():
        amount = _checked_amount(name, quantity)
        if amount > 0:
            units[name] = max(1, round(amount * RESOURCE_UNIT))
    return units


def to_floats(resources: Mapping[str, int]) -> dict[str, float]:
    """Amounts in units of 1/10,000, as users read them."""
    return {name: units / RESOURCE_UNIT for name, units in resources.items()}


def _checked_amount(name: object, quantity: object) -> float:
    """`quantity` as a float, refused when it cannot be an amount of resource `name`."""
    if not isinstance(name, str) or not name:
        raise TypeError(f"the name of a resource is a non-empty string, got {name!r}")
    if IN_BUNDLE in name:
        raise ValueError(f"the name of a resource cannot contain a zero byte, got {name!r}")
    if isinstance(quantity, bool) or not isinstance(quantity, Real):
        raise TypeError(
            f"the amount of resource {name!r} must be a number, got {quantity!r} of type {type(quantity).__name__}"
        )
    try:
        amount = float(quantity)
    except OverflowError:
        amount = math.inf  # an integer of more than 300 digits
    if math.isnan(amount):
        raise ValueError(f"the amount of resource {name!r} must be a number, got nan")
    if amount < 0:
        raise ValueError(f"the amount of resource {name!r} must not be negative, got {amount:g}")
    limit = QUANTITY_BYTES_MAX if name in _BYTE_RESOURCES else QUANTITY_MAX
    if amount > limit:
        raise ValueError(f"the amount of resource {name!r} must be at most {limit:g}, got {amount:g}")
    if name in ACCELERATOR_RESOURCES and amount > 1 and not amount.is_integer():
        raise ValueError(
            f"the amount of {name!r} must be a whole number, or a fraction below 1 to share one; got {quantity}"
        )
    return amount


def fits(demand: Resources, available: Resources) -> bool:
    """Whether `available` has all that `demand` asks for."""
    get = available.get
    for name, units in demand.items():
        if get(name, 0) < units:
            return False
    return True


def add(resources: Resources, more: Resources) -> None:
    """Add `more` to `resources` in place."""
    for name, units in more.items():
        resources[name] = resources.get(name, 0) + units


def subtract(resources: Resources, less: Resources) -> None:
    """Take `less` from `resources` in place; the result may be negative (a blocked lease that goes on at once)."""
    for name, units in less.items():
        resources[name] = resources.get(name, 0) - units


def format_resources(resources: Mapping[str, int]) -> str:
    """Amounts for a sentence: `2 CPU, 0.5 GPU, 1.5 GiB memory`, or `nothing`."""
    parts = []
    for name, units in resources.items():
        if IN_BUNDLE in name:
            name, _, bundle = name.partition(IN_BUNDLE)
            if name == "bundle":
                continue
            parts.append(f"{format_resources({name: units})} in bundle {bundle.rpartition('.')[2]}")
        elif name in _BYTE_RESOURCES:
            parts.append(f"{_format_bytes(units / RESOURCE_UNIT)} {name}")
        else:
            parts.append(f"{units / RESOURCE_UNIT:.10g} {name}")
    return ", ".join(parts) or "nothing"


def format_total(total: Mapping[str, int], asked: Container[str] = ()) -> str:
    """What a node has, for a sentence about who asks for `asked`: the marks that name nodes ("node:10.0.0.1") only if they are asked for."""
    return format_resources(
        {name: units for name, units in total.items() if not name.startswith(NODE_MARK) or name in asked}
    )


def _format_bytes(count: float) -> str:
    size = count
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


# ---------------------------------------------------------------- identities of accelerators


class AcceleratorPool:
    """Which accelerator ids are free, and how much of each: the exact partner of the amounts.

    Fractions share one id (the fullest that still has room, so that whole ones stay whole); whole demands take unused ids. An
    assignment never spans two shared ids: 0.4 free on each of two GPUs is no 0.8.
    """

    __slots__ = ("_free",)

    def __init__(self, ids: Mapping[str, Sequence[int]]) -> None:
        """`ids`: the ids of each accelerator resource that this node may use."""
        #: units free on each id, by resource; 0 <= units <= RESOURCE_UNIT; ids keep their order
        self._free: dict[str, dict[int, int]] = {}
        for resource, numbers in ids.items():
            if len(set(numbers)) != len(numbers):
                raise ValueError(f"the ids of {resource!r} must differ from each other, got {list(numbers)}")
            self._free[resource] = dict.fromkeys(numbers, RESOURCE_UNIT)

    def assign(self, demand: Resources) -> Assigned | None:
        """Take ids for the accelerators in `demand`: {} when it names none, None (and nothing taken) when they are not free."""
        assigned: Assigned = {}
        for resource, free in self._free.items():
            units = demand.get(resource, 0)
            if not units:
                continue
            ids = _choose_ids(free, units)
            if ids is None:
                return None
            assigned[resource] = ids
        for resource, ids in assigned.items():
            for number in ids:
                self._free[resource][number] -= min(demand[resource], RESOURCE_UNIT)
        return assigned

    def fits(self, demand: Resources) -> bool:
        """Whether `assign(demand)` would succeed."""
        for resource, free in self._free.items():
            units = demand.get(resource, 0)
            if units and _choose_ids(free, units) is None:
                return False
        return True

    def release(self, demand: Resources, assigned: Assigned) -> None:
        """Give back what `assign(demand)` returned."""
        for resource, ids in assigned.items():
            free = self._free[resource]
            units = min(demand[resource], RESOURCE_UNIT)
            for number in ids:
                free[number] += units
                assert free[number] <= RESOURCE_UNIT, f"{resource} {number} was released twice"

    def carve(self, demand: Resources, suffix: str) -> Assigned | None:
        """Set accelerators aside under names that end in `suffix`; None, and nothing set aside, when they are not free."""
        assigned = self.assign(demand)
        for resource, ids in (assigned or {}).items():
            self._free[resource + suffix] = dict.fromkeys(ids, min(demand[resource], RESOURCE_UNIT))
        return assigned

    def uncarve(self, assigned: Assigned, suffix: str) -> None:
        """Give back what `carve` set aside and is free; what is assigned of it now is released under the plain name later."""
        for resource in assigned:
            for number, units in self._free.pop(resource + suffix).items():
                self._free[resource][number] += units

    def free(self, resource: str) -> dict[int, int]:
        """Units free on each id of `resource`."""
        return dict(self._free.get(resource, {}))


def _choose_ids(free: dict[int, int], units: int) -> list[int] | None:
    """Ids for `units` of one accelerator, or None: the fullest shared id for a fraction, unused ids for whole ones."""
    if units < RESOURCE_UNIT:
        best = None
        for number, left in free.items():
            if left >= units and (best is None or left < free[best]):
                best = number
        return None if best is None else [best]
    count = -(-units // RESOURCE_UNIT)
    whole = [number for number, left in free.items() if left == RESOURCE_UNIT]
    return whole[:count] if len(whole) >= count else None


# ---------------------------------------------------------------- accelerators in the environment of a process


def visible_ids(resource: str, count: int, environ: Mapping[str, str]) -> list[int]:
    """The ids a node uses for its `count` accelerators: those listed in its own environment when they are numbers, else 0, 1, ...

    Raises:
        ValueError: the environment shows fewer than `count`.
    """
    names = _visible_names(resource, environ)
    if names is None:
        return list(range(count))
    if len(names) < count:
        raise ValueError(
            f"{count} {resource} were asked for, but the environment shows only {len(names)}: {','.join(names)}"
        )
    if all(name.isdecimal() for name in names):
        return [int(name) for name in names[:count]]
    return list(range(count))


def visible_variables(assigned: Assigned, environ: Mapping[str, str], vendor: str = "") -> dict[str, str]:
    """The environment variables that show a task the accelerators `assigned` to it, and no others.

    `environ` is the node's own environment: where that names devices by UUID, so does the answer. `vendor` chooses the row of
    `ACCELERATORS`; without it, the variable that `environ` has set decides, else the first row.
    """
    variables: dict[str, str] = {}
    for resource, ids in assigned.items():
        row = _row_of(resource, environ, vendor)
        if row is None:
            continue
        names = _visible_names(resource, environ)
        if names is not None and not all(name.isdecimal() for name in names):
            text = ",".join(names[number] for number in ids)
        else:
            text = ",".join(map(str, ids))
        for variable in row.variables:
            variables[variable] = text
    return variables


def _row_of(resource: str, environ: Mapping[str, str], vendor: str) -> Accelerator | None:
    rows = [row for row in ACCELERATORS if row.resource == resource]
    for row in rows:
        if row.vendor == vendor or (not vendor and any(variable in environ for variable in row.variables)):
            return row
    return rows[0] if rows else None


def _visible_names(resource: str, environ: Mapping[str, str]) -> list[str] | None:
    """Devices listed by the environment, or None where no variable limits them."""
    for row in ACCELERATORS:
        if row.resource != resource:
            continue
        for variable in row.variables:
            if variable in environ:
                return [name.strip() for name in environ[variable].split(",") if name.strip()]
    return None
