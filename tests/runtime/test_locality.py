"""The class of a task follows its inputs."""

from __future__ import annotations

import pytest

from shoal.protocol.messages import KIND_TASK, Stored
from shoal.runtime.core import Runtime
from shoal.runtime.locality import HERE_BYTES_MIN
from shoal.runtime.objects import ObjectEntry
from shoal.runtime.tasks import PendingTask, Template

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
    assert chosen(runtime, template, b"small", (THERE, 4 * MB - 1)) is template
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


def test_who_says_where_a_task_runs_is_obeyed(runtime: Runtime) -> None:
    template = template_of(runtime, {"kind": "SPREAD"})
    assert chosen(runtime, template, (THERE, 64 * MB)) is template
    runtime.locality.enabled = False
    plain = template_of(runtime)
    assert chosen(runtime, plain, (THERE, 64 * MB)) is plain
