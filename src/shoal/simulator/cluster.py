"""A whole cluster in one process: nodes, the GCS, drivers, what can go wrong, and what must hold all the same.

Design: `check_safety` may be called after any event, `check_drained` when nothing is left to do. They look from outside: they believe what tasks
and machines show, not what these say of each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from shoal.gcs.shard import GcsShard
from shoal.simulator.actors import Actor, Call, CallQueue
from shoal.simulator.gcs import Gcs
from shoal.simulator.node import Node
from shoal.simulator.process import Process, Worker
from shoal.simulator.tasks import RETRIES, Task
from shoal.simulator.world import Costs, World

DRIVER_DIED = "its driver died"


class Violation(AssertionError):
    """Something that must never be."""


def _known(shard: GcsShard) -> dict[str, dict[bytes, tuple[Any, ...]]]:
    """What a server must not forget."""
    return {
        "node": {row.node.node_id: (row.node_no, row.alive) for row in shard.nodes.records()},
        "job": {row["job_id"]: (row["state"], row["node_id"]) for row in shard.jobs.rows()},
        "actor": {
            row.spec.actor_id: (row.state, row.incarnation, row.moves, row.node_id, row.worker_id, row.lease_id)
            for row in shard.actors.records()
        },
        "key": {key: (shard.hashed.kv.get(key),) for key in shard.hashed.kv.keys(b"")},
        "trace events": {b"": (len(shard.hashed.task_events),)},
    }


@dataclass(slots=True)
class Report:
    """What a run was like. Times in seconds of virtual time."""

    nodes: int
    tasks: int
    duration_s: float
    tasks_s: float  #: per second
    latency_s: dict[str, float]  #: from submission to start: percentiles 50, 99, 100
    balance: dict[str, float]  #: tasks a node: least, mean, most
    messages: dict[str, int]  #: to each kind of component
    messages_by_type: dict[str, int]
    busy: dict[str, float]  #: share of the time: the GCS, the mean and the busiest daemon, the busiest submitter
    failed: dict[str, int] = field(default_factory=dict)


class Cluster:
    """Nodes and a GCS in virtual time.

    Args:
        seed: of everything.
        nodes: how many.
        cpus: of each.
        costs: what things take.
        joined: the nodes of the beginning are not told of each other (with thousands of them that alone takes long); they live as long as
            the run.
        shards: of the GCS.
    """

    def __init__(
        self, seed: int, nodes: int, cpus: int, costs: Costs | None = None, *, joined: bool = False, shards: int = 1
    ) -> None:
        self.world = World(seed, costs or Costs())
        #: of the GCS, by number
        self.shards = [Gcs(self.world, number, shards) for number in range(shards)]
        self.gcs = self.shards[0]
        self.gcs.tells_nodes = not joined
        self.nodes: dict[bytes, Node] = {}
        self.processes: dict[bytes, Process] = {}
        self._ids = 0
        #: shard -> how much was stored when it was looked at last
        self._checked: dict[int, int] = {}
        self.tasks: list[Task] = []
        self._tasks_of: dict[bytes, list[Task]] = {}
        self._calls_of: dict[bytes, list[Call]] = {}
        self.drivers: list[Process] = []
        self.actors: dict[bytes, Actor] = {}
        self._queues: dict[tuple[bytes, bytes], CallQueue] = {}
        for place in range(nodes):
            self._add_node(place, cpus)

    def shard_addresses(self) -> list[str]:
        """Where the shards beyond the first listen."""
        return [f"tcp:shard{gcs.number}" for gcs in self.shards[1:]]

    def new_id(self) -> bytes:
        """An id that nobody has."""
        self._ids += 1
        return self._ids.to_bytes(16, "big")

    def _add_node(self, place: int, cpus: int) -> Node:
        resources = {"CPU": cpus * 10_000, f"node:{place}": 10_000}
        node = Node(self.world, self, place, self.new_id(), resources)
        self.nodes[node.node_id] = node
        self.world.at(self.world.now + place * 1e-6, node.begin)
        return node

    def add_node(self, cpus: int) -> Node:
        """One more joins."""
        return self._add_node(len(self.nodes), cpus)

    def settle(self, seconds: float = 1.0) -> None:
        """Let the nodes join."""
        self.world.run(self.world.now + seconds)

    def forget_busy(self) -> None:
        """What was done so far is not in the figures."""
        self.gcs.station.busy_s = 0.0
        for node in self.nodes.values():
            node.station.busy_s = 0.0

    def add_driver(self, node: Node) -> Process:
        """A driver on a node, with a job of its own."""
        driver = Process(self.world, node, self.new_id(), (len(self.drivers) + 1).to_bytes(4, "big"))
        node.add_process(driver)
        self.drivers.append(driver)
        node.actors.line.call("gcs.register_job", {"job_id": driver.job_id, "namespace": "", "pid": 1})
        return driver

    def submit(self, driver: Process, tasks: list[Task]) -> None:
        """A driver submits tasks now; they are watched to their end."""
        self.tasks += tasks
        self._tasks_of.setdefault(driver.process_id, []).extend(tasks)
        driver.submit(tasks)

    def create_actor(self, driver: Process, actor: Actor, then: Callable[[], None] = lambda: None) -> None:
        """A driver makes an actor; `then` when the GCS knows it."""
        self.actors[actor.spec.actor_id] = actor
        driver.node.actors.create(actor.spec, then)

    def call(self, caller: Process, actor: Actor, calls: list[Call]) -> None:
        """A process calls an actor."""
        key = (caller.process_id, actor.spec.actor_id)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = CallQueue(actor, caller)
            caller.actor_calls.append(queue)
            caller.node.actors.subscribe(queue)
        self._calls_of.setdefault(caller.process_id, []).extend(calls)
        queue.call(calls)

    def worker(self, worker_id: bytes) -> Worker | None:
        """A worker by its id, None when it is dead."""
        process = self.processes.get(worker_id)
        return process if isinstance(process, Worker) else None

    def process(self, process_id: bytes) -> Process | None:
        """A process by its id, None when it is dead."""
        return self.processes.get(process_id)

    # ---------------------------------------------------------------- faults

    def kill_worker(self, worker: Worker) -> None:
        """kill -9 of a worker."""
        worker.node.process_died(worker, "killed")

    def kill_node(self, node: Node, cause: str = "killed") -> None:
        """The machine is gone: everybody there, and their connections."""
        if node.dead:
            return
        connection = node.gcs_connection
        for driver in self.drivers:
            if driver.node is node:
                self._give_up(driver)
        node.die()
        if connection:
            self.world.after(self.world.costs.network_s, self.gcs.lose, connection, cause)
        for line in node.shards.others if node.shards is not None else ():
            if line.connection:
                shard = self.shards[line.number]
                self.world.after(self.world.costs.network_s, shard.lose, line.connection, cause)

    def abandon(self, driver: Process) -> None:
        """kill -9 of a driver: its job is over, what it submitted is nobody's any more."""
        self._give_up(driver)
        driver.node.actors.line.call("gcs.end_job", {"job_id": driver.job_id, "reason": "killed"})
        driver.node.process_died(driver, "killed")

    def _give_up(self, driver: Process) -> None:
        for task in self._tasks_of.pop(driver.process_id, []):
            if not task.end:
                task.end = DRIVER_DIED
        for call in self._calls_of.pop(driver.process_id, []):
            if not call.end:
                call.end = DRIVER_DIED

    def kill_gcs(self, away_s: float, number: int = 0) -> None:
        """kill -9 of a shard of the GCS; another one begins after a while."""
        gcs = self.shards[number]
        if gcs.shard is not None:
            gcs.kill()
            self.world.after(away_s, gcs.start)

    # ---------------------------------------------------------------- what must hold

    def run(self, until: float) -> None:
        """Let time pass until all tasks have ended, or to `until`."""
        left = [task for task in self.tasks if not task.end]

        def done() -> bool:
            while left and left[-1].end:
                left.pop()
            return not left

        self.world.run(until, done)

    def unfinished(self) -> list[Task]:
        """Tasks of living drivers that have not ended."""
        return [task for task in self.tasks if not task.end]

    def unanswered(self) -> list[Call]:
        """Calls of living drivers that have not ended."""
        return [call for actor in self.actors.values() for call in actor.calls if not call.end]

    def check_safety(self) -> None:
        """What holds after every event.

        Raises:
            Violation: it does not.
        """
        for task in self.tasks:
            if task.executions > 1 + RETRIES:
                raise Violation(f"a task began {task.executions} times, with {RETRIES} retries")
        if self.gcs.shard is not None:
            for actor_id, actor in self.actors.items():
                record = self.gcs.shard.actors.get(actor_id)
                actor.check(record.moves if record is not None else 0)
        for node in self.nodes.values():
            if not node.dead:
                node.machine.check()

    def check_drained(self) -> None:
        """What holds when all work is done and idle leases have ended.

        Raises:
            Violation: something is left.
        """
        self.check_safety()
        for node in self.nodes.values():
            if node.dead:
                continue
            what = f"node {node.place}"
            statistics = node.machine.statistics()
            if statistics.leases or statistics.classes_waiting:
                raise Violation(f"{what}: {statistics.leases} leases, {statistics.classes_waiting} classes are left")
            if node.machine.available() != node.machine.total():
                raise Violation(f"{what}: of {node.machine.total()} only {node.machine.available()} is free")
            left = node.forwarding.statistics()
            left.update(node.actors.left())
            left["said and not confirmed by other shards"] = node.shards.left() if node.shards is not None else 0
            if any(left.values()):
                raise Violation(f"{what}: {left} are left")
        assert self.gcs.shard is not None
        for gcs in self.shards:
            assert gcs.shard is not None
            scheduler = gcs.shard.scheduler.statistics()
            if scheduler["waiting"]:
                what = f"the global scheduler of shard {gcs.number}"
                raise Violation(f"{what}: {scheduler['waiting']} leases are waited for by nobody")
        living = [record for record in self.gcs.shard.actors.records() if record.state != "dead"]
        if living:
            story = "; ".join(self.gcs.shard.actors.story(living[0].spec.actor_id))
            raise Violation(f"{len(living)} actors live though nobody has a handle: {living[0].state}, {story}")
        alive = {node.node_id for node in self.nodes.values() if not node.dead}
        known = {row["node_id"] for row in self.gcs.shard.nodes.rows() if row["state"] != "dead"}
        if alive != known:
            raise Violation(f"{len(alive)} nodes live, the GCS knows {len(known)}")
        for node in self.nodes.values():
            if not node.dead and (wrong := node.dead_nodes & alive):
                raise Violation(f"node {node.place} takes {len(wrong)} living nodes for dead")

    def check_replica(self, again: bool = False) -> None:
        """A server that begins with what is stored knows what the one that runs knows.

        Args:
            again: also if nothing was stored since it was looked at last.

        Raises:
            Violation: it does not.
        """
        for gcs in self.shards:
            if gcs.shard is not None and (self._checked.get(gcs.number) != gcs.writes or again):
                self._checked[gcs.number] = gcs.writes
                self._check_replica(gcs.shard, gcs.replica())

    def _check_replica(self, shard: GcsShard, begun: GcsShard) -> None:
        replica = _known(begun)
        for what, rows in _known(shard).items():
            for key in {**rows, **replica[what]}:
                if rows.get(key) != replica[what].get(key):
                    raise Violation(f"{what} {key.hex()} is {rows.get(key)}, but stored as {replica[what].get(key)}")

    # ---------------------------------------------------------------- report

    def report(self, begun_at: float, tasks: list[Task] | None = None) -> Report:
        """What was seen since `begun_at`."""
        chosen = self.tasks if tasks is None else tasks
        duration = max((task.ended_at for task in chosen), default=begun_at) - begun_at
        waits = sorted(task.started_at - task.submitted_at for task in chosen if task.started_at >= 0)
        nodes = list(self.nodes.values())
        served = [node.executed for node in nodes]
        messages: Counter[str] = Counter()
        for (kind, _), count in self.world.messages.items():
            messages[kind] += count
        daemons = [node.station.busy_s for node in nodes]
        submitters = [driver.station.busy_s for driver in self.drivers] or [0.0]
        return Report(
            len(nodes),
            len(chosen),
            duration,
            len(chosen) / duration if duration else 0.0,
            {name: waits[min(len(waits) - 1, int(share * len(waits)))] if waits else 0.0
             for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))},
            {"least": min(served), "mean": sum(served) / len(served), "most": max(served)},
            dict(sorted(messages.items())),
            {f"{kind}: {name}": count for (kind, name), count in sorted(self.world.messages.items())},
            {
                "gcs": self.gcs.station.busy_s / duration if duration else 0.0,
                "daemon_mean": sum(daemons) / len(daemons) / duration if duration else 0.0,
                "daemon_most": max(daemons) / duration if duration else 0.0,
                "submitter_most": max(submitters) / duration if duration else 0.0,
            },
            dict(Counter(task.end for task in chosen if task.end not in ("", "done"))),
        )  # fmt: skip

    def statistics(self) -> dict[str, Any]:
        """Sizes, for a look from outside."""
        return {
            "now": self.world.now,
            "nodes_alive": sum(not node.dead for node in self.nodes.values()),
            "processes": len(self.processes),
            "unfinished": len(self.unfinished()),
            "unanswered": len(self.unanswered()),
        }
