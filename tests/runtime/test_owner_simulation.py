"""Owners die in the simulated node, at every step of the hand-over and at any moment; see `owner_simulation`."""

from __future__ import annotations

import random

import pytest
from tests.runtime.owner_simulation import OwnerWorld
from tests.runtime.plans import Plan
from tests.runtime.simulation import Worker
from tests.runtime.test_task_simulation import SEEDS, seeds

WRITES = 12  #: a giver and what it has its runtime do writes so often, about


def add_giver(world: OwnerWorld, number: int, children: int, pauses: int, fuses: list[int], deep: float = 0.0) -> int:
    """A plan that hands on children, some of which wait for others and (as likely as `deep` says) some hand on children as well; returns the
    last number used."""
    giver = world.plans[number] = Plan(number, gives=True, fuses=fuses, pauses=pauses, max_retries=1000)
    plain: list[int] = []
    last = number
    for _ in range(children):
        last += 1
        giver.children.append(last)
        if world.random.random() < deep:
            last = add_giver(world, last, world.random.randint(1, 2), world.random.randrange(3), [])
            continue
        world.plans[last] = Plan(last, pauses=world.random.randrange(4), max_retries=1000)
        if plain and world.random.random() < 0.6:
            world.plans[last].deps = [plain[-1]]
        plain.append(last)
    return last


@pytest.mark.parametrize("writes", range(1, WRITES + 1))
def test_killed_at_every_step_of_the_hand_over(writes: int) -> None:
    for seed in range(max(1, SEEDS // 4)):
        with OwnerWorld(seed, cpus=3) as world:
            world.faults = False
            add_giver(world, 1, 3, 1, [writes])
            world.submit(world.plans[1], world.drivers[0])
            for _ in range(300):
                world.random_step()
            world.finish_given()


@pytest.mark.parametrize("seed", seeds(4000))
def test_owners_and_workers_die_at_any_moment(seed: int) -> None:
    with OwnerWorld(seed, cpus=3) as world:
        dice: random.Random = world.random
        number = givers = 0
        while givers < 8 or dice.random() < 0.99:
            if givers < 8 and dice.random() < 0.1:
                givers += 1
                fuses = [dice.randint(1, WRITES) for _ in range(dice.randrange(4))]
                first = number + 1
                number = add_giver(world, first, dice.randint(1, 4), dice.randrange(3), fuses, deep=0.2)
                world.submit(world.plans[first], world.drivers[0])
            world.random_step()
        world.finish_given()


@pytest.mark.parametrize("seed", seeds(5000)[: max(1, SEEDS // 2)])
def test_nobody_adopts_from_an_owner_that_is_busy_or_stopped(seed: int) -> None:
    with OwnerWorld(seed, cpus=3) as world:
        world.faults = False
        add_giver(world, 1, 4, 1, [])
        world.submit(world.plans[1], world.drivers[0])
        while not world.given:
            world.random_step()
        owner = world.plans[2].owner
        assert isinstance(owner, Worker)
        world.stopped = owner
        for _ in range(300):
            world.random_step()
        assert not world.adoptions, "it lives"
        world.stopped = None
        world.finish_given()
        assert not world.adoptions
        assert [len(world.plans[child].started) for child in world.plans[1].children] == [1] * 4
