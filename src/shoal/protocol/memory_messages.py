"""Messages between a process and its node daemon about the store's memory: budget for writers, room for tasks' arguments; tags 47, 48, 58 to 62, 85.

How to extend: as `messages`, whose unions list these.

What it does not do: name objects or bring them (`Sealed`, `Resolve`, `Pull`).
"""

from __future__ import annotations

from shoal.protocol.values import Failed, Message, Stored

ROOM_LEFT, ROOM_WAITS, ROOM_RUNS = 0, 1, 2


class FreeBlocks(Message, tag=58):
    """To a writer: blocks that hold nothing now; an item is (offset, generation, punched): punched ranges have lost their pages and their budget."""

    segment: int
    blocks: list[tuple[int, int, bool]]


class OpenSegment(Message, tag=59):
    """From a process: it wants a segment to write to, or `need` more bytes of budget for the one it has."""

    request: int
    need: int


class SegmentBudget(Message, tag=60):
    """The answer: the segment, and bytes granted for it in addition. `granted` 0 means that the pool is full: `reason` says of what."""

    request: int
    segment: int
    capacity: int
    granted: int
    reason: str = ""


class TrimBudget(Message, tag=61):
    """To a writer: give back up to `want` bytes of free ranges (punch them) and say how much with BudgetReturned."""

    want: int


class BudgetReturned(Message, tag=62):
    """From a writer: bytes of its budget that it gave back."""

    segment: int
    returned: int


class NoRoomFor(Message, tag=85):
    """To a process that has asked for a value: it is on disk, and memory has no room for it now. `place` is where it lay last; ask by it again."""

    oid: bytes
    place: Stored | None
    error: Failed


class AskRoom(Message, tag=47):
    """From a worker: its task has to wait for some of its stored arguments, which are all of these (ObjectID, bytes). Answered by Answer when
    it may read them; until then it keeps none of them in memory."""

    request: int
    parts: list[tuple[bytes, int]]


class UseRoom(Message, tag=48):
    """From a worker whose task has asked for room: it has ended or given up (`state` 0), it waits for others (1), or goes on (2)."""

    request: int
    state: int
