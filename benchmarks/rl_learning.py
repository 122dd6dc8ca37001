"""Learning curves of `shoal.rl`: until a reward is reached or time is up, for several seeds.

    python benchmarks/rl_learning.py ppo CartPole-v1 [--seeds 1,2,3] [--seconds 180]
    python benchmarks/rl_learning.py ppo Pendulum-v1 --seconds 600
    python benchmarks/rl_learning.py evolution Pendulum-v1 --seeds 1,2,3,4,5 --steps 5e6 --seconds 600
    python benchmarks/rl_learning.py evolution Humanoid-v5 --seconds 60 [--until 400] [--state humanoid.state] [--address auto]

The settings are those of `shoal.rl.tuned`. A run ends when the mean return of the last 100 episodes (PPO) or of ten episodes of the policy itself
(evolution) reaches the goal; `--steps` and `--seconds` bound it. With `--state` the training is saved in that file after each update, and goes on
from it when it is there: so it may be killed at any time (steps, seconds and the curve are those of the last life). `--address`: on a running
cluster. One JSON line a seed: steps of the environment, seconds, seconds of CPU time of this process and those it started, and the curve.
docs/write_rl.py draws it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from typing import Any

import psutil

import shoal
from shoal import rl

#: what counts as learned: Gymnasium's own thresholds where there are some
GOALS = {"CartPole-v1": 475.0, "Pendulum-v1": -200.0, "Humanoid-v5": 6000.0}
POINTS_MAX = 150


def cpu_seconds() -> float:
    """CPU time of this process and all that it has started."""
    me = psutil.Process()
    return float(sum(sum(each.cpu_times()[:2]) for each in [me, *me.children(recursive=True)]))


def trainer_of(algorithm: str, environment: str, seed: int) -> tuple[Any, Callable[[Any, int], int]]:
    """A trainer, and how the steps of its results add up."""
    if algorithm == "ppo":
        return rl.PPO(rl.tuned.ppo(environment, seed=seed)), lambda result, _: result.steps
    return rl.EvolutionStrategies(
        rl.tuned.evolution(environment, seed=seed)
    ), lambda result, before: before + result.steps


def updates_of(trainer: Any) -> int:
    """Updates of the weights since the beginning, in this life and those before."""
    return int(trainer.update if isinstance(trainer, rl.PPO) else trainer.generation)


def thinned(curve: list[tuple[int, float, float]]) -> list[tuple[int, float, float]]:
    """At most about `POINTS_MAX` points, the last among them."""
    stride = max(1, -(-len(curve) // POINTS_MAX))
    return curve[(len(curve) - 1) % stride :: stride]


def learn(
    algorithm: str, environment: str, seed: int, goal: float, seconds: float, steps_max: float, state: str
) -> dict[str, Any]:
    """One run."""
    trainer, add = trainer_of(algorithm, environment, seed)
    if state and os.path.exists(state):
        trainer.restore(state)
    first = updates_of(trainer)
    began, used = time.perf_counter(), cpu_seconds()
    curve: list[tuple[int, float, float]] = []
    steps, reached = 0, False
    while not reached and time.perf_counter() - began < seconds and steps < steps_max:
        result = trainer.train()
        if state:
            trainer.save(state)
        steps = add(result, steps)
        reached = result.reward >= goal
        if result.reward == result.reward:  # a number: an episode is over
            curve.append((steps, round(time.perf_counter() - began, 1), round(result.reward, 1)))
    line = {
        "benchmark": "rl_learning",
        "algorithm": algorithm,
        "environment": environment,
        "seed": seed,
        "goal": goal,
        "reached": reached,
        "reward": curve[-1][2] if curve else None,
        "steps": steps,
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(cpu_seconds() - used, 1),
        **({"updates_before": first, "updates": updates_of(trainer), "nodes": len(shoal.nodes())} if state else {}),
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "curve": thinned(curve),
    }
    trainer.close()
    return line


def main() -> None:
    """A line for each seed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("algorithm", choices=["ppo", "evolution"])
    parser.add_argument("environment", help="one that shoal.rl.tuned has settings for")
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--seconds", type=float, default=180.0, help="at most, for each seed")
    parser.add_argument("--steps", type=float, default=math.inf, help="at most, for each seed")
    parser.add_argument("--state", default="", help="a file to keep the training in; for one seed")
    parser.add_argument("--address", help="of a running cluster")
    parser.add_argument("--until", type=float, help="the reward that counts as learned")
    options = parser.parse_args()
    goal = GOALS[options.environment] if options.until is None else options.until
    if options.state and "," in options.seeds:
        parser.error("--state keeps one training: give one seed")
    if options.address:
        shoal.init(address=options.address, log_to_driver=False)
    else:
        shoal.init(num_cpus=max(2, os.cpu_count() or 1), log_to_driver=False)
    for seed in map(int, options.seeds.split(",")):
        line = learn(options.algorithm, options.environment, seed, goal, options.seconds, options.steps, options.state)
        print(json.dumps(line), flush=True)
    shoal.shutdown()


if __name__ == "__main__":
    main()
