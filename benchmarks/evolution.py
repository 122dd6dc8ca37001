"""Work per second of evolution strategies against the number of workers (paper figure 14a).

    python benchmarks/evolution.py [--workers 1,2,4,8] [--times out/humanoid.json]

Episodes sleep for as long as Humanoid's take to compute, so that a few cores are enough for many workers: everything else is real (driver, tree
of aggregators, tasks, noise table, ranks, update). First the time of an episode is measured with Gymnasium's Humanoid-v5: seconds of CPU time a step,
by a policy of its size; lengths are drawn between what a beginner (20 steps) and a walker (1,000) need. `--times` keeps the drawn seconds in a file
for `python -m shoal.simulator scenario evolution --times FILE`, which goes on to 8,192 cores in virtual time.

One JSON line for each number of workers: work per second (seconds of episodes finished in a second: at best the number of workers), and its
share of that. Mujoco absent, 0.3 ms a step are taken, as was measured on a machine of 2026; the line says so.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

import shoal
from shoal import rl

STEP_S = 0.3e-3  #: of Humanoid-v5 with its policy, where it cannot be measured
STEPS = (20, 1_000)
EPISODES = 4_096


def measured_step_s() -> tuple[float, str]:
    """Seconds of CPU time of a step of Humanoid with its policy, and where the figure is from."""
    try:
        import mujoco  # noqa: F401

        environment = gymnasium.make("Humanoid-v5")
    except ImportError as error:
        return STEP_S, f"assumed ({error})"
    config = rl.tuned.evolution("Humanoid-v5")
    from shoal.rl.environments import spaces_of
    from shoal.rl.networks import FlatNetwork

    network = FlatNetwork(spaces_of("Humanoid-v5"), config.hidden)
    layers = network.layers(network.initial(1))
    times = []
    for seed in range(40):
        seen, _ = environment.reset(seed=seed)
        over, steps, began = False, 0, time.process_time()
        while not over:
            seen, _, ended, cut, _ = environment.step(network.act(layers, np.asarray(seen, np.float32)))
            over, steps = ended or cut, steps + 1
        times.append((time.process_time() - began) / steps)
    return float(np.median(times)), "measured"


class Sleeper(gymnasium.Env[Any, Any]):
    """An episode of one step, which sleeps; its return is how long that was."""

    observation_space = gymnasium.spaces.Box(-1, 1, (376,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (17,), np.float32)

    def __init__(self, seconds: np.ndarray) -> None:
        self._seconds = seconds

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(376, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        began = time.perf_counter()
        time.sleep(float(self.np_random.choice(self._seconds)))
        return np.zeros(376, np.float32), time.perf_counter() - began, True, False, {}


def measure(workers: int, seconds: np.ndarray, generations: int) -> dict[str, Any]:
    """Generations of 6 pairs a worker, and 4 episodes of the policy itself."""

    def make_sleeper() -> Sleeper:
        return Sleeper(seconds)

    config = rl.tuned.evolution("Humanoid-v5", pairs=6 * workers, evaluations=4 * workers, normalize=False)
    config.environment = make_sleeper
    trainer = rl.EvolutionStrategies(config)
    trainer.train()  # every worker imports what it needs
    work, began = 0.0, time.perf_counter()
    for _ in range(generations):
        result = trainer.train()
        work += result.played * 2 * config.pairs + result.reward * config.evaluations
    elapsed = time.perf_counter() - began
    trainer.close()
    return {
        "workers": workers,
        "episodes": generations * (2 * config.pairs + config.evaluations),
        "work_s": round(work, 2),
        "seconds": round(elapsed, 2),
        "work_per_s": round(work / elapsed, 3),
        "of_ideal": round(work / elapsed / workers, 3),
    }


def main() -> None:
    """A line for each number of workers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", default="1,2,4,8")
    parser.add_argument("--generations", type=int, default=2)
    parser.add_argument("--times", type=Path, help="write the drawn seconds of episodes")
    options = parser.parse_args()
    step_s, source = measured_step_s()
    steps = np.random.default_rng(1).integers(*STEPS, size=EPISODES)
    seconds = steps * step_s
    if options.times:
        options.times.parent.mkdir(parents=True, exist_ok=True)
        options.times.write_text(json.dumps([round(float(one), 5) for one in seconds]))
    told = {"step_ms": round(step_s * 1e3, 3), "step": source, "episode_mean_s": round(float(seconds.mean()), 4)}
    for workers in map(int, options.workers.split(",")):
        shoal.init(num_cpus=workers, log_to_driver=False)
        line = measure(workers, seconds, options.generations)
        shoal.shutdown()
        print(json.dumps({"benchmark": "evolution", **told, **line}), flush=True)


if __name__ == "__main__":
    main()
