"""Tasks: arguments, options, returns, retries, and what may be a remote function."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal import exceptions

pytestmark = [pytest.mark.usefixtures("shoal_session")]

SOURCE = str(Path(shoal.__file__).parents[1])


def fetch(refs: Any, timeout: float = 60.0) -> Any:
    return shoal.get(refs, timeout=timeout)


@shoal.remote
def echo(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


@shoal.remote
def add(a: int, b: int = 2) -> int:
    return a + b


def run_program(text: str, timeout: float = 90.0) -> str:
    """The output of a program of its own, which must end well."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": SOURCE},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---------------------------------------------------------------- arguments


def test_positional_keyword_and_default_arguments() -> None:
    assert fetch(add.remote(1)) == 3
    assert fetch(add.remote(1, 5)) == 6
    assert fetch(add.remote(a=1, b=6)) == 7
    assert fetch(echo.remote(1, "x", k=None, z=[1])) == ((1, "x"), {"k": None, "z": [1]})
    assert fetch(echo.remote()) == ((), {})


def test_wrong_arguments_raise_at_the_call() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'a'"):
        add.remote()
    with pytest.raises(TypeError, match="takes from 1 to 2 positional arguments but 3 were given"):
        add.remote(1, 2, 3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'c'"):
        add.remote(1, c=2)


def test_direct_call_says_what_to_do() -> None:
    with pytest.raises(TypeError, match=r"add\.remote\(\)"):
        add(1)
    assert add._function(1) == 3


def test_refs_at_top_level_are_replaced_nested_ones_are_kept() -> None:
    ref = add.remote(1)
    assert fetch(add.remote(ref, b=ref)) == 6

    @shoal.remote
    def look(items: list[Any], named: dict[str, Any]) -> tuple[str, str, int]:
        return type(items[0]).__name__, type(named["x"]).__name__, shoal.get(items[0]) + shoal.get(named["x"])

    assert fetch(look.remote([ref], {"x": shoal.put(10)})) == ("ObjectRef", "ObjectRef", 13)


def test_ref_as_keyword_with_plain_positionals() -> None:
    assert fetch(echo.remote(1, shoal.put(2), x=shoal.put(3), y=4)) == ((1, 2), {"x": 3, "y": 4})


def test_large_arguments_and_results() -> None:
    blob = bytes(range(256)) * 2000
    assert fetch(echo.remote(blob, shoal.put(blob)))[0] == (blob, blob)


def test_a_returned_ref_is_not_unwrapped() -> None:
    @shoal.remote
    def outer() -> Any:
        return add.remote(20)

    inner = fetch(outer.remote())
    assert isinstance(inner, shoal.ObjectRef)
    assert fetch(inner) == 22


def test_chain_of_unready_dependencies() -> None:
    @shoal.remote
    def slow() -> int:
        time.sleep(0.1)
        return 1

    ref = slow.remote()
    for _ in range(50):
        ref = add.remote(ref, 1)
    assert fetch(ref) == 51


def test_many_arguments_and_many_returns() -> None:
    @shoal.remote
    def total(*numbers: int) -> int:
        return sum(numbers)

    refs = [shoal.put(number) for number in range(10_000)]
    assert fetch(total.remote(*refs)) == sum(range(10_000))

    @shoal.remote(num_returns=3000)
    def many() -> list[int]:
        return list(range(3000))

    assert fetch(many.remote()) == list(range(3000))


# ---------------------------------------------------------------- what may be a function


def test_lambda_closure_and_nested_definition() -> None:
    factor = 3
    assert fetch(shoal.remote(lambda x: factor * x).remote(5)) == 15

    @shoal.remote
    def maker(n: int) -> Any:
        @shoal.remote
        def inner(x: int) -> int:
            return x + n

        return shoal.get(inner.remote(1))

    assert fetch(maker.remote(4)) == 5


def test_a_redefined_function_is_a_new_function() -> None:
    def define(number: int) -> Any:
        @shoal.remote
        def value() -> int:
            return number

        return value

    assert [fetch(define(number).remote()) for number in (1, 2, 1)] == [1, 2, 1]


def test_metadata_of_the_function_is_kept() -> None:
    @shoal.remote
    def documented() -> None:
        """What it does."""

    assert documented.__name__ == "documented"
    assert documented.__doc__ == "What it does."
    assert "documented" in repr(documented)


def test_functions_of_main_and_redefined_there() -> None:
    out = run_program(
        """
        import shoal
        shoal.init(num_cpus=1)
        LIMIT = 10

        class Point:
            def __init__(self, x): self.x = x

        def helper(p): return p.x + LIMIT

        @shoal.remote
        def f(p): return Point(helper(p))

        print(shoal.get(f.remote(Point(1)), timeout=60).x)

        @shoal.remote
        def f(p): return Point(-p.x)

        print(shoal.get(f.remote(Point(1)), timeout=60).x, type(shoal.get(f.remote(Point(1)), timeout=20)) is Point)
        """
    )
    assert out.split() == ["11", "-1", "True"]


def test_async_functions_are_refused_with_advice() -> None:
    @shoal.remote
    async def coroutine() -> None: ...

    with pytest.raises(ValueError, match="async function"):
        coroutine.remote()


def test_only_callables_can_be_remote() -> None:
    with pytest.raises(TypeError):
        shoal.remote(3)
    with pytest.raises(TypeError):
        shoal.remote()
    with pytest.raises(TypeError, match="already"):
        shoal.remote(add)


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"num_cpu": 1}, ValueError),
        ({"num_cpus": -1}, ValueError),
        ({"num_cpus": "two"}, TypeError),
        ({"num_gpus": 1.5}, ValueError),
        ({"resources": {"CPU": 1}}, ValueError),
        ({"max_retries": -2}, ValueError),
        ({"max_retries": 1.5}, TypeError),
        ({"num_returns": -3}, ValueError),
        ({"num_returns": "many"}, ValueError),
        ({"num_returns": "streaming"}, ValueError),
        ({"retry_exceptions": [1]}, TypeError),
        ({"max_calls": -1}, ValueError),
        ({"name": 3}, TypeError),
        ({"max_restarts": 1}, ValueError),
    ],
)
def test_wrong_options_raise_where_they_are_written(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        shoal.remote(**options)(lambda: None)
    with pytest.raises(error):
        add.options(**options)


def test_options_chain_and_name_is_displayed() -> None:
    @shoal.remote(num_cpus=0.5)
    def name() -> Any:
        return shoal.get_runtime_context().get_task_name()

    assert fetch(name.remote()) == "name"
    assert fetch(name.options(name="x").remote()) == "x"
    assert fetch(name.options(name="x").options(num_cpus=1).remote()) == "x"


def test_max_calls_cannot_be_given_later() -> None:
    with pytest.raises(ValueError, match="max_calls"):
        add.options(max_calls=1)


def test_max_calls_ends_the_worker() -> None:
    @shoal.remote(max_calls=2)
    def pid() -> int:
        return os.getpid()

    pids = [fetch(pid.remote()) for _ in range(6)]
    assert all(pids.count(one) <= 2 for one in pids)
    together = fetch([pid.remote() for _ in range(12)])
    assert all(together.count(one) <= 2 for one in together)


# ---------------------------------------------------------------- returns


def test_number_of_returns() -> None:
    @shoal.remote(num_returns=3)
    def three() -> Any:
        return 1, [2], "three"

    assert fetch(three.remote()) == [1, [2], "three"]

    @shoal.remote(num_returns=0)
    def nothing() -> None: ...

    assert nothing.remote() is None
    assert fetch(echo.options(num_returns=2).remote("a")) == [("a",), {}]


def test_wrong_number_of_returns_is_an_error_in_every_ref() -> None:
    @shoal.remote(num_returns=2)
    def three() -> Any:
        return 1, 2, 3

    for ref in three.remote():
        with pytest.raises(ValueError, match="returned 3 values"):
            fetch(ref)


def test_not_iterable_with_several_returns() -> None:
    @shoal.remote(num_returns=2)
    def one() -> Any:
        return 1

    for ref in one.remote():
        with pytest.raises(TypeError):
            fetch(ref)


# ---------------------------------------------------------------- retries


def attempts(path: Path) -> int:
    return len(path.read_text()) if path.exists() else 0


def test_retry_exceptions_true_and_by_class(tmp_path: Path) -> None:
    @shoal.remote(max_retries=3, retry_exceptions=True)
    def flaky(path: Path) -> int:
        with path.open("a") as file:
            file.write("x")
        if attempts(path) < 3:
            raise ValueError("not yet")
        return attempts(path)

    assert fetch(flaky.remote(tmp_path / "a")) == 3
    assert fetch(flaky.options(retry_exceptions=[ValueError]).remote(tmp_path / "b")) == 3
    with pytest.raises(ValueError, match="not yet"):
        fetch(flaky.options(retry_exceptions=[KeyError]).remote(tmp_path / "c"))
    assert attempts(tmp_path / "c") == 1
    with pytest.raises(ValueError, match="not yet"):
        fetch(flaky.options(max_retries=1).remote(tmp_path / "d"))
    assert attempts(tmp_path / "d") == 2
    with pytest.raises(ValueError):
        fetch(flaky.options(retry_exceptions=False).remote(tmp_path / "e"))
    assert attempts(tmp_path / "e") == 1
    assert fetch(flaky.options(max_retries=-1).remote(tmp_path / "f")) == 3


def test_a_crash_is_retried_and_errors_are_not(tmp_path: Path) -> None:
    @shoal.remote(max_retries=2)
    def crash_once(path: Path) -> int:
        with path.open("a") as file:
            file.write("x")
        if attempts(path) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return attempts(path)

    assert fetch(crash_once.remote(tmp_path / "a")) == 2


# ---------------------------------------------------------------- threads, scale


def test_threads_in_the_driver_and_in_tasks_call_at_once() -> None:
    @shoal.remote
    def many_threads(n: int) -> int:
        results: list[int] = []
        raised: list[BaseException] = []

        def work(i: int) -> None:
            try:
                results.append(shoal.get(add.remote(i, shoal.put(1))))
            except BaseException as error:
                raised.append(error)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(n)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if raised:
            raise raised[0]
        return sum(results)

    until = time.monotonic() + 2.0
    failures: list[BaseException] = []
    rounds = [0] * 6

    def hammer(number: int) -> None:
        try:
            while time.monotonic() < until:
                refs = [add.remote(i) for i in range(20)]
                ready, rest = shoal.wait(refs, num_returns=5, timeout=60)
                assert len(ready) == 5 and len(rest) == 15
                assert fetch(refs) == [i + 2 for i in range(20)]
                assert fetch(shoal.put([number])) == [number]
                if number == 0:
                    assert fetch(many_threads.remote(5)) == 15
                if number == 1:
                    assert add.remote(1).future().result(60) == 3
                rounds[number] += 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=hammer, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert not any(thread.is_alive() for thread in threads)
    assert not failures, failures
    assert all(rounds), rounds


def test_a_hundred_thousand_tasks_queued_at_once() -> None:
    import resource

    @shoal.remote
    def nothing() -> None: ...

    fetch(nothing.remote())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refs = [nothing.remote() for _ in range(100_000)]
    grown_bytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert fetch(refs, 50) == [None] * 100_000
    assert grown_bytes / 100_000 < 1500


# ---------------------------------------------------------------- the driver's process


def test_ctrl_c_interrupts_every_blocking_call() -> None:
    out = run_program(
        """
        import os, signal, threading, time
        import shoal
        shoal.init(num_cpus=1)

        @shoal.remote
        def sleep(): time.sleep(100)

        @shoal.remote
        def stream():
            time.sleep(100)
            yield 1

        @shoal.remote
        class Actor:
            def sleep(self): time.sleep(100)

        actor = Actor.options(num_cpus=0).remote()
        calls = {
            "get": lambda: shoal.get(sleep.remote()),
            "list": lambda: shoal.get([sleep.remote(), sleep.remote()]),
            "wait": lambda: shoal.wait([sleep.remote()]),
            "next": lambda: next(stream.remote()),
            "actor": lambda: shoal.get(actor.sleep.remote()),
            "timeout": lambda: shoal.get(sleep.remote(), timeout=95),
        }
        for name, call in calls.items():
            timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            start = time.monotonic()
            try:
                call()
            except KeyboardInterrupt:
                assert time.monotonic() - start < 60
                print(name)
        # the session goes on
        shoal.shutdown()
        shoal.init(num_cpus=1)
        print(shoal.get(shoal.remote(lambda: "alive").remote(), timeout=60))
        """
    )
    assert out.split() == ["get", "list", "wait", "next", "actor", "timeout", "alive"]


def test_the_session_survives_ctrl_c() -> None:
    out = run_program(
        """
        import os, signal, threading, time
        import shoal
        shoal.init(num_cpus=2)

        @shoal.remote
        def f(x): return x

        hits = 0

        def interrupt():
            for _ in range(60):
                time.sleep(0.03)
                os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        while True:
            try:
                while thread.is_alive():
                    shoal.get([f.remote(i) for i in range(50)], timeout=60)
                time.sleep(0.2)
                break
            except KeyboardInterrupt:
                hits += 1
        assert hits > 5, hits
        assert shoal.get([f.remote(i) for i in range(200)], timeout=60) == list(range(200))
        print("done")
        """
    )
    assert out.strip() == "done"


def test_a_forked_child_gets_a_clear_error() -> None:
    out = run_program(
        """
        import os, sys
        import shoal
        shoal.init(num_cpus=1)
        f = shoal.remote(lambda: 1)
        ref = f.remote()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            for call in (lambda: shoal.get(ref), lambda: f.remote(), lambda: shoal.put(1)):
                try:
                    call()
                    print("no error")
                except RuntimeError as error:
                    print("forked" if "forked" in str(error) else str(error))
            sys.stdout.flush()
            os._exit(0)
        os.waitpid(pid, 0)
        print(shoal.get(ref, timeout=60), shoal.get(f.remote(), timeout=20))
        """
    )
    assert out.split() == ["forked", "forked", "forked", "1", "1"]


def test_get_and_wait_check_what_they_are_given() -> None:
    ref = add.remote(1)
    with pytest.raises(ValueError):
        shoal.get((ref,))
    with pytest.raises(TypeError):
        shoal.get([ref, 3])
    with pytest.raises(TypeError):
        shoal.wait(ref)
    assert shoal.get([]) == []
    with pytest.raises(exceptions.GetTimeoutError):
        shoal.get(shoal.remote(lambda: time.sleep(1)).remote(), timeout=0)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_million_tasks_queued_at_once_run_once_each() -> None:
    import resource

    @shoal.remote(num_cpus=2)
    def hold() -> None:
        time.sleep(3)

    @shoal.remote
    def same(number: int) -> int:
        return number

    fetch(same.remote(1))
    hold.remote()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refs = [same.remote(number) for number in range(1_000_000)]
    grown_bytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown_bytes / len(refs) < 1200
    assert sum(fetch(refs, 250)) == sum(range(1_000_000))
