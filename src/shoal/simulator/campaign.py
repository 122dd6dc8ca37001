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

from shoal.protocol.limits import HEARTBEATS_MISSED_S
from shoal.simulator.cluster import Cluster, Violation
from shoal.simulator.process import Process, Worker
from shoal.simulator.tasks import Task, tree
from shoal.simulator.world import GCS, Costs

FAULT_PHASE_S = 6.0
LIVENESS_S = 120.0
DRAIN_S = 12.0
SLICE_S = 0.05
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
)


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


class Campaign:
    """One seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        dice = self._dice = random.Random(seed)
        costs = Costs(network_s=dice.choice([20e-6, 200e-6, 5e-3]), network_spread=dice.choice([0.0, 0.5, 20.0]))
        nodes, cpus = dice.randrange(1, 7), dice.randrange(2, 5)
        self.cluster = Cluster(seed, nodes, cpus, costs)
        self.faults: dict[str, int] = {}
        self._cpus = cpus

    def run(self) -> Outcome:
        """Both phases.

        Raises:
            Violation: something that must hold does not.
        """
        cluster, dice, world = self.cluster, self._dice, self.cluster.world
        cluster.settle(0.5)
        for _ in range(dice.randrange(1, 3)):
            cluster.add_driver(dice.choice(list(cluster.nodes.values())))
        begin, end = world.now, world.now + FAULT_PHASE_S
        for driver in cluster.drivers:
            for _ in range(dice.randrange(1, 5)):
                world.at(begin + dice.uniform(0, FAULT_PHASE_S), self._submit, driver, _work(dice))
        rate = dice.choice([0.0, 0.5, 2.0, 6.0])
        for _ in range(int(rate * FAULT_PHASE_S)):
            world.at(begin + dice.uniform(0, FAULT_PHASE_S), self._fault)
        while world.now < end:
            world.run(min(end, world.now + SLICE_S))
            cluster.check_safety()
        return self._liveness()

    def _submit(self, driver: Process, tasks: list[Task]) -> None:
        if not driver.dead:
            self.cluster.submit(driver, tasks)

    def _liveness(self) -> Outcome:
        cluster, world = self.cluster, self.cluster.world
        world.run(world.now + HEAL_S)
        cluster.run(world.now + LIVENESS_S)
        left = cluster.unfinished()
        if left:
            raise Violation(f"{len(left)} of {len(cluster.tasks)} tasks do not end: {self._story(left[0])}")
        world.run(world.now + DRAIN_S)
        cluster.check_drained()
        failed = [task for task in cluster.tasks if task.end != "done"]
        if not self.faults and any(not task.end.startswith("unschedulable") for task in failed):
            raise Violation(f"nothing went wrong, but a task failed: {failed[0].end}")
        for task in failed:
            if task.end == "worker died" and task.executions < 1:
                raise Violation("a task failed for the death of a worker on which it never began")
            if task.end.startswith("unschedulable") and not self._may_be_impossible(task):
                raise Violation(f"a task was refused that there was room for: {task.end}")
        return Outcome(self.seed, len(cluster.tasks), len(failed), self.faults, world.now)

    def _may_be_impossible(self, task: Task) -> bool:
        alive = [node for node in self.cluster.nodes.values() if not node.dead]
        return not any(
            all(node.resources.get(name, 0) >= units for name, units in task.demand.items()) for node in alive
        ) or bool(self.faults)

    def _story(self, task: Task) -> str:
        nodes = [
            f"node {node.place}{' (dead)' if node.dead else ''}: {node.machine.statistics()}, {node.forwarding.statistics()}"
            for node in self.cluster.nodes.values()
        ]
        scheduler = self.cluster.gcs.shard.scheduler.statistics() if self.cluster.gcs.shard else None
        return f"{task}; {nodes}; global scheduler {scheduler}"

    # ---------------------------------------------------------------- faults

    def _fault(self) -> None:
        name = self._dice.choice(FAULTS)
        happened: dict[str, Callable[[], bool]] = {
            "worker": self._kill_worker,
            "node": self._kill_node,
            "gcs": self._kill_gcs,
            "partition": self._cut_off_node,
            "long partition": self._cut_off_for_long,
            "gcs partition": self._cut_off_gcs,
            "join": self._join,
            "driver": self._kill_driver,
        }
        if happened[name]():
            self.faults[name] = self.faults.get(name, 0) + 1

    def _kill_worker(self) -> bool:
        workers = [each for each in self.cluster.processes.values() if isinstance(each, Worker)]
        if workers:
            self.cluster.kill_worker(self._dice.choice(workers))
        return bool(workers)

    def _kill_node(self) -> bool:
        homes = {driver.node.place for driver in self.cluster.drivers}
        nodes = [node for node in self.cluster.nodes.values() if not node.dead and node.place not in homes]
        if nodes:
            self.cluster.kill_node(self._dice.choice(nodes))
        return bool(nodes)

    def _kill_gcs(self) -> bool:
        if self.cluster.gcs.shard is None:
            return False
        self.cluster.kill_gcs(self._dice.uniform(0.05, 2.0))
        return True

    def _cut_off_node(self) -> bool:
        # Shorter than what makes a node dead: it is alive, and nothing of it may be lost.
        node = self._dice.choice(list(self.cluster.nodes.values()))
        self.cluster.world.cut_off(node.place, self._dice.uniform(0.01, 3.0))
        return True

    def _cut_off_for_long(self) -> bool:
        # Longer than a node may be silent: it is declared dead while it lives, and must find that out.
        nodes = [node for node in self.cluster.nodes.values() if not node.dead]
        if len(nodes) < 2:
            return False
        self.cluster.world.cut_off(self._dice.choice(nodes).place, HEARTBEATS_MISSED_S + self._dice.uniform(0.5, 3.0))
        return True

    def _cut_off_gcs(self) -> bool:
        self.cluster.world.cut_off(GCS, self._dice.uniform(0.01, 3.0))
        return True

    def _join(self) -> bool:
        self.cluster.add_node(self._cpus)
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
