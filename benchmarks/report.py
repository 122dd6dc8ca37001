"""The last run of the engine's benchmark as a Markdown table: `python benchmarks/report.py out/engine.jsonl [--write README.md ...]`.

With --write the table replaces what stands between the two `figures` comments of each file.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from figures import FIGURES, Figure

TITLES = {
    "shoal": "Shoal",
    "ray": "Ray 2.60",
    "dask": "Dask",
    "futures": "ProcessPoolExecutor",
    "pool": "multiprocessing.Pool",
}
BEGIN, END = "<!-- figures: written by benchmarks/report.py -->", "<!-- end of figures -->"


def written(value: float | None) -> str:
    """A figure as the table shows it."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def ratio(figure: Figure, ours: float | None, other: float | None) -> str:
    """How many times better."""
    if not ours or not other:
        return "-"
    return f"{other / ours if figure.lower_is_better else ours / other:.3g}"


def table_of(run: dict[str, Any]) -> str:
    """The whole text between the comments."""
    systems = [name for name in TITLES if name in run["results"]]
    lines = [
        f"| | unit | {' | '.join(TITLES[name] for name in systems)} | times Ray |",
        f"|---|---|{'---:|' * (len(systems) + 1)}",
    ]
    for figure in FIGURES:
        values = {name: run["results"][name].get(figure.key, {}).get("value") for name in systems}
        cells = " | ".join(written(values[name]) for name in systems)
        lines.append(
            f"| {figure.title} | {figure.unit} | {cells} | {ratio(figure, values.get('shoal'), values.get('ray'))} |"
        )
    machine = run["machine"]
    lines += [
        "",
        f"Medians of one run on {run['time'][:10]} at commit {run['commit']}: {machine['cpus']} CPUs, {machine['memory_gb']:.0f} GB, Python "
        f"{machine['python']}; memory copies at {machine['copy_gb_per_s']:.1f} GB/s, load {machine['load_1min']:.1f} when it began.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Print, or write into files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--write", type=Path, nargs="+", default=[])
    options = parser.parse_args()
    table = table_of(json.loads(options.runs.read_text().splitlines()[-1]))
    for path in options.write:
        text = path.read_text()
        if BEGIN not in text or END not in text:
            raise SystemExit(f"{path} lacks the comments {BEGIN} and {END}")
        head, rest = text.split(BEGIN, 1)
        path.write_text(f"{head}{BEGIN}\n{table}\n{END}{rest.split(END, 1)[1]}")
    if not options.write:
        print(table)


if __name__ == "__main__":
    main()
