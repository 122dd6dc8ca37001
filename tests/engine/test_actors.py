"""Actors of every kind of class, called in every way a handle offers."""

from __future__ import annotations

import pickle
import threading
import time
from typing import Any

import pytest

import shoal
from shoal.exceptions import ActorDiedError, ActorUnschedulableError, PendingCallsLimitExceeded, TaskError

pytestmark = pytest.mark.usefixtures("shoal_session")

WAIT_S = 60


def get(refs: Any) -> Any:
    """The values, in bounded time."""
    return shoal.get(refs, timeout=WAIT_S)


class Animal:
    """A plain base class."""

    kind = "animal"

    def __init__(self, name: str = "nobody") -> None:
        self.name = name

    def speak(self) -> str:
        return f"{self.name} is an {self.kind}"

    @staticmethod
    def legs(more: int = 0) -> int:
        return 4 + more

    @classmethod
    def class_name(cls) -> str:
        return cls.__name__

    @property
    def loud(self) -> bool:
        return True

    def __call__(self, times: int) -> str:
        return self.name * times

    def __len__(self) -> int:
        return len(self.name)

    def _private(self) -> str:
        return "private"


@shoal.remote
class Dog(Animal):
    """A decorated class with a plain base."""

    kind = "dog"

    def speak(self) -> str:
        return super().speak() + "!"


@shoal.remote
class Counter:
    def __init__(self, value: int = 0, *, step: int = 1) -> None:
        self.value = value
        self.step = step

    def add(self, count: int = 1) -> int:
        self.value += count * self.step
        return self.value

    def get(self) -> int:
        return self.value

    def fail(self, text: str = "failed") -> None:
        raise KeyError(text)

    def sleep(self, seconds: float) -> int:
        time.sleep(seconds)
        return self.value

    def items(self, count: int) -> Any:
        for index in range(count):
            self.value += 1
            yield index

    def items_then_fail(self) -> Any:
        yield 1
        raise ValueError("no more")

    @shoal.method(num_returns=2)
    def pair(self) -> tuple[int, int]:
        return self.value, self.value + 1

    def three(self) -> tuple[int, int, int]:
        return 1, 2, 3

    def on_main_thread(self) -> bool:
        return threading.current_thread() is threading.main_thread()


@shoal.remote
def later(value: Any, seconds: float = 0.2) -> Any:
    time.sleep(seconds)
    return value


@shoal.remote
def broken() -> None:
    raise ValueError("broken input")


def test_state_stays_between_calls() -> None:
    counter = Counter.remote(5, step=2)
    assert get([counter.add.remote() for _ in range(200)]) == list(range(7, 407, 2))
    assert get(counter.add.remote(count=10)) == 425


def test_inheritance_static_class_and_dunder_methods() -> None:
    dog = Dog.remote("rex")
    assert get(dog.speak.remote()) == "rex is an dog!"
    assert get(dog.legs.remote(1)) == 5
    assert get(dog.class_name.remote()) == "Dog"
    assert get(dog.__call__.remote(2)) == "rexrex"
    assert get(dog.__len__.remote()) == 3
    assert get(dog._private.remote()) == "private"


@pytest.mark.parametrize("name", ["loud", "name", "kind", "absent"])
def test_attributes_and_properties_are_not_visible(name: str) -> None:
    dog = Dog.remote("rex")
    with pytest.raises(AttributeError, match=name):
        getattr(dog, name)
    with pytest.raises(AttributeError, match="cannot be set"):
        setattr(dog, name, 1)


def test_class_cannot_be_called_nor_inherited_from() -> None:
    with pytest.raises(TypeError, match=r"Counter\.remote\(\)"):
        Counter()
    with pytest.raises(TypeError, match="plain class"):

        class Worse(Counter):  # type: ignore[misc, valid-type]
            pass

    plain = Counter.__shoal_metadata__.modified_class

    @shoal.remote
    class Better(plain):  # type: ignore[misc, valid-type]
        def twice(self) -> int:
            return 2 * self.value

    assert get(Better.remote(4).twice.remote()) == 8


def test_method_cannot_be_called_directly() -> None:
    with pytest.raises(TypeError, match=r"add\.remote\(\)"):
        Counter.remote().add()


def test_signatures_are_checked_by_the_caller() -> None:
    with pytest.raises(TypeError):
        Counter.remote(1, 2, 3)
    with pytest.raises(TypeError):
        Counter.remote(unknown=1)
    counter = Counter.remote()
    with pytest.raises(TypeError):
        counter.add.remote(1, 2)
    with pytest.raises(TypeError):
        counter.sleep.remote()
    with pytest.raises(TypeError):
        counter.get.remote(unknown=1)
    assert get(counter.get.remote()) == 0


def test_class_without_a_constructor_takes_no_arguments() -> None:
    @shoal.remote
    class Empty:
        def one(self) -> int:
            return 1

    assert get(Empty.remote().one.remote()) == 1
    with pytest.raises(TypeError):
        Empty.remote(1)


def test_unknown_options_are_refused_where_they_are_written() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        Counter.options(nonsense=1)
    with pytest.raises(ValueError):
        Counter.options(max_restarts=-2)
    with pytest.raises((TypeError, ValueError), match="nonsense"):
        Counter.remote().add.options(nonsense=1).remote()


def test_options_chain() -> None:
    counter = Counter.options(num_cpus=0).options(max_restarts=1).remote(3)
    assert get(counter.get.remote()) == 3
    assert get(counter.add.options(name="renamed").options(num_returns=1).remote()) == 4


def test_several_returns() -> None:
    counter = Counter.remote(1)
    first, second = counter.pair.remote()
    assert get([first, second]) == [1, 2]
    refs = counter.three.options(num_returns=3).remote()
    assert get(refs) == [1, 2, 3]
    assert counter.add.options(num_returns=0).remote() is None
    with pytest.raises(ValueError, match="2"):
        get(counter.three.options(num_returns=2).remote()[0])


def test_generator_methods_stream() -> None:
    counter = Counter.remote()
    assert [get(ref) for ref in counter.items.remote(5)] == [0, 1, 2, 3, 4]
    got = []
    with pytest.raises(ValueError, match="no more"):
        for ref in counter.items_then_fail.remote():
            got.append(get(ref))
    assert got == [1]


def test_generator_method_is_held_back_by_its_consumer() -> None:
    counter = Counter.remote()
    stream = counter.items.options(_generator_backpressure_num_objects=2).remote(10)
    assert get(next(stream)) == 0
    time.sleep(0.1)
    assert [get(ref) for ref in stream] == list(range(1, 10))


def test_methods_run_on_the_main_thread() -> None:
    assert get(Counter.remote().on_main_thread.remote())


def test_an_exception_leaves_the_actor_alive() -> None:
    counter = Counter.remote(1)
    with pytest.raises(KeyError) as caught:
        get(counter.fail.remote("text"))
    assert isinstance(caught.value, TaskError)
    assert "Counter.fail" in str(caught.value)
    assert get(counter.get.remote()) == 1


def test_every_actor_has_ready_and_call() -> None:
    counter = Counter.remote(6)
    assert get(counter.__ray_ready__.remote()) is True
    assert get(counter.__shoal_ready__.remote()) is True
    assert get(counter.__ray_call__.remote(lambda self, factor: self.value * factor, 7)) == 42


def test_constructor_error_is_the_cause_of_the_death() -> None:
    @shoal.remote
    class Fails:
        def __init__(self) -> None:
            raise ZeroDivisionError("in the constructor")

        def call(self) -> None: ...

    fails = Fails.remote()
    for _ in range(2):
        with pytest.raises(ActorDiedError, match="in the constructor") as caught:
            get(fails.call.remote())
        assert caught.value.actor_init_failed
        assert isinstance(caught.value.cause, ZeroDivisionError)
        assert "ZeroDivisionError" in str(caught.value)


def test_constructor_waits_for_its_arguments() -> None:
    counter = Counter.remote(later.remote(5), step=later.remote(3))
    assert get(counter.add.remote()) == 8


def test_failed_constructor_argument() -> None:
    counter = Counter.remote(broken.remote())

    @shoal.remote
    def elsewhere(handles: list[Any]) -> Any:
        return shoal.get(handles[0].get.remote(), timeout=WAIT_S)

    elsewhere_ref = elsewhere.remote([counter])
    with pytest.raises(ActorDiedError, match="broken input") as caught:
        get(counter.get.remote())
    assert caught.value.actor_init_failed
    assert "_construct" not in str(caught.value)
    with pytest.raises(ActorDiedError, match="broken input"):
        get(elsewhere_ref)


def test_unserializable_constructor_argument_names_itself() -> None:
    with pytest.raises(TypeError, match="lock"):
        Counter.remote(threading.Lock())


def test_calls_of_one_caller_keep_their_order() -> None:
    @shoal.remote
    class Log:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def note(self, number: int) -> None:
            self.seen.append(number)

        def all(self) -> list[int]:
            return self.seen

    log = Log.remote()
    for number in range(300):
        log.note.remote(later.remote(number, 0.05) if number in (3, 100) else number)
    assert get(log.all.remote()) == list(range(300))


def test_call_with_a_failed_argument_does_not_run() -> None:
    counter = Counter.remote()
    failed = counter.add.remote(broken.remote())
    assert get(counter.add.remote()) == 1
    with pytest.raises(ValueError, match="broken input") as caught:
        get(failed)
    assert "input argument" in str(caught.value)


def test_large_arguments_and_results() -> None:
    import numpy

    @shoal.remote
    class Echo:
        def __init__(self, start: Any) -> None:
            self.start = start

        def both(self, more: Any) -> Any:
            return self.start, more

    array = numpy.arange(200_000)
    first, second = get(Echo.remote(array).both.remote(array + 1))
    assert (first == array).all()
    assert (second == array + 1).all()


def test_refs_inside_arguments_stay_refs() -> None:
    @shoal.remote
    class Holder:
        def __init__(self, refs: list[Any]) -> None:
            self.refs = refs

        def value(self) -> Any:
            return shoal.get(self.refs[0])

        def put(self) -> list[Any]:
            return [shoal.put("mine")]

    holder = Holder.remote([shoal.put("kept")])
    time.sleep(0.2)
    assert get(holder.value.remote()) == "kept"
    inner = get(holder.put.remote())
    del holder
    time.sleep(0.2)
    assert get(inner) == ["mine"]


def test_too_many_pending_calls() -> None:
    counter = Counter.options(max_pending_calls=3).remote()
    get(counter.get.remote())
    refs = [counter.sleep.remote(seconds) for seconds in (1.0, 0.0, 0.0)]
    with pytest.raises(PendingCallsLimitExceeded, match="max_pending_calls=3"):
        counter.get.remote()
    get(refs)
    assert get(counter.get.remote()) == 0


def test_retried_exceptions_of_methods() -> None:
    @shoal.remote(max_task_retries=1)
    class Flaky:
        def __init__(self) -> None:
            self.tries = 0

        @shoal.method(max_task_retries=4, retry_exceptions=[KeyError])
        def fourth_time(self) -> int:
            self.tries += 1
            if self.tries < 4:
                raise KeyError(self.tries)
            return self.tries

        def count(self) -> int:
            self.tries += 1
            raise ValueError(self.tries)

    assert get(Flaky.remote().fourth_time.remote()) == 4
    flaky = Flaky.remote()
    with pytest.raises(ValueError, match="1"):
        get(flaky.count.remote())
    with pytest.raises(ValueError, match="3"):
        get(flaky.count.options(retry_exceptions=True).remote())
    with pytest.raises(ValueError, match="4"):
        get(flaky.count.options(retry_exceptions=[KeyError], max_task_retries=5).remote())


def test_actor_that_no_node_can_host_says_so_at_once() -> None:
    started = time.perf_counter()
    counter = Counter.options(num_cpus=100).remote()
    with pytest.raises(ActorUnschedulableError, match="100 CPU"):
        get(counter.get.remote())
    with pytest.raises(ActorUnschedulableError, match="nothing_such"):
        get(Counter.options(resources={"nothing_such": 1}).remote().get.remote())
    assert time.perf_counter() - started < 20, "it is not waited for"


def test_actors_make_actors() -> None:
    @shoal.remote
    class Parent:
        def __init__(self, depth: int) -> None:
            self.depth = depth
            self.child = Parent.remote(depth - 1) if depth else None

        def total(self) -> int:
            return self.depth + (shoal.get(self.child.total.remote()) if self.child else 0)

    Parent = Parent  # the name the method looks up is the actor class of this test
    assert get(Parent.remote(4).total.remote()) == 10


def test_actor_holding_a_cpu_lends_it_while_it_waits() -> None:
    @shoal.remote(num_cpus=1)
    class Waiting:
        def run(self, count: int) -> int:
            return sum(shoal.get([later.remote(index, 0.0) for index in range(count)]))

    actors = [Waiting.remote() for _ in range(2)]  # both CPUs
    assert get([actor.run.remote(4) for actor in actors]) == [6, 6]
    assert get(actors[0].run.remote(5)) == 10


def cpus_become(count: float) -> bool:
    """Whether so many CPUs are free in bounded time; actors of the test before may still be ending."""
    deadline = time.perf_counter() + 60
    while shoal.available_resources().get("CPU", 0) != count and time.perf_counter() < deadline:
        time.sleep(0.01)
    return shoal.available_resources().get("CPU", 0) == count


def test_resources_of_an_actor_are_taken_and_returned() -> None:
    assert cpus_become(2)
    actor = Counter.options(num_cpus=1).remote()
    get(actor.get.remote())
    assert cpus_become(1)
    free = Counter.remote()  # 1 CPU to be placed, none while it lives
    get(free.get.remote())
    assert cpus_become(1)
    shoal.kill(actor)
    assert cpus_become(2)


def test_handles_are_equal_by_actor_and_print_their_class() -> None:
    first, second = Counter.remote(), Counter.remote()

    @shoal.remote
    def same(handle: Any) -> Any:
        return handle

    assert get(same.remote(first)) == first
    assert first != second
    assert len({first, second, get(same.remote(second))}) == 2
    assert repr(first) == f"Actor(Counter, {first._actor_id.hex()})"
    assert first._ray_actor_id == first._actor_id
    assert repr(Counter) == "ActorClass(Counter)"


def test_dataclasses_as_actors_and_results() -> None:
    from dataclasses import dataclass

    @dataclass
    class Point:
        x: int

    @shoal.remote
    @dataclass
    class Plane:
        width: int
        height: int = 2

        def corner(self) -> Point:
            return Point(self.width * self.height)

    assert get(Plane.remote(3).corner.remote()).x == 6


def test_decorated_function_methods_keep_their_signature() -> None:
    import functools

    def logged(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper

    @shoal.remote
    class Decorated:
        @logged
        def double(self, value: int) -> int:
            return 2 * value

    decorated = Decorated.remote()
    assert get(decorated.double.remote(4)) == 8


def test_actor_classes_travel() -> None:
    @shoal.remote
    def build(cls: Any) -> Any:
        return shoal.get(cls.remote(5).get.remote())

    assert get(build.remote(Counter)) == 5
    assert get(build.remote(Counter.options(max_restarts=1))) == 5


def test_classes_are_captured_when_first_used() -> None:
    factor = 2

    @shoal.remote
    class Scaled:
        def scale(self, value: int) -> int:
            return value * factor

    assert get(Scaled.remote().scale.remote(4)) == 8
    factor = 3
    assert get(Scaled.remote().scale.remote(4)) == 8


def test_plain_pickle_of_a_handle_outside_of_a_call() -> None:
    counter = Counter.remote(2)
    try:
        blob = pickle.dumps(counter)
    except TypeError as error:
        assert "actor" in str(error).lower() or "ref" in str(error).lower()
    else:
        assert get(pickle.loads(blob).get.remote()) == 2


def test_actors_seen_from_threads() -> None:
    counter = Counter.remote()
    seen: list[int] = []

    def call() -> None:
        for _ in range(50):
            seen.append(get(counter.add.remote()))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert sorted(seen) == list(range(1, 201))
