"""What must be true of a simulated world, after every step and at its end.

`check_submitter` holds the bookkeeping of a submitter against itself; `check_results` holds every result against what its plan says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shoal import serialization
from shoal.protocol import errors
from shoal.protocol.limits import QUEUED_WORK_S
from shoal.protocol.messages import Failed
from shoal.runtime import submitter
from shoal.runtime.objects import ObjectRef
from shoal.runtime.streams import ObjectRefGenerator

if TYPE_CHECKING:
    from tests.runtime.plans import Plan
    from tests.runtime.simulation import World


def known(plan: Plan) -> bool:
    """Whether a plan's task has ended, for its submitter."""
    result = plan.result
    if result is None:
        return False
    if isinstance(result, list):
        return all(ref._entry.value is not None for ref in result)
    if isinstance(result, ObjectRefGenerator):
        return result._state.ended
    return result._entry.value is not None


def check_submitter(mine: submitter.Submitter) -> None:
    """The bookkeeping of a submitter is consistent with itself."""
    count = 0
    promised = {message.class_no for dial in mine.dialler.dials.values() for message in dial.grants}
    for klass in mine.classes.values():
        opened = list(klass.open)
        assert len({id(lease) for lease in opened}) == len(opened), "a lease stands twice among the open ones"
        assert not klass.queue or not opened, "tasks are queued while a lease has room"
        is_told = klass.backlog_told > 0 or klass.number in promised
        assert not klass.queue or is_told, "tasks are queued and the daemon was told of none"
        count += len(klass.leases)
        for lease in opened:
            assert klass.leases.get(lease.lease_id) is lease, "an open lease is none of the class"
        for lease in klass.leases.values():
            assert lease.is_open == (lease in opened)
            over = lease.connection in mine._unexplained  # it is kept until the death is told
            assert lease.ending == over and lease.klass is klass
            assert lease.connection.attachment.leases.get(lease.lease_id) is lease
            estimated_s = sum(task.estimate_s for task in lease.inflight.values())
            assert lease.load_s > estimated_s - 1e-9, f"load {lease.load_s} of a lease with {estimated_s}"
            assert not lease.is_open or not lease.inflight or lease.load_s < QUEUED_WORK_S
            if not lease.inflight and not over:
                assert lease.is_open, "a lease with nothing to do takes nothing"
                assert lease.load_s == 0.0 and not lease.out
            assert not lease.out or lease in mine._unsent, "gathered pushes are forgotten"
            assert all(item[0] in lease.inflight for item in lease.out)
            for seq, task in lease.inflight.items():
                assert task.seq == seq and task.lease is lease
    assert mine.lease_count == count
    assert mine.pending >= 0


def outcome_of(ref: ObjectRef) -> Any:
    """The value behind a known ref, or its exception."""
    value = ref._entry.value
    if type(value) is Failed:
        return serialization.loads_error(value.error)
    assert type(value) is bytes
    return serialization.loads(value)


def check_results(world: World) -> None:
    """Every result is the one that the twin expects."""
    for plan in world.plans.values():
        if plan.owner not in world.drivers:
            continue
        if plan.kind == "stream":
            _check_stream(world, plan)
            continue
        refs = plan.result if isinstance(plan.result, list) else [plan.result]
        outcomes = [outcome_of(ref) for ref in refs]
        if isinstance(outcomes[0], BaseException):
            _check_error(world, plan, outcomes[0])
        else:
            assert outcomes == [plan.number * 10 + index for index in range(len(refs))]
            assert plan.started and plan.outcome == "value"


def _check_stream(world: World, plan: Plan) -> None:
    plan.taken += list(plan.result._state.items)
    outcomes = [outcome_of(ref) for ref in plan.taken]
    failed = bool(outcomes) and isinstance(outcomes[-1], BaseException)
    values = outcomes[:-1] if failed else outcomes
    assert values == [plan.number * 100 + index for index in range(len(values))]
    if failed:
        _check_error(world, plan, outcomes[-1])
    else:
        assert len(values) == plan.items and plan.outcome == "value"


def _check_error(world: World, plan: Plan, error: BaseException) -> None:
    if any(isinstance(outcome_of(world.ref_of(dep)), BaseException) for dep in plan.deps):
        assert not plan.started, "a task ran with a failed input"
        return
    crashes = (errors.WorkerCrashedError, errors.ActorDiedError, errors.ActorUnavailableError)
    if isinstance(error, errors.TaskCancelledError):
        assert plan.cancelled, f"task {plan.number} was not cancelled"
    elif isinstance(error, crashes):
        if type(error) is errors.WorkerCrashedError:
            assert plan.cancelled or len(plan.started) == 1 + plan.max_retries, (
                f"task {plan.number} crashed with retries left"
            )
        else:
            assert plan.is_call
    else:
        assert isinstance(error, errors.TaskError), repr(error)
        assert plan.cancelled or plan.outcome == "error" or plan.children, f"{plan.number}: {error!r}"
        assert plan.started
        if plan.retry_exceptions and plan.outcome == "error" and not plan.cancelled and not plan.is_call:
            assert len(plan.started) == 1 + plan.max_retries
