"""Every message that crosses a process boundary.

Purpose: one table of frames, read by docs/PROTOCOL.md and by the wire tests.

Design: a message is a msgspec struct encoded as an array whose first element is its tag; a frame is a 4-byte little-endian length and that array.
Tags below 16 are values and peers' messages, 20-49 between a runtime and its node daemon, 50-69 objects, 70-99 actors and control; values: `values`.

How to extend: add a struct with a free tag, list it in the right union at the end; fields are only ever appended, with defaults.
What it does not do: sockets, framing (`wire`), or knowing what a value means (`serialization`).
"""

from __future__ import annotations

from typing import Any

import msgspec

from shoal.protocol.group_messages import FollowGroup, GroupState
from shoal.protocol.lineage_messages import BeingRemade as BeingRemade
from shoal.protocol.lineage_messages import NeedLineage as NeedLineage
from shoal.protocol.lineage_messages import Remake as Remake
from shoal.protocol.memory_messages import AskRoom as AskRoom
from shoal.protocol.memory_messages import BudgetReturned as BudgetReturned
from shoal.protocol.memory_messages import FreeBlocks as FreeBlocks
from shoal.protocol.memory_messages import NoRoomFor as NoRoomFor
from shoal.protocol.memory_messages import OpenSegment as OpenSegment
from shoal.protocol.memory_messages import SegmentBudget as SegmentBudget
from shoal.protocol.memory_messages import TrimBudget as TrimBudget
from shoal.protocol.memory_messages import UseRoom as UseRoom
from shoal.protocol.values import Containing as Containing
from shoal.protocol.values import Failed as Failed
from shoal.protocol.values import Many as Many
from shoal.protocol.values import Message as Message
from shoal.protocol.values import Stored as Stored
from shoal.protocol.values import Value as Value

# ---------------------------------------------------------------- runtime <-> worker (peer connections)


class Hello(Message, tag=5):
    """First frame of every connection, both ways: who speaks, and which version."""

    protocol_version: int
    worker_id: bytes
    job_id: bytes
    pid: int


class DefineFunction(Message, tag=6):
    """Code for `function_id`; sent once a connection, before the first template that names it."""

    function_id: bytes
    code: bytes


class TaskTemplate(Message, tag=7):
    """All that the calls of one remote function with one set of options share. `number` is the sender's short name for it."""

    number: int
    function_id: bytes
    name: str
    kind: int  #: one of the KIND_ constants
    num_returns: int  #: NUM_RETURNS_STREAMING for generators, NUM_RETURNS_DYNAMIC for "dynamic"
    job_id: bytes = b""
    depth: int = 0
    max_calls: int = 0
    backpressure: int = -1
    method: str = ""
    concurrency_group: str = ""
    #: "wanted": the ObjectIDs that are lost and that this run is to make anew, all else it makes being there; "home": their home;
    #: "resume_from": how many items of its stream an earlier attempt has delivered
    options: dict[str, Any] = {}
    #: a task that may run once only (max_retries=0) is answered at once: a crash of the next one must not take its result along
    prompt_reply: bool = False


KIND_TASK = 0
KIND_ACTOR_CALL = 1
NUM_RETURNS_STREAMING = -1
NUM_RETURNS_DYNAMIC = -2


class ForgetFunction(Message, tag=15):
    """The sender will not use `function_id` any more, nor these templates for it: with the last sender the worker unloads it and what it captured."""

    function_id: bytes
    templates: list[int]


class PushTasks(Message, tag=8):
    """Tasks for a leased worker. An item is (seq, template number, task id, attempt, arguments, dependencies).

    `arguments` is a serialized value: the tuple of positional arguments, or a list [args, kwargs]. `dependencies` is None or a list of
    (position or keyword, Value) that replace the Nones standing there. `read` is how many TaskReplies the sender has had on this connection:
    those the worker need not keep any more; without items it says no more than that.
    """

    lease_id: int
    items: list[tuple[int, int, bytes, int, Value, list[tuple[int | str, Value]] | None]]
    read: int = 0


class RecallTasks(Message, tag=9):
    """Bounce what has not started."""

    lease_id: int


class CancelTask(Message, tag=10):
    """Cancel a pushed task: drop it when queued, interrupt it when running; with `force` the worker kills itself instead."""

    lease_id: int
    seq: int
    recursive: bool
    force: bool = False


class StreamCredit(Message, tag=11):
    """The consumer of a stream has taken `consumed` items in all."""

    lease_id: int
    seq: int
    consumed: int


class TaskReplies(Message, tag=12):
    """Results, in the order of finishing. An item is (seq, Value or Many); `busy_us` is the time spent in these tasks."""

    lease_id: int
    items: list[tuple[int, Value | Many]]
    busy_us: int


class TasksBounced(Message, tag=13):
    """Tasks given back unstarted. With `ended` the lease is over and the submitter forgets it."""

    lease_id: int
    seqs: list[int]
    ended: bool
    reason: str = ""


class StreamItem(Message, tag=14):
    """Item number `index` (from 1) of the stream of task `seq`."""

    lease_id: int
    seq: int
    index: int
    value: Value


# ---------------------------------------------------------------- runtime <-> node daemon


class Register(Message, tag=20):
    """A process presents itself. `role` is driver or worker; `startup_token` is what the zygote gave a worker; `job` describes a driver's
    job: namespace, sys_path, cwd, options, log_to_driver. `address` is where peers reach a worker."""

    role: str
    worker_id: bytes
    pid: int
    address: str
    startup_token: int = 0
    job: dict[str, Any] = {}


class Registered(Message, tag=21):
    """The answer. `page_fd` is the file descriptor, in the daemon's process, of this process's page (status, pins)."""

    node_id: bytes
    job_id: bytes
    daemon_pid: int
    page_fd: int
    namespace: str
    session_dir: str
    config: dict[str, Any]


class RequestLeases(Message, tag=22):
    """`backlog` tasks of class `class_no` wait for workers; 0 takes the request back. Repeats replace what was said before.

    A class is all tasks of one sender that any worker granted to it may run: same resources, strategy, environment and depth.
    `demand` is in 1/10,000 units. `environment` names what the worker process must have (variables), empty for none.
    `task_s` is how long its tasks take on average, 0 when that is not known.
    """

    class_no: int
    job_id: bytes
    demand: dict[str, int]
    depth: int
    backlog: int
    strategy: dict[str, Any] = {}
    environment: dict[str, Any] = {}
    name: str = ""
    task_s: float = 0.0


class LeaseGranted(Message, tag=23):
    """A worker for class `class_no`: connect to `address` and push under `lease_id`."""

    class_no: int
    lease_id: int
    worker_id: bytes
    address: str
    pid: int


class LeasesUnschedulable(Message, tag=24):
    """No node can ever satisfy the class: what was asked, what there is. `kind` is empty or one of the UNSCHEDULABLE_ constants."""

    class_no: int
    reason: str
    kind: str = ""


UNSCHEDULABLE_GROUP_REMOVED = "placement group removed"  #: the tasks' placement group is gone
UNSCHEDULABLE_BUNDLE_GONE = "bundle gone"  #: the group's bundle is not on the node that was asked


class ReturnLease(Message, tag=25):
    """The submitter needs the lease no more, and has not used it for `idle_s`."""

    lease_id: int
    idle_s: float = 0.0


class LeaseStarted(Message, tag=26):
    """To a worker: from now on pushes under `lease_id` are yours to run. Always written before the grant is."""

    lease_id: int
    submitter_id: bytes
    job_id: bytes
    demand: dict[str, int]
    assigned: dict[str, list[int]] = {}  #: accelerator ids by resource name, e.g. {"GPU": [0, 1]}
    environment: dict[str, Any] = {}
    depth: int = 0
    namespace: str = ""  #: of the job: where its actors' names are looked up
    group: dict[str, Any] = {}  #: the strategy that put it into a placement group, if one did


class RevokeLease(Message, tag=27):
    """To a worker: bounce what has not started, finish what runs, then say LeaseFinished."""

    lease_id: int


class LeaseFinished(Message, tag=28):
    """From a worker: the lease is over, nothing of it runs; with `exiting` the process leaves (max_calls, a changed environment)."""

    lease_id: int
    exiting: bool = False


class Blocked(Message, tag=29):
    """From a worker: its task waits in get or wait; its CPUs may be lent."""

    lease_id: int


class Unblocked(Message, tag=30):
    """From a worker: its task goes on and has its CPUs again, at once."""

    lease_id: int


class WorkerDied(Message, tag=31):
    """To every process that leased from or shares an actor with the worker: how it ended, and what it had started."""

    worker_id: bytes
    lease_id: int
    started_seq: int  #: the last task it had begun under the lease, 0 for none
    cause: str
    exit_code: int  #: negative for a signal
    out_of_memory: bool = False
    group_removed: bool = False  #: it was killed because its placement group was removed
    untaken: list[tuple[int, int]] = []  #: (lease, seq) of tasks begun before whose replies may be lost with it
    node: bytes = b""  #: where it ran; empty if its node is dead


class KillWorker(Message, tag=32):
    """From the submitter holding `lease_id`: kill its worker (cancel with force) if it still runs task `seq`."""

    lease_id: int
    seq: int


class SignalWorker(Message, tag=33):
    """From the submitter: interrupt task `seq` (the fast path of cancel)."""

    lease_id: int
    seq: int


class WorkerExiting(Message, tag=34):
    """From a worker that ends by its own will (exit_actor, max_calls, drained): the reason. `moves`: its actor goes on elsewhere."""

    reason: str
    moves: bool = False


class Shutdown(Message, tag=35):
    """To a process: leave now. From a driver: its job is over."""

    reason: str


class LogLines(Message, tag=36):
    """To a driver: complete lines that a worker of its job printed. `stream`: 1 (stdout), 2 (stderr); `node`: its name, empty for the driver's."""

    pid: int
    name: str
    stream: int
    lines: list[str]
    node: str = ""


class TaskEvents(Message, tag=37):
    """Trace, best effort: a msgpack list of `count` (task id, name, attempt, state, start in s since the epoch, end, error type), passed on so."""

    count: int
    events: bytes


class Call(Message, tag=38):
    """A request for rare things; `method` is "node.x" or "gcs.x"; answered by Answer with the same number."""

    request: int
    method: str
    body: dict[str, Any]


class Answer(Message, tag=39):
    """The answer to a Call; `error` is empty or [kind, text]."""

    request: int
    body: Any
    error: list[str] = []


class Notice(Message, tag=40):
    """To a driver: a sentence for its user (why something waits, what was spilled)."""

    level: str
    text: str


class CancelObject(Message, tag=41):
    """Cancel the task that makes an object: from whoever holds its ref to the daemon, on to that of its `home`, and to the object's owner,
    or who has claimed the task of a dead one."""

    oid: bytes
    force: bool
    recursive: bool
    home: bytes = b""


# ---------------------------------------------------------------- objects


class TaskLineage(Message, tag=16):
    """All that runs a task again, under the same name; travels inside `Escape` and `Adopt`. Of `dependencies` each is (position or keyword,
    ObjectID, its value if that is inline and known). `actor` is empty, or (ActorID, class name, whether calls keep their order, home)."""

    task_id: bytes
    attempt: int
    template: TaskTemplate
    arguments: Value
    dependencies: list[tuple[int | str, bytes, Value | None]] | None
    demand: dict[str, int]
    strategy: dict[str, Any]
    environment: dict[str, Any]
    max_retries: int
    retries_left: int
    actor: tuple[bytes, str, bool, bytes] | None = None


class Escape(Message, tag=50):
    """From an owner: refs to `oids` are about to leave this process, which holds them. `lineage` is the task that makes them anew (a TaskLineage
    in its encoded form), `needs` what that must have, besides the code of `function_id`. With `freed` the objects are known only because others
    need them: the owner does not hold them any more. With `arguments`, those of each object's task, `lineage` is what the tasks share, with `cuts`
    where a TaskID and arguments belong (`protocol.lineage_pattern`)."""

    oids: list[bytes]
    lineage: bytes = b""
    needs: list[bytes] = []
    function_id: bytes = b""
    freed: bool = False
    arguments: list[bytes] = []
    cuts: tuple[int, int] = (0, 0)


class LineageCode(Message, tag=69):
    """From an owner, before the first Escape whose lineage names it: the code of a function."""

    function_id: bytes
    code: bytes


class Adopt(Message, tag=68):
    """To the successor of a dead owner: run this task, and publish `oids`, which it owns from now on; holds on them (but for what the task puts),
    and on `needs`, are counted in its name. With `begun` it may have begun before, so it must be one that may run again."""

    oids: list[bytes]
    reason: str
    begun: bool
    lineage: bytes
    needs: list[bytes]
    code: bytes


class NotMade(Message, tag=44):
    """From a successor: what its task has not put of `oids` it never will, for `error`. So says an owner of lost objects that it had let go."""

    oids: list[bytes]
    error: Failed


class SubmitterDied(Message, tag=42):
    """To a worker: a process that may have given it tasks is dead. Answered by Claims."""

    process: bytes


class Claims(Message, tag=43):
    """From a worker: it runs, or will run, these tasks of a dead process, and publishes what they make; `begun`: some had ended, which it cannot.
    `refs` have come in calls of that process: no more will."""

    process: bytes
    task_ids: list[bytes]
    begun: bool = False
    refs: int = 0


class Publish(Message, tag=51):
    """From an owner: the value of an escaped object is known. From a worker: a result of a task of `of`, which is gone; `left` more of it follow."""

    oid: bytes
    value: Value
    of: bytes = b""
    left: int = 0


class Hold(Message, tag=52):
    """One more hold on each of `oids` by `holder` (a WorkerID; empty for the sender). `home` is the node whose directory has them (NodeID;
    empty: this one); for another node's objects the daemon answers `HoldsConfirmed` once that node knows. With `in_call` they stand in calls of
    the sender to the actor in `holder`, which lives on `node`; if that is another one, it answers once that node has holds of its own."""

    oids: list[bytes]
    holder: bytes = b""
    home: bytes = b""
    in_call: bool = False
    node: bytes = b""


class HoldsConfirmed(Message, tag=63):
    """To a process: the first `count` of its `Hold` messages with a foreign `home` are known there."""

    count: int


class Release(Message, tag=53):
    """One hold fewer on each of `oids` by `holder` (a WorkerID; empty for the sender)."""

    oids: list[bytes]
    holder: bytes = b""


class RefsReceived(Message, tag=65):
    """The sender has had `count` refs in results of the worker `giver` so far; or (`in_calls`) in calls of that process. With `last` the worker is
    dead and everything that it wrote was read: holds in the sender's name on refs beyond `count` end."""

    giver: bytes
    count: int
    last: bool = False
    in_calls: bool = False


class Resolve(Message, tag=54):
    """Send the value of each of `oids` when it is known. With `stale_generation` the place known before is not valid any more; if that was in the
    store of `stale_node`, no copy could be had from there."""

    oids: list[bytes]
    stale_generation: int = 0
    home: bytes = b""
    stale_node: bytes = b""


class Resolved(Message, tag=55):
    """The value of an object."""

    oid: bytes
    value: Value


class Sealed(Message, tag=56):
    """From a writer: new objects in its segment; an item is (oid, segment, offset, size, generation, owner's WorkerID)."""

    items: list[tuple[bytes, int, int, int, int, bytes]]


class FreeObjects(Message, tag=57):
    """From an owner: nobody refers to these stored objects, on `node` or here, any more; with `giver` only to what that worker has
    sealed, who is dead or says so itself."""

    oids: list[bytes]
    node: bytes = b""
    giver: bytes = b""


class Pull(Message, tag=64):
    """From a process: bring a value that lies on another node into this node's store. Answered by Answer with the body {"stored": the place of the
    copy}, valid until it is evicted. With `background` it is only made ready and request is 0; with `for_task` it is an
    argument of a task, which may wait longer than a program that is blocked. With `look` nothing is brought: the answer says whether a copy is here
    already, or the value is lost with its node."""

    request: int
    stored: Stored
    background: bool = False
    for_task: bool = False
    look: bool = False


class KeepCopies(Message, tag=45):
    """From whoever has put an object, which its daemon knows: see that it is on so many nodes for as long as it is referred to. Answered by Answer
    with the body {"made": on how many it is, "nodes": how many there are, "reason": why others could not keep it}."""

    request: int
    oid: bytes
    number: int


class Relocated(Message, tag=46):
    """To an owner: an object of its, which lay on `node`, lies here at `stored` too, for that node leaves. The owner frees the one or the other."""

    stored: Stored
    node: bytes


# ---------------------------------------------------------------- actors

#: keys of ActorSpec.options: recorded calls, or seconds, between checkpoints; 0 for no such limit
CHECKPOINT_INTERVAL = "checkpoint_interval"
CHECKPOINT_SECONDS = "checkpoint_seconds"
#: key of TaskTemplate.options, of a method that changes nothing
READ_ONLY = "read_only"
#: another one, of calls from one actor with checkpoints to another: the caller, which may be replayed and ask again, and its node
REPLAYS = "replays"


class ActorSpec(Message, tag=70):
    """All that creates an actor, and creates it again. `arguments` and `dependencies` as in PushTasks."""

    actor_id: bytes
    class_id: bytes
    class_name: str
    job_id: bytes
    name: str
    namespace: str
    demand: dict[str, int]  #: while alive
    placement: dict[str, int]  #: to be placed
    arguments: Value
    dependencies: list[tuple[int | str, Value]] | None
    max_restarts: int = 0
    max_task_retries: int = 0
    max_concurrency: int = 1
    concurrency_groups: dict[str, int] = {}
    is_async: bool = False
    detached: bool = False
    strategy: dict[str, Any] = {}
    environment: dict[str, Any] = {}
    methods: bytes = b""  #: serialized table of method options, for handles made by name
    options: dict[str, Any] = {}
    home: bytes = b""  #: the node that counts its handles: its creator's
    job_namespace: str = ""  #: where the actors are named that it looks up and makes
    #: the objects that its arguments are or refer to: (id, home, what made it)
    needs: list[tuple[bytes, bytes, str]] = []

    @property
    def takes_checkpoints(self) -> bool:
        """Whether its state survives its process (`runtime.exact_actor`): `options` has how often."""
        return bool(self.options.get(CHECKPOINT_INTERVAL) or self.options.get(CHECKPOINT_SECONDS))


class CreateActor(Message, tag=71):
    """Make an actor. Answered by an Answer: body {"actor_id", "existing": ActorSpec or None} or the error ["ActorAlreadyExists", text]."""

    request: int
    spec: ActorSpec
    get_if_exists: bool = False


class SubscribeActor(Message, tag=72):
    """Send me the actor's state, now and whenever it changes. `home` is the node that counts its handles, if that is known."""

    actor_id: bytes
    home: bytes = b""


class ActorState(Message, tag=73):
    """The state of an actor: pending, alive, restarting, dead. `lease_id` is what calls are pushed under; `cause` a serialized error."""

    actor_id: bytes
    state: str
    incarnation: int
    lease_id: int
    worker_id: bytes
    address: str
    pid: int
    cause: str = ""
    creation_error: bytes = b""  #: serialized exception of a failed constructor
    death: str = ""  #: why a dead actor is dead: one of the DEATH_ constants of `gcs_messages`
    node_id: bytes = b""  #: where it lives; a daemon makes `address` one that its own processes can reach


class Recovery(msgspec.Struct, array_like=True, gc=False):
    """What a new life of an actor with checkpoints begins with: its last checkpoint (`runtime.exact_actor`), which covers the calls up to
    `index`, and the records of those since; `places` says where objects in records are now. With `problem` nothing can be recovered: why."""

    index: int
    checkpoint: Value
    records: list[bytes]
    problem: str = ""
    places: list[Stored] = []


class BecomeActor(Message, tag=74):
    """To a worker: construct this actor; calls come under `lease_id` (LeaseStarted came before)."""

    lease_id: int
    incarnation: int
    spec: ActorSpec
    recovery: Recovery | None = None
    #: file descriptor, in the daemon's process, of a page for records of calls (`store.page.RecordPage`); -1: they are sent
    records_fd: int = -1


class ActorStarted(Message, tag=75):
    """From a worker: the constructor returned, or failed with `error` (a serialized exception); `cause` if it was not called."""

    actor_id: bytes
    incarnation: int
    error: bytes = b""
    cause: str = ""


class KillActor(Message, tag=76):
    """Kill an actor's process."""

    actor_id: bytes
    no_restart: bool


class TerminateActor(Message, tag=77):
    """To an actor's worker: no handle is left: finish what is queued, and leave. `move`, its node leaves: only what runs, then a checkpoint."""

    reason: str
    move: bool = False


class CallsSettled(Message, tag=80):
    """To an actor with checkpoints: calls `task_ids`, and all of `caller` (12 bytes) numbered below `below`, will not be asked for again."""

    lease_id: int
    task_ids: list[bytes]
    caller: bytes = b""
    below: int = 0


class RecordCall(Message, tag=81):
    """From an actor with checkpoints: call number `index` begins. `record` is all that its replay needs (`runtime.replay.Record`). As long as
    it is kept, each of `refs` is held once in the name of the ActorID (Hold came before), which owns the objects `stored` too."""

    actor_id: bytes
    incarnation: int
    index: int
    record: bytes
    refs: list[bytes] = []
    stored: list[bytes] = []


class StoreCheckpoint(Message, tag=82):
    """From an actor with checkpoints: its state after call number `index`; records up to that one are needed no more. `refs` as in RecordCall."""

    actor_id: bytes
    incarnation: int
    index: int
    state: Value
    refs: list[bytes] = []


class MayAnswer(Message, tag=83):
    """To an actor's worker that withheld its answers: the GCS has heard of its node again (how long that counts stands in its page)."""


PeerMessage = (
    Hello
    | DefineFunction
    | ForgetFunction
    | TaskTemplate
    | PushTasks
    | RecallTasks
    | CancelTask
    | StreamCredit
    | TaskReplies
    | TasksBounced
    | StreamItem
    | CallsSettled
)
#: what a node daemon sends to the processes of its node
FromDaemon = (
    Registered
    | Relocated
    | MayAnswer
    | LeaseGranted
    | LeasesUnschedulable
    | LeaseStarted
    | RevokeLease
    | WorkerDied
    | SignalWorker
    | Shutdown
    | LogLines
    | Answer
    | Notice
    | CancelObject
    | Resolved
    | Remake
    | BeingRemade
    | NoRoomFor
    | Adopt
    | SubmitterDied
    | HoldsConfirmed
    | FreeBlocks
    | SegmentBudget
    | TrimBudget
    | ActorState
    | BecomeActor
    | TerminateActor
    | GroupState
)
#: what the processes of a node send to their daemon
ToDaemon = (
    Hello
    | Register
    | RequestLeases
    | ReturnLease
    | LeaseFinished
    | Blocked
    | Unblocked
    | KillWorker
    | SignalWorker
    | WorkerExiting
    | Shutdown
    | TaskEvents
    | Call
    | CancelObject
    | Escape
    | LineageCode
    | NotMade
    | Claims
    | Publish
    | Hold
    | NeedLineage
    | Release
    | RefsReceived
    | Resolve
    | Sealed
    | FreeObjects
    | Pull
    | KeepCopies
    | OpenSegment
    | BudgetReturned
    | AskRoom
    | UseRoom
    | CreateActor
    | SubscribeActor
    | ActorStarted
    | KillActor
    | RecordCall
    | StoreCheckpoint
    | FollowGroup
)
#: what a runtime may receive, from its daemon or from a peer
ToRuntime = PeerMessage | FromDaemon
