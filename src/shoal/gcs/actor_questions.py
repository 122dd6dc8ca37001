"""Calls that ask about actors, and about who waits, and change nothing.

Purpose: the answers to `gcs.actor_by_name`, `gcs.actors_list`, `gcs.actor_story`, `gcs.named_actors` and `gcs.explain`; a part of `shard`.

How to extend: a function of the manager and the call's body, and a row in the shard's table of calls.

What it does not do: change actors (`actor_manager`).
"""

from __future__ import annotations

from typing import Any

import msgspec

from shoal.gcs.actor_manager import PENDING, RESTARTING, ActorManager, ActorRecord
from shoal.gcs.global_scheduler import GlobalScheduler
from shoal.gcs.tables import LIST_ROWS_MAX, TableError, bytes_of
from shoal.protocol.gcs_messages import StartActor
from shoal.protocol.messages import ActorSpec
from shoal.protocol.resources import format_resources
from shoal.scheduling.node_policy import NOBODY_NOW


def actor_of(manager: ActorManager, body: dict[str, Any]) -> ActorRecord:
    """The actor that a call names.

    Raises:
        TableError: it is not known.
    """
    actor_id = bytes_of(body, "actor_id")
    record = manager.get(actor_id)
    if record is None:
        raise TableError("ActorNotFound", f"the GCS knows no actor {actor_id.hex()}")
    return record


def to_hold_at_head(records: list[ActorRecord]) -> list[StartActor]:
    """What constructors may need again is held by the head, too: it outlives all nodes but that, which the cluster does not outlive either."""
    return [
        StartActor(record.spec.actor_id, 0, record.spec)
        for record in records
        if record.spec.needs  # dead ones have none
        and (record.spec.max_restarts or (record.spec.detached and record.state == PENDING))
    ]


def by_name(manager: ActorManager, body: dict[str, Any]) -> dict[str, Any]:
    """gcs.actor_by_name"""
    name, namespace = str(body["name"]), str(body["namespace"])
    record = manager.find(namespace, name)
    if record is None:
        text = f"there is no actor named {name!r} in namespace {namespace!r}"
        elsewhere = [other for other, known, _ in manager.names() if known == name]
        if elsewhere:
            text += f" (there is one in {', '.join(map(repr, elsewhere))})"
        raise TableError("ActorNotFound", text)
    return {"actor_id": record.spec.actor_id, "spec": without_arguments(record.spec)}


def listing(manager: ActorManager, body: dict[str, Any]) -> dict[str, Any]:
    """gcs.actors_list"""
    job_id, state = body.get("job_id"), body.get("state")
    rows = [
        record.row()
        for record in manager.records()
        if (job_id is None or record.spec.job_id == job_id) and (state is None or record.state == state)
    ]
    return {"actors": rows[-int(body.get("limit") or LIST_ROWS_MAX) :]}


def story(manager: ActorManager, body: dict[str, Any]) -> dict[str, Any]:
    """gcs.actor_story"""
    return {"story": manager.story(actor_of(manager, body).spec.actor_id)}


def why(manager: ActorManager, scheduler: GlobalScheduler, node_id: bytes, body: dict[str, Any]) -> str:
    """gcs.explain: for an actor, or a class of tasks of a process on the node that asks."""
    if "actor_id" not in body:
        return scheduler.explain((node_id, bytes_of(body, "process"), int(body["class_no"])))
    record = manager.get(bytes_of(body, "actor_id"))
    if record is None or record.state not in (PENDING, RESTARTING):
        return ""
    if record.node_id:
        return scheduler.explain_actor(record.spec.actor_id)
    return record.waits or f"it asks for {format_resources(record.spec.placement)}; {NOBODY_NOW}"


def named(manager: ActorManager, body: dict[str, Any]) -> dict[str, Any]:
    """gcs.named_actors"""
    wanted = body.get("namespace")
    return {
        "actors": [
            {"namespace": namespace, "name": name, "actor_id": actor_id}
            for namespace, name, actor_id in manager.names()
            if wanted is None or namespace == wanted
        ]
    }


def without_arguments(spec: ActorSpec) -> ActorSpec:
    """What a handle needs of a spec."""
    return msgspec.structs.replace(spec, arguments=b"", dependencies=None)
