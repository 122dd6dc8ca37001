"""The rows of the object directory.

What it does not do: change a row (`object_directory` does, with its part `succession`).
"""

from __future__ import annotations

from shoal.protocol.messages import Value


class Abroad:
    """What an object's row has more when its home is another node."""

    __slots__ = ("asked", "home", "instead", "number", "stale", "taken")

    def __init__(self, home: bytes) -> None:
        self.home = home
        #: a living node that refs name as its home, while the heir of a dead one is asked for
        self.instead = b""
        #: holds that this node has there
        self.taken = 0
        #: the NodeHold that asked for the first of them
        self.number = 0
        #: its value was asked for, and has not come
        self.asked = False
        #: the generation of a place in this node's store that did not have it, says who asked last
        self.stale = 0


class ObjectRow:
    """One object. Written by ObjectDirectory alone."""

    __slots__ = ("abroad", "known", "nested", "owner", "resident", "rows", "stamp", "value", "waiters")

    def __init__(self) -> None:
        #: how many processes have a non-zero count of it, plus how often it stands in the `nested` of other objects
        self.rows = 0
        #: tokens issued when `rows` or a count last changed by a process
        self.stamp = 0
        #: Escape or Publish was seen
        self.known = False
        #: False while a Stored value is in no memory
        self.resident = True
        #: the owning process; empty when it is dead or not known
        self.owner = b""
        self.value: Value | None = None
        #: refs inside the value, each held by this object
        self.nested: list[bytes] = []
        #: processes to be told the value, without repeats
        self.waiters: list[bytes] | None = None
        #: None for this node's own, and while the home is not known
        self.abroad: Abroad | None = None
