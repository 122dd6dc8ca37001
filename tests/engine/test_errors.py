"""Errors: what a task's failure looks like to whoever gets its result."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.engine.explanations import comes_to_say

import shoal
from shoal import exceptions
from shoal.protocol.messages import PushTasks
from shoal.runtime import core

pytestmark = [pytest.mark.usefixtures("shoal_session")]


def fetch(refs: Any, timeout: float = 60.0) -> Any:
    return shoal.get(refs, timeout=timeout)


class CodedError(Exception):
    def __init__(self, code: int, *, why: str) -> None:
        super().__init__(f"code {code}: {why}")
        self.code = code


@shoal.remote
def fail(code: int = 7) -> None:
    raise CodedError(code, why="on purpose")


@shoal.remote
def use(*values: Any) -> Any:
    return values


def test_a_task_error_is_an_instance_of_the_users_class() -> None:
    with pytest.raises(CodedError) as caught:
        fetch(fail.remote())
    error = caught.value
    assert isinstance(error, exceptions.TaskError)
    assert isinstance(error, exceptions.RayTaskError)
    assert error.code == 7
    assert isinstance(error.cause, CodedError) and error.cause.code == 7
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, CodedError) and again.code == 7


def test_the_text_has_traceback_function_and_pid_and_no_frames_of_ours() -> None:
    @shoal.remote
    def pid() -> int:
        return os.getpid()

    def deeper() -> None:
        raise KeyError("the key")

    @shoal.remote
    def shallow() -> None:
        deeper()

    with pytest.raises(KeyError) as caught:
        fetch(shallow.remote())
    text = str(caught.value)
    assert "shallow" in text and "in deeper" in text and "the key" in text and __file__ in text
    assert "pid=" in text
    assert "executor.py" not in text


def test_errors_propagate_through_dependent_tasks_which_do_not_run(tmp_path: Path) -> None:
    @shoal.remote
    def touch(value: Any, path: Path) -> None:
        path.touch()

    first = fail.remote(3)
    second = touch.remote(first, tmp_path / "a")
    third = use.remote(1, second)
    for ref in (second, third):
        with pytest.raises(CodedError) as caught:
            fetch(ref)
        assert caught.value.code == 3
        assert "did not run" in str(caught.value) and "on purpose" in str(caught.value)
    assert not (tmp_path / "a").exists()
    # the same when the failure is known before the call
    with pytest.raises(CodedError):
        fetch(use.remote(first))
    with pytest.raises(CodedError):
        fetch(use.remote(value=first) if False else use.remote(*[first]))


def test_errors_from_a_nested_get_keep_their_class_and_both_tracebacks() -> None:
    @shoal.remote
    def parent() -> None:
        shoal.get(fail.remote(9))

    with pytest.raises(CodedError) as caught:
        fetch(parent.remote())
    assert caught.value.code == 9
    assert "fail" in str(caught.value) and "parent" in str(caught.value)


def test_a_list_raises_the_first_failure_without_waiting_for_others() -> None:
    @shoal.remote
    def slow() -> None:
        time.sleep(100)

    refs = [slow.remote(), fail.remote()]
    for _ in range(2):  # the second time it has failed before anybody waits
        with pytest.raises(CodedError):
            fetch(refs)
    shoal.cancel(refs[0], force=True)


def test_every_get_raises_again() -> None:
    ref = fail.remote()
    for _ in range(3):
        with pytest.raises(CodedError):
            fetch(ref)
    ready, rest = shoal.wait([ref], timeout=60)
    assert ready == [ref] and rest == []


@pytest.mark.parametrize(
    "kind", [StopIteration, GeneratorExit, BaseException, OSError, UnicodeDecodeError, AssertionError]
)
def test_odd_exception_classes(kind: type[BaseException]) -> None:
    @shoal.remote
    def odd() -> None:
        if kind is UnicodeDecodeError:
            b"\xff".decode("ascii")
        if kind is OSError:
            open("/nonexistent/file")
        raise kind("odd")

    with pytest.raises(exceptions.TaskError) as caught:
        fetch(odd.remote())
    if issubclass(kind, Exception):
        assert isinstance(caught.value, kind)
        if kind is OSError:
            assert isinstance(caught.value, FileNotFoundError) and caught.value.filename == "/nonexistent/file"
    else:
        assert kind.__name__ in str(caught.value)


def test_exception_groups() -> None:
    @shoal.remote
    def group() -> None:
        raise ExceptionGroup("several", [ValueError(1), CodedError(2, why="x")])

    with pytest.raises(ExceptionGroup) as caught:
        fetch(group.remote())
    assert [type(error) for error in caught.value.exceptions] == [ValueError, CodedError]


# ---------------------------------------------------------------- what cannot travel


class Holder:
    def __init__(self) -> None:
        self.inner = {"lock": threading.Lock()}


def test_unpicklable_arguments_results_and_closures_name_the_culprit() -> None:
    with pytest.raises(TypeError, match=r"inner\['lock'\].*lock"):
        use.remote(1, Holder())

    @shoal.remote
    def result() -> Any:
        return Holder()

    with pytest.raises(TypeError, match=r"(?s)result\(\).*inner\['lock'\]"):
        fetch(result.remote())

    captured = threading.Lock()
    with pytest.raises(TypeError, match="captured"):
        shoal.remote(lambda: captured).remote()
    with pytest.raises(TypeError, match="inner"):
        shoal.put(Holder())


def test_an_unpicklable_exception_arrives_as_text() -> None:
    class Locked(Exception):
        def __init__(self) -> None:
            super().__init__("has a lock")
            self.lock = threading.Lock()

    @shoal.remote
    def locked() -> None:
        raise Locked

    with pytest.raises(exceptions.TaskError) as caught:
        fetch(locked.remote())
    assert "has a lock" in str(caught.value) and "lock" in str(caught.value) and "Locked" in str(caught.value)


def test_an_exception_that_cannot_be_made_again_arrives_as_text() -> None:
    class Stubborn(Exception):
        def __reduce__(self) -> Any:
            return int, ("no number",)

    @shoal.remote
    def stubborn() -> None:
        raise Stubborn("will not travel")

    with pytest.raises(exceptions.TaskError, match="will not travel"):
        fetch(stubborn.remote())


# ---------------------------------------------------------------- crashes


def die(how: str) -> None:
    if how == "sys.exit":
        sys.exit(3)
    if how == "os._exit":
        os._exit(4)
    os.kill(os.getpid(), getattr(signal, how))
    time.sleep(100)


@pytest.mark.parametrize(
    ("how", "code"), [("sys.exit", 3), ("os._exit", 4), ("SIGKILL", -9), ("SIGSEGV", -11), ("SIGABRT", -6)]
)
def test_crashes_say_how_and_are_tried_as_often_as_allowed(how: str, code: int, tmp_path: Path) -> None:
    @shoal.remote(max_retries=1)
    def crash(path: Path) -> None:
        with path.open("a") as file:
            file.write(f"{os.getpid()}\n")
        die(how)

    crashed = crash.remote(tmp_path / "pids")
    with pytest.raises(exceptions.WorkerCrashedError) as caught:
        fetch(crashed)
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == 2
    error = caught.value
    assert error.exit_code == code
    assert error.function_name == "crash"
    assert str(error.pid) == pids[-1] and pids[-1] in str(error)
    assert "2 times (max_retries=1: a higher one" in str(error) and f"did not make object {crashed.hex()}" in str(error)
    assert (how if how.startswith("SIG") or how == "sys.exit" else str(code)) in str(error)


@pytest.mark.parametrize(("retries", "tries"), [(-1, 6), (0, 1)])
def test_retries_without_end_and_none(retries: int, tries: int, tmp_path: Path) -> None:
    """The default of three is no limit of -1."""

    @shoal.remote(max_retries=retries)
    def fragile() -> int:
        with (tmp_path / "tries").open("a") as file:
            file.write("x")
        count = len((tmp_path / "tries").read_text())
        if count < 6:
            die("SIGKILL")
        return count

    ref = fragile.remote()
    if retries:
        assert fetch(ref) == 6
    else:
        with pytest.raises(exceptions.WorkerCrashedError, match="max_retries=0"):
            fetch(ref)
    assert (tmp_path / "tries").read_text() == "x" * tries


def test_only_the_task_that_ran_is_charged_with_a_crash(tmp_path: Path) -> None:
    @shoal.remote(max_retries=0)
    def maybe_crash(number: int) -> int:
        with (tmp_path / str(number)).open("a") as file:
            file.write("x")
        if number % 50 == 25:
            os._exit(1)
        return number

    refs = [maybe_crash.remote(number) for number in range(200)]
    crashed = []
    for number, ref in enumerate(refs):
        try:
            assert fetch(ref) == number
        except exceptions.WorkerCrashedError:
            crashed.append(number)
    assert crashed == [25, 75, 125, 175]
    assert all((tmp_path / str(number)).read_text() == "x" for number in range(200)), "every task ran once"


def test_the_last_words_on_stderr_stand_in_the_error() -> None:
    @shoal.remote(max_retries=0)
    def crash() -> None:
        print("I see it coming", file=sys.stderr, flush=True)
        os._exit(1)

    with pytest.raises(exceptions.WorkerCrashedError, match="I see it coming"):
        fetch(crash.remote())


def test_a_worker_that_cannot_handle_a_message_ends_and_its_tasks_run_elsewhere() -> None:
    @shoal.remote
    def spoil() -> None:
        def raises(connection: object, message: object) -> None:
            raise AssertionError("an invariant that does not hold")

        core.current().reactor.handlers[PushTasks] = raises

    @shoal.remote(max_retries=0)
    def double(number: int) -> int:
        return 2 * number

    fetch(spoil.remote())
    assert [fetch(ref) for ref in [double.remote(number) for number in range(50)]] == [2 * n for n in range(50)]


# ---------------------------------------------------------------- timeouts


def test_a_timeout_explains_itself() -> None:
    @shoal.remote
    def sleep() -> None:
        time.sleep(100)

    running = [sleep.options(num_cpus=1).remote() for _ in range(2)]
    waiting = sleep.remote()
    dependent = use.remote(waiting)
    for ref in running:
        assert isinstance(comes_to_say(ref, r"sleep.*pid"), TimeoutError)
    comes_to_say(waiting, r"sleep waits for a worker.*1 CPU")
    comes_to_say(dependent, r"use waits for 1 of its arguments")
    comes_to_say([*running, waiting], r"3 of 3")
    for ref in (waiting, *running):
        shoal.cancel(ref, force=True)
    with pytest.raises(exceptions.TaskCancelledError):
        fetch(dependent)


def test_names_of_ray_exist() -> None:
    for name in (
        "RayError",
        "RayTaskError",
        "GetTimeoutError",
        "WorkerCrashedError",
        "TaskCancelledError",
        "RayActorError",
        "ObjectLostError",
    ):
        assert issubclass(getattr(exceptions, name), Exception)


class Careful(Exception):
    """Unpickling it waits for a lock that another thread has while it submits."""

    lock = threading.Lock()

    def __reduce__(self) -> Any:
        return restore_careful, ()


def restore_careful() -> Careful:
    with Careful.lock:
        return Careful()


@pytest.mark.parametrize("how", ["an input", "retry_exceptions"])
def test_unpickling_a_users_error_does_not_hold_the_runtime(how: str) -> None:
    @shoal.remote(max_retries=1, retry_exceptions=[ValueError] if how == "retry_exceptions" else False)
    def fail() -> None:
        raise Careful

    @shoal.remote
    def after(value: Any) -> None:
        pass

    ended = threading.Event()

    def submit() -> None:
        for _ in range(20):
            shoal.remote(int).remote()
        ended.set()

    with Careful.lock:
        ref = fail.remote() if how == "retry_exceptions" else after.remote(fail.remote())
        reader = threading.Thread(target=shoal.wait, args=([ref],), daemon=True)
        reader.start()
        time.sleep(0.3)
        threading.Thread(target=submit, daemon=True).start()
        could_submit = ended.wait(60)
    reader.join(60)
    assert could_submit
    with pytest.raises(Careful):
        fetch(ref)
