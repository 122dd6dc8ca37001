"""Placement: resources that are reserved together, and where tasks and actors go. The page is docs/guide/12_placement.md."""

import shoal
from shoal.exceptions import ActorPlacementGroupRemoved
from shoal.testing import Cluster
from shoal.util import placement_group, placement_group_table, remove_placement_group
from shoal.util.scheduling_strategies import (
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

# A head and two nodes that pose as machines in two racks.
cluster = Cluster(num_cpus=1, name="office")
cluster.add_node(num_cpus=2, labels={"rack": "left"}, name="left")
cluster.add_node(num_cpus=2, labels={"rack": "right"}, name="right")
shoal.init(cluster.address, log_to_driver=False)
names = {row["NodeID"]: row["NodeName"] for row in shoal.nodes()}


@shoal.remote
def where():
    return names[shoal.get_runtime_context().get_node_id()]


# Two bundles, each on another node: reserved together, or not at all.
group = placement_group([{"CPU": 2}, {"CPU": 2}], strategy="STRICT_SPREAD")
shoal.get(group.ready())
print("bundles on:", sorted(names[node] for node in placement_group_table(group)["bundles_to_node_id"].values()))


def in_bundle(index, **more):
    return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, index), **more}


pair = [shoal.get(where.options(**in_bundle(index)).remote()) for index in (0, 1)]
print("tasks on:", sorted(pair))


@shoal.remote(num_cpus=1)
class Trainer:
    def where(self):
        return names[shoal.get_runtime_context().get_node_id()]


# Without an index any bundle will do: four actors of 1 CPU fill both.
trainers = [Trainer.options(**in_bundle(-1)).remote() for _ in range(4)]
print("trainers on:", sorted(shoal.get([trainer.where.remote() for trainer in trainers])))


# With capture, what a task submits goes into its group, too.
@shoal.remote(num_cpus=0)
def parent():
    return shoal.get_runtime_context().get_placement_group_id() == shoal.get(child.remote())


@shoal.remote(num_cpus=0)
def child():
    return shoal.get_runtime_context().get_placement_group_id()


captured = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
print("children go along:", shoal.get(parent.options(scheduling_strategy=captured).remote()))
print("or do not:", not shoal.get(parent.options(**in_bundle(0)).remote()))

# What cannot be placed waits, and says why.
wide = placement_group([{"CPU": 2}] * 3, strategy="STRICT_SPREAD")
print("placed:", wide.wait(timeout_seconds=0.2))
print(placement_group_table(wide)["state"], "-", placement_group_table(wide)["reason"].partition(":")[0])

# Removing a group gives everything back at once. What runs in it ends.
remove_placement_group(group)
try:
    shoal.get(trainers[0].where.remote())
except ActorPlacementGroupRemoved as error:
    print("a trainer:", str(error).partition(":")[0])

# A new node makes room for the group that waits.
cluster.add_node(num_cpus=2, name="third")
print("placed:", wide.wait(timeout_seconds=20))
remove_placement_group(wide)

# Without reserving anything: on one node, by labels, or over all.
right = next(node_id for node_id, name in names.items() if name == "right")
on_right = NodeAffinitySchedulingStrategy(right, soft=False)
in_rack = NodeLabelSchedulingStrategy({"rack": In("left")})
print("by its id:", shoal.get(where.options(scheduling_strategy=on_right).remote()))
print("by labels:", shoal.get(where.options(scheduling_strategy=in_rack).remote()))
print("shorter:", shoal.get(where.options(label_selector={"rack": "left"}).remote()))

shoal.shutdown()
cluster.shutdown()
