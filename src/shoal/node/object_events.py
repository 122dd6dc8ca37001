"""What the object directory is told, and what it wants done.

Purpose: the events and effects of `object_directory.ObjectDirectory`, as `store_events` has those of the store table.

How to extend: a dataclass, listed in `Event` or `Effect`.

What it does not do: anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.node.foreign_holds import ConfirmHolds, SendHoldForDone, SendNodeHold, SendNodeRelease
from shoal.protocol.ids import TASK_ID_BYTES
from shoal.protocol.lineage_pattern import fill
from shoal.protocol.messages import Failed, Stored, Value

# ---------------------------------------------------------------- events


@dataclass(slots=True)
class ProcessJoined:
    """A process registered; before this, and after its death, nothing is taken from it or held in its name."""

    process: bytes
    is_driver: bool = False
    runs: bool = True  #: it is a real one, which can run tasks


@dataclass(slots=True)
class ProcessDied:
    """A process is dead, and its socket has been read to the end. `cause` is told to those who wait for what it owed. `executors` are the workers
    that may have tasks of it, `nodes` the other nodes whose workers may; `submitters` those whose tasks it may have begun itself."""

    process: bytes
    cause: str
    executors: list[bytes] = field(default_factory=list)
    nodes: list[bytes] = field(default_factory=list)
    submitters: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class ForeignProcessDied:
    """A process of another node is dead. `executors` are the workers here that may have tasks of it."""

    process: bytes
    node: bytes
    executors: list[bytes]


@dataclass(slots=True)
class EstatesComplete:
    """ForeignProcessDied was told of all processes of a node, which is dead."""

    node: bytes


@dataclass(slots=True)
class ClaimsAsked:
    """`node` asks what workers here have of a dead process, or (`is_node`) of those of a dead node; answered by TellClaims."""

    node: bytes
    of: bytes
    is_node: bool


@dataclass(slots=True)
class ClaimsTold:
    """The answer of `node`: tasks, and objects in its store. `begun`: a worker died before it could say what it had begun."""

    node: bytes
    of: bytes
    task_ids: list[bytes]
    stored: list[bytes] = field(default_factory=list)
    begun: bool = False


@dataclass(slots=True)
class ClaimsOverdue:
    """`node` lives, and has not answered AskClaimsOf with that number for long."""

    node: bytes
    of: bytes
    number: int = 0


@dataclass(slots=True)
class ClaimsTaken:
    """`node` is the home of these, which belonged to `of`: it is to have their values (TellClaimMade)."""

    node: bytes
    of: bytes
    oids: list[bytes]


@dataclass(slots=True)
class ClaimMade:
    """A value that was taken of `node` is there; None: it is lost."""

    node: bytes
    oid: bytes
    value: Value | None


@dataclass(slots=True)
class EstateExpired:
    """Who could want what a dead process or node has left has had time to say so."""

    of: bytes


@dataclass(slots=True)
class Escaped:
    """An owner lets go refs to `oids` and holds them itself, once, unless they are `freed`: then others need them. `lineage` makes them anew, out of
    `needs`; with `arguments` it is what their tasks share (`protocol.lineage_pattern`)."""

    sender: bytes
    oids: list[bytes]
    lineage: bytes = b""
    needs: list[bytes] = field(default_factory=list)
    function_id: bytes = b""
    freed: bool = False
    arguments: list[bytes] = field(default_factory=list)
    cuts: tuple[int, int] = (0, 0)

    def lineage_of(self, oid: bytes) -> bytes:
        """What makes one of the objects anew."""
        if not self.arguments:
            return self.lineage
        return fill(self.lineage, self.cuts, oid[:TASK_ID_BYTES], self.arguments[self.oids.index(oid)])


@dataclass(slots=True)
class CodeTold:
    """The code of a function that lineage names."""

    process: bytes
    function_id: bytes
    code: bytes


@dataclass(slots=True)
class Claimed:
    """`worker` has these tasks of `process`, which is dead, and will publish what they make. `begun`: others have ended, and are lost."""

    worker: bytes
    process: bytes
    task_ids: list[bytes]
    begun: bool = False
    refs: int = 0  #: that have come in calls of that process


@dataclass(slots=True)
class NotMadeTold:
    """A successor has run a task that was to put `oids`; `error` says what if it has not. Or an owner that was to make them again has let them go."""

    process: bytes
    oids: list[bytes]
    error: Failed


@dataclass(slots=True)
class Published:
    """The value of an escaped object. `of`: it is a result of a task of that process, which is gone; of `of_node`, if it is another node's; `left`
    more results of the task follow."""

    sender: bytes
    oid: bytes
    value: Value
    of: bytes = b""
    of_node: bytes = b""
    left: int = 0


@dataclass(slots=True)
class Promised:
    """A process has written something that counts, like a Hold with a foreign home, when PromiseKept(number) says so; numbers are negative."""

    process: bytes
    number: int


@dataclass(slots=True)
class PromiseKept:
    """The other end has it."""

    number: int


@dataclass(slots=True)
class Held:
    """One more hold on each of `oids` by `holder` (empty: the sender); `home` is another node's id, or this one's, or empty for this one's.
    `in_call`: they stand in calls to the holder."""

    sender: bytes
    oids: list[bytes]
    holder: bytes = b""
    home: bytes = b""
    in_call: bool = False


@dataclass(slots=True)
class Released:
    """One hold fewer on each of `oids` by `holder` (empty: the sender)."""

    sender: bytes
    oids: list[bytes]
    holder: bytes = b""


@dataclass(slots=True)
class RefsReceived:
    """`receiver` has had `count` refs from `giver` (a process, or `handed_refs.as_caller` of one); `last`: which is dead, and no more will come."""

    receiver: bytes
    giver: bytes
    count: int
    last: bool = False


@dataclass(slots=True)
class ResolveAsked:
    """A process wants the values. With `stale_generation` the place it knew, of that generation, holds the object no more; then the object
    may also be one that never escaped."""

    process: bytes
    oids: list[bytes]
    stale_generation: int = 0
    home: bytes = b""
    stale_node: bytes = b""  #: where no copy could be had


@dataclass(slots=True)
class Moved:
    """From the store table: the object's place now; None while it is in no memory (spilled) and must be asked for."""

    oid: bytes
    stored: Stored | None


@dataclass(slots=True)
class NoRoom:
    """From the store table: memory has no room just now for an object on disk, which `process` (or a node) had asked for; it was told."""

    oid: bytes
    process: bytes


@dataclass(slots=True)
class Lost:
    """From the store table: the object's bytes are gone for good (or it never had any). `owner` is who owns them, as far as the store knows. With
    `node` they lay in that other node's store."""

    oid: bytes
    reason: str
    owner: bytes = b""
    node: bytes = b""


@dataclass(slots=True)
class Swept:
    """Every local socket was seen empty, all that was read being handled, since `token` was requested."""

    token: int


@dataclass(slots=True)
class NodeJoined:
    """Another node lives."""

    node: bytes


@dataclass(slots=True)
class NodeDied:
    """Another node is dead, or will never be known: what it held, had and counted is gone."""

    node: bytes
    cause: str


@dataclass(slots=True)
class HandedAbroad:
    """One more hold on each of `oids` by `process`, which is of `node`; `in_call`: they stand in calls to it."""

    sender: bytes
    oids: list[bytes]
    process: bytes
    node: bytes
    home: bytes = b""
    in_call: bool = False


@dataclass(slots=True)
class HoldForArrived:
    """`process` of this node was handed refs by `giver`, a process of `node`."""

    node: bytes
    number: int
    process: bytes
    oids: list[bytes]
    home: bytes
    giver: bytes = b""


@dataclass(slots=True)
class HoldForConfirmed:
    """`node` holds what was handed to it under `number`."""

    node: bytes
    number: int


@dataclass(slots=True)
class NodeHoldArrived:
    """`node` holds objects of this home."""

    node: bytes
    number: int
    oids: list[bytes]


@dataclass(slots=True)
class NodeHoldConfirmed:
    """`node` counts the holds of SendNodeHold `number`."""

    node: bytes
    number: int


@dataclass(slots=True)
class NodeReleaseArrived:
    """`node` ends holds: (oid, count)."""

    node: bytes
    items: list[tuple[bytes, int]]


@dataclass(slots=True)
class NeedsTold:
    """A process, or another node, may want to have these made, though it does not hold them any more; or (ended) does not."""

    who: bytes
    oids: list[bytes]
    ended: bool


@dataclass(slots=True)
class ResolvedAbroad:
    """The home `node` tells a value that was asked for by SendResolveFor."""

    node: bytes
    oid: bytes
    value: Value


@dataclass(slots=True)
class MirrorItem:
    """How an object is made, and with which code; or its value, if that is inline."""

    oid: bytes
    lineage: bytes
    needs: list[bytes]
    function_id: bytes
    code: bytes
    value: bytes | None
    copies: int = 0  #: on how many nodes it is to be, if `put` was told
    places: list[Stored] = field(default_factory=list)  #: the stores of other nodes that keep it

    def lineage_of(self, oid: bytes) -> bytes:
        """What makes the object anew."""
        return self.lineage


@dataclass(slots=True)
class MirrorsArrived:
    """`node`, the home of objects that this node holds, tells how to make them should it die."""

    node: bytes
    items: list[MirrorItem]


@dataclass(slots=True)
class MirrorsDropped:
    """`node` tells which of these are gone."""

    node: bytes
    oids: list[bytes]


@dataclass(slots=True)
class HeirTold:
    """The home of an object whose home has died; empty: there is none."""

    oid: bytes
    home: bytes


@dataclass(slots=True)
class CopiesAsked:
    """A process has put an object, which is to be on so many nodes; answered by AnswerCopies."""

    process: bytes
    request: int
    oid: bytes
    number: int


@dataclass(slots=True)
class CopyKept:
    """A node keeps a copy of an object at a place of its store; or, without a place, why it cannot."""

    node: bytes
    oid: bytes
    stored: Stored | None
    reason: str = ""


@dataclass(slots=True)
class HomeLeaves:
    """This node is to leave: what it is the home of is to outlive it, without the nodes `unfit`, which leave too. Said again and again."""

    unfit: list[bytes]


Event = (
    ProcessJoined
    | ProcessDied
    | ForeignProcessDied
    | EstatesComplete
    | ClaimsAsked
    | ClaimsTold
    | ClaimsOverdue
    | ClaimsTaken
    | ClaimMade
    | EstateExpired
    | Escaped
    | CodeTold
    | Claimed
    | NotMadeTold
    | Published
    | Held
    | Promised
    | PromiseKept
    | Released
    | RefsReceived
    | ResolveAsked
    | Moved
    | NoRoom
    | Lost
    | Swept
    | NodeJoined
    | NodeDied
    | HandedAbroad
    | HoldForArrived
    | HoldForConfirmed
    | NodeHoldArrived
    | NodeHoldConfirmed
    | NodeReleaseArrived
    | NeedsTold
    | ResolvedAbroad
    | MirrorsArrived
    | MirrorsDropped
    | HeirTold
    | CopiesAsked
    | CopyKept
    | HomeLeaves
)


# ---------------------------------------------------------------- effects


@dataclass(slots=True)
class SendResolved:
    """Send a value to a process, or to another node that asked for it."""

    process: bytes
    oid: bytes
    value: Value


@dataclass(slots=True)
class SendRemake:
    """Have a lost object made anew by `process`, which owns it; answered by Published. `held`: a hold was counted in its name."""

    process: bytes
    oid: bytes
    reason: str
    held: bool = False


@dataclass(slots=True)
class SendBeingRemade:
    """Tell a process that waits for a value that it is lost, and being made anew."""

    process: bytes
    oid: bytes


@dataclass(slots=True)
class Adopted:
    """`process` owns `oids` from now on and is to run the task that makes them. Holds on them (but for puts) and on `needs` were counted for it."""

    process: bytes
    oids: list[bytes]
    reason: str
    begun: bool
    lineage: bytes
    needs: list[bytes]
    code: bytes


@dataclass(slots=True)
class AskClaims:
    """Ask a worker what it has of a dead process; answered by Claimed."""

    worker: bytes
    process: bytes


@dataclass(slots=True)
class AskClaimsOf:
    """Ask a node (perhaps this one) what it has of a dead process, or of a dead node; answered by ClaimsTold or, with `number`, ClaimsOverdue."""

    node: bytes
    of: bytes
    is_node: bool
    number: int = 0


@dataclass(slots=True)
class TellClaims:
    """Answer a node's ClaimsAsked; the shell adds what lies in the store."""

    node: bytes
    of: bytes
    task_ids: list[bytes]
    begun: bool


@dataclass(slots=True)
class TakeClaims:
    """Tell a node (perhaps this one) which of what it has claimed is wanted; answered by ClaimMade for each."""

    node: bytes
    of: bytes
    oids: list[bytes]


@dataclass(slots=True)
class TellClaimMade:
    """Tell a node a value that it has taken; None: it is lost. What lies in the store here is that node's to free."""

    node: bytes
    oid: bytes
    value: Value | None


@dataclass(slots=True)
class EstateSettled:
    """All workers have said what they have of a dead process of another node: what else lies in the store in its name is of no use."""

    process: bytes


@dataclass(slots=True)
class ExpireLater:
    """Answer with EstateExpired when who could want what this process or node has left has had time to say so. `soon`: who ask at once."""

    of: bytes
    soon: bool = False


@dataclass(slots=True)
class OrphansSettled:
    """Nothing waits any more for what a dead process's workers say: what is stored in its name and not known is of no use."""

    process: bytes


@dataclass(slots=True)
class FreeStored:
    """To the store table, here or (`node`) of another node: nobody refers to this stored object any more."""

    oid: bytes
    node: bytes = b""


@dataclass(slots=True)
class KeepStored:
    """To `node`, where a process of this node owns a stored object: it is this node's directory that frees it from now on."""

    node: bytes
    oid: bytes
    holds_refs: bool = False


@dataclass(slots=True)
class EnsureResident:
    """To the store table: bring the object into memory for `process`. Answered by Moved (also when it is there already) or Lost."""

    oid: bytes
    process: bytes


@dataclass(slots=True)
class RequestSweep:
    """Answer with Swept(token) once every local socket was seen empty from now on. At most one is outstanding."""

    token: int


@dataclass(slots=True)
class ActorHandleGone:
    """Nobody holds a handle of the actor, whose home is here, any more."""

    actor_id: bytes


@dataclass(slots=True)
class SendNodeHeld:
    """Tell `node` that its NodeHold `number` counts."""

    node: bytes
    number: int


@dataclass(slots=True)
class SendHoldFor:
    """Tell `node` that its `process` was handed these refs by `giver`; answered by HoldForConfirmed(number) unless that is 0."""

    node: bytes
    number: int
    process: bytes
    oids: list[bytes]
    home: bytes
    giver: bytes = b""


@dataclass(slots=True)
class SendResolveFor:
    """Ask the home `node` for values, each answered by ResolvedAbroad."""

    node: bytes
    oids: list[bytes]
    stale_generation: int = 0
    stale_node: bytes = b""


@dataclass(slots=True)
class SendMirrors:
    """Tell `node` how to make objects of this home that it holds."""

    node: bytes
    items: list[MirrorItem]


@dataclass(slots=True)
class DropMirrors:
    """Tell `node` which of those are gone."""

    node: bytes
    oids: list[bytes]


@dataclass(slots=True)
class TellNeeds:
    """Tell a home that this node may want to have objects made that it lets go; or (ended) does not any more."""

    node: bytes
    oids: list[bytes]
    ended: bool = False


@dataclass(slots=True)
class AskHeir:
    """Ask who is the home of an object now, whose home has died; `able`: this node could be. Answered by HeirTold."""

    oid: bytes
    able: bool


@dataclass(slots=True)
class AskCopy:
    """Ask a node (this one too) to keep a copy of an object that lies there. Answered by CopyKept."""

    node: bytes
    oid: bytes
    stored: Stored


@dataclass(slots=True)
class AnswerCopies:
    """Tell a process on how many nodes its object is, how many nodes there are, and why others could not keep it."""

    process: bytes
    request: int
    made: int
    nodes: int
    reason: str


@dataclass(slots=True)
class ForgetHeir:
    """Nobody refers any more to an object that this node has inherited: the GCS need not know its home."""

    oid: bytes


Effect = (
    SendResolved
    | ForgetHeir
    | AskCopy
    | AnswerCopies
    | SendRemake
    | SendBeingRemade
    | Adopted
    | AskClaims
    | AskClaimsOf
    | TellClaims
    | TakeClaims
    | TellClaimMade
    | EstateSettled
    | ExpireLater
    | OrphansSettled
    | SendMirrors
    | DropMirrors
    | TellNeeds
    | AskHeir
    | FreeStored
    | KeepStored
    | EnsureResident
    | RequestSweep
    | ActorHandleGone
    | SendNodeHold
    | SendNodeHeld
    | SendNodeRelease
    | SendHoldFor
    | SendHoldForDone
    | SendResolveFor
    | ConfirmHolds
)
