"""What a node offers to others: single rules, the rule against a simulation of the queue, and the restraint of who asks in vain."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.protocol.limits import LONG_TASK_S, QUEUED_WORK_S, SHORT_TASK_S, STUCK_AFTER_S
from shoal.runtime.outlook import is_news, lasting_s, may_grow
from shoal.scheduling.events import LeasesRequested, Tick, WorkerReady
from shoal.scheduling.local_scheduler import LocalScheduler
from shoal.scheduling.offers import (
    LEASE_ABROAD_S,
    NEW_MAX,
    OVERDUE_S,
    PAUSE_MAX_S,
    PAUSE_MIN_S,
    SIDE_BY_SIDE_MAX,
    STARVING_S,
    Offers,
    Waiting,
    WaitingTasks,
    over,
    side_by_side,
    starving,
)

P = b"p" * 16


def tasks(
    number: int, backlog: int, task_s: float, *, running: int = 1, waited_s: float = 0.0, side: int = 2
) -> WaitingTasks:
    return WaitingTasks((P, number), backlog, task_s, side, running, waited_s)


def these(waiting: list[WaitingTasks]) -> Waiting:
    return lambda now, waited_s: [each for each in waiting if each.waited_s >= waited_s]


def test_what_a_node_can_run_side_by_side() -> None:
    assert side_by_side({"CPU": 10_000}, {"CPU": 40_000}) == 4
    assert side_by_side({"CPU": 10_000, "GPU": 5_000}, {"CPU": 40_000, "GPU": 10_000}) == 2
    assert side_by_side({"CPU": 10_000}, {}) == 1  # it waits for what it never gets: others decide
    assert side_by_side({}, {"CPU": 40_000}) == SIDE_BY_SIDE_MAX


def test_short_work_stays_and_long_work_goes() -> None:
    assert over([tasks(0, 9, 0.001)]) == []  # 4.5 ms on two CPUs
    assert over([tasks(0, 1000, 0.001)]) == [((P, 0), 98)]  # 980 ms of work more than the first 10 ms of both CPUs
    assert over([tasks(0, 1, 1.0)]) == [((P, 0), 1)]
    assert over([tasks(0, 1, 1.0, side=SIDE_BY_SIDE_MAX)]) == []  # it waits for a process, not for room


def test_tiny_tasks_stay_however_many() -> None:
    assert over([tasks(0, 1_000_000, 10e-6)]) == []
    assert starving([tasks(0, 1_000_000, 10e-6, waited_s=10.0)]) == []
    # ... but what stands behind them waits for them
    assert over([tasks(0, 1_000, 50e-6), tasks(1, 3, 0.002)]) == [((P, 1), 1)]


def test_many_small_backlogs_are_one_large_one() -> None:
    each = [tasks(number, 9, 0.001) for number in range(8)]
    offered = over(each)
    assert [key for key, _ in offered] == [(P, number) for number in range(2, 8)]  # who is served first stays whole
    assert [count for _, count in offered] == [1] * 6  # 9 ms each; a lease is worth 10


def test_who_starves_is_offered_whatever_is_known() -> None:
    assert starving([tasks(0, 7, 0.0, waited_s=OVERDUE_S)]) == [((P, 0), 7)]
    assert starving([tasks(0, 7, 0.0, waited_s=OVERDUE_S / 2)]) == []
    assert starving([tasks(0, 7, 10e-6, running=0, waited_s=STARVING_S)]) == [((P, 0), 7)]
    assert starving([tasks(0, 7, 10e-6, running=0, waited_s=STARVING_S / 2)]) == []


classes = st.lists(
    st.tuples(st.integers(1, 400), st.sampled_from([0.0, 10e-6, 1e-3, 5e-3, 0.3]), st.integers(1, 8)), max_size=6
)


@given(classes)
def test_the_rule_against_a_queue_of_single_tasks(drawn: list[tuple[int, float, int]]) -> None:
    waiting = [tasks(number, backlog, task_s, side=side) for number, (backlog, task_s, side) in enumerate(drawn)]
    offered = dict(over(waiting))
    clock_s = 0.0
    for each in waiting:
        late = 0
        for _ in range(each.backlog):  # one after the other, at the speed of the whole node
            clock_s += each.task_s / each.side_by_side
            late += clock_s > LEASE_ABROAD_S * (1 + 1e-9)
        count = offered.get(each.key, 0)
        assert count <= each.backlog
        if each.task_s < SHORT_TASK_S or not late:
            assert count in (0, 1 if each.task_s >= SHORT_TASK_S and clock_s > LEASE_ABROAD_S * (1 - 1e-6) else 0)
        else:
            assert 1 <= count <= late + 1
            # no lease for less work than it costs, but for the last
            assert (count - 1) * max(each.task_s, LEASE_ABROAD_S) <= late * each.task_s * (1 + 1e-6)


def test_questions_in_vain_become_rare_and_a_placement_ends_that() -> None:
    offers, now, asked, times = Offers(), 100.0, 0, []
    for _ in range(200):  # backlogs that are served at home before anybody else has room
        found = offers.look(these([tasks(asked, 50, 0.001)]), now)
        if found:
            assert found == [((P, asked), 3)]
            times.append(now)
            asked += 1  # gone at the next look, and another one waits
        now += 0.02
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert pauses[0] >= PAUSE_MIN_S
    assert sorted(pauses) == pytest.approx(pauses)
    assert PAUSE_MAX_S <= pauses[-1] <= 2 * PAUSE_MAX_S
    offers.placed((P, asked))
    assert offers.look(these([tasks(asked, 50, 0.001)]), now) == [((P, asked), 3)]


def test_in_a_pause_the_starving_are_offered() -> None:
    offers = Offers()
    offers.look(these([tasks(0, 50, 0.001)]), 1.0)
    waiting = [tasks(1, 50, 0.001), tasks(2, 3, 0.0, waited_s=OVERDUE_S)]
    assert offers.look(these(waiting), 1.02) == [((P, 2), 3)]
    assert dict(offers.look(these(waiting), 1.02 + PAUSE_MIN_S)) == {(P, 1): 3, (P, 2): 3}


def test_a_look_offers_the_largest_and_keeps_what_it_has_offered() -> None:
    offers = Offers()
    waiting = [tasks(number, 100 + number, 0.005) for number in range(NEW_MAX + 3)]
    first = offers.look(these(waiting), 1.0)
    assert sorted(key[1] for key, _ in first) == list(range(3, NEW_MAX + 3))
    assert (
        len(offers.look(these(waiting), 1.02)) == NEW_MAX + 3
    )  # those of before, with what they want now, and new ones


def test_the_local_scheduler_says_who_waits_and_for_how_long() -> None:
    machine = LocalScheduler({"CPU": 20_000})
    machine.handle(Tick(), 0.0)
    for number in range(2):
        machine.handle(WorkerReady(b"w%d" % number, ""), 0.0)
    asked = [(0, 1, 5, 0.001), (1, 2, 7, 0.0)]
    for class_no, depth, backlog, task_s in asked:
        machine.handle(
            LeasesRequested(P, class_no, b"job1", {"CPU": 10_000}, depth, backlog, task_s=task_s), 1.0 + class_no
        )
    first, second = machine.waiting_tasks(3.0)
    assert first == WaitingTasks((P, 1), 7, 0.0, 2, 0, 1.0)  # deeper: served first
    assert second == WaitingTasks((P, 0), 3, 0.001, 2, 2, 2.0)
    assert machine.waiting_tasks(3.0, 1.5) == [second]
    machine.handle(LeasesRequested(P, 0, b"job1", {"CPU": 10_000}, 1, 2, task_s=0.25), 3.0)
    assert machine.waiting_tasks(3.0)[1].task_s == 0.25


@pytest.mark.parametrize(
    ("waiting", "task_s", "backlog_told", "task_s_told", "told"),
    [
        (1000, QUEUED_WORK_S, 1024, 0.0, False),  # nothing is known
        (1000, 10e-6, 1024, 0.0, True),  # once
        (10, 10e-6, 1024, 11e-6, False),
        (1000, 10e-6, 1024, 0.3, True),
        (1000, 2e-3, 1024, 10e-6, True),
        (1000, 2e-3, 1024, 1.5e-3, False),
        (512, 2e-3, 1024, 1.5e-3, True),
        (1000, 2e-3, 1024, 5e-3, True),
        (0, 2e-3, 8, 1.5e-3, False),  # at a tick
    ],
)
def test_what_is_told_anew(waiting: int, task_s: float, backlog_told: int, task_s_told: float, told: bool) -> None:
    assert is_news(waiting, task_s, backlog_told, task_s_told) is told


@given(st.floats(SHORT_TASK_S, 10.0), st.integers(1, 10_000))
def test_what_was_told_is_no_news(task_s: float, waiting: int) -> None:
    assert not is_news(waiting, task_s, waiting, task_s)
    assert may_grow(task_s) == (task_s < LONG_TASK_S)


def test_how_long_a_task_is_taken_to_last() -> None:
    assert lasting_s(QUEUED_WORK_S, 0.004) == 0.004  # nothing else is known
    assert lasting_s(10e-6, 0.004) == 10e-6  # replies come in batches
    assert lasting_s(10e-6, STUCK_AFTER_S) == STUCK_AFTER_S
    assert lasting_s(0.5, 0.2) == 0.5
