"""What a task's exception becomes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from shoal import serialization
from shoal.protocol.errors import TaskCancelledError, dependency_error
from shoal.runtime.results import ResultWriter


def encoded(error: BaseException, cancelled: bool) -> Any:
    runtime: Any = SimpleNamespace(reactor=None, pid=1)
    job: Any = SimpleNamespace(cancelled=cancelled, template=SimpleNamespace(wire=SimpleNamespace(name="parent")))
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
