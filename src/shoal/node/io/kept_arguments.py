"""What the constructors of actors need again, held by nodes in the actors' names.

Purpose: an actor restarts whoever is dead by then: the process that made it, the job of that, the node that it lived on.

Design: an actor's spec says which objects its arguments are or refer to, and where these are at home. These nodes hold them: the one whose
process asked for the actor, each that the actor was sent to, and the head. So one of them is there while others are lost, and each knows how to make
the objects anew, should their home be lost (`node.mirrors`). In the eyes of the object directory what holds is a process with a name of its own;
the log of an actor with checkpoints is another one, which goes earlier (`io.recoveries`). Arguments that lie in the store because they are large
belong to nobody who could make them anew: they get a copy on another node.

    restartable                until it is dead
    detached, without restarts until it is constructed: its creator may end before
    any other                  by the object of its handles alone, as long as there are handles (`runtime.actor_calls`)

`Actors` follows each actor for which something is held, so that its death is heard.

What it does not do: know who lives (the GCS does), or bring values here: a worker that constructs asks for them as for any ref.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.node import object_events as events
from shoal.protocol.messages import ActorSpec, Stored

if TYPE_CHECKING:
    from shoal.node.io.objects import Objects

COPIES = 2  #: of arguments in the store


def holder_of(actor_id: bytes) -> bytes:
    """The name under which an actor's arguments are held."""
    return actor_id + b"needs"


class KeptArguments:
    """Of all actors that this node asked for, or was to construct."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        #: by ActorID: whether a restart may need them
        self._kept: dict[bytes, bool] = {}

    def keep(self, spec: ActorSpec) -> bool:
        """An actor is asked for here, or to be constructed. Returns whether anything is held for it, until `drop`."""
        if not spec.needs or not (spec.detached or spec.max_restarts) or spec.actor_id in self._kept:
            return spec.actor_id in self._kept
        self._kept[spec.actor_id] = bool(spec.max_restarts)
        holder = holder_of(spec.actor_id)
        objects = self._objects
        objects.handle(events.ProcessJoined(holder, runs=False))
        by_home: dict[bytes, list[bytes]] = {}
        for oid, home, _ in spec.needs:
            by_home.setdefault(home, []).append(oid)
        for home, oids in by_home.items():
            objects.hold_as(holder, oids, home)
        if spec.max_restarts and type(spec.arguments) is Stored and not objects.machine.home_of(spec.arguments.oid):
            objects.handle(events.CopiesAsked(holder, 0, spec.arguments.oid, COPIES))
        return True

    def keeps(self, actor_id: bytes) -> bool:
        """Whether anything is held for an actor."""
        return actor_id in self._kept

    def constructed(self, actor_id: bytes) -> None:
        """An actor lives."""
        if self._kept.get(actor_id) is False:
            self.drop(actor_id)

    def drop(self, actor_id: bytes) -> None:
        """An actor is dead, or was never made."""
        if self._kept.pop(actor_id, None) is not None:
            self._objects.handle(events.ProcessDied(holder_of(actor_id), "its actor is dead"))

    def statistics(self) -> dict[str, int]:
        """Size of the table."""
        return {"arguments": len(self._kept)}
