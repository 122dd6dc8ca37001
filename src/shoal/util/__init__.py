"""Everyday tools, each a thin layer on the public API.

Purpose: the names that programs expect under `shoal.util`: pools, queues, executors, iteration over results as they come.

Design: the tools know nothing of the engine: they are written as a user would write them, with `import shoal`. `placement_group`,
`scheduling_strategies`, `serialization` and `placement` give names to what the engine has. Names load when first used, so that
`import shoal` pays for none of them.

How to extend: write a module that imports only `shoal`, add its name to `_HOMES`, a test to tests/util.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.util.actor_pool import ActorPool
    from shoal.util.check_serialize import inspect_serializability
    from shoal.util.completion import as_completed, map_unordered
    from shoal.util.executor import Executor
    from shoal.util.placement import get_node_ip_address, list_named_actors
    from shoal.util.placement_group import (
        get_current_placement_group,
        get_placement_group,
        placement_group,
        placement_group_table,
        remove_placement_group,
    )
    from shoal.util.serialization import deregister_serializer, register_serializer

_HOMES = {
    "ActorPool": "actor_pool",
    "Executor": "executor",
    "as_completed": "completion",
    "deregister_serializer": "serialization",
    "get_current_placement_group": "placement_group",
    "get_node_ip_address": "placement",
    "get_placement_group": "placement_group",
    "inspect_serializability": "check_serialize",
    "list_named_actors": "placement",
    "map_unordered": "completion",
    "placement_group": "placement_group",
    "placement_group_table": "placement_group",
    "remove_placement_group": "placement_group",
    "register_serializer": "serialization",
}

_MODULES = {
    "actor_pool",
    "check_serialize",
    "completion",
    "dask",
    "executor",
    "joblib",
    "multiprocessing",
    "placement",
    "placement_group",
    "queue",
    "scheduling_strategies",
    "serialization",
}

__all__ = [
    "ActorPool",
    "Executor",
    "as_completed",
    "deregister_serializer",
    "get_current_placement_group",
    "get_node_ip_address",
    "get_placement_group",
    "inspect_serializability",
    "list_named_actors",
    "map_unordered",
    "placement_group",
    "placement_group_table",
    "register_serializer",
    "remove_placement_group",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is not None:
        value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    from shoal.protocol.foreign_names import missing_attribute

    raise missing_attribute(__name__, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_MODULES})
