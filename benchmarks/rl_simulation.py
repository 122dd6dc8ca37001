"""Simulation throughput: asynchronous tasks against a bulk-synchronous MPI program (paper table 4).

    python benchmarks/rl_simulation.py [--seconds 3] [--turns 3] [--processes 2] [--episodes 1,3]

Pendulum-v1 is stepped in episodes of uneven length (10 to 200 steps, as if they ended by themselves). The MPI program (mpi4py) runs rounds: every
rank plays `--episodes` of them, then all meet in a barrier, as the paper's program does after each (`--episodes 1`). Ours is tasks that play as
many each; two tasks a process (`--under-way`) are under way, and whichever are done are taken and replaced. Both use the same number of processes
that play; ours has its driver and its node's daemon beside them, on the same CPUs, and nothing is taken out of the figures for that.

One JSON line for each number of episodes: timesteps per second of both and of one process alone (times the processes: what is possible), medians
of turns; `driver_cpu` is the share of a CPU that our driver took. Without `mpirun` or mpi4py that part is left out, and the line says so. With
`--realtime` (root) what is measured has the CPUs before everything else on the machine.
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
import time
from typing import Any

import gymnasium
import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from measuring import REALTIME_VARIABLE, realtime

_environment: Any = None


def play(seed: int, episodes: int) -> int:
    """Play uneven episodes one after the other; the number of steps."""
    global _environment
    if _environment is None:
        _environment = gymnasium.make("Pendulum-v1")
    rng = np.random.default_rng(seed)
    action = np.zeros(1, np.float32)
    total = 0
    for number in range(episodes):
        length = int(rng.integers(10, 201))
        _environment.reset(seed=seed + number)
        for _ in range(length):
            _environment.step(action)
        total += length
    return total


def alone(seconds: float, episodes: int) -> float:
    """Steps per second of one process."""
    play(0, episodes)
    with realtime():
        began, steps, seed = time.perf_counter(), 0, 0
        while time.perf_counter() - began < seconds:
            seed += 1
            steps += play(seed, episodes)
        return steps / (time.perf_counter() - began)


def mpi_program(seconds: float, episodes: int) -> None:
    """Run by every rank: rounds with a barrier; rank 0 prints steps per second."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    play(world.rank, 1)
    # What a rank has played, and whether it thinks that time is up: all learn both from one reduction, which is the barrier.
    mine, all_ranks = np.zeros(2), np.zeros(2)
    with realtime():
        world.Barrier()
        began, steps, number = time.perf_counter(), 0, 0
        while not all_ranks[1]:
            steps += play(number * world.size + world.rank, episodes)
            number += 1
            mine[:] = steps, time.perf_counter() - began > seconds
            world.Allreduce(mine, all_ranks)
        steps_s = all_ranks[0] / (time.perf_counter() - began)
    if world.rank == 0:
        print(json.dumps(steps_s))


def with_mpi(seconds: float, processes: int, episodes: int) -> float | None:
    """Run this file under mpirun; None without it."""
    if shutil.which("mpirun") is None or importlib.util.find_spec("mpi4py") is None:
        return None
    command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", str(processes), sys.executable, __file__]
    command += ["--rank", "--seconds", str(seconds), "--episodes", str(episodes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds * 5 + 60, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"mpirun failed: {done.stderr[-300:]}")
    found: float = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def with_shoal(seconds: float, processes: int, episodes: int, under_way_each: int = 2) -> tuple[float, float]:
    """(steps per second of asynchronous tasks, share of a CPU that the driver took)."""
    import shoal

    task = shoal.remote(play)
    shoal.get([task.remote(seed, 1) for seed in range(8 * processes)])
    under_way: list[Any] = []
    with realtime(family_too=True):
        began, used, steps, seed = time.perf_counter(), time.process_time(), 0, 0
        while time.perf_counter() - began < seconds:
            while len(under_way) < under_way_each * processes:
                seed += 1
                under_way.append(task.remote(seed, episodes))
            done, under_way = shoal.wait(under_way, num_returns=1)
            steps += sum(shoal.get(done))
        elapsed = time.perf_counter() - began
        share = (time.process_time() - used) / elapsed
    shoal.get(under_way)
    return steps / elapsed, share


def measure(options: argparse.Namespace, episodes: int) -> dict[str, Any]:
    """Both, in turns: the machine's speed changes."""
    ours, theirs, single, driver = [], [], [], []
    for _ in range(options.turns):
        mpi = with_mpi(options.seconds, options.processes, episodes)
        if mpi is not None:
            theirs.append(mpi)
        steps_s, share = with_shoal(options.seconds, options.processes, episodes, options.under_way)
        ours.append(steps_s)
        driver.append(share)
        single.append(alone(options.seconds / 2, episodes))
    line: dict[str, Any] = {
        "benchmark": "rl_simulation",
        "environment": "Pendulum-v1",
        "processes": options.processes,
        "episodes_a_round": episodes,
        "one_process_steps_s": round(statistics.median(single)),
        "shoal_steps_s": round(statistics.median(ours)),
        "driver_cpu": round(statistics.median(driver), 3),
    }
    if not theirs:
        return line | {
            "mpi": "left out: mpirun or mpi4py is not installed (apt-get install openmpi-bin libopenmpi-dev; pip install mpi4py)"
        }
    return line | {
        "mpi_steps_s": round(statistics.median(theirs)),
        "times_mpi": round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 3),
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    """A line for each granularity."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="for each program in each turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--episodes", default="1,3", help="that a rank plays between barriers, and a task plays")
    parser.add_argument("--under-way", type=int, default=2, help="tasks for each process")
    parser.add_argument("--realtime", action="store_true", help="with real-time priority (root)")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        mpi_program(options.seconds, int(options.episodes))
        return
    if options.realtime:
        os.environ[REALTIME_VARIABLE] = "1"
    import shoal

    shoal.init(num_cpus=options.processes, log_to_driver=False)
    for episodes in map(int, options.episodes.split(",")):
        print(json.dumps(measure(options, episodes)), flush=True)
    shoal.shutdown()


if __name__ == "__main__":
    main()
