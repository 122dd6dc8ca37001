"""Calls of actors in the simulated node: restarts, kills, cancels and several callers; see `simulation`."""

from __future__ import annotations

import random

import pytest
from tests.runtime.plans import Plan
from tests.runtime.simulation import World
from tests.runtime.test_task_simulation import SEEDS, seeds


def random_call(dice: random.Random, number: int, actors: int, earlier: list[Plan], in_order: bool) -> Plan:
    candidates = [plan.number for plan in earlier if plan.kind != "stream"]
    kind = dice.choice(("plain",) * 5 + ("multiple", "stream"))
    return Plan(
        number,
        is_call=dice.random() < 0.8,
        kind=kind,
        pauses=dice.choice((0, 0, 0, 1, 2)),
        outcome="error" if dice.random() < 0.1 else "value",
        crash_on=frozenset(attempt for attempt in range(3) if dice.random() < 0.05),
        deps=dice.sample(candidates, min(len(candidates), dice.choice((0, 0, 0, 1, 2)))),
        max_retries=dice.choice((0, 0, 1, 3)),
        retry_exceptions=False if in_order else dice.random() < 0.3,
        klass=dice.randrange(actors),
        items=dice.randrange(4) if kind == "stream" else 0,
        backpressure=dice.choice((-1, 1, 2)) if kind == "stream" else -1,
    )


def run_calls(seed: int, calls: int = 40, in_order: bool = True, drivers: int = 1, **options: object) -> None:
    with World(seed, drivers=drivers, **options) as world:  # type: ignore[arg-type]
        dice = world.random
        for _ in range(2):
            world.add_actor(dice.choice((0, 1, 3, 20)), in_order)
        number = 0
        while number < calls or dice.random() < 0.99:
            if number < calls and dice.random() < 0.3:
                for _ in range(dice.choice((1, 1, 5))):
                    number += 1
                    driver = dice.choice(world.drivers)
                    mine = [plan for plan in world.plans.values() if plan.owner is driver]
                    plan = world.plans[number] = random_call(dice, number, 2, mine, in_order)
                    world.submit(plan, driver)
            world.random_step()
            world.check()
        world.finish()


@pytest.mark.parametrize("seed", seeds(3000))
def test_every_call_ends_once_and_in_order(seed: int) -> None:
    run_calls(seed)


@pytest.mark.parametrize("seed", seeds(4000)[: max(1, SEEDS // 2)])
def test_two_callers_of_the_same_actors(seed: int) -> None:
    run_calls(seed, drivers=2)


@pytest.mark.parametrize("seed", seeds(5000)[: max(1, SEEDS // 2)])
def test_stalled_sockets(seed: int) -> None:
    run_calls(seed, capacity=800)


@pytest.mark.parametrize("seed", seeds(6000)[: max(1, SEEDS // 2)])
def test_calls_that_need_not_keep_their_order(seed: int) -> None:
    run_calls(seed, in_order=False)
