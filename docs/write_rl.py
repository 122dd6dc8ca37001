"""Draws the curves of shoal.rl and shoal.train in docs/benchmarks.md.

python docs/write_rl.py rows.jsonl ...     lines that benchmarks/rl_learning.py, evolution.py, rl_simulation.py and training.py printed
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

PICTURES = Path(__file__).parent / "pictures"
NAMES = {"ppo": "PPO", "evolution": "evolution strategies"}
Rows = list[dict[str, Any]]


def rows_of(paths: list[str]) -> dict[str, Rows]:
    """The rows by benchmark."""
    found: dict[str, Rows] = {}
    for path in paths:
        for line in Path(path).read_text().splitlines():
            row = json.loads(line)
            found.setdefault(row["benchmark"], []).append(row)
    return found


def learning(rows: Rows) -> None:
    """One picture: a field for each environment and algorithm, a curve for each seed."""
    fields = list(dict.fromkeys((row["algorithm"], row["environment"]) for row in rows))
    columns = min(3, len(fields))
    lines = -(-len(fields) // columns)
    figure, grid = pyplot.subplots(lines, columns, figsize=(4.2 * columns, 3.2 * lines), squeeze=False)
    for axes in grid.flat[len(fields) :]:
        axes.axis("off")
    for axes, field in zip(grid.flat, fields, strict=False):
        chosen = [row for row in rows if (row["algorithm"], row["environment"]) == field]
        for row in chosen:
            steps, _, rewards = zip(*row["curve"], strict=True)
            axes.plot([step / 1e3 for step in steps], rewards, label=f"seed {row['seed']}: {row['seconds']:.0f} s")
        goal = chosen[0]["goal"]
        if any(row["reached"] for row in chosen):
            axes.axhline(goal, color="k", linestyle=":", label=f"goal {goal:g}")
        axes.set(title=f"{field[1]}, {NAMES[field[0]]}", xlabel="thousand steps", ylabel="return")
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    save(figure, "rl_learning")


def scaling(rows: Rows) -> None:
    """Work per second of evolution strategies over workers."""
    figure, axes = pyplot.subplots(figsize=(5.4, 3.4))
    workers = [row["workers"] for row in rows]
    axes.plot(workers, [row["work_per_s"] for row in rows], "o-", label="measured, episodes that sleep")
    axes.plot(workers, workers, "k:", label="ideal")
    axes.set(xlabel="workers", ylabel="seconds of episodes a second", xlim=(0, None), ylim=(0, None))
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    save(figure, "rl_scaling")


def simulation(rows: Rows) -> None:
    """Asynchronous tasks beside MPI."""
    figure, axes = pyplot.subplots(figsize=(5.4, 3.2))
    places = range(len(rows))
    for shift, key, name in ((-0.2, "mpi_steps_s", "MPI, barriers"), (0.2, "shoal_steps_s", "Shoal, asynchronous")):
        bars = axes.bar([place + shift for place in places], [row[key] / 1e3 for row in rows], 0.38, label=name)
        axes.bar_label(bars, fmt="%.0f", fontsize=8)
    axes.set_xticks(list(places), [f"episodes a round, or a task: {row['episodes_a_round']}" for row in rows])
    axes.set(ylabel="thousand steps a second", ylim=(0, 1.35 * max(row["shoal_steps_s"] for row in rows) / 1e3))
    axes.legend(fontsize=8, ncols=2, loc="upper center")
    save(figure, "rl_simulation")


def training(rows: Rows) -> None:
    """Images per second, and allreduce."""
    parts = {row["part"]: row for row in rows}
    if parts.keys() != {"images", "allreduce"}:
        print("training: no picture without lines of both parts, images and allreduce")
        return
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6))
    images = parts["images"]["images_s"]
    bars = left.barh([name.replace("_", " ") for name in images], list(images.values()), color="tab:blue")
    left.bar_label(bars, fmt="%.0f", fontsize=8, padding=2)
    left.set(xlabel="images a second, two cores", xlim=(0, max(images.values()) * 1.2))
    left.invert_yaxis()
    sizes = [key for key in parts["allreduce"] if key.endswith("_MB_ms")]
    names = list(parts["allreduce"][sizes[0]])
    for number, name in enumerate(names):
        places = [place + 0.27 * (number - 1) for place in range(len(sizes))]
        bars = right.bar(places, [parts["allreduce"][size][name] for size in sizes], 0.25, label=name)
        right.bar_label(bars, fmt="%.0f", fontsize=7)
    right.set_yscale("log")
    right.set_xticks(range(len(sizes)), [size.removesuffix("_ms").replace("_", " ") for size in sizes])
    right.set(ylabel="allreduce among 4 (ms)", ylim=(2, 4_000))
    right.legend(fontsize=8)
    save(figure, "training")


def save(figure: Any, name: str) -> None:
    """Write a picture."""
    figure.tight_layout()
    PICTURES.mkdir(exist_ok=True)
    figure.savefig(PICTURES / f"{name}.png", dpi=80)


DRAWN = {"rl_learning": learning, "evolution": scaling, "rl_simulation": simulation, "training": training}


def main() -> None:
    """Draw what there are rows for; those of other benchmarks are passed over."""
    for benchmark, rows in rows_of(sys.argv[1:]).items():
        if benchmark in DRAWN:
            DRAWN[benchmark](rows)


if __name__ == "__main__":
    main()
