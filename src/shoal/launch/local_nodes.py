"""The nodes of this user that run on this machine, and the one that an address means.

Purpose: a driver joins a cluster through the node on its own machine, which it finds here by the cluster's address; so do commands.

Design: every session has its folder, and a node of a cluster says there to which it belongs (`janitor.write_membership`). Of several nodes of one
cluster on one machine (they pose as several) the head is taken, else the oldest.

What it does not do: connect (`runtime.session`), or start nodes (`nodes`).
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field

from shoal.system.janitor import live_sessions, read_membership
from shoal.wire.tcp import parse_address

REACH_TIMEOUT_S = 3.0


@dataclass(slots=True)
class LocalNode:
    """A node that listens here. `address` is that of its cluster, "HOST:PORT"; "" for a node that is alone. `addresses` are those by which it may be
    known too: of heads that were, or may be one day."""

    session_dir: str
    address: str = ""
    name: str = ""
    node_id: str = ""
    is_head: bool = False
    token_path: str = ""
    #: nobody's end ends it: `shoal start` made it
    stays: bool = False
    addresses: list[str] = field(default_factory=list)

    @property
    def node_socket(self) -> str:
        """Where its daemon is spoken to."""
        return os.path.join(self.session_dir, "node.sock")


def local_nodes(parent_dir: str) -> list[LocalNode]:
    """The nodes of this user that listen, newest first; a node that has not joined its cluster yet is none."""
    found = []
    for session_dir in live_sessions(parent_dir):
        facts = read_membership(session_dir)
        node = LocalNode(session_dir, **{key: facts[key] for key in _FACTS if key in facts})
        if os.path.exists(node.node_socket):
            found.append(node)
    return found


_FACTS = ("address", "addresses", "name", "node_id", "is_head", "token_path", "stays")


def only_node(parent_dir: str) -> LocalNode:
    """The node that address="auto" means: that of the only cluster, or the only lone node, there is.

    Raises:
        ConnectionError: there is none, or it is not clear which.
    """
    nodes = local_nodes(parent_dir)
    clusters = {node.address or node.session_dir: node for node in _best_first(nodes)[::-1]}
    if not nodes:
        raise ConnectionError(
            f'address="auto": no session of yours runs on this machine (looked in {parent_dir}/shoal-{os.geteuid()}). Start one with '
            "`shoal start --head` in a shell or shoal.init() in another program, or leave the address out"
        )
    if len(clusters) > 1:
        listed = "".join(f"\n    {node.address or node.node_socket}" for node in clusters.values())
        raise ConnectionError(
            f'address="auto": {len(clusters)} sessions of yours run here; give the address of the one you mean:{listed}'
        )
    return next(iter(clusters.values()))


def node_at(address: str, parent_dir: str) -> LocalNode:
    """The node on this machine that belongs to the cluster at `address` ("HOST:PORT", or several with commas between).

    Raises:
        ConnectionError: there is none; says whether the cluster answers, and what to do.
        ValueError: that is no address.
    """
    several = [_resolved(each) for each in address.split(",")]
    found = [
        node
        for node in local_nodes(parent_dir)
        if any(_resolved(each) in several for each in (node.address, *node.addresses) if each)
    ]
    if found:
        return _best_first(found)[0]
    address, wanted = address.split(",")[0], several[0]
    raise ConnectionError(
        f"no node of the cluster at {address} runs on this machine (looked in {parent_dir}/shoal-{os.geteuid()}), and a program joins "
        f"through one. {_advice(address, wanted)}"
    )


def _advice(address: str, wanted: tuple[str, int]) -> str:
    try:
        socket.create_connection(wanted, REACH_TIMEOUT_S).close()
    except OSError as error:
        return (
            f"Nobody answers at {address} either ({error.strerror or error}): is the head running (`shoal start --head` there), and is "
            "this the address that it printed?"
        )
    return f"Something answers at {address}: start a node here with `shoal start --address={address}`, then run the program again"


def _best_first(nodes: list[LocalNode]) -> list[LocalNode]:
    """The head, then the others from the oldest on."""
    oldest_first = nodes[::-1]
    oldest_first.sort(key=lambda node: not node.is_head)
    return oldest_first


def _resolved(address: str) -> tuple[str, int]:
    host, port = parse_address(address)
    try:
        return str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0]), port
    except OSError:
        return host, port
