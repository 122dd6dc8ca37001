"""The rows of the store's table: objects, segments, and those who wait for room.

What it does not do: change a row (`store_table` is the only one that does).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from shoal.protocol.limits import BLOCK_HEADER_BYTES, EVICTION_GRACE_S, SEGMENT_GROW_BYTES
from shoal.protocol.messages import Stored
from shoal.store.allocator import block_bytes, page_ceil, page_floor, punchable

RESIDENT, WRITING, MARKED, SPILLED, RESTORING, DYING = "resident", "writing", "marked", "spilled", "restoring", "dying"
GRANT_STEP_BYTES_MIN = 1 << 20
COMING, RECEIVING = "coming", "receiving"  #: of copies: room is awaited; there is room, and bytes arrive


@dataclass(slots=True)
class ObjectRow:
    """One stored object."""

    oid: bytes
    segment: int  #: 0 while spilled, or coming
    offset: int
    size: int  #: payload bytes
    generation: int
    owner: bytes
    state: str = RESIDENT
    file_generation: int = 0  #: names the object's file; 0: there is none
    used_at: float = -1e9  #: when somebody asked for it last
    asked: bool = False  #: somebody waits for ReportResident
    freed: bool = False  #: free it as soon as the disk work on it ends
    delay_s: float = EVICTION_GRACE_S
    writer: bytes = b""  #: who has sealed it; empty for copies
    copy_of: bytes = b""  #: the node that has the original; empty for an original
    version: int = (
        0  #: names the bytes, on all nodes: the generation under which the original was sealed first; 0 while not known
    )

    @property
    def bytes(self) -> int:
        """What its block takes."""
        return block_bytes(self.size + BLOCK_HEADER_BYTES)

    @property
    def gain(self) -> int:
        """Budget that spilling it returns."""
        return punchable(self.offset, self.bytes)[1]

    @property
    def outward(self) -> int:
        """Bytes of all the pages it touches."""
        return page_ceil(self.offset + self.bytes) - page_floor(self.offset)

    @property
    def stored(self) -> Stored:
        """Its place, for messages."""
        return Stored(self.oid, self.segment, self.offset, self.size, self.generation)


@dataclass(slots=True)
class SegmentRow:
    """One segment. `writer` None: the daemon's, either adopted from a dead writer or its own for restored objects."""

    number: int
    writer: bytes | None
    start: int
    end: int
    budget: int = 0
    live: dict[int, int] = field(default_factory=dict)  #: offset -> generation
    live_bytes: int = 0
    evicting: int = 0  #: rows in WRITING or MARKED


@dataclass(slots=True)
class SpaceRequest:
    """Somebody waits for `need` bytes: a writer (`process`), or an object to be restored or received (`generation`)."""

    need: int
    process: bytes = b""
    request: int = 0
    generation: int = 0
    scans: int = 0  #: times the pins were looked at for it


@dataclass(slots=True)
class StoreTableStatistics:
    """The store of a node, in bytes and counts."""

    capacity_bytes: int
    budget_bytes: int
    resident_bytes: int
    objects: int
    spilled_objects: int
    spilled_bytes: int
    spills: int
    restores: int
    segments: int
    waiting: int
    copies: int
    copied_bytes: int


def store_statistics(rows: Collection[ObjectRow], **counts: int) -> StoreTableStatistics:
    """What the rows tell, and what is counted elsewhere."""
    spilled = [row for row in rows if row.state in (SPILLED, RESTORING)]
    copies = [row for row in rows if row.copy_of]
    return StoreTableStatistics(
        objects=len(rows),
        spilled_objects=len(spilled),
        spilled_bytes=sum(row.size for row in spilled),
        copies=len(copies),
        copied_bytes=sum(row.size for row in copies),
        **counts,
    )


def step_bytes(capacity_bytes: int) -> int:
    """How much budget a writer gets at a time, at least, if there is so much."""
    return page_floor(min(max(capacity_bytes // 16, GRANT_STEP_BYTES_MIN), SEGMENT_GROW_BYTES))


def megabytes(size: int) -> str:
    """A size for users."""
    return f"{size / 1e6:.1f} MB"


def too_large(capacity_bytes: int) -> str:
    """Why there will never be room, for users."""
    return f"the whole store has {megabytes(capacity_bytes)}; give it more with object_store_memory"


def pinned_by_reader(
    pins: dict[tuple[int, int], list[str]], segments: dict[int, SegmentRow], rows: dict[int, ObjectRow]
) -> dict[str, int]:
    """Bytes being read, counted once, under the first of their readers."""
    held: dict[str, int] = {}
    for (number, offset), readers in pins.items():
        segment = segments.get(number)
        generation = None if segment is None else segment.live.get(offset)
        if generation is not None:
            held[readers[0]] = held.get(readers[0], 0) + rows[generation].bytes
    return held


def why_full(capacity_bytes: int, held_by_reader: dict[str, int], available_bytes: int) -> str:
    """Why there is no room although something could be moved to disk, for users."""
    pinned = sum(held_by_reader.values())
    text = f"of {megabytes(capacity_bytes)}, {megabytes(pinned)} are being read"
    held = sorted(held_by_reader.items(), key=lambda pair: -pair[1])
    if held:
        text += " (" + ", ".join(f"{megabytes(size)} by {reader}" for reader, size in held[:5]) + ")"
    others = max(capacity_bytes - pinned - max(available_bytes, 0), 0)
    text += f" and {megabytes(others)} are held by processes that write; "
    return text + "delete arrays and values that shoal.get returned, or give the store more with object_store_memory"
