"""Connections from processes of other nodes, handed on to the workers they are for.

Purpose: tasks go from process to process, also between nodes, though only the daemon listens on TCP.

Design: a process abroad connects to the daemon, proves the token, and names a worker (`RouteToWorker`). The daemon passes the socket itself
(SCM_RIGHTS) to the worker's second Unix socket, and has nothing to do with it from then on. The worker says so by one byte, before which the
other side sends nothing.

What it does not do: read tasks; prove tokens (`tcp_listener`).
"""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING

from shoal.node.io.processes import ProcessTable
from shoal.protocol.node_messages import RouteToWorker, handover_path

if TYPE_CHECKING:
    from shoal.node.io.foreign_leases import ForeignLeases

log = logging.getLogger("shoal.node")


class Routes:
    """Hands sockets on."""

    def __init__(self, table: ProcessTable, foreign: ForeignLeases) -> None:
        self._table = table
        self._foreign = foreign

    def accepted(self, sock: socket.socket, message: RouteToWorker) -> None:
        """A process abroad wants a worker of this node; a worker that is gone is told by the end of the connection."""
        worker = self._table.worker(message.worker_id)
        try:
            if worker is None or not worker.address:
                return
            self._foreign.meet(message.process, message.node_id)
            worker.submitters[message.process] = None
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
                door.setblocking(False)
                door.connect(handover_path(worker.address))
                socket.send_fds(door, [b"1"], [sock.fileno()])
        except OSError as error:
            log.warning("worker %d was not handed a connection: %s", worker.pid if worker is not None else 0, error)
        finally:
            sock.close()
