"""The logs of actors with checkpoints in the GCS: appended once, taken over by one life at a time, read back from storage."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.gcs.actor_logs import StoredLogs
from shoal.gcs.storage.backend import Write

ACTOR = b"a" * 16


class Stored:
    """The table and its rows in storage, which a new server reads."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.table = StoredLogs()

    def commit(self, writes: list[Write]) -> None:
        for write in writes:
            if write.value is None:
                del self.rows[write.key]
            else:
                self.rows[write.key] = write.value

    def append(
        self,
        incarnation: int,
        first: int,
        records: list[bytes],
        checkpoint: Any = None,
        index: int = 0,
        places: bytes | None = None,
    ) -> Any:
        writes: list[Write] = []
        body = {"actor_id": ACTOR, "incarnation": incarnation, "index": index, "checkpoint": checkpoint}
        answer = self.table.append({**body, "first": first, "records": records, "places": places}, writes)
        self.commit(writes)
        return answer

    def claim(self, incarnation: int) -> Any:
        writes: list[Write] = []
        answer = self.table.claim(ACTOR, incarnation, writes)
        self.commit(writes)
        return answer

    def drop(self) -> None:
        writes: list[Write] = []
        self.table.drop(ACTOR, writes)
        self.commit(writes)

    def reread(self) -> None:
        self.table = StoredLogs()
        for key in sorted(self.rows):
            self.table.restore(key, self.rows[key])


def test_lives_that_add_nothing_are_counted_wherever_they_are() -> None:
    stored = Stored()
    assert stored.claim(1)["vain"] == 0
    stored.append(1, 1, [b"1"], b"c0")
    assert [stored.claim(life)["vain"] for life in (2, 5)] == [1, 4]
    stored.append(5, 1, [b"1"])  # what there is already
    stored.reread()
    assert stored.claim(6)["vain"] == 5
    stored.append(6, 2, [b"2"])
    stored.reread()
    assert stored.claim(7)["vain"] == 1
    stored.append(7, 3, [], b"c2", 2)
    assert stored.claim(9)["vain"] == 2


def test_one_life_after_the_other() -> None:
    stored = Stored()
    assert stored.append(1, 1, [b"1", b"2"], b"c0") == {"accepted": True, "last": 2}
    assert stored.append(1, 2, [b"2", b"3"]) == {"accepted": True, "last": 3}  # said again
    assert stored.append(1, 5, [b"5"]) == {"accepted": True, "last": 3}  # something before is missing
    claimed = {
        "accepted": True,
        "index": 0,
        "checkpoint": b"c0",
        "records": [b"1", b"2", b"3"],
        "places": b"",
        "vain": 1,
    }
    assert stored.claim(2) == claimed
    stored.reread()
    assert stored.claim(2) == claimed
    assert not stored.append(1, 4, [b"4"])["accepted"]
    assert not stored.claim(1)["accepted"]
    assert stored.append(2, 3, [b"x"], b"c2", 2)["last"] == 3
    claimed = {"accepted": True, "index": 2, "checkpoint": b"c2", "records": [b"3"], "places": b"", "vain": 1}
    assert stored.claim(3) == claimed
    stored.drop()
    assert not stored.rows and not len(stored.table)


def test_nothing_was_said_before_the_node_was_lost() -> None:
    nothing = {"accepted": True, "index": 0, "checkpoint": None, "records": [], "places": b"", "vain": 0}
    assert Stored().claim(2) == nothing


def test_where_large_objects_are_is_kept_until_it_is_told_anew() -> None:
    stored = Stored()
    stored.append(1, 1, [b"1"], b"", 0, b"p0")
    stored.append(1, 2, [b"2"])
    stored.reread()
    assert stored.claim(1)["places"] == b"p0"
    stored.append(1, 3, [], None, 0, b"p1")  # a copy is elsewhere now
    stored.reread()
    assert (stored.claim(2)["places"], stored.claim(2)["checkpoint"]) == (b"p1", b"")
    assert not stored.append(1, 3, [], b"", 2, b"p2")["accepted"]
    assert stored.claim(2)["places"] == b"p1"


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["record", "checkpoint", "send", "repeat", "reread", "move"]), st.integers(0, 3)),
        max_size=40,
    )
)
def test_the_log_is_that_of_its_node(steps: list[tuple[str, int]]) -> None:
    stored = Stored()
    records: list[bytes] = []  # all, from index 1
    incarnation, covered, checkpoint = 1, 0, b"c0"
    sent: tuple[int, list[bytes], bytes, int] | None = None
    for step, number in steps:
        if step == "record":
            records += [b"%d" % (len(records) + 1 + i) for i in range(number)]
        elif step == "checkpoint":
            covered = max(covered, len(records) - number)
            checkpoint = b"c%d" % covered
        elif step == "send":
            sent = (covered + 1, records[covered:], checkpoint, covered)
            assert stored.append(incarnation, *sent) == {"accepted": True, "last": len(records)}
        elif step == "repeat" and sent is not None:
            stored.append(incarnation, *sent)
        elif step == "reread":
            stored.reread()
        elif step == "move":
            incarnation += 1
            claimed = stored.claim(incarnation)
            covered, checkpoint = claimed["index"], claimed["checkpoint"] or b"c0"
            if sent is not None:
                assert checkpoint == b"c%d" % covered
            known = records[:covered] + claimed["records"]
            assert known == [b"%d" % (i + 1) for i in range(len(known))]
            assert sent is None or len(known) >= sent[3] + len(sent[1])
            records, sent = known, None
    before = stored.claim(incarnation + 1)
    stored.reread()
    assert stored.claim(incarnation + 1) == before
    stored.drop()
    assert not stored.rows
