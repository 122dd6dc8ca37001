"""The tables that are spread over all shards, and the calls on them: functions, keys and trace events.

Purpose: what every shard has, whatever its number.

Design: one row is one key, so no call needs two shards to agree (`protocol.sharding` says who has what). Calls read their body before they change
anything. What changed in the table of keys, `shard` sees in the writes.

How to extend: a call gets a method and a row in `CALLS`, and in `protocol.sharding`.

What it does not do: know connections or nodes (`shard`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shoal.gcs.storage.backend import Write
from shoal.gcs.tables import Functions, KeyValues, TaskEvents, bytes_of
from shoal.protocol.limits import TASK_EVENTS_MAX
from shoal.protocol.sharding import HEIRS

Body = dict[str, Any]


class HashedTables:
    """The tables of one shard."""

    TABLES = (Functions.TABLE, KeyValues.TABLE, TaskEvents.TABLE)

    def __init__(self) -> None:
        self.functions = Functions()
        self.kv = KeyValues()
        self.task_events = TaskEvents()

    def restore(self, table: str, key: bytes, value: bytes) -> None:
        """Take back a stored row of one of `TABLES`; in the order of keys."""
        if table == Functions.TABLE:
            self.functions.restore(key, value)
        elif table == KeyValues.TABLE:
            self.kv.restore(key, value)
        else:
            self.task_events.restore(key, value)

    def statistics(self) -> dict[str, int]:
        """Sizes."""
        return {
            "functions": len(self.functions),
            "kv": len(self.kv),
            "task_events": len(self.task_events),
            "task_events_dropped": self.task_events.dropped,
        }

    def forget_heir(self, node_id: bytes, writes: list[Write]) -> None:
        """A node is dead that had inherited objects: who asks for them next may be their home."""
        for key in self.kv.keys(KeyValues.row_key(HEIRS, b"")):
            if self.kv.get(key) == node_id:
                self.kv.delete(key, False, writes)

    # ------------------------------------------------------------ calls

    def _function_put(self, body: Body, writes: list[Write]) -> Body:
        return {"added": self.functions.put(bytes_of(body, "function_id"), bytes_of(body, "code"), writes)}

    def _function_get(self, body: Body, writes: list[Write]) -> Body:
        return {"code": self.functions.get(bytes_of(body, "function_id"))}

    def _kv_put(self, body: Body, writes: list[Write]) -> Body:
        row_key, value = _row_key(body), bytes_of(body, "value")
        return {"added": self.kv.put(row_key, value, bool(body.get("overwrite", True)), writes)}

    def _kv_get(self, body: Body, writes: list[Write]) -> Body:
        return {"value": self.kv.get(_row_key(body))}

    def _kv_del(self, body: Body, writes: list[Write]) -> Body:
        return {"deleted": len(self.kv.delete(_row_key(body), bool(body.get("prefix")), writes))}

    def _kv_exists(self, body: Body, writes: list[Write]) -> Body:
        return {"exists": self.kv.get(_row_key(body)) is not None}

    def _kv_list(self, body: Body, writes: list[Write]) -> Body:
        space = KeyValues.row_key(str(body["namespace"]), b"")
        prefix = bytes_of(body, "prefix") if body.get("prefix") else b""
        return {"keys": [key[len(space) :] for key in self.kv.keys(space + prefix)]}

    def _task_events(self, body: Body, writes: list[Write]) -> Body:
        limit = int(body.get("limit") or TASK_EVENTS_MAX)
        return {"events": self.task_events.rows(limit, body.get("job_id")), "dropped": self.task_events.dropped}


def _row_key(body: Body) -> bytes:
    return KeyValues.row_key(str(body["namespace"]), bytes_of(body, "key"))


#: (tables, body, writes) -> the answer's body
CALLS: dict[str, Callable[[HashedTables, Body, list[Write]], Body]] = {
    "gcs.function_put": HashedTables._function_put,
    "gcs.function_get": HashedTables._function_get,
    "gcs.kv_put": HashedTables._kv_put,
    "gcs.kv_get": HashedTables._kv_get,
    "gcs.kv_del": HashedTables._kv_del,
    "gcs.kv_exists": HashedTables._kv_exists,
    "gcs.kv_list": HashedTables._kv_list,
    "gcs.task_events": HashedTables._task_events,
}
