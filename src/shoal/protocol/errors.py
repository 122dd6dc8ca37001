"""Every exception that a program can meet, and how a user's exception travels.

Purpose: one family under `ShoalError`. `shoal.exceptions` shows these classes to users, with Ray's names as aliases.

Design: an exception of ours is restored from (class, args, __dict__) without running `__init__`, so that any of them
pickles whatever its constructor looks like. The exception of a task comes back as a `TaskError`, which is *also* an
instance of the user's class: `dual_class` derives a class from both, once per user class, and the state of the user's
exception is copied (attributes, slots, and the C fields of OSError and the like), so that
`except MyError as error: error.code` works on the far side. The user's exception itself is `.cause`. `pack_exception`
writes a user's exception so that it can be read without calling an `__init__` whose arguments are unknown, the usual
reason why exceptions fail to unpickle.

How to extend: derive from the nearest class, take a message first and facts as keywords, store facts as attributes.

What it does not do: bytes (`serialization.dumps_error` and `loads_error`), or deciding what is retried.
"""

from __future__ import annotations

import os
import signal
import traceback
from types import GetSetDescriptorType, MemberDescriptorType, new_class
from typing import Any, ClassVar

_PACKAGE_DIR = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_HEAP_TYPE_FLAG = 1 << 9  # Py_TPFLAGS_HEAPTYPE: set for every class made by a class statement
_FRAMES_MAX = 100


def describe_exit(exit_code: int | None) -> str:
    """What an exit code means in words; negative codes are signals."""
    if exit_code is None:
        return "its exit code is not known"
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    if name == "SIGKILL":
        return "killed by SIGKILL (kill -9, or the kernel's out-of-memory killer)"
    return f"killed by {name}"


def _restore(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


class ShoalError(Exception):
    """Base of everything that the system itself raises."""

    default_message: ClassVar[str] = "shoal failed"

    def __init__(self, message: str = "") -> None:
        super().__init__(message or self.default_message)

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else self.default_message

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, self.__dict__)


# ---------------------------------------------------------------- tasks


class TaskCancelledError(ShoalError):
    """The task was cancelled before or while it ran. `task_id` is its id in hex, empty when not known."""

    default_message = "the task was cancelled"

    def __init__(self, message: str = "", *, task_id: str = "") -> None:
        super().__init__(message or (f"the task {task_id} was cancelled" if task_id else ""))
        self.task_id = task_id


class GetTimeoutError(ShoalError, TimeoutError):
    """`get`, or the next item of a stream, was not ready in time."""

    default_message = "the value was not ready in time"


class WorkerCrashedError(ShoalError):
    """The worker process died while it ran the task, and no retries were left.

    Args:
        message: the whole text; made from the facts when empty.
        cause: what is known of the reason.
        exit_code: of the process; negative for a signal; None when not known.
        function_name: what it ran.
        pid: of the process.
        started: whether the task had begun.
    """

    default_message = "the worker process died"

    def __init__(
        self,
        message: str = "",
        *,
        cause: str = "",
        exit_code: int | None = None,
        function_name: str = "",
        pid: int | None = None,
        started: bool = True,
    ) -> None:
        if not message:
            what = f"while it ran {function_name}()" if started else f"before it began {function_name}()"
            message = (
                f"the worker process{f' {pid}' if pid else ''} died {what if function_name else ''}".rstrip()
                + f": {cause or describe_exit(exit_code)}"
            )
        super().__init__(message)
        self.exit_code = exit_code
        self.function_name = function_name
        self.pid = pid
        self.started = started


class OutOfMemoryError(ShoalError):
    """A process was killed because the node ran out of memory."""

    default_message = "the node ran out of memory and the process was killed"


class TaskUnschedulableError(ShoalError):
    """No node can ever run the task as it asks."""

    default_message = "no node can ever run this task"


class ActorUnschedulableError(ShoalError):
    """No node can ever host the actor as it asks."""

    default_message = "no node can ever host this actor"


class TaskPlacementGroupRemoved(ShoalError):
    """The placement group of the task is gone."""

    default_message = "the placement group of this task was removed"


class RuntimeEnvSetupError(ShoalError):
    """The runtime environment could not be built."""

    default_message = "the runtime environment could not be set up"


class UnserializableException(ShoalError):
    """An exception came that cannot be read in this process."""

    default_message = "the exception cannot be read here"


class ObjectRefStreamEndOfStreamError(ShoalError):
    """The stream has no such item."""

    default_message = "the stream has ended"


class StreamingGeneratorReplayInconsistentError(ShoalError):
    """A stream that was run again yielded fewer or other items."""

    default_message = "the generator yielded another number of items when it was run again"


class OutOfBandObjectRefSerializationError(ShoalError, TypeError):
    """A reference was pickled where the system cannot see it."""

    default_message = "an ObjectRef was pickled outside a task, an object or a call"


# ---------------------------------------------------------------- actors


class ActorError(ShoalError):
    """An actor cannot answer.

    Args:
        message: what happened and why.
        actor_id: the actor's id in hex.
        class_name: of the actor.
        actor_init_failed: whether its constructor raised.
        preempted: whether its node was taken away.
        cause: the constructor's error, if that is the reason; its text is appended to the message.
    """

    default_message = "the actor cannot answer"

    def __init__(
        self,
        message: str = "",
        *,
        actor_id: str = "",
        class_name: str = "",
        actor_init_failed: bool = False,
        preempted: bool = False,
        cause: BaseException | None = None,
    ) -> None:
        text = message or self.default_message
        if actor_id and actor_id not in text:
            text += f" (actor {class_name + ' ' if class_name else ''}{actor_id})"
        if cause is not None:
            text += f"\n{cause}"
        super().__init__(text)
        self.actor_id = actor_id
        self.class_name = class_name
        self.actor_init_failed = actor_init_failed
        self.preempted = preempted
        self.cause = cause


class ActorDiedError(ActorError):
    """The actor is dead and will not come back."""

    default_message = "the actor is dead"


class ActorPlacementGroupRemoved(ActorDiedError):
    """The actor is dead because its placement group is gone."""

    default_message = "the placement group of this actor was removed"


class ActorUnavailableError(ActorError):
    """The actor is restarting; the call was lost. Calls made from now on may succeed."""

    default_message = "the actor is not available now"


class ActorAlreadyExistsError(ValueError, ShoalError):
    """The name is taken."""

    default_message = "an actor of this name exists already"


class ActorHandleNotFoundError(ValueError, ShoalError):
    """The handle belongs to another session."""

    default_message = "the actor handle is not of this session"


class PendingCallsLimitExceeded(ShoalError):
    """As many calls wait for the actor as `max_pending_calls` allows."""

    default_message = "too many calls of this actor are pending"


class AsyncioActorExit(ShoalError):
    """Raised inside an asyncio actor to make it leave."""

    default_message = "the actor exits"


# ---------------------------------------------------------------- objects


class ObjectLostError(ShoalError):
    """The value is gone. `object_id` is the object's id in hex."""

    default_message = "the object is lost"

    def __init__(self, message: str = "", *, object_id: str = "") -> None:
        text = message or self.default_message
        super().__init__(text if not object_id or object_id in text else f"{text} (object {object_id})")
        self.object_id = object_id


class OwnerDiedError(ObjectLostError):
    """The process that owned the object died, and its lineage cannot run again."""

    default_message = "the process that owned the object died"


class ObjectFetchTimedOutError(ObjectLostError):
    """The value could not be fetched in time."""

    default_message = "the object could not be fetched in time"


class ObjectFreedError(ObjectLostError):
    """The value was freed by hand."""

    default_message = "the object was freed"


class ReferenceCountingAssertionError(ObjectLostError, AssertionError):
    """The object was freed while a reference to it existed."""

    default_message = "the object was freed while references to it exist"


class ObjectReconstructionFailedError(ObjectLostError):
    """The value was lost and cannot be made again."""

    default_message = "the object was lost and cannot be made again"


class ObjectReconstructionFailedMaxAttemptsExceededError(ObjectReconstructionFailedError):
    """The value was lost more often than its task may be run."""

    default_message = "the object was lost and its task has no retries left"


class ObjectReconstructionFailedLineageEvictedError(ObjectReconstructionFailedError):
    """The value was lost and what made it is forgotten."""

    default_message = "the object was lost and the task that made it is not recorded any more"


class ObjectStoreFullError(ShoalError):
    """The store has no room, and nothing in it can be evicted or spilled."""

    default_message = "the object store is full"


class OutOfDiskError(ShoalError):
    """The disk is too full to spill objects."""

    default_message = "the disk is full"


# ---------------------------------------------------------------- system


class NodeDiedError(ShoalError):
    """The node is gone."""

    default_message = "the node died"


class NodeDaemonDiedError(ShoalError):
    """The node daemon of this process is gone; the session is over."""

    default_message = "the node daemon died; call shutdown() and init() to go on"


class SystemError_(ShoalError):
    """Something failed inside the system itself: please report it."""

    default_message = "internal error"


class RpcError(ShoalError):
    """A call between processes of the system failed."""

    default_message = "a call between processes failed"


class AuthenticationError(ShoalError):
    """The peer did not prove that it belongs to this cluster."""

    default_message = "authentication failed"


class CrossLanguageError(ShoalError):
    """Exists for programs that name it."""


class ChannelError(ShoalError):
    """A channel of a compiled graph is closed or broken."""

    default_message = "the channel is closed"


class ChannelTimeoutError(ChannelError, TimeoutError):
    """A channel was not ready in time."""

    default_message = "the channel was not ready in time"


class CompiledGraphCapacityExceeded(ShoalError):
    """Too many executions of a compiled graph wait to be read."""

    default_message = "too many executions of the compiled graph are in flight"


# ---------------------------------------------------------------- the user's exceptions


class TaskError(ShoalError):
    """A task raised. `str()` is the remote traceback; `.cause` the user's exception, None when it could not travel.

    Raised objects are also instances of the user's class (see `as_instanceof_cause`), with its attributes.

    Args:
        function_name: what was running.
        traceback_str: the formatted traceback, without frames of the system.
        cause: the user's exception.
        pid: of the worker.
        ip: of its node.
        actor_repr: the actor, when it was a method.
    """

    default_message = "a task failed"
    #: our facts, in one attribute, because every other name belongs to the user's exception
    _story: tuple[str, str, int | None, str | None, str | None]
    cause: BaseException | None

    def __init__(
        self,
        function_name: str = "",
        traceback_str: str = "",
        cause: BaseException | None = None,
        pid: int | None = None,
        ip: str | None = None,
        actor_repr: str | None = None,
    ) -> None:
        Exception.__init__(self, cause if cause is not None else traceback_str)
        self.__dict__["_story"] = (function_name, traceback_str, pid, ip, actor_repr)
        self.__dict__["cause"] = cause

    def __str__(self) -> str:
        function_name, text, pid, ip, actor_repr = self._story
        facts = (("pid", pid), ("ip", ip), ("actor", actor_repr))
        place = ", ".join(f"{name}={value}" for name, value in facts if value)
        return f"shoal::{function_name}(){f' ({place})' if place else ''}\n{text}".rstrip()

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"{name}({self.cause!r})" if type(self) is TaskError else f"{name}: {self.cause!r}"

    def __getattr__(self, name: str) -> Any:
        if name in _STORY_NAMES:
            cause = self.__dict__.get("cause")
            own = self.__dict__.get("_story")
            if cause is not None and hasattr(cause, name):
                return getattr(cause, name)
            if own is not None:
                return own[_STORY_NAMES[name]]
        elif not (name.startswith("__") and name.endswith("__")):
            cause = self.__dict__.get("cause")
            if cause is not None:
                return getattr(cause, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        packed = None if self.cause is None else pack_exception(self.cause)
        return _restore_task_error, (self._story, packed, type(self) is not TaskError)

    def as_instanceof_cause(self) -> TaskError:
        """This error as an instance of the user's class too; itself when that class forbids it or is no Exception."""
        cause = self.cause
        if type(self) is not TaskError or not isinstance(cause, Exception) or isinstance(cause, TaskError):
            return self
        cls = dual_class(type(cause))
        if cls is None:
            return self
        try:
            dual = _blank(cls, cause)
            _copy_state(cause, dual)
        except Exception:  # a class with its own idea of construction: the plain error serves
            return self
        assert isinstance(dual, TaskError)
        dual.args = (cause,)
        dual.__dict__["_story"] = self._story
        dual.__dict__["cause"] = cause
        dual.__traceback__ = None
        return dual


_STORY_NAMES = {"function_name": 0, "traceback_str": 1, "pid": 2, "ip": 3, "actor_repr": 4}
_dual_classes: dict[type, type[TaskError] | None] = {}


def dual_class(cause_class: type[BaseException]) -> type[TaskError] | None:
    """The class derived from TaskError and `cause_class`; None when there can be none."""
    try:
        return _dual_classes[cause_class]
    except KeyError:
        pass
    made: type[TaskError] | None
    name = f"TaskError({cause_class.__name__})"
    if issubclass(TaskError, cause_class):
        made = None
    else:
        try:
            # TaskError stands first, so str, repr, reduce and getattr are its own. A metaclass or __init_subclass__
            # of the user's may refuse.
            names = {"__module__": "shoal.exceptions", "__qualname__": name}
            made = new_class(name, (TaskError, cause_class), exec_body=lambda body: body.update(names))
        except Exception:
            made = None
    if len(_dual_classes) > 1000:  # classes made in a loop: keep memory bounded
        _dual_classes.clear()
    _dual_classes[cause_class] = made
    return made


def _static_base(cls: type[BaseException]) -> type[BaseException]:
    """The nearest ancestor that is written in C: its `__new__` and `__init__` are safe to call."""
    for base in cls.__mro__:
        if not base.__flags__ & _HEAP_TYPE_FLAG and issubclass(base, BaseException):
            return base
    return BaseException


def _blank(cls: type[Any], cause: BaseException) -> Any:
    """An instance of `cls` without running the `__new__` or `__init__` of user classes."""
    base = _static_base(type(cause))
    if issubclass(base, BaseExceptionGroup):
        assert isinstance(cause, BaseExceptionGroup)
        return base.__new__(cls, cause.message, cause.exceptions)
    return base.__new__(cls)


def _copy_state(source: BaseException, target: BaseException) -> None:
    """Copy instance attributes, user slots and C fields (errno, filename, code, ...)."""
    for cls in type(source).__mro__:
        if cls is BaseException or cls is object:
            continue
        for name, member in vars(cls).items():
            if isinstance(member, (MemberDescriptorType, GetSetDescriptorType)) and not name.startswith("__"):
                try:
                    member.__set__(target, member.__get__(source, type(source)))
                except Exception:  # unset slot or read-only field (a group's exceptions)
                    continue
    target.__dict__.update(source.__dict__)


# ---------------------------------------------------------------- pickling of user exceptions


def pack_exception(error: BaseException) -> tuple[Any, ...]:
    """`error` as a tuple that pickles and is restored without its `__init__`; its own `__reduce__` is respected."""
    cls = type(error)
    if isinstance(error, BaseExceptionGroup) and cls.__reduce__ is BaseExceptionGroup.__reduce__:
        inner = [pack_exception(item) for item in error.exceptions]
        return ("group", cls, error.message, inner, error.__dict__ or None)
    if cls.__reduce__ is not _static_base(cls).__reduce__ or _PICKLING_NAMES & _user_names(cls):
        return ("self", error)
    reduced = error.__reduce__()
    if not isinstance(reduced, tuple) or len(reduced) not in (2, 3) or reduced[0] is not cls:
        return ("self", error)
    state = dict(reduced[2] or {}) if len(reduced) == 3 else {}
    for base in cls.__mro__:
        if base.__flags__ & _HEAP_TYPE_FLAG:  # slots of the user's classes, which BaseException.__reduce__ forgets
            for name, member in vars(base).items():
                if isinstance(member, MemberDescriptorType) and hasattr(error, name):
                    state[name] = getattr(error, name)
    return ("state", cls, reduced[1], state or None)


_PICKLING_NAMES = frozenset({"__reduce_ex__", "__getnewargs__", "__getnewargs_ex__", "__getstate__"})


def _user_names(cls: type) -> set[str]:
    return {name for base in cls.__mro__ if base.__flags__ & _HEAP_TYPE_FLAG for name in vars(base)}


def unpack_exception(packed: tuple[Any, ...]) -> BaseException:
    """The exception that `pack_exception` wrote."""
    kind = packed[0]
    error: BaseException
    if kind == "self":
        error = packed[1]
        return error
    cls = packed[1]
    base = _static_base(cls)
    if kind == "group":
        inner = [unpack_exception(item) for item in packed[3]]
        error = base.__new__(cls, packed[2], inner)
        error.__dict__.update(packed[4] or {})
        return error
    arguments, state = packed[2], packed[3]
    error = base.__new__(cls, *arguments)
    # object.__init__'s rules do not apply: every C exception's __init__ takes what its own __reduce__ wrote.
    base.__init__(error, *arguments)
    if state:
        BaseException.__setstate__(error, state)
    return error


def _restore_task_error(story: tuple[Any, ...], packed: tuple[Any, ...] | None, dual: bool) -> TaskError:
    cause = None if packed is None else unpack_exception(packed)
    error = TaskError(story[0], story[1], cause, *story[2:])
    return error.as_instanceof_cause() if dual else error


# ---------------------------------------------------------------- made by workers


def make_task_error(
    error: BaseException, function_name: str, pid: int | None = None, ip: str | None = None, actor: str | None = None
) -> TaskError:
    """The error of a task that raised `error`: an instance of the user's class too, where that can be.

    When `error` is itself a TaskError (a `get` inside the task raised it), the innermost user's exception stays the
    cause, and its remote traceback stands in the text. KeyboardInterrupt and asyncio's CancelledError mean that the
    task was cancelled.
    """
    text = format_traceback(error)
    cause: BaseException | None = error
    if isinstance(error, TaskError):
        cause = error.cause
    elif isinstance(error, KeyboardInterrupt) or _is_async_cancellation(error):
        cause = TaskCancelledError(f"{function_name}() was cancelled while it ran")
        text += f"\n{TaskCancelledError.__name__}: {cause}"
    return TaskError(function_name, text, cause, pid, ip, actor).as_instanceof_cause()


def _is_async_cancellation(error: BaseException) -> bool:
    return type(error).__name__ == "CancelledError" and not isinstance(error, Exception)  # without importing asyncio


_INPUT_FAILED = "did not run: an input argument could not be computed"
_INPUT_LEVELS_MAX = 8  #: tasks of a chain that the text names


def dependency_error(error: BaseException, function_name: str) -> TaskError:
    """The error of a task that did not run because an input failed: same user class, inner traceback kept.

    Of a long chain of such tasks the text names this one and the first few: it must not grow with every task.
    """
    cause = error.cause if isinstance(error, TaskError) else error
    lines = str(error).splitlines()
    text = f"  {function_name}() {_INPUT_FAILED}"
    if sum(_INPUT_FAILED in line for line in lines) >= _INPUT_LEVELS_MAX and _INPUT_FAILED in lines[1]:
        text += ", nor could others between it and\n" + "\n".join(lines[2:])  # in the place of the next one, as deep
    elif isinstance(error, TaskError):
        text += ":\n" + "\n".join("    " + line for line in lines)
    else:
        text += f":\n    {type(error).__name__}: " + "\n    ".join(lines)
    return TaskError(function_name, text, cause).as_instanceof_cause()


def format_traceback(error: BaseException) -> str:
    """The traceback of `error` and its causes as text, without the first line and without frames of this package."""
    try:
        report = traceback.TracebackException(type(error), error, error.__traceback__, compact=True)
        _remove_own_frames(report, 0)
        text = "".join(report.format()).rstrip()
    except Exception as failure:  # a __str__ or __repr__ of the user's that misbehaves must not hide the failure
        return f"{type(error).__name__}: (its traceback cannot be shown: {type(failure).__name__})"
    prefix = "Traceback (most recent call last):\n"
    return text[len(prefix) :] if text.startswith(prefix) else text


def _remove_own_frames(report: traceback.TracebackException, depth: int) -> None:
    if depth > _FRAMES_MAX:
        return
    stack = report.stack
    if stack:
        kept = [frame for frame in stack if not frame.filename.startswith(_PACKAGE_DIR)] or stack[-1:]
        if kept:
            if len(kept) > _FRAMES_MAX:
                kept = kept[: _FRAMES_MAX // 2] + kept[-_FRAMES_MAX // 2 :]
            stack[:] = kept
    for inner in (report.__cause__, report.__context__, *(getattr(report, "exceptions", None) or ())):
        if inner is not None:
            _remove_own_frames(inner, depth + 1)
