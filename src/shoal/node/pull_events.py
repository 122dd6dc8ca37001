"""What happens to objects that travel between nodes, and what is to be done: the words of `pulls`, `servings` and `io.transfer`.

Events are in the past tense, effects in the imperative. Bytes of objects are in neither. A chunk that was asked for has a number, and under it
exactly one of ChunkArrived, ChunkFailed, ChunkRefused and ChunkReferred follows, after which nobody writes to its place.

What it does not do: decide (`pulls`, `servings`) or perform (`io.transfer`).
"""

from __future__ import annotations

from dataclasses import dataclass

#: how urgent a pull is: somebody is blocked, a task waits for its arguments, somebody may want it later
GET, ARGUMENT, BACKGROUND = 0, 1, 2

# ---------------------------------------------------------------- events of the receiving side


@dataclass(slots=True)
class PullAsked:
    """A process wants an object that lies on `origin`. `request` 0: it needs no answer."""

    process: bytes
    request: int
    oid: bytes
    size: int
    origin: bytes
    priority: int


@dataclass(slots=True)
class RoomMade:
    """AskRoom: there is a place for the object."""

    oid: bytes


@dataclass(slots=True)
class RoomRefused:
    """AskRoom: there is none. With an empty reason the object is in this node's store already."""

    oid: bytes
    kind: str
    reason: str


@dataclass(slots=True)
class ChunkArrived:
    """The chunk is in its place; `version` names the bytes."""

    number: int
    version: int


@dataclass(slots=True)
class ChunkFailed:
    """The chunk did not come: its connection could not be made or broke, or it was cancelled."""

    number: int
    reason: str


@dataclass(slots=True)
class ChunkRefused:
    """The source will not send the chunk. `kind` is one of the REFUSED_ constants."""

    number: int
    kind: str
    reason: str


#: the source is the origin, and its object is gone for good
REFUSED_LOST = "lost"
#: the object was made anew: other bytes than those that were asked for
REFUSED_CHANGED = "changed"
#: the source has no (whole) copy
REFUSED_ABSENT = "absent"
#: the source has too much to do, or cannot bring the object into memory now
REFUSED_BUSY = "busy"


@dataclass(slots=True)
class ChunkReferred:
    """The origin is busy with others who pull the object: get it from these nodes, the first before the others."""

    number: int
    version: int
    sources: list[bytes]


@dataclass(slots=True)
class OriginalsFreed:
    """Objects of `origin` are freed there."""

    oids: list[bytes]
    origin: bytes


@dataclass(slots=True)
class ProcessGone:
    """A process of this node is dead."""

    process: bytes


@dataclass(slots=True)
class NodeGone:
    """Another node is dead."""

    node: bytes
    cause: str


@dataclass(slots=True)
class Ticked:
    """The time that Wake named has come."""


PullEvent = (
    PullAsked
    | RoomMade
    | RoomRefused
    | ChunkArrived
    | ChunkFailed
    | ChunkRefused
    | ChunkReferred
    | OriginalsFreed
    | ProcessGone
    | NodeGone
    | Ticked
)

# ---------------------------------------------------------------- effects of the receiving side


@dataclass(slots=True)
class AskRoom:
    """Find a place for a copy; answered by RoomMade or RoomRefused."""

    oid: bytes
    size: int
    origin: bytes


@dataclass(slots=True)
class AskChunk:
    """Ask `node` for a part of an object. `fresh`: this node has had nothing of it yet, and may be referred to others."""

    number: int
    node: bytes
    oid: bytes
    version: int  #: 0: whatever the origin has
    offset: int
    length: int
    fresh: bool


@dataclass(slots=True)
class CancelChunk:
    """The chunk is not wanted any more; answered as ever, by ChunkFailed unless it has arrived."""

    number: int


@dataclass(slots=True)
class NotePart:
    """A part of the copy is here: others may have it."""

    oid: bytes
    offset: int
    length: int


@dataclass(slots=True)
class DropParts:
    """The parts that are here are of bytes that are no longer: nobody may have them."""

    oid: bytes


@dataclass(slots=True)
class SealCopy:
    """All parts are here."""

    oid: bytes
    version: int


@dataclass(slots=True)
class GiveUpCopy:
    """The copy will not become whole."""

    oid: bytes


@dataclass(slots=True)
class AnswerPull:
    """Tell a process that the object is here."""

    process: bytes
    request: int
    oid: bytes


@dataclass(slots=True)
class FailPull:
    """Tell a process why the object cannot be had. `kind` is one of the FAILED_ constants."""

    process: bytes
    request: int
    oid: bytes
    kind: str
    reason: str


FAILED_LOST = "ObjectLost"
FAILED_FULL = "ObjectStoreFull"
FAILED_DISK = "OutOfDisk"
FAILED_SLOW = "ObjectFetchTimedOut"
#: not an error: who only looks is told that there is no copy here
NOT_HERE = "NotHere"


@dataclass(slots=True)
class ReportLost:
    """No copy of an object of `origin` can be had: whoever can make it anew may do so."""

    oid: bytes
    origin: bytes
    reason: str


@dataclass(slots=True)
class TellPullEnded:
    """Tell the origin that this node pulls its object no more; `whole`: it has a copy now."""

    node: bytes
    oid: bytes
    whole: bool


@dataclass(slots=True)
class Wake:
    """Send Ticked after `delay_s`."""

    delay_s: float


PullEffect = (
    AskRoom
    | AskChunk
    | CancelChunk
    | NotePart
    | DropParts
    | SealCopy
    | GiveUpCopy
    | AnswerPull
    | FailPull
    | ReportLost
    | TellPullEnded
    | Wake
)

# ---------------------------------------------------------------- the sending side

#: what this node has of an object: all of it (in memory or on disk), the part that is asked for, that part some time, nothing
WHOLE, PART, COMING, NOTHING = "whole", "part", "coming", "nothing"


@dataclass(slots=True)
class ChunkWanted:
    """`node` asks for a part of an object, to be sent on its connection `connection`. `state`, `version_here` and `original` say what this
    node has."""

    node: bytes
    number: int
    connection: int
    oid: bytes
    version: int
    offset: int
    length: int
    fresh: bool
    state: str
    version_here: int
    original: bool


@dataclass(slots=True)
class ServeEnded:
    """Serve was performed, or has failed."""

    node: bytes
    number: int


@dataclass(slots=True)
class PartCame:
    """A part of a copy that this node pulls is here."""

    oid: bytes
    offset: int
    length: int


@dataclass(slots=True)
class CopyEnded:
    """A pull of this node ended; `whole`: with a copy."""

    oid: bytes
    whole: bool


@dataclass(slots=True)
class PullEndedThere:
    """`node` pulls an object of this node no more; `whole`: it has a copy."""

    node: bytes
    oid: bytes
    whole: bool


@dataclass(slots=True)
class CopiesDroppedThere:
    """`node` has let copies of objects of this node go."""

    node: bytes
    oids: list[bytes]


@dataclass(slots=True)
class ChunksForgotten:
    """`node` does not want these chunks any more."""

    node: bytes
    numbers: list[int]


@dataclass(slots=True)
class ObjectsFreed:
    """Nobody refers to these objects of this node any more."""

    oids: list[bytes]


ServeEvent = (
    ChunkWanted
    | ServeEnded
    | PartCame
    | CopyEnded
    | PullEndedThere
    | CopiesDroppedThere
    | ChunksForgotten
    | ObjectsFreed
    | NodeGone
)


@dataclass(slots=True)
class Serve:
    """Send the part; answered by ServeEnded."""

    wanted: ChunkWanted


@dataclass(slots=True)
class Refuse:
    """Tell `node` that it will not get chunk `number`."""

    node: bytes
    number: int
    kind: str
    reason: str


@dataclass(slots=True)
class Refer:
    """Tell `node` to ask others for chunk `number`, and all that follows."""

    node: bytes
    number: int
    version: int
    sources: list[bytes]


@dataclass(slots=True)
class DropServe:
    """A chunk that is to be sent is not wanted any more: leave it out if nothing of it has left."""

    node: bytes
    number: int


@dataclass(slots=True)
class FreeCopiesAt:
    """Tell `node` that the originals of its copies are gone."""

    node: bytes
    oids: list[bytes]


ServeEffect = Serve | Refuse | Refer | DropServe | FreeCopiesAt
