"""Two lives of one actor never both answer: a node that the GCS may have given up lets its restartable actors say nothing.

Purpose: a node that is cut off or frozen goes on running; meanwhile the GCS declares it dead and starts its actors elsewhere. From before that
moment on the old ones must be silent.

Design: in the page of each such actor's process stands until when it may answer: ANSWERS_WITHHELD_AFTER_S after its daemon *sent* the last
heartbeat that the GCS acknowledged. The GCS gives a node up no earlier than HEARTBEATS_MISSED_S after it heard that heartbeat, so there are two
seconds for clocks that run unequally. The process itself compares, so it is silent also when its daemon stands still. When the GCS is heard again,
`MayAnswer` lets go what was kept (the node was the incumbent all the time); a node that was given up is refused and ends, with all that it kept.

    heartbeat sent (t) --> acknowledged: answers_until = t + 3 s ... nothing acknowledged ... t + 3 s: silence ... t + 5 s: the GCS restarts them

What it does not do: hold tasks, and actors that are never restarted (nobody else answers for them).
"""

from __future__ import annotations

from time import monotonic_ns

from shoal.node.io.processes import Worker
from shoal.node.leash_rule import LeashRule
from shoal.protocol.messages import MayAnswer


class Leash:
    """The restartable actors of a cluster's node."""

    def __init__(self) -> None:
        self._rule = LeashRule()
        self._workers: dict[bytes, Worker] = {}

    def hold(self, worker: Worker) -> None:
        """A worker is about to become an actor that could be restarted elsewhere."""
        self._workers[worker.worker_id] = worker
        if worker.page is not None:
            worker.page.set_answers_until(self._rule.until_ns)

    def registered(self, sent_ns: int) -> None:
        """The GCS has accepted this node (again), which asked at `sent_ns`: it had not given it up."""
        self._rule.registered(sent_ns)
        self._tell()

    def sent(self, count: int) -> None:
        """Heartbeat number `count` is about to be sent."""
        self._rule.sent(count, monotonic_ns())

    def acknowledged(self, count: int) -> None:
        """The GCS has heard heartbeat number `count`."""
        self._rule.acknowledged(count)
        self._tell()

    def _tell(self) -> None:
        until_ns = self._rule.until_ns
        for worker_id, worker in list(self._workers.items()):
            if worker.dead or worker.page is None:
                del self._workers[worker_id]
            elif worker.page.set_answers_until(until_ns):
                worker.send(MayAnswer())
