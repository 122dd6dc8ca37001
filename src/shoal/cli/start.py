"""`shoal start`: a node of a cluster on this machine, that stays.

Design: the same functions as everywhere (`launch.nodes`), without a driver. The node is on its own as soon as it is ready; with --block it ends with
this command. Options that make no sense together are refused before anything is started.

What it does not do: start anything on other machines.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import click

from shoal.api.init_options import check_init_options
from shoal.launch.nodes import (
    HeadOptions,
    NodeOptions,
    NodeStartError,
    StartedNode,
    default_parent_dir,
    start_head,
    start_node,
)
from shoal.protocol.storage_names import check_storage
from shoal.system.tls_files import tls_folder
from shoal.system.token_file import token_path

HOST_DEFAULT = "127.0.0.1"
PORT_DEFAULT = 6480
LOOPBACK = ("127.", "localhost", "::1")


@dataclass(slots=True)
class StartRequest:
    """What the command was given. None: not given."""

    head: bool = False
    address: str | None = None
    host: str | None = None
    port: int | None = None
    node_port: int = 0
    num_cpus: float | None = None
    num_gpus: float | None = None
    memory: int | None = None
    object_store_memory: int | None = None
    resources: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    token_file: str | None = None
    gcs_shards: int | None = None
    storage: str | None = None
    tls: bool = False
    tls_folder: str | None = None
    drain_grace_s: float | None = None
    gcs_reconnect_timeout_s: float | None = None
    block: bool = False


def run_start(request: StartRequest) -> None:
    """Start the node, say how to go on, and stay with it if asked to.

    Raises:
        click.ClickException: it cannot be; says why.
    """
    try:
        _check(request)
        node = _start(request)
    except (NodeStartError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(_how_to_go_on(node, request))
    if node.ready.get("warning"):
        click.echo(f"Warning: {node.ready['warning']}", err=True)
    if request.block:
        _stay(node)


def _check(request: StartRequest) -> None:
    if request.head == (request.address is not None):
        raise ValueError("give either --head, to begin a cluster, or --address=HOST:PORT, to join one")
    of_heads = {"--port": request.port, "--gcs-shards": request.gcs_shards, "--storage": request.storage}
    given = [name for name, value in of_heads.items() if value is not None]
    if given and not request.head:
        raise ValueError(f"{', '.join(given)}: only the head has these (for this node's own port there is --node-port)")
    if request.drain_grace_s is not None and request.head:
        raise ValueError("--drain-grace: the cluster ends with its head, so that is not drained")
    if request.gcs_reconnect_timeout_s is not None and request.head:
        raise ValueError("--gcs-reconnect-timeout is for nodes that join: how long they wait for the head")
    check_init_options(
        address=None,
        num_cpus=request.num_cpus,
        num_gpus=request.num_gpus,
        memory=request.memory,
        resources=request.resources,
        labels=request.labels,
        object_store_memory=request.object_store_memory,
        namespace=None,
        log_to_driver=True,
    )
    if request.storage is not None:
        check_storage(request.storage)


def _start(request: StartRequest) -> StartedNode:
    options: dict[str, Any] = {
        "num_cpus": request.num_cpus,
        "num_gpus": request.num_gpus,
        "memory": request.memory,
        "object_store_memory": request.object_store_memory,
        "resources": request.resources,
        "labels": request.labels,
        "name": request.name,
        "node_port": request.node_port,
        "token_path": os.path.abspath(request.token_file or token_path()),
        "tls_folder": os.path.abspath(request.tls_folder or tls_folder()) if request.tls or request.tls_folder else "",
        "parent_dir": default_parent_dir(),
        "driver_pid": os.getpid() if request.block else 0,
        "ends_with_session": False,
    }
    waits = {"drain_grace_s": request.drain_grace_s, "gcs_reconnect_timeout_s": request.gcs_reconnect_timeout_s}
    options["settings"] = {name: value for name, value in waits.items() if value is not None}
    if request.address is not None:
        return start_node(NodeOptions(listen=request.host or "", **options), request.address)
    settings = {"gcs_storage": request.storage, "gcs_shards": request.gcs_shards}
    options["settings"] = {name: value for name, value in settings.items() if value is not None}
    port = PORT_DEFAULT if request.port is None else request.port
    return start_head(HeadOptions(listen=request.host or HOST_DEFAULT, port=port, **options))


def _how_to_go_on(node: StartedNode, request: StartRequest) -> str:
    address = node.address
    if not request.head:
        return (
            f"Joined the cluster at {address} as node {node.ready['name']} ({node.node_id[:8]}).\n"
            f"  programs here    shoal.init({address!r}), or set SHOAL_ADDRESS={address}\n"
            f"  what is there    shoal status\n"
            f"  leave            shoal drain {node.ready['name']}, or at once: shoal stop"
        )
    host = address.rpartition(":")[0]
    lines = [
        f"Started a cluster at {address}; its head is node {node.ready['name']} ({node.node_id[:8]}).",
        f"  programs here    shoal.init({address!r}), or set SHOAL_ADDRESS={address}",
        f"  more nodes       shoal start --address={address}{' --tls' if request.tls or request.tls_folder else ''}",
        f"                   on other machines copy the token there first, with its mode: scp -p {node.token_path} MACHINE:{node.token_path}",
        "  what is there    shoal status",
        "  end              shoal stop",
    ]
    if host.startswith(LOOPBACK):
        lines.append(
            f"Only this machine can reach {host}. For a cluster of several start the head with --host=ADDRESS, one of this machine's that the "
            "others reach."
        )
    return "\n".join(lines)


def _stay(node: StartedNode) -> None:
    """Until the node ends, or this command is told to: by Ctrl-C at once, by SIGTERM as the node itself would be."""
    told = False

    def leave(number: int, frame: FrameType | None) -> None:
        nonlocal told
        if not told:
            click.echo("ending the node")
        told = True
        node.notify()

    signal.signal(signal.SIGTERM, leave)
    try:
        how = node.wait()
    except KeyboardInterrupt:
        click.echo("ending the node")
        node.stop()
        return
    if told:
        node.stop()
        return
    tail = node.log_tail()
    node.stop()
    raise click.ClickException(f"the node ended: {how}" + (f". Its log ends with:\n{tail}" if tail else ""))
