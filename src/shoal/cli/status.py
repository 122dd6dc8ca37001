"""`shoal status`: the sessions of this user on this machine, what they have and what they do."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from shoal.launch.nodes import default_parent_dir
from shoal.launch.observer import Observer, SessionUnreachableError
from shoal.system.janitor import live_sessions

SOCKET_NAME = "node.sock"  #: of a session's daemon; there is none while it starts or ends
PIPED_WIDTH = 10_000  #: so that no line is wrapped for a program that reads them
_MEMORY_RESOURCES = ("memory", "object_store_memory")


def show_status(as_json: bool) -> int:
    """Print all sessions; the exit code."""
    sessions = [
        describe(path)
        for path in live_sessions(default_parent_dir())
        if os.path.exists(os.path.join(path, SOCKET_NAME))
    ]
    # What vanished meanwhile was ending.
    sessions = [session for session in sessions if "error" not in session or os.path.isdir(session["session"])]
    if as_json:
        print(json.dumps({"sessions": sessions}))
        return 0 if sessions else 1
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPED_WIDTH)
    if not sessions:
        console.print(
            "No Shoal session of yours runs on this machine. shoal.init() in a program starts one; `shoal demo` shows it."
        )
        return 1
    for session in sessions:
        show(session, console)
    return 0


def describe(session_dir: str) -> dict[str, Any]:
    """One session as plain values; `error` when its daemon does not answer."""
    session: dict[str, Any] = {"session": session_dir}
    try:
        with Observer(session_dir) as observer:
            session["daemon_pid"] = observer.daemon_pid()
            session["resources"] = observer.call("node.resources")
            session["statistics"] = observer.call("node.stats")
            jobs = observer.call("gcs.jobs")["jobs"]
            actors = observer.call("gcs.actors_list")["actors"]
    except (SessionUnreachableError, RuntimeError) as error:
        session["error"] = str(error)
        return session
    session["jobs"] = [
        {"job_id": job["job_id"].hex(), "pid": job["pid"], "namespace": job["namespace"], "state": job["state"]}
        for job in jobs
    ]
    states: dict[str, int] = {}
    for actor in actors:
        state = str(actor["state"]).lower()
        states[state] = states.get(state, 0) + 1
    session["actors"] = states
    session.update(processes_of(session["daemon_pid"]))
    return session


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


def show(session: dict[str, Any], console: Console) -> None:
    """One session as people read it."""
    title = f"session {os.path.basename(session['session'])}"
    if "error" in session:
        console.print(f"[bold]{title}[/bold]: [red]{session['error']}[/red]")
        return
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    for name, value in lines_of(session):
        table.add_row(name, value)
    console.print(table)


def lines_of(session: dict[str, Any]) -> list[tuple[str, str]]:
    """The rows of a session's table."""
    total, available = session["resources"]["total"], session["resources"]["available"]
    scheduler, store = session["statistics"].get("scheduler", {}), session["statistics"].get("store", {})
    used = [
        f"{total[name] - available.get(name, 0):g} of {total[name]:g} {name}"
        for name in sorted(total)
        if name not in _MEMORY_RESOURCES
    ]
    if "memory" in total:
        used.append(f"{size(total['memory'] - available.get('memory', 0))} of {size(total['memory'])} memory")
    running = [job for job in session["jobs"] if job["state"] == "running"]
    waiting = scheduler.get("tasks_waiting", 0)
    return [
        ("up for", f"{session['uptime_s']:.0f} s, daemon pid {session['daemon_pid']}"),
        ("in use", ", ".join(used)),
        (
            "drivers",
            ", ".join(f"pid {job['pid']} (namespace {job['namespace'] or 'none'})" for job in running) or "none",
        ),
        ("tasks", f"{scheduler.get('leases', 0)} workers leased, {waiting} tasks waiting"),
        ("actors", ", ".join(f"{count} {state}" for state, count in sorted(session["actors"].items())) or "none"),
        (
            "objects",
            f"{store.get('objects', 0)} in the store, {size(store.get('resident_bytes', 0))} of "
            f"{size(store.get('capacity_bytes', 0))}, {size(store.get('spilled_bytes', 0))} spilled",
        ),
        ("processes", f"{session['processes']} with {size(session['memory_bytes'])} of their own"),
        ("folder", session["session"]),
    ]


def size(count: float) -> str:
    """Bytes as people write them."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
