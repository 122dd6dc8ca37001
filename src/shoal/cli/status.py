"""`shoal status`: what runs on this machine, and the clusters it belongs to: nodes, resources, who waits and why.

Design: facts first (`facts`), as plain values for --json; text of them second (`text_of`). Everything is asked of daemons through
`launch.observer`, and nothing is started. A cluster is asked once, through one of its nodes here.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from typing import Any

import psutil

from shoal.launch.local_nodes import LocalNode, local_nodes
from shoal.launch.nodes import default_parent_dir
from shoal.launch.observer import Observer, SessionUnreachableError
from shoal.protocol.resources import Resources, add, to_floats

PENDING_SHOWN = 20
GROUPS_WAITING = ("pending", "rescheduling")
_MEMORY_RESOURCES = ("memory", "object_store_memory")


def show_status(as_json: bool, address: str | None = None) -> int:
    """Print all sessions and clusters, or the cluster at `address`; the exit code: 1 when there are none."""
    found = facts(address)
    if as_json:
        print(json.dumps(found))
    elif not found["sessions"]:
        where = (
            f"No node of the cluster at {address} runs on this machine."
            if address
            else "Nothing of yours runs on this machine."
        )
        print(
            f"{where} shoal.init() in a program starts a session, `shoal start --head` a cluster; `shoal demo` shows what they do."
        )
    else:
        print("\n\n".join(text_of(found)))
    return 0 if found["sessions"] else 1


# ---------------------------------------------------------------- facts


def facts(address: str | None = None) -> dict[str, Any]:
    """What there is: {"sessions": [one for each node here], "clusters": [one for each cluster of these]}."""
    nodes = [node for node in local_nodes(default_parent_dir()) if address in (None, node.address)]
    sessions = [session_facts(node) for node in nodes]
    # What vanished meanwhile was ending.
    sessions = [session for session in sessions if "error" not in session or os.path.isdir(session["session"])]
    clusters: dict[str, dict[str, Any]] = {}
    for node in sorted(nodes, key=lambda node: not node.is_head):
        if node.address and "error" in clusters.get(node.address, {"error": ""}):
            clusters[node.address] = cluster_facts(node)
    return {"sessions": sessions, "clusters": list(clusters.values())}


def session_facts(node: LocalNode) -> dict[str, Any]:
    """One node as plain values; `error` when its daemon does not answer."""
    session: dict[str, Any] = {"session": node.session_dir, "cluster": node.address, "name": node.name}
    try:
        with Observer(node.session_dir) as observer:
            session["daemon_pid"] = observer.daemon_pid()
            session["resources"] = observer.call("node.resources")
            session["statistics"] = observer.call("node.stats")
            session["waiting"] = [_pending(row) for row in observer.call("node.waiting")["waiting"]]
            session["gcs"] = session["statistics"]["gcs"].get("trouble", "")
            if not node.address and not session["gcs"]:
                session.update(_program_facts(observer))
                session["waiting"] += session["placement_groups_waiting"]
    except (SessionUnreachableError, RuntimeError) as error:
        session["error"] = str(error)
        return session
    session.update(processes_of(session["daemon_pid"]))
    return session


def cluster_facts(node: LocalNode) -> dict[str, Any]:
    """The cluster of `node` as plain values; `error` when it does not answer."""
    cluster: dict[str, Any] = {"address": node.address}
    try:
        with Observer(node.session_dir) as observer:
            if trouble := observer.call("node.gcs")["trouble"]:
                return {**cluster, "error": trouble}
            load = observer.call("gcs.cluster_load")
            rows = observer.call("gcs.nodes")["nodes"]
            cluster.update(_program_facts(observer))
    except (SessionUnreachableError, RuntimeError) as error:
        cluster["error"] = str(error)
        return cluster
    cluster["nodes"] = [_node_facts(row) for row in rows]
    cluster["resources"] = {"total": to_floats(load["total"]), "available": to_floats(load["available"])}
    cluster["waiting"] = [_pending(row) for row in load["demands"]]
    cluster["waiting"] += _queued_at_nodes(rows, [row["demand"] for row in load["demands"]])
    cluster["waiting"] += cluster["placement_groups_waiting"]
    return cluster


def _queued_at_nodes(rows: list[dict[str, Any]], asked_for: list[Resources]) -> list[dict[str, Any]]:
    """What waits in nodes' own queues, but for what they have asked the global scheduler for, too."""
    return [
        {
            "name": "tasks or actors",
            "demand": to_floats(demand),
            "count": count,
            "why": f"they wait in the queue of node {row['name']}, which is busy",
        }
        for row in rows
        if row["state"] != "dead"
        for demand, count in row["waiting"]
        if demand not in asked_for
    ]


def _program_facts(observer: Observer) -> dict[str, Any]:
    states: dict[str, int] = {}
    for actor in observer.call("gcs.actors_list")["actors"]:
        state = str(actor["state"]).lower()
        states[state] = states.get(state, 0) + 1
    groups = observer.call("gcs.groups")["groups"]
    counts: dict[str, int] = {}
    for group in groups:
        counts[group["state"]] = counts.get(group["state"], 0) + 1
    return {
        "placement_groups": counts,
        "placement_groups_waiting": [_waiting_group(group) for group in groups if group["state"] in GROUPS_WAITING],
        "jobs": [
            {"job_id": job["job_id"].hex(), "pid": job["pid"], "namespace": job["namespace"], "state": job["state"]}
            for job in observer.call("gcs.jobs")["jobs"]
        ],
        "actors": states,
    }


def _node_facts(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "node_id": row["node_id"].hex(),
        "name": row["name"],
        "state": row["state"],
        "is_head": row["is_head"],
        "address": row["address"].removeprefix("tcp:"),
        "hostname": row["hostname"],
        "total": to_floats(row["resources"]),
        "available": to_floats(row["available"]),
        "store_used_bytes": row["store_used_bytes"],
        "labels": row["labels"],
        "cause": row["cause"],
    }


def _pending(row: dict[str, Any]) -> dict[str, Any]:
    return {"name": row["name"], "demand": to_floats(row["demand"]), "count": row["count"], "why": row["why"]}


def _waiting_group(row: dict[str, Any]) -> dict[str, Any]:
    lacking = [bundle for bundle, node_id in zip(row["bundles"], row["nodes"], strict=True) if not node_id]
    demand: Resources = {}
    for bundle in lacking:
        add(demand, bundle)
    name = f"placement group {row['name'] or row['group_id'].hex()}, {len(lacking)} of {len(row['bundles'])} bundles"
    return {"name": name, "demand": to_floats(demand), "count": 1, "why": row["reason"]}


def processes_of(daemon_pid: int) -> dict[str, Any]:
    """Age, number and memory of the daemon and its descendants."""
    try:
        daemon = psutil.Process(daemon_pid)
        family = [daemon, *daemon.children(recursive=True)]
        uptime_s = time.time() - daemon.create_time()
    except psutil.Error:
        return {"processes": 0, "memory_bytes": 0, "uptime_s": 0.0}
    memory = 0
    for process in family:
        try:
            memory += process.memory_full_info().uss
        except psutil.Error:
            pass  # it ended meanwhile
    return {"processes": len(family), "memory_bytes": memory, "uptime_s": round(uptime_s, 1)}


# ---------------------------------------------------------------- text


def text_of(found: dict[str, Any]) -> list[str]:
    """One paragraph for each cluster and each session."""
    return [
        *(cluster_text(cluster) for cluster in found["clusters"]),
        *(session_text(each) for each in found["sessions"]),
    ]


def cluster_text(cluster: dict[str, Any]) -> str:
    """A cluster as people read it."""
    if "error" in cluster:
        return f"cluster at {cluster['address']}: {cluster['error']}"
    nodes = cluster["nodes"]
    living = [node for node in nodes if node["state"] != "dead"]
    head = f"cluster at {cluster['address']}: {len(living)} node{'s' if len(living) != 1 else ''}"
    table = [("node", "state", "CPU", "memory", "store", "more", "labels"), *(_node_row(node) for node in living)]
    lines = [head, *_indented(_columns(table))]
    lines += [
        f"  dead: {node['name']} ({node['node_id'][:8]}): {node['cause']}" for node in nodes if node["state"] == "dead"
    ]
    rows = [("in use", _in_use(cluster["resources"])), *_program_rows(cluster)]
    return "\n".join([*lines, *_indented(_columns(rows)), *_pending_lines(cluster["waiting"])])


def _node_row(node: dict[str, Any]) -> tuple[str, ...]:
    total, available = node["total"], node["available"]
    more = [
        f"{total[name] - available.get(name, 0):g}/{total[name]:g} {name}"
        for name in sorted(total)
        if name not in ("CPU", *_MEMORY_RESOURCES) and not name.startswith("node:")
    ]
    return (
        node["name"] + (" (head)" if node["is_head"] else ""),
        node["state"],
        f"{total.get('CPU', 0) - available.get('CPU', 0):g}/{total.get('CPU', 0):g}",
        f"{size(total.get('memory', 0) - available.get('memory', 0))}/{size(total.get('memory', 0))}",
        f"{size(node['store_used_bytes'])}/{size(total.get('object_store_memory', 0))}",
        ", ".join(more) or "-",
        ", ".join(f"{key}={value}" for key, value in sorted(node["labels"].items())) or "-",
    )


def session_text(session: dict[str, Any]) -> str:
    """A node of this machine as people read it."""
    title = f"session {os.path.basename(session['session'])}"
    if session["cluster"]:
        title = f"node {session['name']} of the cluster at {session['cluster']}, on this machine"
    if "error" in session:
        return f"{title}: {session['error']}"
    lines = [title, *_indented(_columns(lines_of(session)))]
    if not session["cluster"]:
        lines += _pending_lines(session["waiting"])
    return "\n".join(lines)


def lines_of(session: dict[str, Any]) -> list[tuple[str, str]]:
    """The rows of a session's table."""
    scheduler, store = session["statistics"].get("scheduler", {}), session["statistics"].get("store", {})
    waiting = scheduler.get("tasks_waiting", 0)
    return [
        ("up for", f"{session['uptime_s']:.0f} s, daemon pid {session['daemon_pid']}"),
        ("in use", _in_use(session["resources"])),
        *(_program_rows(session) if "jobs" in session else []),
        ("tasks", f"{scheduler.get('leases', 0)} workers leased, {waiting} tasks waiting"),
        (
            "objects",
            f"{store.get('objects', 0)} in the store, {size(store.get('resident_bytes', 0))} of "
            f"{size(store.get('capacity_bytes', 0))}, {size(store.get('spilled_bytes', 0))} spilled",
        ),
        ("processes", f"{session['processes']} with {size(session['memory_bytes'])} of their own"),
        ("folder", session["session"]),
        *([("trouble", session["gcs"])] if session.get("gcs") else []),
    ]


def _in_use(resources: dict[str, Any]) -> str:
    total, available = resources["total"], resources["available"]
    names = [name for name in sorted(total) if name not in _MEMORY_RESOURCES and not name.startswith("node:")]
    used = [f"{total[name] - available.get(name, 0):g} of {total[name]:g} {name}" for name in names]
    if "memory" in total:
        used.append(f"{size(total['memory'] - available.get('memory', 0))} of {size(total['memory'])} memory")
    return ", ".join(used)


def _program_rows(record: dict[str, Any]) -> list[tuple[str, str]]:
    running = [job for job in record["jobs"] if job["state"] == "running"]
    drivers = ", ".join(f"pid {job['pid']} (namespace {job['namespace'] or 'none'})" for job in running)
    actors = ", ".join(f"{count} {state}" for state, count in sorted(record["actors"].items()))
    rows = [("drivers", drivers or "none"), ("actors", actors or "none")]
    groups = ", ".join(f"{count} {state}" for state, count in sorted(record["placement_groups"].items()))
    return [*rows, ("groups", groups)] if groups else rows


def _pending_lines(waiting: list[dict[str, Any]]) -> list[str]:
    if not waiting:
        return []
    lines = ["  pending"]
    for row in waiting[:PENDING_SHOWN]:
        asks = ", ".join(f"{amount:g} {name}" for name, amount in sorted(row["demand"].items())) or "nothing"
        lines.append(f"    {row['count']} x {row['name'] or 'task'} ({asks}): {row['why']}")
    if len(waiting) > PENDING_SHOWN:
        lines.append(f"    and {len(waiting) - PENDING_SHOWN} more kinds")
    return lines


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[number]) for row in rows) for number in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def size(count: float) -> str:
    """Bytes as people write them."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
