"""The lives of actors: pending, alive, restarting, dead.

Purpose: decide, for every actor, whether it is to be constructed, restarted, stopped or remembered as dead, and tell those concerned.

Design: one pure machine, one door: `handle(event, now) -> list[Effect]`. Events are what nodes report (the messages of `gcs_messages`
themselves) and what the shard asks (`ActorRequested`, `ActorKillAsked`, `JobEnded`, `NodeJoined`, `NodeReported`, `NodeLost`). What may
follow what is `TRANSITIONS`, literal data; an event that has no place in the actor's state, or that speaks of a former life, is written into
the actor's story and otherwise ignored, because nodes repeat themselves after a reconnect.

    ActorRequested -> PENDING --constructed--> ALIVE
                        |  ^                     |  worker died, restarts left
                        |  |                     v
                        |  |      constructed RESTARTING (incarnation + 1; its worker may die again)
                        |  |                     |
                        +--+---------------------+-- failed, refused, killed, exited, unreferenced, job ended --> DEAD

A process that dies in the actor's constructor again and again is restarted at growing intervals (`restart_delay_s`; the node waits).
The interval belongs to the life, not to the place: one that is moved or sent again meanwhile waits only for what is left of it.

*Where* a life goes, a function says that the manager is made with (`Where`): a node, nowhere for now, or a refusal. A life without a node is
offered again when `PlacingMayWork`, or a node joins or dies. `ActorMoved` takes a life that waits on one node to another.

An incarnation is one life at one place, numbered from 1: a life that is moved before it began gets a new number, so that no report of its former
place counts (it may come back there). A graceful stop (the last handle went) leaves the state alone until the worker is gone, but takes
the actor's name away at once and forbids a restart.

A GCS server that read its tables from storage does not know what it had told the nodes. `NodeReported` brings both together: what lives on the
node and may, goes on; what may not is stopped; what should live there and does not is started, or restarted.

How to extend: an event gets a row in `_HANDLERS`; if it changes the state, a trigger in `TRANSITIONS`.

What it does not do: choose nodes (`global_scheduler`), find workers (the node does),
send (the shell does), know objects. Counting handles over several nodes is not here yet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from shoal.protocol.gcs_messages import (
    DEATH_CONSTRUCTOR,
    DEATH_CRASHED,
    DEATH_EXITED,
    DEATH_FORGOTTEN,
    DEATH_GROUP_REMOVED,
    DEATH_JOB_ENDED,
    DEATH_KILLED,
    DEATH_UNREFERENCED,
    DEATH_UNSCHEDULABLE,
    ActorConstructed,
    ActorLife,
    ActorPlacementRefused,
    ActorRefsGone,
    ActorWorkerDied,
    ActorWorkerStarted,
    StartActor,
    StopActor,
)
from shoal.protocol.limits import ACTORS_DEAD_MAX, RESTART_DELAY_MAX_S, RESTART_DELAY_S, STORY_LINES_MAX
from shoal.protocol.messages import ActorSpec, ActorState
from shoal.protocol.strategies import KIND, PLACEMENT_GROUP

PENDING = "pending"
ALIVE = "alive"
RESTARTING = "restarting"
DEAD = "dead"

#: state -> trigger -> next state. What is not listed is ignored (and noted in the story).
TRANSITIONS: dict[str, dict[str, str]] = {
    PENDING: {
        "worker_started": PENDING,
        "constructed": ALIVE,
        "restart": RESTARTING,
        "end": DEAD,
    },
    ALIVE: {
        "restart": RESTARTING,
        "end": DEAD,
    },
    RESTARTING: {
        "worker_started": RESTARTING,
        "constructed": ALIVE,
        "restart": RESTARTING,
        "end": DEAD,
    },
    DEAD: {},
}


class InvalidTransitionError(AssertionError):
    """The machine itself asked for a change that `TRANSITIONS` does not have; carries the actor's story."""


# ---------------------------------------------------------------- events that are not messages of a node


@dataclass(slots=True)
class ActorRequested:
    """A new actor; its name was free (`find`) and its id unknown. `node_id` is the node that asked: it is tried first."""

    spec: ActorSpec
    node_id: bytes


@dataclass(slots=True)
class ActorRequestedAgain:
    """The creator was replayed on another node, `home`: that counts the handles now."""

    actor_id: bytes
    home: bytes


@dataclass(slots=True)
class ActorKillAsked:
    """kill(actor). Without `no_restart` only one life ends: the present one, or `incarnation` (0 for any) if that is the present one."""

    actor_id: bytes
    no_restart: bool
    incarnation: int = 0


@dataclass(slots=True)
class JobEnded:
    """A job is over: its actors die, detached ones stay."""

    job_id: bytes
    reason: str


@dataclass(slots=True)
class GroupRemoved:
    """A placement group is gone: the actors in it die, detached ones too."""

    group_id: bytes
    reason: str


@dataclass(slots=True)
class ActorMoved:
    """An actor that waits for a worker on one node is to begin on another one."""

    actor_id: bytes
    node_id: bytes


@dataclass(slots=True)
class PlacingMayWork:
    """What had no place may have one now."""


@dataclass(slots=True)
class NodeJoined:
    """A node can take actors."""

    node_id: bytes


@dataclass(slots=True)
class NodeReported:
    """What lives on a node that joined; said once after joining, after the news that it had kept."""

    node_id: bytes
    lives: list[ActorLife]


@dataclass(slots=True)
class NodeLost:
    """A node is dead, with all that ran there."""

    node_id: bytes
    cause: str


Event = (
    ActorRequested
    | ActorRequestedAgain
    | ActorKillAsked
    | JobEnded
    | GroupRemoved
    | ActorMoved
    | PlacingMayWork
    | NodeJoined
    | NodeReported
    | NodeLost
    | ActorWorkerStarted
    | ActorConstructed
    | ActorPlacementRefused
    | ActorWorkerDied
    | ActorRefsGone
)


# ---------------------------------------------------------------- effects


@dataclass(slots=True)
class SendToNode:
    """Tell a node."""

    node_id: bytes
    message: StartActor | StopActor


@dataclass(slots=True)
class AnnounceActor:
    """Tell the actor's subscribers; after a `final` announcement nothing more comes."""

    version: int
    state: ActorState
    final: bool


@dataclass(slots=True)
class StoreActor:
    """Make the record durable before anything else of this batch is done; None deletes it."""

    actor_id: bytes
    record: ActorRecord | None


Effect = SendToNode | AnnounceActor | StoreActor

#: (spec, the node that asked or where it was, whether to stay there if possible, now) -> (the node, or b"" for none now; why there can be none ever)
Where = Callable[[ActorSpec, bytes, bool, float], tuple[bytes, str]]


class ActorRecord(msgspec.Struct):
    """One actor, as the GCS knows it. Written by `ActorManager` alone."""

    spec: ActorSpec
    state: str
    incarnation: int  #: number of the present life, from 1
    created_s: float
    changed_s: float
    version: int = 0  #: grows with every announcement
    node_id: bytes = b""  #: where this life was sent, empty while no node is known
    worker_id: bytes = b""  #: empty until the node reports a worker of this life
    address: str = ""
    pid: int = 0
    lease_id: int = 0
    stopping: str = ""  #: why it drains: no restart after this, and the name is free
    cause: str = ""
    death: str = ""
    creation_error: bytes = b""
    waits: str = ""  #: why there is no node for its next life
    stillborn: int = 0  #: lives in a row whose process died before the constructor had returned
    moves: int = 0  #: how many incarnations ended by moving before they began
    begins_s: float = 0.0  #: the present life does not begin before

    @property
    def restarts(self) -> int:
        """How often it began anew."""
        return self.incarnation - 1 - self.moves

    def wire_state(self) -> ActorState:
        """What subscribers are told."""
        return ActorState(
            actor_id=self.spec.actor_id,
            state=self.state,
            incarnation=self.incarnation,
            lease_id=self.lease_id,
            worker_id=self.worker_id,
            address=self.address,
            pid=self.pid,
            cause=self.cause,
            creation_error=self.creation_error,
            death=self.death,
            node_id=self.node_id,
        )

    def row(self) -> dict[str, Any]:
        """What listings show."""
        spec = self.spec
        return {
            "actor_id": spec.actor_id,
            "class_name": spec.class_name,
            "state": self.state,
            "job_id": spec.job_id,
            "name": spec.name,
            "namespace": spec.namespace,
            "node_id": self.node_id,
            "worker_id": self.worker_id,
            "pid": self.pid,
            "restarts": self.restarts,
            "max_restarts": spec.max_restarts,
            "detached": spec.detached,
            "demand": spec.demand,
            "created_s": self.created_s,
            "changed_s": self.changed_s,
            "death": self.death,
            "cause": self.cause,
            "waits": self.waits,
        }


class ActorManager:
    """All actors of the cluster. Queries are free; only `handle` changes anything."""

    __slots__ = ("_actors", "_dead", "_names", "_nodes", "_stories", "_unreported", "_where")

    def __init__(self, where: Where) -> None:
        self._where = where
        #: every actor that lives, and the last ACTORS_DEAD_MAX dead ones
        self._actors: dict[bytes, ActorRecord] = {}
        #: ids of dead actors, oldest first; each is a key of `_actors`
        self._dead: deque[bytes] = deque()
        #: (namespace, name) of each named actor that is neither dead nor stopping
        self._names: dict[tuple[str, str], bytes] = {}
        #: nodes that take actors, in the order of joining
        self._nodes: dict[bytes, None] = {}
        #: nodes of `_nodes` that have not reported yet: what was sent there since they joined, actor id -> incarnation
        self._unreported: dict[bytes, dict[bytes, int]] = {}
        #: what happened to each actor of `_actors`: (time in s since the epoch, line)
        self._stories: dict[bytes, deque[tuple[float, str]]] = {}

    # ------------------------------------------------------------ queries

    def get(self, actor_id: bytes) -> ActorRecord | None:
        """The record of an actor, None if unknown or forgotten."""
        return self._actors.get(actor_id)

    def find(self, namespace: str, name: str) -> ActorRecord | None:
        """The actor that holds a name."""
        actor_id = self._names.get((namespace, name))
        return None if actor_id is None else self._actors[actor_id]

    def state_of(self, actor_id: bytes) -> tuple[int, ActorState]:
        """Version and state for a new subscriber. An unknown actor is dead."""
        record = self._actors.get(actor_id)
        if record is not None:
            return record.version, record.wire_state()
        cause = "the GCS does not know this actor: it died long ago, or belongs to another cluster"
        return 0, ActorState(actor_id, DEAD, 0, 0, b"", "", 0, cause, b"", DEATH_FORGOTTEN)

    def records(self) -> list[ActorRecord]:
        """All actors, oldest first."""
        return list(self._actors.values())

    def names(self) -> list[tuple[str, str, bytes]]:
        """(namespace, name, actor id) of all named actors, in the order of naming."""
        return [(namespace, name, actor_id) for (namespace, name), actor_id in self._names.items()]

    def story(self, actor_id: bytes) -> list[str]:
        """The last STORY_LINES_MAX things that happened to an actor, oldest first; empty if unknown."""
        return [f"{at_s:.6f} {line}" for at_s, line in self._stories.get(actor_id, ())]

    def statistics(self) -> dict[str, int]:
        """How many actors there are in each state."""
        counts = dict.fromkeys(TRANSITIONS, 0)
        for record in self._actors.values():
            counts[record.state] += 1
        return counts

    # ------------------------------------------------------------ the door

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in what happened at `now` (s since the epoch); what to do about it, in this order."""
        effects: list[Effect] = []
        _HANDLERS[type(event)](self, event, now, effects)
        return effects

    def restore(self, record: ActorRecord) -> None:
        """Put back a record read from storage; before the first event."""
        actor_id = record.spec.actor_id
        self._actors[actor_id] = record
        self._stories[actor_id] = deque(maxlen=STORY_LINES_MAX)
        if record.state == DEAD:
            self._dead.append(actor_id)
        elif record.spec.name and not record.stopping:
            self._names[record.spec.namespace, record.spec.name] = actor_id

    # ------------------------------------------------------------ events

    def _on_requested(self, event: ActorRequested, now: float, effects: list[Effect]) -> None:
        spec = event.spec
        assert spec.actor_id not in self._actors, f"actor {spec.actor_id.hex()} was requested twice"
        record = ActorRecord(spec, PENDING, 1, now, now, node_id=event.node_id)
        self._actors[spec.actor_id] = record
        self._stories[spec.actor_id] = deque(maxlen=STORY_LINES_MAX)
        if spec.name:
            assert (spec.namespace, spec.name) not in self._names, f"the name {spec.name!r} is taken"
            self._names[spec.namespace, spec.name] = spec.actor_id
        self._note(record, now, f"requested: {spec.class_name}")
        self._place(record, False, now, effects)

    def _on_requested_again(self, event: ActorRequestedAgain, now: float, effects: list[Effect]) -> None:
        record = self._actors[event.actor_id]
        if record.state == DEAD or record.spec.home == event.home:
            return
        record.spec.home = event.home
        self._note(record, now, f"its creator goes on at node {event.home.hex()[:8]}")
        effects.append(StoreActor(event.actor_id, record))

    def _on_worker_started(self, event: ActorWorkerStarted, now: float, effects: list[Effect]) -> None:
        record = self._live(event.actor_id, event.incarnation, "worker_started", now)
        if record is None:
            return
        record.worker_id, record.address = event.worker_id, event.address
        record.pid, record.lease_id = event.pid, event.lease_id
        self._move(record, "worker_started", now, f"worker {event.worker_id.hex()[:8]} pid {event.pid}")
        self._announce(record, effects)

    def _on_constructed(self, event: ActorConstructed, now: float, effects: list[Effect]) -> None:
        record = self._live(event.actor_id, event.incarnation, "constructed", now)
        if record is None:
            return
        if event.error:
            record.creation_error = event.error
            recovered = record.spec.takes_checkpoints and record.restarts
            cause = "its state could not be recovered" if recovered else "its constructor raised an exception"
            self._end(record, DEATH_CONSTRUCTOR, event.cause or cause, now, effects)
            return
        record.stillborn = 0
        self._move(record, "constructed", now, "constructed")
        self._announce(record, effects)

    def _on_refused(self, event: ActorPlacementRefused, now: float, effects: list[Effect]) -> None:
        record = self._live(event.actor_id, event.incarnation, "end", now)
        if record is None:
            return
        if event.drains or record.spec.strategy.get(KIND) == PLACEMENT_GROUP:
            # Its node is about to go, or its bundle has just moved: `where` knows, or refuses for good.
            self._place(record, False, now, effects)
        else:
            self._end(record, DEATH_UNSCHEDULABLE, event.reason, now, effects)

    def _on_worker_died(self, event: ActorWorkerDied, now: float, effects: list[Effect]) -> None:
        record = self._live(event.actor_id, event.incarnation, "end", now)
        if record is not None:
            if event.moved:
                record.moves += 1
            self._lose_worker(record, event.cause, event.intended, now, effects)

    def _on_refs_gone(self, event: ActorRefsGone, now: float, effects: list[Effect]) -> None:
        record = self._actors.get(event.actor_id)
        if record is None or record.state == DEAD or record.stopping or record.spec.detached:
            return
        reason = "the last handle of it went out of scope"
        if not record.worker_id:  # nothing was constructed, so there is nothing to drain
            self._stop(record, True, reason, effects)
            self._end(record, DEATH_UNREFERENCED, reason, now, effects)
            return
        record.stopping = reason
        self._free_name(record)
        self._note(record, now, f"stopping: {reason}")
        effects.append(StoreActor(event.actor_id, record))
        self._stop(record, False, reason, effects)

    def _on_kill(self, event: ActorKillAsked, now: float, effects: list[Effect]) -> None:
        record = self._actors.get(event.actor_id)
        if record is None or record.state == DEAD:
            return
        if event.no_restart:
            reason = "it was killed by kill(actor)"
            self._stop(record, True, reason, effects)
            self._end(record, DEATH_KILLED, reason, now, effects)
        elif event.incarnation not in (0, record.incarnation):
            self._note(record, now, f"kill(no_restart=False) of incarnation {event.incarnation} ignored: it is over")
        elif record.worker_id:
            self._note(record, now, "kill(no_restart=False)")
            self._stop(record, True, "it was killed by kill(actor, no_restart=False)", effects)
        else:
            self._note(record, now, "kill(no_restart=False) ignored: this life has no worker yet")

    def _on_job_ended(self, event: JobEnded, now: float, effects: list[Effect]) -> None:
        reason = f"its job ended: {event.reason}"
        for record in self.records():
            if record.spec.job_id == event.job_id and not record.spec.detached and record.state != DEAD:
                self._stop(record, True, reason, effects)
                self._end(record, DEATH_JOB_ENDED, reason, now, effects)

    def _on_group_removed(self, event: GroupRemoved, now: float, effects: list[Effect]) -> None:
        reason = f"its placement group was removed: {event.reason}"
        for record in self.records():
            if record.spec.strategy.get("group_id") == event.group_id and record.state != DEAD:
                self._stop(record, True, reason, effects)
                self._end(record, DEATH_GROUP_REMOVED, reason, now, effects)

    def _on_node_joined(self, event: NodeJoined, now: float, effects: list[Effect]) -> None:
        self._nodes[event.node_id] = None
        self._unreported[event.node_id] = {}
        self._place_homeless(now, effects)

    def _on_placing_may_work(self, event: PlacingMayWork, now: float, effects: list[Effect]) -> None:
        self._place_homeless(now, effects)

    def _place_homeless(self, now: float, effects: list[Effect]) -> None:
        for record in self.records():
            if record.state in (PENDING, RESTARTING) and not record.node_id:
                self._place(record, False, now, effects)

    def _on_moved(self, event: ActorMoved, now: float, effects: list[Effect]) -> None:
        record = self._actors.get(event.actor_id)
        if record is None or record.state == DEAD or record.worker_id or record.stopping:
            return
        self._stop(record, True, "it begins on another node, which has room", effects)
        record.incarnation += 1
        record.moves += 1
        record.node_id = event.node_id
        self._announce(record, effects)
        self._send_start(record, now, effects)

    def _on_node_reported(self, event: NodeReported, now: float, effects: list[Effect]) -> None:
        just_sent = self._unreported.pop(event.node_id, {})
        lives = {life.actor_id: life for life in event.lives}
        for life in event.lives:
            record = self._actors.get(life.actor_id)
            if record is not None and record.node_id == event.node_id and self._goes_on(record, life):
                self._catch_up(record, life, now, effects)
                continue
            reason = record.cause if record is not None and record.cause else "the GCS does not want this life of it"
            effects.append(SendToNode(event.node_id, StopActor(life.actor_id, life.incarnation, True, reason)))
        for record in self.records():
            actor_id = record.spec.actor_id
            if record.node_id != event.node_id or record.state == DEAD:
                continue
            known = lives.get(actor_id)
            if known is not None and known.incarnation == record.incarnation:
                continue
            if record.worker_id:
                self._lose_worker(record, "its worker ended while the GCS server was away", False, now, effects)
            elif just_sent.get(actor_id) != record.incarnation:
                self._note(record, now, "the node had not heard of this life")
                self._announce(record, effects)
                self._send_start(record, now, effects)

    @staticmethod
    def _goes_on(record: ActorRecord, life: ActorLife) -> bool:
        return record.state != DEAD and record.incarnation == life.incarnation

    def _catch_up(self, record: ActorRecord, life: ActorLife, now: float, effects: list[Effect]) -> None:
        """A life that goes on: hear what was not heard, say again what may not have been."""
        self._note(record, now, "its node reports that it lives")
        if life.worker_id and not record.worker_id:
            started = ActorWorkerStarted(
                life.actor_id, life.incarnation, life.worker_id, life.address, life.pid, life.lease_id
            )
            self._on_worker_started(started, now, effects)
        if life.constructed and record.state != ALIVE:
            self._on_constructed(ActorConstructed(life.actor_id, life.incarnation), now, effects)
        if record.stopping:
            self._stop(record, False, record.stopping, effects)

    def _on_node_lost(self, event: NodeLost, now: float, effects: list[Effect]) -> None:
        self._nodes.pop(event.node_id, None)
        self._unreported.pop(event.node_id, None)
        cause = f"its node {event.node_id.hex()[:8]} died: {event.cause}"
        for record in self.records():
            if record.node_id != event.node_id or record.state == DEAD:
                continue
            if record.worker_id:
                self._lose_worker(record, cause, False, now, effects)
            else:
                self._place(record, False, now, effects)
        self._place_homeless(now, effects)  # or refuse: that node may have been the last that could take them

    # ------------------------------------------------------------ steps

    def _live(self, actor_id: bytes, incarnation: int, trigger: str, now: float) -> ActorRecord | None:
        """The record that a node's report is about, unless the report is of a former life or came too late."""
        record = self._actors.get(actor_id)
        if record is None:
            return None
        if record.incarnation != incarnation or trigger not in TRANSITIONS[record.state]:
            self._note(record, now, f"ignored {trigger} of incarnation {incarnation}")
            return None
        return record

    def _move(self, record: ActorRecord, trigger: str, now: float, line: str) -> None:
        following = TRANSITIONS[record.state].get(trigger)
        if following is None:
            story = "\n  ".join(self.story(record.spec.actor_id))
            raise InvalidTransitionError(f"actor {record.spec.actor_id.hex()}: {record.state} + {trigger}\n  {story}")
        record.state = following
        record.changed_s = now
        self._note(record, now, f"{following}: {line}")

    def _place(self, record: ActorRecord, stay: bool, now: float, effects: list[Effect]) -> None:
        """Find a node for the present life and send it there."""
        record.node_id, refusal = self._where(record.spec, record.node_id, stay, now)
        if refusal and record.state == PENDING:
            self._end(record, DEATH_UNSCHEDULABLE, refusal, now, effects)
            return
        record.waits = refusal  # what lived once waits for a node like the one that died
        self._announce(record, effects)
        if record.node_id:
            self._send_start(record, now, effects)

    def _send_start(self, record: ActorRecord, now: float, effects: list[Effect]) -> None:
        """Send the present life to its node."""
        self._note(record, now, f"incarnation {record.incarnation} sent to node {record.node_id.hex()[:8]}")
        # At most the whole interval: the clock of the GCS server that set `begins_s` may have been ahead.
        delay_s = max(0.0, min(record.begins_s - now, restart_delay_s(record.stillborn)))
        start = StartActor(record.spec.actor_id, record.incarnation, record.spec, delay_s, record.moves)
        effects.append(SendToNode(record.node_id, start))
        if record.node_id in self._unreported:
            self._unreported[record.node_id][record.spec.actor_id] = record.incarnation

    def _lose_worker(self, record: ActorRecord, cause: str, intended: bool, now: float, effects: list[Effect]) -> None:
        spec = record.spec
        if record.stopping:
            self._end(record, DEATH_UNREFERENCED, record.stopping, now, effects)
        elif intended:
            self._end(record, DEATH_EXITED, cause, now, effects)
        elif spec.max_restarts < 0 or record.restarts < spec.max_restarts:
            if record.state != ALIVE:
                record.stillborn += 1
            record.begins_s = now + restart_delay_s(record.stillborn)
            record.incarnation += 1
            record.worker_id, record.address, record.pid, record.lease_id = b"", "", 0, 0
            record.cause = cause
            self._move(record, "restart", now, cause)
            self._place(record, True, now, effects)
        else:
            used_up = (
                f"all {spec.max_restarts} restarts are used up"
                if spec.max_restarts
                else "it may not restart: max_restarts=0"
            )
            cause = f"{cause} ({used_up})"
            self._end(record, DEATH_CRASHED, cause, now, effects)

    def _end(self, record: ActorRecord, death: str, cause: str, now: float, effects: list[Effect]) -> None:
        """The actor is dead. Its arguments are dropped: a dead actor needs none, and they may be large."""
        self._free_name(record)
        record.death, record.cause = death, cause
        record.spec = msgspec.structs.replace(record.spec, arguments=b"", dependencies=None, methods=b"", needs=[])
        self._move(record, "end", now, f"{death}: {cause}")
        self._announce(record, effects)
        self._dead.append(record.spec.actor_id)
        if len(self._dead) > ACTORS_DEAD_MAX:
            forgotten = self._dead.popleft()
            del self._actors[forgotten], self._stories[forgotten]
            effects.append(StoreActor(forgotten, None))

    def _announce(self, record: ActorRecord, effects: list[Effect]) -> None:
        record.version += 1
        effects.append(StoreActor(record.spec.actor_id, record))
        effects.append(AnnounceActor(record.version, record.wire_state(), record.state == DEAD))

    def _stop(self, record: ActorRecord, kill: bool, reason: str, effects: list[Effect]) -> None:
        if record.node_id in self._nodes:
            stop = StopActor(record.spec.actor_id, record.incarnation, kill, reason)
            effects.append(SendToNode(record.node_id, stop))

    def _free_name(self, record: ActorRecord) -> None:
        key = (record.spec.namespace, record.spec.name)
        if record.spec.name and self._names.get(key) == record.spec.actor_id:
            del self._names[key]

    def _note(self, record: ActorRecord, now: float, line: str) -> None:
        self._stories[record.spec.actor_id].append((now, line))


def restart_delay_s(stillborn: int) -> float:
    """How long to wait before the next life after so many in a row that crashed in the constructor: none after the first, then doubling."""
    if stillborn < 2:
        return 0.0
    return min(RESTART_DELAY_MAX_S, RESTART_DELAY_S * 2.0 ** min(stillborn - 2, 30))


_HANDLERS: dict[type, Callable[[ActorManager, Any, float, list[Effect]], None]] = {
    ActorRequested: ActorManager._on_requested,
    ActorRequestedAgain: ActorManager._on_requested_again,
    ActorWorkerStarted: ActorManager._on_worker_started,
    ActorConstructed: ActorManager._on_constructed,
    ActorPlacementRefused: ActorManager._on_refused,
    ActorWorkerDied: ActorManager._on_worker_died,
    ActorRefsGone: ActorManager._on_refs_gone,
    ActorKillAsked: ActorManager._on_kill,
    JobEnded: ActorManager._on_job_ended,
    GroupRemoved: ActorManager._on_group_removed,
    ActorMoved: ActorManager._on_moved,
    PlacingMayWork: ActorManager._on_placing_may_work,
    NodeJoined: ActorManager._on_node_joined,
    NodeReported: ActorManager._on_node_reported,
    NodeLost: ActorManager._on_node_lost,
}
