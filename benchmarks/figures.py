"""What the engine's benchmark measures, and what each figure should be.

One table, read by the runner for its verdicts and by the measured processes for the order of work. A target is met by reaching it or,
on a machine slower than the one it was set on, by the same multiple of Ray in the same run (`TIMES_RAY`).

How to extend: add a row here and a function of the same key in `workloads.py` (and, where a rival has the notion, in `rivals.py`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Figure:
    """One row of the table. `kind` chooses the multiple of Ray that counts as met."""

    key: str
    title: str
    unit: str
    target: float | None
    kind: str  #: task, object or life (start, memory, stop)
    lower_is_better: bool = False


TIMES_RAY = {"task": 50.0, "object": 8.0}

FIGURES = [
    Figure("tasks_async", "batches of 1,000 empty tasks", "tasks/s", 60_000, "task"),
    Figure("task_sync", "one task at a time", "tasks/s", 22_000, "task"),
    Figure("actor_async", "actor calls, batches of 1,000", "calls/s", 80_000, "task"),
    Figure("actor_sync", "actor calls, one at a time", "calls/s", 25_000, "task"),
    Figure("actor_asyncio", "asyncio actor, batches of 1,000", "calls/s", 40_000, "task"),
    Figure("actor_n_to_n", "n:n actor calls from workers", "calls/s", 80_000, "task"),
    Figure("nested", "tasks submitted by workers, in sum", "tasks/s", 50_000, "task"),
    Figure("chain_200", "chain of 200 dependent tasks", "tasks/s", 15_000, "task"),
    Figure("argument_10kb", "tasks with a 10 kB argument", "tasks/s", 40_000, "task"),
    Figure("put_small", "put of a small object", "puts/s", 200_000, "object"),
    Figure("get_small", "get of a local small object", "gets/s", 500_000, "object"),
    Figure("put_1mb", "put of a 1 MB array", "GB/s", 6, "object"),
    Figure("put_100mb", "put of a 100 MB array", "GB/s", 10, "object"),
    Figure("put_800mb", "put of a 800 MB array", "GB/s", 10, "object"),
    Figure("get_100mb", "zero-copy get of a 100 MB array", "gets/s", 30_000, "object"),
    Figure("return_1mb", "tasks that return a 1 MB array", "GB/s", 3, "object"),
    Figure("wait_1000", "wait loop over 1,000 refs", "refs/s", 40_000, "task"),
    Figure("refs_10000", "get of an object that holds 10,000 refs", "gets/s", 100, "object"),
    Figure("actor_life", "actor create + call + kill", "actors/s", 100, "task"),
    Figure("start", "import + init + first result", "s", 0.5, "life", lower_is_better=True),
    Figure("idle_memory", "idle memory of all its processes (USS)", "MB", 60, "life", lower_is_better=True),
    Figure("idle_processes", "idle processes", "", None, "life", lower_is_better=True),
    Figure("stop", "shutdown", "s", 0.2, "life", lower_is_better=True),
]

BY_KEY = {figure.key: figure for figure in FIGURES}


def verdict(figure: Figure, ours: float | None, ray: float | None) -> str:
    """`ok`, `ok (xRay)` when only the multiple of Ray is met, `MISSED`, or nothing where there is no target or no value."""
    if figure.target is None or ours is None:
        return ""
    met = ours <= figure.target if figure.lower_is_better else ours >= figure.target
    if met:
        return "ok"
    multiple = TIMES_RAY.get(figure.kind)
    if ray and multiple and ours / ray >= multiple:
        return "ok (xRay)"
    return "MISSED"
