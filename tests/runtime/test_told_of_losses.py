"""What its owner lost before anybody else knew it: the daemon, which counts the owner from then on, is told how it is made. And what an owner looks
at before it makes something anew: other results of the task may be lost, too. And what it says of others' objects that it made something from."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from shoal.node.object_directory import ObjectDirectory
from shoal.node.object_events import Escaped, ProcessJoined, Released
from shoal.protocol.messages import Answer, Escape, NeedLineage, NotMade, Publish, Pull, Release, Remake, Stored
from shoal.runtime.lineage import LineageTable, Record
from shoal.runtime.objects import ObjectEntry, ObjectRef, ObjectTable, SharedState
from shoal.runtime.pulling import Pulling
from shoal.runtime.remaking import Remaker, Rerun
from shoal.runtime.tasks import SchedulingClass

OID, NEED = b"t" * 16 + b"\x00\x00\x00\x01", b"n" * 16 + b"\x00\x00\x00\x01"
LOST = Remake(OID, "its file is gone", held=True)


class Owner:
    """A process whose objects are lost."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.requested: list[ObjectEntry] = []
        self.daemon: Any = SimpleNamespace(send=self.sent.append)
        reactor: Any = SimpleNamespace(
            lock=threading.RLock(), causal=self.daemon, handlers={}, has_notes=False, attend=lambda: None
        )
        self.table = ObjectTable(reactor, lambda entry: None, lambda name, value: None)
        runtime: Any = SimpleNamespace(
            objects=self.table, reactor=reactor, lineage=SimpleNamespace(records={}), role="driver"
        )
        self.remaker = Remaker(runtime)
        self.remaker.request = lambda entry, reason: self.requested.append(entry)  # type: ignore[method-assign]
        self.need = ObjectEntry(NEED)
        self.table.describe = lambda entry: (b"how", [self.need], [], b"code") if entry.oid == OID else None

    def asks_for_its_place(self) -> ObjectEntry:
        """What lay in the store, and never left this process, is not where it was."""
        entry = ObjectEntry(OID)
        entry.value = Stored(OID, 1, 0, 1000, 1, [], b"")
        self.table.resolve_again(entry)
        self.sent.clear()
        return entry


def test_the_daemon_is_told_how_it_is_made_and_what_that_needs() -> None:
    owner = Owner()
    entry = owner.asks_for_its_place()
    owner.remaker.on_remake(owner.daemon, LOST)
    assert owner.sent == [Escape([OID], b"how", [NEED], b"code"), Escape([NEED])]
    assert owner.requested == [entry]
    assert entry.shared is not None and entry.shared.escaped and entry.shared.holds == 1


def test_it_is_told_once() -> None:
    owner = Owner()
    entry = owner.asks_for_its_place()
    owner.remaker.on_remake(owner.daemon, LOST)
    owner.sent.clear()
    owner.remaker.on_remake(owner.daemon, LOST)
    assert not owner.sent and entry.shared is not None and entry.shared.holds == 1


def test_what_was_let_go_is_not_told() -> None:
    owner = Owner()
    owner.remaker.on_remake(owner.daemon, LOST)
    assert [type(each) for each in owner.sent] == [NotMade]


def test_who_ran_the_task_of_a_dead_owner_and_has_a_ref_to_the_result_does_not_know_how_it_was_made() -> None:
    """The daemon does: it told that it was given up as soon as such a worker was asked, and had the result in an argument."""
    owner = Owner()
    ref = owner.table.borrow(OID, b"")
    owner.table._write_notes()
    owner.sent.clear()
    owner.remaker.on_remake(owner.daemon, LOST)
    assert [type(each) for each in owner.sent] == [NotMade] and not owner.requested
    assert ref._entry.value is None, "it waits for it like others"


def test_an_input_that_was_just_freed_is_counted_as_ours_once_more() -> None:
    """The end of the former hold is written first: the daemon takes what it counts for escaped. It was left with -1 of it, for ever."""
    owner = Owner()
    entry = ObjectEntry(NEED)
    entry.value = b"value"
    owner.table.escape([ObjectRef(entry)])
    owner.table.unuse([entry])
    owner.table.drain_dropped()
    directory = ObjectDirectory(lambda error: repr(error).encode())
    directory.handle(ProcessJoined(b"owner"), 0.0)
    record: Any = SimpleNamespace()
    run = Rerun(record, "lost")
    owner.remaker._use(run, entry, direct=False, nested=True)
    owner.table._write_notes()
    for message in owner.sent:
        if type(message) is Escape:
            directory.handle(Escaped(b"owner", message.oids), 0.0)
        elif type(message) is Release:
            directory.handle(Released(b"owner", message.oids), 0.0)
    assert directory.holders(NEED) == {b"owner": 1}
    owner.sent.clear()
    owner.table.unuse(run.used)
    owner.table.drain_dropped()
    owner.table._write_notes()
    assert owner.sent == [Release([NEED])]


def test_what_is_known_to_its_record_only_is_let_go_when_it_was_told() -> None:
    owner = Owner()
    entry = ObjectEntry(OID)
    entry.value, entry.count = b"value", 0
    owner.remaker.runtime.lineage.records[OID[:16]] = SimpleNamespace(entries={OID: entry})  # type: ignore[assignment]
    owner.remaker.on_remake(owner.daemon, LOST)
    owner.table._write_notes()
    assert [type(each) for each in owner.sent] == [Escape, Escape, Publish, Release]
    assert owner.sent[-1] == Release([OID]) and OID not in owner.table.table


# ---------------------------------------------------------------- what is lost together


class Runner(Owner):
    """An owner of three results of one task, which lie on another node; what its re-runs are to make is noted."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[list[bytes]] = []
        task: Any = SimpleNamespace(
            task_id=OID[:16], deps=None, retries_left=3, template=SimpleNamespace(max_retries=3)
        )
        self.record = Record(task)
        runtime = self.remaker.runtime
        runtime.pulling = Pulling(runtime)
        runtime.lineage.records[OID[:16]] = self.record
        for name, value in (("lost", None), ("node_id", b"here"), ("_requests", 0), ("_answers", {})):
            setattr(runtime, name, value)
        runtime.closures = runtime.submitter = runtime.spares = SimpleNamespace(  # type: ignore[assignment]
            putters={}, pending=0, take=lambda record: None
        )
        self.daemon.send_now = self.sent.append
        del self.remaker.request  # type: ignore[attr-defined]
        self.remaker._push = lambda run: self.runs.append(list(run.wanted))  # type: ignore[method-assign]
        self.entries = [ObjectEntry(OID[:-1] + bytes([index])) for index in (1, 2, 3)]
        for entry in self.entries:
            entry.value = Stored(entry.oid, 1, 0, 1000, 1, [], b"there")
            self.record.entries[entry.oid] = entry

    def lose(self, index: int) -> None:
        entry = self.entries[index]
        assert type(entry.value) is Stored
        self.remaker.report_lost(entry, entry.value, "it cannot be had")

    def answer(self, error: list[str]) -> None:
        """The daemon answers the oldest question."""
        question = next(each for each in self.sent if type(each) is Pull)
        self.sent.remove(question)
        told, answers = self.remaker.runtime._answers[question.request]
        answers.append(Answer(question.request, None if error else {"stored": None}, error))
        told.arrived()


DEAD, ELSEWHERE = ["ObjectLost", "its node is dead"], ["NotHere", "its node lives"]


def test_what_lay_on_a_dead_node_is_made_by_the_same_run() -> None:
    owner = Runner()
    owner.lose(1)
    assert [each.look for each in owner.sent] == [True, True] and not owner.runs
    owner.answer(DEAD)
    assert not owner.runs, "it is not known yet of all"
    owner.answer(DEAD)
    assert owner.runs == [[owner.entries[index].oid for index in (1, 0, 2)]]
    assert owner.record.task.retries_left == 2 and not owner.remaker.runtime._answers


def test_what_a_living_node_may_have_is_left_alone_as_the_run_may_fail() -> None:
    owner = Runner()
    owner.lose(0)
    owner.answer(ELSEWHERE)
    owner.answer([])  # there is a copy here
    assert owner.runs == [[owner.entries[0].oid]]
    assert all(type(entry.value) is Stored for entry in owner.entries[1:])


def test_what_is_asked_for_or_freed_meanwhile_is_no_more_waited_for() -> None:
    owner = Runner()
    owner.lose(0)
    owner.lose(1)
    owner.table.free(owner.entries[2])
    assert owner.entries[2].value is None and not owner.runs
    owner.answer(DEAD)
    owner.answer(DEAD)
    assert owner.runs == [[owner.entries[index].oid for index in (0, 1)]]


# ---------------------------------------------------------------- what others own, and something was made from


def test_who_lets_go_what_something_was_made_from_says_so_first() -> None:
    owner = Owner()
    table = owner.table
    table.needed = {NEED: 1}
    entries = [table._new_borrowed(oid, 1) for oid in (NEED, OID)]
    for entry in entries:
        table.free(entry)
    table._write_notes()
    assert owner.sent == [NeedLineage([NEED]), Release([NEED, OID])]
    owner.sent.clear()
    table.free(table._new_borrowed(NEED, 1))
    table._write_notes()
    assert owner.sent == [Release([NEED])], "it is known"
    owner.sent.clear()
    table.unneed(NEED)
    table.unneed(OID)
    table._write_notes()
    assert owner.sent == [NeedLineage([NEED], True)]


def test_only_what_has_changed_in_the_end_is_said() -> None:
    owner = Owner()
    table = owner.table
    table.needed = {NEED: 1}
    table.free(table._new_borrowed(NEED, 0))
    table.unneed(NEED)
    table._write_notes()
    table.free(table._new_borrowed(NEED, 0))
    table._write_notes()
    assert owner.sent == [NeedLineage([NEED])]
    table.unneed(NEED)
    table.free(table._new_borrowed(NEED, 0))
    table._write_notes()
    assert owner.sent == [NeedLineage([NEED])], "it is needed as before"


def test_records_count_what_they_need_of_others() -> None:
    past: list[bytes] = []
    table = LineageTable(1 << 20, lambda entries: None, unneed=past.append)
    inputs = [ObjectEntry(NEED), ObjectEntry(OID), ObjectEntry(b"o" * 20)]
    for entry in inputs[:2]:
        entry.shared = SharedState(owned=False)
    inputs[1].value = b"small: it stays with the record"
    results = []
    for number in range(2):
        template: Any = SimpleNamespace(max_retries=3, estimate_s=0.0)
        task: Any = SimpleNamespace(task_id=bytes([number]) * 16, held=inputs, args=b"", template=template)
        results.append(ObjectEntry(task.task_id + OID[16:]))
        table.keep(task, results[-1])
    assert table.borrowed == {NEED: 2}
    table.forget(results[0].oid)
    assert table.borrowed == {NEED: 1} and not past
    table.forget(results[1].oid)
    assert not table.borrowed and past == [NEED]


# ---------------------------------------------------------------- what is said of it


def test_a_class_of_tasks_is_explained_in_the_name_of_the_task_that_asks() -> None:
    """It has the name of the one that asked first."""
    klass = SchedulingClass(1, {}, 0, {}, {}, "first")
    task: Any = SimpleNamespace(template=SimpleNamespace(wire=SimpleNamespace(name="second")))
    assert klass.in_name_of(task, "first (3 wait) asks for 1 A") == "second (3 wait) asks for 1 A"
    assert klass.in_name_of(task, "firstly there is no room") == "firstly there is no room"
    klass.name = ""
    assert klass.in_name_of(task, " asks for") == " asks for"
