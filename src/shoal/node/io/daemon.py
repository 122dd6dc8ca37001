"""The node daemon: the one process of a node that everyone on it speaks with.

Purpose: wire the pure machines (local scheduler, object directory, store table) to sockets, processes and the GCS; begin and end the node.

Design: one thread, one uvloop. Every part owns its state and its file; this one owns who is registered, the table of messages (`_HANDLERS`),
the order in which a death is told, and the end:

    a process ends -> its socket is read to the end -> WorkerDied to those concerned -> scheduler, actors, objects, store forget it

    the home driver is gone, or SIGINT -> no more connections -> Shutdown to everyone -> every child killed and reaped -> folder removed
    SIGTERM: the same, but a node that has others beside it, and is not the head, drains first (`draining`), until a second one

How to extend: a new message needs a method in the part that owns the matter and a row in `_HANDLERS`.

What it does not do: decide anything about leases, objects or actors; run user code; wait.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import uvloop

from shoal.node.io.actors import Actors
from shoal.node.io.calls import Calls
from shoal.node.io.connections import Connection, Listener, Outbox
from shoal.node.io.facts import accelerator_ids, cluster_address, membership, move_cluster, total_resources
from shoal.node.io.gcs_health import GcsHealth
from shoal.node.io.gcs_link import GcsLink
from shoal.node.io.gcs_process import GcsElsewhere, GcsProcess
from shoal.node.io.groups import Groups
from shoal.node.io.kept_arguments import KeptArguments
from shoal.node.io.leases import Leases
from shoal.node.io.logs import LogRouter
from shoal.node.io.memory_watch import MemoryWatch, memory_threshold
from shoal.node.io.node_links import NodeLinks
from shoal.node.io.objects import Objects
from shoal.node.io.processes import Driver, End, Process, ProcessTable, WatchTable, Worker
from shoal.node.io.recoveries import Recoveries
from shoal.node.io.store_shell import StoreShell
from shoal.node.io.workers import EXIT_GRACE_S, WorkerPool, death_text
from shoal.node.object_directory import ObjectDirectory
from shoal.protocol import ids, messages
from shoal.protocol.gcs_messages import (
    ActorChanged,
    ClusterNodes,
    CommitBundle,
    DrainNode,
    GroupChanged,
    HeartbeatAcknowledged,
    LeasesPlaced,
    RegisterNode,
    ReserveBundle,
    ReturnBundle,
    StartActor,
    StopActor,
)
from shoal.protocol.group_messages import FollowGroup
from shoal.protocol.limits import CONNECT_TIMEOUT_S, DRAIN_GRACE_S, GOODBYE_S, PROTOCOL_VERSION, SHUTDOWN_GRACE_S
from shoal.protocol.messages import Hello, Register, Registered, Shutdown, WorkerDied
from shoal.protocol.storage_names import outlives_session
from shoal.scheduling.local_scheduler import LocalScheduler
from shoal.scheduling.node_policy import NodeView
from shoal.serialization.failures import dumps_error
from shoal.system.janitor import end_children, write_membership
from shoal.system.start_plan import TLS_GCS_SOCKET, DaemonStart

if TYPE_CHECKING:
    from shoal.node.io.cluster import Cluster
    from shoal.node.io.gcs_shards import GcsShards
    from shoal.node.io.tls_gateway import TlsGateway

log = logging.getLogger("shoal.node")

GCS_END_S = 0.1  #: the GCS's servers have so long to end in order
SHARED_TABLES_DROP_S = 2.0
#: a node that leaves its cluster waits so long until the GCS knows
LEAVE_S = 0.3


class NodeDaemon:
    """The daemon of one node. `listen`, then `run` until the node ends, then `finish`."""

    def __init__(self, start: DaemonStart, loop: asyncio.AbstractEventLoop) -> None:
        self.start = start
        self.loop = loop
        self.node_id = os.urandom(16)
        self.resources = total_resources(start.options)
        self.ending = ""  #: why the node ends; "" while it does not
        self._told_ready = False
        self._jobs = 0
        self._connections: dict[int, Connection] = {}
        self._listener: Listener | None = None

        self.table = ProcessTable()
        self.links = NodeLinks(loop, self.node_id)
        self.outbox = Outbox(loop)
        self.watches = WatchTable(loop)
        self.gcs = GcsLink(
            self._on_gcs_push, self._on_gcs_connected, lambda reason: self.gcs_health.stuck(reason), self._on_refused
        )
        self.gcs_process = (
            GcsProcess(start, self.watches, self._on_gcs_lost, listen_fd=start.gcs_listen_fd)
            if start.gcs_pid
            else GcsElsewhere(start.options["gcs_address"], loop, self._on_gcs_lost)
        )
        self.log_router = LogRouter(self.table.drivers)
        self.shards: GcsShards | None = None  #: further shards of the GCS
        self.gcs_health = GcsHealth(loop, self.table, self.gcs, self.gcs_process, lambda: self.shards)
        self.pool = WorkerPool(start, self.watches, self.log_router, self._on_start_failed, self._on_worker_exit)
        machine = LocalScheduler(self.resources, accelerator_ids(self.resources))
        self.leases = Leases(
            machine,
            self.table,
            self.pool,
            loop,
            lambda effect: self.actors.on_effect(effect),
            lambda: self.memory.attend(),
            lambda process: self.objects.machine.owes(process),
        )
        self.memory = MemoryWatch(self.pool, self.leases, loop, memory_threshold(start.options))
        self.actors = Actors(self.table, self.pool, self.leases, self.gcs, self._owner_lives, loop)
        self.store = StoreShell(
            loop,
            start.session_dir,
            int(start.options["object_store_memory"]),
            self.table.send,
            lambda oid, stored: self.objects.moved(oid, stored),
            lambda oid, reason, owner: self.objects.lost(oid, reason, owner),
            start.options.get("object_spilling_directory") or "",
            bool(start.options.get("object_spilling", True)),
        )
        self.leases.view = lambda: NodeView(
            self.node_id, self.name, machine.total(), machine.available(), start.options["labels"]
        )
        self.groups = Groups(self.node_id, self.leases, self.table, self.gcs, loop)
        self.objects = Objects(
            ObjectDirectory(dumps_error, self.node_id),
            self.table,
            self.store,
            loop,
            lambda: self._connections.values(),
            self.actors.handles_gone,
            self.links,
            self.node_id,
            lambda process: self.leases.foreign.node_of(process) if self.leases.foreign is not None else None,
        )
        self.recoveries = self.actors.recoveries = Recoveries(
            self.objects, self.store.free, self.gcs if start.options.get("node_listen") else None, loop
        )
        self.actors.arguments = KeptArguments(self.objects)
        #: None for a node that is alone
        self.cluster: Cluster | None = None
        #: None without TLS
        self.gateway: TlsGateway | None = None
        if start.options.get("node_listen"):
            self._join_cluster(start.options["node_listen"])
        self.calls = Calls(
            self.node_id,
            self.table,
            self.leases,
            self.gcs,
            self.links,
            self.store,
            self._statistics(),
            self.objects,
        )
        if self.cluster is not None:
            self.calls.later["node.keep_here"] = self.cluster.transfer.keep_here
        self._handlers: dict[type, Callable[[Any, Any], None]] = {kind: find(self) for kind, find in _HANDLERS.items()}

    def _join_cluster(self, host: str) -> None:
        """Be one of many: listen for the others. A lone node need not even load this."""
        from shoal.node.io.cluster import Cluster
        from shoal.node.io.foreign_logs import ForeignLogs
        from shoal.node.io.transfer import Transfer
        from shoal.node.pull_events import ARGUMENT
        from shoal.system.token_file import cluster_token

        transfer = Transfer(
            self.loop,
            self.node_id,
            self.links,
            self.store,
            self.table.send,
            self.objects.when_read,
            self.objects.lost_abroad,
        )
        if self.start.options.get("tls_folder"):
            from shoal.node.io.tls_gateway import TlsGateway

            self.gateway = TlsGateway(self.start, self.watches, self.start.options["tls_folder"], self._on_gcs_lost)
            if self.start.gcs_public_fd >= 0:
                inner = os.path.join(self.start.session_dir, TLS_GCS_SOCKET)
                self.gateway.adopt(socket.socket(fileno=self.start.gcs_public_fd), inner)
        self.cluster = Cluster(
            self.loop,
            self.node_id,
            host,
            int(self.start.options.get("node_port") or 0),
            cluster_token(self.start.options["token_path"]),
            self.links,
            self.leases,
            self.table,
            self.gcs,
            self.store,
            self.objects.foreign_process_died,
            self.pool.kill,
            transfer,
            self.gateway,
        )
        timeout_s, is_head = self.start.options.get("gcs_reconnect_timeout_s"), bool(self.start.gcs_pid)
        self.gcs_health.join_cluster(self.links, is_head, self.cluster.dial, timeout_s, self._on_gcs_lost)
        # The cluster ends with its head: that has nothing to hand on.
        grace_s = 0.0 if self.start.gcs_pid else float(self.start.options.get("drain_grace_s", DRAIN_GRACE_S))
        self.cluster.may_leave(self.objects.leave, self.actors.leave, self.end, grace_s)
        fetch = partial(transfer.fetch, priority=ARGUMENT)
        self.objects.inherit(self.gcs.call, fetch)
        self.recoveries.join_cluster(self.node_id, self.links, self.store, fetch, self.actors.follow)
        self.actors.join_cluster(self.links, self.node_id, self.cluster.leash)
        self.log_router.abroad = ForeignLogs(self.links, self.table, self.name).deliver
        self.leases.on_change = self.cluster.load_changed

    def _owner_lives(self, oid: bytes) -> bool:
        """Whether the process that made an object that left it is alive."""
        return self.objects.machine.owner_of(oid) in self.table.by_id

    def _statistics(self) -> dict[str, Callable[[], Any]]:
        return {
            "scheduler": lambda: asdict(self.leases.machine.statistics()),
            "objects": lambda: self.objects.machine.statistics(),
            "actors": lambda: {**self.actors.statistics(), **self.recoveries.statistics()},
            "placement_groups": self.groups.statistics,
            "gcs": self.gcs_health.statistics,
            "store": lambda: asdict(self.store.statistics()),
            "room": lambda: self.store.room.statistics(),
            "cluster": lambda: {
                **self.links.statistics(),
                **(self.leases.foreign.statistics() if self.leases.foreign is not None else {}),
                **(self.cluster.transfer.statistics() if self.cluster is not None else {}),
            },
            "node": lambda: {"processes": len(self.table.by_id), "connections": len(self._connections)},
        }

    # ---------------------------------------------------------------- begin

    def listen(self) -> None:
        """Accept processes, watch what must be watched, start the first workers.

        Raises:
            OSError: the socket cannot be made.
        """
        start, loop = self.start, self.loop
        os.makedirs(os.path.join(start.session_dir, "logs"), mode=0o700, exist_ok=True)
        self._listener = Listener(start.node_socket, loop, self._accepted)
        loop.add_signal_handler(signal.SIGTERM, self._on_sigterm)
        loop.add_signal_handler(signal.SIGINT, self.end, "it was told to (SIGINT)")
        # uvloop keeps SIGCHLD from `add_signal_handler`, but lets Python's own handlers run at once.
        signal.signal(signal.SIGCHLD, lambda _number, _frame: loop.call_soon(self.watches.reap_strangers))
        if start.driver_fd >= 0:
            self.watches.watch(
                start.driver_pid, lambda _end: self.end("its driver is gone"), is_child=False, pidfd=start.driver_fd
            )
        self.gcs_process.watch()
        self._connect_gcs()
        self.leases.begin()
        if start.gcs_pid and not outlives_session(start.options["gcs_storage"]):
            self._tell_ready()  # else another head may have to be waited for, or live

    def _connect_gcs(self) -> None:
        start, cluster = self.start, self.cluster
        token = cluster.token if cluster is not None else b""
        node = RegisterNode(
            self.node_id,
            os.getpid(),
            socket.gethostname(),
            cluster.address if cluster is not None else start.node_socket,
            self.resources,
            start.options["labels"],
            start.session_dir,
            bool(start.gcs_pid),
            name=self.name,
            gcs_address=cluster_address(start) if start.gcs_pid and cluster is not None else "",
        )
        gateway = cluster.gateway if cluster is not None else ""
        if not start.gcs_pid:
            self.gcs.on_shards = lambda addresses: self._further_shards().connect(addresses, node, token, gateway)
        elif int(start.options.get("gcs_shards", 1)) > 1:
            shards = self._further_shards()
            node.shards = shards.start_processes(start, self.watches, self._listen_for_nodes)
            shards.connect_own(start, node)
        if self.gateway is not None:
            self.gateway.begin()  # all that it listens on is there
        address = start.gcs_socket if start.gcs_pid else start.options["gcs_address"]
        self.gcs.on_moved = self._on_gcs_moved
        self.gcs.start(self.loop, address, node, token, gateway, start.options.get("gcs_addresses", ()))

    def _listen_for_nodes(self, host: str) -> tuple[socket.socket, str]:
        """A socket on which other nodes arrive, on any port, and the address that they are given."""
        from shoal.node.io.cluster import listen_for_nodes

        return listen_for_nodes(host) if self.gateway is None else self.gateway.listen(host, 0)

    def _further_shards(self) -> GcsShards:
        """A GCS of one shard need not even load this."""
        from shoal.node.io.gcs_shards import GcsShards

        if self.shards is None:
            self.shards = GcsShards(self.loop, self.gcs, self._on_gcs_push, self._on_gcs_lost)
            if self.cluster is not None:
                self.cluster.use_shards(self.shards)
        return self.shards

    @property
    def name(self) -> str:
        """What people call this node."""
        chosen = self.start.options.get("node_name")
        return str(chosen or (self.cluster.address.removeprefix("tcp:") if self.cluster else socket.gethostname()))

    def _tell_ready(self, error: str = "") -> None:
        """Tell the starter that the node listens and belongs to its cluster, or why it does not; once. Then, by a file of the session, everybody."""
        start = self.start
        if self._told_ready:
            return
        self._told_ready = True
        facts: dict[str, Any] = {"ok": True, "node_id": self.node_id.hex(), "name": self.name}
        if self.cluster is not None and not error:
            facts, error = self._write_membership()
            if error:
                self.end(error)
        try:
            os.write(start.ready_fd, json.dumps({"error": error} if error else facts).encode() + b"\n")
        except OSError as problem:
            log.warning("the starter of this node did not wait for it: %s", problem)
        os.close(start.ready_fd)

    def _write_membership(self) -> tuple[dict[str, Any], str]:
        """Say in the session's folder which cluster the node belongs to; what was said, and why it could not be."""
        start = self.start
        assert self.cluster is not None, "of a cluster"
        facts = membership(start, self.node_id, self.name, self.cluster.address, self.gcs.skew_warning())
        try:
            write_membership(start.session_dir, facts)
        except OSError as problem:
            where = f"nothing can be written to {start.session_dir}: {problem.strerror}"
            return facts, f"{where}. Free space there, or set SHOAL_TMPDIR to another folder"
        return facts, ""

    # ---------------------------------------------------------------- connections

    def _accepted(self, sock: socket.socket) -> None:
        connection = Connection(sock, self.outbox, self._on_message, self._on_lost)
        self._connections[connection.fd] = connection
        self.loop.call_later(CONNECT_TIMEOUT_S, self._close_silent, connection)

    def _close_silent(self, connection: Connection) -> None:
        if connection.peer is None and not connection.spoke and not connection.closed:
            connection.close(f"it said nothing for {CONNECT_TIMEOUT_S:g} s")

    def _on_message(self, connection: Connection, message: Any) -> None:
        connection.spoke = True
        process = connection.peer
        kind = type(message)
        if process is not None:
            handler = self._handlers.get(kind)
            if handler is not None:
                handler(process, message)
                return
        if kind is messages.Call:
            self.calls.on_call(connection, message)
        elif kind is Hello:
            self._on_hello(connection, message)
        elif kind is Register and process is None:
            self._on_register(connection, message)
        else:
            connection.close(f"it sent {kind.__name__}, which does not belong here")

    def _on_hello(self, connection: Connection, message: Hello) -> None:
        if message.protocol_version != PROTOCOL_VERSION:
            connection.close(
                f"process {message.pid} speaks protocol version {message.protocol_version}, this node {PROTOCOL_VERSION}: "
                "run the same version of shoal everywhere",
            )

    def _on_lost(self, connection: Connection, reason: str) -> None:
        del self._connections[connection.fd]
        process = connection.peer
        if process is None or process.dead or self.ending:
            return
        if isinstance(process, Driver):
            self._driver_left(process, reason or "it closed its connection")
        else:
            # It may be on its way out; if it is not, it is of no use any more.
            if reason:
                process.leaving = process.leaving or f"its connection to the node was closed: {reason}"
            self.pool.kill_later(process, SHUTDOWN_GRACE_S)

    # ---------------------------------------------------------------- registration

    def _on_register(self, connection: Connection, message: Register) -> None:
        if message.worker_id in self.table.by_id:
            connection.close(f"process {message.pid} registers with the id of another process")
            return
        process: Process
        if message.role == "driver":
            refused = self._refusal(message)
            if refused:
                connection.close(refused)
                return
            process = self._new_driver(message)
        else:
            worker = self.pool.claim(message.startup_token, message.worker_id)
            if worker is None:
                connection.close(f"process {message.pid} is no worker that this node has started")
                return
            worker.pid = message.pid
            worker.address = message.address
            process = worker
        connection.peer = process
        process.connection = connection
        process.page = self.store.add_process(process.worker_id, str(process))
        self.table.by_id[process.worker_id] = process
        self.objects.joined(process)
        connection.send(
            Registered(
                self.node_id,
                process.job_id,
                os.getpid(),
                process.page.fd,
                process.namespace,
                self.start.session_dir,
                self._config(),
            )
        )
        connection.flush()
        if isinstance(process, Worker):
            self.leases.worker_ready(process)

    def _refusal(self, message: Register) -> str:
        """Why a program may not join here; "" when it may."""
        theirs, ours = message.job.get("python"), list(sys.version_info[:2])
        if theirs is not None and theirs != ours:
            return (
                f"process {message.pid} runs Python {theirs[0]}.{theirs[1]}, the workers of this node {ours[0]}.{ours[1]}: functions and values "
                "cannot pass between them. Run both with the same Python"
            )
        if not self.start.gcs_pid and not self._told_ready:
            return "this node is about to join its cluster: try again in a moment"
        return ""

    def _new_driver(self, message: Register) -> Driver:
        job = message.job
        self._jobs += 1
        driver = Driver(
            message.worker_id,
            message.pid,
            job_id=ids.job_id_of(self.gcs.node_no, self._jobs),
            namespace=job.get("namespace") or os.urandom(16).hex(),
            address=message.address,
            is_home=self._is_home(message),
            log_to_driver=bool(job.get("log_to_driver", True)),
        )
        self.table.namespaces[driver.job_id] = driver.namespace
        if not driver.is_home:
            driver.watch = self.watches.watch(
                message.pid, lambda _end: self._driver_left(driver, "its process ended"), is_child=False
            )
        self.gcs.call(
            "gcs.register_job",
            {"job_id": driver.job_id, "namespace": driver.namespace, "pid": driver.pid, "config": job},
        )
        return driver

    def _is_home(self, message: Register) -> bool:
        """Whether the node ends with this driver."""
        start = self.start
        return (
            message.pid == start.driver_pid
            and bool(start.options.get("ends_with_session", True))
            and not any(driver.is_home for driver in self.table.drivers())
        )

    def _config(self) -> dict[str, Any]:
        """What every process of the node may want to know of it."""
        options = self.start.options
        return {
            "num_cpus": options["num_cpus"],
            "num_gpus": options["num_gpus"],
            "object_store_memory": options["object_store_memory"],
            "resources": self.resources,
            "log_path": self.start.log_path,
            "import_path": self.start.zygote.interpreter.import_path,
            "gcs_pid": self.gcs_process.pid,
            "options": options,
            **self._config_of_cluster(),
        }

    def _config_of_cluster(self) -> dict[str, Any]:
        if self.cluster is None:
            return {}
        return {
            "cluster_token": self.cluster.token,
            "cluster_address": cluster_address(self.start).removeprefix("tcp:"),
            "node_host": self.cluster.host,
            "tls_gateway": self.cluster.gateway,
        }

    # ---------------------------------------------------------------- ends of processes

    def _on_start_failed(self, environment_key: str, reason: str) -> None:
        if not self.ending:
            self.leases.start_failed(environment_key, reason)

    def _on_worker_exit(self, worker: Worker, end: End) -> None:
        """A registered worker is dead and its pipes are read."""
        if self.ending:
            return
        if worker.connection is not None:
            worker.connection.drain()
        cause = death_text(worker, end)
        page = worker.page
        lease_id, seq = page.read_started() if page is not None else (0, 0)
        untaken = page.read_kept() if page is not None else []
        if worker.lease_id and lease_id != worker.lease_id:
            if lease_id:
                untaken.append((lease_id, seq))
            lease_id, seq = worker.lease_id, 0
        died = WorkerDied(
            worker.worker_id,
            lease_id,
            seq,
            cause,
            end.exit_code or 0,
            worker.out_of_memory,
            worker.group_removed,
            untaken,
            self.node_id,
        )
        for process_id in {**worker.submitters, **dict.fromkeys(self.actors.subscribers_of(worker))}:
            process = self.table.by_id.get(process_id)
            if process is not None and process is not worker:
                process.send(died)
            elif process is None and self.leases.foreign is not None:
                self.leases.foreign.tell(process_id, died)
        if not worker.leaving:
            log.warning("%s", cause)
        self._forget(worker, end, cause)

    def _driver_left(self, driver: Driver, reason: str) -> None:
        """A driver ended its job, or ended."""
        if driver.dead:
            return
        if driver.is_home:
            self.end(f"its driver left: {reason}")
            return
        if driver.connection is not None:
            driver.connection.drain()
            self.pool.flush_logs()
            _say_last(driver, Shutdown(reason))
        log.info("driver %d left: %s", driver.pid, reason)
        self.gcs.call("gcs.end_job", {"job_id": driver.job_id, "reason": reason})
        self._forget(driver, End(), f"the driver {driver.pid} left: {reason}")
        for worker in self.table.workers():
            # Its tasks are of no use to anybody; its actors are the GCS's to end.
            if worker.job_id == driver.job_id and worker.lease_id and not worker.actor_id:
                self.pool.kill(worker, f"its job ended: {reason}")

    def _forget(self, process: Process, end: End, cause: str) -> None:
        if process.dead:
            return
        process.dead = True
        del self.table.by_id[process.worker_id]
        executors = [
            worker.worker_id
            for worker in self.table.workers()
            if process.worker_id in worker.submitters or process.worker_id in self.actors.subscribers_of(worker)
        ]
        nodes = self.leases.foreign.process_died(process, cause) if self.leases.foreign is not None else []
        if self.cluster is not None:
            self.cluster.transfer.process_died(process.worker_id)
        self.leases.process_died(process)
        submitters = []
        if isinstance(process, Worker) and not process.leaving:
            submitters = [*process.submitters, *self.actors.subscribers_of(process)]
        self.objects.process_died(process, cause, executors, nodes, submitters)
        self.actors.process_died(process, end, cause)
        self.store.remove_process(process.worker_id)
        self.groups.process_died(process.worker_id)
        self.calls.process_died(process)
        if process.connection is not None:
            process.connection.close("")
            process.connection = None
        process.page = None
        if process.watch is not None:
            process.watch.cancel()

    def on_exiting(self, process: Process, message: messages.WorkerExiting) -> None:
        """A worker leaves by its own will."""
        if isinstance(process, Worker):
            process.leaving = process.leaving or message.reason
            process.exits_by_itself, process.moves = not message.moves, message.moves
            self.pool.kill_later(process, EXIT_GRACE_S)

    def on_pull(self, process: Process, message: messages.Pull) -> None:
        """A process wants a value of another node, which only a cluster's node can bring."""
        if self.cluster is not None:
            self.cluster.transfer.on_pull(process, message)
        elif message.request:
            text = f"object {message.stored.oid.hex()} is of a session that is over, or of another cluster"
            process.send(messages.Answer(message.request, None, ["ObjectLost", text]))

    def on_shutdown(self, process: Process, message: Shutdown) -> None:
        """A driver's job is over."""
        if isinstance(process, Driver):
            self._driver_left(process, message.reason or "shutdown() was called")

    # ---------------------------------------------------------------- the GCS

    def _on_gcs_push(self, message: Any) -> None:
        kind = type(message)
        if kind is HeartbeatAcknowledged and self.cluster is not None:
            self.cluster.leash.acknowledged(message.count)
        elif kind is StartActor:
            self.actors.on_start(message)
        elif kind is StopActor:
            self.actors.on_stop(message)
        elif kind is ActorChanged:
            self.actors.on_changed(message)
        elif kind is ClusterNodes:
            self.links.on_cluster(message)
        elif kind is GroupChanged:
            self.groups.on_changed(message)
        elif kind in (ReserveBundle, CommitBundle, ReturnBundle):
            self.groups.on_bundle_message(message)
        elif kind is LeasesPlaced and self.leases.foreign is not None:
            self.leases.foreign.on_placed(message)
        elif kind is DrainNode and self.cluster is not None:
            self.cluster.draining.begin(message.reason, message.deadline_s)

    def _on_gcs_connected(self) -> None:
        self.gcs_process.answered()
        if self.gcs.node_no and not self.leases.machine.granted_total():
            self.leases.machine.number_leases_of(self.gcs.node_no)
        self.actors.on_connected()
        self.groups.on_connected()
        if self.cluster is not None:
            self.cluster.on_connected()
        self._tell_ready()

    def _on_gcs_moved(self, address: str) -> None:
        """Another node is the head now."""
        log.warning("the cluster has another head, at %s", address)
        move_cluster(self.start.options, address)
        self.gcs_process.moved(address)
        if self._told_ready:
            self._write_membership()

    def _on_refused(self, reason: str) -> None:
        """The GCS does not want this node (any more)."""
        log.error("this node may not belong to the cluster: %s", reason)
        self._tell_ready(reason)
        self.end(f"it may not belong to the cluster: {reason}")

    def _on_gcs_lost(self, reason: str) -> None:
        """There is no GCS and will be none."""
        self._tell_ready(reason)
        if not self.ending:
            self.loop.call_later(self.gcs_health.given_up(reason), self.end, reason)

    # ---------------------------------------------------------------- the end

    def _on_sigterm(self) -> None:
        """The machine is about to go, or somebody ends this node: a node of a cluster has a while to hand on what it has."""
        cluster = self.cluster
        if cluster is None or not self._told_ready or not cluster.draining.on_signal(len(self.links.nodes)):
            self.end("it was told to (SIGTERM)")

    def end(self, reason: str) -> None:
        """The node ends, once."""
        if self.ending:
            return
        self.ending = reason
        log.info("the node ends: %s", reason)
        if self._listener is not None:
            self._listener.close()
        self.pool.flush_logs()
        for driver in self.table.drivers():
            _say_last(driver, Shutdown(f"the node ends: {reason}"))
        if self.cluster is None or self.start.gcs_pid or not self.gcs.node_no:
            self.loop.stop()
            return
        # The others need not wait until they miss it.
        self.gcs.call("gcs.leave", {"reason": f"it left: {reason}"}, lambda _body, _error: self.loop.stop())
        self.loop.call_later(LEAVE_S, self.loop.stop)

    def finish(self) -> None:
        """End all children and remove the session's folder. The store is not closed in order: all of it goes with this process."""
        if self.cluster is not None:
            self.cluster.close()
        if self.gateway is not None:
            self.gateway.close()
        self.gcs.close()
        self.gcs_process.close()
        gcs_pids = [self.gcs_process.pid]
        if self.shards is not None:
            self.shards.close()
            gcs_pids += [process.pid for process in self.shards.processes]
        worker_pids = self.pool.close()
        # Tables that outlive the session are dropped first: nobody shall take over a cluster that was ended.
        grace_s = SHARED_TABLES_DROP_S if outlives_session(self.start.options["gcs_storage"]) else GCS_END_S
        left = end_children(self.start.session_dir, self.pool.zygote_pid, gcs_pids, worker_pids, grace_s)
        if left:
            log.error("processes %s did not end", left)


#: what each message of a registered process is for
_HANDLERS: dict[type, Callable[[NodeDaemon], Callable[[Any, Any], None]]] = {
    messages.RequestLeases: lambda d: d.leases.on_request,
    messages.ReturnLease: lambda d: d.leases.on_return,
    messages.LeaseFinished: lambda d: d.leases.on_finished,
    messages.Blocked: lambda d: d.leases.on_blocked,
    messages.Unblocked: lambda d: d.leases.on_unblocked,
    messages.KillWorker: lambda d: d.leases.on_kill,
    messages.SignalWorker: lambda d: d.leases.on_signal,
    messages.WorkerExiting: lambda d: d.on_exiting,
    messages.Shutdown: lambda d: d.on_shutdown,
    messages.TaskEvents: lambda d: d.calls.on_task_events,
    messages.Escape: lambda d: d.objects.on_escape,
    messages.LineageCode: lambda d: d.objects.on_lineage_code,
    messages.Claims: lambda d: d.objects.on_claims,
    messages.NotMade: lambda d: d.objects.on_not_made,
    messages.Publish: lambda d: d.objects.on_publish,
    messages.Hold: lambda d: d.objects.on_hold,
    messages.NeedLineage: lambda d: d.objects.on_need_lineage,
    messages.Release: lambda d: d.objects.on_release,
    messages.RefsReceived: lambda d: d.objects.on_refs_received,
    messages.Resolve: lambda d: d.objects.on_resolve,
    messages.CancelObject: lambda d: d.objects.on_cancel,
    messages.Sealed: lambda d: lambda process, message: d.store.on_sealed(process.worker_id, message),
    messages.FreeObjects: lambda d: d.objects.on_free,
    messages.Pull: lambda d: d.on_pull,
    messages.KeepCopies: lambda d: d.objects.on_keep_copies,
    messages.OpenSegment: lambda d: lambda process, message: d.store.on_open_segment(process.worker_id, message),
    messages.BudgetReturned: lambda d: lambda process, message: d.store.on_budget_returned(process.worker_id, message),
    messages.AskRoom: lambda d: lambda process, message: d.store.room.on_ask(process.worker_id, message),
    messages.UseRoom: lambda d: lambda process, message: d.store.room.on_use(process.worker_id, message),
    messages.CreateActor: lambda d: d.actors.on_create,
    messages.SubscribeActor: lambda d: d.actors.on_subscribe,
    messages.ActorStarted: lambda d: d.actors.on_started,
    messages.KillActor: lambda d: d.actors.on_kill,
    messages.RecordCall: lambda d: d.recoveries.on_record,
    messages.StoreCheckpoint: lambda d: d.recoveries.on_checkpoint,
    FollowGroup: lambda d: d.groups.on_follow,
}


def _say_last(driver: Driver, message: Any) -> None:
    """Send a last message and see that it leaves with all before it, for as long as a driver waits for it (GOODBYE_S)."""
    driver.send(message)
    connection = driver.connection
    if connection is None:
        return
    poller = select.poll()
    poller.register(connection.fd, select.POLLOUT)
    until = time.monotonic() + GOODBYE_S
    while not connection.flush() and not connection.closed and (left_s := until - time.monotonic()) > 0:
        poller.poll(left_s * 1000)


def main(start: DaemonStart) -> None:
    """Be the daemon of a node until it ends. Called once in a process of its own by `launch.node_process`."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.set_exception_handler(_log_loop_error)
    daemon = NodeDaemon(start, loop)
    daemon.listen()
    try:
        loop.run_forever()
    finally:
        daemon.finish()


def _log_loop_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A callback raised: nothing may die silently, and the node goes on."""
    log.error("internal error: %s; please report it", context.get("message"), exc_info=context.get("exception"))
