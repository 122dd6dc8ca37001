"""A policy for CartPole learned by evolution strategies, on every core: `python examples/evolution_strategies.py`.

Why this needs a system: a parameter server is an actor; simulations are hundreds of tasks that last from a millisecond to half a second,
because a good policy balances longer; `wait` takes whichever is done, so nobody idles behind the longest; and the gradient is summed
by a tree of tasks, which submit tasks themselves. The part between the lines is all the distributed code there is.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import gymnasium
import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

import shoal

ENVIRONMENT, EPISODE_STEPS = "CartPole-v1", 500
INPUTS, HIDDEN, OUTPUTS = 4, 16, 2
SIZE = INPUTS * HIDDEN + HIDDEN * OUTPUTS
SIGMA, LEARNING_RATE = 0.1, 0.02
TESTS = 20  # episodes that judge the policy itself after each generation


def episode(weights: np.ndarray, seed: int) -> tuple[float, int]:
    """Play once; the reward and the number of steps."""
    environment = gymnasium.make(ENVIRONMENT)
    first, second = (
        weights[: INPUTS * HIDDEN].reshape(INPUTS, HIDDEN),
        weights[INPUTS * HIDDEN :].reshape(HIDDEN, OUTPUTS),
    )
    state, _ = environment.reset(seed=seed)
    reward, steps, done = 0.0, 0, False
    while not done:
        action = int(np.argmax(np.tanh(state @ first) @ second))
        state, gained, ended, cut, _ = environment.step(action)
        reward, steps, done = reward + float(gained), steps + 1, ended or cut
    return reward, steps


def noise(seed: int) -> np.ndarray:
    """A direction is named by its seed, so that it never travels."""
    return np.random.default_rng(seed).standard_normal(SIZE)


# ------------------------------------------------------------------ the distributed part


@shoal.remote(num_cpus=0)
class ParameterServer:
    """Holds the policy and moves it along the gradient (Adam)."""

    def __init__(self) -> None:
        self.weights = 0.1 * noise(0)
        self.mean, self.square, self.updates = np.zeros(SIZE), np.zeros(SIZE), 0

    def get(self) -> np.ndarray:
        return self.weights

    def update(self, gradient: np.ndarray) -> np.ndarray:
        self.updates += 1
        self.mean = 0.9 * self.mean + 0.1 * gradient
        self.square = 0.99 * self.square + 0.01 * gradient**2
        step = self.mean / (1 - 0.9**self.updates) / (np.sqrt(self.square / (1 - 0.99**self.updates)) + 1e-8)
        self.weights = self.weights + LEARNING_RATE * step
        return self.weights


@shoal.remote
def simulate(weights: np.ndarray, seed: int) -> tuple[int, float, float, int]:
    """One direction, tried forwards and backwards: (seed, reward, reward, steps)."""
    direction = SIGMA * noise(seed)
    forwards, steps_forwards = episode(weights + direction, seed)
    backwards, steps_backwards = episode(weights - direction, seed)
    return seed, forwards, backwards, steps_forwards + steps_backwards


@shoal.remote
def test(weights: np.ndarray, seed: int) -> float:
    """An episode of the policy itself."""
    return episode(weights, seed)[0]


@shoal.remote
def add_up(scored: list[tuple[int, float]]) -> np.ndarray:
    """The sum of weighted directions: a tree of tasks that submit tasks."""
    if len(scored) > 32:
        half = len(scored) // 2
        return sum(shoal.get([add_up.remote(scored[:half]), add_up.remote(scored[half:])]))
    return sum((score * noise(seed) for seed, score in scored), np.zeros(SIZE))


def generation(server, number: int, population: int, progress=lambda *_: None) -> tuple[list[float], float]:
    """One step of learning: the rewards of the population, and of the policy after it."""
    weights = server.get.remote()  # a ref: it goes to the tasks without being fetched here
    running = [simulate.remote(weights, number * population + i) for i in range(population // 2)]
    results = []
    while running:
        done, running = shoal.wait(running)  # whichever is done first
        results += shoal.get(done)
        progress(number, len(results), results[-1])
    results.sort()  # by seed, so that a run can be repeated
    rewards = np.array([(forwards, backwards) for _, forwards, backwards, _ in results])
    ranks = rewards.ravel().argsort().argsort().reshape(rewards.shape) / (rewards.size - 1)
    scored = [
        (result[0], float(forwards - backwards)) for result, (forwards, backwards) in zip(results, ranks, strict=True)
    ]
    moved = server.update.remote(add_up.remote(scored))  # nor is the gradient: it goes straight to the actor
    tests = shoal.get([test.remote(moved, 1_000_000 + i) for i in range(TESTS)])
    return rewards.ravel().tolist(), float(np.mean(tests))


def count_tasks(population: int) -> int:
    """Tasks and actor calls of a generation."""
    adders, leaves = 1, population // 2
    while leaves > 32:
        leaves = -(-leaves // 2)
        adders = 2 * adders + 1
    return population // 2 + adders + TESTS + 2


# ------------------------------------------------------------------ what is shown


class Screen:
    """Live progress: a bar for the generation, a line for each of the last ones."""

    def __init__(self, directions: int) -> None:
        self.directions = directions
        self.rows: list[tuple[str, ...]] = []
        self.line = ""
        self.done = 0

    def progress(self, number: int, done: int, result: tuple[int, float, float, int]) -> None:
        self.done = done
        self.line = f"generation {number}: {done} of {self.directions} directions, the last gave {result[1]:.0f} and {result[2]:.0f}"

    def add(self, number: int, mean: float, policy: float, tasks_per_s: float) -> None:
        bar = "█" * round(policy / EPISODE_STEPS * 40)
        self.rows.append((f"{number}", f"{mean:.0f}", f"{policy:.0f}", f"{tasks_per_s:,.0f}", bar))

    def __rich__(self) -> Group:
        table = Table(box=None, header_style="bold")
        for name in ("generation", "population", "policy", "tasks/s"):
            table.add_column(name, justify="right")
        table.add_column("reward of the policy", min_width=40, style="green")
        for row in self.rows[-15:]:
            table.add_row(*row)
        return Group(table, ProgressBar(self.directions, self.done, width=75), Text(self.line))


def compare(weights: np.ndarray, seconds: float) -> tuple[float, float, int]:
    """The same simulations by one process and by Shoal: seconds of each, and their number."""
    start, seeds = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        for sign in (1, -1):
            episode(weights + sign * SIGMA * noise(seeds), seeds)
        seeds += 1
    serial_s = time.perf_counter() - start
    start = time.perf_counter()
    shoal.get([simulate.remote(weights, seed) for seed in range(seeds)])
    return serial_s, time.perf_counter() - start, seeds


def save_curve(history: list[tuple[float, float, float, float]], path: Path) -> None:
    """The rewards of each generation as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    low, mean, high, policy = zip(*history, strict=True)
    generations = range(1, len(history) + 1)
    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    axes.fill_between(generations, low, high, alpha=0.2, label="population, 10th to 90th percentile")
    axes.plot(generations, mean, label="population, mean")
    axes.plot(generations, policy, linewidth=2, label=f"the policy, mean of {TESTS} episodes")
    axes.axhline(EPISODE_STEPS, color="grey", linestyle="--")
    axes.set(xlabel="generation", ylabel="reward", title=f"{ENVIRONMENT}: evolution strategies on Shoal")
    axes.legend(loc="lower right")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def learn(server, screen: Screen, population: int, seconds: float) -> list[tuple[float, float, float, float]]:
    """Generations until the policy never falls, three times in a row, or time is up."""
    history, perfect, start = [], 0, time.perf_counter()
    for number in range(1, 10_000):
        begin = time.perf_counter()
        rewards, policy = generation(server, number, population, screen.progress)
        rate = count_tasks(population) / (time.perf_counter() - begin)
        low, high = np.percentile(rewards, [10, 90])
        history.append((float(low), float(np.mean(rewards)), float(high), policy))
        screen.add(number, float(np.mean(rewards)), policy, rate)
        perfect = perfect + 1 if policy == EPISODE_STEPS else 0
        if perfect == 3 or time.perf_counter() - start > seconds:
            break
    return history


def main() -> None:
    """Learn, then compare with one process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--population", type=int, default=400, help="episodes a generation")
    parser.add_argument("--seconds", type=float, default=40.0, help="stop learning after this")
    parser.add_argument("--picture", type=Path, default=Path("out/evolution_strategies.png"))
    options = parser.parse_args()
    console = Console()

    start = time.perf_counter()
    shoal.init(ignore_reinit_error=True)
    server = ParameterServer.remote()
    weights = shoal.get(server.get.remote())
    cpus = shoal.cluster_resources().get("CPU", 0)
    console.print(
        f"{ENVIRONMENT} on {cpus:.0f} CPUs; Shoal and the first actor were up in {time.perf_counter() - start:.2f} s"
    )
    shoal.get([simulate.remote(weights, seed) for seed in range(16)])  # each worker imports gymnasium once

    screen = Screen(options.population // 2)
    start = time.perf_counter()
    with Live(screen, console=console, refresh_per_second=8):
        history = learn(server, screen, options.population, options.seconds)
        screen.line = ""
    learning_s = time.perf_counter() - start
    save_curve(history, options.picture)

    tasks = count_tasks(options.population) * len(history)
    serial_s, parallel_s, directions = compare(shoal.get(server.get.remote()), 4.0)
    console.print(
        f"\nlearned in {learning_s:.1f} s: the policy balances {history[-1][-1]:.0f} of {EPISODE_STEPS} steps"
    )
    console.print(f"{len(history)} generations, {tasks:,} tasks, {tasks / learning_s:,.0f} tasks/s")
    console.print(
        f"{2 * directions} episodes of that policy: one process {serial_s:.1f} s, Shoal {parallel_s:.1f} s: "
        f"{serial_s / parallel_s:.2f} times as fast on {cpus:.0f} CPUs"
    )
    console.print(f"reward curve: {options.picture}")
    shoal.shutdown()


if __name__ == "__main__":
    main()
