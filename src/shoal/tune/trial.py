"""A trial: one configuration, what it has reported, and where it stands.

pending --> running --> terminated | errored
   ^           |
   |-----------+  a failure with tries left, a driver that ended (from the last checkpoint)
   +-- paused <+  a scheduler's decision
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

PENDING = "PENDING"
RUNNING = "RUNNING"
PAUSED = "PAUSED"
TERMINATED = "TERMINATED"
ERROR = "ERROR"

UNFINISHED = (PENDING, RUNNING, PAUSED)


def is_finite(value: Any) -> bool:
    """Whether a metric's value can be compared and drawn: a number, neither NaN nor infinite."""
    return isinstance(value, (int, float)) and math.isfinite(value)


@dataclass(slots=True)
class CheckpointRecord:
    """A checkpoint in the experiment's folder: its path below that folder and the result reported with it."""

    path: str
    result: dict[str, Any]


@dataclass(slots=True)
class Trial:
    """Only `Experiment` writes to it."""

    trial_id: str
    index: int
    config: dict[str, Any]
    status: str = PENDING
    history: list[dict[str, Any]] = field(default_factory=list)  #: results, without those undone by a restart
    checkpoints: list[CheckpointRecord] = field(default_factory=list)  #: that exist, the newest last
    restore_from: CheckpointRecord | None = None  #: where its next start begins
    taken_over: CheckpointRecord | None = None  #: another trial's, while it has none of its own since then
    taken_at: int = 0  #: how long `history` was when it took that over
    checkpoints_made: int = 0  #: so that names never repeat
    starts: int = 0
    failures: int = 0
    error_text: str | None = None  #: of the last failure
    error: BaseException | None = None  #: the same as an object, in the process that saw it

    @property
    def last_result(self) -> dict[str, Any]:
        """The newest result; empty before the first."""
        return self.history[-1] if self.history else {}

    @property
    def folder(self) -> str:
        """Of its files, below the experiment's."""
        return f"trial_{self.trial_id}"
