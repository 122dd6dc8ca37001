"""Evolution strategies over several nodes: what is learned does not depend on where it was played."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import shoal
from shoal.testing import Cluster

pytest.importorskip("gymnasium")
from shoal import rl  # noqa: E402


def learn() -> tuple[np.ndarray, list[float]]:
    """Two generations."""
    config = rl.ESConfig("CartPole-v1", hidden=(8,), pairs=12, evaluations=4, noise_size=20_000, aggregators=3, seed=2)
    trainer = rl.EvolutionStrategies(config)
    rewards = [trainer.train().reward for _ in range(2)]
    return trainer.weights, rewards


def test_two_nodes_learn_what_one_process_learns(start_cluster: Callable[..., Cluster]) -> None:
    cluster = start_cluster()
    cluster.add_node(num_cpus=1)
    cluster.connect(log_to_driver=False)
    weights, rewards = learn()
    shoal.shutdown()
    shoal.init(local_mode=True)
    alone, rewards_alone = learn()
    shoal.shutdown()
    assert np.array_equal(weights, alone) and rewards == rewards_alone
