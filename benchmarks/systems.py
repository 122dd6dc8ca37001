"""The programs of examples/systems beside other ways to do the same, on the same machine: the figures of docs/systems/.

    python benchmarks/systems.py [ciel mapreduce dask fold mxnet bsp] [--quick] [--write docs]

Prints a JSON line for each system: `figure` says what the numbers are, `values` has one for each way. Everything is measured; what sleeps (map
tasks, BSP's slow parts, Fold's network that costs 1 ms more) says so in the line. The programs are those of the examples, which this imports.
`--write` puts the line into the system's page and draws its picture.

What it does not do: run the other systems themselves, but for Dask's own schedulers.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import re
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import shoal

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "systems"))

Found = tuple[str, dict[str, float], dict[str, Any]]  #: what the numbers are, the numbers by way, facts


def seconds(function: Callable[[], Any]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def ciel(quick: bool) -> Found:
    """A loop that depends on its data, each step a task: microseconds a step."""
    program = importlib.import_module("ciel")
    deep, links, nested = (5_000, 200, 2) if quick else (100_000, 20_000, 16)
    shoal.init(num_cpus=1, log_to_driver=False)

    @shoal.remote
    def step(left: int) -> int:
        return left - 1

    @shoal.remote
    def ask(left: int) -> int:
        return shoal.get(ask.remote(left - 1)) if left else 0

    def chain() -> None:
        left = links
        for _ in range(links):
            left = step.remote(left)
        assert shoal.get(left) == 0

    def driven() -> None:
        left = links
        while left:
            left = shoal.get(step.remote(left))

    shoal.get([program.count_down.remote(3), ask.remote(1)])
    values = {
        "delegation": seconds(lambda: shoal.get(program.count_down.remote(deep))) / deep,
        "a chain of refs (length known)": seconds(chain) / links,
        "the driver asks for each step": seconds(driven) / links,
        "each task waits for its child": seconds(lambda: shoal.get(ask.remote(nested))) / nested,
    }
    shoal.shutdown()
    return (
        "microseconds a step",
        {name: value * 1e6 for name, value in values.items()},
        {"deep": deep, "nested": nested},
    )


def mapreduce(quick: bool) -> Found:
    """A job of map tasks that sleep, on four CPUs; one of them dies, or dawdles: times of the undisturbed job."""
    program = importlib.import_module("mapreduce")
    tasks, each_s, slow_s = (8, 0.02, 0.3) if quick else (40, 0.1, 1.5)
    shoal.init(num_cpus=4, log_to_driver=False)

    def job(name: str, folder: str, backup_after_s: float) -> float:
        marker = os.path.join(folder, name)

        def count(record: int) -> list[tuple[int, int]]:
            time.sleep(each_s)
            if name == "a worker is killed" and record == tasks // 2 and program.once(marker):
                os._exit(1)
            if "straggler" in name and record == tasks - 1 and program.once(marker):
                time.sleep(slow_s)
            return [(record % 7, 1)]

        def run() -> None:
            chunks = [[number] for number in range(tasks)]
            results, skipped = program.mapreduce(chunks, count, sum, sum, lambda key: key % 4, backup_after_s)
            assert sum(sum(part.values()) for part in results) == tasks and skipped == 0

        return seconds(run)

    with tempfile.TemporaryDirectory() as folder:
        job("undisturbed", folder, 60.0)
        backup_s = tasks * each_s / 4
        undisturbed = job("undisturbed", folder, backup_s)
        values = {
            "undisturbed": 1.0,
            "a worker is killed": job("a worker is killed", folder, 60.0) / undisturbed,
            "a straggler, backup tasks": job("a straggler, backup tasks", folder, backup_s) / undisturbed,
            "a straggler, no backup tasks": job("a straggler, no backup tasks", folder, 60.0) / undisturbed,
        }
    shoal.shutdown()
    facts = {
        "undisturbed_s": undisturbed,
        "map_tasks": tasks,
        "each_sleeps_s": each_s,
        "the_straggler_sleeps_s": slow_s,
    }
    return "time of the undisturbed job", values, facts


def dask_graphs(quick: bool) -> Found:
    """An array expression, a data frame's groupby and a graph of small tasks: Dask's schedulers and Shoal's, milliseconds."""
    import dask
    import dask.array
    import dask.dataframe
    import distributed
    import pandas as pd

    from shoal.util.dask import shoal_dask_get

    size, rows, small = (300, 2_000, 50) if quick else (2_000, 1_000_000, 1_000)
    frame = pd.DataFrame({"key": np.arange(rows) % 1000, "value": np.arange(float(rows))})
    dice = dask.array.random.default_rng(1)

    def array() -> Any:
        x = dice.random((size, size), chunks=(size // 3, size // 3))
        return (x @ x.T).mean(axis=0)

    def data_frame() -> Any:
        number = next(fresh)
        return dask.dataframe.from_pandas(frame + number, npartitions=8).groupby("key")["value"].mean()

    def small_tasks() -> Any:
        return dask.delayed(sum)([dask.delayed(abs)(-number) for number in range(small)])

    values: dict[str, float] = {}
    fresh = itertools.count()  # no expression twice: distributed would remember

    def measure(system: str, **how: Any) -> None:
        for name, make in {"array": array, "data frame": data_frame, "small tasks": small_tasks}.items():
            make().compute(**how)
            expressions = [make() for _ in range(1 if quick else 3)]
            times = [seconds(lambda what=one: what.compute(**how)) for one in expressions]
            values[f"{name}, {system}"] = statistics.median(times) * 1e3

    shoal.init(num_cpus=2, log_to_driver=False)
    measure("Shoal", scheduler=shoal_dask_get)
    shoal.shutdown()
    measure("threads", scheduler="threads", num_workers=2)
    if not quick:
        with (
            warnings.catch_warnings(action="ignore"),
            distributed.LocalCluster(
                n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs="ERROR"
            ) as cluster,
            distributed.Client(cluster),
        ):
            measure("distributed", scheduler="distributed")
    ordered = {way: values[way] for way in sorted(values, key=lambda way: way.partition(",")[0])}
    return "milliseconds", ordered, {"array": size, "rows": rows, "small_tasks": small, "cpus": 2}


def fold(quick: bool) -> Found:
    """A network over random trees: milliseconds for all of them, and how many calls their nodes became."""
    import random

    program = importlib.import_module("fold")
    trees, cost_s = (8, 0.001) if quick else (64, 0.001)
    shoal.init(num_cpus=2, log_to_driver=False)
    dice = random.Random(3)
    forest = [program.random_tree(dice, dice.randrange(5, 25)) for _ in range(trees)]

    def costly(lefts: list[Any], rights: list[Any]) -> list[Any]:
        time.sleep(cost_s)
        return program.join(lefts, rights)

    def submit(tree: Any, function: Any) -> Any:
        if isinstance(tree, int):
            return program.WORDS[tree]
        return function.remote(submit(tree[0], function), submit(tree[1], function))

    facts: dict[str, Any] = {"trees": trees, "nodes": sum(str(tree).count("(") for tree in forest)}
    facts["deep"] = max(map(program.depth, forest))
    values: dict[str, float] = {}
    for name, network in (("the network as it is", program.join), ("a call costs 1 ms more", costly)):
        batched = shoal.remote(batch=4096)(network)
        one_each = shoal.remote(lambda left, right, network=network: network([left], [right])[0])
        for way, function in (("batched", batched), ("a task each", one_each)):
            shoal.get([function.remote(program.WORDS[0], program.WORDS[1]) for _ in range(20)])
            before = shoal.get(batched.calls())
            values[f"{name}, {way}"] = 1e3 * seconds(
                lambda run=function: shoal.get([submit(one, run) for one in forest])
            )
            if function is batched:
                facts[f"calls ({name})"] = shoal.get(batched.calls()) - before
    shoal.shutdown()
    return "milliseconds", values, facts


def mxnet(quick: bool) -> Found:
    """A parameter array that an actor changes and two processes read: reads a second, by how the array is handed out."""
    program = importlib.import_module("mxnet")
    size, reads = (20_000, 20) if quick else (200_000, 300)
    shoal.init(num_cpus=2, log_to_driver=False)

    @shoal.remote(num_cpus=0)
    class Copies:
        """Hands out the array itself."""

        def __init__(self, array: Any) -> None:
            self.array = np.array(array)

        def read(self) -> Any:
            return self.array

    @shoal.remote
    def versions(buffer: Any, writes_every: int) -> None:
        for number in range(reads):
            if writes_every and number % writes_every == 0:
                buffer.write.remote(program.descend, 1.0, 0.1)
            _, (ref,) = shoal.get(buffer.read.remote())
            assert shoal.get(ref).shape == (size,)

    @shoal.remote
    def copies(holder: Any) -> None:
        for _ in range(reads):
            assert shoal.get(holder.read.remote()).shape == (size,)

    buffer, holder = program.Buffer.remote(np.zeros(size)), Copies.remote(np.zeros(size))
    values = {}
    for name, start in {
        "a version's object, never written": lambda: versions.remote(buffer, 0),
        "a version's object, a write every 10 reads": lambda: versions.remote(buffer, 10),
        "a version's object, a write every read": lambda: versions.remote(buffer, 1),
        "the array as a result": lambda: copies.remote(holder),
    }.items():
        shoal.get([start() for _ in range(2)])
        values[name] = 2 * reads / seconds(lambda begin=start: shoal.get([begin() for _ in range(2)]))
    shoal.shutdown()
    return "reads a second", values, {"megabytes": size * 8 / 1e6, "readers": 2}


def bsp(quick: bool) -> Found:
    """PageRank until all ranks are within 1e-6 of the limit, by parts that answer after a random time: seconds."""
    program = importlib.import_module("bsp")
    slow_s = 0.002 if quick else 0.02
    shoal.init(num_cpus=2, log_to_driver=False)
    graph = program.random_graph()
    limit = program.pagerank(graph, 200)
    parts = [program.Part.remote(rows, slow_s) for rows in np.array_split(graph, program.WORKERS)]
    shoal.get([part.__shoal_ready__.remote() for part in parts])
    steps = next(n for n in range(1, 200) if np.allclose(program.pagerank(graph, n), limit, rtol=0, atol=1e-6))
    facts: dict[str, Any] = {"parts": len(parts), "an_answer_sleeps_s": slow_s, "supersteps": steps}

    def plain() -> None:
        ranks, _ = program.synchronous(parts, steps)
        assert np.allclose(ranks, limit, rtol=0, atol=1e-6)

    def freely() -> None:
        ranks, came = program.asynchronous(parts, 500, lambda now: np.allclose(now, limit, rtol=0, atol=1e-6))
        assert np.allclose(ranks, limit, rtol=0, atol=1e-6)
        facts["shares_without_barriers"] = came

    values = {
        "supersteps": seconds(plain),
        "supersteps, a worker killed": seconds(lambda: program.synchronous(parts, steps, kill_at=steps // 2)),
        "no barriers": seconds(freely),
    }
    shoal.shutdown()
    return "seconds", values, facts


SYSTEMS = {"ciel": ciel, "mapreduce": mapreduce, "dask": dask_graphs, "fold": fold, "mxnet": mxnet, "bsp": bsp}


PAGES = {name: "dask_graphs" if name == "dask" else name for name in SYSTEMS}


def draw(what: str, values: dict[str, float], path: Path) -> None:
    """Horizontal bars with their numbers; logarithmic where they differ by more than 30 times. A color for each "thing, " of "thing, way"."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 0.7 + 0.36 * len(values)), layout="constrained")
    axes = figure.subplots()
    things = list(dict.fromkeys(way.partition(",")[0] for way in values))
    colors = [f"C{things.index(way.partition(',')[0])}" if len(things) < len(values) else "C0" for way in values]
    bars = axes.barh(list(values), list(values.values()), color=colors, height=0.65)
    axes.bar_label(bars, [f"{value:.3g}" if value < 1000 else f"{value:,.0f}" for value in values.values()], padding=4)
    axes.invert_yaxis()
    if max(values.values()) > 30 * min(values.values()):
        axes.set_xscale("log")
        axes.set_xlim(min(values.values()) / 3, max(values.values()) * 8)
    else:
        axes.set_xlim(0, max(values.values()) * 1.15)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(f"{what} (measured)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def write(docs: Path, name: str, line: dict[str, Any]) -> None:
    """Put a line into the system's page, and draw its picture."""
    page = docs / "systems" / f"{PAGES[name]}.md"
    block = f"```json\n{json.dumps(line)}\n```"
    text, count = re.subn(r"```json\n.*?\n```", lambda _: block, page.read_text(), flags=re.DOTALL)
    assert count == 1, f"{page} has {count} blocks of JSON, not one"
    page.write_text(text)
    draw(line["figure"], line["values"], docs / "pictures" / f"system_{PAGES[name]}.png")


def main() -> None:
    """The systems that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="*", metavar="SYSTEM", help=f"of {', '.join(SYSTEMS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="everything once and small, for a test")
    parser.add_argument("--write", type=Path, metavar="DOCS", help="the folder of the pages")
    options = parser.parse_args()
    if unknown := [name for name in options.systems if name not in SYSTEMS]:
        parser.error(f"there is no system {unknown[0]!r}; there are {', '.join(SYSTEMS)}")
    for name in options.systems or SYSTEMS:
        what, values, facts = SYSTEMS[name](options.quick)
        rounded = {way: float(f"{value:.4g}") for way, value in values.items()}
        line = {"benchmark": "systems", "system": name, "figure": what, "values": rounded, **facts}
        line["load"] = round(os.getloadavg()[0], 1)
        print(json.dumps(line), flush=True)
        if options.write:
            write(options.write, name, line)


if __name__ == "__main__":
    main()
