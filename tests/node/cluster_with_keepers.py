"""The cluster of refs, with exact actors: what their states and recorded calls refer to is there for the next life, whatever dies in between.

Added to `cluster_that_remakes`: nodes have the production logs of actors (`Recoveries`, with `LogHolding` and the GCS's `StoredLogs`), and some
processes are lives of actors. A life takes refs into its state, records calls that carry refs, and writes checkpoints. When its process or its node
dies, another process is the next life: it has from its daemon what the log says, and from then on refers to that.

    life --Hold, RecordCall, StoreCheckpoint--> [Recoveries, LogHolding] --gcs.actor_log_append--> GCS
                                                       `-HoldForLog-> keepers on other nodes
    next life <---- recovery: checkpoint and records, with the refs that are in them

The twin: what the GCS has of a log is not lost as long as deaths of nodes do not follow each other faster than a keeper is replaced (`calm`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from tests.node.cluster_of_refs import Process, Queue, World
from tests.node.cluster_that_remakes import Maker, MakerNode, Remaking

from shoal.gcs.actor_logs import StoredLogs
from shoal.node.io.recoveries import Recoveries
from shoal.protocol.messages import Failed, RecordCall, StoreCheckpoint
from shoal.runtime.objects import ObjectRef, home_of

ACTOR = b"actor "  #: begins an ActorID
Refs = list[tuple[bytes, bytes]]  #: (object, its home)


def refs_in(blob: bytes) -> Refs:
    """What a checkpoint or record carries."""
    return msgspec.msgpack.decode(blob, type=Refs)


class Actor:
    """One exact actor: where it lives, and what it has in its state."""

    def __init__(self, actor_id: bytes) -> None:
        self.actor_id = actor_id
        self.incarnation = 0
        self.index = 0
        self.life: Liver | None = None  #: None while no life has begun
        self.node: KeeperNode | None = None  #: where the next one is to begin, or it lives
        self.dead = False
        self.state: list[ObjectRef] = []


class LogQueue(Queue):
    """Also what a life writes to its daemon."""

    def read(self) -> None:
        recoveries: Recoveries = self.process.node.recoveries  # type: ignore[attr-defined]
        message = self.waiting[0]
        if type(message) is RecordCall:
            recoveries.on_record(self.waiting.popleft() and self.process, message)
        elif type(message) is StoreCheckpoint:
            recoveries.on_checkpoint(self.waiting.popleft() and self.process, message)
        else:
            super().read()


class Liver(Maker):
    """A process that may be a life of an actor."""

    world: Keeping

    def __init__(self, world: Keeping, node: Any, number: int) -> None:
        super().__init__(world, node, number)
        self.queue = self.reactor.causal = LogQueue(world, self)
        self.actors: list[Actor] = []

    def hold(self, actor: Actor, refs: list[ObjectRef]) -> list[bytes]:
        """As exact_actor._hold."""
        entries = self.table.escape(refs)
        self.table.hold_for(entries, actor.actor_id)
        self.table.unuse(entries)
        self.write_notes()
        return [entry.oid for entry in entries]

    def record(self, actor: Actor, refs: list[ObjectRef]) -> None:
        """A call begins; refs that it carries stay in the state."""
        actor.index += 1
        blob = msgspec.msgpack.encode([(ref.binary(), home_of(ref)) for ref in refs])
        oids = self.hold(actor, refs) if refs else []
        self.reactor.await_confirmation()
        self.queue.send(RecordCall(actor.actor_id, actor.incarnation, actor.index, blob, oids))
        actor.state.extend(refs)

    def checkpoint(self, actor: Actor) -> None:
        """The state is to be kept."""
        blob = msgspec.msgpack.encode([(ref.binary(), home_of(ref)) for ref in actor.state])
        oids = self.hold(actor, actor.state) if actor.state else []
        self.reactor.await_confirmation()
        self.queue.send(StoreCheckpoint(actor.actor_id, actor.incarnation, actor.index, blob, oids))

    def forget_some(self, actor: Actor) -> None:
        """A call after which the state refers to less."""
        self.record(actor, [])
        del actor.state[self.world.dice.randrange(len(actor.state))]

    def recover(self, actor: Actor, blobs: list[bytes]) -> None:
        """A new life: what the log says it refers to."""
        for blob in filter(None, blobs):
            before = len(self.refs)
            self.unpickle(refs_in(blob))
            actor.state.extend(self.refs[before:])
            del self.refs[before:]
        self.checkpoint(actor)

    def get_all(self) -> None:
        super().get_all()
        for actor in self.actors:
            for ref in actor.state:
                if ref.binary() in self.world.made:
                    self.get(ref)

    def let_go(self, actor: Actor) -> None:
        """The actor ends here."""
        self.actors.remove(actor)
        actor.state.clear()


class KeeperNode(MakerNode):
    """A daemon that keeps logs of actors."""

    world: Keeping

    def __init__(self, world: World, number: int) -> None:
        super().__init__(world, number)
        links: Any = self.links
        links.on_drains, links.nodes = [], {}
        line: Any = self
        self.recoveries = Recoveries(self.shell, self.free, line, self.loop)  # type: ignore[arg-type]
        self.recoveries.join_cluster(
            self.node_id, links, line, self.fetch, lambda actor_id: self.world.follow(self, actor_id)
        )
        self.followed: set[bytes] = set()

    def node_of(self, process: bytes) -> bytes | None:
        return None if process.startswith(ACTOR) else super().node_of(process)

    def call(self, method: str, body: dict[str, Any], answered: Callable[[Any, Any], None]) -> None:
        """Of `Recoveries`, to the GCS."""
        self.call_gcs(method, sent_body(body), answered)


def sent_body(body: dict[str, Any]) -> dict[str, Any]:
    """As it arrives."""
    found: dict[str, Any] = msgspec.msgpack.decode(msgspec.msgpack.encode(body))
    return found


class Keeping(Remaking):
    """Such a cluster."""

    def __init__(self, seed: int, nodes: int, processes: int, actors: int) -> None:
        super().__init__(seed, nodes, processes, KeeperNode, Liver)
        self.logs = StoredLogs()
        self.actors = [Actor(ACTOR + b"%010d" % number) for number in range(actors)]
        #: nothing has died since all came to rest last, or only one thing
        self.calm = True
        for node in self.nodes:
            for other in self.nodes:
                if other is not node:
                    node.links.nodes[other.node_id] = None  # type: ignore[attr-defined]
                    node.recoveries._holding._on_seen(other.node_id, False)  # type: ignore[attr-defined]
        for actor in self.actors:
            self.begin_life(actor)

    # -------- lives

    def follow(self, node: KeeperNode, actor_id: bytes) -> None:
        """A node wants to hear of an actor's death."""
        node.followed.add(actor_id)
        actor = next(each for each in self.actors if each.actor_id == actor_id)
        if actor.dead:
            node.from_gcs.append(lambda: node.recoveries.drop(actor_id))

    def begin_life(self, actor: Actor) -> None:
        """The next life: in a process that is alive, which may be on another node."""
        able: list[Any] = [each for each in self.processes if each.alive and each.node.node_id not in self.declared]
        if not able or actor.dead:
            return
        life = self.dice.choice(able)
        node = life.node
        actor.life, actor.node = None, node
        actor.incarnation += 1
        incarnation = actor.incarnation
        for other in self.nodes:
            if other is not node and other.alive and actor.actor_id in other.followed:  # type: ignore[attr-defined]
                other.from_gcs.append(lambda other=other: other.recoveries.moved(actor.actor_id))  # type: ignore[attr-defined,misc]

        def begun() -> None:
            if actor.incarnation != incarnation or actor.dead:
                return
            if not life.alive:
                self.begin_life(actor)
                return
            recovery = node.recoveries.recovery(actor.actor_id)
            actor.life = life
            life.actors.append(actor)
            blobs: list[bytes] = []
            actor.index = 0
            if recovery is not None:
                assert not recovery.problem, recovery.problem
                blobs = [recovery.checkpoint, *recovery.records]
                actor.index = recovery.index + len(recovery.records)
            self.run(life, life.recover, actor, blobs)
            self.counts["lives"] += 1

        def told() -> None:
            node.followed.add(actor.actor_id)
            node.recoveries.begin(actor.actor_id, incarnation, begun)

        node.from_gcs.append(told)

    def end_actor(self, actor: Actor) -> None:
        """Nobody wants it any more."""
        actor.dead = True
        if actor.life is not None:
            self.run(actor.life, actor.life.let_go, actor)
            actor.life = None
        self.logs.drop(actor.actor_id, [])
        for node in self.nodes:
            if node.alive and actor.actor_id in node.followed:  # type: ignore[attr-defined]
                node.from_gcs.append(lambda node=node: node.recoveries.drop(actor.actor_id))  # type: ignore[attr-defined,misc]

    def gcs_takes(self, node: Any) -> None:
        method, body, answered = node.to_gcs[0]
        if not method.startswith("gcs.actor_log"):
            super().gcs_takes(node)
            return
        node.to_gcs.popleft()
        actor = next(each for each in self.actors if each.actor_id == body["actor_id"])
        if actor.dead:
            answer = {"accepted": False, "last": 0}
        elif method == "gcs.actor_log_append":
            answer = self.logs.append(body, [])
        else:
            answer = self.logs.claim(body["actor_id"], body["incarnation"], [])
        node.from_gcs.append(lambda: answered(answer, []))

    def in_logs(self) -> set[bytes]:
        """What the GCS has of the logs refers to this."""
        found: set[bytes] = set()
        for log in self.logs._logs.values():
            for blob in (log.head.checkpoint, *log.records):
                found.update(oid for oid, _ in refs_in(blob or b"\x90"))
        return found

    # -------- the twin

    def check_value(self, oid: bytes, value: Any) -> None:
        if type(value) is Failed and self.calm and oid in self.made and not self.made[oid] and oid in self.in_logs():
            alone = b"no process is left on its node" in value.error
            assert alone, f"{oid.hex()}, to which a log refers, is lost: {value.error!r}"
        super().check_value(oid, value)

    # -------- what is done

    def act(self) -> None:
        living = [actor for actor in self.actors if actor.life is not None]
        if not living or self.dice.random() < 0.8:
            super().act()
            return
        actor = self.dice.choice(living)
        life = actor.life
        assert life is not None
        kind = self.dice.randrange(4)
        if kind < 2:
            # What may be lost already, as its giver died, no state saves.
            leaves = [
                ref
                for ref in life.refs
                if self.made.get(ref.binary(), [b"no task"]) == [] and ref.binary() not in self.tainted
            ]
            few = self.dice.sample(leaves, min(len(leaves), 2))
            if few and len(actor.state) < 6:
                self.run(life, life.record, actor, few)
            leaves.clear()
            few.clear()
        elif kind == 2 and actor.state:
            self.run(life, life.forget_some, actor)
        else:
            self.run(life, life.checkpoint, actor)

    # -------- deaths

    def bury(self, process: Process) -> None:
        actors, process.actors = process.actors, []  # type: ignore[attr-defined]
        for actor in actors:
            actor.life = None
            actor.state.clear()
        super().bury(process)
        self.orphans = [*getattr(self, "orphans", []), *actors]

    def kill(self, process: Process) -> None:
        super().kill(process)
        self.begin_again()

    def hear_node_died(self, node: Any, dead: Any) -> None:
        node.links.nodes.pop(dead.node_id, None)
        super().hear_node_died(node, dead)

    def begin_again(self) -> None:
        """The GCS knows of deaths: actors that lived there go on elsewhere."""
        orphans, self.orphans = getattr(self, "orphans", []), []
        waiting = [each for each in self.actors if each.life is None and each.node is not None and not each.node.alive]
        for actor in dict.fromkeys([*orphans, *waiting]):
            self.begin_life(actor)

    def kill_node(self, node: Any, lives_on: bool = False) -> None:
        super().kill_node(node, lives_on)
        self.begin_again()

    # -------- the end

    def finish(self) -> None:
        self.settle()
        for _ in range(8):
            for process in self.processes:
                if process.alive:
                    self.run(process, process.get_all)  # type: ignore[attr-defined]
            self.settle()
        self.check_keepers()
        for actor in self.actors:
            self.check_state(actor)
            self.counts["refs in states"] += len(actor.state)
            self.end_actor(actor)
        self.settle()
        super().finish()
        for node in self.nodes:
            if node.alive:
                left = node.recoveries.statistics()  # type: ignore[attr-defined]
                assert not any(left.values()), f"{left} is left"

    def check_keepers(self) -> None:
        """After another checkpoint all that a log refers to has its keepers, and they hold nothing else for it."""
        for actor in self.actors:
            if actor.life is not None:
                self.run(actor.life, actor.life.checkpoint, actor)
        self.settle()
        for actor in self.actors:
            kept: set[bytes] = set()
            for node in self.nodes:
                if node.alive:
                    kept.update(node.recoveries._holding._kept._kept.get(actor.actor_id, ()))  # type: ignore[attr-defined]
            if actor.life is not None and sum(node.alive for node in self.nodes) > 1:
                state = {ref.binary() for ref in actor.state}
                assert kept == state, (
                    f"of a state nobody keeps {state - kept}, and {kept - state} is kept that is not in it"
                )

    def check_state(self, actor: Actor) -> None:
        """Each ref in it has a value by now."""
        for ref in actor.state:
            assert ref.binary() not in self.made or ref._entry.value is not None, "a ref of a state has no value"
