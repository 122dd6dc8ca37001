"""Placement groups, under the name by which programs import them: `from shoal.util.placement_group import placement_group`.

`shoal.util.placement_group(...)` is the function itself; as a module of that name exists too, the module can be called.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from shoal.api.placement_groups import (
    PlacementGroup,
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

__all__ = [
    "PlacementGroup",
    "get_current_placement_group",
    "get_placement_group",
    "placement_group",
    "placement_group_table",
    "remove_placement_group",
]


class _CallableModule(ModuleType):
    """A module that is a function as well."""

    def __call__(self, *args: Any, **kwargs: Any) -> PlacementGroup:
        return placement_group(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
