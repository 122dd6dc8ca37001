"""A training that grows when a node joins and goes on when it dies: what both cost.

    python benchmarks/elastic_training.py

A cluster of one node with one CPU trains with `ScalingConfig(num_workers=2, min_workers=1)`, a step each 50 ms with a checkpoint. Then a second
node joins; later it is killed. One JSON line: seconds from the join to the first step of two workers, and from the kill to the next step of one
(workers are started anew and import torch in both), and whether each step was made exactly once.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import shoal
from shoal import train
from shoal.testing import Cluster

STEP_S = 0.05


def loop(config: dict[str, Any]) -> None:
    """Steps, each with a checkpoint."""
    import torch

    context, begin = train.get_context(), 0
    model = train.prepare_model(torch.nn.Linear(1, 1))
    checkpoint = train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            begin = int(Path(folder, "step").read_text()) + 1
    for step in range(begin, config["steps"]):
        model(torch.ones(4, 1)).square().mean().backward()
        saved = None
        if context.get_world_rank() == 0:
            folder = Path(config["folder"], "own")
            folder.mkdir(exist_ok=True)
            (folder / "step").write_text(str(step))
            saved = train.Checkpoint.from_directory(folder)
        train.report({"step": step, "world": context.get_world_size(), "time": time.time()}, checkpoint=saved)
        time.sleep(STEP_S)


def main() -> None:
    """One run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--join", type=float, default=4.0, help="seconds after the start")
    parser.add_argument("--kill", type=float, default=16.0, help="seconds after the start")
    options = parser.parse_args()
    happened: dict[str, float] = {}
    with Cluster() as cluster, tempfile.TemporaryDirectory() as folder:
        cluster.connect(log_to_driver=False)

        def come_and_go() -> None:
            time.sleep(options.join)
            happened["join"] = time.time()
            node = cluster.add_node(num_cpus=1)
            time.sleep(options.kill - options.join)
            happened["kill"] = time.time()
            cluster.remove_node(node, kill=True)

        thread = threading.Thread(target=come_and_go)
        thread.start()
        began = time.perf_counter()
        result = train.TorchTrainer(
            loop,
            train_loop_config={"steps": options.steps, "folder": folder},
            scaling_config=train.ScalingConfig(num_workers=2, min_workers=1),
            run_config=train.RunConfig(name="elastic", storage_path=folder, max_failures=2),
        ).fit()
        elapsed = time.perf_counter() - began
        thread.join()
        shoal.shutdown()
    changes = [
        (after["world"], after["time"])
        for before, after in pairwise(result.history)
        if after["world"] != before["world"]
    ]
    grown = next((when for world, when in changes if world == 2), None)
    shrunk = next((when for world, when in changes if world == 1), None)
    line = {
        "benchmark": "elastic_training",
        "steps": options.steps,
        "seconds": round(elapsed, 1),
        "restarts": result.restarts,
        "join_to_step_of_two_s": round(grown - happened["join"], 2) if grown else None,
        "kill_to_step_of_one_s": round(shrunk - happened["kill"], 2) if shrunk else None,
        "each_step_once": [row["step"] for row in result.history] == list(range(options.steps)),
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
