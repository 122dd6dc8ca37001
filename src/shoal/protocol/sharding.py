"""Which shard of the GCS knows what: the same answer on every node.

Purpose: `shards_of_call` and `shard_of` for those who ask, `merge_answers` for what several shards said.

Design: shard 0 has everything that is changed together: nodes, jobs, actors, names, groups, and the global scheduler. Functions, keys and trace
events are single rows, hashed over all shards (0 too) by CRC-32, which is the same in every process and version. What asks for many rows is asked of
all shards.

How to extend: a call on a hashed table gets a row in `_KEY_OF` or `_OF_ALL`.

What it does not do: send anything (`node.io.gcs_shards`); move rows when the number of shards changes (a kept storage refuses another number).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from zlib import crc32

SHARDS_MAX = 64
#: the namespace of keys that say which node is an object's home since its own died; all on shard 0, which knows when that node dies too
HEIRS = "heirs"


def check_shards(shards: object) -> int:
    """A number of shards, if it is one.

    Raises:
        TypeError, ValueError: it is not.
    """
    if isinstance(shards, bool) or not isinstance(shards, int):
        raise TypeError(f"gcs_shards must be a whole number, got {shards!r} of type {type(shards).__name__}")
    if not 1 <= shards <= SHARDS_MAX:
        raise ValueError(f"gcs_shards must be between 1 and {SHARDS_MAX}, got {shards}")
    return shards


def shard_of(key: bytes, shards: int) -> int:
    """The shard that has the row of a key."""
    return crc32(key) % shards


def kv_row_key(namespace: str, key: bytes) -> bytes:
    """The name of a key-value row over all namespaces."""
    return namespace.encode() + b"\0" + key


def shards_of_call(method: str, body: dict[str, Any], shards: int) -> Sequence[int]:
    """The shards to be asked. A body that makes no sense is shard 0's to refuse."""
    if method in _OF_ALL and (method != "gcs.kv_del" or body.get("prefix")):
        return range(shards)
    key_of = _KEY_OF.get(method)
    if key_of is None:
        return (0,)
    try:
        return (0,) if body.get("namespace") == HEIRS else (shard_of(key_of(body), shards),)
    except (KeyError, TypeError, AttributeError, UnicodeError):
        return (0,)


def merge_answers(method: str, body: dict[str, Any], answers: list[dict[str, Any]]) -> dict[str, Any]:
    """One answer out of those of all shards, in their order."""
    return _OF_ALL[method](body, answers)


def _merge_keys(_body: dict[str, Any], answers: list[dict[str, Any]]) -> dict[str, Any]:
    return {"keys": sorted(key for answer in answers for key in answer["keys"])}


def _merge_deleted(_body: dict[str, Any], answers: list[dict[str, Any]]) -> dict[str, Any]:
    return {"deleted": sum(answer["deleted"] for answer in answers)}


def _merge_events(body: dict[str, Any], answers: list[dict[str, Any]]) -> dict[str, Any]:
    events = sorted((event for answer in answers for event in answer["events"]), key=lambda event: event["ended_s"])
    limit = int(body.get("limit") or len(events))
    return {"events": events[max(0, len(events) - limit) :], "dropped": sum(answer["dropped"] for answer in answers)}


def _merge_statistics(_body: dict[str, Any], answers: list[dict[str, Any]]) -> dict[str, Any]:
    return {**answers[0], "shards": answers}


_KEY_OF: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "gcs.function_put": lambda body: body["function_id"],
    "gcs.function_get": lambda body: body["function_id"],
    "gcs.kv_put": lambda body: kv_row_key(body["namespace"], body["key"]),
    "gcs.kv_get": lambda body: kv_row_key(body["namespace"], body["key"]),
    "gcs.kv_exists": lambda body: kv_row_key(body["namespace"], body["key"]),
    "gcs.kv_del": lambda body: kv_row_key(body["namespace"], body["key"]),
}
_OF_ALL: dict[str, Callable[[dict[str, Any], list[dict[str, Any]]], dict[str, Any]]] = {
    "gcs.kv_list": _merge_keys,
    "gcs.kv_del": _merge_deleted,
    "gcs.task_events": _merge_events,
    "gcs.statistics": _merge_statistics,
}
#: what shards other than 0 answer
HASHED_CALLS = frozenset(_KEY_OF) | frozenset(_OF_ALL)
