"""Refs in the states of exact actors outlive the processes and nodes of these: keepers on other nodes hold them."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from tests.node.cluster_with_keepers import Keeping

STEPS = 400


def play(seed: int) -> Counter[str]:
    """One seed: it says how large the cluster is, and which faults there are."""
    dice = random.Random(seed)
    world = Keeping(seed, dice.randint(3, 4), dice.randint(1, 3), dice.randint(1, 2))
    dice = world.dice
    world.losses = 0.0
    busy = dice.choice([0.3, 0.6, 0.85])
    deaths = dice.randint(0, 2)
    for _ in range(STEPS):
        world.step(busy)
        if dice.random() < 0.004:
            lives = [actor.life for actor in world.actors if actor.life is not None]
            if lives and len([each for each in world.processes if each.alive]) > 3:
                world.kill(dice.choice(lives))
        if world.counts["nodes"] < deaths and dice.random() < 0.008:
            world.settle()  # a keeper that died has been replaced
            homes = [actor.node for actor in world.actors if actor.node is not None and actor.node.alive]
            node = dice.choice(homes if homes and dice.random() < 0.6 else world.nodes)
            if sum(each.alive and each.node is not node for each in world.processes) > 1:
                world.kill_node(node)
    world.finish()
    return world.counts


@pytest.mark.parametrize("seed", range(3))
def test_what_a_state_refers_to_is_there_for_the_next_life(seed: int) -> None:
    play(seed)
