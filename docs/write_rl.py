"""Draws the pictures of shoal.rl and shoal.train, and puts lines that were measured into docs/benchmarks.md.

python docs/write_rl.py out/learning/*.jsonl [--write] [--pictures FOLDER]

The files are those of benchmarks/learning.py. `--write` replaces, for each file NAME.jsonl, what stands in the page between `<!-- NAME -->` and
`<!-- end -->`; a file without such a block is only drawn.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

DOCS = Path(__file__).parent
PAGE = DOCS / "benchmarks.md"
NAMES = {"ppo": "PPO", "evolution": "evolution strategies"}
Rows = list[dict[str, Any]]


def rows_of(path: Path) -> Rows:
    """The rows of a file; what else was printed among them is passed over."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]


def learning(rows: Rows, folder: Path) -> None:
    """One picture: a field for each environment and algorithm, a curve for each seed."""
    fields = list(dict.fromkeys((row["algorithm"], row["environment"]) for row in rows))
    if len(fields) < 4:
        print("learning: no picture with fewer than four environments and algorithms")
        return
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
    save(figure, folder / "rl_learning.png")


def scaling(rows: Rows, folder: Path) -> None:
    """Work per second of evolution strategies over workers."""
    figure, axes = pyplot.subplots(figsize=(5.4, 3.4))
    workers = [row["workers"] for row in rows]
    axes.plot(workers, [row["work_per_s"] for row in rows], "o-", label="measured, episodes that sleep")
    axes.plot(workers, workers, "k:", label="ideal")
    axes.set(xlabel="workers", ylabel="seconds of episodes a second", xlim=(0, None), ylim=(0, None))
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    save(figure, folder / "rl_scaling.png")


def simulation(rows: Rows, folder: Path) -> None:
    """Asynchronous tasks beside MPI."""
    figure, axes = pyplot.subplots(figsize=(5.4, 3.2))
    places = range(len(rows))
    for shift, key, name in ((-0.2, "mpi_steps_s", "MPI, barriers"), (0.2, "shoal_steps_s", "Shoal, asynchronous")):
        bars = axes.bar([place + shift for place in places], [row[key] / 1e3 for row in rows], 0.38, label=name)
        axes.bar_label(bars, fmt="%.0f", fontsize=8)
    axes.set_xticks(list(places), [f"episodes a round, or a task: {row['episodes_a_round']}" for row in rows])
    axes.set(ylabel="thousand steps a second", ylim=(0, 1.35 * max(row["shoal_steps_s"] for row in rows) / 1e3))
    axes.legend(fontsize=8, ncols=2, loc="upper center")
    save(figure, folder / "rl_simulation.png")


def training(rows: Rows, folder: Path) -> None:
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
    save(figure, folder / "training.png")


def save(figure: Any, path: Path) -> None:
    """Write a picture."""
    figure.tight_layout()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def short(value: Any) -> Any:
    """A row without what only the pictures need, its numbers with four digits."""
    if isinstance(value, dict):
        return {name: short(one) for name, one in value.items() if name != "curve"}
    if isinstance(value, float):
        return round(value) if abs(value) >= 1000 else float(f"{value:.4g}")
    return value


def table(row: dict[str, Any]) -> str:
    """Images a second, and the shares of either torchrun."""
    names = list(row["images_s"])
    lines = [f"| | {' | '.join(name.replace('_', ' ') for name in names)} |", "|---" * (len(names) + 1) + "|"]
    for title, key in (
        ("images a second", "images_s"),
        ("of torchrun", "of_torchrun"),
        ("of torchrun that keeps memory", "of_torchrun_kept_memory"),
    ):
        cells = [f"{row[key][name]:,}" if key == "images_s" else f"{row[key][name]:.2f}" for name in names]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def block(path: Path, rows: Rows) -> str:
    """What the page shows of a file."""
    moment = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
    loads = [row["load"] for row in rows if "load" in row]
    lowest, highest = (f"{limit(loads):.1f}" if loads else "" for limit in (min, max))
    beside = f", load {lowest}" + (f" to {highest}" if highest != lowest else "") if loads else ""
    shown = "\n\n".join(table(row) for row in rows if "images_s" in row)
    if not shown:
        shown = "```json\n" + "\n".join(json.dumps(short(row)) for row in rows) + "\n```"
    return f"Measured {moment}{beside}:\n\n{shown}"


def write(page: Path, path: Path, rows: Rows) -> None:
    """Replace the block of a file."""
    text, begin = page.read_text(), f"<!-- {path.stem} -->"
    if begin not in text:
        print(f"{path.stem}: {page.name} has no block of that name")
        return
    pattern = re.escape(begin) + r".*?<!-- end -->"
    new = f"{begin}\n{block(path, rows)}\n<!-- end -->"
    page.write_text(re.sub(pattern, lambda _: new, text, count=1, flags=re.DOTALL))


DRAWN = {"rl_learning": learning, "evolution": scaling, "rl_simulation": simulation, "training": training}


def main() -> None:
    """Draw what there are rows for; those of other benchmarks are passed over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--write", action="store_true", help="put the lines into docs/benchmarks.md")
    parser.add_argument("--pictures", type=Path, default=DOCS / "pictures", help="the folder to draw to")
    options = parser.parse_args()
    found: dict[str, Rows] = {}
    for path in options.files:
        rows = rows_of(path)
        for row in rows:
            found.setdefault(row.get("benchmark", ""), []).append(row)
        if options.write and rows:
            write(PAGE, path, rows)
    for benchmark, rows in found.items():
        if benchmark in DRAWN:
            DRAWN[benchmark](rows, options.pictures)


if __name__ == "__main__":
    main()
