"""Simulation throughput: asynchronous tasks against a bulk-synchronous MPI program (paper table 4).

    python benchmarks/rl_simulation.py [--seconds 6] [--processes 2]

Pendulum-v1 is stepped in episodes of uneven length (10 to 200 steps, as if they ended by themselves). The MPI program (mpi4py) runs rounds: every
rank plays as many episodes, then all meet in an allreduce. Ours keeps several tasks a CPU under way and takes whichever is done. Both use the same
number of processes. One JSON line: timesteps per second of both, and of one process alone. Without `mpirun` or mpi4py that part is left out,
and the line says so.
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

import gymnasium
import numpy as np

EPISODES_A_ROUND = 3  #: of each rank, between two barriers: the paper's program runs 3n tasks on n cores

_environment: Any = None


def episode(seed: int) -> int:
    """Play one uneven episode; the number of steps."""
    global _environment
    if _environment is None:
        _environment = gymnasium.make("Pendulum-v1")
    rng = np.random.default_rng(seed)
    length = int(rng.integers(10, 201))
    _environment.reset(seed=seed)
    action = np.zeros(1, np.float32)
    for _ in range(length):
        _environment.step(action)
    return length


def serial(seconds: float) -> float:
    """Steps per second of one process."""
    episode(0)
    began, steps, seed = time.perf_counter(), 0, 0
    while time.perf_counter() - began < seconds:
        seed += 1
        steps += episode(seed)
    return steps / (time.perf_counter() - began)


def mpi_program(seconds: float) -> None:
    """Run by every rank: rounds with a barrier; rank 0 prints steps per second."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    episode(world.rank)
    world.Barrier()
    began, steps, number = time.perf_counter(), 0, 0
    while True:
        for _ in range(EPISODES_A_ROUND):
            steps += episode(number * world.size + world.rank)
            number += 1
        # All learn whether time is up from the same reduction, as in a bulk-synchronous training.
        total, late = np.zeros(1), np.zeros(1)
        world.Allreduce(np.array([float(steps)]), total)
        world.Allreduce(np.array([float(time.perf_counter() - began > seconds)]), late)
        if late[0]:
            break
    if world.rank == 0:
        print(json.dumps(total[0] / (time.perf_counter() - began)))


def with_mpi(seconds: float, processes: int) -> float | str:
    """Run this file under mpirun."""
    if shutil.which("mpirun") is None or importlib.util.find_spec("mpi4py") is None:
        return "mpirun or mpi4py is not installed (apt-get install openmpi-bin libopenmpi-dev; pip install mpi4py)"
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    command = [
        "mpirun",
        "--oversubscribe",
        "-n",
        str(processes),
        sys.executable,
        __file__,
        "--rank",
        "--seconds",
        str(seconds),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds * 5 + 60, env=environment, check=False
    )
    if done.returncode != 0:
        return f"mpirun failed: {done.stderr[-300:]}"
    found: float = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def with_shoal(seconds: float, processes: int) -> float:
    """Steps per second of asynchronous tasks."""
    import shoal

    shoal.init(num_cpus=processes, log_to_driver=False)
    task = shoal.remote(episode)
    shoal.get([task.remote(seed) for seed in range(8 * processes)])
    began, steps, seed = time.perf_counter(), 0, 0
    under_way: list[Any] = []
    while time.perf_counter() - began < seconds:
        while len(under_way) < 4 * processes:
            seed += 1
            under_way.append(task.remote(seed))
        done, under_way = shoal.wait(under_way, num_returns=1)
        steps += sum(shoal.get(done))
    elapsed = time.perf_counter() - began
    shoal.shutdown()
    return steps / elapsed


def main() -> None:
    """Measure the three, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=6.0, help="for each program")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        mpi_program(options.seconds)
        return
    alone = serial(options.seconds / 2)
    ours, theirs = [], []
    for _ in range(2):  # alternately: the machine's speed changes
        theirs.append(with_mpi(options.seconds / 2, options.processes))
        ours.append(with_shoal(options.seconds / 2, options.processes))
    mean = float(np.mean(ours))
    line: dict[str, Any] = {
        "benchmark": "rl_simulation",
        "environment": "Pendulum-v1",
        "processes": options.processes,
        "one_process_steps_s": round(alone),
        "shoal_steps_s": round(mean),
    }
    if all(isinstance(one, float) for one in theirs):
        line["mpi_steps_s"] = round(float(np.mean(theirs)))  # type: ignore[arg-type]
        line["times_mpi"] = round(mean / float(np.mean(theirs)), 2)  # type: ignore[arg-type]
    else:
        line["mpi_left_out"] = theirs[0]
    print(json.dumps(line))


if __name__ == "__main__":
    main()
