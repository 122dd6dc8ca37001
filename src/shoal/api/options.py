"""Options of tasks, actors and methods: checked where they are written, and brought into one form.

Purpose: `TaskOptions`, `ActorOptions` and `MethodOptions`.

Design: each class parses a dict once and keeps what was given, so that chained `.options()` merge what users wrote (a later value wins,
None takes an earlier one back) and the derived values (demand in units) are computed anew from the whole. An unknown name is an error
that lists the valid ones. Every option has one checking function; the tables at the end name them.

How to extend: a check, a row in the table, a field.

What it does not do: decide what depends on the function (a generator streams: `resolve_num_returns`) or on the class (an asyncio
actor's concurrency).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from shoal.api.mistakes import did_you_mean
from shoal.api.scheduling_strategies import check_group, check_label_selector, check_strategy, strategy_of
from shoal.protocol.limits import MAX_RETRIES_DEFAULT
from shoal.protocol.messages import NUM_RETURNS_DYNAMIC, NUM_RETURNS_STREAMING
from shoal.protocol.resources import CPU, GPU, MEMORY, Resources, to_units

NUM_RETURNS_MAX = 1_000_000
CONCURRENCY_MAX = 1_000_000
_COUNT_MAX = 2**31 - 1
_ACCELERATOR_SHARE = 0.001  #: of the resource that stands for a kind of accelerator


class UnknownOptionError(ValueError, TypeError):
    """No such option. (Programs catch ValueError for tasks and actors, TypeError for methods.)"""


# ---------------------------------------------------------------- checks of single values


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _counting(least: int, most: int = _COUNT_MAX) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        if not _is_count(value):
            raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
        if not least <= value <= most:
            meaning = ", where -1 means without limit" if least == -1 else ""
            raise ValueError(f"{name} must be between {least} and {most}{meaning}; got {value}")
        return int(value)

    return check


def _one_of_type(kind: type | tuple[type, ...], words: str) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> Any:
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be {words}, got {value!r} of type {type(value).__name__}")
        return value

    return check


def _non_empty_text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {value!r} of type {type(value).__name__}")
    if not value:
        raise ValueError(f"{name} must not be empty")
    return value


def _quantity(name: str, value: Any) -> Any:
    try:
        to_units({{"num_cpus": CPU, "num_gpus": GPU}.get(name, MEMORY): value})
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}={value!r}: {error}") from None
    return value


def _positive_seconds(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, got {value!r} of type {type(value).__name__}")
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be a positive number of seconds; got {value!r}")
    return float(value)


def _custom_resources(name: str, value: Any) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict from names to amounts, got {value!r} of type {type(value).__name__}")
    for reserved, option in ((CPU, "num_cpus"), (GPU, "num_gpus"), (MEMORY, "memory")):
        if reserved in value:
            raise ValueError(f"use {option}= in place of the resource {reserved!r}")
    to_units(value)
    return dict(value)


def _num_returns(name: str, value: Any) -> int:
    if value == "streaming":
        return NUM_RETURNS_STREAMING
    if value == "dynamic":
        return NUM_RETURNS_DYNAMIC
    if isinstance(value, str):
        raise ValueError(f"{name} must be a number, 'streaming' or 'dynamic'; got {value!r}")
    return _counting(0, NUM_RETURNS_MAX)(name, value)


def _retry_exceptions(name: str, value: Any) -> bool | tuple[type[BaseException], ...]:
    if isinstance(value, bool):
        return value
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{name} must be a bool or a list of exception classes, got {value!r}")
    for item in value:
        if not isinstance(item, type) or not issubclass(item, BaseException):
            raise TypeError(f"{name} must be a bool or a list of exception classes; {item!r} is none")
    return tuple(value)


def _backpressure(name: str, value: Any) -> int:
    if _is_count(value) and value == 0:
        raise ValueError(f"{name} must be positive, or -1 for no limit; got 0")
    return _counting(-1)(name, value)


def check_environment(name: str, value: Any) -> dict[str, Any]:
    """A runtime environment in its checked form.

    Raises:
        ValueError, TypeError: it asks for what this version does not have, or is not a dict of the right shape.
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict, got {value!r} of type {type(value).__name__}")
    for key in value:
        if key != "env_vars":
            near = did_you_mean(str(key), ["env_vars"])
            raise ValueError(f"{name} has the key {key!r}; this version knows only 'env_vars'{near}")
    variables = value.get("env_vars") or {}
    if not isinstance(variables, Mapping):
        raise TypeError(f"{name}['env_vars'] must be a dict of strings, got {variables!r}")
    for key, text in variables.items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise TypeError(f"{name}['env_vars'] must map strings to strings, got {key!r}: {text!r}")
        if not key or "=" in key or "\0" in key or "\0" in text:
            raise ValueError(f"{name}['env_vars'] has the impossible variable {key!r}={text!r}")
    return {"env_vars": dict(variables)} if variables else {}


def _not_yet(name: str, value: Any) -> None:
    if value in ({}, [], "", -1, "default", False):
        return
    raise ValueError(f"{name} is not supported in this version; got {value!r}")


def _ignored(name: str, value: Any) -> Any:
    return value


def _lifetime(name: str, value: Any) -> str:
    if value not in ("detached", "non_detached"):
        raise ValueError(f"{name} must be None, 'detached' or 'non_detached'; got {value!r}")
    return str(value)


def _concurrency_groups(name: str, value: Any) -> dict[str, int]:
    if isinstance(value, (list, tuple)):  # the older form: [{"name": "io", "max_concurrency": 2, ...}]
        value = {item["name"]: item["max_concurrency"] for item in value}
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict from names to numbers of threads, got {value!r}")
    for group, count in value.items():
        _non_empty_text(f"a name in {name}", group)
        _counting(1, CONCURRENCY_MAX)(f"{name}[{group!r}]", count)
    return dict(value)


_a_bool = _one_of_type(bool, "True or False")
_a_dict = _one_of_type(Mapping, "a dict")
_a_text = _one_of_type(str, "a string")

_Check = Callable[[str, Any], Any]

_RESOURCE_CHECKS: dict[str, _Check] = {
    "num_cpus": _quantity,
    "num_gpus": _quantity,
    "resources": _custom_resources,
    "memory": _quantity,
    "object_store_memory": _ignored,
    "accelerator_type": _non_empty_text,
    "runtime_env": check_environment,
    "scheduling_strategy": check_strategy,
    "label_selector": check_label_selector,
    "fallback_strategy": _not_yet,
    "placement_group": check_group,
    "placement_group_bundle_index": _counting(-1),
    "placement_group_capture_child_tasks": _a_bool,
    "enable_task_events": _a_bool,
    "_metadata": _a_dict,
    "_labels": _ignored,
}
TASK_CHECKS: dict[str, _Check] = {
    **_RESOURCE_CHECKS,
    "name": _a_text,
    "num_returns": _num_returns,
    "max_retries": _counting(-1),
    "retry_exceptions": _retry_exceptions,
    "max_calls": _counting(0),
    "_generator_backpressure_num_objects": _backpressure,
}
ACTOR_CHECKS: dict[str, _Check] = {
    **_RESOURCE_CHECKS,
    "name": _non_empty_text,
    "namespace": _non_empty_text,
    "lifetime": _lifetime,
    "get_if_exists": _a_bool,
    "max_restarts": _counting(-1),
    "max_task_retries": _counting(-1),
    "max_concurrency": _counting(1, CONCURRENCY_MAX),
    "concurrency_groups": _concurrency_groups,
    "max_pending_calls": _backpressure,
    "allow_out_of_order_execution": _a_bool,
    "checkpoint_interval": _counting(1),
    "checkpoint_seconds": _positive_seconds,
    "enable_tensor_transport": _ignored,
}
METHOD_CHECKS: dict[str, _Check] = {
    "name": _a_text,
    "num_returns": _num_returns,
    "concurrency_group": _non_empty_text,
    "max_task_retries": _counting(-1),
    "retry_exceptions": _retry_exceptions,
    "enable_task_events": _a_bool,
    "read_only": _a_bool,
    "_generator_backpressure_num_objects": _backpressure,
    "tensor_transport": _ignored,
}
_ALL_CHECKS = (("tasks", TASK_CHECKS), ("actors", ACTOR_CHECKS), ("actor methods", METHOD_CHECKS))


def _checked(of: str, checks: dict[str, _Check], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `given` in their checked form; those that are None are left out."""
    values: dict[str, Any] = {}
    for key, value in given.items():
        check = checks.get(key)
        if check is None:
            raise _unknown(of, checks, key)
        if value is not None:
            values[key] = check(key, value)
    return values


def _unknown(of: str, checks: dict[str, _Check], key: str) -> UnknownOptionError:
    elsewhere = [others for others, table in _ALL_CHECKS if key in table and others != of]
    valid = [name for name in checks if not name.startswith("_")]
    hint = f"; it is an option of {' and '.join(elsewhere)}" if elsewhere else did_you_mean(str(key), valid)
    end = "" if hint.endswith("?") else "."
    return UnknownOptionError(f"{key!r} is no option of {of}{hint}{end} Valid options: {', '.join(sorted(valid))}.")


# ---------------------------------------------------------------- the options themselves

O = TypeVar("O", bound="_Options")


@dataclass(slots=True)
class _Options:
    """Base of the three kinds."""

    OF: ClassVar[str] = ""
    CHECKS: ClassVar[dict[str, _Check]] = {}
    #: options that may stand at the decorator only
    DECORATOR_ONLY: ClassVar[tuple[str, ...]] = ()

    #: what the user wrote, without Nones
    given: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls: type[O], given: Mapping[str, Any]) -> O:
        """The options written at a decorator.

        Raises:
            ValueError: an unknown option, or a value out of range.
            TypeError: a value of the wrong type.
        """
        values = _checked(cls.OF, cls.CHECKS, given)
        options = cls({key: value for key, value in given.items() if value is not None})
        options._fill(values)
        return options

    def merge(self: O, more: Mapping[str, Any]) -> O:
        """These options with `more` written over them; raises as `parse` does, and for what only a decorator may say."""
        for key in self.DECORATOR_ONLY:
            if more.get(key) is not None:
                raise ValueError(f"{key!r} can be given at the decorator only, not in .options()")
        return type(self).parse({**self.given, **more}) if more else self

    def _fill(self, values: dict[str, Any]) -> None:
        raise NotImplementedError


@dataclass(slots=True)
class TaskOptions(_Options):
    """Options of a remote function; `TaskOptions.parse({})` has the defaults."""

    OF: ClassVar[str] = "tasks"
    CHECKS: ClassVar[dict[str, _Check]] = TASK_CHECKS
    DECORATOR_ONLY: ClassVar[tuple[str, ...]] = ("max_calls",)

    demand: Resources = field(default_factory=dict)  #: in 1/10,000 units
    num_returns: int | None = None  #: a count or NUM_RETURNS_*; None when the function decides
    max_retries: int = MAX_RETRIES_DEFAULT  #: -1 without limit
    retry_exceptions: bool | tuple[type[BaseException], ...] = False
    max_calls: int = 0  #: 0 without limit
    name: str = ""  #: for display
    environment: dict[str, Any] = field(default_factory=dict)
    strategy: dict[str, Any] = field(default_factory=dict)
    #: whether it goes into the placement group of whoever asks for it; None: if that one says so
    capture: bool | None = None
    backpressure: int = -1  #: items of a stream that may wait unread; -1 without limit
    enable_task_events: bool = True

    def _fill(self, values: dict[str, Any]) -> None:
        quantities = _named_quantities(values)
        quantities.setdefault(CPU, 1)
        self.demand = to_units(quantities)
        self.num_returns = values.get("num_returns")
        self.max_retries = values.get("max_retries", MAX_RETRIES_DEFAULT)
        self.retry_exceptions = values.get("retry_exceptions", False)
        self.max_calls = values.get("max_calls", 0)
        self.name = values.get("name", "")
        self.environment = values.get("runtime_env", {})
        self.strategy, self.capture = strategy_of(values, self.demand)
        self.backpressure = values.get("_generator_backpressure_num_objects", -1)
        self.enable_task_events = values.get("enable_task_events", True)


@dataclass(slots=True)
class ActorOptions(_Options):
    """Options of an actor class; `ActorOptions.parse({})` has the defaults."""

    OF: ClassVar[str] = "actors"
    CHECKS: ClassVar[dict[str, _Check]] = ACTOR_CHECKS
    DECORATOR_ONLY: ClassVar[tuple[str, ...]] = ("concurrency_groups",)

    demand: Resources = field(default_factory=dict)  #: while alive, in 1/10,000 units
    placement: Resources = field(default_factory=dict)  #: to be placed, in 1/10,000 units
    name: str = ""  #: empty for none
    namespace: str = ""  #: empty for the job's
    detached: bool = False
    get_if_exists: bool = False
    max_restarts: int = 0  #: -1 without limit
    max_task_retries: int = 0  #: -1 without limit
    max_concurrency: int | None = None  #: None when the class decides (1, or more for asyncio actors)
    concurrency_groups: dict[str, int] = field(default_factory=dict)
    max_pending_calls: int = -1  #: -1 without limit
    environment: dict[str, Any] = field(default_factory=dict)
    strategy: dict[str, Any] = field(default_factory=dict)
    #: whether it goes into the placement group of whoever asks for it; None: if that one says so
    capture: bool | None = None
    allow_out_of_order: bool | None = None  #: None when the class decides
    checkpoint_interval: int = 0  #: recorded calls between checkpoints; 0 for no such limit
    checkpoint_seconds: float = 0.0  #: time between checkpoints; 0 for no such limit
    enable_task_events: bool = True

    def _fill(self, values: dict[str, Any]) -> None:
        quantities = _named_quantities(values)
        self.demand = to_units(quantities)
        # An actor that asks for nothing takes a CPU to be placed, so that they spread, and none while it lives.
        self.placement = to_units(quantities or {CPU: 1})
        self.name = values.get("name", "")
        self.namespace = values.get("namespace", "")
        self.detached = values.get("lifetime") == "detached"
        self.get_if_exists = values.get("get_if_exists", False)
        if self.get_if_exists and not self.name:
            raise ValueError("get_if_exists=True needs a name: without one there is nothing to look for")
        self.checkpoint_interval = values.get("checkpoint_interval", 0)
        self.checkpoint_seconds = values.get("checkpoint_seconds", 0.0)
        self.max_restarts = values.get("max_restarts", -1 if self.takes_checkpoints else 0)
        self._check_checkpoints(values)
        self.max_task_retries = values.get("max_task_retries", 0)
        self.max_concurrency = values.get("max_concurrency")
        self.concurrency_groups = values.get("concurrency_groups", {})
        self.max_pending_calls = values.get("max_pending_calls", -1)
        self.environment = values.get("runtime_env", {})
        need = {**self.demand, **{each: max(n, self.demand.get(each, 0)) for each, n in self.placement.items()}}
        self.strategy, self.capture = strategy_of(values, need)
        self.allow_out_of_order = values.get("allow_out_of_order_execution")
        self.enable_task_events = values.get("enable_task_events", True)

    @property
    def takes_checkpoints(self) -> bool:
        """Whether the actor's state is to survive its process."""
        return bool(self.checkpoint_interval or self.checkpoint_seconds)

    def _check_checkpoints(self, values: dict[str, Any]) -> None:
        if not self.takes_checkpoints:
            return
        option = "checkpoint_interval" if self.checkpoint_interval else "checkpoint_seconds"
        refused = ""
        if values.get("max_concurrency", 1) > 1:
            refused = f"max_concurrency={values['max_concurrency']}"
        elif values.get("concurrency_groups"):
            refused = "concurrency_groups"
        elif values.get("allow_out_of_order_execution"):
            refused = "allow_out_of_order_execution"
        if refused:
            raise ValueError(
                f"{option} does not go with {refused}: the state can be had again by replaying calls only if they run "
                "one at a time, in one order"
            )
        if self.max_restarts == 0:
            raise ValueError(
                f"{option} does not go with max_restarts=0: without a restart nobody reads a checkpoint. "
                "Leave max_restarts out for restarts without limit"
            )


@dataclass(slots=True)
class MethodOptions(_Options):
    """Options of an actor's method; `MethodOptions.parse({})` has the defaults."""

    OF: ClassVar[str] = "actor methods"
    CHECKS: ClassVar[dict[str, _Check]] = METHOD_CHECKS

    num_returns: int | None = None  #: a count or NUM_RETURNS_*; None when the method decides
    name: str = ""
    concurrency_group: str = ""
    max_task_retries: int | None = None  #: None for the actor's
    retry_exceptions: bool | tuple[type[BaseException], ...] = False
    backpressure: int = -1
    read_only: bool = False  #: it does not change the actor's state
    enable_task_events: bool = True

    def _fill(self, values: dict[str, Any]) -> None:
        self.num_returns = values.get("num_returns")
        self.read_only = values.get("read_only", False)
        self.name = values.get("name", "")
        self.concurrency_group = values.get("concurrency_group", "")
        self.max_task_retries = values.get("max_task_retries")
        self.retry_exceptions = values.get("retry_exceptions", False)
        self.backpressure = values.get("_generator_backpressure_num_objects", -1)
        self.enable_task_events = values.get("enable_task_events", True)


def _named_quantities(values: Mapping[str, Any]) -> dict[str, float]:
    """What the user asked for, by resource name, and nothing else: no CPU unless `num_cpus` was given."""
    quantities: dict[str, float] = {}
    for option, resource in (("num_cpus", CPU), ("num_gpus", GPU), ("memory", MEMORY)):
        if option in values:
            quantities[resource] = values[option]
    quantities.update(values.get("resources", {}))
    if "accelerator_type" in values:
        quantities[f"accelerator_type:{values['accelerator_type']}"] = _ACCELERATOR_SHARE
    return quantities


def resolve_num_returns(num_returns: int | None, is_generator: bool, function_name: str) -> int:
    """The number of returns of a function: what was given, else a stream for generators and 1 for others.

    Raises:
        ValueError: a stream was asked of a function that is no generator.
    """
    if num_returns is None:
        return NUM_RETURNS_STREAMING if is_generator else 1
    if num_returns in (NUM_RETURNS_STREAMING, NUM_RETURNS_DYNAMIC) and not is_generator:
        word = "streaming" if num_returns == NUM_RETURNS_STREAMING else "dynamic"
        raise ValueError(f"num_returns={word!r} needs a generator function, and {function_name}() is none")
    return num_returns
