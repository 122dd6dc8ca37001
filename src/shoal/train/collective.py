"""Collectives on groups of actors: every member calls the same function, and each gets its part of what all together have.

    create_group(actors)                       # the driver, once
    def step(self): allreduce(self.gradient)   # in a method of each actor; numpy arrays and torch tensors, in place

Design: torch.distributed does the work (gloo; nccl for CUDA tensors): its process groups are made directly, so that a process may be in several, by
name; an allreduce among members of one node goes through memory that they share (`one_node`). Who is where is told through a key-value store
of torch's in the process of rank 0. Every call is bounded by the group's `timeout_s`: when a member dies, the others get `CollectiveError`, not
a hang. Before they begin, members compare what they were called with (not with nccl): arrays that do not fit are an error of all at once.

What it does not do: replace dead members: make a new group. Gloo's connections between the members are not authenticated: they bind to the
address that Shoal's nodes have, and belong into a network that you trust.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import numpy as np

import shoal
from shoal.train.one_node import TEXT_BYTES, Shared, fits, open_shared

TIMEOUT_S = 60.0
OPERATIONS = ("sum", "product", "min", "max", "mean")


class CollectiveError(RuntimeError):
    """A collective call failed or took too long, most likely because a member of the group is gone."""


class Group:
    """This process's membership. Made by `join`."""

    def __init__(self, name: str, rank: int, size: int, store: Any, process_group: Any, compares: bool = False) -> None:
        self.name, self.rank, self.size = name, rank, size
        self.store = store  #: kept: the process group needs it as long as it lives
        self.process_group = process_group
        self.compares = compares  #: members tell each other what they were called with
        self.shared: Shared | None = None  #: if all members are on one node


_groups: dict[str, Group] = {}
_stores: dict[str, Any] = {}


def _torch() -> Any:
    try:
        import torch
        import torch.distributed
    except ImportError as error:
        raise ImportError("collectives need torch: pip install 'shoal[train]'") from error
    return torch


# ---------------------------------------------------------------- making groups


def may_join(name: str) -> None:
    """ValueError if this process is in a group of that name."""
    if name in _groups:
        raise ValueError(
            f"this process is in a group {name!r} already: leave it first (`destroy_group`), or choose another name"
        )


def open_store(name: str, timeout_s: float) -> tuple[str, int]:
    """In the process that will be rank 0: begin the group's key-value store. Its (host, port)."""
    may_join(name)
    distributed = _torch().distributed
    host = shoal.util.get_node_ip_address()
    store = distributed.TCPStore(host, 0, None, True, timedelta(seconds=timeout_s), wait_for_workers=False)
    _stores[name] = store
    return host, store.port


def join(name: str, host: str, port: int, rank: int, size: int, backend: str, timeout_s: float) -> None:
    """Become member number `rank` of a group whose store listens at `host`:`port`.

    Raises:
        ValueError: this process is in a group of that name.
        CollectiveError: the others did not come in time.
    """
    store = _stores.pop(name, None)  # none may stay behind for a later group of that name
    may_join(name)
    distributed = _torch().distributed
    patience = timedelta(seconds=timeout_s)
    try:
        if store is None or rank != 0:
            store = distributed.TCPStore(host, port, None, False, patience)
        keys = distributed.PrefixStore(name, store)
        if backend == "nccl":
            options = distributed.ProcessGroupNCCL.Options()
            options._timeout = patience
            group = distributed.ProcessGroupNCCL(keys, rank, size, options)
        else:
            options = distributed.ProcessGroupGloo._Options()
            options._timeout = patience
            options._devices = [distributed.ProcessGroupGloo.create_device(hostname=shoal.util.get_node_ip_address())]
            group = distributed.ProcessGroupGloo(keys, rank, size, options)
        member = Group(name, rank, size, store, group, compares=backend != "nccl" and size > 1)
        if member.compares:
            member.shared = open_shared(keys, rank, size, timeout_s)
    except RuntimeError as error:
        raise CollectiveError(f"group {name!r}: member {rank} of {size} could not join: {error}") from error
    _groups[name] = member


def leave(name: str = "default") -> None:
    """Leave a group; nothing happens if this process is in none of that name."""
    group = _groups.pop(name, None)
    if group is not None:
        group.process_group.shutdown()
        if group.shared is not None:
            group.shared.close()


def create_group(
    actors: Sequence[Any], name: str = "default", *, backend: str = "gloo", timeout_s: float = TIMEOUT_S
) -> None:
    """Make a group of these actors; their rank is their place in the list. Returns when all have joined.

    Args:
        actors: handles; each must be able to run a call now.
        name: a process may be in several groups of different names.
        backend: "gloo" (CPU) or "nccl" (CUDA).
        timeout_s: for joining and for each collective.

    Raises:
        ValueError: no actors, an actor twice, an unknown backend, or an actor that is in a group of that name; nobody has joined then.
        CollectiveError: not all could join.
    """
    if not actors or len(set(actors)) < len(actors):
        raise ValueError("a group needs at least one actor, and each only once")
    if backend not in ("gloo", "nccl"):
        raise ValueError(f"backend must be 'gloo' or 'nccl', not {backend!r}")
    # Before anybody joins: those that may would wait for those that may not.
    shoal.get([actor.__shoal_call__.remote(_on_actor, may_join, name) for actor in actors], timeout=timeout_s)
    host, port = shoal.get(actors[0].__shoal_call__.remote(_on_actor, open_store, name, timeout_s), timeout=timeout_s)
    joining = [
        actor.__shoal_call__.remote(_on_actor, join, name, host, port, rank, len(actors), backend, timeout_s)
        for rank, actor in enumerate(actors)
    ]
    shoal.get(joining, timeout=2 * timeout_s)


def destroy_group(actors: Sequence[Any], name: str = "default") -> None:
    """End a group; members that are dead are left out."""
    for ref in [actor.__shoal_call__.remote(_on_actor, leave, name) for actor in actors]:
        try:
            shoal.get(ref, timeout=TIMEOUT_S)
        except shoal.exceptions.ActorError:
            pass


def _on_actor(_instance: Any, function: Any, *args: Any) -> Any:
    return function(*args)


# ---------------------------------------------------------------- in the members


def group(name: str = "default") -> Group:
    """This process's membership of a group.

    Raises:
        ValueError: it is in none of that name.
    """
    found = _groups.get(name)
    if found is None:
        raise ValueError(
            f"this process is in no group {name!r}: create_group(actors, {name!r}) in the driver comes first"
        )
    return found


def rank(name: str = "default") -> int:
    """This process's number in the group, from 0."""
    return group(name).rank


def size(name: str = "default") -> int:
    """How many members the group has."""
    return group(name).size


def allreduce(value: Any, name: str = "default", *, op: str = "sum") -> Any:
    """Replace `value` by the sum (or `op`: product, min, max, mean) over all members, in place; returned as well.

    Args:
        value: a numpy array or torch tensor of the same shape and type everywhere. A read-only array (from `shoal.get`) is not changed: the result
            is a new one.

    Raises:
        CollectiveError: a member is gone, or did not call in time.
        ValueError: members called different collectives, or with arrays of other shapes or types; at once, and in all of them.
        TypeError: a mean of integers.
    """
    if op not in OPERATIONS:
        raise ValueError(f"op must be one of {', '.join(OPERATIONS)}, not {op!r}")
    torch, member = _torch(), group(name)
    tensor, result = _tensor(value, writable=True)
    if op == "mean" and not (tensor.is_floating_point() or tensor.is_complex()):
        raise TypeError(f"a mean of {tensor.dtype} cannot be put in place: pass an array of floats, or take op='sum'")
    _agree(member, f"allreduce ({op})", tensor)
    array = _array(tensor) if member.shared is not None else None
    if member.shared is not None and array is not None and fits(array):
        with _failing(member, "allreduce"):
            member.shared.allreduce(array, op)
    else:
        options = torch.distributed.AllreduceOptions()
        reduce = torch.distributed.ReduceOp
        options.reduceOp = {"product": reduce.PRODUCT, "min": reduce.MIN, "max": reduce.MAX}.get(op, reduce.SUM)
        _wait(member, "allreduce", lambda: member.process_group.allreduce([tensor], options))
    if op == "mean":
        tensor /= member.size
    return result


def broadcast(value: Any, source: int = 0, name: str = "default") -> Any:
    """Replace `value` everywhere by that of member `source`, in place; returned as well. See `allreduce`."""
    torch, member = _torch(), group(name)
    if not 0 <= source < member.size:
        raise ValueError(f"source must be a member, from 0 to {member.size - 1}, not {source}")
    tensor, result = _tensor(value, writable=True)
    _agree(member, f"broadcast from {source}", tensor)
    options = torch.distributed.BroadcastOptions()
    options.rootRank, options.rootTensor = source, 0
    _wait(member, "broadcast", lambda: member.process_group.broadcast([tensor], options))
    return result


def allgather(value: Any, name: str = "default") -> list[Any]:
    """The values of all members, by rank. See `allreduce`."""
    torch, member = _torch(), group(name)
    tensor, _ = _tensor(value, writable=False)
    _agree(member, "allgather", tensor)
    found = [torch.empty_like(tensor) for _ in range(member.size)]
    _wait(member, "allgather", lambda: member.process_group.allgather([found], [tensor]))
    return [one.numpy() for one in found] if isinstance(value, np.ndarray) else found


def reducescatter(values: Sequence[Any], name: str = "default") -> Any:
    """Of `values`, one for each member, the sum over all members of the one with this member's rank."""
    torch, member = _torch(), group(name)
    if len(values) != member.size:
        raise ValueError(f"reducescatter takes one value for each of the {member.size} members, not {len(values)}")
    tensors = [_tensor(value, writable=False)[0] for value in values]
    _agree(member, "reducescatter", *tensors)
    found = torch.empty_like(tensors[member.rank])
    _wait(member, "reducescatter", lambda: member.process_group.reduce_scatter([found], [tensors]))
    return found.numpy() if isinstance(values[0], np.ndarray) else found


def barrier(name: str = "default") -> None:
    """Return when all members have called it."""
    member = group(name)
    if member.compares:  # who has heard of all knows that they are there
        _agree(member, "barrier")
    else:
        _wait(member, "barrier", lambda: member.process_group.barrier())


def _tensor(value: Any, writable: bool) -> tuple[Any, Any]:
    """(a contiguous tensor, what the caller gets back: the same memory)."""
    torch = _torch()
    if isinstance(value, np.ndarray):
        usable = value.flags.c_contiguous and value.flags.writeable
        result = value if usable else np.array(value, order="C")
        if writable and value.flags.writeable and not usable:
            raise ValueError(
                "the array is not contiguous, so it cannot be changed in place: pass np.ascontiguousarray(array)"
            )
        return torch.from_numpy(result), result
    if isinstance(value, torch.Tensor):
        tensor = value.detach()
        if not tensor.is_contiguous():
            if writable:
                raise ValueError(
                    "the tensor is not contiguous, so it cannot be changed in place: pass tensor.contiguous()"
                )
            tensor = tensor.contiguous()
        return tensor, value
    raise TypeError(f"collectives take numpy arrays and torch tensors, not {type(value).__name__}")


def _array(tensor: Any) -> Any:
    """A tensor's memory as an array; None where numpy has no such type (bfloat16)."""
    try:
        return tensor.numpy()
    except (TypeError, RuntimeError):
        return None


def _agree(member: Group, what: str, *tensors: Any) -> None:
    """Hear what all members are about to do.

    Raises:
        ValueError: not all the same.
    """
    if not member.compares:
        return
    text = " ".join([what, *(f"of {str(each.dtype).removeprefix('torch.')} {tuple(each.shape)}" for each in tensors)])
    own = text.encode()
    if len(own) > TEXT_BYTES:
        own = own[: TEXT_BYTES - 20] + f"... {zlib.crc32(own):x}".encode()
    own = own.ljust(TEXT_BYTES)
    if member.shared is not None:
        with _failing(member, what):
            said = member.shared.agree(own)
    else:
        torch = _torch()
        found = [torch.empty(TEXT_BYTES, dtype=torch.uint8) for _ in range(member.size)]
        mine = torch.frombuffer(bytearray(own), dtype=torch.uint8)
        _wait(member, what, lambda: member.process_group.allgather([found], [mine]))
        said = [one.numpy().tobytes() for one in found]
    if any(one != own for one in said):
        calls = "; ".join(f"member {other}: {one.decode().strip()}" for other, one in enumerate(said))
        raise ValueError(f"the members of group {member.name!r} do not do the same: {calls}")


def _wait(member: Group, what: str, begin: Any) -> None:
    with _failing(member, what):
        begin().wait()


@contextlib.contextmanager
def _failing(member: Group, what: str) -> Iterator[None]:
    """What torch or the shared memory raises, with what it means."""
    try:
        yield
    except RuntimeError as error:  # MemberGone is one
        reason = str(error).partition(". This is typically")[0]
        if "scalar type" in reason:
            raise TypeError(f"{what}: {reason.partition(chr(10))[0]}: gloo does not send this type") from error
        raise CollectiveError(
            f"{what} in group {member.name!r} (member {member.rank} of {member.size}) failed: {reason}. "
            "A member is gone or did not call in time; make a new group of those that live"
        ) from error
