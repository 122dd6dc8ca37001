"""Messages between node daemons.

Purpose: the third table of frames; tags 130-169. Values and leases inside are those of `messages`.

Design: every pair of nodes has one line in each direction (`node/io/node_links.py`): ordered, delivered once while both nodes live, also over
reconnects. So a message is said once, and its order among those to the same node is kept. Bytes of objects travel on connections of their own
(`node/io/transfer.py`), not here.

How to extend: a struct with a free tag, listed in `BetweenNodes`; fields are only appended, with defaults.

What it does not do: single tasks and their results, which go from process to process.
"""

from __future__ import annotations

from typing import Any

from shoal.protocol.messages import (
    CancelObject,
    KillWorker,
    LeaseFinished,
    LeaseGranted,
    LeasesUnschedulable,
    LogLines,
    Message,
    NeedLineage,
    Resolved,
    ReturnLease,
    SignalWorker,
    Stored,
    Value,
    WorkerDied,
)


class LinkHello(Message, tag=130):
    """First frame of a line: who dials whom, and in which life of its daemon."""

    protocol_version: int
    sender: bytes
    receiver: bytes


class LinkWelcome(Message, tag=131):
    """The answer: how many messages of this sender were received, so that it can repeat the others; or why the line is refused."""

    received: int
    refused: str = ""


class LinkReceived(Message, tag=132):
    """How many messages of the line were handled so far: the sender may forget them."""

    count: int


class RouteToWorker(Message, tag=133):
    """First frame of a connection from a process of another node: hand it on to this worker. Answered by one byte, b"1", when the worker has it."""

    protocol_version: int
    worker_id: bytes
    node_id: bytes  #: of the sender
    process: bytes  #: the sender


def handover_path(address: str) -> str:
    """Where a worker takes connections that its daemon hands on: beside the socket at `address`, under a name of the same length."""
    return address.removesuffix(".sock") + ".give"


class OpenTransfer(Message, tag=134):
    """First frame of a connection on which the dialled node sends chunks of objects (`node/io/movers.py`). Answered by one byte, b"1". `number` is
    the dialling node's name for it."""

    protocol_version: int
    node_id: bytes
    number: int = 0


class ForeignLeases(Message, tag=135):
    """As RequestLeases, of a process of the sending node; `namespace` is that of the job."""

    process: bytes
    class_no: int
    job_id: bytes
    demand: dict[str, int]
    depth: int
    backlog: int
    strategy: dict[str, Any] = {}
    environment: dict[str, Any] = {}
    name: str = ""
    namespace: str = ""


class ForeignProcessDied(Message, tag=136):
    """A process of the sending node is dead: what it leased here ends, what it owned here alone is freed. `job_id` is that of a driver: its job is
    over."""

    process: bytes
    reason: str
    job_id: bytes = b""


class ForProcess(Message, tag=137):
    """A message for a process of the receiving node."""

    process: bytes
    message: LeaseGranted | LeasesUnschedulable | WorkerDied | CancelObject | LogLines


class NodeHold(Message, tag=138):
    """The sending node, as a whole, holds these objects of the receiving one. Answered by NodeHeld with the same number."""

    number: int
    oids: list[bytes]


class NodeHeld(Message, tag=139):
    """The holds of NodeHold `number` count."""

    number: int


class NodeRelease(Message, tag=140):
    """The sending node ends `count` of its holds on each of these objects: items are (oid, count)."""

    items: list[tuple[bytes, int]]


class HoldFor(Message, tag=141):
    """`giver`, a worker of the sending node, hands refs on to `process` of the receiving one, which from now on holds them (empty: the value that
    comes next does). The sending node keeps them alive at their `home` until HoldForDone. When it is their home itself it counts the receiving node
    once for each already."""

    number: int
    process: bytes
    oids: list[bytes]
    home: bytes
    giver: bytes = b""


class HoldForDone(Message, tag=142):
    """The receiver of HoldFor `number` has holds of its own at the home."""

    number: int


class ResolveFor(Message, tag=143):
    """The sending node wants the values of these objects of the receiving one, each answered by Resolved when it is known. What was told before, if
    it was the place of generation `stale_generation` on `stale_node`, could not be had."""

    oids: list[bytes]
    stale_generation: int = 0
    stale_node: bytes = b""


class MirrorLineage(Message, tag=160):
    """From the home of objects that the receiver holds: how to make them, and what that needs, should the home die. An item is (oid, lineage, needs,
    function id, its code, value, copies, places): with a value, which is inline, the rest is empty; places are those of further copies."""

    items: list[tuple[bytes, bytes, list[bytes], bytes, bytes, bytes | None, int, list[Stored]]]


class KeepCopy(Message, tag=158):
    """From an object's home: keep a copy of it, which lies there, as an original, until FreeStored. Answered by CopyKept."""

    stored: Stored


class CopyKept(Message, tag=159):
    """A copy is kept at this place; or, without one, why it cannot be."""

    oid: bytes
    stored: Stored | None = None
    reason: str = ""


class KeepLogCopy(Message, tag=162):
    """Keep a copy of an object of the sender, which belongs to the log of an actor with checkpoints in this life of it, until FreeLogCopies or the
    actor's death. Answered by LogCopyKept."""

    actor_id: bytes
    incarnation: int
    stored: Stored


class LogCopyKept(Message, tag=163):
    """A copy is kept at this place; or, without one, cannot be."""

    oid: bytes
    stored: Stored | None = None


class FreeLogCopies(Message, tag=164):
    """These copies of the actor's log are not needed any more; without any named, none that was made for a life before this one is, and no log of
    such a life."""

    actor_id: bytes
    incarnation: int
    oids: list[bytes] = []


class HoldForLog(Message, tag=173):
    """Hold these objects of one home in the name of an actor with checkpoints, whose log on the sending node refers to them from this position on
    (`node.log_holds`), until FreeLogHolds or the actor's death. Answered by HeldForLog. `life` is the incarnation that says so."""

    number: int
    actor_id: bytes
    position: int
    oids: list[bytes]
    home: bytes
    life: int = 0


class HeldForLog(Message, tag=174):
    """What HoldForLog `number` named is held, and counted at its home."""

    number: int
    actor_id: bytes


class FreeLogHolds(Message, tag=175):
    """The GCS has a checkpoint of the actor: what only positions below this one of its log named need not be held for it, nor what only lives before
    `former` named."""

    actor_id: bytes
    below: int
    former: int = 0


class DropMirrors(Message, tag=161):
    """The receiver need not know any more how these are made."""

    oids: list[bytes]


class FreeStored(Message, tag=144):
    """Nobody refers to these objects, which lie in the receiver's store, any more; with `giver` only those that this dead worker has sealed."""

    oids: list[bytes]
    giver: bytes = b""


class MoveStored(Message, tag=155):
    """From a node that drains: processes of the receiver own these objects of its store and are to have them there; items are (owner, place)."""

    items: list[tuple[bytes, Stored]]


class FreeCopies(Message, tag=145):
    """The originals of these copies in the receiver's store are gone."""

    oids: list[bytes]


class KeepStored(Message, tag=146):
    """These objects in the receiver's store have left their owner, a process of the sending node: its death does not free them any more, but
    FreeStored does, or the end of the sending node, if no heir takes them (TakeClaims). `holds_refs`: refs are inside of them."""

    oids: list[bytes]
    holds_refs: bool = False


class AskForeignClaims(Message, tag=166):
    """What have the receiver's workers of `of`, a process of the sending node that is dead; or (`is_node`) of the processes of a dead node, whose
    heir the sending node is? Answered by ForeignClaims when all these workers have said so."""

    of: bytes
    is_node: bool


class ForeignClaims(Message, tag=167):
    """These tasks run on, or wait at an actor, or have ended; these objects lie in the sending node's store. `begun`: a worker died before it could
    say what it had begun."""

    of: bytes
    task_ids: list[bytes]
    stored: list[bytes]
    begun: bool


class TakeClaims(Message, tag=168):
    """The sending node is the home of these now, which the receiver has claimed; each is answered by ClaimMade."""

    of: bytes
    oids: list[bytes]


class ClaimMade(Message, tag=169):
    """The value of an object that was taken, when it is there; None when it will not be. Of refs inside, HoldFor (to no process) has told before."""

    oid: bytes
    value: Value | None


class ExpectActor(Message, tag=147):
    """A process of the sending node has a handle of an actor that the GCS does not know. The receiver, home of the handles, answers
    ActorExpected when the actor was asked for, or will never be."""

    actor_id: bytes


class ActorExpected(Message, tag=148):
    """The answer: `created`, if its creator has asked the GCS for it."""

    actor_id: bytes
    created: bool


class FetchChunk(Message, tag=149):
    """The sending node wants `length` bytes from `offset` on of an object in the receiver's store, on its connection `connection`, under `number`.
    `version` names the bytes, 0 for whatever there is. With `fresh` it has nothing of the object yet, and may be referred to other nodes."""

    number: int
    connection: int
    oid: bytes
    version: int
    offset: int
    length: int
    fresh: bool = False


class ChunkRefused(Message, tag=150):
    """FetchChunk `number` will not be served: `kind` is a REFUSED_ constant of `node/pull_events.py`."""

    number: int
    kind: str
    reason: str


class ChunkReferred(Message, tag=151):
    """FetchChunk `number` will not be served here: `sources` have the object, or are about to, the first before the others."""

    number: int
    version: int
    sources: list[bytes]


class PullEnded(Message, tag=152):
    """The sending node pulls an object of the receiver no more; `whole`: it has a copy."""

    oid: bytes
    whole: bool


class CopiesDropped(Message, tag=153):
    """The sending node has let its copies of these objects of the receiver go."""

    oids: list[bytes]


class ChunksForgotten(Message, tag=154):
    """The sending node does not want these chunks any more."""

    numbers: list[int]


class JobLines(Message, tag=156):
    """Complete lines that a worker of the sending node printed for a job whose driver is on the receiving one; as LogLines."""

    job_id: bytes
    pid: int
    name: str
    stream: int
    lines: list[str]
    node: str  #: the sender's name


class JobLinesUnwanted(Message, tag=157):
    """The answer when nobody on the sending node wants lines of this job (any more)."""

    job_id: bytes


class GcsTrouble(Message, tag=171):
    """From the head: what ails its GCS; "" when it is well again."""

    text: str


BetweenNodes = (
    LinkHello
    | LinkWelcome
    | LinkReceived
    | RouteToWorker
    | OpenTransfer
    | MirrorLineage
    | DropMirrors
    | MoveStored
    | KeepCopy
    | CopyKept
    | KeepLogCopy
    | LogCopyKept
    | FreeLogCopies
    | HoldForLog
    | HeldForLog
    | FreeLogHolds
    | ForeignLeases
    | ForeignProcessDied
    | ForProcess
    | ReturnLease
    | LeaseFinished
    | KillWorker
    | SignalWorker
    | CancelObject
    | NodeHold
    | NodeHeld
    | NodeRelease
    | NeedLineage
    | HoldFor
    | HoldForDone
    | ResolveFor
    | Resolved
    | FreeStored
    | FreeCopies
    | KeepStored
    | AskForeignClaims
    | ForeignClaims
    | TakeClaims
    | ClaimMade
    | FetchChunk
    | ChunkRefused
    | ChunkReferred
    | PullEnded
    | CopiesDropped
    | ChunksForgotten
    | ExpectActor
    | ActorExpected
    | JobLines
    | JobLinesUnwanted
    | GcsTrouble
)
