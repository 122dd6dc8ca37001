"""The first calls of several threads must agree on one scheduling class, under a number of its own."""

from __future__ import annotations

import sys
import threading

from shoal.runtime.core import Runtime


def test_threads_that_make_the_same_classes_share_them() -> None:
    runtime = Runtime("driver", b"d" * 16)
    submitter = runtime.submitter
    made: list[list[object]] = [[] for _ in range(4)]
    start = threading.Barrier(4)

    def make(mine: list[object]) -> None:
        start.wait(60)
        for units in range(400):
            mine.append(submitter.class_of({"CPU": units}, 1, {}, {}, "f"))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=make, args=(mine,)) for mine in made]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)
        runtime.reactor.stop()
    assert list(submitter.classes) == list(range(400))
    assert all(mine == list(submitter.classes.values()) for mine in made)


def test_classes_that_nobody_uses_are_forgotten() -> None:
    """A program may ask for ever new amounts: what is kept and looked at by each tick must not grow with them."""
    runtime = Runtime("driver", b"d" * 16)
    submitter = runtime.submitter
    kept = submitter.class_of({"CPU": 1}, 1, {}, {}, "f")
    for units in range(2, 1000):
        submitter.class_of({"CPU": units}, 1, {}, {}, "f")
    runtime.reactor.stop()
    assert list(submitter.classes.values()) == [kept]
    assert submitter.class_of({"CPU": 1}, 1, {}, {}, "f") is kept
    assert submitter.class_of({"CPU": 2}, 1, {}, {}, "f").number == 999
