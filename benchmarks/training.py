"""Data-parallel training and allreduce, beside torchrun, one process and MPI (paper figures 12a and 13).

    python benchmarks/training.py [--seconds 6] [--workers 2]

Training: a network of three layers on images of 32 x 32 that are drawn anew, batches of 128 a worker. Images per second of one torch process with
all cores, of torchrun with `--workers` processes of one thread each, of `shoal.train.TorchTrainer` with as many, and of the parameter server.
Allreduce: 4 members, 10 and 100 MB of float32 (1 GB with --large); ours is `shoal.train.collective`, beside gloo under torchrun and mpi4py (left
out without mpirun). One JSON line.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from typing import Any

import numpy as np

BATCH = 128
MEMBERS = 4


def make_model() -> Any:
    """The network."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1568, 10),
    )


def train_for(model: Any, seconds: float) -> float:
    """Images per second of this process."""
    import torch

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(0, 10, (BATCH,))

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    for _ in range(5):
        step()
    # All workers take equally many steps: one whose time is up would leave the others alone in a collective call.
    began = time.perf_counter()
    for _ in range(5):
        step()
    each = (time.perf_counter() - began) / 5
    import torch.distributed as distributed

    steps = torch.tensor([max(10.0, seconds / each)])
    if distributed.is_initialized():
        distributed.all_reduce(steps, distributed.ReduceOp.MIN)
    count = int(steps.item())
    began = time.perf_counter()
    for _ in range(count):
        step()
    return BATCH * count / (time.perf_counter() - began)


def under_torchrun(options: argparse.Namespace) -> None:
    """Run by each process of torchrun."""
    import torch
    import torch.distributed as distributed

    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    if options.megabytes:
        found = reduce_for(
            lambda tensor: distributed.all_reduce(tensor), options.megabytes, options.seconds, distributed.barrier
        )
    else:
        from torch.nn.parallel import DistributedDataParallel

        found = train_for(DistributedDataParallel(make_model()), options.seconds) * distributed.get_world_size()
    if distributed.get_rank() == 0:
        print(json.dumps(found), flush=True)
    distributed.destroy_process_group()


def reduce_for(reduce: Any, megabytes: int, seconds: float, barrier: Any) -> float:
    """Seconds of an allreduce: the median."""
    import torch

    tensor = torch.ones(megabytes * 250_000)
    times = []
    for _ in range(max(3, int(seconds / (0.002 * megabytes)))):
        barrier()
        began = time.perf_counter()
        reduce(tensor)
        times.append(time.perf_counter() - began)
        if sum(times) > seconds * 2 and len(times) >= 3:
            break
    return float(np.median(times))


def torchrun(processes: int, seconds: float, megabytes: int = 0) -> float:
    """What rank 0 prints."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", __file__,
        "--torchrun", "--seconds", str(seconds), "--megabytes", str(megabytes),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds * 20 + 120, env=environment, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"torchrun failed: {done.stderr[-500:]}")
    found: float = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def with_mpi(seconds: float, megabytes: int) -> float | None:
    """Seconds of an allreduce by OpenMPI; None without it."""
    if shutil.which("mpirun") is None or importlib.util.find_spec("mpi4py") is None:
        return None
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    command = ["mpirun", "--oversubscribe", "-n", str(MEMBERS), sys.executable, __file__, "--mpi"]
    command += ["--seconds", str(seconds), "--megabytes", str(megabytes)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds * 20 + 120, env=environment, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"mpirun failed: {done.stderr[-500:]}")
    found: float = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def under_mpi(options: argparse.Namespace) -> None:
    """Run by each rank."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    array, total = np.ones(options.megabytes * 250_000, np.float32), np.empty(options.megabytes * 250_000, np.float32)
    times = []
    for _ in range(max(3, int(options.seconds / (0.004 * options.megabytes)))):
        world.Barrier()
        began = time.perf_counter()
        world.Allreduce(array, total)
        times.append(time.perf_counter() - began)
    if world.rank == 0:
        print(json.dumps(float(np.median(times))))


def with_trainer(workers: int, seconds: float) -> float:
    """Images per second of all workers together."""
    import tempfile

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


def with_parameter_server(workers: int, seconds: float) -> float:
    """Images per second of synchronous steps through two shards."""
    import torch
    from torch.nn.utils import parameters_to_vector, vector_to_parameters

    import shoal
    from shoal import train

    server = train.ParameterServer(parameters_to_vector(make_model().parameters()).detach().numpy(), shards=2)

    class Worker:
        def __init__(self) -> None:
            torch.set_num_threads(1)
            self.model = make_model()
            self.images, self.labels = torch.randn(BATCH, 3, 32, 32), torch.randint(0, 10, (BATCH,))

        def gradient(self, *weights: Any) -> Any:
            vector_to_parameters(torch.from_numpy(np.concatenate(weights)), self.model.parameters())
            self.model.zero_grad()
            torch.nn.functional.cross_entropy(self.model(self.images), self.labels).backward()
            flat = torch.cat([each.grad.ravel() for each in self.model.parameters()]).numpy()
            return server.split(flat)

    actors = [shoal.remote(Worker).remote() for _ in range(workers)]
    weights: list[Any] = [shard.pull.remote() for shard in server.shards]

    def step() -> None:
        nonlocal weights
        rows = [actor.gradient.options(num_returns=2).remote(*weights) for actor in actors]
        weights = server.step(rows)

    for _ in range(5):
        step()
    shoal.get(weights)
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        step()
        steps += 1
        if steps % 4 == 0:
            shoal.get(weights)
    shoal.get(weights)
    found = BATCH * workers * steps / (time.perf_counter() - began)
    for actor in actors:
        shoal.kill(actor)
    return found


def with_collective(seconds: float, megabytes: int) -> float:
    """Seconds of an allreduce among actors."""
    import shoal
    from shoal.train import collective

    class Member:
        def run(self) -> float:
            return reduce_for(collective.allreduce, megabytes, seconds, collective.barrier)

    members = [shoal.remote(num_cpus=0)(Member).remote() for _ in range(MEMBERS)]
    collective.create_group(members)
    found: float = shoal.get([member.run.remote() for member in members])[0]
    for member in members:
        shoal.kill(member)
    return found


def main() -> None:
    """Measure all of it, ours and theirs in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=6.0, help="for each figure")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--large", action="store_true", help="allreduce of 1 GB too (takes 16 GB of memory)")
    parser.add_argument("--torchrun", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--mpi", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--megabytes", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.torchrun:
        under_torchrun(options)
        return
    if options.mpi:
        under_mpi(options)
        return
    import shoal

    line: dict[str, Any] = {"benchmark": "training", "workers": options.workers, "cpus": os.cpu_count()}
    line["one_process_images_s"] = round(train_for(make_model(), options.seconds / 2))
    shoal.init(num_cpus=options.workers, log_to_driver=False)
    ours, theirs = [], []
    for _ in range(2):
        theirs.append(torchrun(options.workers, options.seconds / 2))
        ours.append(with_trainer(options.workers, options.seconds / 2))
    line["torchrun_images_s"], line["trainer_images_s"] = round(float(np.mean(theirs))), round(float(np.mean(ours)))
    line["trainer_of_torchrun"] = round(float(np.mean(ours) / np.mean(theirs)), 3)
    line["parameter_server_images_s"] = round(with_parameter_server(options.workers, options.seconds / 2))
    for megabytes in (10, 100, *([1000] if options.large else [])):
        line[f"allreduce_{megabytes}_MB_ms"] = {
            "shoal": round(with_collective(options.seconds / 3, megabytes) * 1e3, 1),
            "gloo": round(torchrun(MEMBERS, options.seconds / 3, megabytes) * 1e3, 1),
        }
        mpi = with_mpi(options.seconds / 3, megabytes)
        if mpi is not None:
            line[f"allreduce_{megabytes}_MB_ms"]["openmpi"] = round(mpi * 1e3, 1)
    shoal.shutdown()
    print(json.dumps(line))


if __name__ == "__main__":
    main()
