"""How a user's value is written inside a message.

Purpose: the base of all messages, and the four forms of a value.

    bytes        an inline value, as `serialization` wrote it
    Stored       a place in the shared-memory store
    Failed       a pickled exception in the place of the value
    Containing   an inline value that holds ObjectRefs (listed, so that no one need unpickle it to know)

What it does not do: know what a value means (`serialization`).
"""

from __future__ import annotations

import msgspec


class Message(msgspec.Struct, array_like=True, gc=False):
    """Base of all messages."""


class Stored(Message, tag=1):
    """A value in the store of `node` (empty: of the receiver's own): `size` payload bytes behind the block at `offset` of `segment`, valid
    while the header says `generation`. On another node it is got by `Pull`, wherever it lies there by then."""

    oid: bytes
    segment: int
    offset: int
    size: int
    generation: int
    nested: list[bytes] = []
    node: bytes = b""


class Failed(Message, tag=2):
    """An error in the place of a value: `error` is a serialized exception; `retriable` errors are the user's own. Of a task that did not run because
    an argument was not where it was said to be, `lost` is that place: its submitter has it made anew, and the task run then."""

    error: bytes
    retriable: bool = False
    lost: Stored | None = None


class Containing(Message, tag=3):
    """An inline value that holds the refs `nested`."""

    blob: bytes
    nested: list[bytes]


Value = bytes | Stored | Failed | Containing


def refs_inside(value: Value) -> list[bytes]:
    """The refs in a value, as far as it says."""
    return value.nested if type(value) is Containing or type(value) is Stored else []


class Many(Message, tag=4):
    """The results of a task with several returns, in order."""

    values: list[Value]
