"""Actors: what `@shoal.remote` makes of a class, and the handles of its instances.

Design: an `ActorClass` describes its methods once (`MethodTable`, plain values that travel with every handle). A handle makes an
`ActorMethod` for each method at its first use and keeps it as an attribute, so that later calls cost no lookup. A handle holds a ref to the
actor's handle object: when the last one goes, the actor ends. Handles from `get_actor` hold none.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from shoal import serialization
from shoal.api.environments import merged_environment
from shoal.api.options import ActorOptions, MethodOptions, resolve_num_returns
from shoal.api.scheduling_strategies import inherited_strategy
from shoal.api.signatures import SignatureChecker, constructor_checker
from shoal.protocol import errors, ids
from shoal.protocol.limits import ASYNC_CONCURRENCY_DEFAULT
from shoal.protocol.messages import (
    CHECKPOINT_INTERVAL,
    CHECKPOINT_SECONDS,
    KIND_ACTOR_CALL,
    READ_ONLY,
    REPLAYS,
    ActorSpec,
)
from shoal.runtime import core
from shoal.runtime.actor_calls import ActorQueue
from shoal.runtime.objects import ObjectEntry, ObjectRef, home_of
from shoal.runtime.tasks import Template

METHOD_OPTIONS = "__shoal_method_options__"
#: methods that every actor has, whatever its class: is it there, end after what is queued, call a function with the instance
EVERY_ACTOR = (
    "__ray_ready__",
    "__ray_terminate__",
    "__ray_call__",
    "__shoal_ready__",
    "__shoal_terminate__",
    "__shoal_call__",
)

#: method name -> {"given": its default options, "generator": whether it is one}
MethodTable = dict[str, Any]


def method(*args: Any, **options: Any) -> Any:
    """Default options of an actor's method: `@shoal.method(num_returns=2)`.

    Args:
        options: those of `api.options.MethodOptions`; `.options()` at a call overrides them.

    Raises:
        TypeError, ValueError: an option is unknown or out of range, or was given by position.
    """
    if args:
        if len(args) == 1 and callable(args[0]) and not options:
            return args[0]
        raise TypeError("shoal.method takes keyword options only, e.g. @shoal.method(num_returns=2)")
    MethodOptions.parse(options)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        setattr(function, METHOD_OPTIONS, options)
        return function

    return decorate


class ActorClass:
    """A class whose instances are actors: `A.remote(...)` starts one in a process of its own and returns its handle at once."""

    def __init__(self, cls: type, options: ActorOptions) -> None:
        self.__name__ = cls.__name__
        self.__qualname__ = cls.__qualname__
        self.__module__ = cls.__module__
        self.__doc__ = cls.__doc__
        self._class = cls
        self._options = options
        self._described: tuple[dict[str, SignatureChecker], MethodTable, bool] | None = None
        if options.takes_checkpoints:
            self._check_checkpoints()

    def _check_checkpoints(self) -> None:
        """Refuse what cannot be replayed, where it is written."""
        name = self.__name__
        option = "checkpoint_interval" if self._options.checkpoint_interval else "checkpoint_seconds"
        _, table, is_async = self._describe()
        refused = f"{name} has async methods" if is_async else ""
        for method_name, entry in table.items():
            if entry["generator"]:
                refused = refused or f"{name}.{method_name} is a generator"
            elif entry["given"].get("retry_exceptions"):
                refused = refused or f"{name}.{method_name} has retry_exceptions, and would run twice"
            elif entry["given"].get("concurrency_group"):
                refused = refused or f"{name}.{method_name} has a concurrency group"
        if refused:
            raise ValueError(
                f"{option} is for actors with plain methods that run one at a time, which can be replayed in their order; {refused}"
            )
        for one, other in (("save_checkpoint", "load_checkpoint"), ("load_checkpoint", "save_checkpoint")):
            if hasattr(self._class, one) and not hasattr(self._class, other):
                raise TypeError(f"{name} has {one}() and no {other}(): {option} needs both, or neither")

    @property
    def __shoal_metadata__(self) -> ActorMetadata:
        """The plain class and its name."""
        return ActorMetadata(self._class)

    __ray_metadata__ = __shoal_metadata__

    def _describe(self) -> tuple[dict[str, SignatureChecker], MethodTable, bool]:
        """Signature checkers, the method table, and whether any method is async; looked up once."""
        if self._described is None:
            self._described = self._look_up()
        return self._described

    def _look_up(self) -> tuple[dict[str, SignatureChecker], MethodTable, bool]:
        checkers: dict[str, SignatureChecker] = {}
        table: MethodTable = {}
        is_async = False
        cls = self._class
        for name in dir(cls):
            if name in _OBJECT_NAMES:
                continue
            static = inspect.getattr_static(cls, name)
            is_plain = not isinstance(static, (staticmethod, classmethod))
            function = static if is_plain else static.__func__
            if not callable(function) or isinstance(function, type):
                continue
            generator = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
            is_async = is_async or inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
            given = getattr(function, METHOD_OPTIONS, {})
            checkers[name] = SignatureChecker(function, skip_first=is_plain or isinstance(static, classmethod))
            table[name] = {"given": given, "generator": generator}
        return checkers, table, is_async

    def remote(self, /, *args: Any, **kwargs: Any) -> ActorHandle:
        """Start an actor; the constructor runs with these arguments in its process.

        Raises:
            TypeError: the arguments do not fit the constructor, or cannot be serialized.
            ValueError: the name is taken, or a method names a concurrency group that the actor does not have.
        """
        runtime = core.current()
        constructor_checker(self._class).check(args, kwargs)
        checkers, _, is_async = self._describe()
        self._check_groups()
        concurrency = self._options.max_concurrency or (ASYNC_CONCURRENCY_DEFAULT if is_async else 1)
        about = self._facts_for_handles(is_async, concurrency)
        class_id, code = runtime.export(self._class)
        runtime.actor_calls.publish_code(class_id, code)
        spec = self._spec(runtime, class_id, about, is_async, concurrency)
        ref, existing = runtime.actor_calls.create(spec, args, kwargs, self._options.get_if_exists, about["in_order"])
        if existing is not None:
            return _handle_of_spec(existing, strong=True)
        handle = ActorHandle(spec.actor_id, about, ref)
        handle.__dict__["_checkers"] = checkers
        return handle

    def _check_groups(self) -> None:
        """Refuse a method in a concurrency group that there is not."""
        for name, entry in self._describe()[1].items():
            group = entry["given"].get("concurrency_group")
            if group is not None and group not in self._options.concurrency_groups:
                raise ValueError(
                    f"method {self.__name__}.{name} names the concurrency group {group!r}, which the actor does not have"
                )

    def _facts_for_handles(self, is_async: bool, concurrency: int) -> dict[str, Any]:
        """What travels with every handle of the actor."""
        options = self._options
        in_order = not is_async and concurrency == 1 and not options.concurrency_groups
        if options.allow_out_of_order is not None:
            in_order = not options.allow_out_of_order
        return {
            "methods": self._describe()[1],
            "class_name": self.__name__,
            "in_order": in_order,
            "max_task_retries": options.max_task_retries,
            "max_pending_calls": options.max_pending_calls,
            "groups": list(options.concurrency_groups),
            "exact": options.takes_checkpoints,
        }

    def _spec(
        self, runtime: core.Runtime, class_id: bytes, about: dict[str, Any], is_async: bool, concurrency: int
    ) -> ActorSpec:
        """What the GCS and the actor's node are told; `ActorCalls.create` fills in what is still empty."""
        options = self._options
        checkpoints: dict[str, Any] = {}
        if options.takes_checkpoints:
            checkpoints = {
                CHECKPOINT_INTERVAL: options.checkpoint_interval,
                CHECKPOINT_SECONDS: options.checkpoint_seconds,
            }
        return ActorSpec(
            b"",
            class_id,
            self.__name__,
            runtime.job_id,
            options.name,
            options.namespace or runtime.namespace,
            options.demand,
            options.placement,
            b"",
            None,
            options.max_restarts,
            options.max_task_retries,
            concurrency,
            options.concurrency_groups,
            is_async,
            options.detached,
            inherited_strategy(options.strategy, options.capture),
            merged_environment(runtime, options.environment),
            serialization.dumps_inline(about),
            checkpoints,
            job_namespace=runtime.namespace,
        )

    def options(self, **options: Any) -> ActorClass:
        """The same class with other options; may be chained.

        Raises:
            ValueError, TypeError: an option is unknown or out of range.
        """
        other = ActorClass(self._class, self._options.merge(options))
        other._described = self._described
        return other

    def _remote(self, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None, **options: Any) -> ActorHandle:
        return (self.options(**options) if options else self).remote(*args, **(kwargs or {}))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        name = self._class.__name__
        raise TypeError(
            f"actor class {name} cannot be instantiated directly: call {name}.remote(), or {name}.__shoal_metadata__.modified_class"
        )

    def __getattr__(self, name: str) -> Any:
        cls = self.__dict__.get("_class")
        if cls is None or name.startswith("__") or not hasattr(cls, name):
            raise AttributeError(f"an actor class has no attribute {name!r}")
        raise AttributeError(
            f"{name!r} is of the class {cls.__name__}, and reached through an actor: make one first, "
            f"actor = {cls.__name__}.remote(), then call actor.{name}.remote()"
        )

    def __mro_entries__(self, bases: Any) -> Any:
        raise TypeError(
            f"an actor class cannot be a base class: inherit from the plain class (keep it before decorating: "
            f"{self.__name__}Actor = shoal.remote({self.__name__})) and decorate the new one"
        )

    def __repr__(self) -> str:
        return f"ActorClass({self.__name__})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore_class, (self._class, self._options.given)


class ActorMetadata:
    """What stands behind an ActorClass."""

    def __init__(self, cls: type) -> None:
        self.modified_class = cls
        self.class_name = cls.__name__


def _restore_class(cls: type, given: dict[str, Any]) -> ActorClass:
    return ActorClass(cls, ActorOptions.parse(given))


_OBJECT_NAMES = frozenset(dir(object)) | {
    "__dict__",
    "__weakref__",
    "__module__",
    "__annotations__",
    "__slots__",
    "__class_getitem__",
}


class ActorHandle:
    """A handle of an actor: `handle.method.remote(...)` calls it. Equal and hashable by actor; may be sent anywhere."""

    _actor_id_bytes: bytes
    _about: dict[str, Any]
    _ref: ObjectRef | None
    _checkers: dict[str, SignatureChecker]

    def __init__(self, actor_id: bytes, about: dict[str, Any], ref: ObjectRef | None) -> None:
        self.__dict__["_actor_id_bytes"] = actor_id
        self.__dict__["_about"] = about
        self.__dict__["_ref"] = ref
        self.__dict__["_checkers"] = {}

    @property
    def _actor_id(self) -> ids.ActorID:
        return ids.ActorID(self._actor_id_bytes)

    _ray_actor_id = _actor_id

    def __getattr__(self, name: str) -> ActorMethod:
        about = self.__dict__["_about"]
        entry = about["methods"].get(name)
        if entry is None:
            if name not in EVERY_ACTOR:
                raise AttributeError(
                    f"actor {about['class_name']} has no method {name!r}; attributes and properties are not reachable through a handle"
                )
            entry = {"given": {}, "generator": False}
        bound = ActorMethod(self, name, entry, MethodOptions.parse(entry["given"]))
        self.__dict__[name] = bound
        return bound

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("attributes of an actor cannot be set through its handle: give it a method that does")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorHandle) and other._actor_id_bytes == self._actor_id_bytes

    def __hash__(self) -> int:
        return hash(self._actor_id_bytes)

    def __repr__(self) -> str:
        return f"Actor({self._about['class_name']}, {self._actor_id_bytes.hex()})"

    def __reduce__(self) -> tuple[Any, ...]:
        ref = self._ref
        if ref is not None:
            serialization.collect(ref)
        return _restore_handle, (self._actor_id_bytes, self._about, None if ref is None else home_of(ref))


def _restore_handle(actor_id: bytes, about: dict[str, Any], home: bytes | None) -> ActorHandle:
    """A handle that holds the actor, whose handles `home` counts; None for one that does not."""
    ref = core.current().objects.borrow(ids.actor_handle_id(actor_id), home) if home is not None else None
    return ActorHandle(actor_id, about, ref)


def _handle_of_spec(spec: ActorSpec, strong: bool) -> ActorHandle:
    return _restore_handle(spec.actor_id, serialization.loads(spec.methods), spec.home if strong else None)


def _options_of_calls(runtime: core.Runtime, read_only: bool, is_exact: bool) -> dict[str, Any]:
    """What a method's calls say of themselves; `is_exact`: to an actor with checkpoints."""
    names = runtime.call_names
    if (
        names is not None
    ):  # a replayed caller must be told the same again, so what it is told is recorded, also by methods that change nothing
        return {REPLAYS: [names.actor_id, runtime.node_id]} if is_exact else {}
    return {READ_ONLY: True} if read_only else {}


class ActorMethod:
    """A method of one actor, seen through a handle."""

    # The handle keeps its methods; a method keeps the handle's ref, not the handle, so that no cycle delays the actor's end.

    def __init__(self, handle: ActorHandle, name: str, entry: dict[str, Any], options: MethodOptions) -> None:
        self._actor_id = handle._actor_id_bytes
        self._about = handle._about
        ref: ObjectRef | None = handle._ref
        self._ref = ref
        self._entry: ObjectEntry | None = ref._entry if ref is not None else None
        self._name = name
        self._described = entry
        self._options = options
        self._checker = handle._checkers.get(name)
        self._template: Template | None = None
        self._queue: ActorQueue | None = None
        self._runtime: core.Runtime | None = None
        self._max_pending = int(self._about["max_pending_calls"])

    def remote(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call the method; returns a ref (or refs, or a generator of refs) at once.

        Raises:
            TypeError: the arguments do not fit.
            PendingCallsLimitExceeded: max_pending_calls calls of this process are pending.
        """
        runtime = core._current
        if runtime is None:
            runtime = core.current()
        template = self._template
        if template is None or runtime is not self._runtime:
            template = self._bind(runtime)
        if self._checker is not None:
            self._checker.check(args, kwargs)
        if self._max_pending >= 0:
            self._check_pending()
        return runtime.submit(template, args, kwargs, self._queue, self._entry)

    def _check_pending(self) -> None:
        queue = self._queue
        assert queue is not None, "bound before"
        if queue.pending_calls() >= self._max_pending:
            raise errors.PendingCallsLimitExceeded(
                f"{queue.pending_calls()} calls of actor {self._about['class_name']} are pending here; max_pending_calls={self._max_pending}. "
                "Wait for some of them before calling again."
            )

    def _bind(self, runtime: core.Runtime) -> Template:
        options = self._options
        about = self._about
        name = self._name
        group = options.concurrency_group
        if group and group not in about["groups"]:
            raise ValueError(
                f"actor {about['class_name']} has no concurrency group {group!r}; it has {about['groups'] or 'none'}"
            )
        count = resolve_num_returns(options.num_returns, self._described["generator"], name)
        retries = about["max_task_retries"] if options.max_task_retries is None else options.max_task_retries
        if about["exact"] and options.retry_exceptions:
            raise ValueError(
                f"retry_exceptions does not go with the checkpoints of actor {about['class_name']}: every call runs once"
            )
        template = runtime.new_template(
            b"",
            b"",
            options.name or f"{about['class_name']}.{name}",
            KIND_ACTOR_CALL,
            count,
            max_retries=retries,
            retry_exceptions=options.retry_exceptions,
            method=name,
            concurrency_group=group,
            backpressure=options.backpressure,
            options=_options_of_calls(runtime, options.read_only, about["exact"]),
        )
        home = home_of(self._ref) if self._ref is not None else b""
        with runtime.reactor.lock:
            self._queue = runtime.actor_calls.queue_of(
                self._actor_id, about["class_name"], about["in_order"], home, about["exact"]
            )
        self._template, self._runtime = template, runtime
        return template

    def options(self, **options: Any) -> ActorMethod:
        """The same method with other options.

        Raises:
            ValueError, TypeError: an option is unknown or out of range.
        """
        handle = ActorHandle(self._actor_id, self._about, self._ref)
        bound = ActorMethod(handle, self._name, self._described, self._options.merge(options))
        bound._checker = self._checker
        return bound

    def _remote(self, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None, **options: Any) -> Any:
        return (self.options(**options) if options else self).remote(*args, **(kwargs or {}))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"an actor's method cannot be called directly: call {self._name}.remote()")

    def __repr__(self) -> str:
        return f"ActorMethod({self._about['class_name']}.{self._name}, actor {self._actor_id.hex()})"


def get_actor(name: str, namespace: str | None = None) -> ActorHandle:
    """The handle of a named actor; it does not keep the actor alive.

    Raises:
        ValueError: there is no such actor.
    """
    runtime = core.current()
    return _handle_of_spec(
        runtime.actor_calls.named(name, runtime.namespace if namespace is None else namespace), strong=False
    )


def exit_actor() -> None:
    """End the actor that runs this method, after it. The call itself fails with ActorDiedError.

    Raises:
        TypeError: not called inside of an actor.
    """
    task = core.running_task.get()
    if task is None or not task.actor_id:
        raise TypeError("exit_actor() is for methods of actors")
    from shoal.runtime.actor_host import ActorExit

    raise ActorExit(0)
