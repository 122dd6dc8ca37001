"""Settings that are known to learn, by environment: `ppo("Pendulum-v1", seed=3)`, `evolution("Humanoid-v5")`.

All but Humanoid's reached their goals with each seed that was tried, three to five (docs/benchmarks.md has the curves). Humanoid's settings are for
hundreds of CPUs; on few, it begins to learn.

How to extend: a row in a table. What is not given has the default of `PPOConfig` or `ESConfig`.
"""

from __future__ import annotations

from typing import Any

from shoal.rl.evolution import ESConfig
from shoal.rl.ppo import PPOConfig

PPO: dict[str, dict[str, Any]] = {
    "CartPole-v1": {"players": 2, "environments": 4, "steps": 128, "learning_rate": 1e-3, "epochs": 8},
    "Pendulum-v1": {
        "players": 2,
        "environments": 4,
        "steps": 256,
        "gamma": 0.9,
        "learning_rate": 1e-3,
        "epochs": 10,
        "minibatch": 128,
        "normalize": True,
    },
}

EVOLUTION: dict[str, dict[str, Any]] = {
    "CartPole-v1": {"hidden": (16,), "pairs": 24},
    "Pendulum-v1": {"hidden": (16,), "pairs": 32, "learning_rate": 0.1},
    "Humanoid-v5": {
        "hidden": (64, 64),
        "pairs": 128,
        "sigma": 0.02,
        "learning_rate": 0.01,
        "weight_decay": 0.005,
        "normalize": True,
        "aggregators": 4,
    },
}


def _settings(table: dict[str, dict[str, Any]], environment: str, changes: dict[str, Any]) -> dict[str, Any]:
    if environment not in table:
        raise KeyError(f"there are no tuned settings for {environment!r}, only for {', '.join(table)}")
    return {**table[environment], **changes}


def ppo(environment: str, **changes: Any) -> PPOConfig:
    """PPO's settings for an environment.

    Raises:
        KeyError: there are none.
    """
    return PPOConfig(environment, **_settings(PPO, environment, changes))


def evolution(environment: str, **changes: Any) -> ESConfig:
    """Evolution strategies' settings for an environment.

    Raises:
        KeyError: there are none.
    """
    return ESConfig(environment, **_settings(EVOLUTION, environment, changes))
