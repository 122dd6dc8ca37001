"""The table of trials in the terminal.

Design: on a terminal (and in a notebook) one live table that is redrawn in place; elsewhere, if asked for, the table now and then. The best
trials come first, so that a search of thousands fits a screen.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from shoal.tune.experiment import Experiment
from shoal.tune.space import flattened
from shoal.tune.trial import ERROR, RUNNING, Trial

ROWS_MAX = 20
COLUMNS_MAX = 5  #: of the configuration
REDRAW_S = 0.5
LINE_S = 30.0


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:24]


def trial_table(experiment: Experiment, elapsed_s: float) -> Table:
    """The best and the running trials."""
    rules = experiment.rules
    trials = list(experiment.trials.values())
    counts = Counter(trial.status for trial in trials)
    title = f"{elapsed_s:.0f} s, {len(trials)} trials: " + ", ".join(f"{n} {status}" for status, n in counts.items())
    sign = -1 if rules.mode == "min" else 1

    def rank(trial: Trial) -> tuple[bool, float]:
        value = trial.last_result.get(rules.metric or "")
        good = isinstance(value, (int, float)) and value == value
        return trial.status != RUNNING, -sign * value if good and value is not None else float("inf")

    shown = sorted(trials, key=rank)[:ROWS_MAX]
    names = list(dict.fromkeys(name for trial in shown for name in flattened(trial.config)))[:COLUMNS_MAX]
    table = Table(title=title, title_justify="left")
    for column in ("trial", "status", *names, "iteration", "seconds", *([rules.metric] if rules.metric else [])):
        table.add_column(column)
    for trial in shown:
        config, last = flattened(trial.config), trial.last_result
        cells = [trial.trial_id, f"[red]{ERROR}[/red]" if trial.status == ERROR else trial.status]
        cells += [_shown(config.get(name, "")) for name in names]
        cells += [str(last.get("training_iteration", "")), _shown(last.get("time_total_s", ""))]
        if rules.metric:
            cells.append(_shown(last.get(rules.metric, "")))
        table.add_row(*cells)
    if len(trials) > len(shown):
        table.caption = f"and {len(trials) - len(shown)} more"
    return table


class ProgressReporter:
    """Shows an experiment while it runs. `verbose` 0: nothing; 1: a table; None: a table if somebody looks."""

    def __init__(self, verbose: int | None = None, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stdout)
        watched = self.console.is_terminal or self.console.is_jupyter
        self.shows = watched if verbose is None else verbose > 0
        self._live = Live(console=self.console, auto_refresh=False) if self.shows and watched else None
        self._begin = time.monotonic()
        self._next = 0.0

    def update(self, experiment: Experiment, final: bool = False) -> None:
        """Draw, if it is time to."""
        now = time.monotonic()
        if not self.shows or (now < self._next and not final):
            return
        self._next = now + (REDRAW_S if self._live is not None else LINE_S)
        table = trial_table(experiment, now - self._begin)
        if self._live is None:
            self.console.print(table)
            return
        if not self._live.is_started:
            self._live.start()
        self._live.update(table, refresh=True)
        if final:
            self._live.stop()
