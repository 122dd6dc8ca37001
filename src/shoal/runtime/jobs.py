"""The executor's nouns: leases held, templates bound, submitters, jobs.

Plain records without behaviour of their own; who writes them is said with each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shoal.protocol.messages import (
    KIND_ACTOR_CALL,
    NUM_RETURNS_STREAMING,
    READ_ONLY,
    LeaseStarted,
    Many,
    TaskTemplate,
    Value,
)

if TYPE_CHECKING:
    from shoal.runtime.arguments import Room
    from shoal.runtime.objects import ObjectEntry
    from shoal.runtime.reactor import Connection, Waiter

UNREAD_REPLIES_MAX = 64  #: messages with replies that are kept until the submitter has read them
#: what every actor has and no state depends on
_UNRECORDED = frozenset({"__ray_ready__", "__shoal_ready__", "__ray_terminate__", "__shoal_terminate__"})
SLOW_TASK_S = 100e-6  #: replies leave before and after a task that takes longer


class HeldLease:
    """A lease under which this worker runs tasks. Written under the reactor's lock."""

    __slots__ = ("blocked", "connection", "is_actor", "lease_id", "revoked", "rooms", "started")

    def __init__(self, started: LeaseStarted) -> None:
        self.blocked = 0  #: waits that lend its CPUs now
        self.rooms: list[Room] = []  #: of tasks that run and had to wait for their arguments
        self.lease_id = started.lease_id
        self.started = started
        self.revoked = False
        self.is_actor = False
        self.connection: Connection | None = None  #: the submitter's, once it pushed


class BoundTemplate:
    """A template as its executor knows it."""

    __slots__ = (
        "estimate_s",
        "function",
        "is_call",
        "num_returns",
        "outlives",
        "recorded",
        "resume_from",
        "tail",
        "wanted",
        "wire",
    )

    def __init__(self, wire: TaskTemplate) -> None:
        self.wire = wire
        self.function: Callable[..., Any] | None = None
        self.num_returns = wire.num_returns
        self.is_call = wire.kind == KIND_ACTOR_CALL
        #: of an actor with checkpoints: whether a call may change its state
        self.recorded = not wire.options.get(READ_ONLY) and wire.method not in _UNRECORDED
        #: of a re-run: the ids of the objects that are to be made anew
        self.wanted: frozenset[bytes] | None = frozenset(wire.options["wanted"]) if "wanted" in wire.options else None
        #: of a generator that is retried: how many items its consumer has had
        self.resume_from = 0 if self.wanted is not None else int(wire.options.get("resume_from", 0))
        #: whether its results are published here should the submitter die: not a stream's, which ends then, nor a re-run's, which are not all there
        self.outlives = wire.num_returns != NUM_RETURNS_STREAMING and self.wanted is None
        #: stands behind the ids of its tasks among the replies: how many results there are, if there are several
        self.tail = wire.num_returns.to_bytes(4, "big") if wire.num_returns > 1 else b""
        #: of what has never run here nobody knows that it is quick, or whether it ends its process: replies leave before it
        self.estimate_s = 2 * SLOW_TASK_S


class SubmitterPeer:
    """What a worker knows of one process that pushes to it. Attached to the connection."""

    __slots__ = (
        "abroad",
        "busy_s",
        "first_reply_at",
        "functions",
        "lease_id",
        "read",
        "replies",
        "task_ids",
        "templates",
        "unread",
        "worker_id",
    )

    def __init__(self) -> None:
        self.worker_id = b""
        self.abroad = False  #: on another node
        self.templates: dict[int, BoundTemplate] = {}
        self.functions: set[bytes] = set()  #: that it has sent and may call
        self.replies: list[tuple[int, Value | Many]] = []
        self.task_ids: list[
            bytes
        ] = []  #: of the replies, each with its template's `tail`; empty for what does not outlive the submitter
        #: what was sent and may not have been read: should the submitter be dead, this worker publishes it
        self.unread: deque[tuple[list[tuple[int, Value | Many]], list[bytes]]] = deque(maxlen=UNREAD_REPLIES_MAX)
        self.read = 0  #: how many messages with replies were read, or dropped from `unread`
        self.lease_id = 0  #: of the gathered replies
        self.busy_s = 0.0
        self.first_reply_at = 0.0

    def has_read(self, count: int) -> None:
        """The submitter has had `count` messages with replies."""
        unread = self.unread
        while self.read < count and unread:
            unread.popleft()
            self.read += 1


class Job:
    """One pushed task on its way through the worker."""

    __slots__ = (
        "args",
        "attempt",
        "cancelled",
        "connection",
        "credit",
        "deps",
        "held",
        "held_lease",
        "seq",
        "task_id",
        "template",
        "untold",
        "waiter",
    )

    def __init__(self, connection: Connection, held_lease: HeldLease, template: BoundTemplate, item: Any) -> None:
        self.seq, _, self.task_id, self.attempt, self.args, self.deps = item
        self.connection = connection
        self.held_lease = held_lease
        self.template = template
        self.held: list[ObjectEntry] | None = None  #: what a call's arguments refer to, until it is answered
        self.cancelled = False
        self.untold: list[bytes] | None = None  #: what was stored for it, and its submitter was not told of
        self.credit = 0  #: items of its stream that the consumer has taken
        self.waiter: Waiter | None = None  #: the producer, waiting for credit
