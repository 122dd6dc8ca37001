"""What a task's exception becomes, and what was stored before it."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from shoal import serialization
from shoal.protocol.errors import TaskCancelledError, dependency_error
from shoal.protocol.messages import FreeObjects, Stored
from shoal.runtime.results import ResultWriter


def encoded(error: BaseException, cancelled: bool) -> Any:
    runtime: Any = SimpleNamespace(reactor=None, pid=1)
    job: Any = SimpleNamespace(
        cancelled=cancelled, untold=None, template=SimpleNamespace(wire=SimpleNamespace(name="parent"))
    )
    return serialization.loads_error(ResultWriter(runtime, lambda: None).encode_error(job, error).error)


@pytest.mark.parametrize("through_a_task", [False, True])
@pytest.mark.parametrize("cancelled", [False, True])
def test_a_cancelled_parent_does_not_show_its_childrens_cancellation(cancelled: bool, through_a_task: bool) -> None:
    """It may hear of that, by `get`, before it is interrupted itself. One that was not cancelled says which child was."""
    of_child: Any = TaskCancelledError("child() was cancelled before it ran")
    error = encoded(dependency_error(of_child, "next") if through_a_task else of_child, cancelled)
    assert isinstance(error, TaskCancelledError)
    assert ("parent() was cancelled while it ran" in str(error)) == cancelled
    assert str(error.cause) == ("parent() was cancelled while it ran" if cancelled else str(of_child))


class Storing:
    """A worker that stores every result for one task."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        reactor = SimpleNamespace(lock=threading.RLock(), causal=SimpleNamespace(send=self.sent.append))
        runtime: Any = SimpleNamespace(reactor=reactor, pid=1, worker_id=b"worker", store_blob=self.store)
        self.writer = ResultWriter(runtime, lambda: None)
        template = SimpleNamespace(wire=SimpleNamespace(name="parent"), wanted=None, num_returns=1)
        connection = SimpleNamespace(attachment=SimpleNamespace(worker_id=b"submitter"), closed=False)
        self.job: Any = SimpleNamespace(
            cancelled=True, untold=None, template=template, connection=connection, task_id=b"t" * 16
        )

    @staticmethod
    def store(oid: bytes, _blob: Any, _owner: bytes, _nested: Any) -> Stored:
        return Stored(oid, 1, 0, 1000, 1, [], b"here")

    def stores(self) -> bytes:
        value = self.writer.encode_value(self.job, b"x" * 200_000, 1)
        assert type(value) is Stored
        return value.oid


def test_what_was_stored_when_a_cancel_struck_is_free() -> None:
    worker = Storing()
    stored = worker.stores()
    worker.writer.encode_error(worker.job, KeyboardInterrupt())
    assert worker.sent == [FreeObjects([stored], giver=b"worker")]


@pytest.mark.parametrize("closed", [False, True])
def test_an_item_that_was_sent_is_its_consumers(closed: bool) -> None:
    worker = Storing()
    worker.job.connection.closed = closed
    stored = worker.stores()
    worker.writer.tells(worker.job)
    worker.writer.encode_error(worker.job, KeyboardInterrupt())
    assert worker.sent == ([FreeObjects([stored], giver=b"worker")] if closed else [])
