"""Rare requests: `Call` messages of processes, answered here ("node.x") or by the GCS ("gcs.x").

Purpose: one table of the node's methods, and the way to the GCS for everything else.

    node.explain    class_no: int    -> str: why tasks of this class of the caller wait
                    (or the actor, for actor_id: bytes; or the placement group, for group_id: bytes)
    node.resources                   -> total, available: {name: float}
    node.workers                     -> workers: list of rows
    node.stats                       -> one record per part of the daemon
    node.waiting    limit?: int      -> waiting: rows of who waits for a worker here, and why
    node.stored     limit?: int      -> stored: rows of the objects in this node's store
    node.objects    limit?: int      -> objects: what the node's directory knows of each, and who holds it
    node.cluster                     -> nodes: rows of the living ones, as this node knows them, itself first
    node.recorded   oids: [bytes]    -> known: bool, whether others know the objects, which the asker holds then; lineage: bytes, how the first
                                        was made, or empty
    node.keep_here  stored           -> stored: where this node's own copy of it lies, an original from now on (NotKept, ObjectStoreFull)
    node.gcs                         -> how the lines to the GCS are; trouble: why it does not answer, "" when it does
    node.ping                        -> {}

How to extend: a method is a row of `_METHODS`: (calls, process or None, body) -> the answer's body; raise CallError to refuse. One that answers
later is put into `later`: (process, body, answered(body, error)).

What it does not do: anything on the path of tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shoal.node.io.connections import Connection
from shoal.node.io.gcs_link import GcsLink
from shoal.node.io.leases import Leases
from shoal.node.io.node_links import NodeLinks
from shoal.node.io.objects import Objects
from shoal.node.io.processes import Process, ProcessTable, Worker
from shoal.node.io.store_shell import StoreShell
from shoal.node.object_listing import listed_objects
from shoal.protocol.gcs_messages import NodeEntry, TaskEventBatch
from shoal.protocol.messages import Answer, Call, TaskEvents
from shoal.protocol.resources import to_floats

WAITING_SHOWN = 100
STORED_SHOWN = 1000


class CallError(Exception):
    """A call is refused: `kind` is a word that programs may test."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Calls:
    """Answers to Call messages. `statistics` lists the daemon's parts by name, each a function that makes its record."""

    def __init__(
        self,
        node_id: bytes,
        table: ProcessTable,
        leases: Leases,
        gcs: GcsLink,
        links: NodeLinks,
        store: StoreShell,
        statistics: dict[str, Callable[[], Any]],
        objects: Objects,
    ) -> None:
        self._node_id = node_id
        self._table = table
        self._leases = leases
        self._gcs = gcs
        self._links = links
        self._store = store
        self._statistics = statistics
        self._objects = objects
        #: methods that answer later, of a cluster's node
        self.later: dict[str, Callable[[Process, dict[str, Any], Callable[[Any, list[str]], None]], None]] = {}
        #: batches of trace events sent for each process
        self._event_batches: dict[bytes, int] = {}

    def on_call(self, connection: Connection, message: Call) -> None:
        """Answer a call, now or when the GCS has."""

        def answered(body: Any, error: list[str]) -> None:
            connection.send(Answer(message.request, body, error))

        if message.method.startswith("gcs."):
            self._gcs.call(message.method, message.body, answered)
            return
        later = self.later.get(message.method)
        if later is not None and connection.peer is not None:
            later(connection.peer, message.body, answered)
            return
        method = _METHODS.get(message.method)
        error: list[str] = []
        body: Any = None
        if method is None:
            error = ["BadRequest", f"the node has no method {message.method!r}; it has {', '.join(sorted(_METHODS))}"]
        else:
            try:
                body = method(self, connection.peer, message.body)
            except CallError as refusal:
                error = [refusal.kind, str(refusal)]
            except (KeyError, TypeError, ValueError) as problem:
                error = ["BadRequest", f"{message.method} with {sorted(message.body)}: {problem!r}"]
        connection.send(Answer(message.request, body, error))

    def on_task_events(self, process: Process, message: TaskEvents) -> None:
        """Trace events go on to the GCS."""
        seq = self._event_batches.get(process.worker_id, 0) + 1
        self._event_batches[process.worker_id] = seq
        self._gcs.report(
            TaskEventBatch(
                process.worker_id, seq, process.pid, self._node_id, process.job_id, message.count, message.events
            )
        )

    def process_died(self, process: Process) -> None:
        """A process is dead."""
        self._event_batches.pop(process.worker_id, None)

    # ---------------------------------------------------------------- methods

    def _explain(self, process: Process | None, body: dict[str, Any]) -> Any:
        if process is None:
            raise CallError("BadRequest", "only a registered process has classes")
        machine, groups = self._leases.machine, self._leases.groups
        if "actor_id" in body:
            return machine.explain(body["actor_id"])
        if "group_id" in body:
            return groups.explain_group(body["group_id"])
        class_no = int(body["class_no"])
        why = machine.explain(process.worker_id, class_no) or groups.explain(process.worker_id, class_no)
        foreign = self._leases.foreign
        return why or (foreign.explain(process.worker_id, class_no) if foreign is not None else "")

    def _resources(self, _process: Process | None, _body: dict[str, Any]) -> Any:
        machine = self._leases.machine
        return {"total": to_floats(machine.total()), "available": to_floats(machine.available())}

    def _workers(self, _process: Process | None, _body: dict[str, Any]) -> Any:
        return {"workers": [worker_row(worker) for worker in self._table.workers()]}

    def _stats(self, _process: Process | None, _body: dict[str, Any]) -> Any:
        return {name: make() for name, make in self._statistics.items()}

    def _waiting(self, _process: Process | None, body: dict[str, Any]) -> Any:
        return {"waiting": self._leases.machine.waiting(int(body.get("limit") or WAITING_SHOWN))}

    def _stored(self, _process: Process | None, body: dict[str, Any]) -> Any:
        return {"stored": self._store.rows(int(body.get("limit") or STORED_SHOWN))}

    def _listed_objects(self, _process: Process | None, body: dict[str, Any]) -> Any:
        return {"objects": listed_objects(self._objects.machine, int(body.get("limit") or STORED_SHOWN))}

    def _cluster(self, _process: Process | None, _body: dict[str, Any]) -> Any:
        return {
            "nodes": [
                {"node_id": self._node_id, "address": ""},
                *(node_row(entry) for entry in self._links.nodes.values()),
            ]
        }

    def _recorded(self, process: Process | None, body: dict[str, Any]) -> Any:
        return self._objects.recorded(process.worker_id if process is not None else b"", body["oids"])

    def _gcs_record(self, _process: Process | None, _body: dict[str, Any]) -> Any:
        return self._statistics["gcs"]()

    def _ping(self, _process: Process | None, _body: dict[str, Any]) -> Any:
        return {}


def node_row(entry: NodeEntry) -> dict[str, Any]:
    """What listings show of another node."""
    return {
        "node_id": entry.node_id,
        "address": entry.address,
        "name": entry.name,
        "is_head": entry.is_head,
        "draining": entry.draining,
    }


def worker_row(worker: Worker) -> dict[str, Any]:
    """What listings show of a worker."""
    started = worker.page.read_started() if worker.page is not None else (0, 0)
    return {
        "worker_id": worker.worker_id,
        "pid": worker.pid,
        "job_id": worker.job_id,
        "address": worker.address,
        "lease_id": worker.lease_id,
        "started_seq": started[1] if started[0] == worker.lease_id else 0,
        "actor_id": worker.actor_id,
        "environment": worker.environment,
        "leaving": worker.leaving,
    }


_METHODS: dict[str, Callable[[Calls, Process | None, dict[str, Any]], Any]] = {
    "node.explain": Calls._explain,
    "node.resources": Calls._resources,
    "node.workers": Calls._workers,
    "node.stats": Calls._stats,
    "node.cluster": Calls._cluster,
    "node.waiting": Calls._waiting,
    "node.stored": Calls._stored,
    "node.objects": Calls._listed_objects,
    "node.recorded": Calls._recorded,
    "node.gcs": Calls._gcs_record,
    "node.ping": Calls._ping,
}
