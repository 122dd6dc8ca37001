"""The shards of the GCS beyond the first, as a node of the simulator sees them: one more line each.

Design: `ShardLines` routes as in production; a `ShardLine` stands beside `node.io.gcs_link.GcsLink` for one shard: it connects, registers, says
again what is not confirmed, and has its node say what is free there. What a replica of the global scheduler places comes back to the node.

    Node --ShardLines--> ShardLine 1 ... N-1 --Channel--> Gcs(number)         Replicas: who is asked about which class

What it does not do: exist with one shard.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shoal.node.shard_lines import ShardLines
from shoal.protocol.gcs_messages import Acknowledged, GcsAnswer, LeasesPlaced, NodeRegistered, RegisterNode
from shoal.protocol.limits import PROTOCOL_VERSION
from shoal.protocol.messages import Hello
from shoal.scheduling import forwarding
from shoal.scheduling.replicas import Replicas
from shoal.simulator.actors import GcsLine

if TYPE_CHECKING:
    from shoal.simulator.node import Node

RECONNECT_S = 0.1


class ShardLine(GcsLine):
    """To one of the shards 1 to N - 1."""

    def __init__(self, node: Node, number: int) -> None:
        super().__init__(self._to_shard)
        self._node, self.number = node, number
        self.place, self.node_id, self.station = node.place, node.node_id, node.station
        self.connection = 0

    @property
    def is_gone(self) -> bool:
        """The node is dead."""
        return self._node.dead

    def connect(self) -> None:
        """Open a connection; tried again until the shard listens."""
        node = self._node
        if node.dead:
            return
        self.connection = node.cluster.shards[self.number].accept(self)
        if not self.connection:
            node.world.after(RECONNECT_S, self.connect)
            return
        self._to_shard(Hello(PROTOCOL_VERSION, node.node_id, b"", 1))
        self._to_shard(
            RegisterNode(
                node.node_id, 1, "host", f"tcp:{node.place}", node.resources, node_no=node.node_no,
                is_head=node.place == 0, name=f"node{node.place}",
            )
        )  # fmt: skip

    def _to_shard(self, message: Any) -> None:
        if self.connection:
            self._node.cluster.shards[self.number].hear(self.connection, message)

    def on_gcs_lost(self, connection: int) -> None:
        """The connection ended."""
        if connection != self.connection or self._node.dead:
            return
        self.connection = 0
        if self.open:
            self.open = False
            self._node.on_replica_lost(self.number)
        self._node.world.after(RECONNECT_S, self.connect)

    def on_gcs_message(self, connection: int, message: Any) -> None:
        """From the shard."""
        if self._node.dead or connection != self.connection:
            return
        kind = type(message)
        if kind is NodeRegistered:
            self.begin()
            self._node.beat_now()
        elif kind is LeasesPlaced:
            self._node.on_placed(message)
        elif kind is Acknowledged:
            self.on_acknowledged(message.count)
        elif kind is GcsAnswer:
            self.on_answer(message.request, message.body, message.error)


class NodeShards(ShardLines[GcsLine]):
    """All lines of a node, and whom it asks where its tasks may run."""

    def __init__(self, node: Node, shards: int) -> None:
        super().__init__()
        self._node = node
        self.others = [ShardLine(node, number) for number in range(1, shards)]
        self._links = [node.actors.line, *self.others]
        self._replicas = Replicas()
        for line in self.others:
            line.connect()

    def place(self, effect: forwarding.AskGlobal, message: Any, withdrawal: Any) -> None:
        """Ask the shard that is to say where leases may be had; shard 0 may have to hear that it is not."""
        total = self._node.machine.total()
        number, leaves_first = self._replicas.choose(
            effect.process, effect.request, effect.backlog, total, self.replica_of
        )
        if leaves_first:
            self.tell(0, withdrawal)
        self.tell(number, message)

    def lost(self, number: int) -> bool:
        """A replica is away. Returns whether anything was asked of it."""
        return self._replicas.lost(number)

    def left(self) -> int:
        """How much is not confirmed by other shards."""
        return sum(line.left() for line in self.others)
