"""Who, on other nodes, has the work of dead owners: asked before anything of theirs runs again.

Purpose: what runs on goes on, wherever it runs; only what nobody claims runs again, once.

Design: a pure part of the object directory; the other side of `estates`.

    an owner of this node dies that had work elsewhere   `succession` asks those nodes, as it asks the workers here
    this node is the heir of a dead home (`mirrors`)     all living nodes, this one too, are asked once what they have of that home (AskClaimsOf);
                                                         what it inherits meanwhile waits, what it inherits later is decided by the same answers
    ClaimsTold       a node runs tasks, or has results in its store. When all have answered: what is claimed is taken (TakeClaims), and that
                     node *owes* it, like an owner here; the rest is made anew
    ClaimMade        the value, or that it is lost: made anew
    the node dies    what it owed is made anew; it need not answer any more
    ClaimsOverdue    it lives, and does not answer: it is not waited for any longer

What is made anew for a dead home counts as begun: nobody knows what that home had heard.

What it does not do: know what runs (`estates`), or ask for time (the shell has the clocks).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shoal.node.object_events import (
    AskClaimsOf,
    ClaimMade,
    ClaimsOverdue,
    ClaimsTold,
    Effect,
    EstateExpired,
    ExpireLater,
    FreeStored,
    Published,
    TakeClaims,
)
from shoal.node.object_rows import ObjectRow
from shoal.protocol.ids import TASK_ID_BYTES
from shoal.protocol.messages import Stored

if TYPE_CHECKING:
    from shoal.node.object_directory import ObjectDirectory


class Seek:
    """What other nodes have of one dead home."""

    __slots__ = ("number", "oids", "reason", "stored", "tasks", "waiting")

    def __init__(self, waiting: dict[bytes, None], reason: str, number: int) -> None:
        self.number = number  #: of its questions: a home may be asked about again, when those to whom it mattered before are served
        #: nodes that have not answered
        self.waiting = waiting
        self.reason = reason
        #: tasks, and objects in a store -> the node that has them
        self.tasks: dict[bytes, bytes] = {}
        self.stored: dict[bytes, bytes] = {}
        #: inherited, and to be decided when all have answered
        self.oids: list[bytes] = []


class Claims:
    """See the module's page. Writes `owner` and `known` of the directory's rows."""

    def __init__(self, directory: ObjectDirectory) -> None:
        self._directory = directory
        #: by dead home
        self.seeks: dict[bytes, Seek] = {}
        self._ended = 0  #: seeks that are over

    def statistics(self) -> dict[str, int]:
        """Sizes of the tables."""
        return {"seeks": len(self.seeks)}

    # ------------------------------------------------------------ a home is dead

    def seek(self, former: bytes, oid: bytes, reason: str, effects: list[Effect]) -> None:
        """This node has inherited an object, without its value, from a dead home."""
        directory = self._directory
        seek = self.seeks.get(former)
        if seek is None:
            nodes = [*directory._nodes, directory._node_id]
            seek = self.seeks[former] = Seek(dict.fromkeys(nodes), reason, self._ended)
            effects.extend(AskClaimsOf(node, former, True, self._ended) for node in nodes)
            effects.append(ExpireLater(former))
        directory._succession.keep(oid)
        seek.oids.append(oid)
        if not seek.waiting and not directory._mirrors.asks_about(oid[:TASK_ID_BYTES]):
            self._decide(former, seek, effects)

    def heirs_known(self, effects: list[Effect]) -> None:
        """Of a task, whose results were inherited one by one, all are known that this node will inherit."""
        for former, seek in self.seeks.items():
            if seek.oids and not seek.waiting:
                self._decide(former, seek, effects)

    def on_told(self, event: ClaimsTold, effects: list[Effect]) -> None:
        """A node says what it has."""
        self._directory._succession.claimed_abroad(event, effects)
        seek = self.seeks.get(event.of)
        if seek is None:
            return
        for task_id in event.task_ids:
            seek.tasks[task_id] = event.node
        for oid in event.stored:
            seek.stored[oid] = event.node
        self._answered(event.of, seek, event.node, effects)

    def _answered(self, of: bytes, seek: Seek, node: bytes, effects: list[Effect]) -> None:
        if node in seek.waiting:
            del seek.waiting[node]
            if not seek.waiting:
                self._decide(of, seek, effects)

    def _decide(self, of: bytes, seek: Seek, effects: list[Effect]) -> None:
        directory = self._directory
        oids, seek.oids = seek.oids, []
        taken: dict[bytes, list[bytes]] = {}
        unclaimed = []
        for oid in oids:
            row = directory._objects.get(oid)
            if directory._mirrors.asks_about(oid[:TASK_ID_BYTES]):
                seek.oids.append(oid)
                continue
            if row is None or row.value is not None or row.owner:
                continue
            node = seek.stored.get(oid) or seek.tasks.get(oid[:TASK_ID_BYTES])
            if node is not None and (node == directory._node_id or node in directory._nodes):
                self.owe(oid, row, node)
                taken.setdefault(node, []).append(oid)
            else:
                unclaimed.append(oid)
        effects.extend(TakeClaims(node, of, oids) for node, oids in taken.items())
        directory._succession.make_anew(unclaimed, seek.reason, True, effects)

    def owe(self, oid: bytes, row: ObjectRow, node: bytes) -> None:
        """A node that has claimed an object's task owes its value."""
        directory = self._directory
        row.owner = node
        row.known = True
        directory._asked.pop(oid, None)
        directory._owed[node][oid] = None
        directory._succession.claims[oid] = None

    # ------------------------------------------------------------ what becomes of it

    def on_made(self, event: ClaimMade, effects: list[Effect]) -> None:
        """A claimed value is there; or (None) will not be."""
        directory = self._directory
        node, oid, value = event.node, event.oid, event.value
        row = directory._objects.get(oid)
        if row is None or row.owner != node or oid not in directory._owed.get(node, ()):
            known = row.value if row is not None else None
            if type(value) is Stored and not (type(known) is Stored and known.node == value.node):
                effects.append(FreeStored(oid, value.node if value.node != directory._node_id else b""))
        elif value is not None:
            directory._on_published(Published(node, oid, value), effects)
        else:
            del directory._owed[node][oid]
            row.owner = b""
            reason = f"its owner died, and so did the worker of node {node.hex()[:8]} that ran its task"
            directory._succession.make_anew([oid], reason, True, effects)

    def node_died(self, node: bytes, owed: dict[bytes, None], cause: str, effects: list[Effect]) -> None:
        """A node is dead, which owed values, and was asked."""
        directory = self._directory
        for oid in owed:
            directory._objects[oid].owner = b""
        reason = f"its owner died, and so did node {node.hex()[:8]}, which ran its task: {cause}"
        directory._succession.make_anew(list(owed), reason, True, effects)
        for process in list(directory._succession.orphans):
            directory._succession.unanswered(node, process, effects)
        for of, seek in list(self.seeks.items()):
            self._answered(of, seek, node, effects)

    def on_overdue(self, event: ClaimsOverdue, effects: list[Effect]) -> None:
        """A node that was asked is not waited for any longer."""
        self._directory._succession.unanswered(event.node, event.of, effects)
        seek = self.seeks.get(event.of)
        if seek is not None and seek.number == event.number:  # not of a former seek, to which it has answered
            self._answered(event.of, seek, event.node, effects)

    def on_expired(self, event: EstateExpired, effects: list[Effect]) -> None:
        """Whoever inherits from a dead home has done so; who comes later asks anew."""
        seek = self.seeks.get(event.of)
        if seek is not None and (seek.waiting or seek.oids):
            effects.append(ExpireLater(event.of))
        elif seek is not None:
            del self.seeks[event.of]
            self._ended += 1


def _on_expired(directory: ObjectDirectory, event: EstateExpired, effects: list[Effect]) -> None:
    directory._estates.on_expired(event, effects)
    directory._claims.on_expired(event, effects)
    directory._mirrors.on_expired(event, effects)


HANDLERS: dict[type, Any] = {
    ClaimsTold: lambda directory, event, effects: directory._claims.on_told(event, effects),
    ClaimMade: lambda directory, event, effects: directory._claims.on_made(event, effects),
    ClaimsOverdue: lambda directory, event, effects: directory._claims.on_overdue(event, effects),
    EstateExpired: _on_expired,
}
