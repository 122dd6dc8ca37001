"""Refs across nodes: whole clusters of processes that pass refs around, with every order of messages that the sockets allow."""

from __future__ import annotations

import pytest

from tests.node.cluster_of_refs import World, _Gone


def live(seed: int, nodes: int, processes: int, steps: int, deadly: bool) -> World:
    """Many things happen, in an order of which the seed decides."""
    world = World(seed, nodes, processes)
    for node in world.nodes:

        def gone(_sender: bytes, message: _Gone, node: object = node) -> None:
            node.gone.add(message.process)  # type: ignore[attr-defined]
            node.shell.owner_gone(message.process)  # type: ignore[attr-defined]

        node.links.handlers[_Gone] = gone
    dice = world.dice
    busy = dice.choice([0.3, 0.6, 0.85])
    for _ in range(steps):
        moves = world.moves()
        if moves and dice.random() < busy:
            dice.choice(moves)()
        else:
            world.act()
        if deadly and dice.random() < 0.004:
            alive = [process for process in world.processes if process.alive]
            if len(alive) > 2:
                world.kill(dice.choice(alive))
        if deadly and dice.random() < 0.002 and sum(node.alive for node in world.nodes) > 1:
            world.kill_node(dice.choice([node for node in world.nodes if node.alive]))
            if not any(process.alive for process in world.processes):
                break
    world.finish()
    return world


@pytest.mark.parametrize("seed", range(60))
def test_never_freed_while_referred_to_and_always_in_the_end(seed: int) -> None:
    world = live(seed, 2 + seed % 3, 1 + seed % 2, 500, deadly=False)
    assert world.frees > 5


@pytest.mark.parametrize("seed", range(60))
def test_with_processes_and_nodes_that_die(seed: int) -> None:
    live(seed + 1000, 2 + seed % 3, 1 + seed % 3, 500, deadly=True)
