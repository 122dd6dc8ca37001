"""Holds for the logs of actors over nodes: what this node's logs refer to is held elsewhere, too, and what others refer to is held here.

Purpose: the shell of `node.log_holds`.

Design: for a keeper, the log of an actor of another node is a process of the object directory, named by KEEPER and the ActorID: it holds what was
asked for, and the directory confirms its holds in their order when their home counts them. It ends with the actor, which this node follows to
hear of its death.

What it does not do: decide who keeps what (`node.log_holds`), or tell the GCS (`recoveries`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from shoal.node import object_events as events
from shoal.node.io.objects import Objects
from shoal.node.log_holds import AskHold, KeptHolds, LogHolds
from shoal.protocol.node_messages import FreeLogHolds, HeldForLog, HoldForLog

if TYPE_CHECKING:
    from shoal.node.io.node_links import NodeLinks

KEEPER = b"keeper of "  #: before an ActorID: who holds here what that actor's log on another node refers to
#: so long after a keeper's death it is looked who inherited what had its home there; twice as long each time, up to the second
LACKING_S, LACKING_MAX_S = 0.1, 10.0


class LogHolding:
    """Both sides of a node.

    Args:
        follow: has the GCS tell of an actor's death (`actor_dead`), also if it is dead already.
        on_settled: called with an actor for which nobody need wait any more.
    """

    def __init__(
        self,
        node_id: bytes,
        links: NodeLinks,
        objects: Objects,
        follow: Callable[[bytes], None],
        on_settled: Callable[[bytes], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._node_id = node_id
        self._links = links
        self._objects = objects
        self._follow = follow
        self._on_settled = on_settled
        self._loop = loop
        self._holds = LogHolds()
        self._kept = KeptHolds()
        #: keeper's process -> (node, number) of each HoldForLog with something new, whose hold is not confirmed
        self._unconfirmed: dict[bytes, deque[tuple[bytes, HeldForLog]]] = {}
        #: keeper's process -> holds confirmed so far
        self._confirmed: dict[bytes, int] = {}
        objects.on_keeper_confirmed = self._on_confirmed
        links.on_joined.append(lambda entry: self._on_seen(entry.node_id, entry.draining))
        links.on_drains.append(lambda entry: self._holds.node_seen(entry.node_id, True))
        links.on_died.append(self._on_died)
        links.handlers[HoldForLog] = self._on_hold
        links.handlers[HeldForLog] = self._on_held
        links.handlers[FreeLogHolds] = self._on_free

    # ---------------------------------------------------------------- the logs here

    def want(self, actor_id: bytes, position: int, oids: list[bytes], life: int = 0) -> None:
        """A log refers to these, which its actor holds here, says a life of it (0: its last one)."""
        machine = self._objects.machine
        homes = {oid: machine.home_of(oid) or self._node_id for oid in oids}
        self._ask(self._holds.want(actor_id, position, homes, life))

    def _ask(self, asks: list[AskHold]) -> None:
        for ask in asks:
            message = HoldForLog(ask.number, ask.actor_id, ask.position, ask.oids, ask.home, ask.life)
            self._links.send(ask.node, message)

    def is_settled(self, actor_id: bytes) -> bool:
        """Whether what its log refers to is held elsewhere, as far as it can be."""
        return self._holds.is_settled(actor_id)

    def covered(self, actor_id: bytes, below: int, former: int) -> None:
        """The GCS has a checkpoint. `former`: lives before this one may have had keepers that are not known here, and nothing that they have written
        is needed; 0 if there are none, or something is."""
        told = self._holds.covered(actor_id, below)
        message = FreeLogHolds(actor_id, below, former)
        for node in list(self._links.nodes) if former else told:
            self._links.send(node, message)
        if former:
            self._on_free(self._node_id, message)

    def forget(self, actor_id: bytes) -> None:
        """The log is not here any more; what it refers to is still held elsewhere."""
        self._holds.forget(actor_id)

    def _on_held(self, node: bytes, message: HeldForLog) -> None:
        if self._holds.told(message.actor_id, message.number):
            self._on_settled(message.actor_id)

    def _on_seen(self, node: bytes, draining: bool) -> None:
        self._holds.node_seen(node, draining)
        self._fill()

    def _on_died(self, node: bytes, cause: str) -> None:
        for actor_id in self._holds.node_gone(node):
            self._on_settled(actor_id)
        if self._holds.lacking():
            self._loop.call_later(LACKING_S, self._fill, LACKING_S)

    def _fill(self, after_s: float = LACKING_S) -> None:
        """Find keepers for what has none."""
        wanted: dict[tuple[bytes, int], list[bytes]] = {}
        dead_homes = False
        for actor_id, oid, position in self._holds.lacking():
            home = self._objects.machine.home_of(oid)
            if home and self._links.is_dead(home):
                dead_homes = True  # its heir is being asked for
            else:
                wanted.setdefault((actor_id, position), []).append(oid)
        for (actor_id, position), oids in wanted.items():
            self.want(actor_id, position, oids)
        if dead_homes:
            again_s = min(2 * after_s, LACKING_MAX_S)
            self._loop.call_later(again_s, self._fill, again_s)

    # ---------------------------------------------------------------- logs of others

    def _on_hold(self, node: bytes, message: HoldForLog) -> None:
        process = KEEPER + message.actor_id
        is_new = not self._kept.knows(message.actor_id)
        fresh, moved = self._kept.hold(message.actor_id, message.position, message.oids, message.home, message.life)
        if is_new:
            self._objects.handle(events.ProcessJoined(process, runs=False))
            self._unconfirmed[process] = deque()
            self._confirmed[process] = 0
        held = HeldForLog(message.number, message.actor_id)
        waiting = self._unconfirmed[process]
        if fresh or moved or waiting:  # what is held already may not be counted yet: a hold of nothing comes after it
            waiting.append((node, held))
            self._objects.hold_as(process, [*fresh, *moved], message.home)
            if moved:
                self._objects.handle(events.Released(process, moved))  # one hold is enough
        else:
            self._links.send(node, held)
        if is_new:
            self._follow(message.actor_id)

    def _on_confirmed(self, process: bytes, count: int) -> None:
        waiting = self._unconfirmed.get(process)
        if waiting is None:
            return
        for _ in range(count - self._confirmed[process]):
            node, held = waiting.popleft()
            self._links.send(node, held)
        self._confirmed[process] = count

    def _on_free(self, node: bytes, message: FreeLogHolds) -> None:
        gone = self._kept.free(message.actor_id, message.below, message.former)
        if message.former and not self._kept.knows(message.actor_id):
            self._follow(message.actor_id)  # what former lives still ask for may come until it is dead
        if gone:
            self._objects.handle(events.Released(KEEPER + message.actor_id, gone))

    def actor_dead(self, actor_id: bytes) -> None:
        """Nothing need be held for it."""
        if self._kept.drop(actor_id):
            process = KEEPER + actor_id
            del self._unconfirmed[process], self._confirmed[process]
            self._objects.handle(events.ProcessDied(process, "its actor is dead"))

    def statistics(self) -> dict[str, int]:
        """Sizes of the tables."""
        return {**self._holds.statistics(), **self._kept.statistics()}
