"""`python -m shoal.simulator`: scenarios print a JSON line for each row, campaigns say what they found."""

from __future__ import annotations

import inspect
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from shoal.simulator.campaign import run_seed
from shoal.simulator.cluster import Violation
from shoal.simulator.scenarios import SCENARIOS


@click.group()
def main() -> None:
    """Whole clusters in virtual time, from production machines."""


@main.command()
@click.argument("name", type=click.Choice(sorted(SCENARIOS)))
@click.option("--seed", default=1, show_default=True)
@click.option("--nodes", type=click.IntRange(1), default=None, help="linear, everywhere, latency: how many")
@click.option("--cpus", type=click.IntRange(1), default=None, help="linear, everywhere: of each node")
@click.option("--tasks", type=click.IntRange(1), default=None, help="linear, everywhere, evolution: in all")
@click.option("--most", type=click.IntRange(1), default=None, help="growth: the largest cluster")
@click.option(
    "--times",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="evolution: seconds that episodes were measured to take, a JSON list (benchmarks/evolution.py writes one)",
)
def scenario(name: str, seed: int, times: Path | None, **given: int | None) -> None:
    """Run a scenario."""
    function = SCENARIOS[name]
    wanted: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if times is not None:
        wanted["times"] = _seconds_of(times)
    known = inspect.signature(function).parameters
    if name == "everywhere":
        wanted = {"nodes": 100, "cpus": 4, "tasks": 20_000, "duration_s": 0.01, **wanted}
    wrong = [key for key in wanted if key not in known]
    if wrong:
        raise click.UsageError(f"{name} takes no --{wrong[0]}")
    found = function(seed, **wanted)
    for row in found if isinstance(found, Iterator) else [found]:
        click.echo(json.dumps(row))


def _seconds_of(path: Path) -> list[float]:
    """The durations in a file."""
    try:
        found = json.loads(path.read_text())
        if not found or not all(isinstance(one, int | float) and one >= 0 for one in found):
            raise ValueError("a list of seconds is wanted")
    except (TypeError, ValueError) as error:
        raise click.UsageError(f"--times {path}: {error}") from error
    return [float(one) for one in found]


@main.command()
@click.option("--seed", type=int, default=None, help="this one only")
@click.option("--seeds", default=1000, show_default=True, help="so many")
@click.option("--first", default=0, show_default=True)
def campaign(seed: int | None, seeds: int, first: int) -> None:
    """Run fault campaigns; exits with 1 when one has failed."""
    logging.getLogger("shoal").setLevel(logging.ERROR)  # shells of `shoal.node` warn of what faults do
    began, failed = time.perf_counter(), 0
    faults: Counter[str] = Counter()
    tasks = 0
    for number in [seed] if seed is not None else range(first, first + seeds):
        try:
            outcome = run_seed(number)
        except Violation as violation:
            failed += 1
            click.echo(str(violation), err=True)
            continue
        faults.update(outcome.faults)
        tasks += outcome.tasks
    told = ", ".join(f"{count} x {name}" for name, count in sorted(faults.items()))
    click.echo(f"{tasks} tasks, {failed} seeds failed, {time.perf_counter() - began:.1f} s; faults: {told}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
