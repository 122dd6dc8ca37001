"""Placement groups in a campaign: drivers make some, run tasks and actors in them, and remove them; and what must hold of their bundles.

Design: the checks look at the schedulers of the nodes and at the GCS's records, and believe neither: while faults happen, one reservation (group,
bundle, attempt) is on one node; when they are over, a placed group's bundles are where the GCS says, committed, and on nodes that live and do not
drain; when a group is removed, nobody has anything of it. A driver removes a group when that has been seen.

What it does not do: detached groups, labels, accelerators.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shoal.gcs.placement_groups import PLACED, REMOVED
from shoal.protocol.gcs_messages import GroupSpec
from shoal.protocol.strategies import placement_group
from shoal.simulator.cluster import Violation
from shoal.simulator.tasks import Task, tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.simulator.actors import Actor
    from shoal.simulator.cluster import Cluster
    from shoal.simulator.process import Process

LOOK_S = 0.5
STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
BUNDLES_MAX = 4


@dataclass(slots=True, eq=False)
class Group:
    """A placement group as its driver knows it."""

    spec: GroupSpec
    driver: Process
    early: bool  #: it is removed whatever runs in it
    tasks: list[Task] = field(default_factory=list)
    actors: list[Actor] = field(default_factory=list)
    removed: bool = False  #: the driver has asked for it

    @property
    def group_id(self) -> bytes:
        """Its id."""
        return self.spec.group_id


class GroupWork:
    """The groups of one campaign.

    Args:
        cpus: of each node.
        make_actor: has a driver make an actor with a strategy, and call it.
    """

    def __init__(
        self,
        cluster: Cluster,
        dice: random.Random,
        cpus: int,
        make_actor: Callable[[Process, dict[str, object]], Actor],
    ) -> None:
        self.groups: list[Group] = []
        self.faults_over = False
        self._cluster = cluster
        self._dice = dice
        self._cpus = cpus
        self._make_actor = make_actor

    # ---------------------------------------------------------------- work

    def make(self, driver: Process) -> None:
        """A driver makes a group, and submits what is to run in it."""
        if driver.dead:
            return
        dice, cluster = self._dice, self._cluster
        bundles: list[dict[str, int]] = []
        room = self._cpus * 10_000
        for _ in range(dice.randrange(1, BUNDLES_MAX + 1)):
            units = min(room, dice.choice([5_000, 10_000, 10_000, 20_000]))
            if units:
                bundles.append({"CPU": units})
                room -= units
        spec = GroupSpec(cluster.new_id(), driver.job_id, "", "", dice.choice(STRATEGIES), bundles)
        group = Group(spec, driver, dice.random() < 0.15)
        self.groups.append(group)
        driver.node.actors.line.call("gcs.group_create", {"spec": spec})
        for _ in range(dice.choice([1, 1, 3])):
            cluster.world.after(dice.choice([0.0, dice.uniform(0.0, 4.0)]), self._submit, group)
        if dice.random() < 0.4:
            cluster.world.after(dice.uniform(0.0, 2.0), self._act, group)
        cluster.world.after(dice.uniform(1.0, 8.0), self._remove_when_done, group)

    def _submit(self, group: Group) -> None:
        if group.driver.dead or group.removed:
            return
        dice = self._dice
        index = dice.choice([-1, -1, dice.randrange(len(group.spec.bundles))])
        strategy = placement_group(group.group_id, index, dice.random() < 0.5)
        sizes = [each["CPU"] for at, each in enumerate(group.spec.bundles) if index in (-1, at)]
        demand = {"CPU": dice.choice([5_000, max(sizes)])}
        if index < 0 and dice.random() < 0.2:
            tasks = [tree(2, 2, dice.uniform(0.0, 0.02))]
            for task in tasks:
                task.demand, task.strategy = demand, strategy
        else:
            tasks = [
                Task(dice.choice([0.0, 0.01, 0.2]), demand=demand, strategy=strategy)
                for _ in range(dice.choice([1, 5, 40]))
            ]
        group.tasks += tasks
        self._cluster.submit(group.driver, tasks)

    def _act(self, group: Group) -> None:
        """An actor lives in the group; it asks for nothing more than to be there."""
        if not group.driver.dead and not group.removed:
            group.actors.append(self._make_actor(group.driver, placement_group(group.group_id, -1, False)))

    def _remove_when_done(self, group: Group) -> None:
        if group.driver.dead or group.removed:
            return
        done = all(task.end for task in group.tasks) and all(call.end for actor in group.actors for call in actor.calls)
        if not group.early and not (done and (not self.faults_over or not self._amiss(group))):
            self._cluster.world.after(LOOK_S, self._remove_when_done, group)
            return
        group.removed = True
        group.driver.node.actors.line.call("gcs.group_remove", {"group_id": group.group_id})

    # ---------------------------------------------------------------- what must hold

    def _amiss(self, group: Group) -> str:
        """What keeps a group from being as it should, with faults over; "" when nothing."""
        shard = self._cluster.gcs.shard
        record = shard.groups.get(group.group_id) if shard is not None else None
        if record is None or record.state != PLACED:
            return f"it is {record.state if record else 'unknown'}: {record.reason if record else ''}"
        for index, node_id in enumerate(record.nodes):
            node = self._cluster.nodes[node_id]
            there = [each for each in node.machine.bundles() if each.key == (group.group_id, index)]
            if node.dead or node.draining.reason:
                return f"bundle {index} is on node {node.place}, which is gone or drains"
            if [(each.attempt, each.committed) for each in there] != [(record.attempts[index], True)]:
                return f"bundle {index} is not on node {node.place}, as it should: {there}"
        return ""

    def check_safety(self) -> None:
        """No reservation is on two nodes.

        Raises:
            Violation: one is.
        """
        seen: Counter[tuple[bytes, int, int]] = Counter()
        for node in self._cluster.nodes.values():
            if not node.dead and self.groups:
                seen.update((each.group_id, each.index, each.attempt) for each in node.machine.bundles())
        for (group_id, index, attempt), count in seen.items():
            if count > 1:
                raise Violation(f"bundle {index} of group {group_id.hex()}, attempt {attempt}, is on {count} nodes")

    def unremoved(self) -> str:
        """The story of the first group that its driver could not remove, as all should be well with it before; "" when there is none."""
        for group in self.groups:
            if not group.removed and not group.driver.dead:
                left = sum(not task.end for task in group.tasks)
                return (
                    f"group {group.group_id.hex()}: {self._amiss(group)}; {left} of its {len(group.tasks)} tasks left"
                )
        return ""

    def check_drained(self) -> None:
        """All groups are removed, and nobody has anything of them.

        Raises:
            Violation: something is left.
        """
        shard = self._cluster.gcs.shard
        assert shard is not None
        for record in shard.groups.records():
            if record.state != REMOVED:
                raise Violation(
                    f"group {record.spec.group_id.hex()} is {record.state} though it was removed or its job is over"
                )
        for node in self._cluster.nodes.values():
            if not node.dead and node.machine.bundles():
                raise Violation(f"node {node.place} has bundles of removed groups: {node.machine.bundles()}")
            requests = node.groups.statistics()["requests_waiting"]
            if not node.dead and requests:
                raise Violation(f"node {node.place} has {requests} requests for removed groups")

    def was_removed(self, task: Task) -> bool:
        """Whether a task's group may have been removed before it ended."""
        return any(group.removed and group.early and task in group.tasks for group in self.groups)
