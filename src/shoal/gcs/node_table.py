"""The table of nodes: who belongs to the cluster, under which number, and who is dead.

Purpose: membership. The one writer of node records, of the time when a node is given up, and of what a node said last of its load.

Design: a record is stored before anybody is told of it, so a new server knows all nodes of the old one, refuses none of them, and gives up those that
do not come back. A node is

    connected --connection ended--> away --NODE_AWAY_S, or at once when nobody listens at its address any more--> dead
        `--silent for HEARTBEATS_MISSED_S (once it has sent a heartbeat)--^

When another head has taken over, its nodes have to find it first: they have TAKEN_OVER_AWAY_S for that as long as they answer when they are asked
whether they live (`answers`), and NODE_AWAY_S after the last answer.

Dead is for ever: a node that returns is *fenced*, its work is elsewhere by now; it must join as a new node. Numbers go up and are never used
again, also not after their nodes are forgotten, because lease and job numbers are made from them.

A server that was itself stopped for a while must not take its own silence for that of others: what they said meanwhile waits in its sockets. So
nobody is given up at one look: the last second of a node's time is LOOKS looks, between which the server reads, and the node is *suspect*.

How to extend: a fact of a node is a field of `NodeRecord` (stored), of `NodeEntry` (told to nodes) or of `row` (shown to users).

What it does not do: decide what becomes of a dead node's actors, jobs and leases (`shard` tells those who do).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Any

import msgspec

from shoal.gcs.storage.backend import Write
from shoal.protocol.gcs_messages import NodeEntry, NodeLoad, RegisterNode
from shoal.protocol.limits import HEARTBEATS_MISSED_S, NODE_AWAY_S, NODES_DEAD_MAX

#: in the last LOOKS * LOOK_S of a node's time it is looked at so often
LOOKS = 4
LOOK_S = 0.25
SUSPECT_S = LOOKS * LOOK_S

_encode = msgspec.msgpack.encode


class NodeRecord(msgspec.Struct):
    """One node's life."""

    node: RegisterNode
    node_no: int
    joined_s: float
    alive: bool = True
    draining: bool = False
    left_s: float = 0.0
    cause: str = ""
    drain_s: float = (
        0.0  #: how long it was given to drain, until it says that it does: it may have been away; 0 for nothing asked
    )
    drain_reason: str = ""

    def entry(self) -> NodeEntry:
        """What other nodes are told."""
        node = self.node
        return NodeEntry(
            node.node_id,
            self.node_no,
            node.address,
            node.hostname,
            node.resources,
            node.labels,
            self.alive,
            node.is_head,
            self.draining,
            self.cause,
            node.name,
        )

    def shown(self) -> str:
        """What texts call it."""
        return self.node.name or self.node.node_id.hex()[:8]


class NodeTable:
    """All nodes that live, and the last NODES_DEAD_MAX that died."""

    TABLE = "nodes"
    #: a row of its own keeps the last number that was given out
    NUMBER_KEY = b""

    def __init__(self) -> None:
        self._rows: dict[bytes, NodeRecord] = {}
        #: dead ones, oldest first; each is a key of `_rows`
        self._dead: deque[bytes] = deque()
        self._last_number = 0
        #: living nodes that are not connected -> (when they are given up, why they are away)
        self._away: dict[bytes, tuple[float, str]] = {}
        #: those of them that a head which took over waits for -> until when, if they answer
        self._searching: dict[bytes, float] = {}
        #: connected nodes that send heartbeats -> when they sent the last one; the one silent for longest is first
        self._heard: OrderedDict[bytes, float] = OrderedDict()
        #: those of both whose time is nearly over -> (looks, when the next one is due)
        self._suspects: dict[bytes, tuple[int, float]] = {}
        #: last heartbeats of connected nodes
        self._loads: dict[bytes, NodeLoad] = {}
        #: what others are told of each node, as long as that is true: whoever joins is told of all
        self._entries: dict[bytes, NodeEntry] = {}

    # ------------------------------------------------------------ start

    def restore(self, key: bytes, stored: bytes) -> None:
        """Take back a stored row."""
        if key == self.NUMBER_KEY:
            self._last_number = int.from_bytes(stored, "big")
            return
        record = msgspec.msgpack.decode(stored, type=NodeRecord)
        self._rows[key] = record

    def begin(self, now: float, search_s: float = 0.0) -> None:
        """All rows are restored: living nodes have NODE_AWAY_S from now to come back; `search_s`, while they answer, if the head is another one."""
        order = sorted(self._rows.values(), key=lambda record: record.joined_s)
        self._rows = {record.node.node_id: record for record in order}
        dead = [record for record in order if not record.alive]
        self._dead.extend(record.node.node_id for record in sorted(dead, key=lambda record: record.left_s))
        for record in order:
            if record.alive:
                cause = "it did not come back when the GCS server was started again"
                if search_s:
                    cause = "it did not come to the head that has taken over"
                    self._searching[record.node.node_id] = now + search_s
                self._away[record.node.node_id] = (now + NODE_AWAY_S, cause)

    # ------------------------------------------------------------ queries

    def get(self, node_id: bytes) -> NodeRecord | None:
        """The record of a node, None if unknown or forgotten."""
        return self._rows.get(node_id)

    def records(self) -> list[NodeRecord]:
        """All nodes, in the order of joining."""
        return list(self._rows.values())

    def entries(self) -> list[NodeEntry]:
        """What a node that joins is told: all that live and those that died lately."""
        known = self._entries
        return [known.get(node_id) or self.entry(record) for node_id, record in self._rows.items()]

    def entry(self, record: NodeRecord) -> NodeEntry:
        """What other nodes are told of one."""
        entry = self._entries[record.node.node_id] = record.entry()
        return entry

    def rows(self) -> list[dict[str, Any]]:
        """All nodes as listings show them, in the order of joining."""
        return [self._row(record) for record in self._rows.values()]

    def _row(self, record: NodeRecord) -> dict[str, Any]:
        node, load = record.node, self._loads.get(record.node.node_id)
        away = self._away.get(node.node_id)
        return {
            "node_id": node.node_id,
            "node_no": record.node_no,
            "name": node.name,
            "alive": record.alive,
            "state": "dead"
            if not record.alive
            else "suspect"
            if away or node.node_id in self._suspects
            else "draining"
            if record.draining
            else "alive",
            "pid": node.pid,
            "hostname": node.hostname,
            "address": node.address,
            "is_head": node.is_head,
            "resources": node.resources if load is None else load.total,
            "available": {} if load is None else load.available,
            "waiting": [] if load is None else [list(each) for each in load.waiting],
            "store_used_bytes": 0 if load is None else load.store_used_bytes,
            "labels": node.labels,
            "session_dir": node.session_dir,
            "joined_s": record.joined_s,
            "left_s": record.left_s,
            "cause": record.cause or (away[1] if away else ""),
        }

    def head(self) -> bytes:
        """The head's node while it lives, else b""."""
        return next((key for key, each in self._rows.items() if each.alive and each.node.is_head), b"")

    def shards(self) -> list[str] | None:
        """Where the other shards of the GCS listen, as the head has said; None if it has not registered yet."""
        return next((each.node.shards for each in self._rows.values() if each.alive and each.node.is_head), None)

    def next_deadline(self) -> float | None:
        """When somebody must be looked at; None while all is well."""
        due = [at for _, at in self._suspects.values()]
        due += [until - SUSPECT_S for node_id, (until, _) in self._away.items() if node_id not in self._suspects]
        for node_id, heard in self._heard.items():
            if node_id not in self._suspects:
                due.append(heard + HEARTBEATS_MISSED_S - SUSPECT_S)
                break  # the others were heard later
        return min(due, default=None)

    def why_away(self, node_id: bytes) -> str:
        """Why a living node is not connected; "" if it is, or does not live."""
        return self._away.get(node_id, (0.0, ""))[1]

    def away(self) -> int:
        """How many living nodes are not connected."""
        return len(self._away)

    # ------------------------------------------------------------ changes

    def register(self, node: RegisterNode, now: float, writes: list[Write]) -> str:
        """A node presents itself (again). Returns why it may not belong to the cluster; "" when it does."""
        known = self._rows.get(node.node_id)
        refusal = self._refusal(node, known)
        if refusal:
            return refusal
        self._away.pop(node.node_id, None)
        self._searching.pop(node.node_id, None)
        self._suspects.pop(node.node_id, None)
        self._heard.pop(node.node_id, None)  # its heartbeats begin anew
        if known is None:
            number = 0
            if not node.is_head or any(
                record.node.is_head for record in self._rows.values()
            ):  # 0 is the first head's alone
                self._last_number += 1
                number = self._last_number
                writes.append(Write(self.TABLE, self.NUMBER_KEY, number.to_bytes(8, "big")))
            known = self._rows[node.node_id] = NodeRecord(node, number, now)
        node.node_no = known.node_no
        known.node = node
        self._store(known, writes)
        return ""

    def _refusal(self, node: RegisterNode, known: NodeRecord | None) -> str:
        if known is not None and not known.alive:
            return (
                f"it was declared dead: {known.cause}. What ran here has been started elsewhere since, so it must join as a new node: "
                "start it again"
            )
        if known is not None:
            return ""
        if node.node_no:
            return "it was declared dead long ago, or belongs to another cluster: start it again, as a new node"
        if not node.name and not node.is_head:
            return ""
        for record in self._rows.values():
            if not record.alive:
                continue
            if node.is_head and record.node.is_head:
                return f"this cluster has a head node already: {record.shown()} at {record.node.address}"
            if node.name and record.node.name == node.name:
                return (
                    f"the node name {node.name!r} is taken by a node at {record.node.address} (process {record.node.pid} on "
                    f"{record.node.hostname}): choose another one, or leave it out"
                )
        return ""

    def hear(self, node_id: bytes, load: NodeLoad, now: float, writes: list[Write]) -> bool:
        """A heartbeat. Whether the others must be told of a change."""
        self._heard[node_id] = now
        self._heard.move_to_end(node_id)
        self._suspects.pop(node_id, None)
        self._loads[node_id] = load
        record = self._rows[node_id]
        if load.draining and record.drain_s:
            record.drain_s = 0.0
            self._store(record, writes)
        return load.draining and self.drain(node_id, writes)

    def drain(self, node_id: bytes, writes: list[Write]) -> bool:
        """A node takes no new work. False if that was known."""
        record = self._rows[node_id]
        if record.draining:
            return False
        record.draining = True
        self._store(record, writes)
        return True

    def ask_to_drain(self, node_id: bytes, reason: str, deadline_s: float, writes: list[Write]) -> None:
        """A node is told to drain, now or when it is there again."""
        record = self._rows[node_id]
        record.drain_reason, record.drain_s = reason, deadline_s
        self._store(record, writes)

    def lose(self, node_id: bytes, cause: str, now: float) -> None:
        """A node's connection ended."""
        self._heard.pop(node_id, None)
        self._suspects.pop(node_id, None)
        self._loads.pop(node_id, None)
        if self._rows[node_id].alive:
            self._away[node_id] = (now + NODE_AWAY_S, cause)

    def answers(self, node_id: bytes, now: float) -> None:
        """A node that is away lives: one that looks for a head which took over has more time."""
        until = self._searching.get(node_id, 0.0)
        known, cause = self._away.get(node_id, (until, ""))
        if known < until:
            self._away[node_id] = (min(now + NODE_AWAY_S, until), cause)
            self._suspects.pop(node_id, None)

    def overdue(self, now: float) -> list[tuple[bytes, str]]:
        """Time has passed: the nodes to be given up, with the reason. `bury` them."""
        given_up = []
        for node_id, cause in self._nearly_over(now):
            looks, due = self._suspects.get(node_id, (0, now))
            if due > now:
                continue
            if looks == LOOKS:
                given_up.append((node_id, cause))
            else:
                self._suspects[node_id] = (looks + 1, now + LOOK_S)
        return given_up

    def _nearly_over(self, now: float) -> list[tuple[bytes, str]]:
        found = [(node_id, cause) for node_id, (until, cause) in self._away.items() if until - SUSPECT_S <= now]
        for node_id, heard in self._heard.items():
            if heard + HEARTBEATS_MISSED_S - SUSPECT_S > now:
                break
            found.append((node_id, f"it said nothing for {now - heard:.1f} s"))
        return found

    def bury(self, node_id: bytes, cause: str, now: float, writes: list[Write]) -> NodeRecord:
        """A living node is dead."""
        record = self._rows[node_id]
        assert record.alive, f"node {record.shown()} dies twice"
        self._away.pop(node_id, None)
        self._searching.pop(node_id, None)
        self._suspects.pop(node_id, None)
        self._heard.pop(node_id, None)
        self._loads.pop(node_id, None)
        record.alive, record.left_s, record.cause = False, now, cause
        self._store(record, writes)
        self._dead.append(node_id)
        if len(self._dead) > NODES_DEAD_MAX:
            forgotten = self._dead.popleft()
            del self._rows[forgotten]
            self._entries.pop(forgotten, None)
            writes.append(Write(self.TABLE, forgotten, None))
        return record

    def _store(self, record: NodeRecord, writes: list[Write]) -> None:
        self._entries.pop(record.node.node_id, None)
        writes.append(Write(self.TABLE, record.node.node_id, _encode(record)))
