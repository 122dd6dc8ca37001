"""What the user sees when a task fails for other reasons than its own code.

What it does not do: decide that it fails (`submitter`).
"""

from __future__ import annotations

from shoal.protocol import errors, ids
from shoal.protocol.limits import INLINE_TASK_BYTES_MAX
from shoal.protocol.messages import WorkerDied
from shoal.runtime.abroad import is_abroad
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
    tried, limit = task.attempt + 1, task.template.max_retries
    name = task.template.wire.name
    peer = task.lease.connection.attachment if task.lease is not None else None
    where = (
        f" (at {peer.address.removeprefix('tcp:').partition('/')[0]})"
        if peer is not None and is_abroad(peer.address)
        else ""
    )
    advice = (
        "a higher one has it tried again" if limit else "it may run only once; max_retries=1 or more has it tried again"
    )
    text = (
        f"task {name}() failed because its process died while it ran: {death.cause}{where}\n"
        f"It was tried {tried} time{'s' if tried > 1 else ''} (max_retries={limit}: {advice}), and did not make "
        f"object {ids.result_id(task.task_id, 1).hex()}."
    )
    if death.out_of_memory:
        return errors.OutOfMemoryError(text)
    return errors.WorkerCrashedError(
        text,
        cause=death.cause,
        exit_code=death.exit_code,
        function_name=name,
        pid=peer.pid if peer is not None else None,
    )
