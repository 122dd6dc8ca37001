"""What the node's statistics say of objects: the measure of every test that asks whether something was freed."""

from __future__ import annotations

import time
from typing import Any

import shoal
from shoal.runtime import core

FREED_WITHIN_S = 30.0  #: tenths of a second, where nobody else computes


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
    """Fail unless the node's counts come down to `expected`. (Below is fine: a worker that left took its functions' refs with it.)"""
    deadline = time.monotonic() + within_s
    while True:
        found = counts()
        if all(found[name] <= expected[name] for name in expected):
            return
        assert time.monotonic() < deadline, (
            f"not freed within {within_s} s: {found}, expected {expected}; the driver is {core.current().worker_id!r}\n"
            + "\n".join(map(str, core.current().call("node.objects")["objects"]))
        )
        time.sleep(0.01)


def settled_counts(quiet_s: float = 0.15, within_s: float = 30.0) -> dict[str, int]:
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


def eventually(check: Any, within_s: float = 60.0) -> None:
    """Fail unless `check()` becomes true in time."""
    deadline = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < deadline, f"{check} stayed false for {within_s} s"
        time.sleep(0.01)


def pid_of(actor: Any) -> int:
    """The process of an actor."""
    import os

    pid: int = shoal.get(actor.__shoal_call__.remote(lambda self: os.getpid()), timeout=60)
    return pid
