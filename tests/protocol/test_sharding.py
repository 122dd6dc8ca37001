"""Which shard knows what, and one answer out of many."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.protocol.sharding import check_shards, kv_row_key, merge_answers, shard_of, shards_of_call


def test_rows_are_spread_and_always_found_at_the_same_place() -> None:
    counts = [0] * 4
    for number in range(4000):
        counts[shard_of(b"key %d" % number, 4)] += 1
    assert min(counts) > 800
    # For ever: rows are stored.
    assert [shard_of(b"key %d" % number, 4) for number in range(8)] == [1, 3, 1, 3, 0, 2, 0, 2]


@pytest.mark.parametrize("method", ["kv_put", "kv_get", "kv_exists", "kv_del"])
def test_all_calls_on_a_key_go_to_one_shard(method: str) -> None:
    body = {"namespace": "space", "key": b"k7", "value": b""}
    assert list(shards_of_call(f"gcs.{method}", body, 5)) == [shard_of(kv_row_key("space", b"k7"), 5)]


def test_what_is_for_all_and_what_is_for_the_first() -> None:
    assert list(shards_of_call("gcs.kv_list", {}, 3)) == [0, 1, 2]
    assert list(shards_of_call("gcs.kv_del", {"namespace": "s", "key": b"", "prefix": True}, 3)) == [0, 1, 2]
    assert list(shards_of_call("gcs.actor_create", {}, 3)) == [0]
    bad: list[dict[str, Any]] = [{}, {"namespace": 7, "key": b""}, {"namespace": "s", "key": "text"}]
    for body in bad:
        assert list(shards_of_call("gcs.kv_get", body, 3)) == [0]
    assert list(shards_of_call("gcs.function_get", {"function_id": 5}, 3)) == [0]


def test_answers_are_merged() -> None:
    assert merge_answers("gcs.kv_list", {}, [{"keys": [b"a", b"d"]}, {"keys": [b"b"]}]) == {"keys": [b"a", b"b", b"d"]}
    assert merge_answers("gcs.kv_del", {}, [{"deleted": 2}, {"deleted": 3}]) == {"deleted": 5}
    events = [{"events": [{"ended_s": 1}, {"ended_s": 4}], "dropped": 1}, {"events": [{"ended_s": 2}], "dropped": 0}]
    assert merge_answers("gcs.task_events", {"limit": 2}, events) == {
        "events": [{"ended_s": 2}, {"ended_s": 4}],
        "dropped": 1,
    }
    assert len(merge_answers("gcs.task_events", {}, events)["events"]) == 3
    assert merge_answers("gcs.statistics", {}, [{"kv": 1}, {"kv": 2}])["shards"][1] == {"kv": 2}


@pytest.mark.parametrize("shards", [0, -1, 65, True, 1.5, "2", None])
def test_what_is_no_number_of_shards(shards: object) -> None:
    with pytest.raises((TypeError, ValueError), match="gcs_shards"):
        check_shards(shards)
