"""Which shard of the GCS is asked about a class of tasks."""

from __future__ import annotations

from typing import Any

from shoal.protocol.messages import RequestLeases
from shoal.protocol.strategies import SPREAD
from shoal.scheduling.replicas import Replicas

P = b"p" * 16
TOTAL = {"CPU": 20_000}


def request(units: int = 10_000, class_no: int = 0, **strategy: Any) -> RequestLeases:
    return RequestLeases(class_no, b"job1", {"CPU": units}, 1, 4, strategy)


def test_all_that_is_said_of_a_class_goes_to_one_shard() -> None:
    made = Replicas()
    assert made.choose(P, request(), 4, TOTAL, lambda process: 2) == (2, True)
    assert made.choose(P, request(), 8, TOTAL, lambda process: 1) == (2, False)
    assert made.choose(P, request(), 0, TOTAL, lambda process: 1) == (2, False)
    assert made.choose(P, request(), 0, TOTAL, lambda process: 1) == (0, False)


def test_what_needs_to_know_who_lives_is_asked_of_shard_0() -> None:
    made = Replicas()
    for wanted in (request(30_000), request(kind=SPREAD)):
        assert made.choose(P, wanted, 4, TOTAL, lambda process: 2) == (0, False)


def test_a_replica_that_is_away_is_not_asked_and_then_it_is_again() -> None:
    made = Replicas()
    made.choose(P, request(), 4, TOTAL, lambda process: 2)
    made.choose(P, request(class_no=1), 4, TOTAL, lambda process: 1)
    assert made.lost(2) and not made.lost(2)
    assert made.choose(P, request(), 4, TOTAL, lambda process: 0) == (0, False)
    assert made.choose(P, request(), 4, TOTAL, lambda process: 2) == (2, True)
    assert made.choose(P, request(class_no=1), 4, TOTAL, lambda process: 2) == (1, False)
