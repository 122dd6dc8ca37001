"""The rows of the object directory for people: who keeps an object, and what is known of it.

Purpose: when an object stays that nobody should hold, the answer to "node.objects" says who holds it (tests print it when something is left).

What it does not do: change anything.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.node.object_directory import ObjectDirectory


def listed_objects(directory: ObjectDirectory, limit: int) -> list[dict[str, Any]]:
    """The first `limit` objects that the directory knows.

    Each has its oid, owner (a process), what its value is ("" while it is not known), whether its task is owed, its holds by process, the
    objects that contain it, those whose making needs it, and the processes that wait for it. Walks all rows: for people, not for programs.
    """
    containers: dict[bytes, list[bytes]] = {}
    for oid, row in directory._objects.items():
        for inner in row.nested:
            containers.setdefault(inner, []).append(oid)
    keepers: dict[bytes, list[bytes]] = {}
    for oid, needs in directory._succession.kept.items():
        for need in needs:
            keepers.setdefault(need, []).append(oid)
    return [
        {
            "oid": oid,
            "owner": row.owner,
            "value": "" if row.value is None else type(row.value).__name__,
            "owed": oid in directory._owed.get(row.owner, ()),
            "holds": directory.holders(oid),
            "inside": containers.get(oid, []),
            "kept_for": keepers.get(oid, []),
            "waiters": list(row.waiters or ()),
        }
        for oid, row in islice(directory._objects.items(), limit)
    ]
