"""Why an object cannot be sent to a task: shown as a tree.

Purpose: `inspect_serializability`, as Ray's users know it.

What it does not do: search; that is `shoal.serialization.explain`.
"""

from __future__ import annotations

import sys
from typing import Any, TextIO

from shoal.serialization.explain import find_culprits

__all__ = ["FailureTuple", "inspect_serializability"]


class FailureTuple:
    """A part that cannot be serialized.

    Attributes:
        obj: the part.
        name: where it is.
        parent: what holds it; None for the inspected object itself.
        reason: what the pickler said.
    """

    __slots__ = ("name", "obj", "parent", "reason")

    def __init__(self, obj: Any, name: str, parent: Any, reason: str) -> None:
        self.obj = obj
        self.name = name
        self.parent = parent
        self.reason = reason

    def __repr__(self) -> str:
        return f"FailureTuple({self.name} [obj={self.obj!r}, parent={self.parent!r}]: {self.reason})"


def inspect_serializability(
    obj: Any, name: str | None = None, depth: int = 3, print_file: TextIO | None = None
) -> tuple[bool, set[FailureTuple]]:
    """Find out which parts of `obj` cannot be serialized, and print them.

    Args:
        obj: anything.
        name: how the text calls it; its `__name__` or "object" by default.
        depth: how many steps to go down into attributes, closures and items.
        print_file: where to print; the standard output by default.

    Returns:
        Whether `obj` can be serialized, and the parts that cannot.
    """
    title = name or getattr(obj, "__name__", None) or "object"
    culprits = find_culprits(obj, title, depth=max(0, depth))
    out = print_file or sys.stdout
    if not culprits:
        print(f"{title} can be serialized.", file=out)
        return True, set()
    print(f"{title} cannot be serialized. To blame:", file=out)
    failures = set()
    for culprit in culprits:
        print(f"  {culprit.path} = {culprit.value!r}: {culprit.error}", file=out)
        failures.add(FailureTuple(culprit.value, culprit.path, culprit.holder, culprit.error))
    return False, failures
