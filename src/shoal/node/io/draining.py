"""A node that is to leave its cluster: it takes nothing new, and goes when nobody needs it any more.

Purpose: `shoal drain`, and whoever takes a machine out of service: no task fails for it, and nothing is lost that somebody still refers to.

Design: the scheduler refuses what waits (others are asked for it) and ends leases after their current task. What lies in the store and belongs to
processes of other nodes is taken over by these (`moving`). Then the node waits until it has no leases, actors and drivers, and other nodes refer to
nothing that lies here; or until the deadline, when it leaves all the same: then tasks are retried and actors restarted elsewhere, as after a death.

Actors with checkpoints leave at once (`actors.leave`): their log is in the GCS, and their next life goes on elsewhere. Others stay until they end.

What it does not do: move objects (`moving`); decide where anything goes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger("shoal.node")

LOOK_S = 0.05


class Draining:
    """The wait of one node for its end.

    Args:
        left: what keeps the node, in words; "" when nothing does.
        end: called once, with the reason.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        reason: str,
        deadline_s: float,
        left: Callable[[], str],
        end: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._reason = reason
        self._until = loop.time() + deadline_s
        self._left = left
        self._end = end
        log.info("the node drains, for %g s at most: %s", deadline_s, reason)
        loop.call_later(LOOK_S, self._look)

    def hurry(self, deadline_s: float) -> None:
        """It was asked again: the earlier deadline counts."""
        self._until = min(self._until, self._loop.time() + deadline_s)

    def _look(self) -> None:
        left = self._left()
        if not left:
            self._end(f"it was drained: {self._reason}")
        elif self._loop.time() >= self._until:
            self._end(f"it was drained, but not empty at the deadline ({left}): {self._reason}")
        else:
            self._loop.call_later(LOOK_S, self._look)
