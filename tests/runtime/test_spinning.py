"""The rule that decides whether waits begin by polling, against machines of which it is told no more than how long its waits are."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from shoal.runtime.spinning import PAUSE_MAX, TRIAL_WAITS, Spinning

SPIN_S = 80e-6


def two_cpus(spins: bool, dice: random.Random) -> tuple[float, bool]:
    """The other end runs beside: spinning meets its answer at once, sleeping costs a wake-up."""
    return (12e-6, False) if spins else (45e-6, False)


def one_cpu(spins: bool, dice: random.Random) -> tuple[float, bool]:
    """The other end runs when this one sleeps."""
    return (SPIN_S + 25e-6, True) if spins else (25e-6, False)


def disturbed(machine: Callable[[bool, random.Random], tuple[float, bool]]) -> Callable[..., tuple[float, bool]]:
    """One wait in ten is hit by another process."""

    def wait(spins: bool, dice: random.Random) -> tuple[float, bool]:
        seconds, in_vain = machine(spins, dice)
        if dice.random() < 0.1:
            return seconds + dice.choice([200e-6, 700e-6, 4e-3]), spins
        return seconds, in_vain

    return wait


def live(rule: Spinning, machine: Callable[..., tuple[float, bool]], waits: int, seed: int = 0) -> float:
    """The share of waits that began by spinning."""
    dice = random.Random(seed)
    spun = 0
    for _ in range(waits):
        spun += rule.spins
        rule.waited(*machine(rule.spins, dice))
    return spun / waits


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("disturbs", [False, True])
def test_it_finds_the_better_way_soon_and_stays_with_it(disturbs: bool, seed: int) -> None:
    for machine, share in ((two_cpus, 1.0), (one_cpu, 0.0)):
        rule = Spinning()
        world = disturbed(machine) if disturbs else machine
        live(rule, world, 120, seed)
        assert abs(live(rule, world, 5000, seed) - share) < (0.05 if disturbs else 0.01), machine


@pytest.mark.parametrize("seed", range(5))
def test_it_changes_its_mind_when_the_machine_does(seed: int) -> None:
    rule = Spinning()
    for machine, share in ((one_cpu, 0.0), (two_cpus, 1.0), (one_cpu, 0.0)):
        live(rule, machine, PAUSE_MAX + 2 * TRIAL_WAITS, seed)
        assert live(rule, machine, 1000, seed) == pytest.approx(share, abs=0.02)


def test_vain_spinning_is_noticed_at_once() -> None:
    rule = Spinning()
    live(rule, two_cpus, 10_000)
    assert rule.spins
    assert live(rule, one_cpu, 40) < 0.5


def test_long_waits_say_nothing() -> None:
    rule = Spinning()
    assert live(rule, lambda spins, dice: (5e-3, True), 1000) == 1.0
