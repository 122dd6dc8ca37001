"""Whom to kill for memory."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from shoal.node.io.memory_watch import memory_used
from shoal.node.memory_policy import SLACK_BYTES, WORTH_SHARE, Candidate, Loss, choose_victim, over_what_they_asked
from shoal.system.machine import private_bytes

MB = 1 << 20


def candidate(lease_id: int, megabytes: int, loss: Loss = Loss.TIME) -> Candidate:
    return Candidate(bytes([lease_id]), lease_id, loss, megabytes * MB)


def chosen(*candidates: Candidate) -> int:
    victim = choose_victim(candidates, 1000 * MB)
    return victim.lease_id if victim is not None else 0


def test_the_newest_of_the_large_ones_dies() -> None:
    assert chosen() == 0
    assert chosen(candidate(1, 5)) == 0  # not worth it
    assert chosen(candidate(1, 300), candidate(2, 200), candidate(3, 20)) == 2


def test_the_least_is_lost() -> None:
    assert chosen(candidate(1, 20), candidate(9, 700, Loss.ACTOR)) == 1
    assert chosen(candidate(1, 500), candidate(9, 500, Loss.TASK)) == 1
    assert chosen(candidate(1, 20, Loss.RECOVERY), candidate(9, 700, Loss.TASK), candidate(8, 700, Loss.STATE)) == 1
    assert chosen(candidate(4, 100, Loss.STATE), candidate(9, 700, Loss.ACTOR)) == 4


@given(
    st.lists(
        st.builds(candidate, st.integers(1, 99), st.integers(0, 900), st.sampled_from(Loss)),
        unique_by=lambda c: c.lease_id,
    )
)
def test_no_other_would_have_been_better(candidates: list[Candidate]) -> None:
    victim = choose_victim(candidates, 1000 * MB)
    worth = [each for each in candidates if each.private_bytes >= WORTH_SHARE * 1000 * MB]
    assert (victim is None) == (not worth)
    for other in worth:
        assert victim is not None
        assert other.loss >= victim.loss
        if other.loss == victim.loss and other.lease_id > victim.lease_id:
            assert any(2 * other.private_bytes < each.private_bytes for each in worth if each.loss == other.loss)


def test_who_takes_more_than_asked_for() -> None:
    def taker(private: int, asked: int, before: int = 0) -> Candidate:
        return Candidate(b"", 1, Loss.TIME, private, asked, before)

    assert over_what_they_asked([taker(10**12, 0)]) == []  # it asked for nothing
    assert over_what_they_asked([taker(500 * MB + SLACK_BYTES, 500 * MB)]) == []
    assert len(over_what_they_asked([taker(501 * MB + SLACK_BYTES, 500 * MB)])) == 1
    assert over_what_they_asked([taker(501 * MB + SLACK_BYTES, 500 * MB, before=30 * MB)]) == []
    assert over_what_they_asked([taker(1 * MB, 1000, before=30 * MB)]) == []


def test_this_machine_says_what_it_uses() -> None:
    used, limit = memory_used()
    assert 0 < used < limit
    assert MB < private_bytes(os.getpid()) < limit
    assert private_bytes(1 << 30) == 0
