"""The trace of what ran, in the format of chrome://tracing and Perfetto.

Design: one complete event ("X") for each execution of a task or actor call, in microseconds since the epoch; one row a worker process,
named by metadata events ("M"). Nodes are the trace's processes, workers its threads.

What it does not do: record (workers do, best effort: of very many short tasks a part), or keep (the GCS does, the newest).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from shoal.runtime import core

#: workers send what they recorded when they have been idle so long (see `executor.EVENTS_IDLE_S`), so this is waited for first
SETTLE_S = 0.06


def timeline(filename: str | None = None) -> list[dict[str, Any]] | None:
    """The tasks and actor calls that ran, as a trace for Perfetto (ui.perfetto.dev) or chrome://tracing.

    Args:
        filename: where to write it as JSON; None returns it.

    Raises:
        OSError: the file cannot be written.
    """
    time.sleep(SETTLE_S)
    runtime = core.current()
    names = {row["node_id"]: row.get("name") or row["node_id"].hex()[:8] for row in runtime.call("gcs.nodes")["nodes"]}
    trace = trace_of(runtime.call("gcs.task_events")["events"], names)
    if filename is None:
        return trace
    import json

    with open(filename, "w", encoding="utf-8") as file:
        json.dump(trace, file)
    return None


def trace_of(
    rows: list[dict[str, Any]], node_names: Mapping[bytes, str] = MappingProxyType({})
) -> list[dict[str, Any]]:
    """Rows of the GCS's table of task events as a list of trace events."""
    trace: list[dict[str, Any]] = []
    node_numbers: dict[bytes, int] = {}
    seen_workers: set[tuple[int, int]] = set()
    for row in rows:
        node_id = row.get("node_id") or b""
        node = node_numbers.get(node_id)
        if node is None:
            node = node_numbers[node_id] = len(node_numbers) + 1
            trace.append(_name("process_name", node, 0, f"node {node_names.get(node_id) or node_id.hex()[:8]}"))
        pid = int(row.get("pid") or 0)
        if (node, pid) not in seen_workers:
            seen_workers.add((node, pid))
            trace.append(_name("thread_name", node, pid, f"worker {pid}"))
        start_s, end_s = row["started_s"], row["ended_s"]
        failed = row["state"] != "FINISHED"
        trace.append(
            {
                "cat": "task",
                "name": row["name"],
                "ph": "X",
                "ts": start_s * 1e6,
                "dur": max(0.0, end_s - start_s) * 1e6,
                "pid": node,
                "tid": pid,
                "cname": "terrible" if failed else "generic_work",
                "args": {
                    "task_id": row["task_id"].hex(),
                    "attempt": row["attempt"],
                    "state": row["state"],
                    "error": row.get("error_type", ""),
                    "worker_pid": pid,
                    "node_id": node_id.hex(),
                },
            }
        )
    return trace


def _name(kind: str, pid: int, tid: int, text: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "ts": 0, "pid": pid, "tid": tid, "args": {"name": text}}
