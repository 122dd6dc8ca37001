"""When a node gives up its head: never while the head's daemon lives, and in bounded time when it does not."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shoal.node.head_patience import (
    PROBE_PAUSE_S,
    GcsAnswers,
    GcsAway,
    GiveUp,
    HeadPatience,
    HeadProbed,
    ProbeHead,
    TimePassed,
    WakeAt,
)


def test_a_head_that_does_not_answer_is_given_up_once() -> None:
    head = HeadPatience(12.0)
    assert head.handle(GcsAway(100.0), 102.0) == [ProbeHead()]
    assert head.handle(GcsAway(101.0), 103.0) == [], "known"
    assert not head.is_lost, "not known yet"
    assert head.handle(HeadProbed(False), 104.0) == [WakeAt(104.0 + PROBE_PAUSE_S)]
    assert head.is_lost
    assert head.handle(TimePassed(), 109.0) == [ProbeHead()]
    assert head.handle(HeadProbed(False), 110.0) == [WakeAt(112.0)], "its time is over before the next look"
    assert head.handle(TimePassed(), 112.0) == [ProbeHead()], "one that has just come back is asked once more"
    assert head.handle(HeadProbed(False), 112.5) == [GiveUp(100.0)]
    assert head.handle(TimePassed(), 200.0) == []


def test_a_gcs_that_is_away_while_its_head_lives_kills_nobody() -> None:
    head = HeadPatience(12.0)
    now = 100.0
    effects: list[Any] = head.handle(GcsAway(now), now)
    for _ in range(1000):
        assert effects == [ProbeHead()]
        (wake,) = head.handle(HeadProbed(True), now)
        assert type(wake) is WakeAt and not head.is_lost
        now = wake.at
        effects = head.handle(TimePassed(), now)
    head.handle(HeadProbed(False), now)
    assert head.is_lost and head.heard_at < now, "its time began when it was heard last"


def test_an_answer_of_the_gcs_ends_the_questions() -> None:
    head = HeadPatience(12.0)
    head.handle(GcsAway(100.0), 100.0)
    head.handle(GcsAnswers(), 101.0)
    assert head.handle(HeadProbed(False), 200.0) == []
    assert head.handle(TimePassed(), 200.0) == []
    assert head.handle(GcsAway(300.0), 300.0) == [ProbeHead()]
    assert head.handle(HeadProbed(False), 301.0) == [WakeAt(301.0 + PROBE_PAUSE_S)], "its time begins anew"


def test_one_question_at_a_time() -> None:
    head = HeadPatience(12.0)
    head.handle(GcsAway(100.0), 100.0)
    head.handle(GcsAnswers(), 101.0)
    assert head.handle(GcsAway(102.0), 102.0) == [], "the former one is still under way, and its answer is as good"
    assert head.handle(HeadProbed(True), 103.0) == [WakeAt(103.0 + PROBE_PAUSE_S)]


@given(
    patience_s=st.sampled_from([0.5, 7.0, 60.0, math.inf]),
    steps=st.lists(st.tuples(st.floats(0.01, 9.0), st.booleans(), st.integers(0, 9)), max_size=60),
)
def test_it_is_given_up_after_its_time_of_silence_and_not_before(
    patience_s: float, steps: list[tuple[float, bool, int]]
) -> None:
    """Against a twin that knows when anything was heard last."""
    head = HeadPatience(patience_s)
    now = heard = 1000.0
    pending: list[Any] = head.handle(GcsAway(now), now)
    for probe_s, lives, gcs in steps:
        if gcs == 0:
            head.handle(GcsAnswers(), now)
            pending = [each for each in pending if type(each) is not WakeAt]  # the shell forgets it
            pending += head.handle(GcsAway(now), now)
            heard = now
        assert len(pending) == 1, "it asks, or will"
        (effect,) = pending
        if type(effect) is WakeAt:
            assert now <= effect.at <= now + PROBE_PAUSE_S
            now = effect.at
            pending = head.handle(TimePassed(), now)
            continue
        assert type(effect) is ProbeHead
        now += probe_s
        heard = now if lives else heard
        pending = head.handle(HeadProbed(lives), now)
        if now - heard >= patience_s:
            assert pending == [GiveUp(heard)]
            return
        assert type(pending[0]) is WakeAt
