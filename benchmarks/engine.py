"""The engine's benchmark: Shoal beside Ray, Dask and the stdlib pools, all in one run on one machine.

    python benchmarks/engine.py [--quick] [--ray PYTHON] [--dask PYTHON] [--json FILE] [--only KEY ...] [--systems NAME ...]

Every system runs in processes of its own (so Ray may live in another environment) and one after the other; the values are medians of
several repetitions after a warm-up. A figure that hangs is killed after its time and reported as such; the rest goes on. The last line
of --json's file is the run as one JSON object, to be tracked over commits.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import select
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import psutil
from rich.console import Console
from rich.table import Table

from figures import BY_KEY, FIGURES, verdict
from measuring import TOKEN_VARIABLE, family

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
OURS = "shoal"
TITLES = {"shoal": "Shoal", "ray": "Ray", "dask": "Dask", "futures": "futures", "pool": "mp.Pool"}
FIGURE_TIMEOUT_S = 90.0
START_TIMEOUT_S = 90.0
LIFE_REPETITIONS = 3


@dataclass(slots=True)
class System:
    """One column: where it runs and what it said. `results` maps a figure's key to the fields of its line."""

    name: str
    python: str
    results: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def script(self) -> str:
        """The program that measures it."""
        return "workloads.py" if self.name in ("shoal", "ray") else "rivals.py"

    def value(self, key: str) -> float | None:
        """The figure, if it was measured."""
        return self.results.get(key, {}).get("value")


class Measured:
    """One child process, its pipe, and the end of all that it started."""

    def __init__(self, system: System, arguments: list[str]) -> None:
        self.token = uuid.uuid4().hex
        self._read_fd, write_fd = os.pipe()
        environment = dict(os.environ, RAY_USAGE_STATS_ENABLED="0", RAY_DEDUP_LOGS="0", **{TOKEN_VARIABLE: self.token})
        environment["PYTHONPATH"] = str(ROOT / "src") if system.name == OURS else ""
        environment.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        command = [system.python, str(HERE / system.script), "--module", system.name, "--fd", str(write_fd), *arguments]
        self.process = subprocess.Popen(
            command, pass_fds=[write_fd], env=environment, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL
        )
        os.close(write_fd)
        self._kept = b""

    def next_line(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message; None when the process has closed its pipe. TimeoutError when nothing came."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._kept:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([self._read_fd], [], [], left_s)[0]:
                raise TimeoutError
            piece = os.read(self._read_fd, 65536)
            if not piece:
                return None
            self._kept += piece
        line, self._kept = self._kept.split(b"\n", 1)
        message: dict[str, Any] = json.loads(line)
        return message

    def end(self, grace_s: float) -> int | None:
        """Wait for the process, then kill it and everything that carries its token. Its exit code, None when it had to be killed."""
        code: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.process.wait(grace_s)
        processes = family(self.token, self.process.pid)
        if code is None:
            self.process.kill()
            self.process.wait()
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(processes, timeout=5)
        os.close(self._read_fd)
        return code


def measure_rates(system: System, keys: list[str], quick: bool, console: Console) -> None:
    """All repeated figures. After a hang or a crash the rest goes on in a new process."""
    todo = list(keys)
    while todo:
        child = Measured(system, (["--quick"] if quick else []) + todo)
        current: str | None = None
        problem = ""
        while True:
            try:
                message = child.next_line(FIGURE_TIMEOUT_S if current else START_TIMEOUT_S)
            except TimeoutError:
                problem = "hung"
                break
            if message is None:
                break
            key = message.pop("key")
            if message.get("begin"):
                current = key
                console.print(f"[dim]{TITLES[system.name]}: {BY_KEY[key].title}[/dim]")
                continue
            system.results[key] = message
            todo = todo[todo.index(key) + 1 :]
            current = None
        code = child.end(grace_s=0.0 if problem else 10.0)
        if not problem and current is None and (code == 0 or not todo):
            return
        failed = current or (todo[0] if todo else None)
        if failed is None:
            return
        system.results[failed] = {"error": problem or f"process ended with code {code}"}
        if current is None:  # it never got as far as a figure: the system does not start here
            for key in todo:
                system.results[key] = {"error": problem or f"did not start (code {code})"}
            return
        todo = todo[todo.index(failed) + 1 :]


def measure_life(system: System, quick: bool) -> None:
    """Start, idle memory, stop: each repetition in a fresh process; the median counts."""
    seen: dict[str, list[float]] = {}
    for _ in range(1 if quick else LIFE_REPETITIONS):
        child = Measured(system, ["--life"])
        while True:
            try:
                message = child.next_line(START_TIMEOUT_S)
            except TimeoutError:
                system.results.setdefault("start", {"error": "hung"})
                break
            if message is None:
                break
            seen.setdefault(message["key"], []).append(message["value"])
        child.end(grace_s=5.0)
    for key, values in seen.items():
        values.sort()
        system.results[key] = {"value": values[len(values) // 2], "min": values[0], "max": values[-1]}


def can_import(python: str, module: str) -> bool:
    """Whether that interpreter has the module."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT / "src"))
    check = f"{module}.init" if module in (OURS, "ray") else "pass"
    try:
        return not subprocess.run(
            [python, "-c", f"import {module}; {check}"], capture_output=True, timeout=60, env=environment
        ).returncode
    except (OSError, subprocess.TimeoutExpired):
        return False


def machine() -> dict[str, Any]:
    """What this run ran on, and how fast it was just then: figures of a busy machine explain themselves."""
    import numpy

    source, target = numpy.ones(200_000_000, dtype=numpy.uint8), numpy.ones(200_000_000, dtype=numpy.uint8)
    copies = []
    for _ in range(4):
        start = time.perf_counter()
        target[:] = source
        copies.append(0.2 / (time.perf_counter() - start))
    start = time.perf_counter()
    total = 0
    for number in range(3_000_000):
        total += number & 7
    loops_s = 3.0 / (time.perf_counter() - start)
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "copy_gb_per_s": round(max(copies), 2),
        "loop_millions_per_s": round(loops_s, 1),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def written(value: float | None) -> str:
    """A figure with three significant digits."""
    if value is None:
        return "-"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def table_of(systems: list[System], keys: list[str]) -> Table:
    """The run as people read it."""
    table = Table(title="Shoal's engine, and others on this machine", title_justify="left")
    table.add_column("figure")
    table.add_column("unit", style="dim")
    table.add_column("target", justify="right")
    for system in systems:
        table.add_column(TITLES[system.name], justify="right", style="bold" if system.name == OURS else "")
    table.add_column("x Ray", justify="right")
    table.add_column("verdict")
    by_name = {system.name: system for system in systems}
    for figure in FIGURES:
        if figure.key not in keys:
            continue
        ours = by_name[OURS].value(figure.key) if OURS in by_name else None
        ray = by_name["ray"].value(figure.key) if "ray" in by_name else None
        times = ""
        if ours and ray:
            times = f"{(ray / ours if figure.lower_is_better else ours / ray):.1f}"
        sign = "<= " if figure.lower_is_better else ""
        target = "" if figure.target is None else sign + written(figure.target)
        cells = [written(system.value(figure.key)) for system in systems]
        for index, system in enumerate(systems):
            if "error" in system.results.get(figure.key, {}):
                cells[index] = "[red]" + str(system.results[figure.key]["error"])[:24].replace("[", "(") + "[/red]"
        table.add_row(figure.title, figure.unit, target, *cells, times, verdict(figure, ours, ray))
    return table


def record(systems: list[System], quick: bool, facts: dict[str, Any]) -> dict[str, Any]:
    """The run as one JSON object."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    by_name = {system.name: system for system in systems}
    verdicts = {}
    for figure in FIGURES:
        ours = by_name[OURS].value(figure.key) if OURS in by_name else None
        ray = by_name["ray"].value(figure.key) if "ray" in by_name else None
        if ours is not None and figure.target is not None:
            verdicts[figure.key] = verdict(figure, ours, ray)
    return {
        "benchmark": "engine",
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit.stdout.strip(),
        "quick": quick,
        "machine": facts,
        "results": {system.name: system.results for system in systems},
        "verdicts": verdicts,
    }


def chosen_systems(arguments: argparse.Namespace, console: Console) -> list[System]:
    """The columns: what was asked for and can be imported."""
    here = sys.executable
    dask_python = arguments.dask or next((p for p in (here, arguments.ray) if p and can_import(p, "distributed")), None)
    wanted = [System(OURS, here)]
    if arguments.ray:
        wanted.append(System("ray", arguments.ray))
    if dask_python and not arguments.no_dask:
        wanted.append(System("dask", dask_python))
    wanted += [System("futures", here), System("pool", here)]
    if arguments.systems:
        wanted = [system for system in wanted if system.name in arguments.systems]
    kept = []
    for system in wanted:
        if system.name in ("shoal", "ray") and not can_import(system.python, system.name):
            console.print(f"[yellow]{TITLES[system.name]} cannot be imported by {system.python}: left out[/yellow]")
            continue
        kept.append(system)
    return kept


def main() -> int:
    """Run, print, record. The exit code is 1 when one of our targets is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter repetitions, one start")
    parser.add_argument("--ray", metavar="PYTHON", help="an interpreter that has Ray (make bench installs one)")
    parser.add_argument("--dask", metavar="PYTHON", help="an interpreter that has Dask distributed")
    parser.add_argument("--no-dask", action="store_true")
    parser.add_argument("--json", metavar="FILE", help="append the run to this file as one line")
    parser.add_argument("--only", nargs="+", metavar="KEY", choices=sorted(BY_KEY), help="these figures")
    parser.add_argument("--systems", nargs="+", choices=sorted(TITLES), help="these systems")
    arguments = parser.parse_args()
    console = Console(stderr=False, width=max(150, Console().width))
    keys = arguments.only or [figure.key for figure in FIGURES]
    rates = [key for key in keys if BY_KEY[key].kind != "life"]
    facts = machine()
    systems = chosen_systems(arguments, console)
    for system in systems:
        if rates:
            measure_rates(system, rates, arguments.quick, console)
        if len(rates) < len(keys):
            measure_life(system, arguments.quick)
    console.print(table_of(systems, keys))
    console.print(f"[dim]{json.dumps(facts)}[/dim]")
    line = record(systems, arguments.quick, facts)
    if arguments.json:
        path = Path(arguments.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
    else:
        print(json.dumps(line))
    return int("MISSED" in line["verdicts"].values())


if __name__ == "__main__":
    sys.exit(main())
