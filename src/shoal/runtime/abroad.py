"""Connections to workers of other nodes.

Purpose: `connect_abroad` gives a socket on which such a worker is spoken to like one of this node.

Design: the address "tcp:HOST:PORT/WORKER" is the other node's daemon and the worker's id. The daemon proves itself and is proved to, hands the
connection on, and the worker says so by one byte; from then on both ends of the socket are the two processes.

What it does not do: read or write tasks (`submitter`, `actor_calls`).
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from shoal.protocol.limits import PROTOCOL_VERSION
from shoal.protocol.node_messages import RouteToWorker
from shoal.wire.framing import encode_frame

if TYPE_CHECKING:
    from shoal.runtime.core import Runtime


def is_abroad(address: str) -> bool:
    """Whether an address is that of a worker of another node."""
    return address.startswith("tcp:")


def connect_abroad(runtime: Runtime, address: str, timeout_s: float) -> socket.socket:
    """Connect to a worker of another node.

    Raises:
        OSError: the node cannot be reached, does not know the worker, or did not answer in time.
    """
    from shoal.wire.tcp import connect_authenticated

    node_address, _, worker = address.rpartition("/")
    config = runtime.config
    gateway = config.get("tls_gateway", "")
    sock = connect_authenticated(node_address, config["cluster_token"], timeout_s, gateway=gateway)
    try:
        sock.settimeout(timeout_s)
        sock.sendall(
            encode_frame(RouteToWorker(PROTOCOL_VERSION, bytes.fromhex(worker), runtime.node_id, runtime.worker_id))
        )
        if sock.recv(1) != b"1":
            raise ConnectionError(f"the node at {node_address} has no worker {worker[:8]}")
    except BaseException:
        sock.close()
        raise
    return sock
