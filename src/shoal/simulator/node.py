"""A node: the production machines of its daemon, and a shell that performs their effects over played channels.

Design: `LocalScheduler` and `Forwarding` are those of `node/io/leases.py` and `node/io/foreign_leases.py`; the methods here stand beside the ones
there, and do the same: events are queued while effects are performed, a timer stands at `tick_at`, LeaseStarted is written before LeaseGranted,
heartbeats leave every HEARTBEAT_S and LOAD_SOON_S after a change. What one daemon says to another travels on one channel a pair (`node_links` keeps
it whole over broken connections; so do these channels).

Actors are the business of `actors.ActorShell`; placement groups and draining that of the production shells (`shells`).

What it does not do: objects; processes that start slowly or fail to.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shoal.node.io.foreign_leases import LOOK_S
from shoal.protocol import messages
from shoal.protocol.gcs_messages import (
    Acknowledged,
    ActorChanged,
    ClusterNodes,
    CommitBundle,
    DrainNode,
    GcsAnswer,
    GroupChanged,
    HeartbeatAcknowledged,
    LeasesPlaced,
    NodeLoad,
    NodeRegistered,
    PlaceLeases,
    RegisterNode,
    ReserveBundle,
    ReturnBundle,
    StartActor,
    StopActor,
)
from shoal.protocol.limits import PROTOCOL_VERSION
from shoal.protocol.messages import (
    UNSCHEDULABLE_BUNDLE_GONE,
    Hello,
    LeaseGranted,
    LeasesUnschedulable,
    RequestLeases,
    ReturnLease,
    WorkerDied,
)
from shoal.protocol.node_messages import ForeignLeases, ForeignProcessDied, ForProcess
from shoal.protocol.strategies import KIND, LOCALITY, PLACEMENT_GROUP
from shoal.scheduling import events, forwarding
from shoal.scheduling.bundles import lasting
from shoal.scheduling.forwarding import Forwarding
from shoal.scheduling.heartbeat import interval_s, soon_s
from shoal.scheduling.local_scheduler import LocalScheduler
from shoal.scheduling.offers import Offers
from shoal.simulator.actors import ActorShell, CallQueue, Life
from shoal.simulator.exact import Keeper
from shoal.simulator.process import Process, Worker
from shoal.simulator.shards import NodeShards
from shoal.simulator.shells import Clock, Surroundings, draining_of, groups_of
from shoal.simulator.world import Channel, Station, World

if TYPE_CHECKING:
    from shoal.simulator.cluster import Cluster

WAITING_TOLD_MAX = 100
RECONNECT_S = 0.1
LEAVE_S = 1.0  #: a node that leaves waits so long until the GCS knows


class Node:
    """The daemon of one node, with its processes."""

    def __init__(self, world: World, cluster: Cluster, place: int, node_id: bytes, resources: dict[str, int]) -> None:
        self.world, self.cluster, self.place, self.node_id = world, cluster, place, node_id
        self.resources = resources
        self.station = Station(world, place, "node daemon")
        self.machine = LocalScheduler(resources)
        self.forwarding = Forwarding(node_id)
        self.offers = Offers()
        self.forwarding.join_cluster()
        self.actors = ActorShell(self)
        self.dead = False
        #: lines to the other shards of the GCS; None while they are not known, or there are none
        self.shards: NodeShards | None = None
        self.node_no = 0
        self.processes: dict[bytes, Process] = {}
        self.executed = 0
        self._of_lease: dict[int, Worker] = {}
        #: processes of other nodes -> their node
        self._node_of: dict[bytes, bytes] = {}
        self.dead_nodes: set[bytes] = set()  #: says the GCS
        self._events: deque[Any] = deque()
        self._handles = False
        self._tick_due = math.inf
        self._looks = False
        #: requests that came before the GCS had answered; None from then on
        self._early: list[tuple[bytes, ForeignLeases]] | None = []
        self._heartbeats = 0
        self._beat_at = math.inf
        self._beat_number = 0
        self._to_node: dict[bytes, Channel] = {}
        self.gcs_connection = 0  #: 0: not connected
        clock, around = Clock(self), Surroundings(self)
        self.groups = groups_of(self, around, clock)
        self.draining = draining_of(self, around, clock)
        self.keeper = Keeper(self, clock)
        self.left = ""  #: why it has left its cluster by itself

    # ---------------------------------------------------------------- begin

    @property
    def is_gone(self) -> bool:
        """It is dead."""
        return self.dead

    def begin(self) -> None:
        """Connect to the GCS, start the first workers."""
        if self.place == 0:  # the head has started the shards
            self._use_shards(len(self.cluster.shards) - 1)
        self.connect()
        self.feed(events.Tick())

    def connect(self) -> None:
        """Open a connection to the GCS; tried again until it listens."""
        if self.dead:
            return
        self.gcs_connection = self.cluster.gcs.accept(self)
        if not self.gcs_connection:
            self.world.after(RECONNECT_S, self.connect)
            return
        self.to_gcs(Hello(PROTOCOL_VERSION, self.node_id, b"", 1))
        register = RegisterNode(
            self.node_id, 1, "host", f"tcp:{self.place}", self.resources, node_no=self.node_no, is_head=self.place == 0,
            name=f"node{self.place}", shards=self.cluster.shard_addresses() if self.place == 0 else [],
        )  # fmt: skip
        self.actors.leash.registered_at = self.world.now
        self.to_gcs(register)

    def on_gcs_lost(self, connection: int) -> None:
        """The connection ended."""
        if connection == self.gcs_connection and not self.dead:
            self.gcs_connection = 0
            self.actors.line.open = False
            if self.shards is None:
                self._beat_at = math.inf
            self.world.after(RECONNECT_S, self.connect)

    def to_gcs(self, message: Any) -> None:
        """Write to the GCS, if there is a connection."""
        if self.gcs_connection:
            self.cluster.gcs.hear(self.gcs_connection, message)

    def on_gcs_message(self, connection: int, message: Any) -> None:
        """From the GCS."""
        if self.dead or connection != self.gcs_connection:
            return
        kind = type(message)
        if kind is NodeRegistered:
            self._on_registered(message)
        elif kind is ClusterNodes:
            self._on_cluster(message)
        elif kind is LeasesPlaced:
            self.on_placed(message)
        elif kind is HeartbeatAcknowledged:
            self.actors.leash.acknowledged(message.count)
        elif kind is Acknowledged:
            self.actors.line.on_acknowledged(message.count)
        elif kind is GcsAnswer:
            self.actors.line.on_answer(message.request, message.body, message.error)
        elif kind is StartActor:
            self.actors.on_start(message)
        elif kind is StopActor:
            self.actors.on_stop(message)
        elif kind is ActorChanged:
            self.actors.on_changed(message)
        elif kind is GroupChanged:
            self.groups.on_changed(message)
        elif kind is ReserveBundle or kind is CommitBundle or kind is ReturnBundle:
            self.groups.on_bundle_message(message)
        elif kind is DrainNode:
            self.draining.begin(message.reason, message.deadline_s)

    def on_placed(self, message: LeasesPlaced) -> None:
        """A global scheduler names nodes."""
        placements = [(node, count) for node, count in message.placements]
        if placements and not message.queued:
            self.offers.placed((message.process, message.class_no))
        placed = forwarding.Placed(
            message.process, message.class_no, placements, message.refused, queued=message.queued
        )
        self.forward(placed)
        if self.forwarding.awaits_nodes():
            self._look_later()

    def on_replica_lost(self, number: int) -> None:
        """The line to a shard beyond the first ended."""
        if self.shards is not None and self.shards.lost(number):
            self.forward(forwarding.GcsReturned())

    def _use_shards(self, others: int) -> None:
        if others and self.shards is None:
            self.shards = self.actors.line.elsewhere = NodeShards(self, 1 + others)

    def _on_registered(self, message: NodeRegistered) -> None:
        if message.refused:
            self.cluster.kill_node(self, f"refused: {message.refused}")
            return
        self._use_shards(len(message.shards))
        if not self.node_no:
            self.node_no = message.node_no
            if self.node_no and not self.machine.granted_total():
                self.machine.number_leases_of(self.node_no)
        self.actors.on_connected()
        self.groups.on_connected()
        self._heartbeats = 0
        self.beat_now()
        early, self._early = self._early or [], None
        for node_id, request in early:
            self.on_node_message(node_id, request)
        self.forward(forwarding.GcsReturned())

    def _on_cluster(self, message: ClusterNodes) -> None:
        for entry in message.nodes:
            if not entry.alive and entry.node_id not in self.dead_nodes and entry.node_id != self.node_id:
                self.dead_nodes.add(entry.node_id)
                self.groups.node_died(entry.node_id)
                self.forward(forwarding.NodeDied(entry.node_id, entry.cause))
                for process in [each for each, node in self._node_of.items() if node == entry.node_id]:
                    self._end_foreign(process)

    # ---------------------------------------------------------------- from processes

    def hear(self, channel: Channel, process: Process, message: Any) -> None:
        """A process of this node writes a message."""
        self._count(type(message).__name__)
        channel.send(self.station, self.world.costs.daemon_message_s, self._on_message, process, message)

    def hear_finished(self, channel: Channel, worker: Worker, lease_id: int) -> None:
        """A worker writes LeaseFinished."""
        self._count("LeaseFinished")
        channel.send(self.station, self.world.costs.daemon_message_s, self._on_finished, worker, lease_id)

    def hear_blocked(self, channel: Channel, worker: Worker, lease_id: int, blocked: bool) -> None:
        """A worker writes Blocked or Unblocked."""
        self._count("Blocked" if blocked else "Unblocked")
        channel.send(self.station, self.world.costs.daemon_message_s, self._on_blocked, worker, lease_id, blocked)

    def hear_of_actor(self, channel: Channel, name: str, call: Callable[..., None], life: Life, *args: Any) -> None:
        """A worker writes of the actor that it is."""
        self._count(name)
        channel.send(self.station, self.world.costs.daemon_message_s, self._of_life, call, life, *args)

    def _of_life(self, call: Callable[..., None], life: Life, *args: Any) -> None:
        if not self.dead and not life.worker.dead:
            call(life, *args)

    def _count(self, name: str) -> None:
        self.world.messages["node daemon", name] += 1

    def _on_message(self, process: Process, message: Any) -> None:
        if self.dead or process.process_id not in self.processes:
            return
        if type(message) is RequestLeases:
            self.forward(forwarding.Requested(process.process_id, message))
            self._look_later()
        elif type(message) is ReturnLease:
            node_id = self.forwarding.node_of_lease(message.lease_id)
            if node_id:
                self.send(node_id, message)
            else:
                self._return(message)

    def _return(self, message: ReturnLease) -> None:
        if message.lease_id in self._of_lease:
            self.feed(events.LeaseReturned(message.lease_id, message.idle_s))

    def _on_finished(self, worker: Worker, lease_id: int) -> None:
        if self.dead or self._of_lease.get(lease_id) is not worker:
            return
        del self._of_lease[lease_id]
        holder = self.machine.holder_of(lease_id)
        node_id = self._node_of.get(holder or b"")
        if node_id is not None:
            self.send(node_id, messages.LeaseFinished(lease_id))
        self.feed(events.LeaseFinished(lease_id, used=worker.started_seq > 0))

    def _on_blocked(self, worker: Worker, lease_id: int, blocked: bool) -> None:
        if not self.dead and self._of_lease.get(lease_id) is worker:
            self.feed(events.WorkerBlocked(lease_id) if blocked else events.WorkerUnblocked(lease_id))

    # ---------------------------------------------------------------- between nodes

    def send(self, node_id: bytes, message: Any) -> None:
        """Write to another node's daemon; what is for a dead one is dropped."""
        other = self.cluster.nodes.get(node_id)
        if other is None or node_id in self.dead_nodes:
            return
        channel = self._to_node.get(node_id)
        if channel is None:
            channel = self._to_node[node_id] = Channel(self.world, self.place, other.place)
        other._count(type(message).__name__)
        channel.send(other.station, self.world.costs.daemon_message_s, other.on_node_message, self.node_id, message)

    def on_node_message(self, node_id: bytes, message: Any) -> None:
        """From another node's daemon."""
        if self.dead or node_id in self.dead_nodes:
            return
        kind = type(message)
        if kind is ForeignLeases:
            self._node_of[message.process] = node_id
            if self._early is not None:
                self._early.append((node_id, message))
                return
            self.feed(
                events.LeasesRequested(
                    message.process, message.class_no, message.job_id, message.demand, message.depth, message.backlog,
                    message.strategy, message.environment, message.name,
                )
            )  # fmt: skip
        elif kind is ReturnLease:
            self._return(message)
        elif kind is ForeignProcessDied:
            self._end_foreign(message.process)
        elif kind is messages.LeaseFinished:
            self.forward(forwarding.EndedAbroad(message.lease_id))
        elif kind is ForProcess:
            self._on_for_process(node_id, message)

    def _on_for_process(self, node_id: bytes, message: ForProcess) -> None:
        inner = message.message
        if type(inner) is LeaseGranted:
            self.forward(forwarding.GrantedAbroad(node_id, message.process, inner))
        elif type(inner) is LeasesUnschedulable:
            self._avoid(message.process, inner.class_no, inner.kind, node_id)
            self.forward(forwarding.RefusedAbroad(node_id, message.process, inner.class_no, inner.reason, inner.kind))
        else:
            if type(inner) is WorkerDied:
                self.forward(forwarding.EndedAbroad(inner.lease_id))
            self.tell(message.process, inner)

    def _avoid(self, process: bytes, class_no: int, kind: str, node_id: bytes) -> None:
        request = self.forwarding.request_of(process, class_no)
        if request is not None and kind == UNSCHEDULABLE_BUNDLE_GONE:
            self.groups.avoid(request, node_id)

    def on_group_placed(
        self, process: bytes, class_no: int, placements: list[tuple[bytes, int]], refused: str, kind: str
    ) -> None:
        """It is known where a placement group is."""
        self.forward(forwarding.Placed(process, class_no, placements, refused, kind))

    def _end_foreign(self, process: bytes) -> None:
        self._node_of.pop(process, None)
        if self._early:
            self._early = [each for each in self._early if each[1].process != process]
        self.feed(events.ProcessDied(process))

    # ---------------------------------------------------------------- the machines

    def feed(self, event: events.Event) -> None:
        """An event of the local scheduler; its effects, and what follows from them."""
        self._events.append(event)
        if self._handles:
            return
        self._handles = True
        while self._events:
            for effect in self.machine.handle(self._events.popleft(), self.world.now):
                self._perform(effect)
        self._handles = False
        if self.machine.tick_at < self._tick_due:
            self._tick_due = self.machine.tick_at
            self.world.at(self._tick_due, self._tick, self._tick_due)
        delay_s = soon_s(len(self.cluster.nodes))
        if self._beat_at - self.world.now > delay_s:
            self._arm_beat(delay_s)

    def _tick(self, due: float) -> None:
        if self.dead or due != self._tick_due:
            return
        self._tick_due = math.inf
        if self.machine.tick_at <= self.world.now:
            self.feed(events.Tick())
        elif self.machine.tick_at < math.inf:
            self._tick_due = self.machine.tick_at
            self.world.at(self._tick_due, self._tick, self._tick_due)

    def _perform(self, effect: Any) -> None:
        kind = type(effect)
        if kind is events.GrantLease:
            self._grant(effect)
        elif kind is events.RevokeLease:
            worker = self.processes.get(effect.worker_id)
            if isinstance(worker, Worker):
                worker.from_daemon.send(worker.station, 0.0, worker.on_revoke, effect.lease_id)
        elif kind is events.StartWorkers:
            for _ in range(effect.count):
                self.world.after(self.world.costs.worker_start_s, self._worker_ready)
        elif kind is events.StopWorker:
            worker = self.processes.get(effect.worker_id)
            if worker is not None:
                self._stop(worker)
        elif kind is events.AssignActor or kind is events.RefuseActor:
            self.actors.on_effect(effect)
        elif kind is events.BundleDone:
            self.groups.on_done(effect)
        elif kind is events.KillWorker:
            worker = self.processes.get(effect.worker_id)
            if worker is not None:
                self.process_died(worker, f"killed with its placement group: {effect.reason}")
        elif kind is events.RefuseClass:
            self._refuse(effect)

    def _refuse(self, effect: events.RefuseClass) -> None:
        node_id = self._node_of.get(effect.process)
        if node_id is not None:
            refusal = LeasesUnschedulable(effect.class_no, effect.reason, effect.kind)
            self.send(node_id, ForProcess(effect.process, refusal))
        else:
            self._avoid(effect.process, effect.class_no, effect.kind, self.node_id)
            self.forward(forwarding.RefusedHere(effect.process, effect.class_no, effect.reason, effect.kind))

    def _grant(self, effect: events.GrantLease) -> None:
        worker = self.processes.get(effect.worker_id)
        if not isinstance(worker, Worker):
            return  # dying: the machine hears of it next
        node_id = self._node_of.get(effect.process)
        submitter = self.processes.get(effect.process)
        if submitter is None and node_id is not None:
            submitter = self.cluster.process(effect.process)
        if submitter is None:
            self._of_lease[effect.lease_id] = worker
            worker.lease_id = effect.lease_id
            self.feed(events.LeaseReturned(effect.lease_id))
            return
        self._of_lease[effect.lease_id] = worker
        # In the worker's socket before the grant is written: no push can come first.
        worker.from_daemon.send(worker.station, 0.0, worker.on_lease_started, effect.lease_id, submitter, effect.job_id)
        granted = LeaseGranted(effect.class_no, effect.lease_id, effect.worker_id, "", 1)
        if effect.process in self.processes:
            self.tell(effect.process, granted)
            self.forward(forwarding.GrantedHere(effect.process, effect.class_no))
        elif node_id is not None:
            self.send(node_id, ForProcess(effect.process, granted))

    def tell(self, process_id: bytes, message: Any) -> None:
        """Write to a process of this node."""
        process = self.processes.get(process_id)
        if process is not None:
            process.from_daemon.send(process.station, 0.0, process.on_message, message)

    def forward(self, event: forwarding.Event) -> None:
        """An event of leases across nodes; its effects."""
        effect: Any
        for effect in self.forwarding.handle(event):
            kind = type(effect)
            if kind is forwarding.RequestHere:
                self._request_here(effect)
            elif kind is forwarding.AskGlobal:
                request = effect.request
                if request.strategy.get(KIND) == PLACEMENT_GROUP:
                    self.groups.request(effect.process, request, effect.backlog)
                    continue
                message = PlaceLeases(
                    effect.process, request.class_no, request.job_id, request.demand, effect.backlog,
                    request.strategy, {} if effect.anywhere else request.strategy.get(LOCALITY) or {}, request.name, effect.dead,
                )  # fmt: skip
                if self.shards is None:
                    self.to_gcs(message)
                else:
                    self.shards.place(
                        effect,
                        message,
                        PlaceLeases(effect.process, request.class_no, request.job_id, request.demand, 0),
                    )
            elif kind is forwarding.AskNode:
                request = effect.request
                self.send(
                    effect.node_id,
                    ForeignLeases(
                        effect.process, request.class_no, request.job_id, request.demand, request.depth,
                        effect.backlog, request.strategy, request.environment, request.name, "",
                    ),
                )  # fmt: skip
            elif kind is forwarding.TellProcess:
                self.tell(effect.process, effect.message)
            elif kind is forwarding.TellProcessDied:
                self.send(effect.node_id, ForeignProcessDied(effect.process, effect.reason, effect.job_id))
            elif kind is forwarding.GiveBack:
                self.send(effect.node_id, ReturnLease(effect.lease_id))

    def _request_here(self, effect: forwarding.RequestHere) -> None:
        request = effect.request
        backlog = request.backlog
        if effect.more:
            backlog = effect.more + self.machine.backlog_of(effect.process, request.class_no)
        self.request_leases(effect.process, request, backlog)

    def request_leases(self, process: bytes, request: RequestLeases, backlog: int) -> None:
        """Ask the scheduler for leases of a class."""
        self.feed(
            events.LeasesRequested(
                process, request.class_no, request.job_id, request.demand, request.depth, backlog,
                request.strategy, request.environment, request.name, request.task_s,
            )
        )  # fmt: skip

    def _look_later(self) -> None:
        if not self._looks:
            self._looks = True
            self.world.after(LOOK_S, self._look)

    def _look(self) -> None:
        self._looks = False
        if self.dead:
            return
        now = self.world.now
        for (process, class_no), count in self.offers.look(self.machine.waiting_tasks, now):
            if process in self.processes:
                self.forward(forwarding.Overdue(process, class_no, count))
        awaits_nodes = self.forwarding.awaits_nodes()
        if awaits_nodes:
            self.forward(forwarding.Looked(now))
        if awaits_nodes or self.machine.is_waited_for():
            self._look_later()

    # ---------------------------------------------------------------- heartbeats

    def beat_now(self) -> None:
        """Tell the GCS at once."""
        self._beat(self._arm_beat(0.0))

    def _arm_beat(self, delay_s: float) -> int:
        self._beat_number += 1
        self._beat_at = self.world.now + delay_s
        if delay_s:
            self.world.at(self._beat_at, self._beat, self._beat_number)
        return self._beat_number

    def _beat(self, number: int) -> None:
        if self.dead or number != self._beat_number or (not self.gcs_connection and self.shards is None):
            return
        machine = self.machine
        self._heartbeats += 1
        self.actors.leash.sent(self._heartbeats)
        load = NodeLoad(
            self._heartbeats, machine.available(), machine.total(), machine.demands(WAITING_TOLD_MAX),
            machine.lease_time_s, draining=bool(self.draining.reason), actors=machine.actors(),
            held=lasting(machine.held_by_actors, machine.bundles()),
        )  # fmt: skip
        if self.shards is None:
            self.to_gcs(load)
        else:
            self.actors.line.tell(load)
            self.shards.tell_replicas(load)
        self._arm_beat(interval_s(len(self.cluster.nodes)))

    # ---------------------------------------------------------------- processes

    def add_process(self, process: Process) -> None:
        """A driver, or a worker that has registered."""
        self.processes[process.process_id] = process
        self.cluster.processes[process.process_id] = process

    def _worker_ready(self) -> None:
        if self.dead:
            return
        worker = Worker(self.world, self, self.cluster.new_id())
        self.add_process(worker)
        self.feed(events.WorkerReady(worker.process_id))

    def _stop(self, worker: Process) -> None:
        if self.forwarding.has_abroad(worker.process_id) or self.machine.submits(worker.process_id):
            self.world.after(0.5, self._stop, worker)
        elif not worker.dead:
            self.process_died(worker, "stopped")

    def process_died(self, process: Process, cause: str) -> None:
        """A process of this node ends: its submitters, the machines and other nodes hear of it."""
        if self.dead or process.dead:
            return
        process.die()
        self.processes.pop(process.process_id, None)
        self.cluster.processes.pop(process.process_id, None)
        job_id = b"" if isinstance(process, Worker) else process.job_id
        self.forward(forwarding.ProcessDied(process.process_id, job_id, cause))
        if isinstance(process, Worker):
            # The daemon's view: a worker that has just ended its lease has it until that is heard.
            mine = (lease for lease, worker in self._of_lease.items() if worker is process)
            lease_id = next(mine, process.lease_id)
            started_seq = process.started_seq if process.started_lease == lease_id else 0
            died = WorkerDied(process.process_id, lease_id, started_seq, cause, 9)
            self._of_lease = {lease: worker for lease, worker in self._of_lease.items() if worker is not process}
            for submitter_id in self._submitters_of(process):
                if submitter_id in self.processes:
                    self.tell(submitter_id, died)
                elif submitter_id in self._node_of:
                    self.send(self._node_of[submitter_id], ForProcess(submitter_id, died))
            self.feed(events.WorkerDied(process.process_id))
        self.feed(events.ProcessDied(process.process_id))
        self.actors.process_died(process, cause)

    def _submitters_of(self, worker: Worker) -> list[bytes]:
        found = [] if worker.submitter is None else [worker.submitter.process_id]
        holder = self.machine.holder_of(self.machine.lease_of(worker.process_id))
        if holder is not None and holder not in found:
            found.append(holder)
        return list(dict.fromkeys([*found, *self.actors.followers_of(worker), *worker.callers]))

    def on_route(self, queue: CallQueue, life: Life) -> None:
        """A process of another node connects to an actor of this one."""
        caller, worker = queue.caller, life.worker
        if self.dead or caller.node.node_id in self.dead_nodes:
            return
        if worker.dead:
            back = Channel(self.world, self.place, caller.node.place)
            back.send(caller.station, 0.0, queue.on_refused, life)
            return
        worker.callers[caller.process_id] = None
        self._node_of[caller.process_id] = caller.node.node_id

    def leave(self, reason: str) -> None:
        """The node is empty, or may wait no longer: it leaves its cluster."""
        if self.left or self.dead:
            return
        self.left = reason
        self.actors.line.call("gcs.leave", {"reason": f"it left: {reason}"}, lambda body, error: self._end())
        self.world.after(LEAVE_S, self._end)

    def _end(self) -> None:
        self.cluster.kill_node(self, f"it left: {self.left}")

    def die(self) -> None:
        """The whole node is gone."""
        self.dead = True
        for process in self.processes.values():
            process.die()
            self.cluster.processes.pop(process.process_id, None)
