"""What is needed of other nodes' objects, and by other nodes, only to make something anew: how they are made, not they themselves.

Purpose: a lost result can be made from an input of another home that everybody has let go since.

Design: a pure part of the object directory. A home keeps how to make what its own specs need (`succession`, ghosts). A spec may also need an object of
another home; while somebody here holds that, its home knows. When this node lets it go, it says in the same breath that it still needs to have it
made some day, until the spec is gone. At the home such a node counts like one spec more.

    here:  let go, and a spec needs it    -> TellNeeds(home, oids), before the release of the hold
           that spec is dropped           -> TellNeeds(home, oids, ended)
           made anew (`succession`)          it is held again at its home, and asked for there, which makes a ghost an object again
    home:  NeedsTold                         kept as a ghost when it is freed, with all that it needs, perhaps of yet another home
           the node dies                     it needs nothing

The home dies: what it had told of such an object (`mirrors`) is kept here until the spec is gone, for its heir is the first that asks.

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
        #: node -> objects of this home that it may want to have made
        self._of_nodes: dict[bytes, dict[bytes, None]] = {}
        #: to be told when the event being handled is done, in this order
        self._changed: list[TellNeeds] = []

    def statistics(self) -> dict[str, int]:
        """Sizes of the tables."""
        return {"homes": len(self.homes), "needed abroad": sum(map(len, self._of_nodes.values()))}

    # ------------------------------------------------------------ of other homes

    def let_go(self, oid: bytes, home: bytes) -> None:
        """Nobody here holds any more what a spec needs."""
        if self.homes.get(oid) != home:
            self.forget(oid)
            self.homes[oid] = home
            self._note(oid, home, False)

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
        living = self._directory._nodes
        effects.extend(told for told in changed if told.node in living)
        if any(told.node not in living for told in changed):
            self._directory._mirrors.forget_dead()

    # ------------------------------------------------------------ by other nodes

    def on_told(self, event: NeedsTold, effects: list[Effect]) -> None:
        """A node needs objects of this home, or does not any more."""
        if event.node not in self._directory._nodes:
            return
        known, succession = self._of_nodes.setdefault(event.node, {}), self._directory._succession
        if event.ended:
            succession.unneed([oid for oid in event.oids if known.pop(oid, self) is None])
            return
        for oid in event.oids:
            if oid not in known:
                known[oid] = None
                succession.needed[oid] = succession.needed.get(oid, 0) + 1

    def node_died(self, node: bytes) -> None:
        """It needs nothing any more."""
        self._directory._succession.unneed(list(self._of_nodes.pop(node, ())))


HANDLERS: dict[type, Any] = {NeedsTold: lambda directory, event, effects: directory._needs.on_told(event, effects)}
