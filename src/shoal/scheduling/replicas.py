"""Which of the GCS's shards is asked where a class of tasks may run: each has a replica of the global scheduler.

Purpose: questions of busy nodes are divided over the shards (paper 4.2.2: "replicas of the global scheduler").

Design: a pure table. All that is said of a class goes to one shard: a replica only for what the node could serve itself, so that it never has to
say that nobody could: shard 0 knows who lives. When a replica is away, what was asked of it is asked of shard 0, or of the replica again when that
is back; shard 0 hears that it is not asked any more.

What it does not do: say which shard a process belongs to (`protocol.sharding`), or send (`node.io.foreign_leases`).
"""

from __future__ import annotations

from collections.abc import Callable

from shoal.protocol.messages import RequestLeases
from shoal.protocol.resources import Resources, fits
from shoal.protocol.strategies import GLOBAL_KINDS, KIND


class Replicas:
    """Who is asked about the classes of one node's processes."""

    __slots__ = ("_asked",)

    def __init__(self) -> None:
        #: classes that a replica was asked about -> its shard
        self._asked: dict[tuple[bytes, int], int] = {}

    def choose(
        self,
        process: bytes,
        request: RequestLeases,
        backlog: int,
        total: Resources,
        replica_of: Callable[[bytes], int],
    ) -> tuple[int, bool]:
        """Who is asked for `backlog` leases in all (0 takes it back) on a node of so much in `total`.

        Returns:
            The shard, and whether shard 0 must hear that it is not asked any more.
        """
        key = (process, request.class_no)
        if backlog <= 0:
            return self._asked.pop(key, 0), False
        number = self._asked.get(key, 0)
        if number or request.strategy.get(KIND) in GLOBAL_KINDS or not fits(request.demand, total):
            return number, False
        number = replica_of(process)
        if number:
            self._asked[key] = number
        return number, number != 0

    def lost(self, number: int) -> bool:
        """A replica is away, and has forgotten what it was asked. Returns whether it was anything."""
        lost = [key for key, asked_of in self._asked.items() if asked_of == number]
        for key in lost:
            del self._asked[key]
        return bool(lost)
