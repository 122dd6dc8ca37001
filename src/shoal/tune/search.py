"""Searchers: which configuration to try next.

Design: a searcher keeps nothing that could be lost. It is told of every trial created (`register`) and ended (`complete`), and an
experiment that is resumed tells a fresh one the same story again. Grid and random search draw configuration number i from the seed and i alone.

How to extend: subclass `Searcher`; `suggest` returns a configuration, `None` for "not now" (ask again when a trial has ended) or `FINISHED`.
"""

from __future__ import annotations

import random
from typing import Any

from shoal.tune.space import check, draw, grid_size, is_grid, merged

FINISHED = "finished"


class Searcher:
    """What a search algorithm does. `metric` and `mode` are given by `TuneConfig` unless the searcher has its own."""

    def __init__(self, metric: str | None = None, mode: str | None = None) -> None:
        self.metric = metric
        self.mode = mode

    def set_search_properties(self, metric: str | None, mode: str | None, space: dict[str, Any], samples: int) -> None:
        """Called once before anything else. `samples`: how many trials at most (-1: no end; for a grid, how many times all of it)."""
        self.metric = self.metric or metric
        self.mode = self.mode or mode or "max"

    def suggest(self, trial_id: str, index: int) -> dict[str, Any] | str | None:
        """The configuration of trial number `index`."""
        raise NotImplementedError

    def register(self, trial_id: str, index: int, config: dict[str, Any]) -> None:
        """A trial exists that this object did not suggest (the experiment is resumed)."""

    def complete(self, trial_id: str, metrics: dict[str, Any] | None, error: bool = False) -> None:
        """A trial has ended; `metrics` is its last result."""


class BasicVariantGenerator(Searcher):
    """Grids in full, everything else at random.

    Args:
        points_to_evaluate: (partial) configurations that the first trials take over.
        max_concurrent: how many trials at once (0: as many as fit).
        random_state: seed.
    """

    def __init__(
        self,
        points_to_evaluate: list[dict[str, Any]] | None = None,
        max_concurrent: int = 0,
        random_state: int | None = None,
    ) -> None:
        super().__init__()
        self.points = list(points_to_evaluate or [])
        self.max_concurrent = max_concurrent
        self.seed = random.SystemRandom().getrandbits(32) if random_state is None else random_state

    def set_search_properties(self, metric: str | None, mode: str | None, space: dict[str, Any], samples: int) -> None:
        """See `Searcher`."""
        super().set_search_properties(metric, mode, space, samples)
        check(space)
        without_grids = {name: None if is_grid(node) else node for name, node in space.items()}
        for point in self.points:
            merged(without_grids, point)  # says what a point has wrong before the first trial
        self._space = space
        self._combinations = grid_size(space)
        self._total = -1 if samples < 0 else samples * self._combinations

    def suggest(self, trial_id: str, index: int) -> dict[str, Any] | str | None:
        """See `Searcher`."""
        if 0 <= self._total <= index:
            return FINISHED
        config = draw(self._space, index % self._combinations, random.Random(f"{self.seed}/{index}"))
        if index < len(self.points):
            config = merged(config, self.points[index])
        return config


class ConcurrencyLimiter(Searcher):
    """At most `max_concurrent` suggestions of `searcher` that have no result yet."""

    def __init__(self, searcher: Searcher, max_concurrent: int) -> None:
        super().__init__()
        if max_concurrent < 1:
            raise ValueError(f"max_concurrent must be at least 1, not {max_concurrent}")
        self.searcher = searcher
        self.max_concurrent = max_concurrent
        self._live: set[str] = set()

    def set_search_properties(self, metric: str | None, mode: str | None, space: dict[str, Any], samples: int) -> None:
        """See `Searcher`."""
        self.searcher.set_search_properties(metric, mode, space, samples)

    def suggest(self, trial_id: str, index: int) -> dict[str, Any] | str | None:
        """See `Searcher`."""
        if len(self._live) >= self.max_concurrent:
            return None
        config = self.searcher.suggest(trial_id, index)
        if isinstance(config, dict):
            self._live.add(trial_id)
        return config

    def register(self, trial_id: str, index: int, config: dict[str, Any]) -> None:
        """See `Searcher`."""
        self._live.add(trial_id)
        self.searcher.register(trial_id, index, config)

    def complete(self, trial_id: str, metrics: dict[str, Any] | None, error: bool = False) -> None:
        """See `Searcher`."""
        self._live.discard(trial_id)
        self.searcher.complete(trial_id, metrics, error)
