"""What is to be computed: tasks as trees, and what became of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

Demand = dict[str, int]  #: in 1/10,000 units
ONE_CPU: Demand = {"CPU": 10_000}
RETRIES = 3


@dataclass(slots=True, eq=False)
class Task:
    """One task: it computes, submits its children, waits for them, and ends. A retry begins from the start, with new children."""

    duration_s: float
    children: Callable[[], list[Task]] | None = None
    demand: Demand = field(default_factory=lambda: ONE_CPU)
    strategy: dict[str, Any] = field(default_factory=dict)
    depth: int = 0
    retries_left: int = RETRIES
    #: called when it has ended, for better or worse
    on_end: Callable[[Task], None] | None = None
    submitted_at: float = 0.0
    started_at: float = -1.0
    ended_at: float = -1.0
    executions: int = 0
    #: "" while it has not ended; "done", or why it never will be
    end: str = ""

    def finish(self, how: str, now: float) -> None:
        """It has ended, once."""
        assert not self.end, f"a task ended twice: {self.end}, {how}"
        self.end, self.ended_at = how, now
        if self.on_end is not None:
            self.on_end(self)


def tree(fan_out: int, levels: int, duration_s: float, depth: int = 0) -> Task:
    """A task that submits `fan_out` others, and so on, `levels` deep."""
    children = None
    if levels > 1:

        def children() -> list[Task]:
            return [tree(fan_out, levels - 1, duration_s, depth + 1) for _ in range(fan_out)]

    return Task(duration_s, children, depth=depth)
