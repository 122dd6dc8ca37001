"""What the tables of a search show, and how: for a terminal, for a notebook, for a plain stream.

Design: `board_of` picks the rows, everything else only draws them. The running trials and then the best come first, so that a search of thousands
fits a screen; beneath them stands what the last failures said.
"""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from shoal.tune.experiment import Rules
from shoal.tune.space import flattened
from shoal.tune.trial import ERROR, RUNNING, Trial, is_finite

ROWS_MAX = 20
COLUMNS_MAX = 5  #: of the configuration
FAILURES_MAX = 3
TEXT_MAX = 24  #: letters in a cell

_STYLE = "border-collapse:collapse;font-family:monospace;font-size:12px"
_CELL = "padding:1px 8px;text-align:left;border-bottom:1px solid #ccc"


@dataclass(slots=True)
class Board:
    """A table as text."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)  #: beneath the table


def _shown(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= TEXT_MAX else f"{text[: TEXT_MAX - 3]}..."


def board_of(trials: Iterable[Trial], rules: Rules, elapsed_s: float | None = None) -> Board:
    """The table of `trials`."""
    trials = list(trials)
    counts = ", ".join(f"{n} {status}" for status, n in Counter(trial.status for trial in trials).items())
    title = f"{len(trials)} trials: {counts}"
    if elapsed_s is not None:
        title = f"{elapsed_s:.0f} s, {title}"
    sign = -1 if rules.mode == "min" else 1

    def rank(trial: Trial) -> tuple[bool, float]:
        value = trial.last_result.get(rules.metric or "")
        return trial.status != RUNNING, -sign * value if is_finite(value) and value is not None else math.inf

    shown = sorted(trials, key=rank)[:ROWS_MAX]
    names = list(dict.fromkeys(name for trial in shown for name in flattened(trial.config)))[:COLUMNS_MAX]
    metric = [rules.metric] if rules.metric else []
    rows = []
    for trial in shown:
        config, last = flattened(trial.config), trial.last_result
        row = [trial.trial_id, trial.status, *[_shown(config.get(name, "")) for name in names]]
        row += [_shown(last.get(name, "")) for name in ("training_iteration", "time_total_s", *metric)]
        rows.append(row)
    notes = [f"and {len(trials) - len(shown)} more"] if len(trials) > len(shown) else []
    for trial in [trial for trial in trials if trial.status == ERROR][-FAILURES_MAX:]:
        lines = (trial.error_text or "").strip().splitlines() or [""]
        notes.append(f"{trial.trial_id} failed: {lines[-1].strip()}")
    return Board(title, ["trial", "status", *names, "iteration", "seconds", *metric], rows, notes)


def rich_table(board: Board) -> Any:
    """For a terminal: a table of rich's."""
    from rich.markup import escape
    from rich.table import Table

    notes = escape("\n".join(board.notes)) or None
    table = Table(title=escape(board.title), title_justify="left", caption=notes, caption_justify="left")
    for column in board.columns:
        table.add_column(escape(column))
    for row in board.rows:
        table.add_row(*map(escape, row), style="red" if row[1] == ERROR else None)
    return table


def html_table(board: Board) -> str:
    """For a notebook."""
    lines = [f"<p><b>{html.escape(board.title)}</b></p>", f'<table style="{_STYLE}">']
    heads = "".join(f'<th style="{_CELL}">{html.escape(column)}</th>' for column in board.columns)
    lines.append(f"<tr>{heads}</tr>")
    for row in board.rows:
        color = ' style="color:#b00"' if row[1] == ERROR else ""
        cells = "".join(f'<td style="{_CELL}">{html.escape(cell)}</td>' for cell in row)
        lines.append(f"<tr{color}>{cells}</tr>")
    lines.append("</table>")
    lines += [f"<p>{html.escape(note)}</p>" for note in board.notes]
    return "\n".join(lines)


def plain_table(board: Board) -> str:
    """For a file, or where rich is not installed."""
    table = [board.columns, *board.rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(board.columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([board.title, *lines, *board.notes])
