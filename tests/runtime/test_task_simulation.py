"""Tasks in the simulated node: faults first, then everything ends; see `simulation`.

A failing seed is repeated with `SHOAL_SIM_SEED=n pytest tests/runtime`. `SHOAL_SIM_SEEDS` runs more of them.
"""

from __future__ import annotations

import os
import random

import pytest
from tests.runtime.plans import Plan
from tests.runtime.simulation import World

SEEDS = int(os.environ.get("SHOAL_SIM_SEEDS", "12"))
ONE = os.environ.get("SHOAL_SIM_SEED")


def seeds(offset: int) -> list[int]:
    return [int(ONE)] if ONE else list(range(offset, offset + SEEDS))


def random_plan(dice: random.Random, number: int, classes: int, earlier: list[Plan]) -> Plan:
    kind = dice.choice(("plain",) * 6 + ("multiple", "stream"))
    candidates = [plan.number for plan in earlier if plan.kind != "stream" and plan.owner is not None]
    return Plan(
        number,
        kind=kind,
        pauses=dice.choice((0, 0, 0, 0, 1, 3)),
        outcome="error" if dice.random() < 0.1 else "value",
        crash_on=frozenset(attempt for attempt in range(3) if dice.random() < 0.03),
        deps=dice.sample(candidates, min(len(candidates), dice.choice((0, 0, 0, 1, 2)))),
        max_retries=dice.choice((0, 1, 3)),
        retry_exceptions=dice.random() < 0.3,
        klass=dice.randrange(classes),
        items=dice.randrange(5) if kind == "stream" else 0,
        backpressure=dice.choice((-1, 1, 2)) if kind == "stream" else -1,
    )


def run_tasks(seed: int, tasks: int = 40, nested: bool = False, **options: object) -> World:
    with World(seed, **options) as world:  # type: ignore[arg-type]
        dice = world.random
        number = 0
        while number < tasks or dice.random() < 0.99:
            if number < tasks and dice.random() < 0.3:
                for _ in range(dice.choice((1, 1, 5))):
                    number += 1
                    plan = random_plan(dice, number, world.class_count, list(world.plans.values()))
                    driver = dice.choice(world.drivers)
                    plan.deps = [dep for dep in plan.deps if world.plans[dep].owner is driver]
                    world.plans[number] = plan
                    if nested and plan.kind == "plain" and dice.random() < 0.4:
                        plan.max_retries, plan.crash_on, plan.retry_exceptions = 0, frozenset(), False
                        for _ in range(dice.randint(1, 3)):
                            number += 1
                            world.plans[number] = Plan(number, pauses=dice.randrange(3), max_retries=1000)
                            plan.children.append(number)
                    world.submit(plan, driver)
            world.random_step()
            world.check()
        world.finish()
    return world


@pytest.mark.parametrize("seed", seeds(0))
def test_every_task_ends_once_whatever_happens(seed: int) -> None:
    run_tasks(seed)


@pytest.mark.parametrize("seed", seeds(1000)[: max(1, SEEDS // 2)])
def test_two_drivers_on_stalled_sockets(seed: int) -> None:
    run_tasks(seed, drivers=2, capacity=600, classes=3)


@pytest.mark.parametrize("seed", seeds(2000)[: max(1, SEEDS // 2)])
def test_nested_tasks(seed: int) -> None:
    run_tasks(seed, tasks=25, nested=True)
