"""Results as they come: `as_completed` for refs that exist, `map_unordered` for a stream of work with a bound on what is in flight."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import shoal


def as_completed(refs: Iterable[Any], *, chunk_size: int = 10, yield_obj_refs: bool = False) -> Iterator[Any]:
    """The results of `refs` in the order in which they become ready.

    Args:
        refs: ObjectRefs; a repeated one is given once.
        chunk_size: how many ready ones are fetched in one go; never waits for more than one.
        yield_obj_refs: give the refs themselves, so that a failed one does not end the loop.

    Raises:
        ValueError: `chunk_size` is less than 1.
        Whatever a task raised, when its turn comes.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    rest = list(dict.fromkeys(refs))
    while rest:
        ready, rest = _some_ready(rest, chunk_size)
        if yield_obj_refs:
            yield from ready
        else:
            while ready:
                ref = ready.pop(0)
                yield shoal.get(ref)


def map_unordered(
    fn: Any,
    items: Iterable[Any],
    *,
    backpressure_size: int | None = 100,
    chunk_size: int = 10,
    yield_obj_refs: bool = False,
) -> Iterator[Any]:
    """`fn.remote(item)` for every item, results as they become ready.

    Args:
        fn: a remote function, or a method of an actor handle.
        items: read only as far as work is submitted.
        backpressure_size: how many calls may be in flight; None submits everything at once.
        chunk_size: how many ready results are fetched in one go.
        yield_obj_refs: give refs instead of values.

    Raises:
        TypeError: `fn` is not remote.
        ValueError: a size is less than 1, or `backpressure_size` than `chunk_size`.
        Whatever a call raised, when its turn comes.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    if backpressure_size is not None and backpressure_size < chunk_size:
        raise ValueError(f"backpressure_size ({backpressure_size}) must be at least chunk_size ({chunk_size})")
    if not hasattr(fn, "remote"):
        raise TypeError(
            f"map_unordered needs a remote function, got {type(fn).__name__}; decorate it with @shoal.remote"
        )
    source = iter(items)
    exhausted = False
    flying: list[Any] = []
    while True:
        while not exhausted and (backpressure_size is None or len(flying) < backpressure_size):
            try:
                item = next(source)
            except StopIteration:
                exhausted = True
            else:
                flying.append(fn.remote(item))
        if not flying:
            return
        ready, flying = _some_ready(flying, chunk_size)
        for ref in ready:
            yield ref if yield_obj_refs else shoal.get(ref)


def _some_ready(refs: list[Any], most: int) -> tuple[list[Any], list[Any]]:
    """Wait for one, and take with it up to `most` that are ready as well."""
    ready, rest = shoal.wait(refs, num_returns=1)
    if rest and most > 1:
        more, rest = shoal.wait(rest, num_returns=min(most - 1, len(rest)), timeout=0)
        ready = [*ready, *more]
    return ready, rest  # the rest as it is: it remembers its registration
