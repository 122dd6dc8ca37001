"""For tests of programs that use Shoal: clusters of several nodes on one machine.

    from shoal.testing import Cluster

    with Cluster(num_cpus=1) as cluster:
        node = cluster.add_node(num_cpus=2, resources={"gripper": 1})
        cluster.connect()
        ...
        cluster.remove_node(node, kill=True)

Every node is a real one: a daemon with workers, sockets, a store and resources of its own, speaking TCP with the others.

Reading order: `cluster`.
"""

from shoal.testing.cluster import Cluster, ClusterNode

__all__ = ["Cluster", "ClusterNode"]
