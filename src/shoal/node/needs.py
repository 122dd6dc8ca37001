"""What is needed of objects that nobody holds any more: how they are made, not they themselves, as something was made from them.

Purpose: a lost result can be made again from an input that others owned, and everybody has let go since.

Design: a pure part of the object directory. A home keeps how to make what its own specs need (`succession`, ghosts). But a process also remembers
how to make results that never left it (`runtime.lineage`), from inputs that it had borrowed; and a spec may need an object of another home. While
these are held their home knows of them. Who lets one go says in the same breath that it may still want to have it made, until what was made from it
is gone. Such a process or node counts like one spec more.

    process: lets go, and a record needs it  -> NeedLineage to its daemon, before the release of the hold
    here:  let go, and a spec needs it    -> TellNeeds(home, oids), before the release of the hold
           that spec is dropped           -> TellNeeds(home, oids, ended)
           made anew (`succession`)          it is held again at its home, and asked for there, which makes a ghost an object again
           NeedsTold                         kept as a ghost when it is freed, with all that it needs, perhaps of yet another home
           who has told dies                 it needs nothing

The home dies: what it had told of such an object (`mirrors`) is kept here until the spec is gone, for its heir is the first that asks. So it is with
what an inherited spec needs: whoever reads a ref to it, inside of the arguments, asks the GCS for its heir, too.

What it does not do: tell an heir of the spec where its needs are at home.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shoal.node.object_events import Effect, NeedsTold, TellNeeds

if TYPE_CHECKING:
    from shoal.node.object_directory import ObjectDirectory


class Needs:
    """See the module's page."""

    def __init__(self, directory: ObjectDirectory) -> None:
        self._directory = directory
        #: objects of other homes that specs need, and that this node does not hold, or has not always held -> their home
        self.homes: dict[bytes, bytes] = {}
        #: process, or other node -> what it does not hold any more, and may want to have made
        self._of: dict[bytes, dict[bytes, None]] = {}
        #: to be told when the event being handled is done, in this order
        self._changed: list[TellNeeds] = []

    def statistics(self) -> dict[str, int]:
        """Sizes of the tables."""
        return {"homes": len(self.homes), "needs told": sum(map(len, self._of.values()))}

    # ------------------------------------------------------------ of other homes

    def let_go(self, oid: bytes, home: bytes) -> None:
        """Nobody here holds any more what a spec needs."""
        if self.homes.get(oid) != home:
            self.forget(oid)
            self.homes[oid] = home
            self._note(oid, home, False)

    def inherit(self, oid: bytes, former: bytes) -> None:
        """A spec that this node has inherited from a dead home needs an object of that home."""
        self.homes.setdefault(oid, former)

    def forget(self, oid: bytes) -> None:
        """No spec of this node needs it."""
        home = self.homes.pop(oid, b"")
        if home:
            self._note(oid, home, True)

    def _note(self, oid: bytes, home: bytes, ended: bool) -> None:
        last = self._changed[-1] if self._changed else None
        if last is not None and (last.node, last.ended) == (home, ended):
            last.oids.append(oid)
        else:
            self._changed.append(TellNeeds(home, [oid], ended))

    def flush(self, effects: list[Effect]) -> None:
        """Tell what has changed."""
        if not self._changed:
            return
        changed, self._changed = self._changed, []
        cause_of_death = (
            self._directory._holds_abroad.cause_of_death
        )  # a home may live that this node has not heard from
        living = [told for told in changed if cause_of_death(told.node) is None]
        effects.extend(living)
        if len(living) < len(changed):
            self._directory._mirrors.forget_dead()

    # ------------------------------------------------------------ by processes and other nodes

    def on_told(self, event: NeedsTold, effects: list[Effect]) -> None:
        """Somebody needs objects, or does not any more."""
        if event.who not in self._directory._held:
            return
        known, succession = self._of.setdefault(event.who, {}), self._directory._succession
        if event.ended:
            succession.unneed([oid for oid in event.oids if known.pop(oid, self) is None])
            return
        for oid in event.oids:
            if oid not in known:
                known[oid] = None
                succession.needed[oid] = succession.needed.get(oid, 0) + 1

    def died(self, who: bytes) -> None:
        """It needs nothing any more."""
        self._directory._succession.unneed(list(self._of.pop(who, ())))


HANDLERS: dict[type, Any] = {NeedsTold: lambda directory, event, effects: directory._needs.on_told(event, effects)}
