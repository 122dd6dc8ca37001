"""What follows from how a node was started: its resources, and where its cluster is.

What it does not do: look at the machine (`launch.node_process` has filled everything in).
"""

from __future__ import annotations

import os
import socket
from typing import Any

from shoal.protocol.limits import RESOURCE_UNIT
from shoal.protocol.resources import ACCELERATOR_RESOURCES, Resources, to_units, visible_ids
from shoal.system.start_plan import DaemonStart
from shoal.wire.tcp import format_address


def cluster_address(start: DaemonStart) -> str:
    """Where the GCS of the node's cluster listens: "tcp:HOST:PORT"."""
    if not start.gcs_pid:
        return str(start.options["gcs_address"])
    public_fd = start.gcs_public_fd if start.gcs_public_fd >= 0 else start.gcs_listen_fd
    with socket.socket(fileno=os.dup(public_fd)) as listening:
        host, port = listening.getsockname()[:2]
    return format_address(host, port)


def move_cluster(options: dict[str, Any], address: str) -> None:
    """The GCS of a node's cluster is somewhere else from now on; programs may still name where it was."""
    options["gcs_addresses"] = [options["gcs_address"], *options.get("gcs_addresses", ())]
    options["gcs_address"] = address


def membership(start: DaemonStart, node_id: bytes, name: str, address: str, warning: str) -> dict[str, Any]:
    """What a node of a cluster tells its starter, and notes in its session's folder."""
    return {
        "ok": True,
        "node_id": node_id.hex(),
        "name": name,
        "address": cluster_address(start).removeprefix("tcp:"),
        "addresses": [each.removeprefix("tcp:") for each in dict.fromkeys(start.options.get("gcs_addresses", ()))],
        "node_address": address.removeprefix("tcp:"),
        "token_path": start.options["token_path"],
        "is_head": bool(start.gcs_pid),
        "stays": not start.driver_pid,
        "warning": warning,
    }


def accelerator_ids(total: Resources) -> dict[str, list[int]]:
    """The numbers of the node's accelerators, as its own environment shows them: 2 and 3 under CUDA_VISIBLE_DEVICES=2,3.

    Raises:
        ValueError: the environment shows fewer than the node is to have.
    """
    return {
        name: visible_ids(name, -(-units // RESOURCE_UNIT), os.environ)
        for name, units in total.items()
        if name in ACCELERATOR_RESOURCES
    }


def total_resources(options: dict[str, Any]) -> dict[str, int]:
    """The node's resources in 1/10,000 units, out of the options it was started with."""
    return to_units(
        {
            "CPU": options["num_cpus"],
            "GPU": options["num_gpus"],
            "memory": options["memory"],
            "object_store_memory": options["object_store_memory"],
            f"node:{options.get('node_listen') or '127.0.0.1'}": 1,
            **({} if options.get("gcs_address") else {"node:__internal_head__": 1}),
            **options["resources"],
        }
    )
