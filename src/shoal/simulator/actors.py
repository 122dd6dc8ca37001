"""Actors: what a node does for them, the worker that one lives in, and the queue of calls that a caller has for it.

Purpose: the production `ActorManager` (in the GCS's shard) and `LocalScheduler` decide over lives; here is what stands between them and the callers.

Design: three players, each beside the real one that it follows.

    ActorShell   node/io/actors.py, gcs_link.py, leash.py     places, constructs, ends, tells; says again what the GCS has not confirmed
    Life         runtime/actor_host.py                        constructs, runs calls one after the other, withholds answers on the leash
    CallQueue    runtime/actor_calls.py                       pushes calls in order to the life it knows; settles those that were lost

Those with checkpoints live as `exact.ExactLife`.

`Actor` is what the world outside knows of one: it sees every life and every answer, and so can say that two lives answered.

What it does not do: names, handles that travel before their actor is asked for.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shoal.node.leash_rule import LeashRule
from shoal.protocol.gcs_messages import (
    CHANNEL_ACTOR,
    ActorChanged,
    ActorConstructed,
    ActorLife,
    ActorPlacementRefused,
    ActorRefsGone,
    ActorWorkerDied,
    ActorWorkerStarted,
    BundleLife,
    GcsCall,
    NodeReport,
    StartActor,
    StopActor,
    SubscribeKey,
    TaskEventBatch,
)
from shoal.protocol.limits import ALL_STARTED
from shoal.protocol.messages import ActorSpec, ActorState, WorkerDied
from shoal.scheduling import events, forwarding
from shoal.simulator.world import Channel

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.node.shard_lines import ShardLines, Then
    from shoal.simulator.node import Node
    from shoal.simulator.process import Process, Worker

RECONNECT_S = 0.05
KILLED = "killed"


class TwoLivesError(AssertionError):
    """Two lives of one actor have answered."""


@dataclass(slots=True, eq=False)
class Call:
    """One call of an actor's method."""

    duration_s: float
    retries_left: int = 0
    executions: int = 0
    number: int = 0  #: of its caller's calls to this actor
    #: "" while it has not ended; "done", or why it never will be
    end: str = ""
    executions_max: int = 0

    def __post_init__(self) -> None:
        self.executions_max = 1 + self.retries_left

    def finish(self, how: str) -> None:
        """It has ended, once."""
        assert not self.end, f"a call ended twice: {self.end}, {how}"
        self.end = how


@dataclass(slots=True, eq=False)
class Actor:
    """An actor and all that was seen of it."""

    spec: ActorSpec
    construct_s: float
    fails: bool = False  #: its constructor raises
    in_group: bool = False  #: it lives in a placement group
    calls: list[Call] = field(default_factory=list)
    lives: list[Life] = field(default_factory=list)  #: in the order in which they began
    killed: bool = False  #: somebody wanted its death
    youngest: int = -1  #: of the lives that have answered
    live: type[Life] | None = None  #: how it lives, if it has checkpoints
    seen: Any = None  #: of such a one: what its callers were answered

    def check(self, moves: int) -> None:
        """What holds after every event; the actor was moved so often before it had begun."""
        limit = self.spec.max_restarts + moves if self.spec.max_restarts >= 0 else -1
        begun = len({life.incarnation for life in self.lives})
        assert limit < 0 or begun <= 1 + limit, f"an actor began {begun} times, with {limit} restarts"
        if self.live is not None:
            return  # calls that nobody has seen anything of run again
        for call in self.calls:
            assert call.executions <= call.executions_max, (
                f"a call ran {call.executions} times, with {call.executions_max - 1} retries"
            )  # fmt: skip

    def answers(self, life: Life) -> None:
        """A life has sent an answer.

        Raises:
            TwoLivesError: a younger one had answered before.
        """
        number = self.lives.index(life)
        if number < self.youngest:
            raise TwoLivesError(
                f"life {number} of actor {self.spec.actor_id.hex()} on node {life.worker.node.place} has answered, though life {self.youngest} on "
                f"node {self.lives[self.youngest].worker.node.place} had"
            )
        self.youngest = number


class GcsLine:
    """What a node says to a shard of the GCS and must be heard: kept until it is answered or acknowledged, said again on each new connection."""

    def __init__(self, write: Callable[[Any], None]) -> None:
        self._write = write
        self._kept: dict[int, Any] = {}
        self._last = 0
        self._unacknowledged: deque[int] = deque()
        self._acknowledged = 0
        self.open = False
        #: what belongs to other shards goes there; None while this is the only one
        self.elsewhere: ShardLines[GcsLine] | None = None

    def report(self, message: Any) -> None:
        """News."""
        if self.elsewhere is None or type(message) is not TaskEventBatch or not self.elsewhere.take_events(message):
            self._keep(message)

    def call(self, method: str, body: dict[str, Any], then: Then | None = None) -> None:
        """A question; `then` gets the body of the answer and the error, as a node's line does."""
        if self.elsewhere is None or not self.elsewhere.take_call(method, body, then):
            self.call_here(method, body, then)

    def call_here(self, method: str, body: dict[str, Any], then: Then | None = None) -> None:
        """A question of this shard."""
        self._keep((method, body, then))

    def is_connected(self) -> bool:
        """Whether what is told now arrives."""
        return self.open

    def tell(self, message: Any) -> None:
        """What is told anew at every connection."""
        if self.open:
            self._write(message)

    def _keep(self, said: Any) -> None:
        self._last += 1
        self._kept[self._last] = said
        if self.open:
            self._transmit(self._last, said)

    def _transmit(self, number: int, said: Any) -> None:
        if type(said) is tuple:
            self._write(GcsCall(number, said[0], said[1], next(iter(self._kept)) - 1))
        else:
            self._unacknowledged.append(number)
            self._write(said)

    def begin(self) -> None:
        """A connection is registered."""
        self.open = True
        self._acknowledged = 0
        self._unacknowledged.clear()
        for number, said in list(self._kept.items()):
            self._transmit(number, said)

    def on_acknowledged(self, count: int) -> None:
        """So many reports of this connection are stored."""
        while self._acknowledged < count and self._unacknowledged:
            self._acknowledged += 1
            self._kept.pop(self._unacknowledged.popleft(), None)

    def on_answer(self, number: int, body: Any, error: list[str]) -> None:
        """A call is answered."""
        said = self._kept.pop(number, None)
        if said is not None and said[2] is not None:
            said[2](body, error)

    def left(self) -> int:
        """How much is not confirmed."""
        return len(self._kept)


@dataclass(slots=True)
class Placed:
    """One life of an actor on this node, from StartActor to its worker's death."""

    incarnation: int
    spec: ActorSpec
    life: Life | None = None
    constructed: bool = False


@dataclass(slots=True)
class Followed:
    """An actor whose state processes of this node want to know."""

    state: ActorState | None = None
    version: int = -1
    queues: dict[bytes, CallQueue] = field(default_factory=dict)


class Leash:
    """Until when a node's restartable actors may answer: the production rule, on virtual time."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._rule = LeashRule()
        self.registered_at = 0.0  #: when RegisterNode was sent

    def _ns(self, at: float) -> int:
        return int(at * 1e9)

    def sent(self, count: int) -> None:
        """A heartbeat leaves."""
        self._rule.sent(count, self._ns(self._node.world.now))

    def registered(self) -> None:
        """The GCS has accepted the node."""
        self._rule.registered(self._ns(self.registered_at))
        self._tell()

    def acknowledged(self, count: int) -> None:
        """The GCS has heard a heartbeat."""
        self._rule.acknowledged(count)
        self._tell()

    def silences(self, spec: ActorSpec) -> bool:
        """Whether an actor must keep its answers for itself."""
        return spec.max_restarts != 0 and self._rule.withholds(self._ns(self._node.world.now))

    def _tell(self) -> None:
        if not self._rule.withholds(self._ns(self._node.world.now)):
            for life in self._node.actors.lives():
                life.may_answer()


class ActorShell:
    """The node's part in the lives of actors."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.line = GcsLine(node.to_gcs)
        self.leash = Leash(node)
        self._placed: dict[bytes, Placed] = {}
        self._followed: dict[bytes, Followed] = {}

    def lives(self) -> list[Life]:
        """Actors that live here."""
        return [placed.life for placed in self._placed.values() if placed.life is not None]

    # ---------------------------------------------------------------- from processes

    def create(self, spec: ActorSpec, then: Callable[[], None]) -> None:
        """A process wants an actor; `then` when the GCS knows it."""
        self.line.call("gcs.actor_create", {"spec": spec, "get_if_exists": False}, lambda body, error: then())

    def subscribe(self, queue: CallQueue) -> None:
        """A process wants to know an actor's state."""
        actor_id = queue.actor.spec.actor_id
        followed = self._follow(actor_id)
        followed.queues[queue.caller.process_id] = queue
        if followed.state is not None:
            self._tell(queue, followed.state)

    def kill(self, actor_id: bytes, no_restart: bool) -> None:
        """Somebody kills an actor."""
        body: dict[str, Any] = {"actor_id": actor_id, "no_restart": no_restart}
        placed = self._placed.get(actor_id)
        if placed is not None and placed.life is not None:
            body["incarnation"] = placed.incarnation
            self._node.process_died(placed.life.worker, KILLED)
        self.line.call("gcs.actor_kill", body)

    def handles_gone(self, actor_id: bytes) -> None:
        """Nobody holds a handle any more."""
        self.line.report(ActorRefsGone(actor_id))

    def on_started(self, life: Life, error: bytes) -> None:
        """A worker's constructor returned or failed."""
        placed = self._placed.get(life.actor_id)
        if placed is None or placed.life is not life:
            return
        placed.constructed = not error
        self.line.report(ActorConstructed(life.actor_id, life.incarnation, error))
        if error:
            self._node.process_died(life.worker, "its constructor raised an exception")

    # ---------------------------------------------------------------- from the GCS

    def on_connected(self) -> None:
        """The GCS listens (again)."""
        self.leash.registered()
        self.line.begin()
        lives = []
        for actor_id, placed in self._placed.items():
            life = ActorLife(actor_id, placed.incarnation)
            if placed.life is not None:
                life.worker_id, life.pid, life.lease_id = placed.life.worker.process_id, 1, placed.life.lease_id
                life.address, life.constructed = "address", placed.constructed
            lives.append(life)
        bundles = [
            BundleLife(each.group_id, each.index, each.attempt, each.committed) for each in self._node.machine.bundles()
        ]
        self.line.tell(NodeReport(lives, bundles))
        for actor_id in self._followed:
            self.line.tell(SubscribeKey(CHANNEL_ACTOR, actor_id))

    def on_start(self, message: StartActor) -> None:
        """An actor is to live here."""
        known = self._placed.get(message.actor_id)
        if known is not None and known.incarnation >= message.incarnation:
            return
        placed = self._placed[message.actor_id] = Placed(message.incarnation, message.spec)
        if message.spec.takes_checkpoints:
            self._follow(message.actor_id)  # its log is kept here until it is dead
            self._recoveries.begin(message.actor_id, message.incarnation, lambda: self._place_later(placed, message))
        else:
            self._place_later(placed, message)

    @property
    def _recoveries(self) -> Any:
        return self._node.keeper.recoveries

    def _follow(self, actor_id: bytes) -> Followed:
        followed = self._followed.get(actor_id)
        if followed is None:
            followed = self._followed[actor_id] = Followed()
            self.line.tell(SubscribeKey(CHANNEL_ACTOR, actor_id))
        return followed

    def _place_later(self, placed: Placed, message: StartActor) -> None:
        self._node.world.after(message.delay_s, self._place, placed)

    def _place(self, placed: Placed) -> None:
        spec = placed.spec
        if self._node.dead or self._placed.get(spec.actor_id) is not placed:
            return
        self._node.feed(
            events.ActorPlacementRequested(
                spec.actor_id, placed.incarnation, spec.job_id, spec.placement, spec.demand, spec.strategy,
                spec.environment, spec.class_name,
            )
        )  # fmt: skip

    def on_stop(self, message: StopActor) -> None:
        """An actor's life here is to end."""
        placed = self._placed.get(message.actor_id)
        if placed is None or placed.incarnation != message.incarnation:
            return
        life = placed.life
        if life is None:
            del self._placed[message.actor_id]
            self._node.feed(events.ActorPlacementWithdrawn(message.actor_id))
            self._recoveries.moved(message.actor_id)
        elif message.kill:
            self._node.process_died(life.worker, message.reason)
        else:
            life.leave()

    def on_changed(self, message: ActorChanged) -> None:
        """An actor that somebody here follows has changed."""
        state = message.state
        followed = self._followed.get(state.actor_id)
        if followed is None or message.version <= followed.version:
            return
        if state.node_id not in (b"", self._node.node_id) and state.actor_id not in self._placed:
            self._recoveries.moved(state.actor_id)
        former = followed.state
        if former is not None and former.lease_id and former.node_id != self._node.node_id:
            if state.state == "dead" or state.lease_id != former.lease_id:
                self._node.forward(forwarding.EndedAbroad(former.lease_id))
        followed.state, followed.version = state, message.version
        for queue in followed.queues.values():
            self._tell(queue, state)
        if state.state == "dead":
            del self._followed[state.actor_id]
            self._recoveries.drop(state.actor_id)

    def _tell(self, queue: CallQueue, state: ActorState) -> None:
        caller = queue.caller
        caller.from_daemon.send(caller.station, 0.0, queue.on_state, state)
        if state.state != "dead" and state.worker_id and state.node_id != self._node.node_id:
            self._node.forward(
                forwarding.Reached(caller.process_id, state.node_id, state.worker_id, state.lease_id)
            )  # fmt: skip

    # ---------------------------------------------------------------- from the scheduler

    def on_effect(self, effect: events.AssignActor | events.RefuseActor) -> None:
        """A worker was found, or never will be."""
        node = self._node
        placed = self._placed.get(effect.actor_id)
        if placed is None or placed.incarnation != effect.incarnation:
            if isinstance(effect, events.AssignActor):
                worker = node.cluster.worker(effect.worker_id)
                if worker is not None:
                    node.process_died(worker, "the actor it was meant for is not wanted any more")
            return
        if isinstance(effect, events.RefuseActor):
            del self._placed[effect.actor_id]
            drains = bool(node.machine.draining)
            self._recoveries.moved(effect.actor_id)
            self.line.report(ActorPlacementRefused(effect.actor_id, effect.incarnation, effect.reason, drains))
            return
        worker = node.cluster.worker(effect.worker_id)
        if worker is None:
            return  # dying: the machine hears of it next
        actor = node.cluster.actors[effect.actor_id]
        life = placed.life = worker.actor = (actor.live or Life)(actor, worker, effect.lease_id, effect.incarnation)
        worker.lease_id = effect.lease_id
        worker.from_daemon.send(worker.station, 0.0, life.begin)
        self.line.report(
            ActorWorkerStarted(effect.actor_id, effect.incarnation, worker.process_id, "address", 1, effect.lease_id)
        )

    # ---------------------------------------------------------------- lives

    def leave(self, reason: str) -> None:
        """The node takes nothing new: actors whose state is kept go on elsewhere; the others stay until they end."""
        for life in self.lives():
            life.worker.from_daemon.send(life.worker.station, 0.0, life.move)

    def followers_of(self, worker: Worker) -> list[bytes]:
        """Who follows the actor that lives in a worker."""
        followed = self._followed.get(worker.actor.actor_id) if worker.actor is not None else None
        return list(followed.queues) if followed is not None else []

    def process_died(self, process: Process, cause: str) -> None:
        """A process of this node is dead."""
        for followed in self._followed.values():
            followed.queues.pop(process.process_id, None)
        life: Life | None = getattr(process, "actor", None)
        if life is None:
            return
        placed = self._placed.get(life.actor_id)
        if placed is not None and placed.life is life:
            del self._placed[life.actor_id]
            life.read_to_the_end()
            self.line.report(ActorWorkerDied(life.actor_id, life.incarnation, cause, life.leaving, 9, life.moves))

    def left(self) -> dict[str, int]:
        """What should be gone when all actors are."""
        logs = self._recoveries.statistics()
        return {"actors placed": len(self._placed), "said and not confirmed": self.line.left(), **logs}


class Life:
    """An actor's worker: it constructs, then runs calls one after the other."""

    def __init__(self, actor: Actor, worker: Worker, lease_id: int, incarnation: int) -> None:
        self.actor, self.worker, self.lease_id, self.incarnation = actor, worker, lease_id, incarnation
        self.actor_id = actor.spec.actor_id
        self.leaving = self.moves = False
        #: the last call begun, as the process's page tells: whose it was, and its number
        self.started: tuple[bytes, int] = (b"", 0)
        self._constructed = False
        self._waiting: deque[tuple[CallQueue, int, Call]] = deque()
        self._runs = False
        self.withheld: list[tuple[CallQueue, int]] = []
        self._last: dict[bytes, int] = {}
        self._back: dict[bytes, Channel] = {}
        actor.lives.append(self)

    def begin(self) -> None:
        """Construct."""
        if not self.worker.dead:
            self.worker.world.after(self.actor.construct_s, self._construct)

    def _construct(self) -> None:
        worker = self.worker
        if worker.dead:
            return
        self._constructed = not self.actor.fails
        error = b"" if self._constructed else b"raised"
        worker.node.hear_of_actor(worker.to_daemon, "ActorStarted", worker.node.actors.on_started, self, error)
        self._next()

    def on_calls(self, queue: CallQueue, lease_id: int, items: list[tuple[int, Call]]) -> None:
        """Calls of one caller."""
        assert lease_id == self.lease_id
        if self.worker.dead:
            return
        for seq, call in items:
            self._waiting.append((queue, seq, call))
        self._next()

    def _next(self) -> None:
        if self._runs or not self._constructed or self.worker.dead:
            return
        if not self._waiting:
            if self.leaving:
                self.worker.node.process_died(self.worker, "it left")
            return
        queue, seq, call = self._waiting.popleft()
        caller = queue.caller.process_id
        assert seq > self._last.get(caller, 0), "calls of one caller ran out of order"
        self._last[caller] = seq
        self.started = (caller, seq)
        call.executions += 1
        self._runs = True
        self._runs_now(queue, seq, call)
        self.worker.world.after(self.worker.world.costs.execute_s + call.duration_s, self._done, queue, seq, call)

    def _done(self, queue: CallQueue, seq: int, call: Call) -> None:
        if self.worker.dead:
            return
        self._runs = False
        self._done_now(queue, seq, call)
        self._next()

    def _runs_now(self, queue: CallQueue, seq: int, call: Call) -> None:
        """A call begins."""

    def _done_now(self, queue: CallQueue, seq: int, call: Call) -> None:
        """A call has ended."""
        self._answer_on_leash(queue, seq)

    def _answer_on_leash(self, queue: CallQueue, seq: int) -> None:
        if self.withheld or self.worker.node.actors.leash.silences(self.actor.spec):
            self.withheld.append((queue, seq))
        else:
            self._answer(queue, seq)

    def read_to_the_end(self) -> None:
        """It is dead: what it had written is read."""

    def move(self) -> None:
        """Its node leaves: it stays until it ends."""

    def may_answer(self) -> None:
        """The GCS has heard of the node again."""
        withheld, self.withheld = self.withheld, []
        for queue, seq in withheld:
            self._answer(queue, seq)

    def _answer(self, queue: CallQueue, seq: int) -> None:
        caller = queue.caller
        if caller.dead:
            return
        self.actor.answers(self)
        back = self._back.get(caller.process_id)
        if back is None:
            back = self._back[caller.process_id] = Channel(
                self.worker.world, self.worker.node.place, caller.node.place
            )  # fmt: skip
        back.send(caller.station, 0.0, queue.on_reply, self.lease_id, seq)

    def settle(self, caller: bytes, number: int) -> None:
        """A caller has an answer, and will not ask again."""

    def leave(self) -> None:
        """Finish what is queued, then leave."""
        self.leaving = True
        self._next()


class CallQueue:
    """The calls of one process to one actor."""

    def __init__(self, actor: Actor, caller: Process) -> None:
        self.actor, self.caller = actor, caller
        self._life: Life | None = None
        self._channel: Channel | None = None
        self._state = "pending"
        self._death = ""
        self._seq = 0
        self._unsent: deque[Call] = deque()
        self._inflight: dict[int, Call] = {}
        self._lost: list[tuple[Call, bool]] = []
        self._numbered = 0
        #: of an actor with checkpoints: what calls are answered, by (lease, number in it)
        self.places: dict[tuple[int, int], int] = {}
        self._alive: ActorState | None = None  #: the state that said where it lives, while that is the last one

    def call(self, calls: list[Call]) -> None:
        """Calls, in this order."""
        for call in calls:
            self._numbered += 1
            call.number = self._numbered
        self.actor.calls += calls
        self._unsent.extend(calls)
        self._settle()

    def on_state(self, state: ActorState) -> None:
        """From the daemon: what the actor does now."""
        if self.caller.dead or self._death:
            return
        self._state = state.state
        self._alive = None
        if state.state == "alive":
            self._on_alive(state)
        elif state.state == "dead":
            self._death = f"actor died: {state.death}"
            self._lose(None)
        self._settle()

    def _on_alive(self, state: ActorState) -> None:
        if self._life is not None:
            if self._life.lease_id == state.lease_id:
                return
            self._lose(None)
        self._alive = state
        worker = self.caller.node.cluster.worker(state.worker_id)
        if worker is None or worker.actor is None:  # it died just now: tried again until more is heard
            self.caller.world.after(RECONNECT_S, self._reach, state)
            return
        self._life = worker.actor
        self._channel = Channel(self.caller.world, self.caller.node.place, worker.node.place)
        if worker.node is not self.caller.node:
            node, cost = worker.node, self.caller.world.costs.daemon_message_s
            self._channel.send(node.station, cost, node.on_route, self, self._life)

    def _reach(self, state: ActorState) -> None:
        if self._alive is state and self._life is None and not self.caller.dead:
            self.on_state(state)

    def on_refused(self, life: Life) -> None:
        """The actor could not be connected to: nothing of what was to be sent has left."""
        if self._life is life and not self.caller.dead:
            self._life = None
            self._unsent.extendleft(reversed(self._inflight.values()))
            self._inflight.clear()
            if self._alive is not None:
                self.caller.world.after(RECONNECT_S, self._reach, self._alive)

    def on_worker_died(self, message: WorkerDied) -> None:
        """From the daemon: the process in which the actor lived is dead."""
        life = self._life
        if life is not None and life.worker.process_id == message.worker_id and not self.caller.dead:
            self._lose(message)
            self._settle()

    def on_reply(self, lease_id: int, seq: int) -> None:
        """A call was answered."""
        if self._life is None or self._life.lease_id != lease_id or self.caller.dead:
            return
        call = self._inflight.pop(seq, None)
        if call is not None:
            if self.actor.seen is not None:
                self.actor.seen.answered(self.caller.process_id, call.number, self.places[lease_id, seq])
                assert self._channel is not None
                self._channel.send(
                    self._life.worker.station, 0.0, self._life.settle, self.caller.process_id, call.number
                )
            call.finish("done")

    def _lose(self, death: WorkerDied | None) -> None:
        life, self._life = self._life, None
        if life is None:
            return
        assert self._channel is not None
        self._channel.closed = True
        for seq, call in self._inflight.items():
            self._lost.append((call, death is None or self._had_begun(life, death, seq)))
        self._inflight.clear()

    def _had_begun(self, life: Life, death: WorkerDied, seq: int) -> bool:
        """As `ActorCalls.on_lease_lost`: the numbers of calls say whose call was begun last."""
        if death.lease_id != life.lease_id:
            return False
        if death.started_seq == ALL_STARTED:
            return True
        if any(queue is self and number == seq for queue, number in life.withheld):
            return True  # the page has notes of replies that were not taken (`WorkerDied.untaken`)
        caller, started = life.started
        return caller == self.caller.process_id and seq <= started

    def _settle(self) -> None:
        lost, self._lost = self._lost, []
        if lost and not self._death and self._state != "restarting" and self._life is None:
            self._lost = lost  # its next state decides
            return
        again = []
        for call, started in lost:
            if self._death:
                call.finish(self._death)
            elif not started or self.actor.live is not None:
                again.append(call)
            elif call.retries_left:
                call.retries_left -= 1
                again.append(call)
            else:
                call.finish("actor unavailable")
        self._unsent.extendleft(reversed(again))
        if self._death:
            while self._unsent:
                self._unsent.popleft().finish(self._death)
        elif self._life is not None and self._unsent:
            items = []
            while self._unsent:
                self._seq += 1
                call = self._unsent.popleft()
                self._inflight[self._seq] = call
                items.append((self._seq, call))
            assert self._channel is not None
            worker = self._life.worker
            self._channel.send(worker.station, 0.0, self._life.on_calls, self, self._life.lease_id, items)
