"""The ledger of calls, and the daemon's log behind it: whatever is killed whenever, the state is that of the serial program."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal import serialization
from shoal.node.actor_logs import ActorLogs
from shoal.protocol import errors
from shoal.protocol.limits import RECOVERIES_MAX
from shoal.protocol.messages import Containing, RecordCall, Recovery, StoreCheckpoint, Stored
from shoal.runtime.replay import (
    AWAITED,
    FORGOTTEN,
    KNOWN,
    NEW,
    CallLedger,
    KeptReply,
    Record,
    ReplayGap,
    decode_record,
    decode_snapshot,
    encode,
)
from shoal.runtime.tasks import CallNames

ACTOR = b"a" * 16


def name(caller: int, number: int) -> bytes:
    """The TaskID of a caller's call."""
    return bytes([caller]) * 12 + number.to_bytes(4, "big")


def run(ledger: CallLedger, task_id: bytes, value: bytes = b"v") -> int:
    """One call from arrival to its answer."""
    assert ledger.arrive(task_id) is NEW
    index = ledger.begin(task_id)
    ledger.finish(KeptReply(task_id, value))
    return index


def record_of(index: int, task_id: bytes, argument: bytes = b"") -> Record:
    return Record(index, task_id, "m", "A.m", 1, argument)


# ---------------------------------------------------------------- the ledger


def test_a_call_is_new_once() -> None:
    ledger = CallLedger()
    assert ledger.arrive(name(1, 5)) is NEW
    assert ledger.arrive(name(1, 5)) is AWAITED
    assert ledger.begin(name(1, 5)) == 1
    assert ledger.arrive(name(1, 5)) is AWAITED
    ledger.finish(KeptReply(name(1, 5), b"five"))
    assert ledger.arrive(name(1, 5)) is KNOWN
    assert ledger.answer(name(1, 5)).value == b"five"
    ledger.settle([name(1, 5), name(9, 9)])
    assert ledger.arrive(name(1, 5)) is FORGOTTEN
    assert ledger.arrive(name(1, 6)) is NEW
    assert ledger.arrive(name(2, 1)) is NEW


def test_a_cancelled_call_may_come_again() -> None:
    ledger = CallLedger()
    assert ledger.arrive(name(1, 1)) is NEW
    ledger.withdraw(name(1, 1))
    assert ledger.arrive(name(1, 1)) is NEW


def test_a_postponed_call_may_come_after_later_ones_also_in_another_life() -> None:
    ledger = CallLedger()
    assert ledger.arrive(name(1, 1)) is NEW
    ledger.postpone(name(1, 1))
    run(ledger, name(1, 2))
    written = decode_record(encode(Record(2, name(1, 3), "m", "A.m", 1, b"", None, ledger.postponed())))
    snapshot = decode_snapshot(encode(ledger.snapshot(0)))
    for records in ([], [written]):
        following = CallLedger()
        following.restore(snapshot, records)
        for record in following.plan:
            following.begin(record.task_id, record.postponed)
            following.finish(KeptReply(record.task_id, b"v"))
        run(following, name(1, 1))
        assert following.postponed() == []
        assert following.arrive(name(1, 2)) is KNOWN, "an earlier call that comes late does not make later ones new"
        assert following.arrive(name(1, 3)) is (KNOWN if records else NEW)
        following.settle([name(1, 1)])
        assert following.arrive(name(1, 1)) is FORGOTTEN


def test_what_a_recorded_call_could_not_have_is_noted() -> None:
    names = CallNames(b"a" * 12)
    names.note_loss(errors.ObjectLostError("outside of a call"))
    names.active = True
    names.note_loss(errors.TaskError("f", "", ValueError("its own doing")))
    names.note_loss(errors.GetTimeoutError("as long as it was told"))
    assert names.loss == ""
    names.note_loss(errors.dependency_error(errors.OwnerDiedError("gone"), "f"))
    names.note_loss(errors.ObjectLostError("another"))
    assert names.loss == "OwnerDiedError: gone"


def test_a_replay_is_told_of_the_losses_that_the_call_had_met_with() -> None:
    noted: list[tuple[bytes, str]] = []
    names = CallNames(b"a" * 12)
    names.on_loss = lambda oid, error: noted.append((oid, str(error)))
    names.note_loss(errors.ObjectLostError("outside of a call"), b"w")
    names.active = True
    for oid in (b"x", b"y"):
        names.note_loss(errors.ObjectLostError("gone"), oid)
    names.note_loss(errors.TaskError("f", "", ValueError("its own doing")), b"z")
    names.note_loss(errors.ObjectStoreFullError("no room for a put"), b"p")
    assert noted == [(b"x", "gone"), (b"y", "gone"), (b"p", "no room for a put")]

    names.lose_again([b"x"])
    names.lost_before = {b"x": serialization.dumps_error(errors.OwnerDiedError("gone"))}
    with pytest.raises(errors.OwnerDiedError, match="gone"):
        names.lose_again([b"w", b"x"])


def test_losses_stand_behind_their_call_in_its_record() -> None:
    ledger = CallLedger()
    index = ledger.begin(name(1, 1))
    lost = Record(ledger.lose(), b"", "", "", 0, b"", loss=(b"x", b"error"))
    ledger.finish(KeptReply(name(1, 1), b"v"))
    following = CallLedger()
    records = [Record(index, name(1, 1), "m", "A.m", 1, b""), decode_record(encode(lost))]
    following.restore(None, [*records, Record(ledger.begin(name(1, 2)), name(1, 2), "m", "A.m", 1, b"")])
    assert [record.loss for record in following.plan] == [None, (b"x", b"error"), None]
    assert following.statistics()["awaited"] == 2
    assert following.arrive(name(1, 1)) is AWAITED


def test_settling_below_a_number() -> None:
    ledger = CallLedger()
    for number in range(1, 6):
        run(ledger, name(1, number))
        run(ledger, name(2, number))
    ledger.settle_below(name(1, 0)[:12], 4)
    assert [ledger.arrive(name(1, number)) for number in range(1, 6)] == [FORGOTTEN] * 3 + [KNOWN] * 2
    assert [ledger.arrive(name(2, number)) for number in range(1, 6)] == [KNOWN] * 5


def test_answers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.runtime.replay.REPLIES_KEPT_MAX", 3)
    monkeypatch.setattr("shoal.runtime.replay.REPLIES_KEPT_BYTES_MAX", 100)
    ledger = CallLedger()
    for number in range(1, 6):
        run(ledger, name(1, number))
    assert [ledger.arrive(name(1, number)) for number in (2, 3, 5)] == [FORGOTTEN, KNOWN, KNOWN]
    run(ledger, name(1, 6), b"x" * 200)
    assert ledger.arrive(name(1, 6)) is KNOWN  # the last one, whatever its size
    assert ledger.statistics()["kept"] == 1
    run(ledger, name(1, 7))
    assert ledger.arrive(name(1, 6)) is FORGOTTEN
    assert ledger.statistics()["kept_bytes"] == 1


def test_callers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.runtime.replay.CALLERS_MARKED_MAX", 2)
    ledger = CallLedger()
    run(ledger, name(1, 1))
    run(ledger, name(2, 1))
    run(ledger, name(1, 2))
    run(ledger, name(3, 1))
    assert ledger.statistics()["callers"] == 2
    ledger.settle([name(1, 1), name(1, 2), name(3, 1)])
    assert ledger.arrive(name(1, 2)) is FORGOTTEN and ledger.arrive(name(3, 1)) is FORGOTTEN


def test_refs_in_answers_are_given_back() -> None:
    ledger = CallLedger()
    ledger.arrive(name(1, 1))
    ledger.begin(name(1, 1))
    reply = KeptReply(name(1, 1), Containing(b"", [b"o" * 20]), [(b"o" * 20, b"")])
    ledger.finish(reply)
    assert not ledger.dropped
    ledger.settle([name(1, 1)])
    assert ledger.dropped == [reply]


def test_a_new_life_has_all_of_the_former() -> None:
    ledger = CallLedger()
    for number in range(1, 4):
        run(ledger, name(1, number), bytes([number]))
    snapshot = decode_snapshot(encode(ledger.snapshot(17)))
    assert snapshot.calls_made == 17
    records = [record_of(4, name(2, 1)), record_of(5, name(1, 9))]
    following = CallLedger()
    following.restore(snapshot, [decode_record(encode(record)) for record in records])
    assert following.plan == records
    assert following.arrive(name(1, 3)) is KNOWN and following.answer(name(1, 3)).value == bytes([3])
    assert following.arrive(name(2, 1)) is AWAITED
    for record in following.plan:
        assert following.begin(record.task_id) == record.index
        following.finish(KeptReply(record.task_id, b""))
    assert following.arrive(name(1, 8)) is FORGOTTEN
    assert following.arrive(name(1, 10)) is NEW


@pytest.mark.parametrize("indexes", [[2], [1, 3], [1, 1], [0]])
def test_a_gap_is_seen(indexes: list[int]) -> None:
    with pytest.raises(ReplayGap, match="missing"):
        CallLedger().restore(None, [record_of(index, name(1, index)) for index in indexes])


# ---------------------------------------------------------------- the daemon's log


def test_lives_on_other_nodes_count_when_an_actor_that_recovers_again_and_again_is_given_up() -> None:
    logs = ActorLogs()
    logs.begin(ACTOR, 12)
    logs.put(ACTOR, 12, 0, b"state", [b"call 1"], [], vain=RECOVERIES_MAX)
    first = logs.recovery(ACTOR)
    assert first is not None and not first.problem
    logs.begin(ACTOR, 13)
    last = logs.recovery(ACTOR)
    assert last is not None and f"died {RECOVERIES_MAX + 1} times in a row" in last.problem


def recorded(logs: ActorLogs, index: int, incarnation: int = 1, refs: list[bytes] | None = None) -> bool:
    return logs.record(RecordCall(ACTOR, incarnation, index, bytes([index]), refs or [], []))


def test_a_checkpoint_replaces_records_and_gives_back_what_they_held() -> None:
    logs = ActorLogs()
    assert logs.begin(ACTOR, 1)
    assert logs.recovery(ACTOR) is None  # its constructor has not returned
    stored = Stored(b"s" * 20, 1, 0, 10, 1)
    assert logs.checkpointed(StoreCheckpoint(ACTOR, 1, 0, stored, [b"r0"])).refs == []
    for index in (1, 2, 3):
        assert recorded(logs, index, refs=[b"r%d" % index])
    gone = logs.checkpointed(StoreCheckpoint(ACTOR, 1, 2, b"state", [b"r9"]))
    assert (gone.refs, gone.stored) == ([b"r0", b"r1", b"r2"], [b"s" * 20])
    assert not logs.begin(ACTOR, 2)
    recovery = logs.recovery(ACTOR)
    assert recovery == Recovery(2, b"state", [bytes([3])])
    assert logs.drop(ACTOR) and not logs.drop(ACTOR)


def test_what_was_brought_from_another_node_goes_with_the_next_checkpoint() -> None:
    logs = ActorLogs()
    checkpoint, argument = Stored(b"c" * 20, 1, 0, 10, 1), Stored(b"a" * 20, 1, 64, 10, 1)
    logs.begin(ACTOR, 2)
    logs.put(ACTOR, 2, 5, checkpoint, [b"6"], [argument])
    assert logs.recovery(ACTOR) == Recovery(5, checkpoint, [b"6"], "", [argument])
    log = logs.get(ACTOR)
    assert log is not None and sorted(log.stored()) == [argument.oid, checkpoint.oid]
    gone = logs.checkpointed(StoreCheckpoint(ACTOR, 2, 6, b"state", []))
    assert sorted(gone.stored) == [argument.oid, checkpoint.oid]
    assert logs.recovery(ACTOR) == Recovery(6, b"state", [])
    logs.put(ACTOR, 3, 5, b"", [b"6"], [], "the stores are lost")
    recovery = logs.recovery(ACTOR)
    assert recovery is not None and recovery.problem == "the stores are lost"


def test_what_a_former_life_says_late_is_refused() -> None:
    logs = ActorLogs()
    logs.begin(ACTOR, 1)
    logs.checkpointed(StoreCheckpoint(ACTOR, 1, 0, b"0"))
    logs.begin(ACTOR, 2)
    assert not recorded(logs, 1, incarnation=1)
    assert logs.checkpointed(StoreCheckpoint(ACTOR, 1, 7, b"7", [b"r"])).refs == [b"r"]
    recovery = logs.recovery(ACTOR)
    assert recovery is not None and recovery.index == 0 and not recovery.problem


def test_a_missing_record_is_a_problem_until_a_checkpoint_lies_behind_it() -> None:
    logs = ActorLogs()
    logs.begin(ACTOR, 1)
    logs.checkpointed(StoreCheckpoint(ACTOR, 1, 0, b"0"))
    recorded(logs, 2)
    recovery = logs.recovery(ACTOR)
    assert recovery is not None and "call 1 is missing" in recovery.problem


def test_lives_that_come_no_further_are_counted() -> None:
    logs = ActorLogs()
    logs.begin(ACTOR, 1)
    logs.checkpointed(StoreCheckpoint(ACTOR, 1, 0, b"0"))
    recorded(logs, 1)
    for incarnation in range(2, RECOVERIES_MAX + 2):
        logs.begin(ACTOR, incarnation)
        recovery = logs.recovery(ACTOR)
        assert recovery is not None and not recovery.problem
    logs.begin(ACTOR, RECOVERIES_MAX + 2)
    recovery = logs.recovery(ACTOR)
    assert recovery is not None and "kill it each time" in recovery.problem


def test_a_log_of_an_actor_that_lived_elsewhere_is_outdated() -> None:
    logs = ActorLogs()
    logs.begin(ACTOR, 1)
    assert not logs.is_outdated(ACTOR, 2)
    assert logs.is_outdated(ACTOR, 3)


# ---------------------------------------------------------------- both, under any deaths


class PlayedActor:
    """An actor whose state is the list of what it was told, over the real ledger and the real log of its daemon.

    What it says to the daemon and to its callers goes through buffers that are flushed daemon first, and die with it.
    """

    def __init__(self, logs: ActorLogs, incarnation: int, interval: int) -> None:
        self.logs, self.incarnation, self.interval = logs, incarnation, interval
        self.ledger = CallLedger()
        self.state: list[int] = []
        self.since = 0
        self.to_daemon: list[RecordCall | StoreCheckpoint] = []
        self.replies: list[tuple[bytes, bytes]] = []
        logs.begin(ACTOR, incarnation)
        recovery = logs.recovery(ACTOR)
        if recovery is None:
            self.checkpoint()
            return
        assert not recovery.problem
        assert type(recovery.checkpoint) is bytes
        snapshot_bytes, _, state = recovery.checkpoint.partition(b"|state|")
        self.state = list(state)
        self.ledger.restore(decode_snapshot(snapshot_bytes), map(decode_record, recovery.records))

    def replay_one(self) -> bool:
        """Replay the next of the plan; whether there was one."""
        if not self.ledger.plan:
            return False
        record = self.ledger.plan.pop(0)
        assert self.ledger.begin(record.task_id) == record.index
        self.execute(record.task_id, record.arguments)
        return True

    def execute(self, task_id: bytes, argument: object) -> None:
        assert type(argument) is bytes
        self.state.append(argument[0])
        self.ledger.finish(KeptReply(task_id, bytes([len(self.state)])))
        self.replies.append((task_id, bytes([len(self.state)])))

    def call(self, task_id: bytes, argument: int) -> None:
        """A call is delivered, maybe not for the first time."""
        verdict = self.ledger.arrive(task_id)
        assert verdict is not FORGOTTEN
        if verdict is KNOWN:
            value = self.ledger.answer(task_id).value
            assert type(value) is bytes
            self.replies.append((task_id, value))
        elif verdict is NEW:
            index = self.ledger.begin(task_id)
            record = encode(record_of(index, task_id, bytes([argument])))
            self.to_daemon.append(RecordCall(ACTOR, self.incarnation, index, record))
            self.execute(task_id, bytes([argument]))
            self.since += 1
            if self.since >= self.interval:
                self.checkpoint()

    def checkpoint(self) -> None:
        self.since = 0
        state = encode(self.ledger.snapshot(0)) + b"|state|" + bytes(self.state)
        self.to_daemon.append(StoreCheckpoint(ACTOR, self.incarnation, self.ledger.index, state))

    def flush_daemon(self, count: int) -> None:
        """The daemon reads the first `count` frames."""
        for message in self.to_daemon[:count]:
            if isinstance(message, RecordCall):
                self.logs.record(message)
            else:
                self.logs.checkpointed(message)
        del self.to_daemon[:count]

    def flush(self) -> list[tuple[bytes, bytes]]:
        """Everything is written, the daemon's first."""
        self.flush_daemon(len(self.to_daemon))
        replies, self.replies = self.replies, []
        return replies


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["call", "flush", "flush_some", "settle", "kill", "replay"]), st.integers(0, 5)),
        max_size=60,
    ),
    st.integers(1, 4),
)
def test_every_call_has_one_effect_and_one_answer(steps: list[tuple[str, int]], interval: int) -> None:
    logs = ActorLogs()
    actor = PlayedActor(logs, 1, interval)
    actor.flush()
    made = [0, 0]  # calls by two callers
    unanswered: dict[bytes, int] = {}
    answers: dict[bytes, bytes] = {}
    arguments: dict[bytes, int] = {}
    unsettled: list[bytes] = []
    asked_again = True

    def hear(replies: list[tuple[bytes, bytes]]) -> None:
        for task_id, value in replies:
            assert answers.setdefault(task_id, value) == value, "one call, one answer"
            if unanswered.pop(task_id, None) is not None:
                unsettled.append(task_id)

    def settled_life() -> None:
        while actor.replay_one():
            pass
        for task_id, argument in list(unanswered.items()):
            actor.call(task_id, argument)

    for step, number in steps:
        if step == "call":
            if not asked_again:
                settled_life()  # a caller keeps its order
                asked_again = True
            caller = number % 2
            made[caller] += 1
            task_id = name(caller, made[caller])
            unanswered[task_id] = arguments[task_id] = number
            actor.call(task_id, number)
        elif step == "flush":
            hear(actor.flush())
        elif step == "flush_some":
            actor.flush_daemon(number)
        elif step == "settle":
            actor.ledger.settle(unsettled)
            unsettled.clear()
        elif step == "replay":
            actor.replay_one()
        else:
            actor = PlayedActor(logs, actor.incarnation + 1, interval)
            asked_again = bool(number)  # or it is killed again before its callers have
            if asked_again:
                settled_life()
    settled_life()
    hear(actor.flush())
    assert not unanswered
    assert len(actor.state) == sum(made)
    # The serial program: the answers say in which order the calls took effect.
    assert sorted(answers.values()) == [bytes([index + 1]) for index in range(sum(made))]
    assert all(actor.state[value[0] - 1] == arguments[task_id] for task_id, value in answers.items())
