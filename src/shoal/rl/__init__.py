"""Reinforcement learning on Shoal: evolution strategies, PPO, and policies that are served inside the loop.

    from shoal import rl

    trainer = rl.EvolutionStrategies(rl.ESConfig("CartPole-v1"))
    while trainer.train().reward < 475:
        pass

Reading order: `environments`, `evolution` (with `noise`, `networks`), then `ppo` (with `advantages`, `rollouts`, `torch_policy`), `serving`.
`tuned` has settings.
Only the public API of Shoal is used. Names load when they are first used, so that evolution strategies do without torch.
docs/guide/14_rl.md says what is there.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.rl import tuned
    from shoal.rl.environments import EnvironmentFailed
    from shoal.rl.evolution import ESConfig, ESResult, EvolutionStrategies
    from shoal.rl.ppo import PPO, PPOConfig, PPOResult
    from shoal.rl.serving import PolicyServer
    from shoal.rl.state_file import StateDamaged

_HOMES = {
    "ESConfig": "evolution",
    "ESResult": "evolution",
    "EnvironmentFailed": "environments",
    "EvolutionStrategies": "evolution",
    "PPO": "ppo",
    "PPOConfig": "ppo",
    "PPOResult": "ppo",
    "PolicyServer": "serving",
    "StateDamaged": "state_file",
}

__all__ = [
    "PPO",
    "ESConfig",
    "ESResult",
    "EnvironmentFailed",
    "EvolutionStrategies",
    "PPOConfig",
    "PPOResult",
    "PolicyServer",
    "StateDamaged",
    "tuned",
]


def __getattr__(name: str) -> Any:
    if name == "tuned":
        return importlib.import_module(f"{__name__}.tuned")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
