"""Proximal policy optimization (Schulman et al. 2017) with players that never wait for each other.

Purpose: what the paper's section 5.3.2 shows: a learner that may need a GPU, players that only need CPUs, and `wait` in between.

    players: actors, each with several environments --fragments--> trainer --batch--> learner: one actor, `num_gpus` if asked for
       ^                 one rollout of each is always under way; the newest weights go to whoever has just handed one in

Design: a batch is complete when enough fragments have come, whoever they are from (a slow player delays nobody); a fragment may therefore be made
with weights one update old, which the clipped ratio accounts for. With `asynchronous=False` each batch has one fragment of every
player, in order, all of the newest weights: then a seed gives the same curve each time, and slow players are waited for.

A player whose process dies is restarted by the system, and its rollout asked for again. One whose environment raises or hangs is replaced, with
environments of other seeds; the others play on. After `failures_max` of those the training ends with `EnvironmentFailed`; what was learned is still
there (`save`).

What it does not do: recurrent policies, images, several learners.
"""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import shoal
from shoal.rl.advantages import advantages_of
from shoal.rl.environments import EnvironmentFailed, EnvironmentSpec, Spaces, name_of, spaces_in_task
from shoal.rl.rollouts import Fragment, PlayerActor
from shoal.rl.state_file import read_state, write_state

RETURNS_KEPT = 100  #: episodes over which `PPOResult.reward` is the mean


@dataclass(slots=True)
class PPOConfig:
    """What to learn, and how.

    Args:
        environment: Gymnasium's id, or a function that makes an environment.
        players: actors that play.
        environments: that each of them plays side by side.
        steps: of each environment in a fragment.
        fragments: that make up a batch; None: as many as there are players.
        hidden: sizes of the hidden layers.
        epochs, minibatch: how often a batch is gone through, in pieces of so many steps.
        gamma, lambda_: of the advantages (`advantages`).
        clip: how far the policy may move in one update, as a ratio.
        entropy: weight of the entropy in the loss.
        value: weight of the critic's loss.
        learning_rate: of Adam; with `anneal_steps` it falls to 0 over so many steps of the environment.
        gradient_max: norm at which gradients are cut.
        normalize: scale observations and rewards by their running deviation.
        asynchronous: see the module's text.
        num_gpus: of the learner.
        rollout_timeout_s: a rollout that takes longer means an environment that hangs.
        failures_max: players that are replaced because an environment raised or hung.
        seed: of everything.
    """

    environment: EnvironmentSpec
    players: int = 2
    environments: int = 4
    steps: int = 128
    fragments: int | None = None
    hidden: tuple[int, ...] = (64, 64)
    epochs: int = 8
    minibatch: int = 256
    gamma: float = 0.99
    lambda_: float = 0.95
    clip: float = 0.2
    entropy: float = 0.0
    value: float = 0.5
    learning_rate: float = 1e-3
    anneal_steps: int | None = None
    gradient_max: float = 0.5
    normalize: bool = False
    asynchronous: bool = True
    num_gpus: float = 0
    rollout_timeout_s: float = 120.0
    failures_max: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("players", "environments", "steps", "epochs", "minibatch", "learning_rate", "rollout_timeout_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)!r}")
        if not 0 < self.gamma <= 1 or not 0 <= self.lambda_ <= 1:
            raise ValueError(f"gamma must be in (0, 1] and lambda_ in [0, 1], not {self.gamma!r} and {self.lambda_!r}")


@dataclass(slots=True)
class Scaling:
    """Running moments of observations, and of discounted returns for the scale of rewards."""

    count: float
    mean: np.ndarray
    square: np.ndarray
    returns: float = 1.0

    def see(self, observations: np.ndarray) -> None:
        """Count rows of observations."""
        added = len(observations)
        share = added / (self.count + added)
        mean = observations.mean(axis=0, dtype=np.float64)
        change = mean - self.mean
        self.square += (
            share * (observations.var(axis=0, dtype=np.float64) - self.square) + share * (1 - share) * change**2
        )
        self.mean += share * change
        self.count += added


class Learner:
    """A policy, its optimizer, and `learn`; the trainer makes an actor of it."""

    def __init__(self, config: PPOConfig, spaces: Spaces) -> None:
        import torch

        from shoal.rl.torch_policy import TorchPolicy

        torch.manual_seed(config.seed)
        self._torch, self._config = torch, config
        self._device = "cuda" if config.num_gpus and torch.cuda.is_available() else "cpu"
        self.policy = TorchPolicy(spaces, config.hidden).to(self._device)
        self._optimizer = torch.optim.Adam(self.policy.parameters(), lr=config.learning_rate, eps=1e-5)
        self._random = np.random.default_rng([config.seed, 1])
        self._scaling = Scaling(1e-4, np.zeros(spaces.inputs), np.ones(spaces.inputs))
        self.steps = 0

    def learn(self, fragments: list[Fragment]) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """One update; (new weights, what it was like)."""
        config, torch = self._config, self._torch
        if config.normalize:
            self._rescale(fragments)
        gained = [
            advantages_of(
                one.rewards / np.float32(self._scaling.returns),
                one.values,
                one.ended,
                one.cut,
                one.after_cut,
                one.last_values,
                config.gamma,
                config.lambda_,
            )
            for one in fragments
        ]

        def rows(parts: list[np.ndarray]) -> Any:
            flat = np.concatenate([part.reshape(-1, *part.shape[2:]) for part in parts])
            return torch.from_numpy(flat).to(self._device)

        observations, actions = rows([one.observations for one in fragments]), rows([one.actions for one in fragments])
        before = rows([one.log_probabilities for one in fragments])
        advantages = rows(gained)
        targets = advantages + rows([one.values for one in fragments])
        self.steps += len(observations)
        if config.anneal_steps:
            left = max(0.0, 1 - self.steps / config.anneal_steps)
            self._optimizer.param_groups[0]["lr"] = config.learning_rate * left
        losses = []
        for _ in range(config.epochs):
            order = self._random.permutation(len(observations))
            for at in range(0, len(order), config.minibatch):
                part = torch.from_numpy(order[at : at + config.minibatch]).to(self._device)
                losses.append(
                    self._update(observations[part], actions[part], before[part], advantages[part], targets[part])
                )
        mean = np.mean(losses, axis=0)
        told = {"loss": float(mean[0]), "value_loss": float(mean[1]), "entropy": float(mean[2]), "kl": float(mean[3])}
        return self.policy.weights(), told

    def _update(self, observations: Any, actions: Any, before: Any, advantages: Any, targets: Any) -> tuple[float, ...]:
        config, torch = self._config, self._torch
        after, values, entropies = self.policy.judge(observations, actions)
        scaled = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)
        change = after - before
        ratio = change.exp()
        clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
        loss = -torch.min(ratio * scaled, clipped * scaled).mean()
        value_loss = (values - targets).square().mean()
        entropy = entropies.mean()
        self._optimizer.zero_grad()
        (loss + config.value * value_loss - config.entropy * entropy).backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), config.gradient_max)
        self._optimizer.step()
        divergence = ((ratio - 1) - change).mean()
        return loss.item(), value_loss.item(), entropy.item(), divergence.item()

    def _rescale(self, fragments: list[Fragment]) -> None:
        """Let the scales follow. Observations of this batch were scaled by the former ones when it was played, as their actions' odds say."""
        torch = self._torch
        for one in fragments:
            self._scaling.see(one.observations.reshape(-1, one.observations.shape[-1]))
        total = np.concatenate(
            [(one.rewards.std(axis=0) / (1 - self._config.gamma) ** 0.5).ravel() for one in fragments]
        )
        wanted = max(float(total.mean()), 1e-4)
        self._scaling.returns = wanted if self.steps == 0 else 0.95 * self._scaling.returns + 0.05 * wanted
        self.policy.mean.copy_(torch.from_numpy(self._scaling.mean))
        self.policy.inverse_deviation.copy_(torch.from_numpy(1 / np.sqrt(self._scaling.square + 1e-8)))

    def state(self) -> dict[str, Any]:
        """Everything that a continuation needs."""
        return {
            "weights": self.policy.weights(),
            "optimizer": self._optimizer.state_dict(),
            "random": self._random.bit_generator.state,
            "scaling": self._scaling,
            "steps": self.steps,
        }

    def load(self, state: dict[str, Any]) -> dict[str, np.ndarray]:
        """Go on from a state; the weights."""
        self.policy.load(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._random.bit_generator.state = state["random"]
        self._scaling, self.steps = state["scaling"], state["steps"]
        return self.policy.weights()


@dataclass(slots=True)
class PPOResult:
    """One update. `reward` is the mean return of the last 100 episodes (NaN before the first is over); `steps` were taken in all.

    `failures` says why players were replaced during this update.
    """

    update: int
    reward: float
    episodes: int
    steps: int
    seconds: float
    learner: dict[str, float]
    failures: list[str]


class PPO:
    """A training by PPO.

        trainer = PPO(PPOConfig("CartPole-v1"))
        while (result := trainer.train()).reward < 475:
            print(result.steps, result.reward)

    Raises:
        ImportError: torch or Gymnasium is not installed.
        EnvironmentFailed: the environment cannot be made.
    """

    def __init__(self, config: PPOConfig) -> None:
        try:
            import torch  # noqa: F401
        except ImportError as error:
            raise ImportError("shoal.rl.PPO needs torch: pip install 'shoal[rl]'") from error
        self.config = config
        self.spaces = spaces_in_task(config.environment, config.rollout_timeout_s, "rollout_timeout_s")
        self.update = 0
        self._returns: deque[float] = deque(maxlen=RETURNS_KEPT)
        self._episodes = 0
        self._steps = 0
        self._learner: Any = shoal.remote(num_cpus=0, num_gpus=config.num_gpus)(Learner).remote(config, self.spaces)
        self._weights: Any = None
        self.weights: dict[str, np.ndarray] = shoal.get(self._learner.state.remote())["weights"]
        self._players = [self._player(number, 0) for number in range(config.players)]
        #: rollouts that were asked for: the player's number, and when
        self._under_way: dict[Any, tuple[int, float]] = {}
        self._failures: list[str] = []

    def _player(self, number: int, lives: int) -> Any:
        config = self.config
        seed = int(np.random.SeedSequence([config.seed, 2, number, lives]).generate_state(1)[0] % (1 << 31))
        return PlayerActor.remote(number, config.environment, config.environments, config.steps, config.hidden, seed)

    def _ask(self, number: int) -> None:
        """Have a player play with the newest weights."""
        if self._weights is None:
            self._weights = shoal.put(self.weights)
        ref = self._players[number].play.remote(self._weights, self.update)
        self._under_way[ref] = number, time.monotonic()

    def train(self) -> PPOResult:
        """Gather a batch and learn from it.

        Raises:
            EnvironmentFailed: more than `failures_max` players had an environment that raised, or did not answer within `rollout_timeout_s`.
        """
        config, began = self.config, time.perf_counter()
        failed_before = len(self._failures)
        busy = {number for number, _ in self._under_way.values()}
        for number in range(config.players):
            if number not in busy:
                self._ask(number)
        fragments = self._gather(config.fragments or config.players)
        self.weights, told = shoal.get(self._learner.learn.remote(fragments))
        self._weights = None
        self.update += 1
        self._steps += sum(one.rewards.size for one in fragments)
        return PPOResult(
            self.update,
            float(np.mean(self._returns)) if self._returns else float("nan"),
            self._episodes,
            self._steps,
            time.perf_counter() - began,
            told,
            self._failures[failed_before:],
        )

    def _gather(self, wanted: int) -> list[Fragment]:
        fragments: list[Fragment] = []
        while len(fragments) < wanted:
            # Nobody waits for a rollout beyond its time, but for those that others are busy with, there is no hurry.
            oldest = min(asked_at for _, asked_at in self._under_way.values())
            left_s = max(0.0, oldest + self.config.rollout_timeout_s - time.monotonic())
            done, _ = shoal.wait(list(self._under_way), num_returns=1, timeout=left_s)
            if not done:
                self._give_up_the_late()
                continue
            number, _ = self._under_way.pop(done[0])
            try:
                fragment: Fragment = shoal.get(done[0])
            except EnvironmentFailed as error:
                self._replace(number, str(getattr(error, "cause", error)))  # the text alone, without the player's stack
                continue
            except shoal.exceptions.ActorDiedError as error:
                self._replace(number, f"player {number} of {name_of(self.config.environment)} is dead: {error}")
                continue
            except shoal.exceptions.ActorError:
                self._ask(number)  # its process died, and another one is being started
                continue
            fragments.append(fragment)
            if self.config.asynchronous or len(fragments) + len(self._under_way) < wanted:
                self._ask(number)
        if not self.config.asynchronous:
            fragments.sort(key=lambda one: one.player)
        for fragment in fragments:
            self._episodes += len(fragment.episodes)
            self._returns.extend(gained for gained, _ in fragment.episodes)
        return fragments

    def _give_up_the_late(self) -> None:
        """Replace the players whose rollouts have taken too long."""
        limit_s, now = self.config.rollout_timeout_s, time.monotonic()
        late = [ref for ref, (_, asked_at) in self._under_way.items() if now - asked_at >= limit_s]
        for ref in late:
            number, _ = self._under_way.pop(ref)
            shoal.kill(self._players[number])
            _forget(ref)
            self._replace(
                number,
                f"no rollout of {name_of(self.config.environment)} by player {number} ended within {limit_s:g} s (rollout_timeout_s): "
                "an environment hangs, or the player could not be placed (see `shoal status`)",
            )

    def _replace(self, number: int, reason: str) -> None:
        """A player has failed: put another one in its place and ask it, unless there were too many."""
        shoal.kill(self._players[number])
        self._failures.append(reason)
        self._players[number] = self._player(number, len(self._failures))
        if len(self._failures) > self.config.failures_max:
            raise EnvironmentFailed(
                f"{len(self._failures)} players had to be replaced, more than {self.config.failures_max} (failures_max); last: {reason}"
            )
        self._ask(number)

    def act(self, observation: Any) -> Any:
        """The policy's best action for one observation."""
        from shoal.rl.torch_policy import TorchPolicy

        policy = TorchPolicy(self.spaces, self.config.hidden)
        policy.load(self.weights)
        return policy.best(np.asarray(observation, np.float32).reshape(1, -1))[0]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the training's state, atomically; the state before is kept beside it."""
        config = asdict(self.config)
        config["environment"] = name_of(self.config.environment)
        write_state(
            path,
            {
                "kind": "ppo",
                "config": config,
                "update": self.update,
                "steps": self._steps,
                "episodes": self._episodes,
                "returns": list(self._returns),
                "learner": shoal.get(self._learner.state.remote()),
            },
        )

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Go on from a saved state; episodes under way begin anew.

        Raises:
            FileNotFoundError, StateDamaged: nothing is there, or nothing whole.
            ValueError: it is another kind of training, or another network.
        """
        state = read_state(path)
        if state.get("kind") != "ppo":
            raise ValueError(
                f"{path} holds a {state.get('kind')} training of {state['config']['environment']}, not one by PPO"
            )
        try:
            self.weights = shoal.get(self._learner.load.remote(state["learner"]))
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"{path} holds a training of {state['config']['environment']} that does not fit: {error}"
            ) from error
        self.update, self._steps, self._episodes = state["update"], state["steps"], state["episodes"]
        self._returns.clear()
        self._returns.extend(state["returns"])
        self._weights = None

    def close(self) -> None:
        """End players and learner."""
        for actor in [*self._players, self._learner]:
            shoal.kill(actor)
        for ref in self._under_way:
            _forget(ref)
        self._under_way.clear()


def _forget(ref: Any) -> None:
    """Read what became of a rollout that nobody wants any more: its error is no news."""
    try:
        shoal.get(ref, timeout=1)
    except shoal.exceptions.ShoalError:
        pass
