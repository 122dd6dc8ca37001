"""The GCS: the production shard (tables, actor manager, global scheduler), with connections and a storage that outlives it.

There may be several, as in production: shard 0 has what is changed together, the others the hashed tables and replicas of the global scheduler.
"""

from __future__ import annotations

from typing import Any, Protocol

from shoal.gcs import shard_events as shards
from shoal.gcs.shard import GcsShard
from shoal.gcs.storage.backend import Write
from shoal.protocol.gcs_messages import ClusterNodes, LeasesPlaced
from shoal.simulator.world import GCS, Channel, Station, World

RESTART_S = 0.2
LOOKED_AT_MAX = 64  #: nodes, by the global scheduler, for one placement


class Peer(Protocol):
    """Who has a connection: a node, or its line to another shard."""

    place: int
    node_id: bytes
    station: Station

    @property
    def is_gone(self) -> bool:
        """Nobody listens there any more."""

    def on_gcs_message(self, connection: int, message: Any) -> None:
        """What is sent to it."""

    def on_gcs_lost(self, connection: int) -> None:
        """The connection ended."""


class Gcs:
    """One server, which may be killed and started again from its storage.

    Args:
        number, shards: which shard this is, of how many.
    """

    def __init__(self, world: World, number: int = 0, shards: int = 1) -> None:
        self.world = world
        self.number, self._shards = number, shards
        self.place = GCS - number
        self.station = Station(world, self.place, "GCS")
        self.tells_nodes = True  #: of each other
        self.stored: dict[str, dict[bytes, bytes]] = {}
        self.writes = 0
        self.shard: GcsShard | None = None
        self._lives = 0
        self._last_connection = 0
        #: connection -> (node, to the GCS, to the node)
        self._connections: dict[int, tuple[Peer, Channel, Channel]] = {}
        self._due: float | None = None
        self.commits_fail = False  #: the storage: the next commit, which ends the server
        self.answers_lost = False  #: what is committed next is stored, but the server ends before it says so
        self.start()

    def start(self) -> None:
        """Begin, with what is stored."""
        self._lives += 1
        shard = self.replica()
        shard.begin(self.world.now)
        self.shard = shard
        self._due = None
        self._watch_time()

    def replica(self) -> GcsShard:
        """Another server, begun with what is stored now."""
        shard = GcsShard(self._lives, self.world.dice.randrange, self.number, self._shards)
        for table, rows in self.stored.items():
            for key, value in rows.items():
                shard.restore(table, key, value)
        return shard

    def kill(self) -> None:
        """kill -9: connections end, what is stored stays."""
        self.shard = None
        for number in list(self._connections):
            self._close(number)

    def accept(self, node: Peer) -> int:
        """A node connects: the connection's number, 0 while nobody listens."""
        if self.shard is None:
            return 0
        self._last_connection += 1
        towards = Channel(self.world, node.place, self.place)
        back = Channel(self.world, self.place, node.place)
        self._connections[self._last_connection] = (node, towards, back)
        return self._last_connection

    def hear(self, connection: int, message: Any) -> None:
        """A node writes."""
        known = self._connections.get(connection)
        if known is None:
            return
        self.world.messages["GCS", type(message).__name__] += 1
        cost = self.world.costs.gcs_message_s
        known[1].send(self.station, cost, self._handle, shards.MessageReceived(connection, message))

    def lose(self, connection: int, cause: str) -> None:
        """A node's end of the connection is gone."""
        known = self._connections.pop(connection, None)
        if known is not None:
            known[1].closed = known[2].closed = True
            self._handle(shards.ConnectionLost(connection, cause))

    def _close(self, number: int) -> None:
        node, towards, back = self._connections.pop(number)
        towards.closed = back.closed = True
        self.world.after(self.world.costs.network_s, node.on_gcs_lost, number)

    def _handle(self, event: Any) -> None:
        shard = self.shard
        if shard is None:
            return
        sends = 0
        effect: Any
        effects = shard.handle(event, self.world.now)
        writes = [effect for effect in effects if type(effect) is Write]
        if writes and (self.commits_fail or self.answers_lost):
            # As io/server.py: a transaction that fails leaves nothing, nothing that waits for it is sent, the process ends.
            if not self.commits_fail:
                for write in writes:
                    self._store(write)
            self.commits_fail = self.answers_lost = False
            self.kill()
            self.world.after(RESTART_S, self.start)
            return
        for effect in effects:
            kind = type(effect)
            if kind is shards.Send:
                known = self._connections.get(effect.connection)
                if known is not None and (self.tells_nodes or type(effect.message) is not ClusterNodes):
                    sends += 1
                    if type(effect.message) is LeasesPlaced and effect.message.placements:
                        self.station.spend(self.world.costs.gcs_node_s * self._looked_at(effect.message))
                    node = known[0]
                    known[2].send(
                        node.station,
                        self.world.costs.daemon_message_s,
                        node.on_gcs_message,
                        effect.connection,
                        effect.message,
                    )
                    self.world.messages["node daemon", type(effect.message).__name__] += 1
            elif kind is Write:
                self._store(effect)
            elif kind is shards.CloseConnection:
                if effect.connection in self._connections:
                    self._close(effect.connection)
                    self._handle(shards.ConnectionLost(effect.connection, effect.reason))
            elif kind is shards.ProbeNode:
                if all(node.is_gone or node.node_id != effect.node_id for node, *_ in self._known(effect.node_id)):
                    self.world.after(2 * self.world.costs.network_s, self._refused, effect.node_id)
        if sends > 2:  # one answer is in the cost of a message; a broadcast costs each receiver
            self.station.spend(self.world.costs.gcs_message_s / 5 * sends)
        self._watch_time()

    def _store(self, write: Write) -> None:
        self.writes += 1
        rows = self.stored.setdefault(write.table, {})
        if write.value is None:
            rows.pop(write.key, None)
        else:
            rows[write.key] = write.value

    def _looked_at(self, message: LeasesPlaced) -> int:
        """How many nodes were looked at for a placement: all of few, of many samples, as long as these are of use (`gcs.node_views`)."""
        count = sum(leases for _, leases in message.placements)
        nodes = len(self._connections)
        return nodes if nodes <= LOOKED_AT_MAX else max(len(message.placements), min(LOOKED_AT_MAX, 8 + 2 * count))

    def _known(self, node_id: bytes) -> list[tuple[Peer, Channel, Channel]]:
        return [each for each in self._connections.values() if each[0].node_id == node_id]

    def _refused(self, node_id: bytes) -> None:
        self._handle(shards.NodeRefuses(node_id))

    def _watch_time(self) -> None:
        assert self.shard is not None
        deadline = self.shard.next_deadline()
        if deadline is not None and (self._due is None or deadline < self._due):
            self._due = max(deadline, self.world.now)
            self.world.at(self._due, self._time_passed, self._lives, self._due)

    def _time_passed(self, life: int, due: float) -> None:
        if life != self._lives or self.shard is None or due != self._due:
            return
        self._due = None
        self._handle(shards.TimePassed())
