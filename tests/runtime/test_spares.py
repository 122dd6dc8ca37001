"""Spare copies: the daemon's answer is waited for, but not for ever. What they save is seen in tests/cluster/test_lost_nodes.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from shoal.protocol.messages import Answer, Call, Stored
from shoal.runtime import spares
from shoal.runtime.lineage import LineageTable, Record
from shoal.runtime.objects import ObjectEntry
from shoal.runtime.spares import ANSWER_S, Spares

HERE, THERE = b"h" * 16, b"t" * 16


class Bench:
    """The spares of a process, a clock, and a daemon that notes what it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.sent: list[Any] = []
        self.let_go: list[ObjectEntry] = []
        monkeypatch.setattr(spares, "perf_counter", lambda: self.now)
        self.runtime: Any = SimpleNamespace(
            reactor=SimpleNamespace(causal=SimpleNamespace(send=self.sent.append)),
            node_id=HERE,
            lost=None,
            config={"object_store_memory": 1 << 30},
            objects=SimpleNamespace(unuse=self.let_go.extend),
            _requests=0,
            _answers={},
        )
        self.spares = Spares(self.runtime)
        self.runtime.lineage = LineageTable(1 << 20, self.let_go.extend, self.spares.free)

    def result(self, number: int) -> tuple[Record, ObjectEntry]:
        """A dear result on another node has come."""
        oid = number.to_bytes(16, "big") + b"\x00\x00\x00\x01"
        entry = ObjectEntry(oid)
        entry.value = Stored(oid, 1, 0, 1000, 1, [], THERE)
        task: Any = SimpleNamespace(template=SimpleNamespace(multiple=False), task_id=oid[:16])
        record = Record(task)
        record.cost_s = 10.0
        self.runtime.lineage.records[oid[:16]] = record
        self.spares.consider(record, entry, entry.value)
        return record, entry

    def answer(self, call: Call) -> None:
        waiter, answers = self.runtime._answers[call.request]
        answers.append(Answer(call.request, {"stored": call.body["stored"]}))
        waiter.arrived()


def test_an_answer_that_does_not_come_holds_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch)
    first, first_entry = bench.result(1)
    second, second_entry = bench.result(2)
    assert [call.body["stored"].oid for call in bench.sent] == [first_entry.oid], "one at a time"
    bench.now = ANSWER_S - 1
    bench.spares.next()
    assert len(bench.sent) == 1 and not bench.let_go
    bench.now = ANSWER_S
    bench.spares.next()
    assert bench.let_go == [first_entry], "its original is not held any more"
    assert bench.sent[1].body["stored"].oid == second_entry.oid
    bench.answer(bench.sent[0])  # late: it is there, so it is of use
    assert first.spare is not None and bench.spares.copied is second_entry
    bench.answer(bench.sent[1])
    assert second.spare is not None and bench.spares.copied is None
    assert bench.let_go == [first_entry, second_entry] and not bench.runtime._answers
