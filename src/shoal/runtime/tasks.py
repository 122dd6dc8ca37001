"""The submitter's nouns: templates, pending tasks, scheduling classes, leases.

Plain records without behaviour of their own; who writes them is said with each. The hot path creates one `PendingTask` a task, so it has slots
and no defaults that cost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from itertools import count
from typing import TYPE_CHECKING, Any

import msgspec

from shoal import serialization
from shoal.protocol import errors
from shoal.protocol.limits import QUEUED_WORK_S
from shoal.protocol.messages import TaskTemplate, Value, WorkerDied

if TYPE_CHECKING:
    from shoal.runtime.actor_calls import ActorQueue
    from shoal.runtime.arguments import Room
    from shoal.runtime.objects import ObjectEntry
    from shoal.runtime.reactor import Connection


class Template:
    """One remote function (or actor method) with one set of options, as this process submits it. Written by `core` and, for the estimate,
    by whoever reads the replies."""

    __slots__ = (
        "code",
        "encoded",
        "estimate_s",
        "exported",
        "gone",
        "klass",
        "max_retries",
        "multiple",
        "pattern",
        "retry_exceptions",
        "variants",
        "wire",
    )

    def __init__(
        self,
        wire: TaskTemplate,
        code: bytes,
        klass: SchedulingClass | None,
        max_retries: int,
        retry_exceptions: Any,
        gone: deque[int],
    ) -> None:
        self.wire = wire
        self.code = code
        self.klass = klass
        self.max_retries = max_retries
        self.retry_exceptions = retry_exceptions  #: False, True or a tuple of exception classes
        #: exponential average of the execution time; one unknown task fills a worker's queue
        self.estimate_s = QUEUED_WORK_S
        self.multiple = wire.num_returns != 1
        self.exported: Any = None  #: the exported code, which lives as long as a template does
        #: for tasks whose inputs lie on one node: see `locality`
        self.variants: dict[tuple[bytes, int], Template] | None = None
        #: what is the same in the lineage of all its tasks, encoded: the template itself, demand, strategy and environment
        self.encoded: tuple[Any, Any, Any, Any] | None = None
        self.pattern: Any = None  #: the same of the whole lineage of plain tasks; written by `closures`
        self.gone = gone  #: of its submitter: the numbers that are not used any more

    def with_options(self, number: int, **options: Any) -> Template:
        """The same, with more to tell the worker: for one run."""
        wire = msgspec.structs.replace(self.wire, number=number, options={**self.wire.options, **options})
        again = Template(wire, self.code, self.klass, self.max_retries, self.retry_exceptions, self.gone)
        again.exported = self.exported
        again.estimate_s = self.estimate_s
        return again

    def __del__(self) -> None:
        self.gone.append(self.wire.number)


class PendingTask:
    """One submitted task until its result is known. Written by the submitter under the reactor's lock."""

    __slots__ = (
        "args",
        "attempt",
        "cancelled",
        "deps",
        "estimate_s",
        "held",
        "lease",
        "missing",
        "queue",
        "result",
        "retries_left",
        "seq",
        "task_id",
        "template",
    )

    def __init__(
        self,
        template: Template,
        task_id: bytes,
        args: Value,
        deps: list[tuple[int | str, ObjectEntry]] | None,
        held: list[ObjectEntry] | None,
    ) -> None:
        self.template = template
        self.task_id = task_id
        self.args = args
        self.deps = deps
        #: entries used until the task ends: dependencies and refs nested in the arguments
        self.held = held
        #: an ObjectEntry, a list of them, or a StreamState
        self.result: Any = None
        self.attempt = 0
        self.retries_left = template.max_retries
        self.seq = 0
        self.lease: WorkerLease | None = None
        self.queue: ActorQueue | None = None  #: of an actor's call
        self.missing = 0  #: dependencies whose value is not known yet
        self.cancelled = False
        self.estimate_s = 0.0

    def count_retry(self) -> None:
        """It is run again. A retry is a new attempt, whose children get new names; a re-run after a loss repeats the recorded one."""
        if self.retries_left > 0:
            self.retries_left -= 1
        if "wanted" not in self.template.wire.options:
            self.attempt += 1


class SchedulingClass:
    """Tasks that may run on each other's leases: same resources, strategy, environment and depth. Written by the submitter."""

    __slots__ = (
        "__weakref__",
        "backlog_told",
        "demand",
        "depth",
        "environment",
        "group_removed",
        "leases",
        "name",
        "number",
        "open",
        "queue",
        "strategy",
        "task_s_told",
        "unschedulable",
        "waited_most",
    )

    def __init__(
        self,
        number: int,
        demand: dict[str, int],
        depth: int,
        strategy: dict[str, Any],
        environment: dict[str, Any],
        name: str,
    ) -> None:
        self.number = number
        self.demand = demand
        self.depth = depth
        self.strategy = strategy
        self.environment = environment
        self.name = name
        #: ready tasks that no lease has room for
        self.queue: deque[PendingTask] = deque()
        self.leases: dict[int, WorkerLease] = {}
        #: leases with room, the one to fill next first
        self.open: deque[WorkerLease] = deque()
        self.backlog_told = 0
        self.task_s_told = 0.0  #: how long its tasks take, as the daemon knows; 0: it was told nothing
        self.waited_most = 0  #: of its tasks, since the last tick at which fewer waited than was told
        self.unschedulable = ""
        self.group_removed = False  #: that is why

    def in_name_of(self, task: PendingTask, why: str) -> str:
        """What was said of this class, which has the name of the task that asked first, as said of another task of it."""
        return (
            task.template.wire.name + why.removeprefix(self.name)
            if self.name and why.startswith(f"{self.name} ")
            else why
        )


class WorkerLease:
    """The right to push tasks to one worker. Written by the submitter."""

    __slots__ = (
        "connection",
        "ending",
        "gather",
        "idle_since",
        "inflight",
        "is_open",
        "klass",
        "lease_id",
        "load_s",
        "next_seq",
        "out",
        "progress_at",
        "queue",
    )

    def __init__(self, lease_id: int, klass: SchedulingClass | None, connection: Connection) -> None:
        self.lease_id = lease_id
        self.klass = klass
        self.connection = connection
        self.inflight: dict[int, PendingTask] = {}
        self.next_seq = 1
        self.gather = 2  #: pushes to gather before the next send
        self.load_s = 0.0
        #: items gathered for one PushTasks
        self.out: list[Any] = []
        self.is_open = False  #: stands in klass.open
        self.idle_since = 0.0
        self.progress_at = 0.0  #: when the last reply came, or the first task was pushed
        self.ending = False  #: returned or revoked: nothing is pushed any more
        self.queue: ActorQueue | None = None  #: of an actor's lease: the calls behind it


class WorkerPeer:
    """What a submitter knows of one worker it is connected to. Attached to the connection."""

    __slots__ = (
        "acknowledged",
        "address",
        "closed_at",
        "death",
        "functions",
        "leases",
        "pid",
        "read",
        "refs",
        "templates",
        "worker_id",
    )

    def __init__(self, worker_id: bytes, address: str, pid: int) -> None:
        self.worker_id = worker_id
        self.address = address
        self.pid = pid
        self.leases: dict[int, WorkerLease] = {}
        #: function ids and template numbers this worker has been sent
        self.functions: set[bytes] = set()
        self.templates: set[int] = set()
        self.death: Any = None  #: the WorkerDied message, once it came
        self.closed_at = 0.0  #: when the connection ended
        self.refs = 0  #: refs that came in its results
        self.read = 0  #: messages with replies that came
        self.acknowledged = 0  #: those of which it was told without a push


#: what befalls a value through no doing of the program: a replay that meets one where the first run did not would go another way
_LOSSES = (
    errors.ObjectLostError,
    errors.ActorError,
    errors.WorkerCrashedError,
    errors.OutOfMemoryError,
    errors.NodeDiedError,
    errors.ObjectStoreFullError,
    errors.ObjectFetchTimedOutError,
)


class CallNames:
    """How an actor with checkpoints names its calls to others with checkpoints: its replay must name them alike; and what its calls could not
    have. Written by `exact_actor`; counted under the reactor's lock."""

    __slots__ = (
        "active",
        "actor_id",
        "brings_back",
        "creates",
        "loss",
        "lost_before",
        "made",
        "on_loss",
        "prefix",
        "settled",
    )

    def __init__(self, prefix: bytes, actor_id: bytes = b"") -> None:
        self.prefix = prefix
        self.actor_id = actor_id
        #: asked of a lost object whether it was made anew meanwhile (`coming_again`)
        self.brings_back: Callable[[ObjectEntry, float | None], bool] = lambda entry, until: False
        #: told of what the recorded call that runs could not have: a replay must be told the same
        self.on_loss: Callable[[bytes, BaseException], None] = lambda oid, error: None
        #: in a replay: what the call could not have when it ran, and the error of each
        self.lost_before: dict[bytes, bytes] = {}
        self.made = 0  #: calls named so far
        self.active = False  #: a recorded call runs now
        self.settled = 0  #: calls that the last checkpoint covers: no replay will make them again
        self.creates = False  #: the recorded call that runs has made an actor
        self.loss = ""  #: what the recorded call that runs has asked for and could not have, the first of it

    def note_loss(self, error: BaseException, oid: bytes = b"") -> None:
        """A value that was asked for has an error in its place."""
        if self.active:
            cause = _cause(error)
            if isinstance(cause, _LOSSES):
                self.loss = self.loss or f"{type(cause).__name__}: {cause}"
                self.on_loss(oid, error)

    def lose_again(self, asked: Iterable[Any]) -> None:
        """Refs are asked for, or an id is put, in a replay: raises what the first run was told, if it could not have, or store, one of them."""
        for each in asked:
            error = self.lost_before.get(each if type(each) is bytes else each.binary())
            if error is not None:
                raise serialization.loads_error(error)

    def is_made_anew(self, entry: ObjectEntry, error: BaseException, until: float | None) -> bool:
        """Whether what is lost, says the error, is to be looked at again; may wait for that."""
        return self.active and isinstance(_cause(error), _LOSSES) and self.brings_back(entry, until)


def _cause(error: BaseException) -> BaseException | None:
    return error.cause if isinstance(error, errors.TaskError) else error


def started_under(death: WorkerDied | None, lease_id: int, caller: int | None = None) -> int:
    """The last task that a dead worker had begun under a lease; of an actor, for the caller whose mark is in the upper half of its numbers."""
    if death is None:
        return 0
    found = 0
    for lease, seq in ((death.lease_id, death.started_seq), *death.untaken):
        if lease == lease_id and seq > found and (caller is None or seq >> 32 == caller):
            found = seq
    return found


class TaskContext:
    """Who is running: names the children it makes. One for each executing task, one for a process's own root."""

    __slots__ = (
        "actor_id",
        "assigned",
        "attempt",
        "bound_for",
        "children",
        "depth",
        "job",
        "job_id",
        "lease",
        "loads_arguments",
        "name",
        "prefix",
        "puts",
        "repeats",
        "room",
        "task_id",
    )

    def __init__(self, task_id: bytes, attempt: int, prefix: bytes, depth: int, job_id: bytes, name: str) -> None:
        self.task_id = task_id
        self.attempt = attempt
        self.prefix = prefix  #: empty until the first child is named
        self.children = count(1)
        self.puts = count(1)
        self.depth = depth
        #: what templates of remote functions depend on: the depth, or (depth, group) in a task whose children go into its placement group
        self.bound_for: Any = depth
        self.job_id = job_id
        self.name = name
        self.lease: Any = None
        self.assigned: dict[str, list[int]] = {}
        self.actor_id = b""
        #: its arguments are being read: waiting for them lends no CPU, or ever more tasks would pin theirs
        self.loads_arguments = False
        self.room: Room | None = None  #: what it was let in by, if it had to wait for arguments
        self.repeats = False  #: it is a re-run: what it submits may have been made before
        self.job: Any = None  #: the executor's record of the task, which knows whether it was cancelled

    def enter_group(self, group: dict[str, Any]) -> None:
        """It runs in a placement group."""
        if group.get("capture"):
            self.bound_for = (self.depth, group["group_id"])


#: the task that runs in this thread or coroutine; None outside of tasks
running_task: ContextVar[TaskContext | None] = ContextVar("shoal_task", default=None)
