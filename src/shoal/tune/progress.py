"""Shows a search while it runs.

Design: on a terminal one live table that is redrawn in place (with rich), in a notebook one output that is replaced, elsewhere, if asked for, the
table now and then. Nothing of it decides anything: without rich, or with a display that fails, the search goes on.
"""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any, TextIO

from shoal.tune.board import Board, board_of, html_table, plain_table, rich_table
from shoal.tune.experiment import Experiment

REDRAW_S = 0.5
LINES_S = 30.0


def notebook_display() -> Any:
    """IPython's display of HTML if this program is the kernel of a notebook: `display(html) -> update`; None otherwise."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import HTML, display

    def show(text: str) -> Any:
        output = display(HTML(text), display_id=True)
        return lambda text: output.update(HTML(text))

    return show


class _Lines:
    """The table now and then, beneath what was printed before."""

    every_s = LINES_S

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def show(self, board: Board) -> None:
        print(plain_table(board), file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing to put back."""


class _Terminal:
    """A live table; the cursor and what others print are looked after by rich."""

    every_s = REDRAW_S

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(file=stream), auto_refresh=False)

    def show(self, board: Board) -> None:
        if not self._live.is_started:
            self._live.start()
        self._live.update(rich_table(board), refresh=True)

    def close(self) -> None:
        self._live.stop()


class _Notebook:
    """One output of a cell."""

    every_s = REDRAW_S

    def __init__(self, display: Any) -> None:
        self._display = display
        self._update: Any = None

    def show(self, board: Board) -> None:
        text = html_table(board)
        if self._update is None:
            self._update = self._display(text)
        else:
            self._update(text)

    def close(self) -> None:
        """The last table stays."""


class ProgressReporter:
    """Shows an experiment. `verbose` 0: nothing; 1: a table; None: a table if somebody looks. `display`: of a notebook (found by itself)."""

    def __init__(self, verbose: int | None = None, stream: TextIO | None = None, display: Any = None) -> None:
        self._view: _Lines | _Terminal | _Notebook | None = None
        self._begin = time.monotonic()
        self._next = 0.0
        stream = stream or sys.stdout
        display = display or notebook_display()
        if verbose == 0:
            return
        if display is not None:
            self._view = _Notebook(display)
        elif stream.isatty():
            try:
                self._view = _Terminal(stream)
            except ImportError:  # rich
                self._view = _Lines(stream)
        elif verbose:
            self._view = _Lines(stream)

    def update(self, experiment: Experiment, final: bool = False) -> None:
        """Draw, if it is time to."""
        now = time.monotonic()
        if self._view is None or (now < self._next and not final):
            return
        self._next = now + self._view.every_s
        board = board_of(experiment.trials.values(), experiment.rules, now - self._begin)
        try:
            self._view.show(board)
            if final:
                self._view.close()
        except Exception as error:  # a terminal that is gone, a kernel that ends: not the search's business
            with contextlib.suppress(Exception):
                self._view.close()
            self._view = None
            print(f"the table of the search is shown no more: {type(error).__name__}: {error}", file=sys.stderr)
