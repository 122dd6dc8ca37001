"""The verbs: remote, get, put, wait, cancel, kill, and what asks about the cluster."""

from __future__ import annotations

import os
from numbers import Real
from typing import Any

from shoal import serialization
from shoal.api.actors import ActorClass, ActorHandle
from shoal.api.batched_function import BatchedFunction
from shoal.api.options import ActorOptions, TaskOptions
from shoal.api.remote_function import RemoteFunction
from shoal.protocol.messages import Failed
from shoal.protocol.resources import to_floats
from shoal.runtime import core
from shoal.runtime.objects import ObjectRef
from shoal.runtime.streams import ObjectRefGenerator
from shoal.runtime.waiting import Rest, session_of_refs


def remote(*args: Any, **options: Any) -> Any:
    """Make a remote function of a function, or an actor class of a class: `@shoal.remote` bare, or with options.

    Args:
        options: of tasks (`api.options.TaskOptions`) or actors (`ActorOptions`). With `batch=n` calls of a function that wait at the same time become
            one call of it, with lists (`api.batched_function`).

    Raises:
        ValueError, TypeError: an option is unknown or out of range, or the thing is neither function nor class.
    """
    if args:
        if (
            len(args) == 1
            and callable(args[0])
            and not hasattr(args[0], "__name__")
            and not hasattr(args[0], "_function")
        ):
            raise _not_remote(args[0])
        if len(args) != 1 or not (callable(args[0]) or isinstance(args[0], type)):
            raise TypeError("use @shoal.remote, or @shoal.remote(num_cpus=2, ...) with keyword options")
        return _made_remote(args[0], options)
    if not options:
        raise TypeError("use @shoal.remote without parentheses, or give it options: @shoal.remote(num_cpus=2)")
    return lambda thing: _made_remote(thing, options)


def _made_remote(thing: Any, options: dict[str, Any]) -> Any:
    if isinstance(thing, type):
        return ActorClass(thing, ActorOptions.parse(options))
    if isinstance(thing, (RemoteFunction, ActorClass)):
        raise TypeError(f"{thing!r} is remote already; use .options() to change its options")
    if not callable(thing) or not hasattr(thing, "__name__"):
        raise _not_remote(thing)
    if "batch" in options:
        return BatchedFunction(
            thing, options["batch"], {name: value for name, value in options.items() if name != "batch"}
        )
    return RemoteFunction(thing, TaskOptions.parse(options))


def _not_remote(thing: Any) -> TypeError:
    return TypeError(
        f"only functions and classes can be remote, not {type(thing).__name__}"
        + (": define a function that calls it" if callable(thing) else "")
    )


def get(refs: Any, *, timeout: float | None = None) -> Any:
    """The value of a ref, or of each in a list, waiting for it.

    Args:
        refs: a ref, a list of refs, or a generator of refs (returned as it is).
        timeout: seconds; 0 does not wait. None waits as long as it takes.

    Raises:
        GetTimeoutError: not all values were there in time; the text says what they wait for.
        TaskError: a task failed; also an instance of the exception's own class.
        TypeError, ValueError: these are no refs.
    """
    runtime = core._current
    if timeout is not None:
        _check_timeout(timeout)
    if type(refs) is ObjectRef:
        return runtime.get(refs, timeout) if runtime is not None else _value_after_the_end(refs)
    if isinstance(refs, list):
        for ref in refs:
            if type(ref) is not ObjectRef:
                raise TypeError(f"get takes ObjectRefs; the list contains {ref!r} of type {type(ref).__name__}")
        if runtime is None:
            return [_value_after_the_end(ref) for ref in refs]
        return runtime.get(refs, timeout) if refs else []
    if isinstance(refs, ObjectRefGenerator):
        return refs
    hint = "; a call with num_returns=0 returns None in the place of a ref" if refs is None else ""
    raise ValueError(f"get takes an ObjectRef or a list of them, not {type(refs).__name__}{hint}")


def _check_timeout(timeout: object) -> None:
    if type(timeout) is not float and not isinstance(timeout, Real):
        raise TypeError(
            f"timeout must be a number of seconds, or None; got {timeout!r} of type {type(timeout).__name__}"
        )
    if timeout < 0:
        raise ValueError(f"timeout is {timeout}: it cannot be negative")


def _value_after_the_end(ref: ObjectRef) -> Any:
    """What `get` gives when there is no session: values that this process had already."""
    value = ref._entry.value
    if type(value) is Failed:
        raise serialization.loads_error(value.error)
    if type(value) is not bytes:
        return session_of_refs().get(ref)  # raises, unless a session has begun meanwhile
    return serialization.loads(value)


def put(value: Any, *, copies: int = 1) -> ObjectRef:
    """Store a value and return its ref.

    Args:
        value: anything that can be serialized; numpy arrays and the like are read back without a copy.
        copies: on how many nodes it is kept, so that it outlives all of them but one; `put` returns when all are there. Where there are fewer
            nodes a RuntimeWarning says so, and nodes that join get the missing copies. Copies that are lost with their node are made
            again elsewhere. Refs inside the value are not copied: put what they refer to with copies, too.

    Raises:
        TypeError: `value` is an ObjectRef, or cannot be serialized.
        ValueError: `copies` is no number of nodes.
        ObjectStoreFullError: pinned objects alone fill the store; or not enough nodes have room for a copy.
        ObjectFetchTimedOutError: the copies were not made in two minutes.
    """
    if isinstance(value, ObjectRef):
        raise TypeError("put takes a value, not an ObjectRef: pass the ref itself on, or put a list that contains it")
    if copies != 1 and (type(copies) is not int or copies < 1):
        raise ValueError(f"copies={copies!r}: it says on how many nodes the value is kept, so it is 1 or more")
    return core.current().put(value, copies)


def wait(
    refs: Any, *, num_returns: int = 1, timeout: float | None = None, fetch_local: bool = True
) -> tuple[list[Any], list[Any]]:
    """Wait until `num_returns` of the refs are ready.

    Args:
        refs: a list of refs without duplicates; generators of refs may be among them (ready when an item is).
        num_returns: how many to wait for; the first list is never longer.
        timeout: seconds; 0 looks without waiting. None waits as long as it takes.
        fetch_local: whether values must be on this node too.

    Returns:
        The ready ones and the rest, each in the order of `refs`. A failed task counts as ready; what was lost with its node does not before it is
        made anew, or cannot be.

    Raises:
        TypeError, ValueError: `refs` is no list of refs, or has one twice; `num_returns` or `timeout` is out of range.
    """
    if isinstance(refs, (ObjectRef, ObjectRefGenerator)):
        raise TypeError("wait takes a list of refs: wait([ref])")
    if not isinstance(refs, list):
        raise TypeError(f"wait takes a list of refs, not {type(refs).__name__}")
    if timeout is not None:
        _check_timeout(timeout)
    if not refs:
        return [], []
    runtime = session_of_refs()
    if num_returns <= 0:
        raise ValueError(f"num_returns is {num_returns}: it must be at least 1")
    if num_returns > len(refs):
        raise ValueError(f"num_returns is {num_returns}, but there are {len(refs)} refs")
    if type(refs) is not Rest or refs.session is None:
        for ref in refs:
            if type(ref) is not ObjectRef and not isinstance(ref, ObjectRefGenerator):
                raise TypeError(f"wait takes ObjectRefs; the list contains {ref!r} of type {type(ref).__name__}")
        if len(set(map(id, refs))) != len(refs):
            raise ValueError("wait takes a list without duplicates")
    return runtime.wait(refs, num_returns, timeout, fetch_local)


def cancel(ref: Any, *, force: bool = False, recursive: bool = True) -> None:
    """Cancel the task that makes `ref`: a queued one never runs, a running one gets KeyboardInterrupt; no effect on a finished one.

    Args:
        ref: of the task or actor call, or its generator.
        force: kill the worker process instead (tasks only).
        recursive: cancel its children too.

    Raises:
        TypeError: `ref` is none.
        ValueError: `force` with an actor's call.
    """
    if not isinstance(ref, (ObjectRef, ObjectRefGenerator)):
        raise TypeError(f"cancel takes an ObjectRef, not {type(ref).__name__}")
    core.current().cancel(ref, force, recursive)


def kill(actor: Any, *, no_restart: bool = True) -> None:
    """Kill an actor at once; calls in flight fail with ActorDiedError.

    Args:
        actor: its handle.
        no_restart: False lets it restart, if its `max_restarts` allows one more.

    Raises:
        ValueError: `actor` is no handle.
    """
    if not isinstance(actor, ActorHandle):
        raise ValueError(f"kill takes an actor's handle, not {type(actor).__name__}; to stop a task, use shoal.cancel")
    core.current().actor_calls.kill(actor._actor_id_bytes, no_restart)


def cluster_resources() -> dict[str, float]:
    """What all living nodes have in total, by resource."""
    return _resources("total")


def available_resources() -> dict[str, float]:
    """What is free now on all living nodes, by resource; resources that are used up are left out. Other nodes say so when it changes, within
    some tens of milliseconds."""
    return {name: amount for name, amount in _resources("available").items() if amount > 0}


def _resources(kind: str) -> dict[str, float]:
    runtime = core.current()
    if runtime.config.get("cluster_address"):
        return to_floats(runtime.call("gcs.cluster_load")[kind])
    return dict(runtime.call("node.resources")[kind])  # nobody between us and the truth


def nodes() -> list[dict[str, Any]]:
    """One row for each node of the cluster, also those that died lately: NodeID, Alive, NodeName, NodeManagerAddress, Resources, Labels and more."""
    return [_node_row(row) for row in core.current().call("gcs.nodes")["nodes"]]


def _node_row(row: dict[str, Any]) -> dict[str, Any]:
    from shoal.wire.tcp import parse_address  # brings in more than `import shoal` may cost

    address = row.get("address", "")
    host, port = parse_address(address) if address.startswith("tcp:") else ("127.0.0.1", 0)
    alive = bool(row.get("alive", True))
    return {
        "NodeID": row["node_id"].hex() if isinstance(row["node_id"], bytes) else row["node_id"],
        "Alive": alive,
        "alive": alive,
        "State": row.get("state", "alive"),
        "NodeName": row.get("name") or host,
        "NodeManagerAddress": host,
        "NodeManagerPort": port,
        "NodeManagerHostname": row.get("hostname", ""),
        "NodeSocket": os.path.join(row["session_dir"], "node.sock") if row.get("session_dir") else "",
        "IsHead": bool(row.get("is_head", True)),
        "Resources": to_floats(row.get("resources", {})) if alive else {},
        "Labels": row.get("labels", {}),
        "DeathReasonMessage": "" if alive else row.get("cause", ""),
    }


def get_gpu_ids() -> list[int]:
    """Ids of the GPUs that this task or actor was given; empty in the driver."""
    task = core.running_task.get()
    return list(task.assigned.get("GPU", [])) if task is not None else []


def show_in_dashboard(message: str, key: str = "", dtype: str = "text") -> None:
    """Accepted for programs that call it; there is no dashboard to show it in."""
