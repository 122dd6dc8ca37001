"""What a submitter tells its daemon of its backlog: rarely, and never late for long."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from shoal.protocol.messages import RequestLeases
from shoal.runtime.lease_requests import LeaseRequests
from shoal.runtime.outlook import FEW_WAITING
from shoal.runtime.tasks import SchedulingClass

TASK: Any = SimpleNamespace(template=SimpleNamespace(estimate_s=0.001, wire=SimpleNamespace(name="f")))


class Submitter:
    """The part of a submitter that puts tasks into a queue and takes them out."""

    def __init__(self) -> None:
        self.told: list[int] = []
        self.attended = False
        reactor = SimpleNamespace(causal=SimpleNamespace(send_now=self._hear), attend=self._attend)
        self.requests = LeaseRequests(cast(Any, SimpleNamespace(reactor=reactor, job_id=b"job1")))
        self.klass = SchedulingClass(0, {"CPU": 10_000}, 0, {}, {}, "f")

    def _hear(self, message: RequestLeases) -> None:
        self.told.append(message.backlog)

    def _attend(self) -> None:
        self.attended = True

    def enqueue(self) -> None:
        self.klass.queue.append(TASK)
        if len(self.klass.queue) >= 2 * self.klass.backlog_told:
            self.requests.tell(self.klass, len(self.klass.queue))

    def refill(self, count: int) -> None:
        waited = len(self.klass.queue)
        for _ in range(min(count, waited)):
            self.klass.queue.popleft()
        self.requests.refilled(self.klass, waited)

    def tick(self) -> None:
        self.attended = False
        if self.requests.is_late():
            self.requests.tick()


def test_a_queue_that_goes_up_and_down_is_told_of_once() -> None:
    submitter = Submitter()
    for _ in range(20):
        for _ in range(3):
            for _ in range(4):
                submitter.enqueue()
            for _ in range(4):
                submitter.refill(1)
        submitter.tick()
    assert submitter.told == [1, 2, 4]
    submitter.tick()
    submitter.tick()
    assert submitter.told == [1, 2, 4, 0]
    assert not submitter.requests.is_late() and not submitter.attended


def test_a_long_queue_that_ends_is_told_of_at_once() -> None:
    submitter = Submitter()
    for _ in range(2 * FEW_WAITING):
        submitter.enqueue()
    submitter.refill(2 * FEW_WAITING)
    assert submitter.told[-2:] == [2 * FEW_WAITING, 0]


def test_an_idle_worker_tells_at_once() -> None:
    submitter = Submitter()
    submitter.enqueue()
    submitter.refill(1)
    assert submitter.told == [1]
    submitter.requests.tell_none()
    assert submitter.told == [1, 0]


@given(st.lists(st.one_of(st.just("enqueue"), st.just("tick"), st.integers(1, 40)), max_size=120))
def test_the_daemon_knows_before_long(steps: list[Any]) -> None:
    """That tasks wait at once, and not more than twice as many as they were since the tick before the last."""
    submitter = Submitter()
    klass = submitter.klass
    for step in [*steps, "tick", "tick"]:
        if step == "enqueue":
            submitter.enqueue()
        elif step == "tick":
            submitter.tick()
        else:
            submitter.refill(step)
        assert klass.backlog_told == (submitter.told[-1] if submitter.told else 0)
        assert klass.backlog_told or not klass.queue
        late = klass.backlog_told and 2 * len(klass.queue) <= klass.backlog_told
        assert not late or (submitter.requests.is_late() and submitter.attended)
    assert klass.backlog_told <= 2 * len(klass.queue)
