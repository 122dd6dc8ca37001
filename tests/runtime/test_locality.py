"""The class of a task follows its inputs."""

from __future__ import annotations

import socket
import time

import pytest

from shoal.protocol.messages import KIND_TASK, LeaseGranted, Stored
from shoal.runtime.core import Runtime
from shoal.runtime.dialling import Dial
from shoal.runtime.locality import ABROAD_BYTES_MIN, HERE_BYTES_MIN
from shoal.runtime.objects import ObjectEntry
from shoal.runtime.tasks import PendingTask, Template, WorkerLease

HERE, THERE, ELSEWHERE = (bytes([65 + number]) * 16 for number in range(3))
MB = 1 << 20


@pytest.fixture
def runtime() -> Runtime:
    runtime = Runtime("driver", b"w" * 16)
    runtime.node_id = HERE
    return runtime


def template_of(runtime: Runtime, strategy: dict[str, object] | None = None) -> Template:
    klass = runtime.submitter.class_of({"CPU": 10_000}, 0, strategy or {}, {}, "f")
    return runtime.new_template(b"", b"", "f", KIND_TASK, 1, klass=klass, max_retries=3)


def chosen(runtime: Runtime, template: Template, *inputs: tuple[bytes, int] | bytes) -> Template:
    deps: list[tuple[int | str, ObjectEntry]] = []
    for index, given in enumerate(inputs):
        entry = ObjectEntry(b"o" * 20)
        entry.value = given if isinstance(given, bytes) else Stored(entry.oid, 1, 0, given[1], 1, [], given[0])
        deps.append((index, entry))
    task = PendingTask(template, b"t" * 16, b"", deps, None)
    runtime.locality.choose(task)
    return task.template


def test_large_inputs_of_another_node_make_a_class(runtime: Runtime) -> None:
    template = template_of(runtime)
    assert chosen(runtime, template, b"small", (THERE, ABROAD_BYTES_MIN - 1)) is template
    variant = chosen(runtime, template, (THERE, 4 * MB), (ELSEWHERE, 2 * MB), (HERE, 2 * MB))
    assert variant.klass is not None and variant.klass.strategy == {"locality": {THERE: 4 * MB}}
    assert variant.klass is not template.klass and variant.wire.number != template.wire.number
    assert chosen(runtime, template, (THERE, 4 * MB)) is variant, "one for all of about that size"
    assert chosen(runtime, template, (THERE, 2 * MB), (THERE, 2 * MB)) is variant, "sizes add up"
    assert chosen(runtime, template, (ELSEWHERE, 4 * MB)).klass is not variant.klass
    assert chosen(runtime, template, (THERE, 10_000 * MB)).klass.strategy == {"locality": {THERE: 256 * MB}}  # type: ignore[union-attr]
    other = template_of(runtime)
    assert chosen(runtime, other, (THERE, 4 * MB)).klass is variant.klass, "functions share classes"


def test_inputs_here_count_when_there_are_others(runtime: Runtime) -> None:
    template = template_of(runtime)
    assert chosen(runtime, template, (HERE, HERE_BYTES_MIN)) is template
    chosen(runtime, template, (THERE, MB))  # small, but there is another node
    assert chosen(runtime, template, (HERE, HERE_BYTES_MIN - 1)) is template
    assert chosen(runtime, template, (HERE, HERE_BYTES_MIN)).klass.strategy == {"locality": {HERE: HERE_BYTES_MIN}}  # type: ignore[union-attr]


def test_one_lease_serves_many_short_tasks_and_long_ones_get_more(runtime: Runtime) -> None:
    template = template_of(runtime)
    variant = chosen(runtime, template, (THERE, 64 * MB))
    klass = variant.klass
    assert klass is not None
    assert runtime.locality.leases_wanted(klass) == 0
    klass.queue.extend(PendingTask(variant, b"t" * 16, b"", [], None) for _ in range(20))
    variant.estimate_s = 0.001
    assert runtime.locality.leases_wanted(klass) == 1
    variant.estimate_s = 0.02
    assert runtime.locality.leases_wanted(klass) == 1 + int(20 * 0.02 / 0.0671)
    lease = WorkerLease(1, klass, None)  # type: ignore[arg-type]
    klass.leases[1] = lease
    variant.estimate_s = 0.001
    assert runtime.locality.leases_wanted(klass) == 0
    lease.inflight[1] = klass.queue.popleft()
    lease.progress_at = time.perf_counter() - 10
    assert runtime.locality.leases_wanted(klass) == 18, "nobody knew that they take so long"


def test_a_lease_whose_worker_is_being_dialled_counts(runtime: Runtime) -> None:
    """Or a tick meanwhile asked for another one, which was to be had where the inputs are not."""
    variant = chosen(runtime, template_of(runtime), (THERE, 64 * MB))
    klass = variant.klass
    assert klass is not None
    klass.queue.append(PendingTask(variant, b"t" * 16, b"", [], None))
    assert runtime.locality.leases_wanted(klass) == 1
    with socket.socket() as sock:
        dial = Dial(b"w", "tcp:there:1", 1, sock)
        dial.grants.append(LeaseGranted(klass.number, 1, b"w", "tcp:there:1", 1))
        runtime.submitter.dialler.dials[b"w"] = dial
        assert runtime.locality.leases_wanted(klass) == 0
        dial.is_slow = True
        assert runtime.locality.leases_wanted(klass) == 1, "it may take for ever"


def test_who_says_where_a_task_runs_is_obeyed(runtime: Runtime) -> None:
    template = template_of(runtime, {"kind": "SPREAD"})
    assert chosen(runtime, template, (THERE, 64 * MB)) is template
    runtime.locality.enabled = False
    plain = template_of(runtime)
    assert chosen(runtime, plain, (THERE, 64 * MB)) is plain
