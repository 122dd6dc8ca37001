"""Draws the curves of docs/simulation.md.

python docs/write_simulation.py rows.jsonl ...     lines that `python -m shoal.simulator scenario ...` printed
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


def rows_of(paths: list[str]) -> dict[str, list[dict[str, Any]]]:
    """The rows by scenario."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in paths:
        for line in Path(path).read_text().splitlines():
            row = json.loads(line)
            found.setdefault(row["scenario"], []).append(row)
    return found


def linear(rows: list[dict[str, Any]]) -> None:
    """Paper figure 8b."""
    figure, axes = pyplot.subplots(figsize=(6, 3.6))
    nodes = [row["nodes"] for row in rows]
    axes.plot(nodes, [row["tasks_s"] / 1e6 for row in rows], "o-", label="simulated, 64 cores a node")
    axes.plot([100], [1.8], "s", label="the paper, figure 8b")
    axes.set(xlabel="nodes", ylabel="million empty tasks a second", xlim=(0, 105), ylim=(0, None))
    save(figure, axes, "simulation_linear")


def growth(local: list[dict[str, Any]], driver: list[dict[str, Any]]) -> None:
    """What grows, and what saturates."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.8))
    for rows, name in ((local, "work stays on its node"), (driver, "one driver submits all")):
        nodes = [row["nodes"] for row in rows]
        left.loglog(nodes, [row["tasks_s"] * row["task_s"] for row in rows], "o-", label=name)
        right.loglog(nodes, [max(row["busy"]["gcs"], 1e-4) for row in rows], "o-", label=f"GCS, {name}")
    nodes = [row["nodes"] for row in driver]
    right.loglog(nodes, [row["busy"]["submitter_most"] for row in driver], "^:", label="the one driver")
    left.loglog([1, 10_000], [4, 40_000], "k:", label="all CPUs")
    right.axhline(1.0, color="k", linestyle=":", label="saturated")
    left.set(xlabel="nodes of 4 CPUs", ylabel="CPUs that are busy with tasks")
    right.set(xlabel="nodes of 4 CPUs", ylabel="share of its time that it is busy")
    left.legend()
    save(figure, right, "simulation_growth")


def latency(rows: list[dict[str, Any]]) -> None:
    """Paper figure 12b."""
    figure, axes = pyplot.subplots(figsize=(6, 3.4))
    places = range(len(rows))
    axes.bar([place - 0.2 for place in places], [row["round_ms_first"] for row in rows], 0.4, label="first round")
    axes.bar([place + 0.2 for place in places], [row["round_ms_median"] for row in rows], 0.4, label="median round")
    axes.set_xticks(list(places), [f"+{row['added_ms']} ms" for row in rows])
    axes.set(xlabel="added to every scheduling decision", ylabel="a round of 16 tasks (ms)")
    save(figure, axes, "simulation_latency")


def evolution(rows: list[dict[str, Any]]) -> None:
    """Paper figure 14a, in shape."""
    figure, axes = pyplot.subplots(figsize=(6, 3.4))
    cores = [row["cores"] for row in rows]
    axes.loglog(
        cores, [row["virtual_s"] for row in rows], "o-", label=f"simulated: {rows[0]['tasks']:,} episodes of Humanoid"
    )
    axes.loglog(cores, [row["work_s"] / row["cores"] for row in rows], "k:", label="ideal")
    for row in rows:
        axes.annotate(f"{row['ideal_share']:.0%}", (row["cores"], row["virtual_s"]), (3, 6), textcoords="offset points")
    axes.set(xlabel="cores", ylabel="seconds", xlim=(50, 14_000), ylim=(1, 400))
    save(figure, axes, "simulation_evolution")


def save(figure: Any, axes: Any, name: str) -> None:
    """Write a picture."""
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    PICTURES.mkdir(exist_ok=True)
    figure.savefig(PICTURES / f"{name}.png", dpi=90)


def main() -> None:
    """Draw what there are rows for."""
    found = rows_of(sys.argv[1:])
    if "linear" in found:
        linear([row for row in found["linear"] if row["nodes"] <= 100])
    if "growth, local work" in found:
        growth(found["growth, local work"], found["growth, one driver"])
    if "latency" in found:
        latency(found["latency"])
    if "evolution" in found:
        evolution(found["evolution"])


if __name__ == "__main__":
    main()
