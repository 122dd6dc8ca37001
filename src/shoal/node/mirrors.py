"""What other nodes need to know to make this node's objects again, should it die; and what they have told this one.

Purpose: a ref outlives also the node that is its home: each node that holds it has its lineage.

Design: a pure part of the object directory. At the home, an object that another node holds is *mirrored* there: how it is made (`Spec`), with all
that this needs, or its value if that is inline. Mirrors go with what they mirror: the home says so. A node needs them only when the home is dead.

    home:    a node holds, or what it holds becomes known   -> SendMirrors(node, items)
             a spec or an object is dropped                 -> DropMirrors(node, oids)
    holder:  MirrorsArrived, MirrorsDropped                    kept by home
             NodeDied(home)                                 -> AskHeir(oid): who is its home from now on? The GCS knows, or makes it the
                                                               first node that asks and has a mirror; it forgets the heir when he dies
             HeirTold(this node)                               the row becomes this node's own; what nobody claims (`claims`) is made anew
             HeirTold(another)                                 it is held and asked for there; he is dead too: asked once more
             an inherited object is freed                   -> ForgetHeir

An inline value that a holder has read is as good as one that it was told: who gets the ref from there needs a home to ask.

Of an object that is on several nodes (`copies`) holders know where.

A small value with refs inside is told as if the holder had asked for it: its node keeps it as long as it holds the object, and what is inside with it
(`Handings.hand_inside`), so it can be the heir.

What it does not do: keep values that lie in a store: these are made anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shoal.node.object_events import (
    AskHeir,
    DropMirrors,
    Effect,
    EstateExpired,
    ExpireLater,
    ForgetHeir,
    HeirTold,
    MirrorItem,
    MirrorsArrived,
    MirrorsDropped,
    SendMirrors,
    SendResolveFor,
)
from shoal.node.object_rows import Abroad, ObjectRow
from shoal.protocol.ids import TASK_ID_BYTES
from shoal.protocol.messages import Containing

if TYPE_CHECKING:
    from shoal.node.object_directory import ObjectDirectory

SPEC_TOLD, VALUE_TOLD = 1, 2
HEIR_OF = b"heir of "  #: before the NodeID of a dead home in `ExpireLater`
MIRRORS_PER_MESSAGE = 256


class Mirrors:
    """See the module's page."""

    def __init__(self, directory: ObjectDirectory) -> None:
        self._directory = directory
        #: node -> oid -> what was told of it
        self.told: dict[bytes, dict[bytes, int]] = {}
        #: home -> oid -> what it has told
        self.kept: dict[bytes, dict[bytes, MirrorItem]] = {}
        #: what the event being handled has ended
        self.gone: list[bytes] = []
        #: node -> objects that it holds, and whose value with refs inside it was given
        self._given: dict[bytes, dict[bytes, None]] = {}
        #: (node, oid) of values with refs inside that are told when the event being handled is done: after the holds on these objects
        self._due: list[tuple[bytes, bytes]] = []
        #: whether objects of dead homes can have heirs: only in a cluster that has a GCS to ask
        self.inherits = False
        #: oids whose heir was asked for
        self._asking: dict[bytes, None] = {}
        #: the same, counted by task
        self._tasks: dict[bytes, int] = {}
        #: those whose heir turned out to be dead too -> that heir: they are asked for once more, as the GCS knows of its death by then
        self._dead_heirs: dict[bytes, bytes] = {}
        #: dead home -> what this node has inherited of it, and keeps until others that hold it have had time to say so
        self._fresh: dict[bytes, list[bytes]] = {}
        #: whose home this node is by inheritance, so that the GCS has a key for it
        self._inherited: dict[bytes, None] = {}

    # ------------------------------------------------------------ at home

    def hold(self, node: bytes, oids: list[bytes], effects: list[Effect]) -> None:
        """Another node holds objects of this one."""
        if not self.inherits:
            return
        succession = self._directory._succession
        objects = self._directory._objects
        told = self.told.setdefault(node, {})
        given = self._given.setdefault(node, {})
        items: list[MirrorItem] = []
        todo = list(oids)
        while todo:
            oid = todo.pop()
            before = told.get(oid, 0)
            row, spec = objects.get(oid), succession.specs.get(oid)
            if row is not None and row.abroad is not None and row.abroad.home == node:
                continue
            value = row.value if row is not None else succession.ghosts.get(oid)
            copies, places = self._directory._copies.told(oid)
            if type(value) is bytes:
                if before < VALUE_TOLD:
                    told[oid] = VALUE_TOLD
                    items.append(MirrorItem(oid, b"", [], b"", b"", value))
                continue
            holds = self._directory._held[node].get(oid, 0)  # 0: it needs what it does not hold
            if type(value) is Containing and holds:
                if holds == 1:
                    given.pop(oid, None)  # it may have let go of it, and of what is inside, before
                self._due.append((node, oid))
            if spec is not None and (places or not before):
                told[oid] = SPEC_TOLD
                code = succession.codes.get(spec.function_id)
                text = code.text if code is not None else b""
                item = MirrorItem(oid, spec.lineage_of(oid), spec.needs, spec.function_id, text, None, copies, places)
                items.append(item)
                todo.extend(spec.needs)
            elif places:  # they may be others than before
                told[oid] = SPEC_TOLD
                items.append(MirrorItem(oid, b"", [], b"", b"", None, copies, places))
        for start in range(0, len(items), MIRRORS_PER_MESSAGE):
            effects.append(SendMirrors(node, items[start : start + MIRRORS_PER_MESSAGE]))

    def known(self, oid: bytes, effects: list[Effect]) -> None:
        """How an object is made, or its value, became known."""
        if not self.told:
            return
        held = self._directory._held
        for node in self._directory._nodes:
            if oid in held[node] or oid in self.told.get(node, ()):
                self.hold(node, [oid], effects)

    def tell_values(self, effects: list[Effect]) -> None:
        """Values with refs inside are told as if that node had asked for them: it keeps them with what is inside."""
        while self._due:
            node, oid = self._due.pop()
            row = self._directory._objects.get(oid)
            if row is not None and type(row.value) is Containing and oid not in self._given[node]:
                self._directory._tell(node, oid, row.value, effects)

    def let_go(self, node: bytes, oid: bytes) -> None:
        """A node had let go of an object before it was handed to it once more: of what is inside, too."""
        if self._given.get(node, {}).pop(oid, self) is None:
            self._due.append((node, oid))

    def give(self, node: bytes, oid: bytes) -> bool:
        """A node is told an object's value: whether it must be told how what is inside is made; not if it was, and still holds the object."""
        if not self._directory._held[node].get(oid):
            return True
        given = self._given.setdefault(node, {})
        known = oid in given
        given[oid] = None
        return not known

    def tell_gone(self, effects: list[Effect]) -> None:
        """Objects are gone, with how they were made."""
        gone, self.gone = self.gone, []
        for node, told in self.told.items():
            known = [oid for oid in gone if told.pop(oid, 0)]
            if known:
                effects.append(DropMirrors(node, known))
        for given in self._given.values():
            for oid in gone:
                given.pop(oid, None)
        if self._inherited:
            effects.extend(ForgetHeir(oid) for oid in gone if self._inherited.pop(oid, self) is None)

    # ------------------------------------------------------------ at a holder

    def on_arrived(self, event: MirrorsArrived, effects: list[Effect]) -> None:
        """A home tells how to make what this node holds."""
        self.kept.setdefault(event.node, {}).update({item.oid: item for item in event.items})

    def on_dropped(self, event: MirrorsDropped, effects: list[Effect]) -> None:
        """A home tells what is gone."""
        kept = self.kept.get(event.node, {})
        for oid in event.oids:
            kept.pop(oid, None)

    def node_died(self, node: bytes) -> None:
        """Nothing need be told to a dead node."""
        self.told.pop(node, None)
        self._given.pop(node, None)

    def statistics(self) -> dict[str, int]:
        """Sizes of the tables."""
        return {
            "told": sum(map(len, self.told.values())),
            "mirrors": sum(map(len, self.kept.values())),
            "inherited": len(self._inherited),
            "fresh": sum(map(len, self._fresh.values())),
        }

    def ask_heir(self, oid: bytes, row: ObjectRow, effects: list[Effect]) -> bool:
        """Whether an object of a dead home may have an heir, who is asked for."""
        if not self.inherits or row.abroad is None:
            return False
        if row.value is not None:
            if type(row.value) not in (bytes, Containing) or not row.rows:
                return False
            # It was read in time; but who gets the ref from here asks its home.
            kept = self.kept.setdefault(row.abroad.home, {})
            if type(row.value) is bytes or oid not in kept:
                kept[oid] = MirrorItem(oid, b"", [], b"", b"", row.value if type(row.value) is bytes else None)
        row.abroad.taken = row.abroad.number = 0
        row.abroad.asked = True  # nobody else is asked meanwhile
        if oid not in self._asking:
            self._asking[oid] = None
            self._tasks[oid[:TASK_ID_BYTES]] = self._tasks.get(oid[:TASK_ID_BYTES], 0) + 1
            effects.append(AskHeir(oid, oid in self.kept.get(row.abroad.home, ())))
        return True

    def on_heir(self, event: HeirTold, effects: list[Effect]) -> None:
        """It is known who is the home of an object now; empty: nobody."""
        task_id = event.oid[:TASK_ID_BYTES]
        if self._asking.pop(event.oid, self) is None:
            self._tasks[task_id] -= 1
            if not self._tasks[task_id]:
                del self._tasks[task_id]
        self._inherit(event, effects)
        if not self.asks_about(task_id):
            self._directory._claims.heirs_known(effects)
        self.forget_dead()

    def asks_about(self, task_id: bytes) -> bool:
        """Whether it is not known yet of all results of a task who is their home now: those that are this node's are made by one run."""
        return task_id in self._tasks

    def asks_for(self, oid: bytes) -> bool:
        """Whether it is not known yet who is the home of an object now."""
        return oid in self._asking

    def forget_dead(self) -> None:
        """What dead homes had told is of no use once their objects have heirs: who comes later asks those. Unless something may be made from it."""
        if not self._asking:
            dead = [home for home in self.kept if self._directory._holds_abroad.cause_of_death(home) is not None]
            needed = set(self._directory._needs.homes.values()) if dead else ()
            for home in dead:
                if home not in needed:
                    del self.kept[home]

    def _inherit(self, event: HeirTold, effects: list[Effect]) -> None:
        directory, oid = self._directory, event.oid
        row = directory._objects.get(oid)
        has_other = row is not None and row.value is not None and type(row.value) not in (bytes, Containing)
        if row is None or row.abroad is None or has_other or (not row.rows and row.waiters is None):
            if event.home == directory._node_id and oid not in self._inherited:
                if row is not None and row.abroad is None and row.known:
                    self._inherited[oid] = None  # it was made here meanwhile
                else:
                    effects.append(ForgetHeir(oid))  # nobody here wants it any more
            if row is not None and row.abroad is not None:
                row.abroad.asked = False
                directory._drop_if_idle(oid, row)
            return
        row.abroad.asked = False
        former = row.abroad.home
        heir = event.home
        if not heir or self._dead_heirs.get(oid) == heir:
            heir = row.abroad.instead or heir
        if heir != directory._node_id and directory._holds_abroad.cause_of_death(former) is None:
            heir = former  # it has told so itself, when it handed the object on
        if event.home == directory._node_id:
            self._inherited[oid] = None
            row.abroad = None
            row.known = True
            self._keep_for_others(former, oid, row, effects)
            self._take_over(former, oid, row, effects)
        elif heir == directory._node_id:
            row.abroad = None
            directory._asked[oid] = directory._issued  # its owner's word may still be to be read
        elif heir and directory._holds_abroad.cause_of_death(heir) is None:
            if heir != former:
                row.abroad = Abroad(heir)
            if row.rows:
                directory._take(heir, [oid], effects)
            if row.waiters is not None:
                row.abroad.asked = True
                effects.append(SendResolveFor(heir, [oid]))
        elif event.home and self._dead_heirs.get(oid) != event.home:
            self._dead_heirs[oid] = event.home
            self.ask_heir(oid, row, effects)
            return
        else:
            directory._fail_homeless(oid, row, directory._holds_abroad.cause_of_death(former) or "it is gone", effects)
            directory._drop_if_idle(oid, row)
        self._dead_heirs.pop(oid, None)

    def _keep_for_others(self, former: bytes, oid: bytes, row: ObjectRow, effects: list[Effect]) -> None:
        """Other nodes that hold it ask who the heir is, and their holds are on their way when nothing here may refer to it any more."""
        row.rows += 1
        if former not in self._fresh:
            self._fresh[former] = []
            effects.append(ExpireLater(HEIR_OF + former, soon=True))
        self._fresh[former].append(oid)

    def on_expired(self, event: EstateExpired, effects: list[Effect]) -> None:
        """Who holds what was inherited has said so."""
        directory = self._directory
        for oid in self._fresh.pop(event.of.removeprefix(HEIR_OF), ()) if event.of.startswith(HEIR_OF) else ():
            row = directory._objects[oid]
            row.rows -= 1
            row.stamp = directory._issued
            if not row.rows:
                directory._candidates[oid] = None

    def _take_over(self, former: bytes, oid: bytes, row: ObjectRow, effects: list[Effect]) -> None:
        """This node is an object's home: what its former home has told is this node's own knowledge now."""
        directory = self._directory
        succession = directory._succession
        kept = self.kept.get(former, {})
        item = kept.get(oid)
        if row.value is None and item is not None:
            row.value = item.value
        if type(row.value) is bytes:
            directory._answer_waiters(oid, row, row.value, effects)
            return
        todo = [oid]
        while todo:
            each = todo.pop()
            item = kept.get(each)
            if item is None or each in succession.specs:
                continue
            if item.lineage:
                succession.note_mirror(item)
                todo.extend(item.needs)
            if each != oid and each not in directory._objects:
                succession.ghosts[each] = item.value
                directory._needs.inherit(each, former)
        if row.value is not None:  # with refs inside: of use as long as this node lives
            directory._answer_waiters(oid, row, row.value, effects)
            return
        item = kept.get(oid)
        if item is not None and item.places and directory._copies.inherit(item, row, effects):
            return
        directory._claims.seek(former, oid, f"its home, node {former.hex()[:8]}, is dead", effects)


HANDLERS: dict[type, Any] = {
    MirrorsArrived: lambda directory, event, effects: directory._mirrors.on_arrived(event, effects),
    MirrorsDropped: lambda directory, event, effects: directory._mirrors.on_dropped(event, effects),
    HeirTold: lambda directory, event, effects: directory._mirrors.on_heir(event, effects),
}
