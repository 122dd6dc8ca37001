"""What the node's statistics say of objects: the measure of every test that asks whether something was freed."""

from __future__ import annotations

import time
from typing import Any

import shoal
from shoal.runtime import core

FREED_WITHIN_S = 1.0
LOOK_S = 0.012  #: between two looks at the counts, on an idle machine
STRETCH_MAX = 10.0


def counts() -> dict[str, int]:
    """Objects and holds in the node's directory, objects and bytes in its store."""
    statistics = core.current().call("node.stats")
    directory, store = statistics["objects"], statistics["store"]
    return {
        "objects": directory["objects"],
        "holds": directory["holds"],
        "stored": store["objects"] + store["spilled_objects"],
        "stored_bytes": store["resident_bytes"] + store["spilled_bytes"],
    }


def wait_for_counts(expected: dict[str, int], within_s: float = FREED_WITHIN_S) -> None:
    """Fail unless the node's counts come down to `expected` in time. (Below is fine: a worker that left took its functions' refs with it.)

    On a machine where others compute, the time is stretched by as much as a look at the counts takes longer than on an idle one.
    """
    begun = time.monotonic()
    looks = 0
    while True:
        found = counts()
        if all(found[name] <= expected[name] for name in expected):
            return
        looks += 1
        waited_s = time.monotonic() - begun
        stretch = min(STRETCH_MAX, max(1.0, waited_s / looks / LOOK_S))
        assert waited_s < within_s * stretch, (
            f"not freed within {waited_s:.1f} s ({within_s} on an idle machine): {found}, expected {expected}"
        )
        time.sleep(0.01)


def settled_counts(quiet_s: float = 0.15, within_s: float = 5.0) -> dict[str, int]:
    """The counts once they have stood still for a while: the baseline of a test."""
    deadline = time.monotonic() + within_s
    last, since = counts(), time.monotonic()
    while time.monotonic() < deadline:
        time.sleep(0.02)
        found = counts()
        if found != last:
            last, since = found, time.monotonic()
        elif time.monotonic() - since > quiet_s:
            break
    return last


def eventually(check: Any, within_s: float = 10.0) -> None:
    """Fail unless `check()` becomes true in time."""
    deadline = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < deadline, f"{check} stayed false for {within_s} s"
        time.sleep(0.01)


def pid_of(actor: Any) -> int:
    """The process of an actor."""
    import os

    pid: int = shoal.get(actor.__shoal_call__.remote(lambda self: os.getpid()), timeout=10)
    return pid
