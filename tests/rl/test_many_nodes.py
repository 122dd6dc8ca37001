"""Evolution strategies over a cluster: what is played elsewhere is what would be played here."""

from __future__ import annotations

import numpy as np
import pytest
from tests.rl.environments_for_tests import Corridor

pytest.importorskip("gymnasium")
import shoal  # noqa: E402
from shoal import rl  # noqa: E402
from shoal.rl.evolution import Generation, play  # noqa: E402
from shoal.testing import Cluster  # noqa: E402


def test_episodes_of_other_nodes_are_those_of_this_process() -> None:
    shoal.shutdown()
    config = rl.ESConfig(Corridor, hidden=(8,), pairs=4, evaluations=4, noise_size=10_000, sigma=0.3)
    with Cluster(num_cpus=0) as cluster:  # the driver's node has no room: all is played on the other one
        cluster.add_node(num_cpus=2)
        cluster.connect()
        trainer = rl.EvolutionStrategies(config)
        result = trainer.train()
        at = Generation(1, trainer.weights, *trainer.seen.scale())
        here = [
            play(config, trainer.network, trainer.weights, at, [0, 1 << 40, 1, number], None) for number in range(4)
        ]
        assert result.failures == [] and result.reward == np.mean([gained for gained, _ in here])
