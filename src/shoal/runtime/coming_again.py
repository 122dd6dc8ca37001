"""Refs in a call's arguments that were lost with their caller's node, and come again with it.

Purpose: an exact actor calls another, `leaf.add.remote([ref])`, and its node dies. What only that node had (a `put`, say) is lost for the call that
runs or waits at the leaf; but the caller's next life makes it anew, and asks for the same call again. An error recorded as that call's answer would
be answered then, and the call's effect would be lost without a word.

Design: a call to an exact actor says which exact actor it comes from, and from which node (`REPLAYS`). A `get`, within the call, of a ref out of its
arguments that is lost waits if that node is dead, until

    the same call arrives once more      its arguments name the new homes of the refs: they are asked for there (`ObjectTable.borrow`)
    a later one of this caller does, over a new connection; or the caller is dead for good: the loss is what it is, and the method is told

What it does not do: wait in a replay, whose callers need not ask again (it ends, see `exact_actor`), or for callers without checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import perf_counter
from typing import TYPE_CHECKING

from shoal.protocol import errors
from shoal.protocol.ids import TASK_PREFIX_BYTES
from shoal.protocol.messages import REPLAYS, Failed
from shoal.runtime.reactor import Waiter
from shoal.runtime.replay import number_of
from shoal.runtime.results import ArgumentLost

if TYPE_CHECKING:
    from shoal.runtime.core import Runtime
    from shoal.runtime.jobs import Job
    from shoal.runtime.objects import ObjectEntry

LOOK_S = 0.5  #: so often it is looked whether the caller is dead for good


class ComingAgain:
    """Of the call that runs. `came` is told of arrivals under the reactor's lock; the rest is the main thread's.

    Args:
        read: deserializes a call's arguments, so that the refs inside become known with their homes.
    """

    def __init__(self, runtime: Runtime, read: Callable[[Job], None]) -> None:
        self._runtime = runtime
        self._read = read
        self._job: Job | None = None  #: the call that runs, if its caller is one who asks again
        self._oids: set[bytes] = set()  #: the refs in its arguments
        self._last: Job | None = None  #: its last arrival
        self._again: Job | None = None  #: the same, if it was not read
        self._passed = False  #: the caller goes on without asking again
        self._waiter: Waiter | None = None

    def begins(self, job: Job, oids: Iterable[bytes], read: Job, last: Job) -> None:
        """A call begins, as it was in the arrival that was `read`; its `last` one may be later. Caller holds the lock."""
        if REPLAYS in job.template.wire.options:
            self._oids = set(oids)
            self._job, self._last = job, last
            self._again, self._passed = None if last is read else last, False

    def ends(self) -> None:
        """It has ended."""
        self._job = self._last = self._again = None

    def came(self, job: Job) -> None:
        """A call arrived. Caller holds the lock."""
        running = self._job
        if running is None or self._last is None:
            return
        if job.task_id == running.task_id:
            self._again = self._last = job
            self._passed = False
        elif (
            job.task_id[:TASK_PREFIX_BYTES] == running.task_id[:TASK_PREFIX_BYTES]
            and number_of(job.task_id) > number_of(running.task_id)
            and job.connection is not self._last.connection
        ):
            self._passed = True
        if self._waiter is not None and (self._again is not None or self._passed):
            self._waiter.arrived()

    def brings_back(self, entry: ObjectEntry, until: float | None) -> bool:
        """Whether a lost ref has come again, so that it is to be looked at once more; waits for that, if it may be.

        Raises:
            GetTimeoutError: not until then.
        """
        if self._job is None or entry.oid not in self._oids:
            return False
        is_left_alone: bool | None = None
        while self._runtime.lost is None:
            with self._runtime.reactor.lock:
                again, self._again = self._again, None
                if again is None:
                    if self._passed or self._is_dead_for_good():
                        return False
                    waiter = self._waiter = Waiter()
            if again is not None:
                try:
                    self._read(again)
                except (errors.ShoalError, ArgumentLost):
                    return False
                if type(entry.value) is not Failed:
                    return True
                is_left_alone = None
                continue
            if is_left_alone is None:
                is_left_alone = self._is_left_alone()
            if is_left_alone is False:
                return False
            left_s = LOOK_S if until is None else min(LOOK_S, until - perf_counter())
            if left_s <= 0:
                raise errors.GetTimeoutError(
                    f"object {entry.oid.hex()}, an argument's, was lost with its caller's node, and the caller has not sent it again in time"
                )
            try:
                self._runtime.wait_for(waiter, left_s)
            finally:
                self._waiter = None
        return False

    def _is_left_alone(self) -> bool | None:
        """Whether the node is dead that the call came from last; None while nobody can say."""
        assert self._last is not None, "of a call that runs"
        node_id = self._last.template.wire.options[REPLAYS][1]
        try:
            rows = self._runtime.call("gcs.nodes")["nodes"]
        except errors.RpcError:
            return None
        return not any(row["node_id"] == node_id and row["alive"] for row in rows)

    def _is_dead_for_good(self) -> bool:
        """Caller holds the lock."""
        assert self._job is not None, "of a call that runs"
        caller = self._job.template.wire.options[REPLAYS][0]
        return self._runtime.actor_calls.queue_of(caller, "", True, exact=True).death is not None
