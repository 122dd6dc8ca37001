"""A node's membership of a cluster: its TCP listener, its lines to other nodes, leases and routes across nodes, heartbeats.

Purpose: everything that a lone node (`shoal.init()` on a laptop) does without stands behind this one door; the daemon makes it for a cluster's nodes.

    TcpListener -> (token proved) -> Arrivals -> LinkHello: NodeLinks | RouteToWorker: Routes | OpenTransfer: transfers

Design: what is free here, and who waits, is told to the GCS again and again, and soon after it changed (`scheduling.heartbeat`). The address that
others are given is the host that the node was told to listen on, with the port that it got.

What it does not do: decide where leases go (`scheduling.forwarding`, the GCS), or when a node is dead (the GCS).
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shoal.node.io.draining import Draining
from shoal.node.io.foreign_leases import ForeignLeases
from shoal.node.io.gcs_link import GcsLink
from shoal.node.io.leases import Leases
from shoal.node.io.leash import Leash
from shoal.node.io.moving import Moving
from shoal.node.io.node_links import Arrivals, NodeLinks
from shoal.node.io.processes import ProcessTable, Worker
from shoal.node.io.routes import Routes
from shoal.node.io.transfer import Transfer
from shoal.protocol.gcs_messages import NodeLoad
from shoal.protocol.limits import CONNECT_TIMEOUT_S
from shoal.protocol.node_messages import LinkHello, OpenTransfer, RouteToWorker
from shoal.scheduling.bundles import lasting
from shoal.scheduling.heartbeat import interval_s, soon_s
from shoal.wire.tcp import connect_authenticated, format_address, listening_socket
from shoal.wire.tcp_listener import TcpListener

if TYPE_CHECKING:
    import asyncio

    from shoal.node.io.gcs_shards import GcsShards
    from shoal.node.io.store_shell import StoreShell
    from shoal.node.io.tls_gateway import TlsGateway

WAITING_TOLD_MAX = 100


def listen_for_nodes(host: str, port: int = 0) -> tuple[socket.socket, str]:
    """A socket on which other nodes arrive, and the address that they are given.

    Raises:
        OSError: the address cannot be had.
    """
    sock = listening_socket(host, port)
    return sock, format_address(*sock.getsockname()[:2])


class Cluster:
    """What makes a node one of many.

    Args:
        host, port: where to listen for other nodes; port 0 for any that is free.
        token: the cluster's; bytes.
        store: of this node.
        on_process_gone: see `ForeignLeases`.
        kill: ends a worker, with a reason.
        gateway: None in a cluster without TLS.
        transfer: of objects; made for this cluster's node.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        node_id: bytes,
        host: str,
        port: int,
        token: bytes,
        links: NodeLinks,
        leases: Leases,
        table: ProcessTable,
        gcs: GcsLink,
        store: StoreShell,
        on_process_gone: Callable[[bytes, bytes, list[bytes]], None],
        kill: Callable[[Worker, str], None],
        transfer: Transfer,
        gateway: TlsGateway | None,
    ) -> None:
        self._loop = loop
        self._leases = leases
        self._gcs = gcs
        self._store = store
        self._table = table
        self.token = token
        self.transfer = transfer
        transfer.use(self.dial)
        self.host = host
        #: made by `may_leave`, before the first message
        self.draining: Draining = None  # type: ignore[assignment]
        self._heartbeats = 0
        self.leash = Leash()
        self._told: NodeLoad | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due_at = 0.0
        self.links = links
        links.use(self.dial)
        self.foreign = ForeignLeases(node_id, leases, table, links, gcs, loop, on_process_gone, kill)
        gcs.on_lost = self.foreign.on_gcs_lost
        self.moving = Moving(loop, node_id, links, table, store, transfer, self.foreign.node_of)
        routes = Routes(table, self.foreign)
        #: what takes connections, by their first frame
        self.takers: dict[type, Callable[[socket.socket, Any], None]] = {
            LinkHello: links.accepted,
            RouteToWorker: routes.accepted,
            OpenTransfer: transfer.accepted,
        }
        self._arrivals = Arrivals(loop, self.takers)
        self.gateway = gateway.path if gateway is not None else ""
        sock, self.address = listen_for_nodes(host, port) if gateway is None else gateway.listen(host, port)
        self._listener = TcpListener(host, port, token, loop, self._arrivals.accepted, sock)

    def dial(self, address: str) -> socket.socket:
        """Connect to another node, and prove the token to each other. Blocking; raises ConnectionError."""
        return connect_authenticated(address, self.token, CONNECT_TIMEOUT_S, gateway=self.gateway)

    # ---------------------------------------------------------------- heartbeats

    def on_connected(self) -> None:
        """The GCS listens (again)."""
        self._heartbeats = 0
        self._told = None
        self.leash.registered(self._gcs.registered_ns)
        self._beat()
        self.foreign.on_gcs_connected()

    def use_shards(self, shards: GcsShards) -> None:
        """The GCS has several shards, each with a replica of the global scheduler."""
        shards.on_connected = lambda number: self._beat()
        shards.on_lost = self.foreign.on_replica_lost

    def load_changed(self) -> None:
        """What is free here, or who waits, may have changed."""
        delay_s = soon_s(1 + len(self.links.nodes))
        if self._due_at - self._loop.time() > delay_s:
            self._arm(delay_s)

    def _arm(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due_at = self._loop.time() + delay_s
        self._timer = self._loop.call_later(delay_s, self._beat)

    def _beat(self) -> None:
        machine = self._leases.machine
        load = NodeLoad(
            0,
            machine.available(),
            machine.total(),
            machine.demands(WAITING_TOLD_MAX),
            machine.lease_time_s,
            self._store.resident_bytes,
            bool(self.draining.reason),
            machine.actors(),
            lasting(machine.held_by_actors, machine.bundles()),
        )
        self._heartbeats += 1
        load.count = self._heartbeats
        self.leash.sent(load.count)
        self._gcs.beat(load)
        if self._gcs.elsewhere is not None:
            self._gcs.elsewhere.tell_replicas(load)
        self._arm(interval_s(1 + len(self.links.nodes)))

    def may_leave(
        self,
        move_objects: Callable[[], dict[str, int]],
        leave: Callable[[str], None],
        end: Callable[[str], None],
        grace_s: float,
    ) -> None:
        """How this node leaves; see `Draining`."""
        self.draining = Draining(
            self._loop,
            self._leases,
            self._table,
            self.moving,
            move_objects,
            leave,
            self._beat,
            end,
            grace_s,
        )

    def close(self) -> None:
        """The node ends."""
        self._listener.close()
        self._arrivals.close()
        self.links.close()
        self.transfer.close()
