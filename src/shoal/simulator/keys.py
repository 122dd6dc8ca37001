"""Work on the tables that are spread over the shards of the GCS: functions, keys and trace events, asked of and told by any node.

Purpose: what a shard has confirmed is never lost and never done twice, whatever dies, and whichever shard it is that dies.

Design: each piece of work is a conversation of one or more nodes with the shards, by the node's line as production routes it (`ShardLines`).
What is believed are the answers alone:

    function   what was put is there for whoever asks afterwards
    claim      several nodes put one key that must not be there: one of them is told that it was the first, and its value stays
    count      a key is overwritten again and again: who reads it never sees an older value than was confirmed before the question
    delete     several nodes delete keys: each deletion is counted once, and a listing over all shards has what is there, and nothing else
    events     batches of trace events, said again after each lost connection: each is there once in the end

What it does not do: subscriptions; keys of heirs (`tests.campaigns` play those).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from shoal.gcs.tables import TaskEvents
from shoal.protocol.gcs_messages import TaskEventBatch

if TYPE_CHECKING:
    from shoal.simulator.cluster import Cluster
    from shoal.simulator.node import Node

SECONDS = 5.0  #: over which a piece of work is spread
COUNTED = 10  #: times that a key is overwritten
KEYS = 6  #: put, listed and deleted together
BATCHES = 5


class KeysError(AssertionError):
    """The shards have said what cannot be."""


class KeyWork:
    """All of it in one cluster."""

    def __init__(self, cluster: Cluster, dice: random.Random) -> None:
        self._cluster = cluster
        self._dice = dice
        self._asked = 0
        #: questions without an answer: number -> (the node that asked, what)
        self._open: dict[int, tuple[Node, str]] = {}
        #: what was to be done by one of several nodes -> all of them, and how many were told that it was they
        self._once: dict[bytes, tuple[list[Node], list[int]]] = {}
        #: sender -> (its node, batches told)
        self._events: dict[bytes, tuple[Node, int]] = {}

    def begin(self) -> None:
        """Spread work over some time from now on."""
        kinds = [self._function, self._claim, self._count, self._delete, self._tell_events]
        for _ in range(self._dice.choice([5, 25])):
            self._later(self._dice.choice(kinds))

    def _later(self, call: Callable[..., None], *args: Any) -> None:
        self._cluster.world.after(self._dice.uniform(0.0, SECONDS), call, *args)

    def _node(self) -> Node | None:
        """One that has joined, and so knows the shards."""
        nodes = [node for node in self._cluster.nodes.values() if not node.dead and node.shards is not None]
        return self._dice.choice(nodes) if nodes else None

    def _ask(self, node: Node, method: str, then: Callable[[dict[str, Any]], None], **body: Any) -> None:
        self._asked += 1
        number = self._asked
        self._open[number] = (node, method)

        def answered(answer: Any, error: list[str]) -> None:
            del self._open[number]
            if error:
                raise KeysError(f"{method} was refused: {' '.join(error)}")
            then(answer)

        node.actors.line.call(method, body, answered)

    # ---------------------------------------------------------------- work

    def _function(self) -> None:
        node, function_id = self._node(), self._cluster.new_id()
        if node is None:
            return

        def put(answer: dict[str, Any]) -> None:
            for _ in range(3):
                self._later(read)

        def read() -> None:
            if (reader := self._node()) is not None:
                self._ask(reader, "gcs.function_get", found, function_id=function_id)

        def found(answer: dict[str, Any]) -> None:
            if answer["code"] != b"code " + function_id:
                raise KeysError(f"function {function_id.hex()} was put, and is {answer['code']!r}")

        self._ask(node, "gcs.function_put", put, function_id=function_id, code=b"code " + function_id)

    def _claim(self) -> None:
        key = self._cluster.new_id()
        firsts: list[bytes] = []
        claimers, told_first = self._once[key] = ([], [])

        def claim() -> None:
            node = self._node()
            if node is None:
                return
            value = self._cluster.new_id()
            claimers.append(node)

            def told(answer: dict[str, Any]) -> None:
                if answer["added"]:
                    firsts.append(value)
                    told_first.append(1)
                if len(firsts) > 1:
                    raise KeysError(f"{len(firsts)} nodes were told that they were the first to put key {key.hex()}")
                self._ask(node, "gcs.kv_get", found, namespace="claims", key=key)

            self._ask(node, "gcs.kv_put", told, namespace="claims", key=key, value=value, overwrite=False)

        def found(answer: dict[str, Any]) -> None:
            if answer["value"] is None or (firsts and answer["value"] != firsts[0]):
                raise KeysError(f"key {key.hex()} was put by {firsts} first, and is {answer['value']!r}")

        for _ in range(4):
            self._later(claim)

    def _count(self) -> None:
        node, key = self._node(), self._cluster.new_id()
        if node is None:
            return
        confirmed = 0

        def write() -> None:
            if not node.dead:
                value = (confirmed + 1).to_bytes(4, "big")
                self._ask(node, "gcs.kv_put", written, namespace="counts", key=key, value=value)

        def written(answer: dict[str, Any]) -> None:
            nonlocal confirmed
            confirmed += 1
            if confirmed < COUNTED:
                self._cluster.world.after(self._dice.uniform(0.0, SECONDS / COUNTED), write)
            if (reader := self._node()) is not None:
                least = confirmed

                def found(answer: dict[str, Any]) -> None:
                    value = int.from_bytes(answer["value"] or b"", "big")
                    if not least <= value <= confirmed + 1:
                        raise KeysError(
                            f"a key was {least} before it was asked for, is {confirmed}, and was answered as {value}"
                        )

                self._ask(reader, "gcs.kv_get", found, namespace="counts", key=key)

        write()

    def _delete(self) -> None:
        prefix = self._cluster.new_id()
        keys = [prefix + bytes([number]) for number in range(KEYS)]
        there: set[bytes] = set()
        asked_to_go: set[bytes] = set()
        gone: set[bytes] = set()
        for key in keys:
            self._once[key] = ([], [])

        def put(key: bytes) -> None:
            if (node := self._node()) is None:
                return

            def told(answer: dict[str, Any]) -> None:
                there.add(key)
                self._later(delete, key)
                self._later(delete, key)
                self._later(look)

            self._ask(node, "gcs.kv_put", told, namespace="few", key=key, value=b"x", overwrite=False)

        def delete(key: bytes) -> None:
            if (node := self._node()) is None:
                return
            asked_to_go.add(key)
            deleters, counted = self._once[key]
            deleters.append(node)

            def told(answer: dict[str, Any]) -> None:
                there.discard(key)
                gone.add(key)
                if answer["deleted"]:
                    counted.append(answer["deleted"])
                if sum(counted) > 1:
                    raise KeysError(f"the deletion of one key was counted {sum(counted)} times")

            self._ask(node, "gcs.kv_del", told, namespace="few", key=key)

        def look() -> None:
            if (node := self._node()) is None:
                return
            sure = there - asked_to_go
            gone_before = set(gone)

            def told(answer: dict[str, Any]) -> None:
                listed = answer["keys"]
                missing = sure - asked_to_go - set(listed)
                extra = gone_before & set(listed)
                if missing or extra or len(set(listed)) != len(listed):
                    raise KeysError(
                        f"a listing over all shards lacks {len(missing)} keys, has {len(extra)} that are gone"
                    )

            self._ask(node, "gcs.kv_list", told, namespace="few", prefix=prefix)

        for key in keys:
            self._later(put, key)

    def _tell_events(self) -> None:
        node, sender = self._node(), self._cluster.new_id()
        if node is None:
            return
        self._events[sender] = (node, 0)

        def tell(seq: int) -> None:
            if node.dead:
                return
            self._events[sender] = (node, seq)
            event = [sender, "task", 0, b"", 0.0, float(seq), b""]
            batch = TaskEventBatch(sender, seq, 1, node.node_id, b"job", 1, msgspec.msgpack.encode([event]))
            node.actors.line.report(batch)
            if seq < BATCHES:
                self._cluster.world.after(self._dice.uniform(0.0, SECONDS / BATCHES), tell, seq + 1)

        tell(1)

    # ---------------------------------------------------------------- what must hold

    def check_drained(self) -> None:
        """With faults over: all is answered, and all that living nodes told is there, once.

        Raises:
            KeysError: it is not.
        """
        waits = [method for node, method in self._open.values() if not node.dead]
        if waits:
            raise KeysError(f"{len(waits)} questions of living nodes are not answered: {waits[0]}")
        for key, (nodes, told_once) in self._once.items():
            if nodes and not told_once and not any(node.dead for node in nodes):
                raise KeysError(
                    f"{len(nodes)} living nodes have put (or deleted) key {key.hex()}, and none was told that it was it"
                )
        kept: dict[bytes, list[int]] = {}
        for gcs in self._cluster.shards:
            for _, stored in sorted(gcs.stored.get(TaskEvents.TABLE, {}).items()):
                batch = msgspec.msgpack.decode(stored, type=TaskEventBatch)
                kept.setdefault(batch.sender, []).append(batch.seq)
        for sender, (node, told) in self._events.items():
            seqs = kept.get(sender, [])
            if seqs != sorted(set(seqs)) or (not node.dead and len(seqs) != told):
                raise KeysError(f"{told} batches of trace events were told, of which these are kept: {seqs}")
