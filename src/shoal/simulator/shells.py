"""Shells of `shoal.node.io` that run in virtual time as they are: placement groups, and a node that leaves.

Purpose: what these decide between messages is played, not retold.

Design: they ask little of what surrounds them, and get it here: a loop that is the world's clock and stops with its node, leases that are the
node's machine, a table that knows the node's processes. An object of this module stands in a constructor's place of the production one (`Any`).

How to extend: a shell that needs no sockets gets what it asks for in `Surroundings`.

What it does not do: objects, so a node that drains has none to move.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shoal.node.io.draining import Draining
from shoal.node.io.groups import Groups
from shoal.protocol.messages import RequestLeases
from shoal.scheduling import events
from shoal.scheduling.local_scheduler import LocalScheduler

if TYPE_CHECKING:
    from shoal.simulator.node import Node

DRAIN_GRACE_S = 30.0  #: what SIGTERM leaves a node


class Clock:
    """The loop of one node: what is called later is not called when the node is dead."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def time(self) -> float:
        """Virtual seconds."""
        return self._node.world.now

    def call_later(self, delay: float, call: Callable[..., None], *args: Any) -> None:
        """As asyncio's."""
        self._node.world.after(delay, self._call, call, args)

    def call_soon(self, call: Callable[..., None], *args: Any) -> None:
        """As asyncio's: after what happens now."""
        self.call_later(0.0, call, *args)

    def _call(self, call: Callable[..., None], args: tuple[Any, ...]) -> None:
        if not self._node.dead:
            call(*args)


class _Driver:
    """A driver as `Groups` sees it: it is warned, which nobody reads."""

    def __init__(self, job_id: bytes) -> None:
        self.job_id = job_id

    def send(self, message: Any) -> None:
        """A notice."""


class Surroundings:
    """What the shells of a node see of it: its leases, its table of processes, and its objects."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.foreign = self  #: the node is one of a cluster
        self.groups: Any = None

    @property
    def machine(self) -> LocalScheduler:
        """The scheduler."""
        return self._node.machine

    def handle(self, event: events.Event) -> None:
        """Give the scheduler an event."""
        self._node.feed(event)

    def request(self, process: bytes, message: RequestLeases, backlog: int) -> None:
        """Ask the scheduler for leases of a class."""
        self._node.request_leases(process, message, backlog)

    def send(self, process_id: bytes, message: Any) -> None:
        """Tell a process."""
        self._node.tell(process_id, message)

    def drivers(self) -> list[_Driver]:
        """The node's drivers."""
        drivers = self._node.cluster.drivers
        return [_Driver(driver.job_id) for driver in drivers if driver.node is self._node and not driver.dead]

    def empty(self) -> None:
        """There is nothing to move."""


def groups_of(node: Node, around: Surroundings, clock: Clock) -> Groups:
    """The placement groups of a node, in a cluster."""
    doors: Any = around
    loop: Any = clock
    line: Any = node.actors.line
    groups = Groups(node.node_id, doors, doors, line, loop)
    groups.answer = node.on_group_placed
    return groups


def draining_of(node: Node, around: Surroundings, clock: Clock) -> Draining:
    """How a node leaves. The head cannot."""
    doors: Any = around
    loop: Any = clock
    grace_s = DRAIN_GRACE_S if node.place else 0.0
    return Draining(loop, doors, doors, doors, dict, node.actors.leave, node.beat_now, node.leave, grace_s)
