"""Options are checked where they are written; signatures where the call is written."""

import functools

import pytest

from shoal.api.options import (
    ActorOptions,
    MethodOptions,
    TaskOptions,
    UnknownOptionError,
    resolve_num_returns,
)
from shoal.api.signatures import SignatureChecker, constructor_checker
from shoal.protocol.messages import NUM_RETURNS_DYNAMIC, NUM_RETURNS_STREAMING


def test_defaults():
    task = TaskOptions.parse({})
    assert task.demand == {"CPU": 10_000} and task.max_retries == 3 and task.num_returns is None
    actor = ActorOptions.parse({})
    assert actor.demand == {} and actor.placement == {"CPU": 10_000} and actor.max_concurrency is None
    assert MethodOptions.parse({}).max_task_retries is None


def test_demand():
    demand = TaskOptions.parse({"num_cpus": 0.5, "num_gpus": 2, "resources": {"x": 1}, "memory": 100}).demand
    assert demand == {"CPU": 5000, "GPU": 20_000, "x": 10_000, "memory": 1_000_000}
    assert TaskOptions.parse({"num_cpus": 0}).demand == {}
    assert TaskOptions.parse({"num_gpus": 1}).demand == {"CPU": 10_000, "GPU": 10_000}
    actor = ActorOptions.parse({"num_gpus": 1})
    assert actor.demand == actor.placement == {"GPU": 10_000}
    actor = ActorOptions.parse({"num_cpus": 1})
    assert actor.demand == actor.placement == {"CPU": 10_000}
    actor = ActorOptions.parse({"num_cpus": 0})
    assert actor.demand == actor.placement == {}


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (TaskOptions, {"num_cpus": -1}),
        (TaskOptions, {"num_cpus": float("nan")}),
        (TaskOptions, {"num_cpus": float("inf")}),
        (TaskOptions, {"num_gpus": 1.5}),
        (TaskOptions, {"resources": {"CPU": 1}}),
        (TaskOptions, {"resources": {"x": -1}}),
        (TaskOptions, {"num_returns": -3}),
        (TaskOptions, {"num_returns": 10**12}),
        (TaskOptions, {"num_returns": "all"}),
        (TaskOptions, {"max_retries": -2}),
        (TaskOptions, {"max_calls": -1}),
        (TaskOptions, {"scheduling_strategy": "RANDOM"}),
        (TaskOptions, {"runtime_env": {"pip": ["x"]}}),
        (TaskOptions, {"runtime_env": {"env_vars": {"a=b": "c"}}}),
        (TaskOptions, {"_generator_backpressure_num_objects": 0}),
        (TaskOptions, {"placement_group_bundle_index": -2}),
        (TaskOptions, {"placement_group_bundle_index": 0}),
        (TaskOptions, {"label_selector": {"zone": "in(a"}}),
        (ActorOptions, {"scheduling_strategy": "SPRAED"}),
        (ActorOptions, {"lifetime": "forever"}),
        (ActorOptions, {"name": ""}),
        (ActorOptions, {"get_if_exists": True}),
        (ActorOptions, {"max_concurrency": 0}),
        (ActorOptions, {"max_restarts": -5}),
        (ActorOptions, {"concurrency_groups": {"io": 0}}),
        (MethodOptions, {"concurrency_group": ""}),
    ],
)
def test_absurd_values(kind, given):
    with pytest.raises(ValueError, match=next(iter(given))[:3]):
        kind.parse(given)
    with pytest.raises(ValueError):
        kind.parse({}).merge(given)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (TaskOptions, {"num_cpus": "2"}),
        (TaskOptions, {"num_cpus": True}),
        (TaskOptions, {"resources": ["x"]}),
        (TaskOptions, {"num_returns": 1.5}),
        (TaskOptions, {"num_returns": True}),
        (TaskOptions, {"max_retries": "3"}),
        (TaskOptions, {"retry_exceptions": ValueError}),
        (TaskOptions, {"retry_exceptions": [1]}),
        (TaskOptions, {"name": 3}),
        (TaskOptions, {"runtime_env": "x"}),
        (TaskOptions, {"runtime_env": {"env_vars": {"A": 1}}}),
        (TaskOptions, {"placement_group": object()}),
        (TaskOptions, {"label_selector": {"zone": 1}}),
        (TaskOptions, {"placement_group_capture_child_tasks": 1}),
        (ActorOptions, {"name": 3}),
        (ActorOptions, {"get_if_exists": 1}),
        (ActorOptions, {"max_concurrency": 2.0}),
    ],
)
def test_wrong_types(kind, given):
    with pytest.raises(TypeError):
        kind.parse(given)


def test_unknown_names():
    with pytest.raises(ValueError, match=r"did you mean 'num_cpus'.*Valid options: .*max_retries"):
        TaskOptions.parse({"num_cpu": 1})
    with pytest.raises(ValueError, match="option of tasks"):
        ActorOptions.parse({"max_retries": 1})
    with pytest.raises(TypeError):
        MethodOptions.parse({"nope": 1})
    with pytest.raises(UnknownOptionError):
        ActorOptions.parse({"checkpoint_intervals": 1})


def test_merging():
    base = TaskOptions.parse({"num_cpus": 2, "resources": {"x": 1}, "max_calls": 5, "retry_exceptions": [KeyError]})
    merged = base.merge({"num_gpus": 1}).merge({"num_cpus": 3, "name": "n"})
    assert merged.demand == {"CPU": 30_000, "GPU": 10_000, "x": 10_000}
    assert merged.max_calls == 5 and merged.name == "n" and merged.retry_exceptions == (KeyError,)
    assert base.demand == {"CPU": 20_000, "x": 10_000}
    assert merged.merge({"resources": None, "num_cpus": None}).demand == {"CPU": 10_000, "GPU": 10_000}
    assert base.merge({}) is base
    with pytest.raises(ValueError, match="decorator only"):
        base.merge({"max_calls": 1})
    with pytest.raises(ValueError, match="decorator only"):
        ActorOptions.parse({}).merge({"concurrency_groups": {"io": 1}})


def test_accepted_forms():
    assert TaskOptions.parse({"scheduling_strategy": "SPREAD"}).strategy == {"kind": "SPREAD"}
    assert TaskOptions.parse({"scheduling_strategy": "DEFAULT"}).strategy == {}
    assert TaskOptions.parse({"runtime_env": {"env_vars": {"A": "1"}}}).environment == {"env_vars": {"A": "1"}}
    assert TaskOptions.parse({"num_returns": "streaming"}).num_returns == NUM_RETURNS_STREAMING
    assert ActorOptions.parse({"concurrency_groups": {"io": 2}}).concurrency_groups == {"io": 2}
    assert ActorOptions.parse({"lifetime": "detached", "name": "a", "get_if_exists": True}).detached
    assert TaskOptions.parse({"accelerator_type": "T4"}).demand == {"CPU": 10_000, "accelerator_type:T4": 10}


def test_num_returns_of_generators():
    assert resolve_num_returns(None, True, "f") == NUM_RETURNS_STREAMING
    assert resolve_num_returns(None, False, "f") == 1
    assert resolve_num_returns(3, True, "f") == 3
    assert resolve_num_returns(NUM_RETURNS_DYNAMIC, True, "f") == NUM_RETURNS_DYNAMIC
    with pytest.raises(ValueError, match="generator"):
        resolve_num_returns(NUM_RETURNS_STREAMING, False, "f")


# ---------------------------------------------------------------- signatures


def f0():
    pass


def f2(a, b=1):
    pass


def f_args(a, *args):
    pass


def f_keywords(a, *, b, c=1):
    pass


def f_only(a, /, b, **rest):
    pass


def f_all(*args, **kwargs):
    pass


CALLS = [
    ((), {}),
    ((1,), {}),
    ((1, 2), {}),
    ((1, 2, 3), {}),
    ((1,), {"b": 1}),
    ((1,), {"a": 1}),
    ((), {"a": 1}),
    ((), {"a": 1, "b": 2}),
    ((1,), {"z": 1}),
    ((1,), {"b": 1, "z": 1}),
    ((1,), {"c": 1}),
]


@pytest.mark.parametrize(
    "function",
    [f0, f2, f_args, f_keywords, f_only, f_all, functools.partial(f_keywords, b=1), functools.partial(f2, 1)],
)
@pytest.mark.parametrize(("args", "kwargs"), CALLS)
def test_raises_as_the_function_does(function, args, kwargs):
    checker = SignatureChecker(function)
    try:
        function(*args, **kwargs)
    except TypeError as error:
        with pytest.raises(TypeError) as caught:
            checker.check(args, kwargs)
        if not isinstance(function, functools.partial):
            assert str(caught.value) == str(error)
    else:
        checker.check(args, kwargs)
        checker.check(list(args), kwargs or None)


class Plain:
    def method(self, a, b=1):
        pass

    def nothing():  # noqa: N805
        pass


class WithInit:
    def __init__(self, a, *, b=1):
        pass


class WithNew:
    def __new__(cls, a):
        return super().__new__(cls)


class Dict(dict):
    pass


def test_methods():
    checker = SignatureChecker(Plain.method, skip_first=True)
    checker.check((1,), {})
    checker.check((1, 2), {})
    checker.check((), {"a": 1, "b": 2})
    for args in ((), (1, 2, 3)):
        with pytest.raises(TypeError) as real:
            Plain().method(*args)
        with pytest.raises(TypeError) as ours:
            checker.check(args, {})
        assert str(ours.value) == str(real.value)
    with pytest.raises(TypeError):
        SignatureChecker(Plain.nothing, skip_first=True).check((), {})


def test_constructors():
    constructor_checker(WithInit).check((1,), {"b": 2})
    constructor_checker(WithNew).check((1,), {})
    constructor_checker(Plain).check((), {})
    constructor_checker(Dict).check((), {"anything": 1})
    for cls, args, kwargs in (
        (WithInit, (), {}),
        (WithInit, (1, 2), {}),
        (WithNew, (), {}),
        (Plain, (1,), {}),
        (Plain, (), {"a": 1}),
    ):
        with pytest.raises(TypeError):
            cls(*args, **kwargs)
        with pytest.raises(TypeError):
            constructor_checker(cls).check(args, kwargs)


def test_functions_without_a_signature_are_accepted():
    for function in (max, print, dict, "x".join):
        SignatureChecker(function).check((["1"],), {})
    with pytest.raises(TypeError):
        SignatureChecker(len).check((), {})
