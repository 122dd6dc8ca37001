"""The store's table, event by event."""

from __future__ import annotations

from typing import Any

from shoal.node import store_events as ev
from shoal.node.store_table import DISK_RETRY_S, EARLY_FREE_S, FULL_WAIT_S, TRIM_WAIT_S, StoreTable
from shoal.protocol.messages import BudgetReturned, FreeBlocks, OpenSegment, SegmentBudget, TrimBudget
from shoal.store.allocator import PAGE_BYTES, block_bytes

MEGABYTE = 1 << 20
POOL = 8 * MEGABYTE
SIZE = MEGABYTE - 64  #: payload of an object whose block is a megabyte


class Driven:
    """A table with a clock, and segments numbered 1, 2, .. for the processes."""

    def __init__(self, **options: Any) -> None:
        self.table = StoreTable(POOL, **options)
        self.now = 100.0
        self.segments: dict[bytes, int] = {}
        self.requests = 0

    def feed(self, event: ev.Event) -> list[ev.Effect]:
        effects = self.table.handle(event, self.now)
        for effect in list(effects):
            if isinstance(effect, ev.CreateSegment):
                number = len(self.segments) + 1 << 20
                self.segments[effect.process] = number
                effects += self.feed(
                    ev.SegmentCreated(effect.process, number, PAGE_BYTES, PAGE_BYTES + effect.capacity_bytes)
                )
        return effects

    def ask(self, process: bytes, need: int) -> list[ev.Effect]:
        self.requests += 1
        return self.feed(ev.BudgetAsked(process, OpenSegment(self.requests, need)))

    def seal(self, process: bytes, number: int, offset_mb: int, owner: bytes = b"owner") -> int:
        segment = self.segments[process]
        generation = (segment >> 20 << 32) + number
        offset = PAGE_BYTES + offset_mb * MEGABYTE
        self.feed(ev.ObjectsSealed(process, [(oid(number), segment, offset, SIZE, generation, owner)]))
        return generation


def oid(number: int) -> bytes:
    return number.to_bytes(20, "big")


def of_type(effects: list[ev.Effect], kind: type[Any]) -> list[Any]:
    return [effect for effect in effects if isinstance(effect, kind)]


def messages(effects: list[ev.Effect], kind: type[Any]) -> list[Any]:
    return [effect.message for effect in of_type(effects, ev.SendToWriter) if isinstance(effect.message, kind)]


def full_of_objects(driven: Driven) -> list[int]:
    """One writer with the whole pool in eight objects."""
    driven.ask(b"w", POOL)
    return [driven.seal(b"w", number, number) for number in range(8)]


def test_the_first_request_makes_a_segment_and_grants_a_step() -> None:
    driven = Driven()
    (budget,) = messages(driven.ask(b"w", 1000), SegmentBudget)
    assert budget.segment == driven.segments[b"w"] and budget.granted == MEGABYTE and budget.request == 1
    assert driven.table.available_bytes == POOL - MEGABYTE


def test_the_least_recently_used_unread_object_is_spilled() -> None:
    driven = Driven()
    generations = full_of_objects(driven)
    driven.feed(ev.ObjectUsed(oid(0)))
    driven.now += 1
    (scan,) = of_type(driven.ask(b"other", MEGABYTE), ev.ScanPins)
    assert scan.delay_s == 0
    pinned = (driven.segments[b"w"], PAGE_BYTES + 1 * MEGABYTE)
    (write,) = of_type(driven.feed(ev.PinsScanned({pinned: ["pid 5"]})), ev.WriteSpill)
    assert write.generation == generations[2]
    effects = driven.feed(ev.SpillWritten(oid(2), generations[2]))
    assert [type(effect) for effect in effects] == [ev.ListEvicting, ev.AwaitGrace]
    effects = driven.feed(ev.GraceOver([ev.BlockChecked(generations[2], [])]))
    assert [type(effect) for effect in effects] == [ev.MarkEvicted, ev.PunchRange, ev.ReportMoved] + 2 * [
        ev.SendToWriter
    ]
    assert messages(effects, FreeBlocks)[0].blocks == [(PAGE_BYTES + 2 * MEGABYTE, generations[2], True)]
    assert messages(effects, SegmentBudget)[0].granted == MEGABYTE
    assert driven.table.available_bytes == 0


def test_a_reader_that_comes_during_the_grace_keeps_the_object() -> None:
    driven = Driven()
    generations = full_of_objects(driven)
    driven.ask(b"other", MEGABYTE)
    driven.feed(ev.PinsScanned({}))
    driven.feed(ev.SpillWritten(oid(0), generations[0]))
    effects = driven.feed(ev.GraceOver([ev.BlockChecked(generations[0], ["pid 5"])]))
    assert of_type(effects, ev.UnlistEvicting) and not of_type(effects, ev.PunchRange)
    row = driven.table.row_of(oid(0))
    assert row is not None and row.state == "resident" and row.file_generation == generations[0]
    # Its file is kept: next time nothing need be written.
    (scan,) = of_type(effects, ev.ScanPins)
    assert scan.delay_s > 0
    for number in range(1, 8):
        driven.feed(ev.ObjectUsed(oid(number)))
    effects = driven.feed(ev.PinsScanned({}))
    assert not of_type(effects, ev.WriteSpill) and of_type(effects, ev.ListEvicting)


def test_an_object_asked_for_while_it_is_written_stays() -> None:
    driven = Driven()
    generations = full_of_objects(driven)
    driven.ask(b"other", MEGABYTE)
    driven.feed(ev.PinsScanned({}))
    (report,) = of_type(driven.feed(ev.ResidencyAsked(oid(0))), ev.ReportResident)
    assert report.stored.generation == generations[0]
    effects = driven.feed(ev.SpillWritten(oid(0), generations[0]))
    assert not of_type(effects, ev.ListEvicting)


def test_an_object_asked_for_while_it_goes_comes_back_under_a_new_generation() -> None:
    driven = Driven()
    generations = full_of_objects(driven)
    driven.ask(b"other", MEGABYTE)
    driven.feed(ev.PinsScanned({}))
    driven.feed(ev.SpillWritten(oid(0), generations[0]))
    assert driven.feed(ev.ResidencyAsked(oid(0))) == []
    driven.feed(ev.GraceOver([ev.BlockChecked(generations[0], [])]))
    assert driven.segments.keys() == {b"w", b"other", b""}
    effects = driven.feed(ev.BudgetGivenBack(b"other", BudgetReturned(driven.segments[b"other"], MEGABYTE)))
    (restore,) = of_type(effects, ev.RestoreObject)
    assert restore.segment == driven.segments[b""] and restore.file_generation == generations[0]
    effects = driven.feed(ev.ObjectRestored(restore.generation))
    (report,) = of_type(effects, ev.ReportResident)
    assert report.stored.generation == restore.generation != generations[0]
    assert of_type(effects, ev.ReportMoved)[0].stored == report.stored


def test_other_writers_are_asked_for_free_pages_before_anything_is_spilled() -> None:
    driven = Driven()
    driven.ask(b"idle", POOL)
    effects = driven.ask(b"busy", 2 * MEGABYTE)
    assert messages(effects, TrimBudget) == [TrimBudget(2 * MEGABYTE)]
    assert not of_type(effects, ev.ScanPins)
    effects = driven.feed(ev.BudgetGivenBack(b"idle", BudgetReturned(driven.segments[b"idle"], 2 * MEGABYTE)))
    assert messages(effects, SegmentBudget)[0].granted == 2 * MEGABYTE


def test_a_writer_that_does_not_answer_is_not_waited_for() -> None:
    driven = Driven()
    driven.ask(b"idle", POOL)
    for number in range(4):
        driven.seal(b"idle", number, number)
    (wake,) = of_type(driven.ask(b"busy", 2 * MEGABYTE), ev.Wake)
    assert wake.delay_s == TRIM_WAIT_S
    driven.now += TRIM_WAIT_S - 0.0001
    assert of_type(driven.feed(ev.Woken()), ev.ScanPins)
    assert of_type(driven.feed(ev.PinsScanned({})), ev.WriteSpill)


def test_whoever_asks_after_a_refusal_has_a_patience_of_its_own() -> None:
    driven = Driven()
    full_of_objects(driven)
    pins = {(driven.segments[b"w"], PAGE_BYTES + number * MEGABYTE): ["a reader"] for number in range(8)}
    driven.ask(b"b", MEGABYTE)
    driven.feed(ev.PinsScanned(pins))
    driven.now += FULL_WAIT_S
    (refusal,) = messages(driven.feed(ev.PinsScanned(pins)), SegmentBudget)
    assert refusal.granted == 0
    driven.now += 1.0
    driven.ask(b"b", MEGABYTE)
    assert not messages(driven.feed(ev.PinsScanned(pins)), SegmentBudget), "refused at once"
    driven.now += FULL_WAIT_S
    assert messages(driven.feed(ev.PinsScanned(pins)), SegmentBudget)


def test_a_pool_full_of_what_is_read_is_refused_with_the_readers_names() -> None:
    driven = Driven()
    full_of_objects(driven)
    driven.ask(b"other", MEGABYTE)
    pins = {(driven.segments[b"w"], PAGE_BYTES + n * MEGABYTE): ["pid 5 (driver)"] for n in range(8)}
    assert messages(driven.feed(ev.PinsScanned(pins)), SegmentBudget) == []
    driven.now += FULL_WAIT_S
    (refusal,) = messages(driven.feed(ev.PinsScanned(pins)), SegmentBudget)
    assert refusal.granted == 0
    assert "of 8.4 MB, 8.4 MB are being read (8.4 MB by pid 5 (driver))" in refusal.reason


def test_more_than_the_pool_is_refused_at_once() -> None:
    (refusal,) = messages(Driven().ask(b"w", POOL + 1), SegmentBudget)
    assert refusal.granted == 0 and "the whole store has 8.4 MB" in refusal.reason


def test_a_disk_that_refuses_is_not_tried_again_at_once() -> None:
    driven = Driven()
    generations = full_of_objects(driven)
    driven.ask(b"other", MEGABYTE)
    driven.feed(ev.PinsScanned({}))
    (scan,) = of_type(driven.feed(ev.SpillFailed(generations[0], "no space on /x")), ev.ScanPins)
    assert scan.delay_s > 0
    (refusal,) = messages(driven.feed(ev.PinsScanned({})), SegmentBudget)
    assert refusal.reason == "disk: no space on /x"
    driven.now += DISK_RETRY_S
    driven.ask(b"other", MEGABYTE)
    assert of_type(driven.feed(ev.PinsScanned({})), ev.WriteSpill)


def test_a_freed_block_is_given_back_when_nobody_reads_it() -> None:
    driven = Driven()
    generations = full_of_objects(driven)
    effects = driven.feed(ev.ObjectsFreed([(oid(3), False)]))
    assert [type(effect) for effect in effects] == [ev.MarkEvicted, ev.AwaitGrace]
    (again,) = driven.feed(ev.GraceOver([ev.BlockChecked(generations[3], ["pid 5"], taken=True)]))
    assert isinstance(again, ev.AwaitGrace) and again.delay_s > effects[1].delay_s  # type: ignore[union-attr]
    (send,) = driven.feed(ev.GraceOver([ev.BlockChecked(generations[3], [], taken=True)]))
    assert messages([send], FreeBlocks)[0].blocks == [(PAGE_BYTES + 3 * MEGABYTE, generations[3], False)]
    assert driven.table.row_of(oid(3)) is None


def test_a_block_that_its_writer_has_reused_is_never_touched() -> None:
    driven = Driven()
    generations = full_of_objects(driven)
    assert driven.feed(ev.ObjectsFreed([(oid(3), True)])) == []
    assert driven.table.row_of(oid(3)) is None
    # Reused and sealed again before the free of the former was read:
    driven.seal(b"w", 100, 4)
    assert driven.table.row_of(oid(4)) is None and driven.table.row_of(oid(100)) is not None
    assert driven.feed(ev.ObjectsFreed([(oid(4), False)])) == []
    # Taken while it was being written to disk:
    driven.ask(b"other", MEGABYTE)
    driven.feed(ev.PinsScanned({}))
    driven.feed(ev.ObjectsFreed([(oid(0), True)]))
    effects = driven.feed(ev.SpillWritten(oid(0), generations[0]))
    assert of_type(effects, ev.DeleteSpill) and not of_type(effects, ev.MarkEvicted)


def test_freed_before_sealed() -> None:
    driven = Driven()
    driven.ask(b"w", POOL)
    driven.feed(ev.ObjectsFreed([(oid(1), False)]))
    generation = driven.seal(b"w", 1, 0)
    assert driven.table.row_of(oid(1)) is None
    assert of_type(driven.feed(ev.GraceOver([ev.BlockChecked(generation, [])])), ev.SendToWriter)
    driven.feed(ev.ObjectsFreed([(oid(2), False)]))
    driven.now += EARLY_FREE_S + 1
    driven.feed(ev.ObjectsFreed([(oid(3), False)]))
    driven.seal(b"w", 2, 1)
    assert driven.table.row_of(oid(2)) is not None


def test_what_is_made_anew_is_not_taken_for_what_was_freed_before() -> None:
    """An object was freed while it lay on disk only, and what it was needed for is lost soon after. Unless its writer is dead: then who ran its task
    once more may have sealed it, in a frame that is still to be read."""
    for dies in (False, True):
        driven = Driven()
        generations = full_of_objects(driven)
        driven.ask(b"other", MEGABYTE)
        driven.feed(ev.PinsScanned({}))
        driven.feed(ev.SpillWritten(oid(0), generations[0]))
        driven.feed(ev.GraceOver([ev.BlockChecked(generations[0], [])]))
        if dies:
            driven.feed(ev.WriterDied(b"w", []))
        driven.feed(ev.ObjectsFreed([(oid(0), False)]))
        assert driven.table.row_of(oid(0)) is None
        driven.seal(b"other", 0, 0)
        assert (driven.table.row_of(oid(0)) is not None) != dies


def test_who_seals_for_itself_was_not_meant_by_what_was_freed_before() -> None:
    """An actor's replay puts once more, under the same name, what the heir of its former node has let go here."""
    driven = Driven()
    driven.ask(b"w", POOL)
    driven.feed(ev.ObjectsFreed([(oid(1), False)]))
    driven.seal(b"w", 1, 0, owner=b"w")
    assert driven.table.row_of(oid(1)) is not None
    driven.feed(ev.ObjectsFreed([(oid(1), False)]))
    assert driven.table.row_of(oid(1)) is None


def test_what_was_freed_long_before_it_is_sealed_is_another_one() -> None:
    driven = Driven()
    driven.ask(b"w", POOL)
    driven.feed(ev.ObjectsFreed([(oid(1), False)]))
    driven.now += EARLY_FREE_S + 1
    driven.seal(b"w", 1, 0)
    assert driven.table.row_of(oid(1)) is not None


def test_a_dead_writers_segment_keeps_what_was_sealed_and_not_reused() -> None:
    driven = Driven()
    driven.ask(b"w", POOL)
    generations = [driven.seal(b"w", number, number) for number in (1, 2, 4)]
    effects = driven.feed(ev.WriterDied(b"w", [generations[1]]))
    kept = [(PAGE_BYTES + n * MEGABYTE, PAGE_BYTES + (n + 1) * MEGABYTE) for n in (1, 4)]
    punched = [(effect.offset, effect.offset + effect.length_bytes) for effect in of_type(effects, ev.PunchRange)]
    assert punched == [
        (PAGE_BYTES, kept[0][0]),
        (kept[0][1], kept[1][0]),
        (kept[1][1], PAGE_BYTES + 4 * POOL),
    ]
    assert driven.table.available_bytes == POOL - 2 * block_bytes(MEGABYTE)
    driven.feed(ev.ObjectsFreed([(oid(1), False), (oid(4), False)]))
    effects = driven.feed(ev.GraceOver([ev.BlockChecked(generations[0], []), ev.BlockChecked(generations[2], [])]))
    assert of_type(effects, ev.CloseSegment) and driven.table.available_bytes == POOL


def test_a_dead_writers_requests_are_forgotten() -> None:
    driven = Driven()
    full_of_objects(driven)
    driven.ask(b"other", MEGABYTE)
    driven.feed(ev.WriterDied(b"other"))
    assert driven.table.statistics().waiting == 0
    assert driven.feed(ev.PinsScanned({})) == []


def test_an_object_made_again_replaces_the_older_copy() -> None:
    driven = Driven()
    driven.ask(b"w", MEGABYTE)
    driven.ask(b"v", MEGABYTE)
    first = driven.seal(b"w", 1, 0)
    segment = driven.segments[b"v"]
    item = (oid(1), segment, PAGE_BYTES, SIZE, 77, b"owner")
    effects = driven.feed(ev.ObjectsSealed(b"v", [item]))
    assert of_type(effects, ev.AwaitGrace)[0].generation == first
    row = driven.table.row_of(oid(1))
    assert row is not None and row.segment == segment
    driven.feed(ev.GraceOver([ev.BlockChecked(first, [])]))
    assert driven.table.row_of(oid(1)) is row


def test_what_a_process_says_of_others_segments_is_ignored() -> None:
    driven = Driven()
    driven.ask(b"w", MEGABYTE)
    number = driven.segments[b"w"]
    driven.feed(ev.ObjectsSealed(b"liar", [(oid(1), number, PAGE_BYTES, SIZE, 5, b"liar")]))
    driven.feed(ev.BudgetGivenBack(b"liar", BudgetReturned(number, MEGABYTE)))
    driven.feed(
        ev.ObjectsSealed(b"w", [(oid(2), number, 64, SIZE, 6, b"w"), (oid(3), number, PAGE_BYTES, 1 << 50, 7, b"w")])
    )
    assert driven.table.statistics().objects == 0 and driven.table.available_bytes == POOL - MEGABYTE


def test_an_unknown_object_is_absent() -> None:
    (report,) = Driven().feed(ev.ResidencyAsked(oid(1)))
    assert isinstance(report, ev.ReportAbsent) and report.lost
