"""A node that is to leave its cluster: it takes nothing new, and goes when nobody needs it any more.

Purpose: `shoal drain`, and SIGTERM, by which machines say that they are about to go: no task fails for it, and nothing is lost that somebody still
refers to.

Design: the scheduler refuses what waits (others are asked for it) and ends leases after their current task. What lies in the store and belongs to
processes of other nodes is taken over by these (`moving`); what has its home here, and is held elsewhere, gets a copy there (`node.copies`), so that
its holders' heir need not make it anew. The GCS places the bundles of placement groups elsewhere. Then the node waits until it has no leases,
actors and drivers, and other nodes need nothing that ends with it; or until the deadline, when it leaves all the same: then tasks are retried and
actors restarted elsewhere, as after a death.

    DrainNode (shoal drain), 1st SIGTERM: drain --nobody needs it, or the deadline, or the 2nd SIGTERM--> the node ends
    SIGTERM, when there is no other node or this one is the head; SIGINT: the node ends

The GCS hears of it by the next heartbeat, if it has not asked for it. Actors with checkpoints leave after the call that runs (`actors.leave`), with
a fresh checkpoint, and go on elsewhere. Others stay until they end.

What it does not do: move objects (`moving`); decide where anything goes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from shoal.scheduling.events import NodeDrains

if TYPE_CHECKING:
    import asyncio

    from shoal.node.io.leases import Leases
    from shoal.node.io.moving import Moving
    from shoal.node.io.processes import ProcessTable

log = logging.getLogger("shoal.node")

LOOK_S = 0.05


class Draining:
    """How one node leaves.

    Args:
        move_objects: has objects whose home is here outlive it, and says what keeps it (`Objects.leave`).
        leave: asks the actors that can go on elsewhere to do so, with the reason.
        changed: tells the GCS how things stand.
        end: called once, with the reason.
        grace_s: what SIGTERM leaves it; 0 for a node that cannot be missed.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        leases: Leases,
        table: ProcessTable,
        moving: Moving,
        move_objects: Callable[[], dict[str, int]],
        leave: Callable[[str], None],
        changed: Callable[[], None],
        end: Callable[[str], None],
        grace_s: float,
    ) -> None:
        self._loop = loop
        self._leases = leases
        self._table = table
        self._moving = moving
        self._move_objects = move_objects
        self._leave = leave
        self._changed = changed
        self._end = end
        self._grace_s = grace_s
        self._notified = False
        self._until = 0.0
        self.reason = ""  #: why it leaves; "" while it does not

    def on_signal(self, others: int) -> bool:
        """SIGTERM. Whether the node drains: only the first time, and not when there is no other node that could take anything."""
        if self._notified or not self._grace_s or not others:
            return False
        self._notified = True
        self.begin("it was told to end (SIGTERM)", self._grace_s)
        return True

    def begin(self, reason: str, deadline_s: float) -> None:
        """Leave, within `deadline_s`. When it was asked before, the earlier deadline counts."""
        until = self._loop.time() + deadline_s
        if self.reason:
            self._until = min(self._until, until)
            return
        self.reason, self._until = reason, until
        log.info("the node drains, for %g s at most: %s", deadline_s, reason)
        self._changed()  # first: what the node gives back now must not be sent here again
        self._leases.handle(NodeDrains(reason))
        self._leave(reason)
        self._loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        self._moving.empty()
        left = self._left()
        if not left:
            self._end(f"it was drained: {self.reason}")
        elif self._loop.time() >= self._until:
            self._end(f"it was drained, but not empty at the deadline ({left}): {self.reason}")
        else:
            self._loop.call_later(LOOK_S, self._look)

    def _left(self) -> str:
        """What the node still has to do; "" when nothing."""
        statistics = self._leases.machine.statistics()
        counts = {
            "tasks that run": statistics.leases,
            "actors": statistics.actors,
            "programs": len(self._table.drivers()),
            **self._move_objects(),
        }
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)
