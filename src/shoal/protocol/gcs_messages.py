"""Messages between a node daemon and the GCS.

Purpose: the second table of frames; tags 100-129. Values inside (`ActorSpec`, `ActorState`) are those of `messages`.

Design: the node dials, says `Hello` (with its NodeID as the speaker) and `RegisterNode`; the GCS answers `NodeRegistered`. Rare things
are calls (`GcsCall` / `GcsAnswer`, listed below); what happens to actors is told by typed messages, each with the actor's
incarnation, so that news of a former life is recognized and dropped. The GCS answers a subscription with the present state at once
and then with every change; the version only grows, so a subscriber that reconnects ignores what it has seen.

When the GCS server has died and another one has read its tables, the node repeats what was not confirmed: a call until it is answered, its
number being the same (the GCS keeps the answers of calls that changed something until `GcsCall.settled` says that they arrived), news of
actors and trace events until `Acknowledged`. Then `NodeReport` says what lives there, and the GCS answers by StopActor what is not to
live any more, and by StartActor what was never told to begin.

Calls, with their bodies and answers (`?` marks what may be left out):

    gcs.actor_create    spec: ActorSpec, get_if_exists?: bool  -> actor_id, existing: ActorSpec | None   (ActorAlreadyExists)
    gcs.actor_by_name   name, namespace                        -> actor_id, spec: ActorSpec              (ActorNotFound)
    gcs.actor_kill      actor_id, no_restart: bool, incarnation? (none: the present one)  -> state: str  (ActorNotFound)
    gcs.actors_list     job_id?, state?, limit?                -> actors: list of records
    gcs.actor_story     actor_id                               -> story: list of lines                   (ActorNotFound)
    gcs.named_actors    namespace?: str (none: all of them)    -> actors: list of {name, namespace, actor_id}
    gcs.nodes                                                  -> nodes: list of records
    gcs.cluster_load    limit?                                 -> nodes (alive), total, available (units), demands: who waits, and why
    gcs.explain         actor_id | process, class_no           -> why: str, why it waits; "" when it does not wait at the GCS
    gcs.drain_node      node_id, reason?, deadline_s?          -> draining: bool            (NodeNotFound, NodeAway)
    gcs.leave           reason                                 -> {}: the node that asks is dead from now on
    gcs.register_job    job_id?, namespace, pid, config?       -> job_id   (a fresh one when none was given)
    gcs.end_job         job_id, reason?                        -> ended: bool
    gcs.jobs                                                   -> jobs: list of records
    gcs.function_put    function_id, code                      -> added: bool
    gcs.function_get    function_id                            -> code: bytes | None
    gcs.kv_put          namespace, key, value, overwrite?      -> added: bool    (keys and values are bytes)
    gcs.kv_get          namespace, key                         -> value: bytes | None
    gcs.kv_del          namespace, key, prefix?: bool          -> deleted: int
    gcs.kv_exists       namespace, key                         -> exists: bool
    gcs.kv_list         namespace, prefix                      -> keys: list of bytes
    gcs.group_create    spec: GroupSpec                        -> group_id                               (GroupAlreadyExists)
    gcs.group_remove    group_id                               -> state: str
    gcs.group_by_name   name, namespace                        -> a record                               (GroupNotFound)
    gcs.groups          group_id?                              -> groups: list of records
    gcs.task_events     limit?, job_id?                        -> events: list of records, oldest first; dropped: int
    gcs.statistics                                             -> one small record

A struct inside an untyped body arrives as a list; `msgspec.convert(body["spec"], ActorSpec)` makes it whole again.

How to extend: a struct with a free tag, listed in its union below; fields are only appended, with defaults.

What it does not do: carry object values or single tasks; the GCS sees batches.
"""

from __future__ import annotations

from typing import Any

import msgspec

from shoal.protocol.group_messages import GroupState
from shoal.protocol.messages import ActorSpec, ActorState, Hello, Message

#: channels of SubscribeKey
CHANNEL_ACTOR = "actor"  #: key: ActorID; answered by ActorChanged
CHANNEL_GROUP = "placement_group"  #: key: PlacementGroupID; answered by GroupChanged
CHANNEL_KV = "kv"  #: key: namespace in UTF-8, a zero byte, the key; answered by Published

#: what ActorState.death may say
DEATH_KILLED = "killed"  #: kill(actor)
DEATH_CONSTRUCTOR = "constructor"  #: the constructor failed; `creation_error` holds the exception
DEATH_UNSCHEDULABLE = "unschedulable"  #: no node can ever place it
DEATH_CRASHED = "crashed"  #: its worker died and no restarts were left
DEATH_EXITED = "exited"  #: it left by itself
DEATH_UNREFERENCED = "unreferenced"  #: the last handle went
DEATH_JOB_ENDED = "job_ended"
DEATH_GROUP_REMOVED = "placement_group_removed"  #: the placement group in which it lived
DEATH_FORGOTTEN = "forgotten"  #: the GCS does not know it, or not any more


class RegisterNode(Message, tag=100):
    """From a node: it lives, with `resources` in 1/10,000 units. `address` is where other nodes reach it (its local socket for now)."""

    node_id: bytes
    pid: int
    hostname: str
    address: str
    resources: dict[str, int]
    labels: dict[str, str] = {}
    session_dir: str = ""
    is_head: bool = False
    #: its number, when it had registered before; 0 for one that has none yet, and for the head
    node_no: int = 0
    #: what people call it; no two living nodes of a cluster have the same
    name: str = ""
    #: its clock, s since the epoch
    time_s: float = 0.0
    #: of the head, if the GCS has several shards: where the others listen, "tcp:HOST:PORT", by number from 1
    shards: list[str] = []
    #: of the head: where its GCS listens for other nodes; kept where a new head's nodes look for it
    gcs_address: str = ""


class NodeRegistered(Message, tag=101):
    """The answer to RegisterNode. `node_no` is the node's number for its life: the head's is 0, others count from 1 and are never used again. With
    `refused` the node may not join (its name is taken, it was declared dead): it ends, and says why."""

    gcs_pid: int
    node_no: int = 0
    refused: str = ""
    #: the GCS's clock, s since the epoch; 0 if it does not say
    time_s: float = 0.0
    #: where the other shards of the GCS listen, by number from 1
    shards: list[str] = []
    #: the GCS's storage, if a head elsewhere can go on with it: there its address is, when this one is gone
    storage: str = ""
    #: whether the tables outlive the head's session, so that it may come back
    is_kept: bool = False


class GcsCall(Message, tag=102):
    """A request for a rare thing; answered by GcsAnswer with the same number, which the caller chose and is not 0. A node's numbers grow and
    go on growing when it reconnects; it has the answers of all up to `settled`."""

    request: int
    method: str
    body: dict[str, Any]
    settled: int = 0


class GcsAnswer(Message, tag=103):
    """The answer to a GcsCall; `error` is empty or [kind, text]. Request 0 explains why the GCS closes the connection."""

    request: int
    body: Any
    error: list[str] = []


class StartActor(Message, tag=104):
    """To a node: place and construct this actor, after `delay_s` (its constructor crashed before). Answered by ActorWorkerStarted and
    then ActorConstructed, or by ActorPlacementRefused, or by ActorWorkerDied. While it waits for resources nothing is said. With incarnation 0
    it is to live elsewhere, and this node (the head) only holds what its constructor needs again."""

    actor_id: bytes
    incarnation: int
    spec: ActorSpec
    delay_s: float = 0.0
    moves: int = 0  #: incarnations that ended by moving: no restarts

    def may_restart(self) -> bool:
        """Whether the actor has another life if this one ends."""
        return self.spec.max_restarts < 0 or self.incarnation - 1 - self.moves < self.spec.max_restarts


class StopActor(Message, tag=105):
    """To a node: end this life of the actor, placed or still waiting for a place. With `kill` at once, otherwise the worker
    finishes what is queued and leaves (TerminateActor). Answered by ActorWorkerDied if it had a worker."""

    actor_id: bytes
    incarnation: int
    kill: bool
    reason: str


class ActorChanged(Message, tag=106):
    """To a node that subscribed to the actor: its state now. `version` grows with every change."""

    version: int
    state: ActorState


class Published(Message, tag=107):
    """To a node that subscribed to the key: its value now, None when there is none."""

    channel: str
    key: bytes
    version: int
    value: bytes | None


class ActorWorkerStarted(Message, tag=108):
    """From a node: the actor has a worker that now runs its constructor; calls will be pushed to `address` under `lease_id`."""

    actor_id: bytes
    incarnation: int
    worker_id: bytes
    address: str
    pid: int
    lease_id: int


class ActorConstructed(Message, tag=109):
    """From a node: the constructor returned, or failed with `error` (a serialized exception); `cause` if it was not called."""

    actor_id: bytes
    incarnation: int
    error: bytes = b""
    cause: str = ""


class ActorPlacementRefused(Message, tag=110):
    """From a node: it can never place this actor: what was asked, what there is. `drains`: because it takes nothing new; others may."""

    actor_id: bytes
    incarnation: int
    reason: str
    drains: bool = False


class ActorWorkerDied(Message, tag=111):
    """From a node: the worker of this life of the actor has ended. `intended` when it left by itself (exit_actor, TerminateActor):
    then the actor is not restarted. `moved` when it left with a node that drains: it begins elsewhere, which is no restart."""

    actor_id: bytes
    incarnation: int
    cause: str
    intended: bool = False
    exit_code: int = 0
    moved: bool = False


class ActorRefsGone(Message, tag=112):
    """From a node: no process of it holds a handle of the actor any more, and no message there carries one."""

    actor_id: bytes


class SubscribeKey(Message, tag=113):
    """From a node: send the state of `key` now and whenever it changes. Subscriptions end with the connection, and an actor's with its
    death."""

    channel: str
    key: bytes


class TaskEventBatch(Message, tag=114):
    """From a node: `count` trace events of the process `sender`. Batches of a sender are numbered from 1 by `seq`; a repeated batch is
    ignored. `events` is as in TaskEvents: the GCS stores it unread."""

    sender: bytes
    seq: int
    pid: int
    node_id: bytes
    job_id: bytes
    count: int
    events: bytes


class ActorLife(msgspec.Struct, array_like=True, omit_defaults=False):
    """One life of an actor on a node; `worker_id` is empty while it waits for a worker."""

    actor_id: bytes
    incarnation: int
    worker_id: bytes = b""
    address: str = ""
    pid: int = 0
    lease_id: int = 0
    constructed: bool = False


class BundleLife(msgspec.Struct, array_like=True, omit_defaults=False):
    """A bundle of a placement group that is reserved on a node."""

    group_id: bytes
    index: int
    attempt: int
    committed: bool


class NodeReport(Message, tag=115):
    """From a node, once after every RegisterNode and after what it repeats: all actors that live or wait for a worker there, and all bundles."""

    lives: list[ActorLife]
    bundles: list[BundleLife] = []


class Acknowledged(Message, tag=116):
    """To a node: what the first `count` reports of this connection (news of actors, trace events) changed is stored."""

    count: int


class NodeLoad(Message, tag=117):
    """From a node, every HEARTBEAT_S and sooner when it matters: what is free there, and who waits. It is the heartbeat, answered by
    HeartbeatAcknowledged. `waiting` lists (demand, how many), `task_time_s` is the exponential average over the node's leases."""

    count: int  #: of heartbeats of this connection
    available: dict[str, int]
    total: dict[str, int]
    waiting: list[tuple[dict[str, int], int]] = []
    task_time_s: float = 0.0
    store_used_bytes: int = 0
    draining: bool = False
    actors: int = 0  #: that live or wait there
    held: dict[str, int] = {}  #: by actors and bundles, which do not end as tasks do


class HeartbeatAcknowledged(Message, tag=118):
    """To a node: heartbeat number `count` was heard."""

    count: int


class NodeEntry(msgspec.Struct, array_like=True, omit_defaults=False):
    """One node as the others see it."""

    node_id: bytes
    node_no: int
    address: str  #: "tcp:HOST:PORT"
    hostname: str
    total: dict[str, int]
    labels: dict[str, str]
    alive: bool
    is_head: bool = False
    draining: bool = False
    cause: str = ""  #: why it is dead
    name: str = ""


class ClusterNodes(Message, tag=119):
    """To every node, at registration (all that live, and those that died lately) and at every change (those that changed)."""

    version: int
    nodes: list[NodeEntry]


class PlaceLeases(Message, tag=120):
    """From a node: `backlog` tasks of a class of its process `process` are to run somewhere. Repeats replace what was said before; 0 takes it back.
    `locality` gives the bytes of its inputs by NodeID. Answered by LeasesPlaced, now or when there is room. A shard other than 0, which nobody tells
    of deaths, may have named nodes that are `dead`."""

    process: bytes
    class_no: int
    job_id: bytes
    demand: dict[str, int]
    backlog: int
    strategy: dict[str, Any] = {}
    locality: dict[bytes, int] = {}
    name: str = ""
    dead: list[bytes] = []


class LeasesPlaced(Message, tag=121):
    """To a node: ask these nodes for so many leases of the class; the backlog of PlaceLeases goes down by their sum. With `queued` these nodes have
    no room: the leases are to wait in their queues besides, until there is room somewhere, and the backlog stays. With `refused` no node of the
    cluster can ever run it: what was asked, what there is."""

    process: bytes
    class_no: int
    placements: list[tuple[bytes, int]]
    refused: str = ""
    queued: bool = False


class ReserveBundle(Message, tag=122):
    """To a node: reserve `resources` for bundle `index` of a placement group (first phase). Answered by BundleReserved, within a bounded time: the
    node waits a little for what its tasks hold. Attempts of a bundle are numbered from 1; a higher one ends the lower."""

    group_id: bytes
    index: int
    attempt: int
    resources: dict[str, int]
    job_id: bytes = b""


class BundleReserved(Message, tag=123):
    """From a node: whether the bundle is reserved."""

    group_id: bytes
    index: int
    attempt: int
    done: bool
    reason: str = ""


class CommitBundle(Message, tag=124):
    """To a node: the group is placed as a whole; the bundle's resources may be used (second phase)."""

    group_id: bytes
    index: int
    attempt: int


class ReturnBundle(Message, tag=125):
    """To a node: give the bundle's resources back; what runs in it ends. With `removed` the whole group is gone."""

    group_id: bytes
    index: int
    attempt: int
    reason: str
    removed: bool = False


class GroupSpec(msgspec.Struct, array_like=True, omit_defaults=False):
    """All that makes a placement group. `rules` has the rules about labels of each bundle, or is empty."""

    group_id: bytes
    job_id: bytes
    name: str
    namespace: str
    strategy: str  #: PACK, SPREAD, STRICT_PACK or STRICT_SPREAD
    bundles: list[dict[str, int]]
    rules: list[list[tuple[str, str, list[str]]]] = []
    detached: bool = False


class GroupChanged(Message, tag=128):
    """To a node that subscribed to a placement group: its state now. `version` grows with every change."""

    version: int
    state: GroupState


class DrainNode(Message, tag=126):
    """To a node: take no new work and leave when what runs has ended, at the latest after `deadline_s`."""

    reason: str
    deadline_s: float


#: what the GCS accepts
ToGcs = (
    Hello
    | RegisterNode
    | GcsCall
    | ActorWorkerStarted
    | ActorConstructed
    | ActorPlacementRefused
    | ActorWorkerDied
    | ActorRefsGone
    | SubscribeKey
    | TaskEventBatch
    | NodeReport
    | NodeLoad
    | PlaceLeases
    | BundleReserved
)
#: what the GCS sends
FromGcs = (
    NodeRegistered
    | GcsAnswer
    | StartActor
    | StopActor
    | ActorChanged
    | Published
    | Acknowledged
    | HeartbeatAcknowledged
    | ClusterNodes
    | LeasesPlaced
    | ReserveBundle
    | CommitBundle
    | ReturnBundle
    | GroupChanged
    | DrainNode
)
#: what the GCS sends unasked
GcsPush = (
    StartActor
    | StopActor
    | ActorChanged
    | Published
    | HeartbeatAcknowledged
    | ClusterNodes
    | LeasesPlaced
    | ReserveBundle
    | CommitBundle
    | ReturnBundle
    | GroupChanged
    | DrainNode
)
