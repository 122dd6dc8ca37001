"""Fault campaigns: one seed draws a cluster, work, and what goes wrong; then everything must be well.

Design, as TigerBeetle's simulator has it: a *safety* phase with faults, in which the checks of `Cluster.check_safety` hold after every slice of
time; then a
*liveness* phase without, at whose end all work of living drivers is done, no task ran more often than its retries allow, and nothing is left
anywhere. A seed that fails prints the command that shows it again.

    python -m shoal.simulator campaign --seeds 1000            python -m shoal.simulator campaign --seed 17
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from shoal.gcs.actor_manager import ActorRecord
from shoal.protocol.gcs_messages import (
    DEATH_CONSTRUCTOR,
    DEATH_CRASHED,
    DEATH_GROUP_REMOVED,
    DEATH_JOB_ENDED,
    DEATH_KILLED,
    DEATH_UNSCHEDULABLE,
)
from shoal.protocol.limits import HEARTBEATS_MISSED_S
from shoal.protocol.messages import CHECKPOINT_INTERVAL, ActorSpec
from shoal.protocol.strategies import node_affinity
from shoal.simulator.actors import Actor, Call, Life
from shoal.simulator.cluster import DRIVER_DIED, Cluster, Violation
from shoal.simulator.exact import ExactLife, Seen
from shoal.simulator.gcs import Gcs
from shoal.simulator.group_work import BUNDLES_MAX, GroupWork
from shoal.simulator.keys import KeyWork
from shoal.simulator.node import Node
from shoal.simulator.process import Process, Worker
from shoal.simulator.tasks import Task, tree
from shoal.simulator.world import Costs

FAULT_PHASE_S = 6.0
CALLS_S = 12.0  #: for so long an actor is called: also after its node was given up
LIVENESS_S = 120.0
DRAIN_S = 12.0
SLICE_S = 0.05
LOOK_S = 0.25
HEAL_S = 16.0  #: partitions end, the dead are buried, the GCS is back
FAULTS = (
    "worker",
    "worker",
    "worker",
    "worker",
    "node",
    "gcs",
    "partition",
    "long partition",
    "gcs partition",
    "join",
    "driver",
    "slow",
    "storage",
    "lost answer",
    "actor",
    "drain",
    "drain",
    "life",
    "home",
)
#: in campaigns that are about actors with checkpoints
EXACT_FAULTS = (
    "life",
    "life",
    "life",
    "home",
    "home",
    "gcs",
    "partition",
    "long partition",
    "slow",
    "storage",
    "lost answer",
    "actor",
    "join",
    "join",
)
#: by these no task is lost, and none runs twice
GENTLE = {"join", "slow", "drain"}


@dataclass(slots=True)
class Outcome:
    """What became of a seed."""

    seed: int
    tasks: int
    failed: int
    faults: dict[str, int]
    virtual_s: float


def _work(dice: random.Random) -> list[Task]:
    """Tasks of some kind."""
    kind = dice.choice(["short", "long", "tree", "mixed", "spread", "affine"])
    if kind == "short":
        return [Task(0.0) for _ in range(dice.randrange(1, 2000))]
    if kind == "long":
        return [Task(dice.uniform(0.01, 0.3)) for _ in range(dice.randrange(1, 60))]
    if kind == "tree":
        return [tree(dice.randrange(1, 4), dice.randrange(2, 5), dice.uniform(0.0, 0.02))]
    if kind == "spread":
        return [Task(dice.uniform(0.0, 0.05), strategy={"kind": "SPREAD"}) for _ in range(dice.randrange(1, 50))]
    if kind == "affine":
        return [Task(0.01, demand={"CPU": 10_000, "node:1": 1}) for _ in range(dice.randrange(1, 30))]
    return [
        Task(dice.choice([0.0, 0.001, 0.05]), demand={"CPU": dice.choice([0, 5_000, 10_000, 20_000])})
        for _ in range(dice.randrange(1, 200))
    ]


def _may_end(actor: Actor, record: ActorRecord | None, end: str, faults: bool) -> bool:
    """Whether a call may end so, as things went."""
    if end in ("done", DRIVER_DIED):
        return True
    if end == "actor unavailable":
        return faults
    limit = actor.spec.max_restarts
    return {
        DEATH_CRASHED: faults and limit >= 0 and record is not None and record.restarts == limit,
        DEATH_KILLED: actor.killed,
        DEATH_CONSTRUCTOR: actor.fails,
        DEATH_UNSCHEDULABLE: faults,
        DEATH_GROUP_REMOVED: actor.in_group,
        DEATH_JOB_ENDED: faults,
    }.get(end.removeprefix("actor died: "), False)


class Campaign:
    """One seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        dice = self._dice = random.Random(seed)
        costs = Costs(network_s=dice.choice([20e-6, 200e-6, 5e-3]), network_spread=dice.choice([0.0, 0.5, 20.0]))
        nodes, cpus = dice.randrange(1, 7), dice.randrange(2, 5)
        # Dice of their own: seeds of a GCS of one shard are what they were before there were several.
        self._shard_dice = random.Random(~seed)
        self.cluster = Cluster(seed, nodes, cpus, costs, shards=self._shard_dice.choice([1, 1, 1, 1, 1, 1, 2, 3]))
        self.faults: dict[str, int] = {}
        self._cpus = cpus
        self._dropped: set[bytes] = set()
        self._calls_until = 0.0
        self._exact = dice.random() < 0.15  #: it is about actors with checkpoints
        self._late = 0  #: place of the first node that came when faults were over
        self._groups = GroupWork(self.cluster, dice, cpus, self._make_actor_in)
        self._keys = KeyWork(self.cluster, self._shard_dice)

    def run(self) -> Outcome:
        """Both phases.

        Raises:
            Violation: something that must hold does not.
        """
        cluster, dice, world = self.cluster, self._dice, self.cluster.world
        cluster.settle(0.5)
        for _ in range(dice.choice([1, 2, 3])):
            cluster.add_driver(dice.choice(list(cluster.nodes.values())))
        begin, end = world.now, world.now + FAULT_PHASE_S
        self._calls_until = dice.uniform(begin, begin + CALLS_S)
        for driver in cluster.drivers:
            for _ in range(dice.randrange(1, 5)):
                world.at(begin + dice.uniform(0, FAULT_PHASE_S), self._submit, driver, _work(dice))
            for _ in range(3 if self._exact else dice.choice([0, 0, 1, 3])):
                world.at(begin + dice.uniform(0, FAULT_PHASE_S / 2), self._make_actor, driver)
            for _ in range(dice.choice([0, 0, 1, 2])):
                world.at(begin + dice.uniform(0, FAULT_PHASE_S / 2), self._groups.make, driver)
        if len(cluster.shards) > 1:
            self._keys.begin()
        rate = 4.0 if self._exact else dice.choice([0.0, 0.5, 2.0, 6.0])
        for _ in range(int(rate * FAULT_PHASE_S)):
            world.at(begin + dice.uniform(0, FAULT_PHASE_S), self._fault)
        while world.now < end:
            world.run(min(end, world.now + SLICE_S))
            cluster.check_safety()
            self._groups.check_safety()
            if self.faults:
                cluster.check_replica()
        return self._liveness()

    def _submit(self, driver: Process, tasks: list[Task]) -> None:
        if not driver.dead:
            self.cluster.submit(driver, tasks)

    def _make_actor(self, driver: Process) -> None:
        """A driver makes an actor, calls it, perhaps lets others call it, and drops it when all are answered."""
        if driver.dead:
            return
        dice = self._dice
        demand = dice.choice([{}, {"CPU": 10_000}])
        where = dice.choice([driver, *self.cluster.drivers]).node.node_id
        # Beside one of those who call it.
        self._make_actor_of(driver, demand, demand or {"CPU": 10_000}, dice.choice([{}, node_affinity(where, True)]))

    def _make_actor_in(self, driver: Process, strategy: dict[str, object]) -> Actor:
        """One in a placement group."""
        actor = self._make_actor_of(driver, {}, {}, strategy)
        actor.in_group = True
        return actor

    def _make_actor_of(
        self, driver: Process, demand: dict[str, int], placement: dict[str, int], strategy: dict[str, object]
    ) -> Actor:
        cluster, dice = self.cluster, self._dice
        spec = ActorSpec(
            cluster.new_id(), b"class", "Actor", driver.job_id, "", "", demand, placement, b"", None,
            max_restarts=dice.choice([0, 1, 3, -1]), strategy=strategy, home=driver.node.node_id,
        )  # fmt: skip
        actor = Actor(spec, dice.choice([0.001, 0.05, 0.5]), dice.random() < 0.05)
        if self._exact or dice.random() < 0.4:
            spec.options = {CHECKPOINT_INTERVAL: dice.choice([1, 5, 20, 1000])}
            spec.max_restarts = dice.choice([0, 3, -1, -1, -1])
            actor.live, actor.seen = ExactLife, Seen()
        others = [each for each in cluster.drivers if each is not driver and not each.dead]

        def known() -> None:
            for other in others:
                if not other.dead:
                    self._call_now_and_then(other, actor)

        cluster.create_actor(driver, actor, known)
        self._call_now_and_then(driver, actor)
        cluster.world.after(1.0, self._drop_when_done, driver, actor)
        return actor

    def _call_now_and_then(self, caller: Process, actor: Actor) -> None:
        dice, world = self._dice, self.cluster.world
        retries = dice.choice([0, 0, 1, 3])
        self.cluster.call(caller, actor, [Call(0.001, retries)])
        for _ in range(dice.choice([0, 5, 30])):
            calls = [Call(dice.choice([0.0, 0.001, 0.05]), retries) for _ in range(dice.choice([1, 1, 1, 20]))]
            world.after(dice.uniform(0, CALLS_S), self._call, caller, actor, calls)

    def _call(self, caller: Process, actor: Actor, calls: list[Call]) -> None:
        if not caller.dead and actor.spec.actor_id not in self._dropped:
            self.cluster.call(caller, actor, calls)

    def _drop_when_done(self, driver: Process, actor: Actor) -> None:
        if driver.dead:
            return
        if self.cluster.world.now < self._calls_until or any(not call.end for call in actor.calls):
            self.cluster.world.after(0.5, self._drop_when_done, driver, actor)
            return
        self._dropped.add(actor.spec.actor_id)
        driver.node.actors.handles_gone(actor.spec.actor_id)

    def _liveness(self) -> Outcome:
        cluster, world = self.cluster, self.cluster.world
        self._late = len(cluster.nodes)
        if self._groups.groups:
            for _ in range(BUNDLES_MAX):  # every group has room
                cluster.add_node(self._cpus)
        world.run(world.now + HEAL_S)
        self._groups.faults_over = True
        self._run_while(lambda: bool(cluster.unfinished() or cluster.unanswered()))
        left = cluster.unfinished()
        if left:
            raise Violation(f"{len(left)} of {len(cluster.tasks)} tasks do not end: {self._story(left[0])}")
        silent = cluster.unanswered()
        if silent:
            raise Violation(f"{len(silent)} calls of actors do not end: {self._story_of_call(silent[0])}")
        self._run_while(lambda: bool(self._groups.unremoved()))
        if self._groups.unremoved():
            raise Violation(f"a placement group does not come to what it should be: {self._groups.unremoved()}")
        world.run(world.now + DRAIN_S)
        cluster.check_drained()
        self._groups.check_drained()
        self._keys.check_drained()
        cluster.check_replica(again=True)
        self._check_calls()
        failed = [task for task in cluster.tasks if task.end != "done" and not self._groups.was_removed(task)]
        gentle = set(self.faults) <= GENTLE and not any(group.early for group in self._groups.groups)
        if gentle and (again := [task for task in cluster.tasks if task.executions > 1]):
            if all("not empty at the deadline" not in node.left for node in cluster.nodes.values()):
                raise Violation(f"no process died, but {len(again)} tasks ran more than once: {again[0]}")
        if not self.faults and any(not task.end.startswith("unschedulable") for task in failed):
            raise Violation(f"nothing went wrong, but a task failed: {failed[0].end}")
        for task in failed:
            if task.end == "worker died" and task.executions < 1:
                raise Violation("a task failed for the death of a worker on which it never began")
            if task.end.startswith("unschedulable") and not self._may_be_impossible(task):
                raise Violation(f"a task was refused that there was room for: {task.end}")
        return Outcome(self.seed, len(cluster.tasks), len(failed), self.faults, world.now)

    def _run_while(self, waits: Callable[[], bool]) -> None:
        world = self.cluster.world
        until = world.now + LIVENESS_S
        while world.now < until and waits():
            world.run(world.now + LOOK_S)

    def _may_be_impossible(self, task: Task) -> bool:
        alive = [node for node in self.cluster.nodes.values() if not node.dead and node.place < self._late]
        return not any(
            all(node.resources.get(name, 0) >= units for name, units in task.demand.items()) for node in alive
        ) or bool(self.faults)

    def _check_calls(self) -> None:
        assert self.cluster.gcs.shard is not None
        for actor_id, actor in self.cluster.actors.items():
            record = self.cluster.gcs.shard.actors.get(actor_id)
            self._check_exact(actor)
            for end in dict.fromkeys(call.end for call in actor.calls):
                if not _may_end(actor, record, end, bool(self.faults)):
                    raise Violation(f"a call ended with {end!r}: {self._story_of(actor)}")

    def _check_exact(self, actor: Actor) -> None:
        """Each call that was answered is in the state of the youngest life that has answered, once, at its place."""
        if actor.youngest >= 0 and isinstance(life := actor.lives[actor.youngest], ExactLife):
            actor.seen.check(life.state())
            if any(call.end == "actor unavailable" for call in actor.calls):
                raise Violation(f"a call of an actor with checkpoints was given up: {self._story_of(actor)}")

    def _story_of_call(self, call: Call) -> str:
        actor = next(actor for actor in self.cluster.actors.values() if call in actor.calls)
        return f"{call}; {self._story_of(actor)}"

    def _story_of(self, actor: Actor) -> str:
        shard = self.cluster.gcs.shard
        story = shard.actors.story(actor.spec.actor_id) if shard is not None else []
        return f"{len(actor.lives)} lives, max_restarts {actor.spec.max_restarts}: " + "; ".join(story)

    def _story(self, task: Task) -> str:
        nodes = [
            f"node {node.place}{' (dead)' if node.dead else ''}: {node.machine.statistics()}, {node.forwarding.statistics()}"
            for node in self.cluster.nodes.values()
        ]
        scheduler = self.cluster.gcs.shard.scheduler.statistics() if self.cluster.gcs.shard else None
        return f"{task}; {nodes}; global scheduler {scheduler}"

    # ---------------------------------------------------------------- faults

    def _fault(self) -> None:
        name = self._dice.choice(EXACT_FAULTS if self._exact else FAULTS)
        happened: dict[str, Callable[[], bool]] = {
            "worker": self._kill_worker,
            "node": self._kill_node,
            "gcs": self._kill_gcs,
            "partition": self._cut_off_node,
            "long partition": self._cut_off_for_long,
            "gcs partition": self._cut_off_gcs,
            "join": self._join,
            "driver": self._kill_driver,
            "slow": self._slow_down,
            "storage": self._fail_storage,
            "lost answer": self._lose_answer,
            "drain": self._drain,
            "life": self._kill_life,
            "home": self._end_home,
            "actor": self._kill_actor,
        }
        if happened[name]():
            self.faults[name] = self.faults.get(name, 0) + 1

    def _kill_worker(self) -> bool:
        workers = [each for each in self.cluster.processes.values() if isinstance(each, Worker)]
        if workers:
            self.cluster.kill_worker(self._dice.choice(workers))
        return bool(workers)

    def _server(self) -> Gcs:
        """One of the GCS's shards."""
        return self._shard_dice.choice(self.cluster.shards)

    def _can_go(self, node: Node) -> bool:
        """With several shards the head is not declared dead: it has them, and so goes with the GCS."""
        return not node.dead and (node.place > 0 or len(self.cluster.shards) == 1)

    def _without_drivers(self) -> list[Node]:
        homes = {driver.node.place for driver in self.cluster.drivers}
        return [node for node in self.cluster.nodes.values() if self._can_go(node) and node.place not in homes]

    def _kill_node(self) -> bool:
        nodes = self._without_drivers()
        if nodes:
            self.cluster.kill_node(self._dice.choice(nodes))
        return bool(nodes)

    def _drain(self) -> bool:
        # SIGTERM, or `shoal drain` from another node with some time.
        nodes = [node for node in self._without_drivers() if node.place and node.node_no]
        return bool(nodes) and self._drain_node(self._dice.choice(nodes))

    def _drain_node(self, node: Node) -> bool:
        others = sum(not each.dead for each in self.cluster.nodes.values()) - 1
        if self._dice.random() < 0.5:
            return node.draining.on_signal(others)
        asks = self._dice.choice([each for each in self.cluster.nodes.values() if not each.dead])
        body = {"node_id": node.node_id, "deadline_s": self._dice.choice([0.2, 3.0, 60.0]), "reason": "it is asked to"}
        asks.actors.line.call("gcs.drain_node", body)
        return True

    def _kill_gcs(self) -> bool:
        server = self._server()
        if server.shard is None:
            return False
        self.cluster.kill_gcs(self._dice.uniform(0.05, 2.0), server.number)
        return True

    def _cut_off_node(self) -> bool:
        # Shorter than what makes a node dead: it is alive, and nothing of it may be lost.
        node = self._dice.choice(list(self.cluster.nodes.values()))
        self.cluster.world.cut_off(node.place, self._dice.uniform(0.01, 3.0))
        return True

    def _cut_off_for_long(self) -> bool:
        # Longer than a node may be silent: it is declared dead while it lives, and must find that out.
        nodes = [node for node in self.cluster.nodes.values() if self._can_go(node)]
        if sum(not node.dead for node in self.cluster.nodes.values()) < 2 or not nodes:
            return False
        self.cluster.world.cut_off(self._dice.choice(nodes).place, HEARTBEATS_MISSED_S + self._dice.uniform(0.5, 3.0))
        return True

    def _cut_off_gcs(self) -> bool:
        self.cluster.world.cut_off(self._server().place, self._dice.uniform(0.01, 3.0))
        return True

    def _join(self) -> bool:
        self.cluster.add_node(self._cpus)
        return True

    def _slow_down(self) -> bool:
        places = [self._server().place, *(node.place for node in self.cluster.nodes.values())]
        self.cluster.world.slow_down(
            self._dice.choice(places), self._dice.uniform(0.1, 2.0), self._dice.choice([0.005, 0.05, 0.5])
        )
        return True

    def _fail_storage(self) -> bool:
        server = self._server()
        server.commits_fail = server.shard is not None
        return server.commits_fail

    def _youngest_lives(self) -> list[Life]:
        lives = [actor.lives[-1] for actor in self.cluster.actors.values() if actor.lives]
        return [life for life in lives if not life.worker.dead]

    def _kill_life(self) -> bool:
        # kill -9 of an actor's worker.
        lives = self._youngest_lives()
        if lives:
            self.cluster.kill_worker(self._dice.choice(lives).worker)
        return bool(lives)

    def _end_home(self) -> bool:
        # The node of an actor is killed, cut off until it is given up, or drained.
        can_go = [node for node in self._without_drivers() if node.place and node.node_no]
        nodes = [life.worker.node for life in self._youngest_lives() if life.worker.node in can_go]
        if not nodes:
            return False
        node, how = self._dice.choice(nodes), self._dice.randrange(3)
        if how == 0:
            self.cluster.kill_node(node)
        elif how == 1:
            self.cluster.world.cut_off(node.place, HEARTBEATS_MISSED_S + self._dice.uniform(0.5, 3.0))
        return how < 2 or self._drain_node(node)

    def _lose_answer(self) -> bool:
        # The commit is done, but nobody hears of it: the server dies just then.
        server = self._server()
        server.answers_lost = server.shard is not None
        return server.answers_lost

    def _kill_actor(self) -> bool:
        # kill(actor) by a process of some node, which may be another one than it lives on.
        actors = list(self.cluster.actors.values())
        nodes = [node for node in self.cluster.nodes.values() if not node.dead and node.node_no]
        if not actors or not nodes:
            return False
        actor, no_restart = self._dice.choice(actors), self._dice.random() < 0.5
        actor.killed = actor.killed or no_restart
        self._dice.choice(nodes).actors.kill(actor.spec.actor_id, no_restart)
        return True

    def _kill_driver(self) -> bool:
        alive = [driver for driver in self.cluster.drivers if not driver.dead]
        if len(alive) < 2:
            return False
        driver = self._dice.choice(alive)
        self.cluster.abandon(driver)
        return True


def run_seed(seed: int) -> Outcome:
    """Run one seed.

    Raises:
        Violation: with the command that shows it again.
    """
    try:
        return Campaign(seed).run()
    except AssertionError as error:
        raise Violation(
            f"seed {seed}: {error}\nshown again by: python -m shoal.simulator campaign --seed {seed}"
        ) from error
