"""What becomes of a dead owner's objects, and how lost ones are made again: the directory's memory of lineage.

Purpose: a ref outlives its owner. The daemon is the successor: it owns the rows, and has a live process run what must run.

Design: a pure part of `object_directory`, which lends it its tables. An owner told with each escaping ref that may be lost how it is made: a task
(`Spec`), and what that needs. While others need it, a freed object stays as a *ghost*: its value is gone (unless it was inline), its spec not.

    an owner dies         what it owed are orphans. Workers, and nodes (`claims`), that may have its tasks are asked, each answers what runs or
                          will run (Claimed; what had ended it has published). A claimed orphan is owed by who claims it. What is needed
                          for the orphans is held meanwhile.
    all have answered     what nobody claims is made anew
    made anew             the task is handed to a *runner*: a driver of this node, else a process that holds the object, else the one that is here
                          longest. It owes the value from now on; if it dies, all of this begins again. A need that is a ghost, or lost with no
                          live owner, is made anew before, and so on, without recursion.
    it cannot             the object fails, with the reason

Nobody adopts from a live owner: what a live owner lost, the owner is asked to make (`SendRemake`), unless it has let the object go;
then it is the runner.

How to extend: what else an owner leaves behind belongs into `Orphans`.

What it does not do: know what a spec says (`protocol.messages.TaskLineage`), or run it (`runtime.closures`).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from shoal.node.object_events import (
    Adopted,
    AskClaims,
    AskClaimsOf,
    Claimed,
    ClaimsTold,
    CodeTold,
    Effect,
    Escaped,
    FreeStored,
    Lost,
    MirrorItem,
    NotMadeTold,
    OrphansSettled,
    ProcessDied,
    SendBeingRemade,
    SendRemake,
    SendResolveFor,
    TakeClaims,
)
from shoal.node.object_rows import Abroad, ObjectRow
from shoal.protocol.errors import OwnerDiedError
from shoal.protocol.ids import TASK_ID_BYTES
from shoal.protocol.messages import Containing, Failed, Stored, Value

if TYPE_CHECKING:
    from shoal.node.object_directory import ObjectDirectory

SPEC_BYTES = 300  #: what a spec takes beside its text
SPECS_BYTES_MAX = 256 << 20


#: how to make an object: what told it, of many perhaps, is kept as it came (an object for each would cost a third of noting it)
Spec = Escaped | MirrorItem


class Code:
    """The code of a function that specs name. It is kept while one does, or while a process lives that has sent it and will not again."""

    __slots__ = ("senders", "specs", "text")

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.specs = 0
        self.senders: dict[bytes, None] = {}


class Orphans:
    """What a dead process owed."""

    __slots__ = ("begun", "cause", "oids", "waiting")

    def __init__(self, oids: list[bytes], waiting: dict[bytes, None], cause: str) -> None:
        self.oids = oids
        self.cause = cause
        #: workers, and nodes, that have not said yet what they run
        self.waiting = waiting
        #: a worker died before it could say: its tasks may have begun
        self.begun = False


class Succession:
    """See the module's page. Writes rows of the directory only in the ways that are named there."""

    def __init__(self, directory: ObjectDirectory) -> None:
        self._directory = directory
        self.specs: dict[bytes, Spec] = {}
        self.spec_bytes = 0
        self.evictions = 0
        #: how many specs have an object among their needs; each other node that has one is one more
        self.needed: dict[bytes, int] = {}
        #: freed objects that specs need; the value if it is inline
        self.ghosts: dict[bytes, Value | None] = {}
        self.codes: dict[bytes, Code] = {}
        self.orphans: dict[bytes, Orphans] = {}
        #: owed by a worker that has claimed their task: it may have begun, should the worker die
        self.claims: dict[bytes, None] = {}
        #: processes, also of other nodes, of which a worker here died: that may have begun what they believed to be queued, should they die too
        self.bereaved: dict[bytes, None] = {}
        #: needs of orphans and of claimed ones, held until the value is known: oid -> needs
        self.kept: dict[bytes, list[bytes]] = {}
        #: tasks have run without making these, unless what says so is still to be read: oid -> (stamp, why)
        self.doubtful: dict[bytes, tuple[int, Failed]] = {}
        #: nodes whose stores may still have a former block of what is being made anew: oid -> node
        self.left: dict[bytes, bytes] = {}
        #: what lay on nodes that are dead, by task: who asks for one of them has all made anew, by one run
        self.fallen: dict[bytes, dict[bytes, None]] = {}
        #: held in the name of owners that are to make them again and have not said that they are known: no Escape of theirs was read
        self.counted: dict[bytes, None] = {}
        #: processes that can run tasks for others, in the order of joining; True for drivers
        self.runners: dict[bytes, bool] = {}

    def statistics(self) -> dict[str, int]:
        """Sizes of the tables."""
        return {
            "specs": len(self.specs),
            "spec_bytes": self.spec_bytes,
            "ghosts": len(self.ghosts),
            "fallen": sum(map(len, self.fallen.values())),
            "orphans": sum(len(orphans.oids) for orphans in self.orphans.values()),
            "kept": len(self.kept),
            "codes": len(self.codes),
        }

    # ------------------------------------------------------------ specs

    def note(self, event: Escaped, effects: list[Effect]) -> None:
        """An owner says how objects are made."""
        code = self.codes.get(event.function_id)
        for oid in event.oids:
            if oid in self.specs:
                continue
            self.specs[oid] = event
            self.spec_bytes += len(event.lineage) + SPEC_BYTES
            for need in event.needs:
                self.needed[need] = self.needed.get(need, 0) + 1
            if code is not None:
                code.specs += 1
            if event.freed and oid not in self._directory._objects:
                self.ghosts[oid] = None
            if self._directory._mirrors.told:
                self._directory._mirrors.known(oid, effects)
        while self.spec_bytes > SPECS_BYTES_MAX:
            self.evictions += 1
            self.drop(next(iter(self.specs)))

    def note_mirror(self, item: MirrorItem) -> None:
        """What a dead home had told of an object: this node is its home now."""
        self.specs[item.oid] = item
        self.spec_bytes += len(item.lineage) + SPEC_BYTES
        for need in item.needs:
            self.needed[need] = self.needed.get(need, 0) + 1
        if item.function_id:
            self.codes.setdefault(item.function_id, Code(item.code)).specs += 1

    def drop(self, oid: bytes) -> None:
        """How an object is made is of no use any more, nor are the ghosts that only that needed, and so on."""
        spec = self.specs.pop(oid, None)
        if spec is not None:
            self.unneed(self._let_go(spec))

    def unneed(self, needs: list[bytes]) -> None:
        """Each of these has one need fewer."""
        if not needs:
            return
        waiting = deque(needs)
        while waiting:
            need = waiting.popleft()
            left = self.needed[need] - 1
            if left:
                self.needed[need] = left
                continue
            del self.needed[need]
            self._directory._needs.forget(need)
            if need in self.ghosts:
                del self.ghosts[need]
                self._directory._mirrors.gone.append(need)
                spec = self.specs.pop(need, None)
                if spec is not None:
                    waiting.extend(self._let_go(spec))

    def _let_go(self, spec: Spec) -> list[bytes]:
        """A spec was taken out: what it needs has one need fewer."""
        self.spec_bytes -= len(spec.lineage) + SPEC_BYTES
        code = self.codes.get(spec.function_id)
        if code is not None:
            code.specs -= 1
            if not code.specs:
                self._drop_code(spec.function_id)
        return spec.needs

    def on_code(self, event: CodeTold, effects: list[Effect]) -> None:
        """A process tells a function's code."""
        if event.process not in self.runners:
            return
        code = self.codes.get(event.function_id)
        if code is None:
            code = self.codes[event.function_id] = Code(event.code)
        code.senders[event.process] = None

    def _drop_code(self, function_id: bytes) -> None:
        code = self.codes[function_id]
        if not code.specs and not code.senders:
            del self.codes[function_id]

    def published(self, oid: bytes, former: Value | None, value: Value, effects: list[Effect]) -> None:
        """A value is known, perhaps in the place of a `former` one: an inline one cannot be lost; one with refs inside can be with this node."""
        if type(former) is Stored:
            self.left[oid] = former.node
        if type(value) in (bytes, Containing) and self._directory._mirrors.told:
            self._directory._mirrors.known(oid, effects)
        if type(value) is not Stored and type(value) is not Containing and oid in self.specs:
            self.drop(oid)
        self.doubtful.pop(oid, None)
        self.claims.pop(oid, None)
        self.counted.pop(oid, None)
        self._release_kept(oid)
        self._forget_fallen(oid)
        self.forget_left(oid, value, effects)

    def forget_left(self, oid: bytes, value: Value | None, effects: list[Effect]) -> None:
        """What was lost has another value, or is freed: where it could not be had from, it may still lie."""
        node = self.left.pop(oid, b"")
        if not node or (type(value) is Stored and value.node == node):
            return
        if node == self._directory._node_id:
            effects.append(FreeStored(oid))
        elif node in self._directory._nodes:
            effects.append(FreeStored(oid, node))

    def freed(self, oid: bytes, value: Value | None, home: bytes = b"") -> None:
        """Nobody holds an object any more, here, if it is of another `home`."""
        self.doubtful.pop(oid, None)
        self.claims.pop(oid, None)
        self.counted.pop(oid, None)
        self._release_kept(oid)
        self._forget_fallen(oid)
        if oid in self.needed:
            inline = value if type(value) is bytes else None
            if inline is not None or oid in self.specs:
                self.ghosts[oid] = inline
                return
            if home:
                self._directory._needs.let_go(oid, home)
        self._directory._mirrors.gone.append(oid)
        self.drop(oid)

    def fell(self, oid: bytes) -> None:
        """The node on which an object lay is dead. It is made anew when somebody asks for it."""
        if oid in self.specs:
            self.fallen.setdefault(oid[:TASK_ID_BYTES], {})[oid] = None

    def _forget_fallen(self, oid: bytes) -> None:
        if self.fallen:
            fallen = self.fallen.get(oid[:TASK_ID_BYTES])
            if fallen is not None and fallen.pop(oid, self) is None and not fallen:
                del self.fallen[oid[:TASK_ID_BYTES]]

    def revive(self, oid: bytes, row: ObjectRow, effects: list[Effect]) -> bool:
        """Whether a ghost is asked for: it becomes an object again."""
        if oid not in self.ghosts:
            return False
        value = self.ghosts.pop(oid)
        row.known = True
        row.value = value
        if not row.rows:  # who asks may die before it holds it
            row.stamp = self._directory._issued
            self._directory._candidates[oid] = None
        if value is None:
            self.make_anew([oid], "it was freed, as nobody referred to it any more", True, effects)
        else:
            self._directory._answer_waiters(oid, row, value, effects)
        return True

    # ------------------------------------------------------------ an owner dies

    def joined(self, process: bytes, is_driver: bool) -> None:
        """A process could run tasks for others."""
        self.runners.setdefault(process, is_driver)

    def died(self, event: ProcessDied, owed: list[bytes], effects: list[Effect]) -> None:
        """A process is dead; its holds still count."""
        process = event.process
        self.runners.pop(process, None)
        for function_id in [each for each, code in self.codes.items() if process in code.senders]:
            del self.codes[function_id].senders[process]
            self._drop_code(function_id)
        objects = self._directory._objects
        for oid in owed:
            objects[oid].owner = b""
            self.keep(oid)
        # Also when nothing is owed: what they store in its name must be known before what is of no use is freed (OrphansSettled).
        waiting = {each: None for each in event.executors if each in self.runners}
        effects.extend(AskClaims(executor, process) for executor in waiting)
        nodes = [node for node in event.nodes if node in self._directory._nodes] if owed else []
        effects.extend(AskClaimsOf(node, process, False) for node in nodes)
        waiting.update(dict.fromkeys(nodes))
        orphans = self.orphans[process] = Orphans(owed, waiting, event.cause)
        orphans.begun = self.bereaved.pop(process, self) is None
        self.bereaved.update(dict.fromkeys(event.submitters))
        for other, orphans in list(self.orphans.items()):
            if process in orphans.waiting:
                del orphans.waiting[process]
                orphans.begun = True
            if not orphans.waiting:
                self._settle(other, effects)

    def keep(self, oid: bytes) -> None:
        """See that what makes an orphan is still there when it is needed."""
        spec = self.specs.get(oid)
        if spec is None or oid in self.kept:
            return
        self.kept[oid] = [need for need in spec.needs if need in self._directory._objects]
        for need in self.kept[oid]:
            row = self._directory._objects[need]
            row.rows += 1
            row.stamp = self._directory._issued

    def _release_kept(self, oid: bytes) -> None:
        directory = self._directory
        for need in self.kept.pop(oid, ()):
            row = directory._objects[need]
            row.rows -= 1
            row.stamp = directory._issued
            if not row.rows:
                directory._candidates[need] = None

    def claimed(self, event: Claimed, effects: list[Effect]) -> None:
        """A worker says which tasks of a dead process it has."""
        orphans = self.orphans.get(event.process)
        if orphans is None or event.worker not in self.runners:
            return
        directory = self._directory
        task_ids = set(event.task_ids)
        for oid in orphans.oids:
            row = directory._objects.get(oid)
            if row is not None and row.value is None and not row.owner and oid[:TASK_ID_BYTES] in task_ids:
                row.owner = event.worker
                self.claims[oid] = None
                directory._owed[event.worker][oid] = None
        orphans.begun = orphans.begun or event.begun
        self._has_answered(event.process, orphans, event.worker, effects)

    def claimed_abroad(self, event: ClaimsTold, effects: list[Effect]) -> None:
        """Another node says which tasks of a dead process of this node its workers have."""
        orphans = self.orphans.get(event.of)
        if orphans is None or event.node not in orphans.waiting:
            return
        directory = self._directory
        task_ids = set(event.task_ids)
        taken = []
        for oid in orphans.oids:
            row = directory._objects.get(oid)
            if row is not None and row.value is None and not row.owner and oid[:TASK_ID_BYTES] in task_ids:
                directory._claims.owe(oid, row, event.node)
                taken.append(oid)
        if taken:
            effects.append(TakeClaims(event.node, event.of, taken))
        orphans.begun = orphans.begun or event.begun
        self._has_answered(event.of, orphans, event.node, effects)

    def unanswered(self, node: bytes, process: bytes, effects: list[Effect]) -> None:
        """A node will not say what its workers have of a dead process of this node."""
        orphans = self.orphans.get(process)
        if orphans is not None and node in orphans.waiting:
            orphans.begun = True
            self._has_answered(process, orphans, node, effects)

    def _has_answered(self, process: bytes, orphans: Orphans, who: bytes, effects: list[Effect]) -> None:
        orphans.waiting.pop(who, None)
        if not orphans.waiting:
            self._settle(process, effects)

    def _settle(self, process: bytes, effects: list[Effect]) -> None:
        """It is known what runs: what nobody claims is made anew."""
        orphans = self.orphans.pop(process)
        reason = f"its owner died before its value was known: {orphans.cause}"
        self.make_anew(orphans.oids, reason, orphans.begun, effects)
        effects.append(OrphansSettled(process))

    # ------------------------------------------------------------ making anew

    def lost(self, event: Lost, effects: list[Effect]) -> None:
        """An object's bytes are gone: its owner makes it anew, or a runner does, or whoever asks is told why not."""
        directory = self._directory
        oid = event.oid
        row = directory._objects.get(oid)
        if row is None:
            return
        value = row.value
        if value is None:
            if row.owner and oid in directory._owed.get(row.owner, ()):
                if row.owner in self.runners and row.owner in (row.waiters or ()):
                    self._remake(
                        oid, row, row.owner, event.reason, effects
                    )  # it had escaped while its owner asked for it
                return  # it is being made (anew) already
        elif type(value) is not Stored or value.node != (event.node or directory._node_id):
            directory._copies.place_lost(oid, event.node or directory._node_id, effects)
            return  # a copy of it
        if directory._copies.instead(oid, row, effects):
            return
        if type(value) is Stored and value.node != directory._node_id:
            self.left[oid] = value.node
        owner = row.owner or event.owner
        has_spec = oid in self.specs
        if row.abroad is not None:
            if self._lost_for_home(oid, row, row.abroad, event, effects):
                return
            has_spec = False
        elif owner in self.runners and not (has_spec and (is_put(oid) or oid not in directory._held[owner])):
            self._remake(oid, row, owner, event.reason, effects)
            return
        if has_spec:
            oids = [oid, *self._fallen_with(oid)]
            for each in oids:
                directory._objects[each].value = None
            self.make_anew(oids, self._where(event.reason), True, effects)
            for each in oids:
                self._tell_waiters_remade(each, directory._objects[each], effects)
            return
        failed = directory._lost(oid, event.reason)
        if value is not None:
            row.value = failed
        directory._answer_waiters(oid, row, failed, effects)
        if not row.known:
            directory._drop_if_idle(oid, row)

    def _fallen_with(self, oid: bytes) -> list[bytes]:
        """Other results of the task of a lost one that are lost for certain, and that no living owner will make."""
        directory = self._directory
        found = []
        for each in self.fallen.get(oid[:TASK_ID_BYTES], ()):
            row = directory._objects[each]
            place = row.value
            if each == oid or each not in self.specs or is_put(each) != is_put(oid) or type(place) is not Stored:
                continue
            owned = not is_put(each) and row.owner in self.runners and each in directory._held[row.owner]
            if not owned and directory._holds_abroad.cause_of_death(place.node) is not None:
                found.append(each)
        return found

    def _lost_for_home(self, oid: bytes, row: ObjectRow, abroad: Abroad, event: Lost, effects: list[Effect]) -> bool:
        """Whether a lost object of another home is asked for there, for those who wait here: it lay in this node's store."""
        directory = self._directory
        if event.node or row.waiters is None or directory._holds_abroad.cause_of_death(abroad.home) is not None:
            return False
        abroad.asked = True
        effects.append(SendResolveFor(abroad.home, [oid], abroad.stale, directory._node_id))
        return True

    def _remake(self, oid: bytes, row: ObjectRow, owner: bytes, reason: str, effects: list[Effect]) -> None:
        """A lost object's owner lives: it owes the value again."""
        row.value = None
        row.owner = owner
        self._directory._owed[owner][oid] = None
        held = not row.known
        if held:  # it had never left its owner, who holds it
            row.known = True
            self._directory._asked.pop(oid, None)
            self._directory._count(self._directory._held[owner], (oid,), 1)
            self.counted[oid] = None
        effects.append(SendRemake(owner, oid, self._where(reason), held))
        self._tell_waiters_remade(oid, row, effects)

    def _where(self, reason: str) -> str:
        return f"{reason} (node {self._directory._node_id.hex()[:8]})"

    def _tell_waiters_remade(self, oid: bytes, row: ObjectRow, effects: list[Effect]) -> None:
        effects.extend(SendBeingRemade(process, oid) for process in row.waiters or ())

    def can_be_remade(self, oid: bytes, row: ObjectRow) -> bool:
        """Whether a lost value is made anew for whoever asks for it."""
        return oid in self.specs or row.owner in self.runners

    def make_anew(self, oids: list[bytes], reason: str, begun: bool, effects: list[Effect]) -> None:
        """Hand the tasks of objects without a value, and of what those need, to runners."""
        directory = self._directory
        objects = directory._objects
        batches: dict[tuple[bytes, bytes], tuple[list[bytes], Spec, bool]] = {}  # by runner and lineage
        todo = deque((oid, begun or oid in self.claims) for oid in oids)
        while todo:
            oid, may_have_begun = todo.popleft()
            row = objects.get(oid)
            if row is None or row.value is not None or row.abroad is not None:
                continue
            if row.owner and oid in directory._owed.get(row.owner, ()):
                continue  # somebody makes it
            spec = self.specs.get(oid)
            runner = self._runner(oid, row)
            if spec is None or not runner:
                self._fail(oid, row, reason, spec, effects)
                continue
            row.known = True
            directory._asked.pop(oid, None)
            self.claims.pop(oid, None)
            row.owner = runner
            directory._owed[runner][oid] = None
            # All results of one task go together; what it puts is told apart by its name.
            batches.setdefault((runner, spec.lineage_of(oid)), ([], spec, may_have_begun))[0].append(oid)
            for need in spec.needs:
                home = directory._needs.homes.get(need, b"")
                if home and directory._foreign_row(need, home, effects) is not None:
                    directory._take(home, [need], effects)
                needed = objects.get(need)
                if need in self.ghosts:
                    value = self.ghosts.pop(need)
                    if needed is None:
                        needed = objects[need] = ObjectRow()
                    if needed.abroad is None:
                        needed.known = True
                    if needed.value is None:
                        needed.value = value
                if needed is not None and needed.value is None and needed.known:
                    todo.append((need, True))
        for (runner, lineage), (made, spec, may_have_begun) in batches.items():
            held = directory._held[runner]
            directory._count(held, [oid for oid in made if not is_put(oid)], 1)
            directory._count(held, spec.needs, 1)
            for oid in made:
                self._release_kept(oid)
            code = self.codes.get(spec.function_id)
            effects.append(
                Adopted(runner, made, reason, may_have_begun, lineage, spec.needs, code.text if code else b"")
            )

    def _runner(self, oid: bytes, row: ObjectRow) -> bytes:
        """Who runs the task that makes an object; empty for nobody."""
        if row.owner in self.runners:
            return row.owner
        holder = first = b""
        for process, is_driver in self.runners.items():
            if is_driver:
                return process
            first = first or process
            if not holder and oid in self._directory._held[process]:
                holder = process
        return holder or first

    def _fail(self, oid: bytes, row: ObjectRow, reason: str, spec: Spec | None, effects: list[Effect]) -> None:
        why = (
            "no process is left on its node that could make it"
            if spec is not None
            else "how it was made is not recorded (what shoal.put stores is made by no task, and needs copies=2 to outlive its node; "
            "and max_retries=0 forbids to run one again)"
        )
        what = f"object {oid.hex()} is lost: {reason}. It cannot be made again: {why}"
        row.value = Failed(self._directory._dump_error(OwnerDiedError(what, object_id=oid.hex())))
        self._release_kept(oid)
        self._directory._answer_waiters(oid, row, row.value, effects)

    def on_not_made(self, event: NotMadeTold, effects: list[Effect]) -> None:
        """A runner has run a task; what it should have put may still stand in another process's socket. Or an owner had let go what it was to
        make again: it is handed to a runner, which may be the same."""
        directory = self._directory
        for oid in event.oids:
            row = directory._objects.get(oid)
            if row is None or row.value is not None or row.owner != event.process:
                continue
            if self.counted.pop(oid, self) is None:
                directory._count(directory._held[event.process], (oid,), -1)
            if is_put(oid):
                self.doubtful[oid] = (directory._issued, event.error)
                continue
            directory._owed[event.process].pop(oid, None)
            if oid in self.specs:
                self.make_anew([oid], "its owner had let it go when it was lost", True, effects)
            else:
                row.value = event.error
                directory._answer_waiters(oid, row, event.error, effects)

    def swept(self, token: int, effects: list[Effect]) -> None:
        """All sockets were seen empty: what was not put by then never will."""
        for oid, (stamp, error) in list(self.doubtful.items()):
            if stamp < token:
                del self.doubtful[oid]
                directory = self._directory
                row = directory._objects.get(oid)
                if row is not None and row.value is None:
                    directory._owed.get(row.owner, {}).pop(oid, None)
                    row.value = error
                    directory._answer_waiters(oid, row, error, effects)


def is_put(oid: bytes) -> bool:
    """Whether a task (or a driver) has put it, instead of returning it."""
    return bool(oid[TASK_ID_BYTES] & 0x80)


def would_have_saved(oid: bytes) -> str:
    """What to say to users whose object is lost with its node."""
    if not is_put(oid):
        return ""
    return (
        ". shoal.put(value, copies=2) would have kept it on another node; what a task has put is also made anew when the task may run again "
        "(max_retries), what drivers and actors have put is not"
    )


HANDLERS: dict[type, Any] = {
    CodeTold: lambda directory, event, effects: directory._succession.on_code(event, effects),
    NotMadeTold: lambda directory, event, effects: directory._succession.on_not_made(event, effects),
    Lost: lambda directory, event, effects: directory._succession.lost(event, effects),
}
