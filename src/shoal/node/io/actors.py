"""Actors on this node: between their callers, their workers, the local scheduler and the GCS.

Purpose: the node's part in an actor's life. The GCS decides (its actor manager); this shell places, constructs, ends and tells.

    process --CreateActor--> | --gcs.actor_create--> GCS --StartActor--> | --ActorPlacementRequested--> local scheduler
    callers <--ActorState--- | <-----ActorChanged--- GCS <--Actor...---- | <--AssignActor-- : LeaseStarted, BecomeActor -> worker

Design: one `Placed` record for every life that the GCS sent here, from StartActor to the worker's death. States of actors that processes here
follow are kept, so that a second subscriber is answered at once. A handle may travel before its actor is asked for (its constructor waits for
arguments): a subscription to such an actor, which the GCS does not know yet, waits for CreateActor, as long as the handle's owner lives.

What it does not do: restart, name, or count handles (GCS and object directory do).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shoal.node.io.gcs_link import GcsLink
from shoal.node.io.kept_arguments import KeptArguments
from shoal.node.io.leases import Leases
from shoal.node.io.leash import Leash
from shoal.node.io.processes import End, Process, ProcessTable, Worker
from shoal.node.io.recoveries import Recoveries
from shoal.node.io.workers import WorkerPool
from shoal.protocol import messages
from shoal.protocol.gcs_messages import (
    CHANNEL_ACTOR,
    DEATH_FORGOTTEN,
    ActorChanged,
    ActorConstructed,
    ActorLife,
    ActorPlacementRefused,
    ActorRefsGone,
    ActorWorkerDied,
    ActorWorkerStarted,
    BundleLife,
    NodeReport,
    StartActor,
    StopActor,
    SubscribeKey,
)
from shoal.protocol.ids import actor_handle_id
from shoal.protocol.limits import SHUTDOWN_GRACE_S
from shoal.protocol.messages import ActorSpec, ActorState, Answer, BecomeActor, TerminateActor
from shoal.protocol.node_messages import ActorExpected, ExpectActor
from shoal.scheduling import events

if TYPE_CHECKING:
    import asyncio

    from shoal.node.io.node_links import NodeLinks

log = logging.getLogger("shoal.node")

ALIVE, DEAD = "alive", "dead"
CREATION_HEARD_S = 0.2  #: what one node has told the GCS is heard before what another one tells so much later


@dataclass(slots=True)
class Placed:
    """One life of an actor on this node."""

    incarnation: int
    spec: ActorSpec
    may_restart: bool
    #: None while it waits for a worker
    worker: Worker | None = None
    #: its constructor has returned
    constructed: bool = False


@dataclass(slots=True)
class Followed:
    """An actor whose state processes of this node want to know."""

    state: ActorState | None = None
    #: version of `state`
    version: int = -1
    #: what the GCS said of an actor that is still to be created
    unknown: ActorChanged | None = None
    #: the GCS was asked after the actor had been created (or for one that others create)
    asked_late: bool = False
    #: another node, which counts its handles
    home: bytes = b""
    #: that node has said that the actor was asked for
    told_created: bool = False
    subscribers: dict[bytes, None] = field(default_factory=dict)


class Actors:
    """All actors that live here or are called from here. `creator_lives(handle id)` tells whether the process that will ask for an actor,
    or has, is alive."""

    def __init__(
        self,
        table: ProcessTable,
        pool: WorkerPool,
        leases: Leases,
        gcs: GcsLink,
        creator_lives: Callable[[bytes], bool],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._loop = loop
        self._table = table
        self._pool = pool
        self._leases = leases
        self._gcs = gcs
        #: checkpoints and records of those that take some; set by the daemon before the first message
        self.recoveries: Recoveries = None  # type: ignore[assignment]
        #: what their constructors need again; set by the daemon likewise
        self.arguments: KeptArguments = None  # type: ignore[assignment]
        self._placed: dict[bytes, Placed] = {}
        self._followed: dict[bytes, Followed] = {}
        self._creator_lives = creator_lives
        #: of a node in a cluster: where the others are
        self.links: NodeLinks | None = None
        #: actors asked for by processes of this node whose handles have not all gone
        self._created: dict[bytes, None] = {}
        #: nodes to be told whether an actor, whose handles are counted here, will be asked for
        self._expected_by: dict[bytes, dict[bytes, None]] = {}
        self._node_id = b""
        #: holds a worker whose actor could be restarted elsewhere
        self.leash: Leash | None = None

    def join_cluster(self, links: NodeLinks, node_id: bytes, leash: Leash) -> None:
        """The node is one of many."""
        self.links, self._node_id, self.leash = links, node_id, leash
        links.handlers[ExpectActor] = self._on_expect
        links.handlers[ActorExpected] = self._on_expected
        links.on_died.append(self._on_node_died)

    # ---------------------------------------------------------------- from processes

    def on_create(self, process: Process, message: messages.CreateActor) -> None:
        """A process wants an actor."""

        def answered(body: Any, error: list[str]) -> None:
            if error or body["existing"] is not None:
                self.arguments.drop(actor_id)
            elif self.arguments.keeps(actor_id):
                self.follow(actor_id)
            process.send(Answer(message.request, body, error))

        actor_id = message.spec.actor_id
        self._created[actor_id] = None
        self.arguments.keep(message.spec)
        self._gcs.call("gcs.actor_create", {"spec": message.spec, "get_if_exists": message.get_if_exists}, answered)
        followed = self._followed.get(actor_id)
        if followed is not None and followed.unknown is not None:
            self._follow(actor_id, followed)
        self._tell_expecting(actor_id, True)

    def on_subscribe(self, process: Process, message: messages.SubscribeActor) -> None:
        """A process wants to know an actor's state, now and later."""
        followed = self._followed.get(message.actor_id)
        if followed is None:
            followed = self._followed[message.actor_id] = Followed()
            if self.links is not None and message.home != self._node_id:
                followed.home = message.home
            self._follow(message.actor_id, followed)
        followed.subscribers[process.worker_id] = None
        if followed.state is not None:
            self._tell(process, followed.state)

    def on_started(self, process: Process, message: messages.ActorStarted) -> None:
        """A worker's constructor returned or failed."""
        placed = self._placed.get(message.actor_id)
        if placed is None or placed.worker is not process or placed.incarnation != message.incarnation:
            return
        placed.constructed = not message.error
        self._gcs.report(ActorConstructed(message.actor_id, message.incarnation, message.error, message.cause))
        if message.error:
            why = message.cause or "its constructor raised an exception"
            self._pool.stop(placed.worker, why, SHUTDOWN_GRACE_S)

    def on_kill(self, process: Process, message: messages.KillActor) -> None:
        """Somebody kills an actor. The GCS knows where it is; one that lives here need not wait for it."""
        body: dict[str, Any] = {"actor_id": message.actor_id, "no_restart": message.no_restart}
        placed = self._placed.get(message.actor_id)
        if placed is not None and placed.worker is not None:
            self._pool.kill(placed.worker, "killed by shoal.kill()")
            body["incarnation"] = placed.incarnation  # asked again after a restart, this must not end the next life
        self._gcs.call("gcs.actor_kill", body)

    def handles_gone(self, actor_id: bytes) -> None:
        """Nobody on this node holds a handle any more."""
        self._created.pop(actor_id, None)
        self._gcs.report(ActorRefsGone(actor_id))
        self._give_up_unknown()

    # ---------------------------------------------------------------- from the GCS

    def on_connected(self) -> None:
        """The GCS listens (again): what lives here, and what processes here want to hear of."""
        lives = []
        for actor_id, placed in self._placed.items():
            life = ActorLife(actor_id, placed.incarnation)
            worker = placed.worker
            if worker is not None:
                life.worker_id, life.address, life.pid = worker.worker_id, worker.address, worker.pid
                life.lease_id, life.constructed = worker.lease_id, placed.constructed
            lives.append(life)
        bundles = [
            BundleLife(each.group_id, each.index, each.attempt, each.committed)
            for each in self._leases.machine.bundles()
        ]
        self._gcs.tell(NodeReport(lives, bundles))
        for actor_id, followed in self._followed.items():
            if followed.unknown is None:
                self._gcs.tell(SubscribeKey(CHANNEL_ACTOR, actor_id))

    def on_start(self, message: StartActor) -> None:
        """An actor is to live here. Said twice (a GCS server that was started again may) it is one life."""
        if self.arguments.keep(message.spec):
            self.follow(message.actor_id)
        if not message.incarnation:
            return
        known = self._placed.get(message.actor_id)
        if known is not None and known.incarnation >= message.incarnation:
            return
        placed = self._placed[message.actor_id] = Placed(message.incarnation, message.spec, message.may_restart())
        self._table.namespaces[message.spec.job_id] = message.spec.job_namespace
        if message.spec.takes_checkpoints:
            self.follow(message.actor_id)  # its log is kept here until it is dead
            self.recoveries.begin(message.actor_id, message.incarnation, lambda: self._place_later(placed, message))
        else:
            self._place_later(placed, message)

    def follow(self, actor_id: bytes) -> None:
        """Something is kept here for an actor until it is dead: that must be heard."""
        if actor_id not in self._followed:
            self._followed[actor_id] = Followed()
            self._follow(actor_id, self._followed[actor_id])

    def _place_later(self, placed: Placed, message: StartActor) -> None:
        if message.delay_s > 0:
            self._loop.call_later(message.delay_s, self._place, placed)
        else:
            self._place(placed)

    def _place(self, placed: Placed) -> None:
        """Ask the scheduler for a worker, unless this life was taken back while it waited."""
        spec = placed.spec
        if self._placed.get(spec.actor_id) is not placed:
            return
        self._leases.handle(
            events.ActorPlacementRequested(
                spec.actor_id,
                placed.incarnation,
                spec.job_id,
                spec.placement,
                spec.demand,
                spec.strategy,
                spec.environment,
                spec.class_name,
            )
        )

    def on_stop(self, message: StopActor) -> None:
        """An actor's life here is to end."""
        placed = self._placed.get(message.actor_id)
        if placed is None or placed.incarnation != message.incarnation:
            return
        worker = placed.worker
        if worker is None:
            del self._placed[message.actor_id]
            self._leases.handle(events.ActorPlacementWithdrawn(message.actor_id))
            self.recoveries.moved(message.actor_id)
        elif message.kill:
            self._pool.kill(worker, message.reason)
        else:
            worker.leaving = worker.leaving or message.reason
            worker.exits_by_itself = True
            worker.send(TerminateActor(message.reason))

    def on_changed(self, message: ActorChanged) -> None:
        """An actor that somebody here follows has changed."""
        state = message.state
        followed = self._followed.get(state.actor_id)
        if followed is None or (message.version <= followed.version and state.death != DEATH_FORGOTTEN):
            return
        if state.death == DEATH_FORGOTTEN and not followed.asked_late:
            if state.actor_id in self._created:
                self._follow(state.actor_id, followed)  # it was created while the answer was on its way
                return
            if self._may_come(state.actor_id):
                followed.unknown = message
                return
            links = self.links
            if links is not None and followed.home and links.send(followed.home, ExpectActor(state.actor_id)):
                followed.unknown = message
                return
        if state.node_id and state.worker_id:
            self._localize(state)
        if state.node_id not in (b"", self._node_id) and state.actor_id not in self._placed:
            self.recoveries.moved(state.actor_id)  # what was kept here for its next life is of no use any more
        if state.state == ALIVE:
            self.arguments.constructed(state.actor_id)
        self._end_former(followed.state, state)
        followed.state, followed.version = state, message.version
        for worker_id in followed.subscribers:
            process = self._table.by_id.get(worker_id)
            if process is not None:
                self._tell(process, state)
        if state.state == DEAD:
            # Nothing more will come; whoever asks later asks the GCS anew. A killed worker may outlive this news: its end is told to them too.
            placed = self._placed.get(state.actor_id)
            if placed is not None and placed.worker is not None:
                placed.worker.submitters.update(followed.subscribers)
            del self._followed[state.actor_id]
            self.recoveries.drop(state.actor_id)
            self.arguments.drop(state.actor_id)

    def _tell(self, process: Process, state: ActorState) -> None:
        """Send a process an actor's state."""
        process.send(state)
        foreign = self._leases.foreign
        if foreign is None or state.state == DEAD:
            return
        if state.address and self.links is not None and self.links.address_of(state.node_id):
            foreign.reached(process.worker_id, state.node_id, state.worker_id, state.lease_id)

    def _end_former(self, former: ActorState | None, state: ActorState) -> None:
        """What is told of a life on another node ends what was told of the one before. (Its worker may have died before anybody here had connected
        to it: then its node tells nobody.)"""
        foreign = self._leases.foreign
        if foreign is None or former is None or former.node_id == self._node_id or not former.lease_id:
            return
        if state.state == DEAD or state.lease_id != former.lease_id:
            foreign.ended(former.lease_id)

    def _localize(self, state: ActorState) -> None:
        """An actor on another node is reached through that node."""
        links = self.links
        if links is not None and links.address_of(state.node_id):
            state.address = links.worker_address(state.node_id, state.worker_id)

    def _follow(self, actor_id: bytes, followed: Followed) -> None:
        followed.unknown = None
        followed.asked_late = actor_id in self._created
        self._gcs.tell(SubscribeKey(CHANNEL_ACTOR, actor_id))

    def _may_come(self, actor_id: bytes) -> bool:
        """Whether an actor that the GCS does not know may still be created by a process of this node."""
        return actor_id not in self._created and self._creator_lives(actor_handle_id(actor_id))

    def _give_up_unknown(self) -> None:
        """Somebody let go: tell those who wait for an actor that nobody will create any more."""
        for followed in list(self._followed.values()):
            if (
                followed.unknown is not None
                and not followed.home
                and not self._may_come(followed.unknown.state.actor_id)
            ):
                self.on_changed(followed.unknown)
        for actor_id in [actor_id for actor_id in self._expected_by if not self._may_come(actor_id)]:
            self._tell_expecting(actor_id, False)

    # ---------------------------------------------------------------- actors that are still to be created, and other nodes

    def _on_expect(self, node_id: bytes, message: ExpectActor) -> None:
        """Processes of another node have a handle of an actor that the GCS does not know."""
        actor_id = message.actor_id
        self._expected_by.setdefault(actor_id, {})[node_id] = None
        if not self._may_come(actor_id):
            self._tell_expecting(actor_id, actor_id in self._created)

    def _tell_expecting(self, actor_id: bytes, created: bool) -> None:
        for node_id in self._expected_by.pop(actor_id, ()):
            if self.links is not None:
                self.links.send(node_id, ActorExpected(actor_id, created))

    def _on_expected(self, node_id: bytes, message: ActorExpected) -> None:
        followed = self._followed.get(message.actor_id)
        if followed is None or followed.unknown is None:
            return
        if not message.created:
            self._conclude(followed)
        elif not followed.told_created:
            followed.told_created = True
            self._follow(message.actor_id, followed)
        else:  # the news may stand in a socket of the GCS beside the question
            self._loop.call_later(CREATION_HEARD_S, self._ask_last, message.actor_id)

    def _ask_last(self, actor_id: bytes) -> None:
        followed = self._followed.get(actor_id)
        if followed is not None and followed.unknown is not None:
            self._follow(actor_id, followed)
            followed.asked_late = True

    def _conclude(self, followed: Followed) -> None:
        """The GCS does not know the actor, and never will."""
        message = followed.unknown
        assert message is not None, "the GCS has answered"
        followed.unknown = None
        followed.asked_late = True
        self.on_changed(message)

    def _on_node_died(self, node_id: bytes, cause: str) -> None:
        for nodes in self._expected_by.values():
            nodes.pop(node_id, None)
        for followed in list(self._followed.values()):
            if followed.home == node_id and followed.unknown is not None:
                self._conclude(followed)

    # ---------------------------------------------------------------- from the scheduler

    def on_effect(self, effect: events.AssignActor | events.RefuseActor) -> None:
        """A worker was found, or never will be."""
        placed = self._placed.get(effect.actor_id)
        if placed is None or placed.incarnation != effect.incarnation:
            if isinstance(effect, events.AssignActor):
                self._leases.workers.pop(effect.lease_id, None)
                worker = self._table.worker(effect.worker_id)
                if worker is not None:
                    self._pool.stop(worker, "the actor it was meant for is not wanted any more")
            return
        if isinstance(effect, events.RefuseActor):
            del self._placed[effect.actor_id]
            drains = bool(self._leases.machine.draining)
            self.recoveries.moved(effect.actor_id)
            self._gcs.report(ActorPlacementRefused(effect.actor_id, effect.incarnation, effect.reason, drains))
            return
        worker = self._table.worker(effect.worker_id)
        if worker is None:
            return  # dying: the machine hears of it next
        placed.worker = worker
        worker.actor_id = effect.actor_id
        worker.incarnation = effect.incarnation
        worker.restartable = placed.may_restart
        worker.recoverable = worker.restartable and placed.spec.takes_checkpoints
        self._leases.start_lease(worker, effect, b"", 0)
        if self.leash is not None and placed.spec.max_restarts:
            self.leash.hold(worker)
        recovery = self.recoveries.recovery(effect.actor_id)
        records_fd = self.recoveries.record_page(effect.actor_id)
        worker.send(BecomeActor(effect.lease_id, effect.incarnation, placed.spec, recovery, records_fd))
        started = ActorWorkerStarted(
            effect.actor_id, effect.incarnation, worker.worker_id, worker.address, worker.pid, effect.lease_id
        )
        assert worker.connection is not None, "a registered worker has a connection"
        worker.connection.when_written(lambda: self._gcs.report(started))

    # ---------------------------------------------------------------- lives

    def leave(self, reason: str) -> None:
        """The node takes nothing new and is to be empty: actors whose state is kept go on elsewhere, after the call that runs."""
        for placed in self._placed.values():
            if placed.worker is not None and placed.spec.takes_checkpoints:
                placed.worker.send(TerminateActor(f"moved: its node leaves ({reason})", move=True))

    def subscribers_of(self, worker: Worker) -> list[bytes]:
        """Who follows the actor that lives in `worker`."""
        followed = self._followed.get(worker.actor_id)
        return list(followed.subscribers) if followed is not None else []

    def process_died(self, process: Process, end: End, cause: str) -> None:
        """A registered process is dead."""
        for followed in self._followed.values():
            followed.subscribers.pop(process.worker_id, None)
        self._give_up_unknown()
        if not isinstance(process, Worker) or not process.actor_id:
            return
        placed = self._placed.get(process.actor_id)
        if placed is not None and placed.worker is process:
            del self._placed[process.actor_id]
            self.recoveries.absorb(process.actor_id)
            self._gcs.report(
                ActorWorkerDied(
                    process.actor_id,
                    process.incarnation,
                    cause,
                    process.exits_by_itself,
                    end.exit_code or 0,
                    process.moves,
                )
            )

    def statistics(self) -> dict[str, int]:
        """Sizes of the tables."""
        return {"placed": len(self._placed), "followed": len(self._followed), **self.arguments.statistics()}
