"""put, get, and refs as arguments, in containers, in closures and inside each other."""

from __future__ import annotations

import dataclasses
import pickle
import time
from typing import Any

import pytest

import shoal

pytestmark = pytest.mark.usefixtures("shoal_session")


@shoal.remote
def same(value: Any) -> Any:
    return value


@shoal.remote
def add(a: int, b: int = 0) -> int:
    return a + b


@shoal.remote
def kind_of(value: Any) -> str:
    return type(value).__name__


@shoal.remote
def slow(value: Any, seconds: float = 0.2) -> Any:
    time.sleep(seconds)
    return value


@shoal.remote
def fail(text: str = "no") -> None:
    raise ValueError(text)


@dataclasses.dataclass
class Box:
    content: Any
    label: str = ""


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -(2**70),
        1.5,
        "",
        "text",
        b"",
        b"x" * 10,
        (1, 2),
        [1, [2]],
        {"a": {1, 2}},
        frozenset({3}),
        Box(1),
        ...,
        int,
        len,
    ],
    ids=repr,
)
def test_values_come_back_equal(value: Any) -> None:
    assert shoal.get(shoal.put(value), timeout=60) == value
    assert shoal.get(same.remote(value), timeout=60) == value


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 16 << 10, (16 << 10) + 1, 100 << 10, (100 << 10) + 1, 3 << 20])
@pytest.mark.parametrize("make", [bytes, bytearray], ids=["bytes", "bytearray"])
def test_bytes_of_every_size(size: int, make: Any) -> None:
    value = make(bytes(range(251)) * (size // 251 + 1))[:size]
    for back in (shoal.get(shoal.put(value), timeout=60), shoal.get(same.remote(value), timeout=10)):
        assert type(back) is type(value)
        assert back == value
    assert shoal.get(same.remote(shoal.put(value)), timeout=60) == value


def test_each_get_makes_a_value_of_its_own() -> None:
    ref = shoal.put([1, 2])
    first = shoal.get(ref)
    first.append(3)
    assert shoal.get(ref) == [1, 2]


def test_put_takes_the_value_as_it_is_now() -> None:
    value = [1]
    ref = shoal.put(value)
    value.append(2)
    assert shoal.get(ref) == [1]


def test_put_refuses_refs_and_what_cannot_be_pickled() -> None:
    with pytest.raises(TypeError, match="ObjectRef"):
        shoal.put(shoal.put(1))
    with pytest.raises(TypeError, match="lock"):
        import threading

        shoal.put({"guard": threading.Lock()})


def test_get_of_lists_keeps_order_and_duplicates() -> None:
    a, b = shoal.put("a"), slow.remote("b", 0.05)
    assert shoal.get([b, a, b, a], timeout=60) == ["b", "a", "b", "a"]
    assert shoal.get([]) == []


@pytest.mark.parametrize("wrong", [1, "text", None, object()])
def test_get_of_no_ref(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="ObjectRef"):
        shoal.get(wrong)
    with pytest.raises(TypeError, match="ObjectRef"):
        shoal.get([shoal.put(1), wrong])


def test_get_of_tuples_sets_and_iterators() -> None:
    ref = shoal.put(1)
    for wrong in ((ref,), {ref}, iter([ref]), {ref: 1}):
        with pytest.raises(ValueError, match="ObjectRef"):
            shoal.get(wrong)


def test_get_times_out() -> None:
    ref = slow.remote(1, 100)
    with pytest.raises(shoal.exceptions.GetTimeoutError, match="slow"):
        shoal.get(ref, timeout=0.05)
    with pytest.raises(TimeoutError):  # Ray's GetTimeoutError is one
        shoal.get([ref], timeout=0)
    shoal.cancel(ref)


def test_get_with_timeout_zero_polls() -> None:
    ref = same.remote(3)
    deadline = time.monotonic() + 60
    while True:
        try:
            assert shoal.get(ref, timeout=0) == 3
            break
        except shoal.exceptions.GetTimeoutError:
            assert time.monotonic() < deadline
    assert shoal.get(shoal.put(1), timeout=0) == 1


@pytest.mark.parametrize("timeout", ["1", [1]])
def test_timeouts_are_numbers(timeout: Any) -> None:
    for ask in (lambda: shoal.get([], timeout=timeout), lambda: shoal.wait([shoal.put(1)], timeout=timeout)):
        with pytest.raises(TypeError, match="timeout must be a number of seconds"):
            ask()


@pytest.mark.parametrize("timeout", [-1, -0.001])
def test_negative_timeouts(timeout: float) -> None:
    ref = shoal.put(1)
    for refs in (ref, [ref]):
        with pytest.raises(ValueError, match="negative"):
            shoal.get(refs, timeout=timeout)


def test_get_raises_the_first_failure_without_waiting_for_the_rest() -> None:
    late = slow.remote(1, 100)
    with pytest.raises(ValueError, match="first"):
        shoal.get([late, fail.remote("first")], timeout=60)
    shoal.cancel(late)


def test_refs_know_their_names() -> None:
    ref = shoal.put(1)
    assert ref == ref and ref != shoal.put(1)
    assert len({ref, ref}) == 1
    assert bytes.fromhex(ref.hex()) == ref.binary()
    assert len(ref.binary()) == ref.size()
    assert ref.hex() in repr(ref)
    assert not ref.is_nil()
    assert ref
    assert ref.task_id().binary() == ref.binary()[:16]
    assert len(ref.job_id().binary()) == 4
    with pytest.raises(TypeError):
        iter(ref)  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        ref < ref  # type: ignore[operator]  # noqa: B015
    assert shoal.ObjectRef[int] is shoal.ObjectRef


def test_refs_cannot_be_pickled_elsewhere() -> None:
    with pytest.raises(TypeError, match="outside"):
        pickle.dumps(shoal.put(1))


def test_top_level_refs_become_values() -> None:
    assert shoal.get(add.remote(shoal.put(1), shoal.put(2)), timeout=60) == 3
    assert shoal.get(add.remote(shoal.put(1), b=add.remote(2)), timeout=60) == 3
    assert shoal.get(add.remote(a=slow.remote(1, 0.05), b=2), timeout=60) == 3
    ref = shoal.put(4)
    assert shoal.get(add.remote(ref, ref), timeout=60) == 8


@pytest.mark.parametrize(
    "wrap", [lambda r: [r], lambda r: (r,), lambda r: {"k": r}, lambda r: {r}, lambda r: Box(r), lambda r: [[(r,)]]]
)
def test_nested_refs_stay_refs_and_come_back_as_the_same(wrap: Any) -> None:
    ref = shoal.put("inside")

    @shoal.remote
    def look(value: Any) -> tuple[Any, list[str]]:
        found = []

        def walk(part: Any) -> None:
            if isinstance(part, shoal.ObjectRef):
                found.append(shoal.get(part))
            elif isinstance(part, dict):
                walk(list(part.values()))
            elif hasattr(part, "content"):
                walk(part.content)
            else:
                for item in part:
                    walk(item)

        walk(value)
        return value, found

    back, found = shoal.get(look.remote(wrap(ref)), timeout=60)
    assert found == ["inside"]
    assert back == wrap(ref)


def test_refs_in_closures_and_globals() -> None:
    ref = shoal.put(41)

    @shoal.remote
    def captured() -> Any:
        return shoal.get(ref) + 1

    assert shoal.get([captured.remote() for _ in range(5)], timeout=60) == [42] * 5


def test_refs_in_default_arguments() -> None:
    ref = shoal.put(5)

    @shoal.remote
    def with_default(value: Any = [ref]) -> Any:  # noqa: B006
        return shoal.get(value[0])

    assert shoal.get(with_default.remote(), timeout=60) == 5


def test_refs_inside_objects_inside_refs() -> None:
    depth = 20
    ref = shoal.put("bottom")
    for _ in range(depth):
        ref = shoal.put([ref])

    @shoal.remote
    def descend(holder: Any, steps: int) -> Any:
        value = holder
        for _ in range(steps):
            value = shoal.get(value[0])
        return value

    assert shoal.get(descend.remote(ref, depth), timeout=60) == "bottom"
    value: Any = ref
    for _ in range(depth):
        value = shoal.get(value)[0]
    assert shoal.get(value) == "bottom"


def test_tasks_returning_refs() -> None:
    @shoal.remote
    def outer(n: int) -> Any:
        return same.remote(n)

    inner = shoal.get(outer.remote(7), timeout=60)
    assert isinstance(inner, shoal.ObjectRef)
    assert shoal.get(inner, timeout=60) == 7
    assert shoal.get(shoal.get(same.remote([outer.remote(8)]))[0], timeout=60).hex()


def test_pending_refs_nested_in_arguments() -> None:
    @shoal.remote
    def fetch(refs: list[Any]) -> Any:
        return shoal.get(refs)

    assert shoal.get(fetch.remote([slow.remote(i, 0.02) for i in range(4)]), timeout=60) == [0, 1, 2, 3]


def test_errors_travel_through_borrowed_refs() -> None:
    @shoal.remote
    def fetch(refs: list[Any]) -> Any:
        return shoal.get(refs[0])

    with pytest.raises(ValueError, match="inner"):
        shoal.get(fetch.remote([fail.remote("inner")]), timeout=60)
    with pytest.raises(ValueError, match="as an argument"):
        shoal.get(same.remote(fail.remote("as an argument")), timeout=60)


def test_errors_as_values_are_only_values() -> None:
    error = shoal.get(shoal.put(ValueError("a value")))
    assert isinstance(error, ValueError)


def test_custom_reduce_with_a_ref_inside() -> None:
    ref = shoal.put(11)

    class Lazy:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __reduce__(self) -> Any:
            return Lazy, (self.inner,)

        def value(self) -> Any:
            return shoal.get(self.inner)

    @shoal.remote
    def use(lazy: Any) -> Any:
        return lazy.value(), lazy

    value, back = shoal.get(use.remote(Lazy(ref)), timeout=60)
    assert value == 11
    assert back.inner is ref


def test_many_arguments_and_many_nested_refs() -> None:
    refs = [shoal.put(i) for i in range(500)]

    @shoal.remote
    def total(*values: int) -> int:
        return sum(values)

    @shoal.remote
    def total_of(nested: list[Any]) -> int:
        return sum(shoal.get(nested))

    expected = sum(range(500))
    assert shoal.get(total.remote(*refs), timeout=60) == expected
    assert shoal.get(total_of.remote(refs), timeout=60) == expected


def test_large_arguments_by_value_and_with_refs_inside() -> None:
    ref = shoal.put("small")
    payload = b"p" * 200_000
    back = shoal.get(same.remote([payload, ref]), timeout=60)
    assert back[0] == payload
    assert back[1] is ref


def test_kind_of_arguments() -> None:
    assert shoal.get(kind_of.remote(shoal.put(1)), timeout=60) == "int"
    assert shoal.get(kind_of.remote([shoal.put(1)]), timeout=60) == "list"


def test_calls_from_many_threads() -> None:
    from concurrent.futures import ThreadPoolExecutor

    def work(n: int) -> int:
        ref = shoal.put(n)
        total: int = sum(shoal.get([add.remote(ref, i) for i in range(10)], timeout=60))
        return total

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(40))) == [10 * n + 45 for n in range(40)]
