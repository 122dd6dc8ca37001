"""Messages about what may have to be made again: a part of the tables of `messages` and `node_messages`, which list them.

What it does not do: carry how something is made (`messages.Escape`, `messages.Adopt`, `node_messages.MirrorLineage`).
"""

from __future__ import annotations

from shoal.protocol.values import Message


class NeedLineage(Message, tag=84):
    """From a process to its daemon, or from a node to the home of these objects: the sender lets them go, and may have them made again some day,
    as what it has was made from them. Or (`ended`) not any more."""

    oids: list[bytes]
    ended: bool = False


class Remake(Message, tag=66):
    """To the owner of a lost object: make it anew and publish it, or why not. `held`: it escapes by this, with a hold in the owner's name."""

    oid: bytes
    reason: str
    held: bool = False


class BeingRemade(Message, tag=67):
    """To a process that has asked for a value: it is lost and being made anew, which may take as long as a task does."""

    oid: bytes
