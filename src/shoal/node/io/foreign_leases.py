"""The shell of forwarding: leases of this node's processes on other nodes, and of other nodes' processes here.

Purpose: messages become events of `scheduling.forwarding`, its effects become messages; and what other nodes ask becomes events of the
local scheduler.

    process --RequestLeases--> [forwarding] --PlaceLeases--> GCS --LeasesPlaced--> [forwarding] --ForeignLeases--> other node
    process <--LeaseGranted--- [forwarding] <--ForProcess(LeaseGranted)------------------------------------------- other node

Design: here only on nodes of a cluster. A process of another node is known (`node_of`) from its first request, or from its first connection to
an actor here, until its node says that it is dead, or is dead itself.

What it does not do: decide where anything goes (`scheduling.forwarding`, the GCS).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shoal.node.io.gcs_link import GcsLink
from shoal.node.io.leases import Leases
from shoal.node.io.node_links import NodeLinks
from shoal.node.io.processes import Driver, Process, ProcessTable, Worker
from shoal.protocol import ids, messages
from shoal.protocol.gcs_messages import LeasesPlaced, NodeEntry, PlaceLeases
from shoal.protocol.messages import (
    UNSCHEDULABLE_BUNDLE_GONE,
    KillWorker,
    LeaseGranted,
    LeasesUnschedulable,
    ReturnLease,
    SignalWorker,
)
from shoal.protocol.node_messages import ForeignLeases as ForeignLeasesMessage
from shoal.protocol.node_messages import ForeignProcessDied, ForProcess
from shoal.protocol.strategies import KIND, LOCALITY, PLACEMENT_GROUP
from shoal.scheduling import events, forwarding
from shoal.scheduling.forwarding import Forwarding
from shoal.scheduling.offers import Offers
from shoal.scheduling.replicas import Replicas

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger("shoal.node")

LOOK_S = 0.02  #: between looks at what waits here


class ForeignLeases:
    """Leases across nodes.

    Args:
        on_process_gone: called with the id of a process of another node that is dead, that node, and the workers that may have tasks of it.
    """

    def __init__(
        self,
        node_id: bytes,
        leases: Leases,
        table: ProcessTable,
        links: NodeLinks,
        gcs: GcsLink,
        loop: asyncio.AbstractEventLoop,
        on_process_gone: Callable[[bytes, bytes, list[bytes]], None],
        kill: Callable[[Worker, str], None],
    ) -> None:
        self.machine = Forwarding(node_id)
        self._offers = Offers()
        self._node_id = node_id
        self._leases = leases
        self._table = table
        self._links = links
        self._gcs = gcs
        self._loop = loop
        self._on_process_gone = on_process_gone
        self._kill = kill
        #: the numbers of other nodes, from which their drivers' jobs have theirs
        self._node_nos: dict[bytes, int] = {}
        #: processes of other nodes that have to do with this one
        self._node_of: dict[bytes, bytes] = {}
        self._replicas = Replicas()
        self._looking = False
        #: requests that came before the GCS had answered, which numbers this node's leases apart from others'; None from then on
        self._early: list[tuple[bytes, ForeignLeasesMessage]] | None = []
        handlers = links.handlers
        handlers[ForeignLeasesMessage] = self._on_foreign_request
        handlers[ForeignProcessDied] = self._on_foreign_death
        handlers[ForProcess] = self._on_for_process
        handlers[messages.LeaseFinished] = lambda node_id, message: self._feed(forwarding.EndedAbroad(message.lease_id))
        handlers[ReturnLease] = lambda node_id, message: leases.return_lease(message)
        handlers[KillWorker] = lambda node_id, message: leases.kill_soon(message)
        handlers[SignalWorker] = lambda node_id, message: leases.signal(message)
        links.on_joined.append(self._on_node_joined)
        # Processes hear of dead workers before what makes them run something again: it must not be sent to these.
        links.on_died.insert(0, self._on_node_died)
        links.on_died_before.append(lambda node_id: self._feed(forwarding.NodeDied(node_id, "it had died before")))
        self.machine.join_cluster()
        leases.foreign = self
        leases.groups.answer = self._on_group_placed

    # ---------------------------------------------------------------- of this node's processes

    def on_request(self, process: Process, message: messages.RequestLeases) -> None:
        """A submitter here has a backlog."""
        self._feed(forwarding.Requested(process.worker_id, message))
        self._look_later()

    def on_lease_message(self, message: ReturnLease | KillWorker | SignalWorker) -> bool:
        """A process of this node speaks of a lease: whether it is another node's, and was told there."""
        node_id = self.machine.node_of_lease(message.lease_id)
        if not node_id:
            return False
        self._links.send(node_id, message)
        return True

    def granted_here(self, process: bytes, class_no: int) -> None:
        """The local scheduler has granted a lease to a process of this node."""
        self._feed(forwarding.GrantedHere(process, class_no))

    def refused_here(self, process: bytes, class_no: int, reason: str, kind: str = "") -> None:
        """The local scheduler can never serve a class."""
        node_id = self._node_of.get(process)
        if node_id is not None:
            self._links.send(node_id, ForProcess(process, LeasesUnschedulable(class_no, reason, kind)))
        else:
            self._avoid(process, class_no, kind, self._node_id)
            self._feed(forwarding.RefusedHere(process, class_no, reason, kind))

    def process_died(self, process: Process, cause: str) -> list[bytes]:
        """A process of this node is dead. Returns the nodes that had to do with it, and were told."""
        job_id = process.job_id if isinstance(process, Driver) else b""
        nodes = self.machine.nodes_of(process.worker_id)
        self._feed(forwarding.ProcessDied(process.worker_id, job_id, cause))
        return nodes

    def reached(self, process: bytes, node_id: bytes, worker_id: bytes, lease_id: int) -> None:
        """A process here was told of an actor on another node."""
        self._feed(forwarding.Reached(process, node_id, worker_id, lease_id))

    def ended(self, lease_id: int) -> None:
        """What processes here had of another node has ended."""
        self._feed(forwarding.EndedAbroad(lease_id))

    # ---------------------------------------------------------------- of other nodes' processes

    def node_of(self, process: bytes) -> bytes | None:
        """The node of a process that is not of this one; None when it is not known."""
        return self._node_of.get(process)

    def meet(self, process: bytes, node_id: bytes) -> None:
        """A process of another node has to do with this one."""
        self._node_of[process] = node_id

    def tell(self, process: bytes, message: Any) -> None:
        """Send a message to a process of another node, if it is known."""
        node_id = self._node_of.get(process)
        if node_id is not None:
            self._links.send(node_id, ForProcess(process, message))

    def lease_finished(self, lease_id: int) -> None:
        """A lease is over: its holder's node need not know it any more."""
        holder = self._leases.machine.holder_of(lease_id)
        node_id = self._node_of.get(holder or b"")
        if node_id is not None:
            self._links.send(node_id, messages.LeaseFinished(lease_id))

    def _on_foreign_request(self, node_id: bytes, message: ForeignLeasesMessage) -> None:
        self.meet(message.process, node_id)
        if self._early is not None:
            self._early.append((node_id, message))
            return
        if message.namespace:
            self._table.namespaces[message.job_id] = message.namespace
        self._leases.handle(
            events.LeasesRequested(
                message.process,
                message.class_no,
                message.job_id,
                message.demand,
                message.depth,
                message.backlog,
                message.strategy,
                message.environment,
                message.name,
            )
        )

    def _on_foreign_death(self, node_id: bytes, message: ForeignProcessDied) -> None:
        self._end_process(message.process, node_id, message.reason, message.job_id)

    def _end_process(self, process: bytes, node_id: bytes, reason: str, job_id: bytes = b"") -> None:
        self._node_of.pop(process, None)
        if self._early:
            self._early = [each for each in self._early if each[1].process != process]
        executors = [worker.worker_id for worker in self._table.workers() if process in worker.submitters]
        for worker in self._table.workers():
            worker.submitters.pop(process, None)
            if job_id and worker.job_id == job_id and worker.lease_id and not worker.actor_id:
                self._kill(worker, f"its job ended: {reason}")
        self._leases.handle(events.ProcessDied(process))
        self._on_process_gone(process, node_id, executors)

    # ---------------------------------------------------------------- from the GCS and other nodes

    def on_placed(self, message: LeasesPlaced) -> None:
        """The global scheduler names nodes."""
        if message.placements and not message.queued:
            self._offers.placed((message.process, message.class_no))
        self._feed(
            forwarding.Placed(
                message.process,
                message.class_no,
                [(node, count) for node, count in message.placements],
                message.refused,
                queued=message.queued,
            )
        )
        if self.machine.awaits_nodes():
            self._look_later()

    def on_replica_lost(self, number: int) -> None:
        """A replica of the global scheduler is away: what was asked of it is asked of others."""
        if self._replicas.lost(number):
            self._feed(forwarding.GcsReturned())

    def on_gcs_lost(self) -> None:
        """The GCS is away."""
        self._feed(forwarding.GcsLost())

    def on_gcs_connected(self) -> None:
        """The GCS listens (again)."""
        early, self._early = self._early or [], None
        for node_id, message in early:
            self._on_foreign_request(node_id, message)
        self._feed(forwarding.GcsReturned())

    def _avoid(self, process: bytes, class_no: int, kind: str, node_id: bytes) -> None:
        """A node (or this one) does not have the bundle that a class asks for, or takes nothing new in it."""
        request = self.machine.request_of(process, class_no)
        if request is not None and kind == UNSCHEDULABLE_BUNDLE_GONE:
            self._leases.groups.avoid(request, node_id)

    def _on_group_placed(
        self, process: bytes, class_no: int, placements: list[tuple[bytes, int]], refused: str, kind: str
    ) -> None:
        """It is known where a placement group is."""
        self._feed(forwarding.Placed(process, class_no, placements, refused, kind))

    def _on_for_process(self, node_id: bytes, message: ForProcess) -> None:
        inner = message.message
        if type(inner) is LeaseGranted:
            inner.address = self._links.worker_address(node_id, inner.worker_id)
            self._feed(forwarding.GrantedAbroad(node_id, message.process, inner))
        elif type(inner) is LeasesUnschedulable:
            self._avoid(message.process, inner.class_no, inner.kind, node_id)
            self._feed(forwarding.RefusedAbroad(node_id, message.process, inner.class_no, inner.reason, inner.kind))
        else:
            if type(inner) is messages.WorkerDied:
                self._feed(forwarding.EndedAbroad(inner.lease_id))
            self._table.send(message.process, inner)

    def _on_node_joined(self, entry: NodeEntry) -> None:
        self._node_nos[entry.node_id] = entry.node_no

    def _on_node_died(self, node_id: bytes, cause: str) -> None:
        reason = f"node {node_id.hex()[:8]} died: {cause}"
        self._leases.groups.node_died(node_id)
        self._feed(forwarding.NodeDied(node_id, reason))
        for process in [process for process, node in self._node_of.items() if node == node_id]:
            self._end_process(process, node_id, reason)
        node_no = self._node_nos.pop(node_id, None)
        for worker in self._table.workers():
            # As when a driver ends: its tasks are of no use to anybody; its actors are the GCS's to end.
            if (
                worker.lease_id
                and not worker.actor_id
                and worker.job_id
                and ids.node_no_of_job(worker.job_id) == node_no
            ):
                self._kill(worker, f"its job ended: the node of its driver died: {cause}")

    # ---------------------------------------------------------------- what waits too long

    def _look_later(self) -> None:
        if not self._looking:
            self._looking = True
            self._loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        self._looking = False
        machine = self._leases.machine
        now = self._loop.time()
        for (process, class_no), count in self._offers.look(machine.waiting_tasks, now):
            if process in self._table.by_id:
                self._feed(forwarding.Overdue(process, class_no, count))
        awaits_nodes = self.machine.awaits_nodes()
        if awaits_nodes:
            self._feed(forwarding.Looked(now))
        if awaits_nodes or machine.is_waited_for():
            self._look_later()

    # ---------------------------------------------------------------- effects

    def _feed(self, event: forwarding.Event) -> None:
        for effect in self.machine.handle(event):
            _PERFORM[type(effect)](self, effect)

    def _request_here(self, effect: forwarding.RequestHere) -> None:
        request = effect.request
        backlog = request.backlog
        if effect.more:
            backlog = effect.more + self._leases.machine.backlog_of(effect.process, request.class_no)
        self._leases.request(effect.process, request, backlog)

    def _ask_global(self, effect: forwarding.AskGlobal) -> None:
        request = effect.request
        if request.strategy.get(KIND) == PLACEMENT_GROUP:
            self._leases.groups.request(effect.process, request, effect.backlog)
            return
        message = PlaceLeases(
            effect.process,
            request.class_no,
            request.job_id,
            request.demand,
            effect.backlog,
            request.strategy,
            {} if effect.anywhere else request.strategy.get(LOCALITY) or {},
            request.name,
            effect.dead,
        )
        shards = self._gcs.elsewhere
        if shards is None:
            self._gcs.tell(message)
            return
        total = self._leases.machine.total()
        number, leaves_first = self._replicas.choose(effect.process, request, effect.backlog, total, shards.replica_of)
        if leaves_first:
            self._gcs.tell(PlaceLeases(effect.process, request.class_no, request.job_id, request.demand, 0))
        shards.tell(number, message)

    def _ask_node(self, effect: forwarding.AskNode) -> None:
        request = effect.request
        self._links.send(
            effect.node_id,
            ForeignLeasesMessage(
                effect.process,
                request.class_no,
                request.job_id,
                request.demand,
                request.depth,
                effect.backlog,
                request.strategy,
                request.environment,
                request.name,
                self._table.namespaces.get(request.job_id, ""),
            ),
        )

    def _tell_process(self, effect: forwarding.TellProcess) -> None:
        self._table.send(effect.process, effect.message)

    def _tell_died(self, effect: forwarding.TellProcessDied) -> None:
        self._links.send(effect.node_id, ForeignProcessDied(effect.process, effect.reason, effect.job_id))

    def _give_back(self, effect: forwarding.GiveBack) -> None:
        self._links.send(effect.node_id, ReturnLease(effect.lease_id))

    def explain(self, process: bytes, class_no: int) -> str:
        """Why a class waits that is asked of other nodes; empty when it is not."""
        abroad = self.machine.waits_abroad(process, class_no)
        if abroad is None or not abroad.nodes():
            return ""
        nodes = ", ".join(f"{abroad.asked_of(node_id)} of node {node_id.hex()[:8]}" for node_id in abroad.nodes())
        return f"leases were asked of other nodes ({nodes}), which have not granted them yet"

    def statistics(self) -> dict[str, int]:
        """Sizes of the tables."""
        return {**self.machine.statistics(), "foreign_processes": len(self._node_of)}


_PERFORM: dict[type, Callable[[ForeignLeases, Any], None]] = {
    forwarding.RequestHere: ForeignLeases._request_here,
    forwarding.AskGlobal: ForeignLeases._ask_global,
    forwarding.AskNode: ForeignLeases._ask_node,
    forwarding.TellProcess: ForeignLeases._tell_process,
    forwarding.TellProcessDied: ForeignLeases._tell_died,
    forwarding.GiveBack: ForeignLeases._give_back,
}
