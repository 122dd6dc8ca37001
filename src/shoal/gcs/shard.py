"""One shard of the GCS as a pure machine: connections in, answers and pushes out.

Purpose: compose the tables, the managers of actors and placement groups and the global scheduler, serve calls, and keep subscriptions.

Design: `handle(event, now) -> list[Effect]`. Of one returned batch every `Write` must be durable before any `Send` leaves: nobody learns of a
change that a crash could undo. A connection says Hello first and, if it is a node's, RegisterNode; only nodes may report on actors. A request
that cannot be served is answered with an error and changes nothing; what is not a request and makes no sense closes the connection.

The death of the server loses nothing: all that it ever answered is in storage, and a node says again what was not confirmed. So everything
that a node says may come twice: reports carry incarnations or numbers of their own, calls are known again by their number (`tables.Answers`).
A node whose connection ended, or that a new server has not seen yet, has NODE_AWAY_S to come back before it is dead (`node_table`).

There may be several shards (`protocol.sharding`): those other than 0 have the hashed tables and a replica of the global scheduler, and
know a node by its connection alone.

How to extend: a call gets a method and a row in `_CALLS` (and in the table of `gcs_messages`); a message gets a row in `_MESSAGES`.

What it does not do: sockets, clocks, waiting for storage (`io.server`); deciding what happens to actors (`actor_manager`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec

from shoal.gcs import actor_questions, global_scheduler, hashed_tables, placement_groups
from shoal.gcs.actor_logs import StoredLogs
from shoal.gcs.actor_manager import (
    ActorKillAsked,
    ActorManager,
    ActorMoved,
    ActorRecord,
    ActorRequested,
    ActorRequestedAgain,
    AnnounceActor,
    JobEnded,
    NodeJoined,
    NodeLost,
    NodeReported,
    PlacingMayWork,
    SendToNode,
    StoreActor,
)
from shoal.gcs.actor_manager import Event as ActorEvent
from shoal.gcs.global_scheduler import (
    ActorPlaced,
    ActorRefused,
    ActorSettled,
    ActorWanted,
    AskActorsAgain,
    GlobalScheduler,
    NodeAway,
    NodeDrains,
    NodeGone,
    NodeSpoke,
    NodeUp,
    TellPlaced,
    Wanted,
)
from shoal.gcs.group_desk import GROUPS_TABLE, GroupDesk
from shoal.gcs.hashed_tables import HashedTables
from shoal.gcs.node_table import NodeTable
from shoal.gcs.shard_events import (
    CloseConnection,
    ConnectionLost,
    Effect,
    Event,
    MessageReceived,
    NodeAnswers,
    NodeRefuses,
    ProbeNode,
    Send,
    TimePassed,
)
from shoal.gcs.storage.backend import HEAD_KEY, SESSION_TABLE, Write
from shoal.gcs.tables import LIST_ROWS_MAX, Answers, Jobs, KeyValues, TableError, TaskEvents, bytes_of
from shoal.protocol.gcs_messages import (
    CHANNEL_ACTOR,
    CHANNEL_GROUP,
    CHANNEL_KV,
    Acknowledged,
    ActorChanged,
    ActorConstructed,
    ActorPlacementRefused,
    ActorRefsGone,
    ActorWorkerDied,
    ActorWorkerStarted,
    BundleReserved,
    ClusterNodes,
    DrainNode,
    FromGcs,
    GcsAnswer,
    GcsCall,
    GroupChanged,
    HeartbeatAcknowledged,
    NodeEntry,
    NodeLoad,
    NodeRegistered,
    NodeReport,
    PlaceLeases,
    Published,
    RegisterNode,
    SubscribeKey,
    TaskEventBatch,
)
from shoal.protocol.limits import PROTOCOL_VERSION, TAKEN_OVER_AWAY_S
from shoal.protocol.messages import ActorSpec, Hello
from shoal.protocol.resources import add
from shoal.protocol.sharding import HASHED_CALLS
from shoal.protocol.strategies import KIND, PLACEMENT_GROUP
from shoal.scheduling.node_policy import Dice

ACTORS_TABLE = "actors"
#: a shard other than 0 does not hear of deaths: what it keeps for a node that left is dropped then
MEMBER_AWAY_S = 600.0
DRAIN_S = 60.0  #: what a node that drains has, if the caller names no time


#: what a node says of a life that was sent there
ActorReport = ActorWorkerStarted | ActorConstructed | ActorPlacementRefused | ActorWorkerDied


class Connection:
    """What the shard knows of a connection. Written by GcsShard alone."""

    __slots__ = ("node_id", "reports", "speaker_id", "subscriptions")

    def __init__(self, speaker_id: bytes) -> None:
        self.speaker_id = speaker_id
        #: the node that registered on it; empty for others
        self.node_id = b""
        #: how many messages came that are acknowledged
        self.reports = 0
        #: (channel, key) it subscribed to: the other direction of GcsShard._subscribers
        self.subscriptions: dict[tuple[str, bytes], None] = {}


class GcsShard:
    """The state of one shard. Only `handle` and, before it, `restore` change it.

    Args:
        gcs_pid: told to nodes.
        dice: breaks ties between nodes; by default seeded by `gcs_pid`.
        shard, shards: which shard this is, of how many.
    """

    def __init__(
        self,
        gcs_pid: int,
        dice: Dice | None = None,
        shard: int = 0,
        shards: int = 1,
        storage: str = "",
        is_kept: bool = False,
    ) -> None:
        self._storage = storage
        self._is_kept = is_kept
        self._shard = shard
        self._shards = shards
        self.gcs_pid = gcs_pid
        self.actors = ActorManager(self._where)
        self.groups = placement_groups.PlacementGroups()
        self.jobs = Jobs()
        self.nodes = NodeTable()
        self.scheduler = GlobalScheduler(random.Random(gcs_pid).randrange if dice is None else dice)
        self.hashed = HashedTables()
        self.answers = Answers()
        self.logs = StoredLogs()
        #: connections that said Hello
        self._connections: dict[int, Connection] = {}
        #: node -> the connection it registered on
        self._node_connections: dict[bytes, int] = {}
        #: (channel, key) -> connections, in the order of subscribing; never empty
        self._subscribers: dict[tuple[str, bytes], dict[int, None]] = {}
        #: of shards other than 0: nodes that are not connected -> when what is kept for them is dropped
        self._left: dict[bytes, float] = {}
        #: version of the last ClusterNodes: microseconds since the epoch, made to grow
        self._nodes_version = 0
        self.group_desk = GroupDesk(self.groups, self.jobs, self._send_to_node, self._publish, self._on_actor_event)
        #: version of the last publication outside the actors' channel: microseconds since the epoch, made to grow
        self._version = 0

    # ------------------------------------------------------------ start

    #: tables to read and hand to `restore` at start
    STORED_TABLES = (
        NodeTable.TABLE,
        Jobs.TABLE,
        *HashedTables.TABLES,
        GROUPS_TABLE,
        ACTORS_TABLE,
        StoredLogs.TABLE,
        Answers.TABLE,
    )
    #: those that mean nothing to another session: what they tell of died with its nodes
    SESSION_TABLES = (
        NodeTable.TABLE,
        Jobs.TABLE,
        GROUPS_TABLE,
        ACTORS_TABLE,
        StoredLogs.TABLE,
        TaskEvents.TABLE,
        Answers.TABLE,
    )

    def restore(self, table: str, key: bytes, value: bytes) -> None:
        """Take back a stored row; before the first event."""
        if table == NodeTable.TABLE:
            self.nodes.restore(key, value)
        elif table == Jobs.TABLE:
            self.jobs.restore(value)
        elif table in HashedTables.TABLES:
            self.hashed.restore(table, key, value)
        elif table == GROUPS_TABLE:
            self.groups.restore(msgspec.msgpack.decode(value, type=placement_groups.GroupRecord))
        elif table == ACTORS_TABLE:
            self.actors.restore(msgspec.msgpack.decode(value, type=ActorRecord))
        elif table == StoredLogs.TABLE:
            self.logs.restore(key, value)
        elif table == Answers.TABLE:
            self.answers.restore(key, value)

    def take_over(self, now: float) -> list[Effect]:
        """As `begin`, for the tables of another head's session: that node is dead. Its writes must be durable before anything is handled."""
        self.begin(now, TAKEN_OVER_AWAY_S)
        effects: list[Effect] = []
        for record in self.nodes.records():
            node = record.node
            if record.alive and node.is_head:
                self._bury_node(node.node_id, "it was the head, and another one has taken over", now, effects)
            elif record.alive and node.address.startswith("tcp:") and not self._shard:
                effects.append(ProbeNode(node.node_id, node.address, True))
        return effects

    def begin(self, now: float, search_s: float = 0.0) -> None:
        """All rows are restored: nodes have until NODE_AWAY_S from now to come back (`NodeTable.begin`)."""
        self.nodes.begin(now, search_s)
        if self._shard:
            self._left = dict.fromkeys(self.answers.nodes(), now + MEMBER_AWAY_S)
        self.group_desk.begin(self.actors.records())
        for record in self.nodes.records():
            if record.alive:
                node = record.node
                self._schedule(NodeUp(node.node_id, record.shown(), node.resources, node.labels), now, [])
                self._schedule(NodeAway(node.node_id), now, [])

    def next_deadline(self) -> float | None:
        """When TimePassed is due (s since the epoch); None while there is nothing to wait for."""
        left = min(self._left.values(), default=None)
        deadlines = (
            self.nodes.next_deadline(),
            self.scheduler.next_deadline(),
            self.groups.next_deadline(),
            left,
        )
        return min((each for each in deadlines if each is not None), default=None)

    # ------------------------------------------------------------ the door

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in an event of time `now` (s since the epoch); what to do about it (see the top for the order)."""
        effects: list[Effect] = []
        if type(event) is ConnectionLost:
            self._on_lost(event, now, effects)
            return effects
        if type(event) is TimePassed:
            self._on_time(now, effects)
            return effects
        if type(event) is NodeRefuses:
            self._on_refuses(event, now, effects)
            return effects
        if type(event) is NodeAnswers:
            self.nodes.answers(event.node_id, now)
            return effects
        assert type(event) is MessageReceived
        number, message = event.connection, event.message
        connection = self._connections.get(number)
        if connection is None:
            if type(message) is Hello:
                self._on_hello(number, message, effects)
            else:
                effects.append(CloseConnection(number, "the first frame of a connection must be Hello"))
            return effects
        handler = _MESSAGES.get(type(message))
        if handler is None:
            effects.append(CloseConnection(number, f"{type(message).__name__} is out of place here"))
        elif self._shard and type(message) not in _OF_ALL_SHARDS:
            effects.append(CloseConnection(number, f"{type(message).__name__} is for shard 0, this is {self._shard}"))
        elif type(message) in _FROM_NODES and not connection.node_id:
            effects.append(CloseConnection(number, f"{type(message).__name__} is for nodes: RegisterNode comes first"))
        else:
            handler(self, number, message, now, effects)
            if type(message) in _ACKNOWLEDGED:
                connection.reports += 1
                effects.append(Send(number, Acknowledged(connection.reports)))
        return effects

    def statistics(self) -> dict[str, Any]:
        """Sizes of everything."""
        return {
            "actors": self.actors.statistics(),
            "placement_groups": self.groups.statistics(),
            "jobs": len(self.jobs.rows()),
            "nodes": len(self._node_connections),
            "connections": len(self._connections),
            "subscriptions": sum(len(numbers) for numbers in self._subscribers.values()),
            **self.hashed.statistics(),
            "answers": len(self.answers),
            "nodes_away": self.nodes.away(),
            "scheduler": self.scheduler.statistics(),
        }

    # ------------------------------------------------------------ connections

    def _on_hello(self, number: int, message: Hello, effects: list[Effect]) -> None:
        if message.protocol_version != PROTOCOL_VERSION:
            theirs, ours = message.protocol_version, PROTOCOL_VERSION
            reason = f"protocol version {theirs} spoken to a GCS of version {ours}: run the same shoal on all sides"
            effects.append(CloseConnection(number, reason))
            return
        self._connections[number] = Connection(message.worker_id)

    def _on_register_node(self, number: int, message: RegisterNode, now: float, effects: list[Effect]) -> None:
        if self._shard:
            self._on_member(number, message, now, effects)
            return
        if self._shards > 1 and not message.is_head and self.nodes.shards() is None:
            effects.append(CloseConnection(number, "the head node has not said yet where the shards are"))
            return
        writes: list[Write] = []
        refused = self.nodes.register(message, now, writes)
        if refused:
            effects.append(Send(number, NodeRegistered(self.gcs_pid, 0, refused, now)))
            return
        effects.extend(writes)
        node_id = message.node_id
        former = self._node_connections.get(node_id)
        if former is not None:
            # Its end is not seen yet: a node dials again only when it has given up the connection that it had.
            self._connections[former].node_id = b""
            effects.append(CloseConnection(former, "its node has connected anew"))
        self._connections[number].node_id = node_id
        self._node_connections[node_id] = number
        if message.gcs_address:
            effects.append(Write(SESSION_TABLE, HEAD_KEY, message.gcs_address.encode()))
        shards = self.nodes.shards() or []
        effects.append(
            Send(number, NodeRegistered(self.gcs_pid, message.node_no, "", now, shards, self._storage, self._is_kept))
        )
        record = self.nodes.get(node_id)
        assert record is not None, "it has just registered"
        self._tell_nodes([self.nodes.entry(record)], now, effects, but=number)
        effects.append(Send(number, ClusterNodes(self._nodes_version, self.nodes.entries())))
        self._schedule(NodeUp(node_id, record.shown(), message.resources, message.labels), now, effects)
        if record.draining:
            self._schedule(NodeDrains(node_id), now, effects)
        if record.drain_s:
            effects.append(Send(number, DrainNode(record.drain_reason, record.drain_s)))
        self._on_actor_event(NodeJoined(node_id), now, effects)
        if message.is_head:
            effects.extend(Send(number, hold) for hold in actor_questions.to_hold_at_head(self.actors.records()))

    def _on_member(self, number: int, message: RegisterNode, now: float, effects: list[Effect]) -> None:
        """A node comes to a shard other than 0, which knows no more of nodes than which connection is whose."""
        node_id = message.node_id
        former = self._node_connections.get(node_id)
        if former is not None:
            self._connections[former].node_id = b""
        self._connections[number].node_id = node_id
        self._node_connections[node_id] = number
        self._left.pop(node_id, None)
        effects.append(Send(number, NodeRegistered(self.gcs_pid, message.node_no, "", now)))
        # A replica of the global scheduler: it is asked by nodes that could serve themselves what they ask for, so it refuses nothing.
        self._schedule(NodeUp(node_id, message.name, message.resources, message.labels), now, effects)

    def _tell_nodes(self, entries: list[NodeEntry], now: float, effects: list[Effect], but: int = 0) -> None:
        """Tell all nodes what has changed; except the connection `but`."""
        self._nodes_version = max(self._nodes_version + 1, int(now * 1e6))
        message = ClusterNodes(self._nodes_version, entries)
        effects.extend(Send(number, message) for number in self._node_connections.values() if number != but)

    def _send_to_node(self, node_id: bytes, message: FromGcs, effects: list[Effect]) -> None:
        """A node that is away hears of it when it has reported."""
        number = self._node_connections.get(node_id)
        if number is not None:
            effects.append(Send(number, message))

    def _on_load(self, number: int, message: NodeLoad, now: float, effects: list[Effect]) -> None:
        node_id = self._connections[number].node_id
        if self._shard:  # it is shard 0 that hears who lives
            self._schedule(NodeSpoke(node_id, message), now, effects)
            return
        writes: list[Write] = []
        if self.nodes.hear(node_id, message, now, writes):
            self._tell_drained(node_id, now, writes, effects)
        else:
            effects.extend(writes)
        effects.append(Send(number, HeartbeatAcknowledged(message.count)))
        self._schedule(NodeSpoke(node_id, message), now, effects)

    def _tell_drained(self, node_id: bytes, now: float, writes: list[Write], effects: list[Effect]) -> None:
        record = self.nodes.get(node_id)
        assert record is not None, "it is known"
        effects.extend(writes)
        self._tell_nodes([self.nodes.entry(record)], now, effects)
        self._schedule(NodeDrains(node_id), now, effects)

    def _on_place_leases(self, number: int, message: PlaceLeases, now: float, effects: list[Effect]) -> None:
        self._schedule(Wanted(self._connections[number].node_id, message), now, effects)

    def _schedule(self, event: global_scheduler.Event, now: float, effects: list[Effect]) -> None:
        self.group_desk.on_scheduler_event(event, now, effects)
        for effect in self.scheduler.handle(event, now):
            if type(effect) is ActorPlaced:
                self._on_actor_event(ActorMoved(effect.actor_id, effect.node_id), now, effects)
            elif type(effect) is AskActorsAgain:
                self._on_actor_event(PlacingMayWork(), now, effects)
            else:
                assert type(effect) is TellPlaced, "only who asks for an actor's place is refused"
                number = self._node_connections.get(effect.node_id)
                if number is not None:  # a node that is away asks again
                    effects.append(Send(number, effect.message))

    def _where(self, spec: ActorSpec, near: bytes, stay: bool, now: float) -> tuple[bytes, str]:
        """Where an actor goes: a node, or nowhere now, or the reason why nowhere ever."""
        if spec.strategy.get(KIND) == PLACEMENT_GROUP:
            return self.groups.place_actor(spec)
        record = self.actors.get(spec.actor_id)
        assert record is not None, "the manager asks for actors that it has"
        name = spec.name or spec.class_name
        wanted = ActorWanted(
            spec.actor_id, near, stay, spec.placement, spec.strategy, name, spec.job_id, record.begins_s
        )
        for effect in self.scheduler.handle(wanted, now):
            if type(effect) is ActorPlaced:
                return effect.node_id, ""
            if type(effect) is ActorRefused:
                return b"", effect.reason
        return b"", ""

    def _on_node_report(self, number: int, message: NodeReport, now: float, effects: list[Effect]) -> None:
        node_id = self._connections[number].node_id
        self.group_desk.feed(placement_groups.NodeReported(node_id, message.bundles), now, effects)
        self._on_actor_event(NodeReported(node_id, message.lives), now, effects)

    def _on_lost(self, event: ConnectionLost, now: float, effects: list[Effect]) -> None:
        connection = self._connections.pop(event.connection, None)
        if connection is None:
            return
        for topic in connection.subscriptions:
            self._forget_subscriber(topic, event.connection)
        if connection.node_id and self._shard:
            del self._node_connections[connection.node_id]
            self._left[connection.node_id] = now + MEMBER_AWAY_S
            self._schedule(NodeAway(connection.node_id), now, effects)
        elif connection.node_id:
            del self._node_connections[connection.node_id]
            self.nodes.lose(connection.node_id, event.cause, now)
            self._schedule(NodeAway(connection.node_id), now, effects)
            record = self.nodes.get(connection.node_id)
            if record is not None and record.node.address.startswith("tcp:"):
                effects.append(ProbeNode(connection.node_id, record.node.address))

    def _on_refuses(self, event: NodeRefuses, now: float, effects: list[Effect]) -> None:
        cause = self.nodes.why_away(event.node_id)
        if cause:
            self._bury_node(event.node_id, f"its process is gone ({cause})", now, effects)

    def _on_time(self, now: float, effects: list[Effect]) -> None:
        for node_id, cause in self.nodes.overdue(now):
            self._bury_node(node_id, cause, now, effects)
        for node_id in [each for each, until in self._left.items() if until <= now]:
            del self._left[node_id]
            self.answers.forget(node_id)
            self._schedule(NodeGone(node_id), now, effects)
        deadline = self.scheduler.next_deadline()
        if deadline is not None and deadline <= now:
            self._schedule(global_scheduler.TimePassed(), now, effects)
        self.group_desk.on_time(now, effects)

    def _bury_node(self, node_id: bytes, cause: str, now: float, effects: list[Effect]) -> None:
        """A node is dead: those concerned take care of what was there."""
        writes: list[Write] = []
        record = self.nodes.bury(node_id, cause, now, writes)
        self.hashed.forget_heir(node_id, writes)
        effects.extend(writes)
        number = self._node_connections.pop(node_id, None)
        if number is not None:
            self._connections[number].node_id = b""
            effects.append(CloseConnection(number, f"this node was declared dead: {cause}"))
        self._tell_nodes([self.nodes.entry(record)], now, effects)
        self.answers.forget(node_id)
        # Jobs first: their actors shall not be restarted elsewhere. What this sends to the lost node goes nowhere.
        for job_id in self.jobs.running_on(node_id):
            self._end_job(job_id, f"the node of its driver died: {cause}", now, effects)
        self._schedule(NodeGone(node_id), now, effects)
        self.group_desk.feed(placement_groups.NodeLost(node_id, cause), now, effects)
        self._on_actor_event(NodeLost(node_id, cause), now, effects)

    # ------------------------------------------------------------ publishing

    def _on_subscribe(self, number: int, message: SubscribeKey, now: float, effects: list[Effect]) -> None:
        topic = (message.channel, message.key)
        if message.channel == CHANNEL_ACTOR:
            version, state = self.actors.state_of(message.key)
            effects.append(Send(number, ActorChanged(version, state)))
            if state.state == "dead":
                return
        elif message.channel == CHANNEL_GROUP:
            version, group = self.groups.state_of(message.key)
            effects.append(Send(number, GroupChanged(version, group)))
            if group.state == "removed":
                return
        elif message.channel == CHANNEL_KV:
            value = self.hashed.kv.get(message.key)
            effects.append(Send(number, Published(CHANNEL_KV, message.key, self._version, value)))
        else:
            effects.append(CloseConnection(number, f"there is no channel {message.channel!r}"))
            return
        self._subscribers.setdefault(topic, {})[number] = None
        self._connections[number].subscriptions[topic] = None

    def _publish(self, channel: str, key: bytes, message: FromGcs, effects: list[Effect], final: bool = False) -> None:
        """Tell the subscribers; after a `final` message they are none any more."""
        for number in self._subscribers.get((channel, key), ()):
            effects.append(Send(number, message))
        if final:
            for number in self._subscribers.pop((channel, key), ()):
                del self._connections[number].subscriptions[channel, key]

    def _publish_kv(self, row_key: bytes, value: bytes | None, now: float, effects: list[Effect]) -> None:
        self._version = max(self._version + 1, int(now * 1e6))
        self._publish(CHANNEL_KV, row_key, Published(CHANNEL_KV, row_key, self._version, value), effects)

    def _forget_subscriber(self, topic: tuple[str, bytes], number: int) -> None:
        numbers = self._subscribers[topic]
        del numbers[number]
        if not numbers:
            del self._subscribers[topic]

    # ------------------------------------------------------------ actors

    def _on_actor_message(self, number: int, message: ActorReport, now: float, effects: list[Effect]) -> None:
        record = self.actors.get(message.actor_id)
        if record is not None and record.node_id != self._connections[number].node_id:
            return  # it was moved to another node meanwhile
        self._on_actor_event(message, now, effects)

    def _on_refs_gone(self, number: int, message: ActorRefsGone, now: float, effects: list[Effect]) -> None:
        record = self.actors.get(message.actor_id)
        home = self.nodes.get(record.spec.home) if record is not None else None
        if home is not None and home.alive and home.node.node_id != self._connections[number].node_id:
            return  # from the heir of a former home: the creator was replayed, and its node counts the handles now
        self._on_actor_event(message, now, effects)

    def _on_actor_event(self, event: ActorEvent, now: float, effects: list[Effect]) -> None:
        for effect in self.actors.handle(event, now):
            if type(effect) is StoreActor:
                stored = None if effect.record is None else msgspec.msgpack.encode(effect.record)
                effects.append(Write(ACTORS_TABLE, effect.actor_id, stored))
            elif type(effect) is SendToNode:
                self._send_to_node(effect.node_id, effect.message, effects)
            elif type(effect) is AnnounceActor:
                actor_id = effect.state.actor_id
                if effect.state.worker_id or effect.final:
                    self._schedule(ActorSettled(actor_id), now, effects)
                if effect.final:
                    writes: list[Write] = []
                    self.logs.drop(actor_id, writes)
                    effects.extend(writes)
                    self.groups.leaves(actor_id)
                message = ActorChanged(effect.version, effect.state)
                self._publish(CHANNEL_ACTOR, actor_id, message, effects, effect.final)

    # ------------------------------------------------------------ task events

    def _on_task_events(self, number: int, message: TaskEventBatch, now: float, effects: list[Effect]) -> None:
        writes: list[Write] = []
        self.hashed.task_events.add(message, writes)
        effects.extend(writes)

    # ------------------------------------------------------------ calls

    def _on_call(self, number: int, message: GcsCall, now: float, effects: list[Effect]) -> None:
        call = _CALLS.get(message.method)
        node_id = self._connections[number].node_id
        if node_id:
            self.answers.settle(node_id, message.settled)
            answered, body = self.answers.find(node_id, message.request)
            if answered:
                effects.append(Send(number, GcsAnswer(message.request, body)))
                return
        try:
            body = self._on_hashed_call(message.method, message.body, now, effects)
            if body is None:
                if call is None:
                    raise TableError("UnknownMethod", f"the GCS has no method {message.method!r}")
                if self._shard and message.method not in HASHED_CALLS:
                    raise TableError("BadRequest", f"{message.method} is for shard 0 of the GCS, this is {self._shard}")
                body = call(self, number, message.body, now, effects)
        except TableError as error:
            effects.append(Send(number, GcsAnswer(message.request, None, [error.kind, error.text])))
            return
        except (KeyError, TypeError, ValueError, msgspec.ValidationError) as error:
            # Calls read their body before they change anything, so nothing was done.
            text = f"{message.method} does not understand its body: {type(error).__name__}: {error}"
            effects.append(Send(number, GcsAnswer(message.request, None, ["BadRequest", text])))
            return
        if node_id and any(type(effect) is Write for effect in effects):
            writes: list[Write] = []
            self.answers.keep(node_id, message.request, body, writes)
            effects.extend(writes)
        effects.append(Send(number, GcsAnswer(message.request, body)))

    def _actor_create(self, number: int, body: dict[str, Any], now: float, effects: list[Effect]) -> dict[str, Any]:
        spec = msgspec.convert(body["spec"], ActorSpec)
        if self.actors.get(spec.actor_id) is not None:  # said before
            self._on_actor_event(ActorRequestedAgain(spec.actor_id, spec.home), now, effects)
            return {"actor_id": spec.actor_id, "existing": None}
        holder = self.actors.find(spec.namespace, spec.name) if spec.name else None
        if holder is not None:
            if body.get("get_if_exists"):
                return {"actor_id": holder.spec.actor_id, "existing": actor_questions.without_arguments(holder.spec)}
            held_by = f"{holder.spec.class_name} {holder.spec.actor_id.hex()}, which is {holder.state}"
            text = (
                f"the name {spec.name!r} is taken in namespace {spec.namespace!r} by actor {held_by}; "
                "use get_if_exists=True to get it, or kill it first"
            )
            raise TableError("ActorAlreadyExists", text)
        asker = self._connections[number].node_id
        self._on_actor_event(ActorRequested(spec, asker), now, effects)
        if asker != self.nodes.head():  # which holds them already
            for hold in actor_questions.to_hold_at_head(
                [actor_questions.actor_of(self.actors, {"actor_id": spec.actor_id})]
            ):
                self._send_to_node(self.nodes.head(), hold, effects)
        return {"actor_id": spec.actor_id, "existing": None}

    def _actor_log_append(self, number: int, body: dict[str, Any], now: float, effects: list[Effect]) -> dict[str, Any]:
        record = self.actors.get(bytes_of(body, "actor_id"))
        if record is None or record.state == "dead":
            return {"accepted": False, "last": 0}
        writes: list[Write] = []
        answer = self.logs.append(body, writes)
        effects.extend(writes)
        return answer

    def _actor_log_claim(self, number: int, body: dict[str, Any], now: float, effects: list[Effect]) -> dict[str, Any]:
        record = self.actors.get(bytes_of(body, "actor_id"))
        if record is None or record.state == "dead":
            return {"accepted": False}
        writes: list[Write] = []
        answer = self.logs.claim(record.spec.actor_id, int(body["incarnation"]), writes)
        effects.extend(writes)
        return answer

    def _actor_kill(self, number: int, body: dict[str, Any], now: float, effects: list[Effect]) -> dict[str, Any]:
        record = actor_questions.actor_of(self.actors, body)
        incarnation = int(body.get("incarnation") or 0)
        self._on_actor_event(ActorKillAsked(record.spec.actor_id, bool(body["no_restart"]), incarnation), now, effects)
        return {"state": record.state}

    def _nodes(self, number: int, body: dict[str, Any], now: float, effects: list[Effect]) -> dict[str, Any]:
        return {"nodes": self.nodes.rows()}

    def _cluster_load(self, number: int, body: dict[str, Any], now: float, effects: list[Effect]) -> dict[str, Any]:
        limit = int(body.get("limit") or LIST_ROWS_MAX)
        total: dict[str, int] = {}
        available: dict[str, int] = {}
        rows = [row for row in self.nodes.rows() if row["alive"]]
        for row in rows:
            add(total, row["resources"])
            add(available, row["available"])
        return {"nodes": rows, "total": total, "available": available, "demands": self.scheduler.demands(limit)}

    def _leave(self, number: int, body: dict[str, Any], now: float, effects: list[Effect]) -> dict[str, Any]:
        node_id = self._connections[number].node_id
        if not node_id:
            raise TableError("BadRequest", "gcs.leave is for nodes")
        # The connection stays, so that the answer arrives; it is no node's any more.
        self._connections[number].node_id = b""
        del self._node_connections[node_id]
        self._bury_node(node_id, str(body["reason"]), now, effects)
        return {}

    def _drain_node(self, number: int, body: dict[str, Any], now: float, effects: list[Effect]) -> dict[str, Any]:
        node_id, deadline_s = bytes_of(body, "node_id"), float(body.get("deadline_s") or DRAIN_S)
        record = self.nodes.get(node_id)
        if record is None or not record.alive:
            raise TableError("NodeNotFound", f"there is no living node {node_id.hex()}")
        if record.node.is_head:
            text = f"{record.shown()} is the head node: the cluster ends with it; use `shoal stop` there"
            raise TableError("BadRequest", text)
        reason = str(body.get("reason") or "it was asked to leave")
        writes: list[Write] = []
        self.nodes.ask_to_drain(node_id, reason, deadline_s, writes)
        effects.extend(writes)
        writes = []
        if self.nodes.drain(node_id, writes):
            self._tell_drained(node_id, now, writes, effects)
        self._send_to_node(
            node_id, DrainNode(reason, deadline_s), effects
        )  # one that is away hears of it when it returns
        return {"draining": True}

    def _jobs(self, number: int, body: dict[str, Any], now: float, effects: list[Effect]) -> dict[str, Any]:
        return {"jobs": self.jobs.rows()}

    def _register_job(self, number: int, body: dict[str, Any], now: float, effects: list[Effect]) -> dict[str, Any]:
        writes: list[Write] = []
        job = self.jobs.register(body.get("job_id"), self._connections[number].node_id, body, now, writes)
        effects.extend(writes)
        return {"job_id": job.job_id}

    def _end_job_called(self, number: int, body: dict[str, Any], now: float, effects: list[Effect]) -> dict[str, Any]:
        job_id, reason = bytes_of(body, "job_id"), str(body.get("reason") or "its driver left")
        return {"ended": self._end_job(job_id, reason, now, effects)}

    def _end_job(self, job_id: bytes, reason: str, now: float, effects: list[Effect]) -> bool:
        writes: list[Write] = []
        ended = self.jobs.end(job_id, reason, now, writes)
        effects.extend(writes)
        self.group_desk.feed(placement_groups.JobEnded(job_id, reason), now, effects)
        # Also for a job that had ended: a worker of it may have made an actor meanwhile.
        self._on_actor_event(JobEnded(job_id, reason), now, effects)
        return ended

    def _on_hashed_call(
        self, method: str, body: dict[str, Any], now: float, effects: list[Effect]
    ) -> dict[str, Any] | None:
        """A call on the tables that every shard has; None if it is none."""
        call = hashed_tables.CALLS.get(method)
        if call is None:
            return None
        writes: list[Write] = []
        answer = call(self.hashed, body, writes)
        effects.extend(writes)
        for write in writes:
            if write.table == KeyValues.TABLE:
                self._publish_kv(write.key, write.value, now, effects)
        return answer

    def _statistics(self, number: int, body: dict[str, Any], now: float, effects: list[Effect]) -> dict[str, Any]:
        return self.statistics()


_MESSAGES: dict[type, Callable[[GcsShard, int, Any, float, list[Effect]], None]] = {
    GcsCall: GcsShard._on_call,
    RegisterNode: GcsShard._on_register_node,
    SubscribeKey: GcsShard._on_subscribe,
    TaskEventBatch: GcsShard._on_task_events,
    ActorWorkerStarted: GcsShard._on_actor_message,
    ActorConstructed: GcsShard._on_actor_message,
    ActorPlacementRefused: GcsShard._on_actor_message,
    ActorWorkerDied: GcsShard._on_actor_message,
    ActorRefsGone: GcsShard._on_refs_gone,
    NodeReport: GcsShard._on_node_report,
    BundleReserved: lambda shard, number, *about: shard.group_desk.on_reserved(
        shard._connections[number].node_id, *about
    ),
    NodeLoad: GcsShard._on_load,
    PlaceLeases: GcsShard._on_place_leases,
}

#: reports that a node keeps until they are acknowledged
_ACKNOWLEDGED = frozenset(
    {ActorWorkerStarted, ActorConstructed, ActorPlacementRefused, ActorWorkerDied, ActorRefsGone, TaskEventBatch}
)
#: messages that shards other than 0 take
_OF_ALL_SHARDS = frozenset({GcsCall, RegisterNode, SubscribeKey, TaskEventBatch, NodeLoad, PlaceLeases})
_FROM_NODES = _ACKNOWLEDGED | {NodeReport, NodeLoad, PlaceLeases, BundleReserved}

_CALLS: dict[str, Callable[[GcsShard, int, dict[str, Any], float, list[Effect]], dict[str, Any]]] = {
    "gcs.actor_create": GcsShard._actor_create,
    "gcs.actor_by_name": lambda shard, number, body, *about: actor_questions.by_name(shard.actors, body),
    "gcs.actor_log_append": GcsShard._actor_log_append,
    "gcs.actor_log_claim": GcsShard._actor_log_claim,
    "gcs.actor_kill": GcsShard._actor_kill,
    "gcs.actors_list": lambda shard, number, body, *about: actor_questions.listing(shard.actors, body),
    "gcs.actor_story": lambda shard, number, body, *about: actor_questions.story(shard.actors, body),
    "gcs.named_actors": lambda shard, number, body, *about: actor_questions.named(shard.actors, body),
    "gcs.nodes": GcsShard._nodes,
    "gcs.cluster_load": GcsShard._cluster_load,
    "gcs.explain": lambda shard, number, body, *about: {
        "why": actor_questions.why(shard.actors, shard.scheduler, shard._connections[number].node_id, body)
    },
    "gcs.drain_node": GcsShard._drain_node,
    "gcs.leave": GcsShard._leave,
    "gcs.jobs": GcsShard._jobs,
    "gcs.register_job": GcsShard._register_job,
    "gcs.end_job": GcsShard._end_job_called,
    "gcs.group_create": lambda shard, number, *about: shard.group_desk.create(*about),
    "gcs.group_remove": lambda shard, number, *about: shard.group_desk.remove(*about),
    "gcs.group_by_name": lambda shard, number, *about: shard.group_desk.by_name(*about),
    "gcs.groups": lambda shard, number, *about: shard.group_desk.listing(*about),
    "gcs.statistics": GcsShard._statistics,
}
