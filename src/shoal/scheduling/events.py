"""What happens to the local scheduler, and what it wants done: the conversation between the machine and its shell.

Purpose: the interface of `LocalScheduler`. Events are in the past tense, effects in the imperative.

Design: slots dataclasses; the shell translates messages to events one to one, and effects to messages:

    RequestLeases -> LeasesRequested ...... GrantLease  -> LeaseStarted (worker), then LeaseGranted (submitter)
                                            RefuseClass -> LeasesUnschedulable
    ReturnLease   -> LeaseReturned ........ RevokeLease -> RevokeLease to the worker, answered by LeaseFinished
    Register      -> WorkerReady .......... StartWorkers, answered by `count` times WorkerReady or WorkerStartFailed
    pidfd         -> WorkerDied ........... StopWorker, answered by WorkerDied
    CreateActor   -> ActorPlacementRequested ...... AssignActor -> LeaseStarted, BecomeActor; RefuseActor
    DrainNode     -> NodeDrains ........... RefuseClass, RefuseActor and RevokeLease for all there are
    ReserveBundle -> BundleRequested ...... BundleDone -> BundleReserved
    ReturnBundle  -> BundleReturned ....... KillWorker, answered by WorkerDied

Amounts are in 1/10,000 units (`protocol.resources`), times in seconds of one monotonic clock.

What it does not do: anything.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from shoal.protocol.resources import Assigned, Resources

Environment = dict[str, Any]


def environment_key_of(environment: Environment) -> str:
    """The name of an environment: workers serve only requests whose key is their own; "" is the plain one."""
    return json.dumps(environment, sort_keys=True, default=repr) if environment else ""


# ---------------------------------------------------------------- events


@dataclass(slots=True)
class LeasesRequested:
    """Process `process` has `backlog` tasks of class `class_no` that wait for workers.

    Every grant counts as one of the backlog. A repeat replaces what was said before; 0 withdraws. When a lease ends and its
    tasks bounce, it is for `process` to say its new backlog.
    """

    process: bytes
    class_no: int
    job_id: bytes
    demand: Resources
    depth: int
    backlog: int
    strategy: dict[str, Any] = field(default_factory=dict)
    environment: Environment = field(default_factory=dict)
    name: str = ""
    task_s: float = 0.0  #: how long one takes on average; 0: not known


@dataclass(slots=True)
class LeaseReturned:
    """The submitter needs the lease no more, and has not used it for `idle_s`. The worker finishes it (RevokeLease) before others get it."""

    lease_id: int
    idle_s: float = 0.0


@dataclass(slots=True)
class LeaseFinished:
    """The worker says that nothing of the lease runs; with `exiting` its process leaves and is never used again. `used`: something has run."""

    lease_id: int
    exiting: bool = False
    used: bool = True


@dataclass(slots=True)
class WorkerReady:
    """A worker process has registered and can take a lease."""

    worker_id: bytes
    environment_key: str = ""


@dataclass(slots=True)
class WorkerDied:
    """A worker that had registered is dead, whatever it was doing. For one that had not: WorkerStartFailed."""

    worker_id: bytes


@dataclass(slots=True)
class WorkerStartFailed:
    """One worker asked for did not come up: it died before it registered, or took longer than WORKER_START_TIMEOUT_S."""

    environment_key: str
    reason: str


@dataclass(slots=True)
class ProcessDied:
    """A submitter (driver or worker) is dead: its requests vanish, its leases are revoked. For a worker: WorkerDied too."""

    process: bytes


@dataclass(slots=True)
class WorkerBlocked:
    """The lease's (or actor's) only running task waits in get or wait: its CPUs may be lent."""

    lease_id: int


@dataclass(slots=True)
class WorkerUnblocked:
    """The task goes on at once."""

    lease_id: int


@dataclass(slots=True)
class ActorPlacementRequested:
    """An actor needs a worker of its own: `placement` must be free at that time, `demand` is held while it lives."""

    actor_id: bytes
    incarnation: int
    job_id: bytes
    placement: Resources
    demand: Resources
    strategy: dict[str, Any] = field(default_factory=dict)
    environment: Environment = field(default_factory=dict)
    name: str = ""


@dataclass(slots=True)
class ActorPlacementWithdrawn:
    """The actor needs no worker any more. (One that has its worker ends by WorkerDied.)"""

    actor_id: bytes


@dataclass(slots=True)
class NodeDrains:
    """The node is to leave its cluster: nothing new is granted, and what runs is the last."""

    reason: str


@dataclass(slots=True)
class BundleRequested:
    """A bundle of a placement group is to be reserved, within RESERVE_WAIT_S: answered by BundleDone. A higher attempt ends the lower one."""

    group_id: bytes
    index: int
    attempt: int
    job_id: bytes
    resources: Resources


@dataclass(slots=True)
class BundleCommitted:
    """What is reserved of the bundle may be used."""

    group_id: bytes
    index: int
    attempt: int


@dataclass(slots=True)
class BundleReturned:
    """The bundle is not to be here (any more): what runs in it ends. With `removed` its group is gone."""

    group_id: bytes
    index: int
    attempt: int
    reason: str
    removed: bool = False


@dataclass(slots=True)
class Tick:
    """Time has passed: to be sent when `LocalScheduler.tick_at` is reached."""


Event = (
    LeasesRequested
    | LeaseReturned
    | LeaseFinished
    | WorkerReady
    | WorkerDied
    | WorkerStartFailed
    | ProcessDied
    | WorkerBlocked
    | WorkerUnblocked
    | ActorPlacementRequested
    | ActorPlacementWithdrawn
    | NodeDrains
    | BundleRequested
    | BundleCommitted
    | BundleReturned
    | Tick
)


# ---------------------------------------------------------------- effects


@dataclass(slots=True)
class GrantLease:
    """Tell the worker (LeaseStarted), then the submitter (LeaseGranted)."""

    process: bytes
    class_no: int
    lease_id: int
    worker_id: bytes
    job_id: bytes
    demand: Resources
    assigned: Assigned
    environment: Environment
    depth: int
    group: dict[str, Any] = field(default_factory=dict)  #: the strategy that put it into a placement group, if one did


#: why a lease is revoked
REVOKED_SLICE = "others wait"
REVOKED_RETURNED = "returned"
REVOKED_SUBMITTER_DIED = "submitter died"
REVOKED_DRAINING = "the node drains"


@dataclass(slots=True)
class RevokeLease:
    """Tell the worker to bounce what has not started, finish what runs, and answer LeaseFinished.

    `reason` is one of the REVOKED_ constants.
    """

    worker_id: bytes
    lease_id: int
    reason: str


@dataclass(slots=True)
class RefuseClass:
    """The class can never run on this node; it is forgotten. `kind` as in LeasesUnschedulable."""

    process: bytes
    class_no: int
    reason: str
    kind: str = ""


@dataclass(slots=True)
class StartWorkers:
    """Start `count` workers for `environment`."""

    environment_key: str
    environment: Environment
    count: int


@dataclass(slots=True)
class StopWorker:
    """Ask an idle worker to leave; it gets no lease any more."""

    worker_id: bytes
    reason: str


@dataclass(slots=True)
class AssignActor:
    """Make `worker_id` the actor's own worker: LeaseStarted, then BecomeActor."""

    actor_id: bytes
    incarnation: int
    lease_id: int
    worker_id: bytes
    job_id: bytes
    demand: Resources
    assigned: Assigned
    environment: Environment
    group: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class RefuseActor:
    """The actor can never run on this node; it is forgotten."""

    actor_id: bytes
    incarnation: int
    reason: str


@dataclass(slots=True)
class BundleDone:
    """The bundle is reserved, or could not be for `reason`."""

    group_id: bytes
    index: int
    attempt: int
    done: bool
    reason: str = ""


@dataclass(slots=True)
class KillWorker:
    """Its bundle is gone: end the worker at once, whatever it runs. Answered by WorkerDied."""

    worker_id: bytes
    lease_id: int
    reason: str
    group_removed: bool


Effect = (
    GrantLease
    | RevokeLease
    | RefuseClass
    | StartWorkers
    | StopWorker
    | AssignActor
    | RefuseActor
    | BundleDone
    | KillWorker
)
