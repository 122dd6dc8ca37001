"""Connecting a process to its node daemon: the handshake of driver and worker.

Purpose: from a socket path to a `Runtime` that is registered, has a store, and reads in the background.

Design: connect, Hello, Register; wait for Registered (bounded); open the process page and the store. The same for both roles.

What it does not do: start a node (`launch`), or run tasks (`worker`).
"""

from __future__ import annotations

import os
import socket
import sys
from time import perf_counter
from typing import Any

from shoal.protocol.limits import CONNECT_TIMEOUT_S, PROTOCOL_VERSION, SWITCH_INTERVAL_S
from shoal.protocol.messages import Hello, Register, Registered, Shutdown
from shoal.runtime.core import Runtime
from shoal.runtime.objects import attend_to_dropped
from shoal.runtime.reactor import Connection, Waiter
from shoal.store.client import StoreClient
from shoal.store.page import ProcessPage


def connect(
    runtime: Runtime, node_socket: str, address: str = "", startup_token: int = 0, job: dict[str, Any] | None = None
) -> ProcessPage:
    """Register `runtime` with the node daemon behind `node_socket`.

    Args:
        address: where peers reach this process; empty for a driver.
        startup_token: what the zygote gave a worker.
        job: a driver's job: namespace, settings.

    Returns:
        The process page (status and pins).

    Raises:
        ConnectionError: nobody listens there, or it did not answer in time.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(CONNECT_TIMEOUT_S)  # a stopped daemon's backlog may be full
    try:
        sock.connect(node_socket)
    except OSError as error:
        sock.close()
        raise ConnectionError(f"no Shoal node answers at {node_socket}: {error.strerror or error}") from None
    reactor = runtime.reactor
    answers: list[Registered] = []
    waiter = Waiter()

    def on_registered(connection: Connection, message: Registered) -> None:
        # Here and not below: a lease may follow in the same read, and says more.
        runtime.node_id = message.node_id
        runtime.objects.live_on(message.node_id)
        runtime.job_id = runtime.root.job_id = message.job_id
        runtime.namespace = message.namespace
        runtime.session_dir = message.session_dir
        runtime.config = message.config
        answers.append(message)
        waiter.arrived()

    def on_closed(connection: Connection) -> None:
        waiter.finish()
        runtime.on_daemon_lost(connection)

    refusals: list[str] = []
    on_shutdown = reactor.handlers.get(Shutdown)

    def on_refused(connection: Connection, message: Shutdown) -> None:
        if answers and on_shutdown is not None:
            on_shutdown(connection, message)
        else:
            refusals.append(message.reason)

    reactor.handlers[Registered] = on_registered
    reactor.handlers[Shutdown] = on_refused
    connection = reactor.add(sock, on_closed, causal=True)
    with reactor.lock:
        connection.send(Hello(PROTOCOL_VERSION, runtime.worker_id, runtime.job_id, runtime.pid))
        connection.send_now(Register(runtime.role, runtime.worker_id, runtime.pid, address, startup_token, job or {}))
    reactor.wait(waiter, perf_counter() + CONNECT_TIMEOUT_S)
    if on_shutdown is not None:
        reactor.handlers[Shutdown] = on_shutdown
    if refusals:
        raise ConnectionError(f"the Shoal node at {node_socket} does not take this process: {refusals[0]}")
    if not answers:
        raise ConnectionError(
            f"the Shoal node at {node_socket} did not accept this process within {CONNECT_TIMEOUT_S} s"
        )
    registered = answers[0]
    page = ProcessPage.open(registered.daemon_pid, registered.page_fd)
    runtime.daemon_pid = registered.daemon_pid
    runtime.store = StoreClient(registered.daemon_pid, page, runtime.open_segment)
    runtime.store.attend = attend_to_dropped
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    reactor.start_background()
    return page


def new_worker_id() -> bytes:
    """A fresh id of a process."""
    return os.urandom(16)
