"""Identities of tasks, objects, actors and processes.

Purpose: one deterministic naming scheme, so that a replayed task makes the same names again.

Design: inside the machines and the hot path an id is plain `bytes` (a class costs 0.3 us a task); the classes here are what users
see. A task is named by 12 bytes that hash (parent task, parent attempt), and 4 bytes of the parent's counter. Its results and its
`put`s have separate index spaces under that name:

    ObjectID (20) = TaskID (16) + index (4, big-endian);   results 0x00000001.., puts 0x80000001..
    ActorID  (16) = TaskID of the call that created it;     its handle counts as object index 0

What it does not do: decide who makes an id, or map ids to anything.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar

try:
    from _blake2 import blake2b  # the same, without loading OpenSSL as hashlib does (3 ms)
except ImportError:
    from hashlib import blake2b

TASK_PREFIX_BYTES = 12
TASK_ID_BYTES = 16
OBJECT_ID_BYTES = 20
PUT_INDEX_FLAG = 0x80000000
RESULT_1 = (1).to_bytes(4, "big")  #: suffix of the first result, the most used index
ACTOR_HANDLE_INDEX = bytes(4)  #: suffix of the object that stands for an actor's handles


def child_prefix(task_id: bytes, attempt: int) -> bytes:
    """The first 12 bytes of every TaskID that attempt `attempt` of task `task_id` gives to its children."""
    return blake2b(task_id + attempt.to_bytes(4, "big"), digest_size=TASK_PREFIX_BYTES).digest()


def task_id_of(prefix: bytes, counter: int) -> bytes:
    """The id of the `counter`-th child under `prefix`."""
    return prefix + counter.to_bytes(4, "big")


def result_id(task_id: bytes, index: int) -> bytes:
    """The ObjectID of result number `index` (from 1) of a task."""
    assert 0 < index < PUT_INDEX_FLAG, f"result index {index} out of range"
    return task_id + index.to_bytes(4, "big")


def put_id(task_id: bytes, index: int) -> bytes:
    """The ObjectID of the `index`-th put (from 1) made inside a task."""
    return task_id + (PUT_INDEX_FLAG | index).to_bytes(4, "big")


def actor_handle_id(actor_id: bytes) -> bytes:
    """The ObjectID whose references are the handles of actor `actor_id`."""
    return actor_id + ACTOR_HANDLE_INDEX


def job_id_of(node_no: int, number: int) -> bytes:
    """The id of the job of the `number`-th driver of a node. Every worker that runs something for the job knows by it whose end is the job's end."""
    return (node_no << 16 | number).to_bytes(4, "big")


def node_no_of_job(job_id: bytes) -> int:
    """The number of the node that the job's driver is on."""
    return int.from_bytes(job_id, "big") >> 16


def function_id_of(code: bytes) -> bytes:
    """A function or class is named by the hash of its pickled form."""
    return blake2b(code, digest_size=16).digest()


class BaseID:
    """An id as users see it: hashable, ordered by nothing, printed in hex."""

    SIZE_BYTES: ClassVar[int] = 16
    __slots__ = ("_binary",)
    _binary: bytes

    def __init__(self, binary: bytes) -> None:
        if not isinstance(binary, bytes) or len(binary) != self.SIZE_BYTES:
            raise ValueError(f"a {type(self).__name__} is {self.SIZE_BYTES} bytes, got {binary!r}")
        self._binary = binary

    @classmethod
    def from_hex(cls, text: str) -> Any:
        """The id written as `text` by `.hex()`."""
        return cls(bytes.fromhex(text))

    @classmethod
    def from_random(cls) -> Any:
        """A fresh id that collides with none."""
        return cls(os.urandom(cls.SIZE_BYTES))

    @classmethod
    def nil(cls) -> Any:
        """The id that names nothing: all bits set."""
        return cls(b"\xff" * cls.SIZE_BYTES)

    @classmethod
    def size(cls) -> int:
        """Length in bytes."""
        return cls.SIZE_BYTES

    def binary(self) -> bytes:
        """The raw bytes."""
        return self._binary

    def hex(self) -> str:
        """The bytes in hexadecimal."""
        return self._binary.hex()

    def is_nil(self) -> bool:
        """Whether this is the id that names nothing."""
        return self._binary == b"\xff" * self.SIZE_BYTES

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._binary == other._binary

    def __hash__(self) -> int:
        return hash(self._binary)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.hex()})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._binary,)


class UniqueID(BaseID):
    """An id of no particular kind."""

    __slots__ = ()


class JobID(BaseID):
    """One driver's program."""

    SIZE_BYTES = 4
    __slots__ = ()


class NodeID(BaseID):
    """One node daemon's life."""

    __slots__ = ()


class WorkerID(BaseID):
    """One process that embeds the runtime: a driver or a worker."""

    __slots__ = ()


class TaskID(BaseID):
    """One task, whatever the number of its attempts."""

    __slots__ = ()


class ActorID(BaseID):
    """One actor, whatever the number of its restarts."""

    __slots__ = ()


class FunctionID(BaseID):
    """One pickled function or class."""

    __slots__ = ()


class PlacementGroupID(BaseID):
    """One placement group."""

    __slots__ = ()
