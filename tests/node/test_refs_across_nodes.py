"""Refs across nodes: whole clusters of processes that pass refs around, with every order of messages that the sockets allow."""

from __future__ import annotations

import pytest
from tests.node.cluster_of_refs import Process, World, _Gone


def live(seed: int, nodes: int, processes: int, steps: int, deadly: bool) -> World:
    """Many things happen, in an order of which the seed decides."""
    world = World(seed, nodes, processes)
    for node in world.nodes:

        def gone(_sender: bytes, message: _Gone, node: object = node) -> None:
            world.hear_of_death(node, message.process)  # type: ignore[arg-type]

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


def test_what_was_in_a_container_outlives_it_when_the_way_to_its_home_is_long() -> None:
    """The hold on what was taken out must be known at its home before the container's home hears of the container's end."""
    world = World(1, 3, 1)
    world.slow.clear()
    owner, packer, taker = world.processes

    def task(submitter: Process, worker: Process) -> None:
        world.run(submitter, submitter.push, worker, [submitter.refs[0]])
        world.settle()
        world.run(worker, worker.reply, [])
        world.settle()
        world.run(submitter, submitter.refs.clear)
        world.settle()

    def inner_of(process: Process) -> bytes:
        return next(ref.binary() for ref in process.refs if ref.binary().startswith(owner.worker_id[:12]))

    world.run(owner, owner.put, [])
    task(owner, packer)
    inner = inner_of(packer)
    world.run(packer, packer.put, list(packer.refs))
    world.run(packer, packer.refs.pop, 0)
    task(packer, taker)
    container = taker.refs[0]
    world.run(taker, taker.get, container)
    world.settle()
    world.run(taker, taker.get, container)
    assert inner_of(taker) == inner
    del container
    world.blocked = {(taker.node.node_id, owner.node.node_id)}
    world.run(taker, taker.refs.pop, 0)
    world.settle()
    assert owner.node.machine.holders(inner), "the container's home still holds it"
    world.blocked = set()
    world.settle()
    assert list(owner.node.machine.holders(inner)) == [taker.node.node_id]
    assert packer.node.machine.statistics()["objects"] == 0
    world.finish()
