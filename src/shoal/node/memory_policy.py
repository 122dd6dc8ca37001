"""Whom to kill when memory runs out, before the kernel kills somebody blindly.

Purpose: one pure decision.

Design: a process that holds much and can be run again at the least loss goes first. Tasks before actors (a task is retried, an actor
loses its state); among those that hold at least half of what the largest of them holds, the one that began last: killing a small one
frees nothing.

What it does not do: measure (`io.memory_watch`), or kill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: a process smaller than this share of the limit is not worth its death
WORTH_SHARE = 0.01


@dataclass(slots=True)
class Candidate:
    """A worker that could be killed. `lease_id` grows with time; `private_bytes` is what its death gives back."""

    worker_id: bytes
    lease_id: int
    is_actor: bool
    private_bytes: int


def choose_victim(candidates: Sequence[Candidate], limit_bytes: int) -> Candidate | None:
    """The worker whose death helps most and costs least; None when nobody's would help."""
    worth = [candidate for candidate in candidates if candidate.private_bytes >= WORTH_SHARE * limit_bytes]
    if not worth:
        return None
    group = [candidate for candidate in worth if not candidate.is_actor] or worth
    largest = max(candidate.private_bytes for candidate in group)
    return max(
        (candidate for candidate in group if 2 * candidate.private_bytes >= largest),
        key=lambda candidate: candidate.lease_id,
    )
