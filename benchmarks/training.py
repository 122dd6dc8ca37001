"""Data-parallel training and allreduce, beside torchrun, one process and MPI (paper figures 12a and 13).

    python benchmarks/training.py [--seconds 3] [--turns 3] [--workers 2] [--megabytes 10,100,1000] [--parts images,allreduce]

Images: a network of four layers (0.6 M weights) on images of 32 x 32, batches of 128 a worker. Images per second of one torch process with all
cores, of torchrun with `--workers` processes of one thread each, of `shoal.train.TorchTrainer` with as many, and of a parameter server with two
shards, synchronous and asynchronous. They take turns, because a machine's speed changes; a figure is the median of its turns. Processes of
shoal.train keep the memory that a step frees (shoal.train.memory), which is worth a quarter here; `torchrun_kept_memory` is torchrun with glibc told
to do the same.

Allreduce: 4 members, float32, in place: `shoal.train.collective` between actors, gloo under torchrun, mpi4py (left out, and said so, without mpirun).
A figure is the median over the turns of the slowest member's median. 1,000 MB take 4 GB of memory, and as much again while MPI reduces.

With `--realtime` (root) what is measured has the CPUs before everything else on the machine.

One JSON line a part, printed as soon as it is measured; a part that fails says why in its line, and the next one follows.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from measuring import REALTIME_VARIABLE, realtime

BATCH = 128
MEMBERS = 4
FLOATS_A_MEGABYTE = 250_000
#: what shoal.train's processes do by themselves (shoal.train.memory)
KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(512 << 20)}


# ------------------------------------------------------------------ images


def make_model() -> Any:
    """The network."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(3136, 192),
        nn.ReLU(),
        nn.Linear(192, 10),
    )


def train_for(model: Any, seconds: float) -> float:
    """Images per second of this process."""
    import torch
    import torch.distributed as distributed

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(0, 10, (BATCH,))

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    for _ in range(5):
        step()
    with realtime():
        began = time.perf_counter()
        for _ in range(5):
            step()
        # All workers take equally many steps: one whose time is up would leave the others alone in a collective call.
        steps = torch.tensor([max(10.0, 5 * seconds / (time.perf_counter() - began))])
        if distributed.is_initialized():
            distributed.all_reduce(steps, distributed.ReduceOp.MIN)
        count = int(steps.item())
        began = time.perf_counter()
        for _ in range(count):
            step()
        return BATCH * count / (time.perf_counter() - began)


def with_trainer(workers: int, seconds: float) -> float:
    """Images per second of all workers of a TorchTrainer together."""
    from shoal import train

    def loop() -> None:
        import torch

        torch.set_num_threads(1)
        found = train_for(train.prepare_model(make_model()), seconds)
        train.report({"images_s": found * train.get_context().get_world_size()})

    with tempfile.TemporaryDirectory() as folder:
        result = train.TorchTrainer(
            loop,
            scaling_config=train.ScalingConfig(num_workers=workers),
            run_config=train.RunConfig(name="benchmark", storage_path=folder),
        ).fit()
    found: float = result.metrics["images_s"]
    return found


class ServedWorker:
    """An actor that trains a model whose weights are a parameter server's."""

    def __init__(self, server: Any, worker: int, workers: int | None, lag: int) -> None:
        import torch

        from shoal.train import ServedModel

        torch.set_num_threads(1)
        self._loss = torch.nn.functional.cross_entropy
        self._served = ServedModel(make_model(), server, worker, workers, lag=lag)
        self._images, self._labels = torch.randn(BATCH, 3, 32, 32), torch.randint(0, 10, (BATCH,))

    def run(self, steps: int) -> float:
        """Take so many steps; the seconds."""
        began = time.perf_counter()
        for _ in range(steps):
            self._loss(self._served.model(self._images), self._labels).backward()
            self._served.step()
        return time.perf_counter() - began


def with_parameter_server(workers: int, seconds: float, synchronous: bool) -> float:
    """Images per second of all workers; asynchronous ones do not wait for the weights of their last step (lag 1)."""
    import shoal
    from shoal import train

    server = train.serve_model(make_model(), 2, lambda: train.Momentum(0.01, 0.0))
    make = shoal.remote(ServedWorker)
    actors = [
        make.remote(server, number, workers if synchronous else None, 0 if synchronous else 1)
        for number in range(workers)
    ]
    shoal.get([actor.run.remote(5) for actor in actors])
    with realtime(family_too=True):
        first = max(shoal.get([actor.run.remote(5) for actor in actors]))
        steps = max(10, round(5 * seconds / first))
        found = sum(BATCH * steps / took for took in shoal.get([actor.run.remote(steps) for actor in actors]))
    for actor in [*actors, *server.shards]:
        shoal.kill(actor)
    return found


def measure_images(options: argparse.Namespace) -> dict[str, Any]:
    """Paper figure 13, on the cores of this machine."""
    workers, seconds = options.workers, options.seconds
    found: dict[str, list[float]] = {
        name: []
        for name in (
            "one_process",
            "torchrun",
            "torchrun_kept_memory",
            "trainer",
            "parameter_server_sync",
            "parameter_server_async",
        )
    }
    for _ in range(options.turns):
        found["torchrun"].append(under_torchrun(workers, "images", seconds)[0])
        found["trainer"].append(with_trainer(workers, seconds))
        found["parameter_server_sync"].append(with_parameter_server(workers, seconds, synchronous=True))
        found["torchrun_kept_memory"].append(under_torchrun(workers, "images", seconds, more=KEPT_MEMORY)[0])
        found["parameter_server_async"].append(with_parameter_server(workers, seconds, synchronous=False))
        found["one_process"].append(train_for(make_model(), seconds))
    medians = {name: statistics.median(values) for name, values in found.items()}

    def beside(other: str) -> dict[str, float]:
        # Ratios within a turn: the machine is the same then.
        return {
            name: round(statistics.median(a / b for a, b in zip(values, found[other], strict=True)), 3)
            for name, values in found.items()
        }

    return {
        "workers": workers,
        "images_s": {name: round(value) for name, value in medians.items()},
        "of_torchrun": beside("torchrun"),
        "of_torchrun_kept_memory": beside("torchrun_kept_memory"),
    }


# ------------------------------------------------------------------ allreduce


def reduce_for(
    reduce: Callable[[np.ndarray], Any],
    slowest: Callable[[np.ndarray], Any],
    barrier: Callable[[], Any],
    sizes: list[int],
    seconds: float,
) -> list[float]:
    """Seconds of an allreduce for each size (megabytes): the slowest member's median.

    How often is agreed upon (`slowest` is an allreduce with max): a member that went by its own clock would leave the others alone in a call.
    """
    found = []
    for size in sizes:
        array = np.ones(size * FLOATS_A_MEGABYTE, np.float32)
        times = []
        with realtime():
            barrier()
            began = time.perf_counter()
            reduce(array)
            first = np.array([time.perf_counter() - began])
            slowest(first)
            count = int(min(50, max(3, seconds / first[0])))
            for _ in range(count):
                array.fill(1.0)
                barrier()
                began = time.perf_counter()
                reduce(array)
                times.append(time.perf_counter() - began)
        assert array[0] == array[-1] == MEMBERS
        median = np.array([statistics.median(times)])
        slowest(median)
        found.append(float(median[0]))
    return found


def with_collective(sizes: list[int], seconds: float) -> list[float]:
    """Among actors."""
    import shoal
    from shoal.train import collective

    class Member:
        def run(self) -> list[float]:
            return reduce_for(
                collective.allreduce,
                lambda array: collective.allreduce(array, op="max"),
                collective.barrier,
                sizes,
                seconds,
            )

    members = [shoal.remote(num_cpus=0)(Member).remote() for _ in range(MEMBERS)]
    collective.create_group(members)
    found: list[float] = shoal.get([member.run.remote() for member in members])[0]
    for member in members:
        shoal.kill(member)
    return found


def with_mpi(sizes: list[int], seconds: float) -> list[float] | None:
    """With OpenMPI; None without it."""
    if shutil.which("mpirun") is None or importlib.util.find_spec("mpi4py") is None:
        return None
    command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", str(MEMBERS), sys.executable, __file__]
    return run_members(command, "mpi", seconds, sizes, os.environ)


def measure_allreduce(options: argparse.Namespace) -> dict[str, Any]:
    """Paper figure 12a, between processes of this machine."""
    sizes = [int(size) for size in options.megabytes.split(",")]
    found: dict[str, list[list[float]]] = {"shoal": [], "gloo": [], "openmpi": []}
    for _ in range(max(1, options.turns - 1)):
        found["shoal"].append(with_collective(sizes, options.seconds))
        found["gloo"].append(under_torchrun(MEMBERS, "allreduce", options.seconds, sizes))
        mpi = with_mpi(sizes, options.seconds)
        if mpi is not None:
            found["openmpi"].append(mpi)
    line: dict[str, Any] = {"members": MEMBERS}
    for place, size in enumerate(sizes):
        line[f"{size}_MB_ms"] = {
            name: round(statistics.median(turn[place] for turn in turns) * 1e3, 1)
            for name, turns in found.items()
            if turns
        }
    if not found["openmpi"]:
        line["openmpi"] = "left out: mpirun or mpi4py is not installed"
    return line


# ------------------------------------------------------------------ processes of the others


def under_torchrun(
    processes: int, role: str, seconds: float, sizes: list[int] | None = None, more: dict[str, str] | None = None
) -> list[float]:
    """What rank 0 prints. `more`: of the environment."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", __file__,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **(more or {})}
    return run_members(command, role, seconds, sizes or [], environment)


def run_members(
    command: list[str], role: str, seconds: float, sizes: list[int], environment: dict[str, str] | os._Environ[str]
) -> list[float]:
    """Start this file as `role` in several processes, by their launcher; the numbers of the last line."""
    command = [*command, "--role", role, "--seconds", str(seconds), "--megabytes", ",".join(map(str, sizes))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=dict(environment), check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {done.stderr[-500:]}")
    found: list[float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def play_member(options: argparse.Namespace) -> None:
    """One process under torchrun or mpirun; the first prints what was measured."""
    sizes = [int(size) for size in options.megabytes.split(",") if size]
    if options.role == "mpi":
        from mpi4py import MPI

        world = MPI.COMM_WORLD
        found = reduce_for(
            lambda array: world.Allreduce(MPI.IN_PLACE, array),
            lambda array: world.Allreduce(MPI.IN_PLACE, array, MPI.MAX),
            world.Barrier,
            sizes,
            options.seconds,
        )
        if world.rank == 0:
            print(json.dumps(found), flush=True)
        return
    import torch
    import torch.distributed as distributed
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    if options.role == "images":
        model = DistributedDataParallel(make_model())
        found = [train_for(model, options.seconds) * distributed.get_world_size()]
    else:
        found = reduce_for(
            lambda array: distributed.all_reduce(torch.from_numpy(array)),
            lambda array: distributed.all_reduce(torch.from_numpy(array), distributed.ReduceOp.MAX),
            distributed.barrier,
            sizes,
            options.seconds,
        )
    if distributed.get_rank() == 0:
        print(json.dumps(found), flush=True)
    distributed.destroy_process_group()


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "images": measure_images,
    "allreduce": measure_allreduce,
}


def main() -> None:
    """Measure all of it, ours and theirs in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="for each figure of each turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--megabytes", default="10,100,1000")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--realtime", action="store_true", help="with real-time priority (root)")
    parser.add_argument("--role", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        play_member(options)
        return
    if options.realtime:
        os.environ[REALTIME_VARIABLE] = "1"
    import shoal

    shoal.init(num_cpus=options.workers, log_to_driver=False)
    for name in options.parts.split(","):
        line: dict[str, Any] = {"benchmark": "training", "part": name, "cpus": os.cpu_count()}
        began = time.perf_counter()
        try:
            line |= PARTS[name](options)
        except Exception as error:
            line["error"] = f"{type(error).__name__}: {error}"
        line |= {"seconds": round(time.perf_counter() - began, 1), "load": round(os.getloadavg()[0], 1)}
        print(json.dumps(line), flush=True)
    shoal.shutdown()


if __name__ == "__main__":
    main()
