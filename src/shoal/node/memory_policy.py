"""Whom to kill when memory runs out, before the kernel kills somebody blindly, and who has taken more than asked for.

Purpose: two pure decisions.

Design: a process that holds much and can be run again at the least loss goes first, by `Loss`; among those of the least loss that hold at least
half of what the largest of them holds, the one that began last: killing a small one frees nothing.

A task or actor that asked for `memory` promised to use no more. What its process holds beyond what it held when the lease began may exceed that by
SLACK_BYTES: allocators keep what was freed, and modules are loaded at first use.

What it does not do: measure (`io.memory_watch`), or kill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

#: a process smaller than this share of the limit is not worth its death
WORTH_SHARE = 0.01
SLACK_BYTES = 64 << 20


class Loss(IntEnum):
    """What is lost with a process, the least first."""

    TIME = 0  #: a task that is run again
    RECOVERY = 1  #: an actor that takes checkpoints
    TASK = 2  #: a task that may run once only
    STATE = 3  #: an actor that is restarted without its state
    ACTOR = 4  #: an actor for good


@dataclass(slots=True)
class Candidate:
    """A worker that could be killed. `lease_id` grows with time; `private_bytes` is what its death gives back."""

    worker_id: bytes
    lease_id: int
    loss: Loss
    private_bytes: int
    #: what it asked for (0 for nothing), and held when it began
    asked_bytes: int = 0
    before_bytes: int = 0


def choose_victim(candidates: Sequence[Candidate], limit_bytes: int) -> Candidate | None:
    """The worker whose death helps most and costs least; None when nobody's would help."""
    worth = [candidate for candidate in candidates if candidate.private_bytes >= WORTH_SHARE * limit_bytes]
    if not worth:
        return None
    least = min(candidate.loss for candidate in worth)
    group = [candidate for candidate in worth if candidate.loss is least]
    largest = max(candidate.private_bytes for candidate in group)
    return max(
        (candidate for candidate in group if 2 * candidate.private_bytes >= largest),
        key=lambda candidate: candidate.lease_id,
    )


def taken_bytes(candidate: Candidate) -> int:
    """What it has taken since it began."""
    return max(0, candidate.private_bytes - candidate.before_bytes)


def over_what_they_asked(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that have taken more than they asked for."""
    return [
        candidate
        for candidate in candidates
        if candidate.asked_bytes and taken_bytes(candidate) > candidate.asked_bytes + SLACK_BYTES
    ]
