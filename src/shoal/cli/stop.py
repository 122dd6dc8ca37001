"""`shoal stop` and `shoal drain`: nodes that leave.

Design: `stop` ends what `shoal start` has left running on this machine, by signals to daemons whose pids the kernel tells (never by names or numbers
from files); sessions of programs end with their programs. `drain` asks the GCS through a node on this machine.

What it does not do: reach other machines by itself (a drained node may be anywhere).
"""

from __future__ import annotations

import os
import signal
import time

import click

from shoal.launch.local_nodes import LocalNode, local_nodes, node_at, only_node
from shoal.launch.nodes import default_parent_dir
from shoal.launch.observer import Observer, SessionUnreachableError
from shoal.system.janitor import live_sessions, remove_session
from shoal.system.process import open_pidfd, wait_readable

STOP_WAIT_S = 5.0
POLL_S = 0.05


def run_stop(address: str | None, force: bool) -> None:
    """End the nodes that `shoal start` has started here; those of one cluster if `address` is given.

    Raises:
        click.ClickException: some could not be ended.
    """
    nodes = [node for node in local_nodes(default_parent_dir()) if node.stays and address in (None, node.address)]
    if not nodes:
        of = f" of the cluster at {address}" if address else ""
        click.echo(f"No node{of} that `shoal start` has started runs on this machine.")
        return
    # The head last: the others still tell it that they leave.
    stuck = [node.name for node in sorted(nodes, key=lambda node: node.is_head) if not _end(node, force)]
    if stuck:
        raise click.ClickException(f"still running: {', '.join(stuck)}. Try `shoal stop --force`")


def _end(node: LocalNode, force: bool) -> bool:
    """Whether a node is gone."""
    try:
        with Observer(node.session_dir) as observer:
            pid = observer.daemon_pid()
            pidfd = open_pidfd(pid)
    except SessionUnreachableError:
        return _ends_by_itself(node)
    if pidfd < 0:
        return True
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL if force else signal.SIGINT)
        ended = wait_readable(pidfd, STOP_WAIT_S)
    except ProcessLookupError:
        ended = True
    finally:
        os.close(pidfd)
    if ended:
        if force:
            remove_session(node.session_dir)
        click.echo(
            f"{'Killed' if force else 'Ended'} {'the head' if node.is_head else 'node'} {node.name} of the cluster at {node.address}."
        )
    return ended


def _ends_by_itself(node: LocalNode) -> bool:
    """Whether a node that does not listen any more is soon gone."""
    until = time.monotonic() + STOP_WAIT_S
    while node.session_dir in live_sessions(os.path.dirname(os.path.dirname(node.session_dir))):
        if time.monotonic() > until:
            return False
        time.sleep(POLL_S)
    return True


def run_drain(wanted: str, address: str | None, deadline_s: float, reason: str, wait: bool) -> None:
    """Let a node leave when nobody needs it any more.

    Args:
        wanted: its name, its address, or the beginning of its id.

    Raises:
        click.ClickException: there is no such node, or it cannot leave.
    """
    try:
        parent_dir = default_parent_dir()
        through = only_node(parent_dir) if address is None else node_at(address, parent_dir)
        with Observer(through.session_dir) as observer:
            node_id, name = _node_named(observer, wanted)
            observer.call("gcs.drain_node", {"node_id": node_id, "deadline_s": deadline_s, "reason": reason})
            click.echo(
                f"Node {name} drains: it takes nothing new, and leaves when nobody needs it, in {deadline_s:g} s at the latest."
            )
            while wait and not _has_left(observer, node_id, itself=through.node_id == node_id.hex()):
                time.sleep(POLL_S)
    except (SessionUnreachableError, ConnectionError, RuntimeError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    if wait:
        click.echo(f"Node {name} has left.")


def _node_named(observer: Observer, wanted: str) -> tuple[bytes, str]:
    rows = [row for row in observer.call("gcs.nodes")["nodes"] if row["alive"]]
    found = [
        row
        for row in rows
        if wanted in (row["name"], row["address"].removeprefix("tcp:"))
        or (len(wanted) >= 4 and row["node_id"].hex().startswith(wanted))
    ]
    if len(found) != 1:
        there_are = ", ".join(f"{row['name']} ({row['node_id'].hex()[:8]})" for row in rows)
        raise ValueError(
            f"{'no node is' if not found else 'several nodes are'} called {wanted!r}; there are {there_are}"
        )
    return found[0]["node_id"], found[0]["name"]


def _has_left(observer: Observer, node_id: bytes, itself: bool) -> bool:
    """Whether a node is gone; with `itself` it is the one that is asked, and does not answer then."""
    try:
        rows = observer.call("gcs.nodes")["nodes"]
    except SessionUnreachableError:
        if itself:
            return True
        raise
    return not any(row["node_id"] == node_id and row["alive"] for row in rows)
