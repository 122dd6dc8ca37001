"""Clusters: several nodes, one program. The nodes of this page pose as machines: real daemons that speak TCP, all on this one."""

import os
import time

import shoal
from shoal.testing import Cluster

# A head, and a node that joins it. On real machines these are `shoal start --head` and `shoal start --address=HOST:PORT`.
cluster = Cluster(num_cpus=1, name="office")
lab = cluster.add_node(num_cpus=2, resources={"gripper": 1}, labels={"room": "lab"}, name="lab")

# A program joins by the cluster's address, through the node on its own machine. SHOAL_ADDRESS in its environment does the same.
shoal.init(cluster.address, namespace="guide", log_to_driver=False)
print("nodes:", sorted(row["NodeName"] for row in shoal.nodes()), "with", shoal.cluster_resources()["CPU"], "CPUs")
names = {row["NodeID"]: row["NodeName"] for row in shoal.nodes()}


@shoal.remote
def where(*inputs):
    return shoal.get_runtime_context().get_node_id()


# The program is the same as on one node. A task goes where what it needs is; else it runs here, or where there is room sooner.
print("by default:", names[shoal.get(where.remote())])
print("with the gripper:", names[shoal.get(where.options(resources={"gripper": 1}).remote())])


# Values and refs cross by themselves: an argument made here, a result that the other node used, and an actor that both call.
@shoal.remote
class Log:
    def __init__(self):
        self.lines = []

    def write(self, line):
        self.lines.append(line)
        return len(self.lines)

    def read(self):
        return self.lines


@shoal.remote(resources={"gripper": 0.5})
def grip(thing, log):
    shoal.get(log.write.remote(f"gripped {thing}"))
    return thing.upper()


log = Log.options(name="log", resources={"gripper": 0.1}).remote()
print(shoal.get([grip.remote(thing, log) for thing in ("cup", "pen")]), shoal.get(log.read.remote()))


# A node may die at any moment. What ran there is retried where it can run; an actor is restarted if it may be (max_restarts).
@shoal.remote(resources={"gripper": 0.5}, max_retries=3)
def careful(attempts):
    with open(attempts, "a") as file:
        file.write("x")
    if os.path.getsize(attempts) == 1:
        time.sleep(60)
    return names.get(shoal.get_runtime_context().get_node_id(), "a new node")


attempts = os.path.join(cluster.head.session_dir, "attempts")
result = careful.remote(attempts)
while not os.path.exists(attempts):
    time.sleep(0.01)
cluster.remove_node(lab, kill=True)
cluster.wait_for_nodes()  # until all others know
print("nobody has a gripper now:", shoal.cluster_resources().get("gripper"))
cluster.add_node(num_cpus=2, resources={"gripper": 1}, name="workshop")
print("careful ran on", shoal.get(result))

# A node that is taken out of service in order is drained: it takes nothing new, and leaves when nobody needs it.
shoal.shutdown()
cluster.remove_node(cluster.nodes[-1])
print("left:", [node.name for node in cluster.nodes])
cluster.shutdown()
