"""Pictures of a search, with matplotlib: how trials learned, which configurations were good, which parameters mattered.

    figure = tune.plots.learning_curves(grid)
    figure.savefig("curves.png")

Design: each function takes a `ResultGrid` and returns a figure that belongs to nobody's global state, so it works in scripts, threads and
notebooks (which show a figure that a cell returns). A trial without a finite value of the metric is left out.

How to extend: `_points` gives configurations and values; draw on `_figure`.
"""

from __future__ import annotations

import functools
import io
import math
import statistics
from typing import TYPE_CHECKING, Any

from shoal.tune.results import ResultGrid
from shoal.tune.space import flattened
from shoal.tune.trial import is_finite

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEGEND_MAX = 10  #: trials that a legend names
PANELS_MAX = 6
MARKS = 5  #: on an axis of numbers
BINS = 5  #: of a parameter's values, when their effect is estimated

GOOD, PALE = "viridis", "0.8"


def _figure(width: float, height: float) -> Any:
    """An empty figure; or an error that says how to get it."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'shoal[tune]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure._repr_png_ = functools.partial(_png, figure)  # type: ignore[attr-defined]  # a notebook asks for it
    return figure


def _png(figure: Figure) -> bytes:
    """The picture as a file's content."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _metric_of(grid: ResultGrid, metric: str | None, mode: str | None) -> tuple[str, int]:
    """The metric's name, and 1 if large values are good, -1 if small ones are."""
    name = metric or grid.metric
    if name is None:
        raise ValueError('no metric to draw: give metric="loss", mode="min", or name it in TuneConfig')
    mode = mode or grid.mode or "max"
    if mode not in ("min", "max"):
        raise ValueError(f'mode must be "min" or "max", not {mode!r}')
    return name, 1 if mode == "max" else -1


def _points(grid: ResultGrid, metric: str, sign: int) -> tuple[list[dict[str, Any]], list[float]]:
    """Flat configurations of the trials, the best last, and each trial's best value."""
    points = []
    for result in grid:
        values = [row[metric] for row in result.history if is_finite(row.get(metric))]
        if values:
            points.append((max(values, key=lambda value: sign * value), flattened(result.config)))
    if not points:
        raise ValueError(f"no trial has reported a finite {metric!r}: there is nothing to draw")
    points.sort(key=lambda point: sign * point[0])
    return [config for _, config in points], [value for value, _ in points]


def _varied(configs: list[dict[str, Any]]) -> list[str]:
    """The parameters that are not the same everywhere."""
    names = dict.fromkeys(key for config in configs for key in config)
    return [name for name in names if len({str(config.get(name)) for config in configs}) > 1]


def learning_curves(
    grid: ResultGrid, metric: str | None = None, mode: str | None = None, time_attr: str = "training_iteration"
) -> Figure:
    """`metric` of every trial over `time_attr`; the best stand out, and a line shows the best so far."""
    name, sign = _metric_of(grid, metric, mode)
    curves = []
    for result in grid:
        rows = [row for row in result.history if is_finite(row.get(name)) and is_finite(row.get(time_attr))]
        if rows:
            best = max(sign * row[name] for row in rows)
            curves.append((best, result.trial_id, [row[time_attr] for row in rows], [row[name] for row in rows]))
    if not curves:
        raise ValueError(f"no trial has reported a finite {name!r}: there is nothing to draw")
    curves.sort(key=lambda curve: curve[0])
    figure: Figure = _figure(8, 5)
    axes = figure.subplots()
    named = min(LEGEND_MAX, max(1, len(curves) // 4))
    colors = figure_colors(named)
    for _, _, times, values in curves[:-named]:
        axes.plot(times, values, color=PALE, linewidth=0.8, marker="." if len(times) == 1 else None)
    for (_, trial_id, times, values), color in zip(curves[-named:], colors, strict=True):
        axes.plot(times, values, color=color, linewidth=1.6, marker="." if len(times) == 1 else None, label=trial_id)
    axes.set_xlabel(time_attr)
    axes.set_ylabel(name)
    axes.set_title(f"{len(curves)} trials; the best {named} in color" if len(curves) > 1 else curves[0][1])
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1], labels[::-1], fontsize="small", title="best first", loc="upper left", bbox_to_anchor=(1.01, 1)
    )
    if all(isinstance(time, int) for _, _, times, _ in curves for time in times):
        from matplotlib.ticker import MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    return figure


def figure_colors(number: int) -> list[Any]:
    """So many colors, the last the strongest."""
    from matplotlib import colormaps

    return [colormaps[GOOD](0.9 - 0.9 * (position + 1) / number) for position in range(number)]


class _Axis:
    """A parameter's values as heights between 0 and 1."""

    def __init__(self, name: str, values: list[Any]) -> None:
        self.name = name
        known = [value for value in values if value is not None]
        numbers = [value for value in known if is_finite(value) and not isinstance(value, bool)]
        self.is_number = len(numbers) == len(values) and len(set(numbers)) > 1
        self.is_log = self.is_number and min(numbers) > 0 and max(numbers) / min(numbers) >= 100
        if self.is_number:
            self.low, self.high = self._scaled(min(numbers)), self._scaled(max(numbers))
            self.distinct = sorted(set(numbers))
        else:
            self.categories = sorted({str(value) for value in values})

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.is_log else float(value)

    def height(self, value: Any) -> float:
        """Where a value stands."""
        if self.is_number:
            return (self._scaled(value) - self.low) / (self.high - self.low)
        return (self.categories.index(str(value)) + 0.5) / len(self.categories)

    def marks(self) -> list[tuple[float, str]]:
        """Heights with what to write there."""
        if not self.is_number:
            return [((i + 0.5) / len(self.categories), text[:16]) for i, text in enumerate(self.categories)]
        if len(self.distinct) <= MARKS:
            return [(self.height(value), f"{value:.3g}") for value in self.distinct]
        scaled = [self.low + (self.high - self.low) * position / (MARKS - 1) for position in range(MARKS)]
        return [
            (position / (MARKS - 1), f"{10**value if self.is_log else value:.3g}")
            for position, value in enumerate(scaled)
        ]


def parallel_coordinates(grid: ResultGrid, metric: str | None = None, mode: str | None = None) -> Figure:
    """A line for each trial through the parameters that varied to its best `metric`; good ones are dark and on top."""
    name, sign = _metric_of(grid, metric, mode)
    configs, values = _points(grid, name, sign)
    names = _varied(configs)
    axes_of = [_Axis(key, [config.get(key) for config in configs]) for key in names]
    last = _Axis(name, values)
    figure: Figure = _figure(max(6, 1.6 * (len(names) + 1)), 5)
    axes = figure.subplots()
    from matplotlib import colormaps

    for rank, (config, value) in enumerate(zip(configs, values, strict=True)):
        good = (rank + 1) / len(values)
        heights = [axis.height(config.get(axis.name)) for axis in axes_of] + [last.height(value)]
        color = colormaps[GOOD](0.95 - 0.95 * good)
        axes.plot(range(len(heights)), heights, color=color, alpha=0.25 + 0.75 * good**2, linewidth=0.8 + 1.4 * good**4)
    for position, axis in enumerate([*axes_of, last]):
        axes.axvline(position, color="0.3", linewidth=0.8)
        for height, text in axis.marks():
            axes.annotate(
                text,
                (position, height),
                xytext=(4, 0),
                textcoords="offset points",
                fontsize=8,
                va="center",
                zorder=10,
                bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.7},
            )
    axes.set_xticks(range(len(names) + 1), [*names, name])
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(names) + 0.5)
    for side in ("top", "bottom", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.set_title(f"{len(values)} trials, dark is good")
    return figure


def importances(grid: ResultGrid, metric: str | None = None, mode: str | None = None) -> dict[str, float]:
    """For each parameter that varied, the share of the metric's variance that it explains alone, the largest first.

    The trials are sorted into groups by the parameter (its values, or up to 5 ranges with equally many trials); the share is that of the variance
    between the groups, corrected for what chance alone would give. Parameters that matter only together score low. Ranks of the metric are used,
    so that one diverged trial does not decide.
    """
    name, sign = _metric_of(grid, metric, mode)
    configs, values = _points(grid, name, sign)
    order = sorted(range(len(values)), key=lambda position: values[position])
    ranks = [0.0] * len(values)
    for rank, position in enumerate(order):
        ranks[position] = float(rank)
    shares = {}
    for key in _varied(configs):
        shares[key] = _share(_groups([config.get(key) for config in configs]), ranks)
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _groups(column: list[Any]) -> list[Any]:
    """A group's name for each value."""
    distinct = {str(value) for value in column}
    numbers = all(is_finite(value) and not isinstance(value, bool) for value in column)
    if not numbers or len(distinct) <= BINS:
        return [str(value) for value in column]
    order = sorted(range(len(column)), key=lambda position: column[position])
    groups = [0] * len(column)
    for rank, position in enumerate(order):
        groups[position] = rank * BINS // len(column)
    return groups


def _share(groups: list[Any], ranks: list[float]) -> float:
    """How much of the variance of `ranks` lies between groups (the adjusted coefficient of determination), at least 0."""
    count, kinds = len(ranks), len(set(groups))
    mean = statistics.fmean(ranks)
    total = sum((rank - mean) ** 2 for rank in ranks)
    if not total or count <= kinds:
        return 0.0
    members: dict[Any, list[float]] = {}
    for group, rank in zip(groups, ranks, strict=True):
        members.setdefault(group, []).append(rank)
    within = sum((rank - statistics.fmean(one)) ** 2 for one in members.values() for rank in one)
    return max(0.0, 1 - (within / (count - kinds)) / (total / (count - 1)))


def parameter_effects(grid: ResultGrid, metric: str | None = None, mode: str | None = None) -> Figure:
    """`metric` against each parameter, the one that explains most of it first (see `importances`)."""
    name, sign = _metric_of(grid, metric, mode)
    configs, values = _points(grid, name, sign)
    shares = importances(grid, metric, mode)
    if not shares:
        raise ValueError("no parameter varied: there is nothing to compare")
    shown = list(shares)[:PANELS_MAX]
    figure: Figure = _figure(3.2 * len(shown) if len(shown) > 1 else 5, 3.6)
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for panel, key in zip(panels, shown, strict=True):
        present = [(config[key], value) for config, value in zip(configs, values, strict=True) if key in config]
        axis = _Axis(key, [value for value, _ in present])
        along = [value if axis.is_number else axis.categories.index(str(value)) for value, _ in present]
        if axis.is_log:
            panel.set_xscale("log")
        elif not axis.is_number:
            panel.set_xticks(range(len(axis.categories)), [text[:16] for text in axis.categories])
            panel.set_xlim(-0.5, len(axis.categories) - 0.5)
        panel.scatter(along, [value for _, value in present], s=18, c=range(len(present)), cmap=f"{GOOD}_r")
        panel.set_xlabel(key)
        panel.set_title(f"explains {shares[key]:.0%}", fontsize=10)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(name)
    return figure
