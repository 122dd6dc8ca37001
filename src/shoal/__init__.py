"""Shoal: remote functions, actors and a shared-memory object store.

    import shoal

    @shoal.remote
    def square(x):
        return x * x

    print(shoal.get([square.remote(i) for i in range(4)]))

The names are those that users of Ray know. docs/ARCHITECTURE.md says how it works.
"""

from __future__ import annotations

from typing import Any

from shoal.api.actors import ActorClass, ActorHandle, exit_actor, get_actor, method
from shoal.api.remote_function import RemoteFunction
from shoal.api.runtime_context import get_runtime_context
from shoal.api.session import SessionContext, init, is_initialized, shutdown
from shoal.api.timeline import timeline
from shoal.api.verbs import (
    available_resources,
    cancel,
    cluster_resources,
    get,
    get_gpu_ids,
    kill,
    nodes,
    put,
    remote,
    show_in_dashboard,
    wait,
)
from shoal.protocol.ids import ActorID, FunctionID, JobID, NodeID, PlacementGroupID, TaskID, UniqueID, WorkerID
from shoal.runtime.objects import ObjectRef
from shoal.runtime.streams import DynamicObjectRefGenerator, ObjectRefGenerator

__version__ = "0.1.0"

ObjectID = ObjectRef

__all__ = [
    "ActorClass",
    "ActorHandle",
    "ActorID",
    "DynamicObjectRefGenerator",
    "FunctionID",
    "JobID",
    "NodeID",
    "ObjectID",
    "ObjectRef",
    "ObjectRefGenerator",
    "PlacementGroupID",
    "RemoteFunction",
    "SessionContext",
    "TaskID",
    "UniqueID",
    "WorkerID",
    "available_resources",
    "cancel",
    "cluster_resources",
    "exit_actor",
    "get",
    "get_actor",
    "get_gpu_ids",
    "get_runtime_context",
    "init",
    "is_initialized",
    "kill",
    "method",
    "nodes",
    "put",
    "remote",
    "show_in_dashboard",
    "shutdown",
    "timeline",
    "wait",
]


def __getattr__(name: str) -> Any:
    """`shoal.util`, `shoal.exceptions` and the libraries are imported at their first use, so that `import shoal` stays fast."""
    if name in ("util", "exceptions", "actor", "tune", "train", "rl"):
        import importlib

        return importlib.import_module(f"shoal.{name}")
    from shoal.protocol.foreign_names import missing_attribute

    raise missing_attribute(__name__, name)
