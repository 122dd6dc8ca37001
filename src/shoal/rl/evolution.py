"""Evolution strategies on tasks and a tree of actors.

Purpose: learn a policy without gradients: play perturbed copies of it, and move it towards those that did well (Salimans et al. 2017; paper 5.3.1).

    EvolutionStrategies ("HalfCheetah-v5") .train()
        |  weights, offsets                     rewards up, ranked by the trainer; then weights of directions down, their sum up
        v
    root aggregator --> aggregators --> tasks `play_pair`: one direction, forwards and backwards

Design: the noise table lies once on each node (`noise`), so a direction travels as an integer and a result as a few numbers. The tree of
aggregators keeps both ways short for the trainer: it submits nothing per task and adds no vectors but one. Aggregators keep nothing between calls, so
a dead one is restarted and its call repeated. Every episode has its seed from (seed, generation, direction): results do not depend on the number of
workers or on who was first.

An episode that raises or does not end in time costs its direction (or itself, if it is one that judges the policy); more than `failures_max` of
either in a generation end the training.

How to extend: another update rule is a class with `step(gradient) -> change`, like `Adam`.

What it does not do: schedule; that is what tasks are for. Networks are numpy (`networks`).
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import shoal
from shoal.rl.environments import (
    EnvironmentFailed,
    EnvironmentSpec,
    Floats,
    check_finite,
    make_environment,
    name_of,
    spaces_in_task,
)
from shoal.rl.networks import FlatNetwork
from shoal.rl.noise import noise_table, offsets, weighted_sum
from shoal.rl.state_file import read_state, write_state


@dataclass(slots=True)
class ESConfig:
    """What to learn, and how.

    Args:
        environment: Gymnasium's id, or a function that makes an environment.
        hidden: sizes of the policy's hidden layers.
        pairs: directions of a generation; each is played forwards and backwards.
        sigma: size of the perturbations.
        learning_rate: of Adam.
        weight_decay: how much the weights shrink with each update.
        evaluations: episodes that judge the policy itself after each generation.
        episode_steps: an episode is cut after so many steps; None: when the environment says so.
        episode_timeout_s: an episode that takes longer is given up.
        failures_max: directions of a generation that may fail, and episodes that judge the policy.
        normalize: scale observations by their running mean and deviation.
        noise_size: numbers in the noise table (4 bytes each).
        aggregators: leaves of the tree.
        fan_out: children of a node of the tree.
        cpus_per_task: what a pair of episodes takes.
        seed: of everything.
    """

    environment: EnvironmentSpec
    hidden: tuple[int, ...] = (32, 32)
    pairs: int = 32
    sigma: float = 0.1
    learning_rate: float = 0.05
    weight_decay: float = 0.0
    evaluations: int = 10
    episode_steps: int | None = None
    episode_timeout_s: float = 300.0
    failures_max: int = 8
    normalize: bool = False
    noise_size: int = 4_000_000
    aggregators: int = 2
    fan_out: int = 8
    cpus_per_task: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("pairs", "sigma", "learning_rate", "evaluations", "episode_timeout_s", "aggregators"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)!r}")
        if self.fan_out < 2:
            raise ValueError(f"fan_out must be at least 2, not {self.fan_out!r}")


@dataclass(slots=True)
class Moments:
    """Sums over observations, from which their mean and deviation follow."""

    total: np.ndarray
    squares: np.ndarray
    count: float = 1e-4

    @classmethod
    def of(cls, inputs: int) -> Moments:
        """Nothing seen yet."""
        return cls(np.zeros(inputs), np.full(inputs, 1e-4))

    def add(self, other: Moments) -> None:
        """Count another's observations too."""
        self.total += other.total
        self.squares += other.squares
        self.count += other.count

    def scale(self) -> tuple[Floats, Floats]:
        """(mean, 1 / deviation), float32."""
        mean = self.total / self.count
        deviation = np.sqrt(np.maximum(self.squares / self.count - mean**2, 1e-4))
        return mean.astype(np.float32), (1 / deviation).astype(np.float32)


@dataclass(slots=True)
class Played:
    """What a direction brought: the returns forwards and backwards, and how many steps that took. `error`: why it brought nothing."""

    direction: int
    returns: tuple[float, float] = (np.nan, np.nan)
    steps: int = 0
    seen: Moments | None = None
    error: str = ""


@dataclass(slots=True)
class Generation:
    """What all tasks of one generation need."""

    number: int
    weights: Floats
    mean: Floats
    inverse_deviation: Floats


def play(
    config: ESConfig, network: FlatNetwork, weights: Floats, at: Generation, seed: list[int], seen: Moments | None
) -> tuple[float, int]:
    """One episode; (return, steps). Adds what was observed to `seen`."""
    environment = make_environment(config.environment)
    layers = network.layers(weights)
    number = int(np.random.SeedSequence(seed).generate_state(1)[0] % (1 << 31))
    gained, steps = 0.0, 0
    try:
        observation, _ = environment.reset(seed=number)
        while config.episode_steps is None or steps < config.episode_steps:
            observation = np.asarray(observation, np.float32).ravel()
            check_finite(observation)
            if seen is not None:
                seen.total += observation
                seen.squares += np.square(observation, dtype=np.float64)
                seen.count += 1
                observation = (observation - at.mean) * at.inverse_deviation
            observation, reward, ended, cut, _ = environment.step(network.act(layers, observation))
            gained, steps = gained + float(reward), steps + 1
            if not math.isfinite(gained):
                raise ValueError(f"the reward is {reward}")
            if ended or cut:
                break
    except Exception as error:
        raise EnvironmentFailed(
            f"{name_of(config.environment)} (seed {number}) raised in step {steps}: {type(error).__name__}: {error}"
        ) from error
    finally:
        environment.close()
    return gained, steps


@shoal.remote
def play_pair(
    config: ESConfig, network: FlatNetwork, table: Floats, at: Generation, direction: int, start: int
) -> Played:
    """Play a direction forwards and backwards, with the same seed."""
    change = np.float32(config.sigma) * table[start : start + network.size]
    seen = Moments.of(at.mean.size) if config.normalize else None
    seed = [config.seed, at.number, direction]
    try:
        forwards, steps = play(config, network, at.weights + change, at, seed, seen)
        backwards, more = play(config, network, at.weights - change, at, seed, seen)
    except EnvironmentFailed as error:
        return Played(direction, error=str(error))
    return Played(direction, (forwards, backwards), steps + more, seen)


@shoal.remote
def play_policy(config: ESConfig, network: FlatNetwork, at: Generation, number: int) -> tuple[float, int]:
    """Play the policy itself."""
    seen = Moments.of(at.mean.size) if config.normalize else None
    return play(config, network, at.weights, at, [config.seed, 1 << 40, at.number, number], seen)


@dataclass(slots=True)
class Lost:
    """Why episodes brought nothing."""

    reason: str


def collect(config: ESConfig, refs: list[Any]) -> list[Any]:
    """What tasks that play have brought, or `Lost`; in order. They are given up when nothing has come for as long as two episodes may take."""
    found: dict[Any, Any] = {}
    waiting = list(refs)
    while waiting:
        done, waiting = shoal.wait(waiting, num_returns=1, timeout=2 * config.episode_timeout_s)
        if not done:
            for ref in waiting:
                shoal.cancel(ref, force=True)
                found[ref] = Lost(
                    f"{name_of(config.environment)} did not end within {config.episode_timeout_s:g} s an episode (episode_timeout_s)"
                )
            break
        for ref in done:
            try:
                found[ref] = shoal.get(ref)
            except EnvironmentFailed as error:
                found[ref] = Lost(str(getattr(error, "cause", error)))  # the text alone, without the task's stack
            except shoal.exceptions.ShoalError as error:  # its process died, again and again
                found[ref] = Lost(str(error))
    return [found[ref] for ref in refs]


class Aggregator:
    """A node of the tree: hands work to its children, or to tasks, and what comes back upwards. Keeps nothing between calls."""

    def __init__(self, config: ESConfig, network: FlatNetwork, table: list[Any], children: list[Any]) -> None:
        self._config, self._network, self._children = config, network, children
        self._table = table[0]  # a ref: tasks get it as such, and every node reads the table where it lies
        self._task = play_pair.options(num_cpus=config.cpus_per_task)

    def evaluate(self, at: Any, directions: np.ndarray, starts: np.ndarray) -> list[Played]:
        """Play these directions; in order."""
        if self._children:
            shares = np.array_split(np.arange(len(directions)), len(self._children))
            ref = shoal.put(at)
            refs = [
                child.evaluate.remote(ref, directions[share], starts[share])
                for child, share in zip(self._children, shares, strict=True)
            ]
            return [played for part in shoal.get(refs) for played in part]
        ref = shoal.put(at)
        refs = [
            self._task.remote(self._config, self._network, self._table, ref, int(direction), int(start))
            for direction, start in zip(directions, starts, strict=True)
        ]
        played = collect(self._config, refs)
        return [
            Played(int(direction), error=one.reason) if isinstance(one, Lost) else one
            for direction, one in zip(directions, played, strict=True)
        ]

    def gradient(self, starts: np.ndarray, weights: Floats) -> Floats:
        """The weighted sum of directions."""
        if self._children:
            shares = np.array_split(np.arange(len(starts)), len(self._children))
            refs = [
                child.gradient.remote(starts[share], weights[share])
                for child, share in zip(self._children, shares, strict=True)
            ]
            total: Floats = np.sum(shoal.get(refs), axis=0, dtype=np.float32)
            return total
        return weighted_sum(shoal.get(self._table), starts, weights, self._network.size)


AggregatorActor: Any = shoal.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Aggregator)


class Adam:
    """The update rule; `step` gives the change of the weights."""

    def __init__(self, size: int, learning_rate: float) -> None:
        self.learning_rate = learning_rate
        self.mean, self.square, self.updates = np.zeros(size), np.zeros(size), 0

    def step(self, gradient: Floats) -> Floats:
        """Upwards along the gradient."""
        self.updates += 1
        self.mean = 0.9 * self.mean + 0.1 * gradient
        self.square = 0.999 * self.square + 0.001 * np.square(gradient)
        mean, square = self.mean / (1 - 0.9**self.updates), self.square / (1 - 0.999**self.updates)
        return (self.learning_rate * mean / (np.sqrt(square) + 1e-8)).astype(np.float32)


def centered_ranks(returns: np.ndarray) -> np.ndarray:
    """Returns of any scale as ranks from -0.5 to 0.5, in the same shape; equal ones get equal ranks. NaN counts as the middle."""
    flat = returns.ravel()
    known = ~np.isnan(flat)
    ranks = np.zeros(flat.size)
    values, inverse, counts = np.unique(flat[known], return_inverse=True, return_counts=True)
    if values.size > 1:
        first = np.cumsum(counts) - counts
        middle = first + (counts - 1) / 2
        ranks[known] = middle[inverse] / (known.sum() - 1) - 0.5
    return ranks.reshape(returns.shape)


@dataclass(slots=True)
class ESResult:
    """One generation. `reward` is the mean return of the policy itself, `played` that of the perturbed ones; `steps` of the environment
    were taken in `seconds`; `failures` lists why directions and judging episodes were lost."""

    generation: int
    reward: float
    played: float
    steps: int
    seconds: float
    failures: list[str]


class EvolutionStrategies:
    """A training by evolution strategies.

        trainer = EvolutionStrategies(ESConfig("CartPole-v1"))
        for _ in range(20):
            print(trainer.train().reward)
        trainer.save("cartpole.state")

    Raises:
        EnvironmentFailed: the environment cannot be made.
        ValueError: the noise table is too small.
    """

    def __init__(self, config: ESConfig) -> None:
        self.config = config
        spaces = spaces_in_task(config.environment, config.episode_timeout_s, "episode_timeout_s")
        self.network = FlatNetwork(spaces, config.hidden)
        offsets(config.noise_size, self.network.size, config.pairs, [0])  # refuses here what is too small
        self.weights = self.network.initial(config.seed)
        self.generation = 0
        self.seen = Moments.of(spaces.inputs)
        self._adam = Adam(self.network.size, config.learning_rate)
        self._table = shoal.put(noise_table(config.noise_size, config.seed))
        self._root = self._tree(min(config.aggregators, config.pairs))

    def _tree(self, leaves: int) -> Any:
        def make(children: list[Any]) -> Any:
            return AggregatorActor.remote(self.config, self.network, [self._table], children)

        level = [make([]) for _ in range(leaves)]
        while len(level) > 1:
            level = [make(level[at : at + self.config.fan_out]) for at in range(0, len(level), self.config.fan_out)]
        return level[0]

    def train(self) -> ESResult:
        """One generation.

        Raises:
            EnvironmentFailed: more than `failures_max` episodes failed; the text has the first reason.
        """
        config, began = self.config, time.perf_counter()
        directions = np.arange(config.pairs)
        starts = offsets(config.noise_size, self.network.size, config.pairs, [config.seed, self.generation])
        at = Generation(self.generation, self.weights, *self.seen.scale())
        played: list[Played] = shoal.get(self._root.evaluate.remote(at, directions, starts))
        failures = [one.error for one in played if one.error]
        self._check("directions", len(played), failures)
        returns = np.array([one.returns for one in played])
        ranks = centered_ranks(returns)
        ranks[np.isnan(returns).any(axis=1)] = 0.0
        differences = (ranks[:, 0] - ranks[:, 1]).astype(np.float32)
        gradient = shoal.get(self._root.gradient.remote(starts, differences)) / np.float32(
            2 * config.pairs * config.sigma
        )
        self.weights = self.weights * np.float32(1 - config.weight_decay) + self._adam.step(gradient)
        for one in played:
            if one.seen is not None:
                self.seen.add(one.seen)
        self.generation += 1
        reward, steps, unjudged = self._judge()
        return ESResult(
            self.generation,
            reward,
            float(np.nanmean(returns)),
            steps + sum(one.steps for one in played),
            time.perf_counter() - began,
            failures + unjudged,
        )

    def _check(self, what: str, count: int, failures: list[str]) -> None:
        if len(failures) > self.config.failures_max or len(failures) == count:
            raise EnvironmentFailed(
                f"{len(failures)} of {count} {what} of generation {self.generation} failed; first: {failures[0]}"
            )

    def _judge(self) -> tuple[float, int, list[str]]:
        """(mean return, steps, failures) of the policy itself."""
        at = shoal.put(Generation(self.generation, self.weights, *self.seen.scale()))
        task = play_policy.options(num_cpus=self.config.cpus_per_task)
        refs = [task.remote(self.config, self.network, at, number) for number in range(self.config.evaluations)]
        found = collect(self.config, refs)
        failures = [one.reason for one in found if isinstance(one, Lost)]
        self._check("episodes of the policy itself", len(found), failures)
        played = [one for one in found if not isinstance(one, Lost)]
        return float(np.mean([gained for gained, _ in played])), sum(steps for _, steps in played), failures

    def act(self, observation: Any) -> Any:
        """The policy's action for one observation."""
        seen = np.asarray(observation, np.float32).ravel()
        if self.config.normalize:
            mean, inverse = self.seen.scale()
            seen = (seen - mean) * inverse
        return self.network.act(self.network.layers(self.weights), seen)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the training's state, atomically; the state before is kept beside it."""
        config = asdict(self.config)
        config["environment"] = name_of(self.config.environment)
        write_state(
            path,
            {
                "kind": "evolution",
                "config": config,
                "generation": self.generation,
                "weights": self.weights,
                "seen": (self.seen.total, self.seen.squares, self.seen.count),
                "adam": (self._adam.mean, self._adam.square, self._adam.updates),
            },
        )

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Go on from a saved state; with the same configuration the training continues as if it had never stopped.

        Raises:
            FileNotFoundError, StateDamaged: nothing is there, or nothing whole.
            ValueError: it is another kind of training, or another network.
        """
        state = read_state(path)
        if state.get("kind") != "evolution" or state["weights"].shape != self.weights.shape:
            raise ValueError(
                f"{path} holds a {state.get('kind')} training of {state['config']['environment']} that does not fit"
            )
        if state["config"]["normalize"] != self.config.normalize:
            raise ValueError(
                f"{path} holds a training with normalize={state['config']['normalize']}, this one has {self.config.normalize}: "
                "its weights belong to observations that are scaled otherwise"
            )
        self.generation, self.weights = state["generation"], state["weights"]
        self.seen = Moments(*state["seen"])
        self._adam.mean, self._adam.square, self._adam.updates = state["adam"]

    def close(self) -> None:
        """End the tree of aggregators."""
        self._root = None
