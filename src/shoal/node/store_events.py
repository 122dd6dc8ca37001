"""What happens to the store of a node, and what its table wants done: the words of `store_table` and `io.store_shell`.

Events are in the past tense, effects in the imperative. Bytes of objects are in neither.

What it does not do: decide (`store_table`) or perform (`io.store_shell`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.protocol.messages import BudgetReturned, FreeBlocks, OpenSegment, SegmentBudget, Stored, TrimBudget

# ---------------------------------------------------------------- events


@dataclass(slots=True)
class BudgetAsked:
    """A process wants a segment, or more budget for the one it has."""

    process: bytes
    message: OpenSegment


@dataclass(slots=True)
class BudgetGivenBack:
    """A process gave budget back, asked by TrimBudget."""

    process: bytes
    message: BudgetReturned


@dataclass(slots=True)
class SegmentCreated:
    """CreateSegment was performed; blocks lie between `start` and `end`. `process` is empty for the daemon's own segment.

    Segment 0: it could not be made, for `reason`."""

    process: bytes
    segment: int
    start: int
    end: int
    reason: str = ""


@dataclass(slots=True)
class ObjectsSealed:
    """A writer has sealed objects: (oid, segment, offset, size, generation, owner)."""

    process: bytes
    items: list[tuple[bytes, int, int, int, int, bytes]]


@dataclass(slots=True)
class ObjectsFreed:
    """Nobody refers to these objects any more: (oid, whether the writer has taken the block for something else already)."""

    items: list[tuple[bytes, bool]]
    of_dead: bool = False  #: these rows are meant, and none of the same objects that are sealed later


@dataclass(slots=True)
class ObjectUsed:
    """Somebody is about to read the object."""

    oid: bytes


@dataclass(slots=True)
class ResidencyAsked:
    """Somebody needs the object in memory; answered by ReportResident or ReportAbsent."""

    oid: bytes


@dataclass(slots=True)
class PinsScanned:
    """ScanPins was performed: who reads (segment, offset)."""

    pins: dict[tuple[int, int], list[str]]


@dataclass(slots=True)
class BlockChecked:
    """What a block's header and the pins say once its grace is over. `taken`: the writer has reused it; `undecided`: it is about to say."""

    generation: int
    readers: list[str]
    taken: bool = False
    undecided: bool = False


@dataclass(slots=True)
class GraceOver:
    """AwaitGrace was performed for these blocks."""

    blocks: list[BlockChecked]


@dataclass(slots=True)
class SpillWritten:
    """The object is on disk."""

    oid: bytes
    generation: int


@dataclass(slots=True)
class SpillFailed:
    """The object could not be written to disk."""

    generation: int
    reason: str


@dataclass(slots=True)
class ObjectRestored:
    """The object is in memory again, sealed under the new generation that RestoreObject named."""

    generation: int


@dataclass(slots=True)
class RestoreFailed:
    """The object could not be read back. `lost`: its file is missing or damaged."""

    generation: int
    lost: bool
    reason: str


@dataclass(slots=True)
class CopyAsked:
    """Room is wanted for a copy of an object of node `origin`; answered by ReceiveCopy or RefuseCopy."""

    oid: bytes
    size: int
    origin: bytes


@dataclass(slots=True)
class CopyArrived:
    """The copy is whole, and sealed."""

    generation: int
    version: int


@dataclass(slots=True)
class CopyGivenUp:
    """The copy will not become whole, and nobody writes to its place any more."""

    generation: int


@dataclass(slots=True)
class CopyKept:
    """The copy is an original from now on: it is spilled, not dropped, and ends when `owner` or this node's directory frees it."""

    oid: bytes
    owner: bytes


@dataclass(slots=True)
class CopiesFreed:
    """The originals of these copies, on node `origin`, are gone; None: of all its copies, for it is dead."""

    oids: list[bytes] | None
    origin: bytes


@dataclass(slots=True)
class WriterDied:
    """A process is dead, its socket read to the end. `taken` are generations in its segment whose block it had reused or was freeing."""

    process: bytes
    taken: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Woken:
    """The time that Wake named has come."""


Event = (
    BudgetAsked
    | BudgetGivenBack
    | SegmentCreated
    | ObjectsSealed
    | ObjectsFreed
    | ObjectUsed
    | ResidencyAsked
    | PinsScanned
    | GraceOver
    | SpillWritten
    | SpillFailed
    | ObjectRestored
    | RestoreFailed
    | CopyAsked
    | CopyArrived
    | CopyGivenUp
    | CopyKept
    | CopiesFreed
    | WriterDied
    | Woken
)

# ---------------------------------------------------------------- effects


@dataclass(slots=True)
class SendToWriter:
    """Send a message to a process."""

    process: bytes
    message: SegmentBudget | TrimBudget | FreeBlocks


@dataclass(slots=True)
class CreateSegment:
    """Make a segment; answered by SegmentCreated. `process` is empty for the daemon's own."""

    process: bytes
    capacity_bytes: int


@dataclass(slots=True)
class CloseSegment:
    """The segment is empty and has no writer."""

    segment: int


@dataclass(slots=True)
class PunchRange:
    """Give whole pages back to the system."""

    segment: int
    offset: int
    length_bytes: int


@dataclass(slots=True)
class ListEvicting:
    """Put a block on its segment's list of those being evicted."""

    segment: int
    offset: int


@dataclass(slots=True)
class UnlistEvicting:
    """Take a block off the list: it stays, or its writer has it."""

    segment: int
    offset: int


@dataclass(slots=True)
class MarkEvicted:
    """The block is the daemon's: write so into its header, then take it off the list if it is there."""

    segment: int
    offset: int


@dataclass(slots=True)
class AwaitGrace:
    """After `delay_s`, see who reads the block and whether its writer has taken it; answered by GraceOver."""

    generation: int
    oid: bytes
    segment: int
    offset: int
    size: int
    delay_s: float


@dataclass(slots=True)
class ScanPins:
    """After `delay_s`, see who reads what; answered by PinsScanned."""

    delay_s: float


@dataclass(slots=True)
class WriteSpill:
    """Write an object to disk; answered by SpillWritten or SpillFailed. The file is named by oid and generation."""

    oid: bytes
    generation: int
    segment: int
    offset: int
    size: int


@dataclass(slots=True)
class DeleteSpill:
    """Remove an object's file."""

    oid: bytes
    generation: int


@dataclass(slots=True)
class RestoreObject:
    """Read the file of (oid, file_generation) into a block of the daemon's segment and seal it; answered by ObjectRestored or RestoreFailed."""

    oid: bytes
    file_generation: int
    generation: int
    segment: int
    offset: int
    size: int
    fresh_start: int
    fresh_bytes: int


@dataclass(slots=True)
class ReceiveCopy:
    """There is room for the copy at this place; answered by CopyArrived or CopyGivenUp."""

    oid: bytes
    generation: int
    segment: int
    offset: int
    size: int
    fresh_start: int
    fresh_bytes: int


@dataclass(slots=True)
class RefuseCopy:
    """There is no room for the copy, for `reason`; with an empty one the object is here already."""

    oid: bytes
    reason: str


@dataclass(slots=True)
class ReportDropped:
    """To node `origin`: the copy of its object has made room for others."""

    oid: bytes
    origin: bytes


@dataclass(slots=True)
class ReportMoved:
    """The object's place has changed; None while it is on disk only."""

    oid: bytes
    stored: Stored | None


@dataclass(slots=True)
class ReportResident:
    """To all who asked: the object is here."""

    oid: bytes
    stored: Stored


@dataclass(slots=True)
class ReportAbsent:
    """To all who asked: the object cannot be had. `lost`: its bytes are gone for good; otherwise there is no room for it now."""

    oid: bytes
    lost: bool
    reason: str
    owner: bytes = b""  #: of what is lost


@dataclass(slots=True)
class Wake:
    """Send Woken after `delay_s`."""

    delay_s: float


Effect = (
    SendToWriter
    | CreateSegment
    | CloseSegment
    | PunchRange
    | ListEvicting
    | UnlistEvicting
    | MarkEvicted
    | AwaitGrace
    | ScanPins
    | WriteSpill
    | DeleteSpill
    | RestoreObject
    | ReceiveCopy
    | RefuseCopy
    | ReportDropped
    | ReportMoved
    | ReportResident
    | ReportAbsent
    | Wake
)
