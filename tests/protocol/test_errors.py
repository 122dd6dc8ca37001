"""Exceptions: they pickle, and the user's class survives the way."""

import inspect
import pickle
import sys
import traceback

import pytest

from shoal import exceptions
from shoal.protocol import errors
from shoal.protocol.errors import ShoalError, TaskCancelledError, TaskError, dependency_error, make_task_error

OURS = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, ShoalError) and cls is not TaskError
]


class CodeError(Exception):
    code = 0

    def __init__(self, code, *, detail):
        super().__init__(f"code {code}")
        self.code = code
        self.detail = detail

    def describe(self):
        return f"{self.code}/{self.detail}"


class SlotError(Exception):
    __slots__ = ("place",)

    def __init__(self, place):
        self.place = place


class RefusesSubclasses(Exception):
    def __init_subclass__(cls, **kwargs):
        raise TypeError("final")


class OddNew(Exception):
    def __new__(cls, a, b):
        return super().__new__(cls, a, b)

    def __init__(self, a, b):
        super().__init__(a, b)


class OwnReduce(Exception):
    def __init__(self, a, b):
        super().__init__(a)
        self.b = b

    def __reduce__(self):
        return OwnReduce, (self.args[0], self.b)


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no text")


class FileError(OSError):
    def __init__(self, path):
        super().__init__(2, "nothing there", path)
        self.path = path


def caught(error):
    try:
        raise error
    except BaseException as raised:
        return raised


def travel(error):
    return pickle.loads(pickle.dumps(error, 5))


@pytest.mark.parametrize("cls", OURS, ids=lambda cls: cls.__name__)
def test_every_error_pickles(cls):
    error = cls()
    error.extra = 7
    again = travel(error)
    assert type(again) is cls and str(again) == str(error) and again.extra == 7


def test_bases():
    assert issubclass(exceptions.GetTimeoutError, TimeoutError)
    assert issubclass(exceptions.ActorAlreadyExistsError, ValueError)
    assert issubclass(exceptions.ActorDiedError, exceptions.RayActorError)
    assert issubclass(exceptions.OwnerDiedError, exceptions.ObjectLostError)
    assert exceptions.RayTaskError is TaskError and exceptions.RayError is ShoalError


def test_facts_of_errors_survive_pickling():
    error = travel(
        errors.ActorDiedError(
            "gone", actor_id="ab", actor_init_failed=True, cause=make_task_error(caught(ValueError("x")), "f")
        )
    )
    assert (
        error.actor_init_failed
        and error.actor_id == "ab"
        and isinstance(error.cause, ValueError)
        and "ValueError: x" in str(error)
    )
    crash = travel(errors.WorkerCrashedError(exit_code=-9, function_name="f", pid=3))
    assert "SIGKILL" in str(crash) and "f()" in str(crash) and crash.exit_code == -9


@pytest.mark.parametrize(
    "error",
    [
        ValueError("v"),
        KeyError("k"),
        CodeError(5, detail="d"),
        SlotError("here"),
        OddNew(1, 2),
        OwnReduce(1, 2),
        Mute(),
        FileError("/x"),
        OSError(13, "denied", "/y"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        ImportError("no", name="m", path="p"),
        StopIteration(4),
        SyntaxError("bad", ("f.py", 1, 2, "x =")),
        ExceptionGroup("g", [ValueError(1), CodeError(6, detail="e")]),
        errors.GetTimeoutError("late"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_dual_errors(error):
    task_error = make_task_error(caught(error), "f", 12, "1.2.3.4")
    for seen in (task_error, travel(task_error), travel(travel(task_error))):
        assert isinstance(seen, TaskError) and isinstance(seen, type(error))
        assert type(seen.cause) is type(error) and seen.args == (seen.cause,)
        assert (
            "f()" in str(seen)
            and "pid=12" in str(seen)
            and "1.2.3.4" in str(seen)
            and type(error).__name__ in str(seen)
        )
        with pytest.raises(type(error)):
            raise seen
        assert repr(seen)


def test_attributes_are_reachable():
    seen = travel(make_task_error(caught(CodeError(5, detail="d")), "f"))
    assert (seen.code, seen.detail, seen.describe()) == (5, "d", "5/d")
    assert travel(make_task_error(caught(SlotError("here")), "f")).place == "here"
    seen = travel(make_task_error(caught(FileError("/x")), "f"))
    assert (seen.errno, seen.filename, seen.path) == (2, "/x", "/x")
    assert travel(make_task_error(caught(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")), "f")).reason == "bad"
    assert travel(make_task_error(caught(ImportError("no", name="m")), "f")).name == "m"
    assert travel(make_task_error(caught(StopIteration(4)), "f")).value == 4
    with pytest.raises(AttributeError):
        seen.absent  # noqa: B018
    assert seen.function_name == "f"


def test_groups():
    seen = travel(make_task_error(caught(ExceptionGroup("g", [ValueError(1), KeyError(2)])), "f"))
    matched, rest = seen.split(ValueError)
    assert isinstance(matched.exceptions[0], ValueError) and isinstance(rest.exceptions[0], KeyError)


def test_plain_when_it_must_be():
    for error in (RefusesSubclasses("no"), SystemExit(3), GeneratorExit()):
        seen = travel(make_task_error(caught(error), "f"))
        assert type(seen) is TaskError and type(seen.cause) is type(error)
    assert travel(make_task_error(caught(SystemExit(3)), "f")).cause.code == 3


def test_interrupt_means_cancelled():
    seen = travel(make_task_error(caught(KeyboardInterrupt()), "f"))
    assert isinstance(seen, TaskCancelledError) and isinstance(seen.cause, TaskCancelledError)


def test_chain_keeps_class_and_inner_text():
    inner = travel(make_task_error(caught(CodeError(5, detail="d")), "inner", 11))
    outer = travel(make_task_error(caught(inner), "outer", 22))
    assert isinstance(outer, CodeError) and type(outer.cause) is CodeError and outer.code == 5
    assert "outer()" in str(outer) and "inner()" in str(outer) and "pid=11" in str(outer)
    assert type(outer).__name__ == "TaskError(CodeError)"
    dependent = travel(dependency_error(inner, "later"))
    assert (
        isinstance(dependent, CodeError)
        and "input argument could not be computed" in str(dependent)
        and "pid=11" in str(dependent)
    )
    dependent = dependency_error(errors.WorkerCrashedError(exit_code=-11), "later")
    assert isinstance(dependent, errors.WorkerCrashedError) and "SIGSEGV" in str(dependent)


def test_causes_are_shown_and_own_frames_removed():
    namespace = {}
    code = compile("def run(f):\n    f()\n", errors._PACKAGE_DIR + "runtime/executor.py", "exec")
    exec(code, namespace)

    def user():
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("second") from error

    try:
        namespace["run"](user)
    except ValueError as error:
        text = str(make_task_error(error, "user"))
    assert (
        "executor.py" not in text and "KeyError: 'first'" in text and "ValueError: second" in text and "in user" in text
    )


def test_printing_does_not_recurse():
    seen = make_task_error(caught(ValueError("v")), "f")
    assert "ValueError: v" in "".join(traceback.format_exception(type(seen), seen, seen.__traceback__))
    assert sys.getrecursionlimit() > 0
