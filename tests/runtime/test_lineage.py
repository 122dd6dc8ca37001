"""The table of what could run again, beside a twin that looks at everything at once."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.protocol.messages import Stored
from shoal.runtime.lineage import RECORD_BYTES, LineageTable
from shoal.runtime.objects import ObjectEntry
from shoal.runtime.spares import is_worth_a_copy
from shoal.runtime.tasks import PendingTask


class World:
    """Tasks with one result each, and the table that keeps them."""

    def __init__(self, bytes_max: int = 1 << 40) -> None:
        self.unused: list[ObjectEntry] = []
        self.table = LineageTable(bytes_max, self.unuse)
        self.entries: dict[int, ObjectEntry] = {}
        self.inputs: dict[int, list[int]] = {}
        self.live: set[int] = set()

    def unuse(self, entries: Iterable[ObjectEntry]) -> None:
        for entry in entries:
            entry.count -= 1
            self.unused.append(entry)

    def pend(self, number: int) -> ObjectEntry:
        entry = self.entries[number] = ObjectEntry(name(number) + b"\0\0\0\1")
        return entry

    def end(
        self, number: int, inputs: list[int], stored: bool = True, args: Any = b"args", max_retries: int = 3
    ) -> None:
        """A task ends with a stored result, or an inline one."""
        entry = self.entries.get(number) or self.pend(number)
        self.inputs[number] = inputs
        self.live.add(number)
        if stored:
            held = [self.entries[each] for each in inputs]
            if type(args) is Stored:
                argument = ObjectEntry(args.oid)
                held.append(argument)
            template: Any = SimpleNamespace(max_retries=max_retries, estimate_s=0.25)
            task = SimpleNamespace(task_id=name(number), held=held, args=args, template=template)
            self.table.keep(task, entry)  # type: ignore[arg-type]
            entry.value = Stored(entry.oid, 1, 0, 1, 1)
        else:
            entry.value = b"value"

    def free(self, number: int) -> None:
        self.live.discard(number)
        entry = self.entries[number]
        if type(entry.value) is Stored:
            self.table.forget(entry.oid)
            entry.value = None

    def recorded(self) -> set[int]:
        return {int.from_bytes(task_id, "big") for task_id in self.table.records}

    def needed(self) -> set[int]:
        """What stored results that live are made from, directly or not."""
        found: set[int] = set()
        look = [number for number in self.live if type(self.entries[number].value) is Stored]
        while look:
            number = look.pop()
            if number not in found:
                found.add(number)
                look += [each for each in self.inputs.get(number, []) if type(self.entries[each].value) is not bytes]
        return found


def name(number: int) -> bytes:
    return number.to_bytes(16, "big")


def test_a_result_that_goes_takes_its_record_along() -> None:
    world = World()
    world.end(1, [])
    assert world.recorded() == {1} and world.table.bytes == RECORD_BYTES + 4
    world.free(1)
    assert world.recorded() == set() and world.table.statistics() == {
        "records": 0,
        "bytes": 0,
        "evictions": 0,
        "promised": 0,
        "borrowed": 0,
    }


def test_inputs_stay_with_what_was_made_from_them() -> None:
    world = World()
    world.end(1, [])
    world.end(2, [], stored=False)
    world.end(3, [1, 2])
    world.free(1)
    world.free(2)
    assert world.recorded() == {1, 3}
    assert world.table.bytes == 2 * (RECORD_BYTES + 4) + len(b"value")
    world.free(3)
    assert world.recorded() == set()


def test_an_input_that_is_still_pending() -> None:
    """A ref nested in the arguments: the task may end before what the ref refers to."""
    world = World()
    world.pend(1)
    world.end(2, [1])
    world.end(1, [])
    world.free(1)
    assert world.recorded() == {1, 2}
    world.free(2)
    assert world.recorded() == set() and world.table.statistics()["promised"] == 0


def test_a_chain_longer_than_the_stack_goes_at_once() -> None:
    world = World()
    world.end(0, [])
    for number in range(1, 20_000):
        world.end(number, [number - 1])
        world.free(number - 1)
    assert len(world.table.records) == 20_000
    world.free(19_999)
    assert not world.table.records and world.table.bytes == 0


def test_stored_arguments_are_used_as_long_as_the_record() -> None:
    world = World()
    world.end(1, [], args=Stored(b"a" * 20, 1, 0, 5000, 1))
    record = world.table.records[name(1)]
    assert record.argument is not None and record.argument.count == 2 and record.bytes == RECORD_BYTES + 5000
    argument = record.argument
    world.free(1)
    assert world.unused == [argument] and argument.count == 1


def test_what_may_run_once_keeps_only_its_name() -> None:
    world = World()
    world.end(1, [], args=b"x" * 5000, max_retries=0)
    assert world.table.bytes == RECORD_BYTES and not world.table.records[name(1)].inputs


def test_the_oldest_are_evicted_and_keep_their_names() -> None:
    world = World(bytes_max=10 * (RECORD_BYTES + 100))
    for number in range(14):
        world.end(number, [], args=b"x" * 1100)
    table = world.table
    assert table.bytes <= 10 * (RECORD_BYTES + 100) and table.evictions > 0
    evicted = [number for number in range(14) if table.records[name(number)].evicted]
    assert evicted == list(range(len(evicted)))
    for number in range(14):
        world.free(number)
    assert table.statistics()["records"] == 0 and table.bytes == 0


def test_a_rerun_keeps_its_record() -> None:
    world = World(bytes_max=RECORD_BYTES * 2)
    world.end(1, [], args=b"x" * 600)
    record = world.table.records[name(1)]
    record.run = object()
    world.end(2, [], args=b"x" * 600)
    world.free(1)
    assert world.recorded() == {1, 2} and not record.evicted
    record.run = None
    world.table.drop_idle(record)
    assert world.recorded() == {2}


@settings(max_examples=100)
@given(st.data())
def test_records_are_what_live_results_were_made_from(data: st.DataObject) -> None:
    world = World()
    pending: list[int] = []
    for number in range(data.draw(st.integers(1, 25))):
        step = data.draw(st.integers(0, 3))
        if step == 3:
            world.pend(number)
            pending.append(number)
        else:
            # Whoever is given as input lives at that time.
            usable = sorted(world.live) + pending
            inputs = data.draw(st.lists(st.sampled_from(usable), max_size=4)) if usable else []
            world.end(number, inputs, stored=step > 0)
        if pending and data.draw(st.booleans()):
            last = pending.pop()
            world.end(last, [], stored=data.draw(st.booleans()))
        if world.live and data.draw(st.booleans()):
            world.free(data.draw(st.sampled_from(sorted(world.live))))
        assert world.recorded() == world.needed() - set(pending)
    for number in list(world.live):
        world.free(number)
    assert not world.table.records and world.table.bytes == 0
    if not pending:
        assert world.table.statistics()["promised"] == 0


def reruns(world: World, number: int) -> set[int]:
    """What runs again when all that is not spare is lost, and a live result is wanted."""
    found: set[int] = set()
    look = [number]
    while look:
        each = look.pop()
        record = world.table.records.get(name(each))
        if each in found or record is None or record.spare is not None:
            continue
        found.add(each)
        look += world.inputs[each]
    return found


@settings(max_examples=60)
@given(st.data())
def test_spares_that_are_superseded_save_nothing(data: st.DataObject) -> None:
    world = World()
    freed: list[Any] = []
    world.table._free_spare = freed.append
    for number in range(data.draw(st.integers(1, 30))):
        usable = sorted(world.live)
        inputs = data.draw(st.lists(st.sampled_from(usable), max_size=3)) if usable else []
        world.end(number, inputs)
        record = world.table.records[name(number)]
        known = [world.table.records[name(each)] for each in inputs]
        assert record.cost_s == 0.25 + max((0.0 if need.spare else need.cost_s for need in known), default=0.0)
        if data.draw(st.booleans()):
            record.spare = Stored(world.entries[number].oid, 1, 0, 1, 1)
            before = {live: reruns(world, live) for live in world.live}
            for former in world.table.superseded(record):
                assert former is not record
                former.spare = None
            assert {live: reruns(world, live) for live in world.live} == before
        for live in data.draw(st.lists(st.sampled_from(sorted(world.live)), max_size=3, unique=True)):
            world.free(live)
    spares = [record for record in world.table.records.values() if record.spare is not None]
    for live in list(world.live):
        world.free(live)
    assert all(record in freed for record in spares)


def test_a_chain_has_one_spare() -> None:
    world = World()
    freed: list[Any] = []
    world.table._free_spare = freed.append
    world.end(0, [])
    for number in range(1, 1000):
        world.end(number, [number - 1])
        world.free(number - 1)
        record = world.table.records[name(number)]
        if record.cost_s >= 10:
            record.spare = Stored(world.entries[number].oid, 1, 0, 1, 1)
            for former in world.table.superseded(record):
                former.spare = None
    assert [number for number in range(1000) if world.table.records[name(number)].spare] == [999]
    assert world.table.records[name(999)].cost_s == 10, "since the one before"
    world.free(999)
    assert len(freed) == 1


def test_what_is_worth_a_copy() -> None:
    assert not is_worth_a_copy(0.9, 1000) and is_worth_a_copy(1.0, 1000)
    assert is_worth_a_copy(1.0, 10_000_000) and not is_worth_a_copy(1.0, 20_000_000)
    assert is_worth_a_copy(3600.0, 20_000_000_000), "an hour's work"


def test_counting_retries() -> None:
    wire: Any = SimpleNamespace(num_returns=1, options={}, number=1)
    template: Any = SimpleNamespace(wire=wire, max_retries=2)
    task = PendingTask(template, name(1), b"", None, None)
    task.count_retry()
    assert (task.attempt, task.retries_left) == (1, 1)
    wire.options = {"wanted": []}
    task.count_retry()
    assert (task.attempt, task.retries_left) == (1, 0), "a re-run repeats the attempt"
