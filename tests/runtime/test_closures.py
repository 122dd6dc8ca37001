"""The lineage of plain tasks, put together from bytes: it is what encoding the whole gives."""

from __future__ import annotations

import socket
from collections import deque
from types import SimpleNamespace
from typing import Any

import msgspec

from shoal.node.object_events import Escaped
from shoal.protocol.messages import KIND_TASK, Hold, LineageCode, TaskLineage, TaskTemplate, ToDaemon
from shoal.runtime.closures import Closures
from shoal.runtime.objects import ObjectEntry, ObjectRef, ObjectTable
from shoal.runtime.reactor import Reactor
from shoal.runtime.tasks import PendingTask, SchedulingClass, Template
from shoal.wire.framing import FrameDecoder

CODE = b"code"


def closures() -> tuple[Closures, list[Any]]:
    """Closures of a process, and what they have sent to the daemon."""
    sent: list[Any] = []
    reactor = SimpleNamespace(handlers={}, causal=SimpleNamespace(send=sent.append))
    runtime: Any = SimpleNamespace(reactor=reactor, lineage=SimpleNamespace(records={}))
    return Closures(runtime), sent


def template(max_retries: int = 3, held: list[ObjectEntry] | None = None) -> Template:
    klass = SchedulingClass(0, {"CPU": 10_000}, 1, {"kind": "SPREAD"}, {"import_path": ["/x"]}, "f")
    wire = TaskTemplate(7, b"f" * 16, "f", KIND_TASK, 1, b"job1")
    made = Template(wire, CODE, klass, max_retries, False, deque())
    made.exported = SimpleNamespace(held=held or [])
    return made


def pending(of: Template, arguments: bytes, number: int = 1) -> ObjectEntry:
    entry = ObjectEntry(number.to_bytes(16, "big") + b"\0\0\0\1")
    entry.task = PendingTask(of, entry.oid[:16], arguments, None, None)
    return entry


def test_plain_lineage_is_what_encoding_the_whole_gives() -> None:
    made, sent = closures()
    for max_retries in (0, 3, -1, 1000):
        one = template(max_retries)
        for size in (*range(40), 254, 255, 256, 5000):
            entry = pending(one, bytes(range(256))[:size] * (size // 256 or 1), size + 1)
            task: PendingTask = entry.task
            described = made.describe(entry)
            assert described == made._describe_task(task, [], None)
            lineage = msgspec.msgpack.decode(described[0], type=TaskLineage)
            assert (lineage.task_id, lineage.arguments, lineage.retries_left) == (task.task_id, task.args, max_retries)
    assert sent == [LineageCode(b"f" * 16, CODE)]


def test_what_differs_is_encoded_whole() -> None:
    made, _ = closures()
    one = template()
    assert made.describe(pending(one, b"x")) is not None
    for change in ({"attempt": 1}, {"retries_left": 2}):
        entry = pending(one, b"x")
        for name, value in change.items():
            setattr(entry.task, name, value)
        described = made.describe(entry)
        assert described is not None
        lineage = msgspec.msgpack.decode(described[0], type=TaskLineage)
        assert (lineage.attempt, lineage.retries_left) == (entry.task.attempt, entry.task.retries_left)


def test_what_a_function_captures_is_needed() -> None:
    made, _ = closures()
    captured = ObjectEntry(b"c" * 20)
    described = made.describe(pending(template(held=[captured]), b"x"))
    assert described is not None and described[1] == [captured]


def test_inline_values_cannot_be_lost() -> None:
    made, _ = closures()
    entry = pending(template(), b"x")
    entry.value = b"known"
    assert made.describe(entry) is None


def test_refs_to_tasks_of_one_template_are_told_together() -> None:
    """In one message, until another one is sent; from it each gets the lineage that it has alone."""
    made, _ = closures()
    ours, theirs = socket.socketpair()
    with theirs:
        reactor = Reactor()
        connection = reactor.add(ours, lambda connection: None, causal=True)
        table = ObjectTable(reactor, lambda entry: None, lambda name, value: None)
        table.describe, table.pattern_of = made.describe, made.pattern_of
        one, other = template(), template()
        refs = [ObjectRef(pending(one, b"argument %d" % number, number)) for number in range(1, 5)]
        for ref in refs[:3]:
            table.escape([ref])
        table.escape([ObjectRef(pending(other, b"", 9))])
        connection.send(Hold([refs[0].binary()]))
        table.escape(refs[3:])
        connection.flush()
        told = list(FrameDecoder(ToDaemon).receive_data(theirs.recv(1 << 16)))
        reactor.stop()
    first, second, hold, third = told
    assert [len(message.oids) for message in (first, second, third)] == [3, 1, 1] and type(hold) is Hold
    for message in (first, third):
        event = Escaped(b"", message.oids, message.lineage, [], b"f", False, message.arguments, message.cuts)
        for oid in message.oids:
            alone = made.describe(pending(one, b"argument %d" % oid[15], oid[15]))
            assert alone is not None and event.lineage_of(oid) == alone[0]
