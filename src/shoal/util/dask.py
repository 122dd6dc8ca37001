"""Dask on Shoal: graphs of dask.array, dask.dataframe, dask.bag and dask.delayed run as tasks.

    dask.config.set(scheduler=shoal_dask_get)          # or for one: x.compute(scheduler=shoal_dask_get)
    with enable_dask_on_shoal(): x.compute()

Design: each task of the (optimized) graph is one of ours, its dependencies are refs among its arguments: so they run where and when they can, large
chunks lie once in shared memory, and a chunk is freed when nobody needs it any more. Plain data of the graph travel with the tasks that need them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import shoal


def _dask() -> Any:
    try:
        import dask
        import dask._task_spec
        import dask.core
    except ImportError as error:
        raise ImportError("shoal.util.dask needs Dask 2024.12 or newer: pip install 'dask>=2024.12'") from error
    return dask


@shoal.remote
def _run(task: Any, names: list[Any], *values: Any) -> Any:
    """Run one task of a graph."""
    return task(dict(zip(names, values, strict=True)))


def shoal_dask_get(graph: Any, keys: Any, **options: Any) -> Any:
    """Compute `keys` (a key, or nested lists of keys) of a Dask graph (a mapping, or an expression): a scheduler as `dask.compute(scheduler=...)`
    takes it.

    Args:
        options: Dask's; `resources` may be options for the tasks ({"num_cpus": 2}).

    Raises:
        ImportError: Dask is not installed, or too old.
        Whatever a task of the graph raises.
    """
    dask = _dask()
    spec = dask._task_spec
    if hasattr(graph, "__dask_graph__"):  # an expression
        graph = graph.__dask_graph__()
    nodes = spec.convert_legacy_graph(dict(graph))
    run = _run.options(**options["resources"]) if options.get("resources") else _run
    wanted = set(_flat(keys))
    needed = _needed(nodes, wanted)
    left = dict.fromkeys(needed, 0)
    for key in needed:
        for dependency in nodes[key].dependencies:
            left[dependency] += 1
    found: dict[Hashable, Any] = {}
    for key in needed:
        node = nodes[key]
        if isinstance(node, spec.DataNode):
            found[key] = node.value
        elif isinstance(node, spec.Alias):
            found[key] = found[node.target]
        else:
            names = list(node.dependencies)
            found[key] = run.remote(node, names, *[found[name] for name in names])
        for dependency in node.dependencies:
            left[dependency] -= 1
            if not left[dependency] and dependency not in wanted:
                del found[dependency]  # its users hold what they need
    return _values(keys, found)


def _needed(nodes: Mapping[Any, Any], wanted: set[Any]) -> list[Any]:
    """The keys that `wanted` depends on, dependencies first."""
    order: list[Any] = []
    seen: set[Any] = set()
    for key in sorted(wanted, key=str):
        stack = [(key, iter(sorted(nodes[key].dependencies, key=str)))] if key not in seen else []
        seen.add(key)
        while stack:
            at, dependencies = stack[-1]
            following = next((each for each in dependencies if each not in seen), None)
            if following is None:
                order.append(at)
                stack.pop()
            else:
                seen.add(following)
                stack.append((following, iter(sorted(nodes[following].dependencies, key=str))))
    return order


def _flat(keys: Any) -> Iterator[Any]:
    if isinstance(keys, list):
        for each in keys:
            yield from _flat(each)
    else:
        yield keys


def _values(keys: Any, found: Mapping[Any, Any]) -> Any:
    """`keys` with values in their places, all of them fetched at once."""
    refs = [found[key] for key in _flat(keys)]
    places = [place for place, ref in enumerate(refs) if isinstance(ref, shoal.ObjectRef)]
    for place, value in zip(places, shoal.get([refs[place] for place in places]), strict=True):
        refs[place] = value
    values = iter(refs)

    def filled(shape: Any) -> Any:
        return [filled(each) for each in shape] if isinstance(shape, list) else next(values)

    return filled(keys)


@contextlib.contextmanager
def enable_dask_on_shoal(**options: Any) -> Iterator[None]:
    """Dask's computations in this `with` run on Shoal. `options` are further ones of Dask's configuration."""
    with _dask().config.set(scheduler=shoal_dask_get, **options):
        yield
