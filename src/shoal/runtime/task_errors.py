"""What the user sees when a task fails for other reasons than its own code.

What it does not do: decide that it fails (`submitter`).
"""

from __future__ import annotations

from shoal.protocol import errors
from shoal.protocol.limits import INLINE_TASK_BYTES_MAX
from shoal.protocol.messages import WorkerDied
from shoal.runtime.tasks import PendingTask


def oversize_error(task: PendingTask, size: int) -> BaseException:
    """The inline values of a task's inputs have `size` bytes together: too many for a frame."""
    return ValueError(
        f"{task.template.wire.name}() was given {len(task.deps or ())} arguments that are small results of other tasks, {size >> 20} MB "
        f"together; no more than {INLINE_TASK_BYTES_MAX >> 20} MB travel with a task. Pass the refs in a list and get them inside the task, "
        "or return larger values, which stay in the store"
    )


def crash_error(task: PendingTask, death: WorkerDied) -> BaseException:
    """What the user sees when a task's worker died under it."""
    tried = task.attempt + 1
    name = task.template.wire.name
    text = (
        f"task {name}() failed because its process died while it ran: {death.cause}\n"
        f"It was tried {tried} time{'s' if tried > 1 else ''} (max_retries={task.template.max_retries})."
    )
    if death.out_of_memory:
        return errors.OutOfMemoryError(text)
    peer = task.lease.connection.attachment if task.lease is not None else None
    return errors.WorkerCrashedError(
        text,
        cause=death.cause,
        exit_code=death.exit_code,
        function_name=name,
        pid=peer.pid if peer is not None else None,
    )
