"""Policy and critic as two small torch networks, for discrete and continuous actions.

Design: what travels between learner and players is the state as numpy arrays (`weights`, `load`), which lie in the object store once. The
continuous policy is Gaussian with a deviation that does not depend on what is seen. Observations are scaled by a running mean and deviation,
which are part of the weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from shoal.rl.environments import Floats, Spaces


def _layers(inputs: int, hidden: tuple[int, ...], outputs: int, last_gain: float) -> nn.Sequential:
    parts: list[nn.Module] = []
    for size in hidden:
        parts += [_linear(inputs, size, 2**0.5), nn.Tanh()]
        inputs = size
    return nn.Sequential(*parts, _linear(inputs, outputs, last_gain))


def _linear(inputs: int, outputs: int, gain: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class TorchPolicy(nn.Module):
    """What is to be done (`policy`), and what it is worth (`critic`)."""

    mean: torch.Tensor
    inverse_deviation: torch.Tensor

    def __init__(self, spaces: Spaces, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.spaces = spaces
        self.policy = _layers(spaces.inputs, hidden, spaces.outputs, 0.01)
        self.critic = _layers(spaces.inputs, hidden, 1, 1.0)
        if not spaces.discrete:
            self.log_deviation = nn.Parameter(torch.zeros(spaces.outputs))
        self.register_buffer("mean", torch.zeros(spaces.inputs))
        self.register_buffer("inverse_deviation", torch.ones(spaces.inputs))

    def _distribution(self, scaled: torch.Tensor) -> torch.distributions.Distribution:
        output = self.policy(scaled)
        if self.spaces.discrete:
            return torch.distributions.Categorical(logits=output, validate_args=False)
        normal = torch.distributions.Normal(output, self.log_deviation.exp(), validate_args=False)
        return torch.distributions.Independent(normal, 1, validate_args=False)

    def _scaled(self, observations: torch.Tensor) -> torch.Tensor:
        return ((observations - self.mean) * self.inverse_deviation).clamp(-10, 10)

    def judge(
        self, observations: torch.Tensor, actions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(log-probability of the actions, values, entropy) with gradients."""
        scaled = self._scaled(observations)
        distribution = self._distribution(scaled)
        return distribution.log_prob(actions), self.critic(scaled).squeeze(-1), distribution.entropy()

    @torch.no_grad()
    def act(self, observations: Floats, generator: torch.Generator) -> tuple[np.ndarray, Floats, Floats]:
        """(actions, their log-probabilities, values) drawn for a batch of observations, shape (rows, inputs)."""
        scaled = self._scaled(torch.from_numpy(observations))
        output = self.policy(scaled)
        if self.spaces.discrete:
            actions = torch.multinomial(output.softmax(-1), 1, generator=generator).squeeze(-1)
        else:
            actions = output + self.log_deviation.exp() * torch.randn(output.shape, generator=generator)
        log_probabilities = self._distribution(scaled).log_prob(actions)
        return actions.numpy(), log_probabilities.numpy(), self.critic(scaled).squeeze(-1).numpy()

    @torch.no_grad()
    def best(self, observations: Floats) -> np.ndarray:
        """The most probable actions for a batch, as the environment takes them."""
        output = self.policy(self._scaled(torch.from_numpy(observations))).numpy()
        best: np.ndarray = output.argmax(-1) if self.spaces.discrete else self.spaces.action(output)
        return best

    @torch.no_grad()
    def values(self, observations: Floats) -> Floats:
        """What a batch of observations is worth, shape (rows,)."""
        found: Floats = self.critic(self._scaled(torch.from_numpy(observations))).squeeze(-1).numpy()
        return found

    def weights(self) -> dict[str, np.ndarray]:
        """The state as arrays of its own."""
        return {name: value.detach().cpu().numpy().copy() for name, value in self.state_dict().items()}

    def load(self, weights: dict[str, np.ndarray]) -> None:
        """Take over a state."""
        state: dict[str, Any] = {name: torch.tensor(value) for name, value in weights.items()}
        self.load_state_dict(state)
