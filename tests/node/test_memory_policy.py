"""Whom to kill for memory."""

from __future__ import annotations

from shoal.node.io.memory_watch import memory_used, private_bytes
from shoal.node.memory_policy import Candidate, choose_victim

MB = 1 << 20


def candidate(lease_id: int, megabytes: int, is_actor: bool = False) -> Candidate:
    return Candidate(bytes([lease_id]), lease_id, is_actor, megabytes * MB)


def chosen(*candidates: Candidate) -> int:
    victim = choose_victim(candidates, 1000 * MB)
    return victim.lease_id if victim is not None else 0


def test_the_newest_of_the_large_tasks_dies_and_actors_last() -> None:
    assert chosen() == 0
    assert chosen(candidate(1, 5)) == 0  # not worth it
    assert chosen(candidate(1, 300), candidate(2, 200), candidate(3, 20)) == 2
    assert chosen(candidate(1, 20), candidate(9, 700, is_actor=True)) == 1
    assert chosen(candidate(4, 100, is_actor=True), candidate(9, 700, is_actor=True)) == 9


def test_this_machine_says_what_it_uses() -> None:
    import os

    used, limit = memory_used()
    assert 0 < used < limit
    assert MB < private_bytes(os.getpid()) < limit
    assert private_bytes(1 << 30) == 0
