"""Pulling objects from other nodes: the machines of both sides."""

from __future__ import annotations

import pytest
from tests.node.transfer_world import Node, World

from shoal.node import pull_events as ev
from shoal.node import pulls as pulls_module
from shoal.node.pulls import CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, STALL_S, WINDOW, Pulls, chunk_bytes
from shoal.node.servings import Servings

A, B, C, D = (bytes([65 + number]) * 16 for number in range(4))
OID = b"o" * 20
MB = 1 << 20


def nodes_of(world: World) -> list[Node]:
    return list(world.nodes.values())


def begun(size: int = 8 * MB, now: float = 0.0) -> tuple[Pulls, list[ev.AskChunk]]:
    """A pull from node A that has asked for its first chunks."""
    pulls = Pulls(1 << 30)
    assert pulls.handle(ev.PullAsked(b"p", 1, OID, size, A, ev.GET), now)[0] == ev.AskRoom(OID, size, A)
    return pulls, [effect for effect in pulls.handle(ev.RoomMade(OID), now) if isinstance(effect, ev.AskChunk)]


# ---------------------------------------------------------------- the receiving side


def test_chunks_are_powers_of_two_between_the_limits() -> None:
    assert chunk_bytes(0) == chunk_bytes(MB) == CHUNK_BYTES_MIN
    assert chunk_bytes(64 * MB) == MB
    assert chunk_bytes(65 * MB) == 2 * MB
    assert chunk_bytes(1 << 40) == CHUNK_BYTES_MAX


def test_an_object_of_one_chunk_takes_one_question() -> None:
    pulls, asked = begun(1000)
    assert asked == [ev.AskChunk(1, A, OID, 0, 0, 1000, True)]
    assert pulls.handle(ev.ChunkArrived(1, 7), 0.1) == [
        ev.NotePart(OID, 0, 1000),
        ev.SealCopy(OID, 7),
        ev.AnswerPull(b"p", 1, OID),
        ev.TellPullEnded(A, OID, True),
    ]
    assert not pulls.statistics()["pulls"]


def test_all_who_want_an_object_share_one_pull() -> None:
    pulls, asked = begun(1000)
    assert pulls.handle(ev.PullAsked(b"q", 5, OID, 1000, A, ev.BACKGROUND), 0) == []
    effects = pulls.handle(ev.ChunkArrived(asked[0].number, 7), 0.1)
    assert [effect for effect in effects if isinstance(effect, ev.AnswerPull)] == [
        ev.AnswerPull(b"p", 1, OID),
        ev.AnswerPull(b"q", 5, OID),
    ]


def test_a_window_of_chunks_is_under_way() -> None:
    pulls, asked = begun(64 * MB)
    assert [chunk.offset for chunk in asked] == [number * MB for number in range(WINDOW)]
    effects = pulls.handle(ev.ChunkArrived(asked[1].number, 7), 0)
    assert [effect.offset for effect in effects if isinstance(effect, ev.AskChunk)] == [WINDOW * MB]
    assert pulls.part(OID, MB, MB) == (ev.PART, 7)
    assert pulls.part(OID, 0, MB) == (ev.COMING, 7)
    assert pulls.part(OID, 63 * MB, 2 * MB) == (ev.NOTHING, 0)


def test_who_is_referred_asks_the_others_and_comes_back_when_they_are_silent() -> None:
    pulls, asked = begun(64 * MB)
    effects = [effect for chunk in asked for effect in pulls.handle(ev.ChunkReferred(chunk.number, 7, [C, B]), 0.0)]
    again = [effect for effect in effects if isinstance(effect, ev.AskChunk)]
    assert {(chunk.node, chunk.version, chunk.fresh) for chunk in again} == {(C, 7, False)} and len(again) == WINDOW
    assert pulls.handle(ev.Ticked(), 0.1)[:-1] == []
    (first,) = [e for e in pulls.handle(ev.Ticked(), 0.4) if isinstance(e, ev.AskChunk)]
    (second,) = [e for e in pulls.handle(ev.Ticked(), 0.5) if isinstance(e, ev.AskChunk)]
    assert {first.node, second.node} == {B, A} and not first.fresh and not second.fresh
    # It speaks again: the others are left.
    pulls.handle(ev.ChunkArrived(again[0].number, 7), 0.55)
    effects = pulls.handle(ev.ChunkArrived(first.number, 7), 0.56)
    assert all(effect.node == C for effect in effects if isinstance(effect, ev.AskChunk))


def test_at_the_end_a_chunk_is_asked_for_twice_and_memory_waits_for_the_slower_one() -> None:
    pulls, asked = begun(1000)
    pulls.handle(ev.ChunkReferred(asked[0].number, 7, [B]), 0.0)
    (twice,) = [effect for effect in pulls.handle(ev.Ticked(), 1.0) if isinstance(effect, ev.AskChunk)]
    assert twice.node == A
    effects = pulls.handle(ev.ChunkArrived(twice.number, 7), 1.1)
    assert effects == [ev.NotePart(OID, 0, 1000), ev.CancelChunk(2)]
    assert pulls.handle(ev.ChunkFailed(2, "cancelled"), 1.2)[0] == ev.SealCopy(OID, 7)


def test_a_broken_connection_costs_its_chunks_and_many_in_a_row_the_pull() -> None:
    pulls, asked = begun(1000)
    now = 0.0
    failures = 0
    while True:
        failures += 1
        effects = pulls.handle(ev.ChunkFailed(asked[0].number, "reset"), now)
        if any(isinstance(effect, ev.FailPull) for effect in effects):
            break
        now += 1.0
        asked = [effect for effect in pulls.handle(ev.Ticked(), now) if isinstance(effect, ev.AskChunk)]
    assert failures == pulls_module.FAILURES_MAX + 1
    assert [type(effect) for effect in effects] == [ev.GiveUpCopy, ev.ReportLost, ev.FailPull, ev.TellPullEnded]
    assert "reset" in effects[2].reason  # type: ignore[union-attr]


def test_silence_ends_a_pull() -> None:
    pulls, _asked = begun(1000)
    assert not any(isinstance(e, ev.FailPull) for e in pulls.handle(ev.Ticked(), STALL_S - 1))
    effects = pulls.handle(ev.Ticked(), STALL_S + 1)
    assert ev.CancelChunk(1) in effects
    effects = pulls.handle(ev.ChunkFailed(1, "cancelled"), STALL_S + 2)
    assert isinstance(effects[1], ev.FailPull) and effects[1].kind == ev.FAILED_SLOW


def test_bytes_of_another_version_begin_it_anew() -> None:
    pulls, asked = begun(64 * MB)
    pulls.handle(ev.ChunkArrived(asked[0].number, 7), 0)
    effects = pulls.handle(ev.ChunkArrived(asked[1].number, 8), 0)
    flying = [effect.number for effect in effects if isinstance(effect, ev.CancelChunk)]
    assert len(flying) == WINDOW - 1
    for number in flying[:-1]:
        assert pulls.handle(ev.ChunkFailed(number, "cancelled"), 0) == []
    effects = pulls.handle(ev.ChunkFailed(flying[-1], "cancelled"), 0)
    assert effects[0] == ev.DropParts(OID)
    assert [(chunk.offset, chunk.version) for chunk in effects[1:]] == [  # type: ignore[union-attr]
        (number * MB, 0) for number in range(WINDOW)
    ]


def test_who_is_blocked_goes_first_and_memory_limits_how_many_are_under_way() -> None:
    pulls = Pulls(100 * MB)
    oids = [bytes([number]) * 20 for number in range(4)]
    assert pulls.handle(ev.PullAsked(b"p", 1, oids[0], 40 * MB, A, ev.BACKGROUND), 0)[0] == ev.AskRoom(
        oids[0], 40 * MB, A
    )
    pulls.handle(ev.RoomMade(oids[0]), 0)
    for number, priority in ((1, ev.BACKGROUND), (2, ev.ARGUMENT), (3, ev.GET)):
        assert pulls.handle(ev.PullAsked(b"p", number, oids[number], 40 * MB, A, priority), 0) == []
    # The second of them is wanted by a program that is blocked now.
    pulls.handle(ev.PullAsked(b"q", 9, oids[1], 40 * MB, A, ev.GET), 0)
    order = []
    while True:
        active = list(pulls._active.values())
        if not active:
            break
        effects = pulls.handle(ev.OriginalsFreed([active[0].oid], A), 0)
        cancelled = [effect.number for effect in effects if isinstance(effect, ev.CancelChunk)]
        for number in cancelled:
            effects += pulls.handle(ev.ChunkFailed(number, "cancelled"), 0)
        for effect in effects:
            if isinstance(effect, ev.AskRoom):
                order.append(effect.oid)
                pulls.handle(ev.RoomMade(effect.oid), 0)
    assert order == [oids[3], oids[1], oids[2]]


def test_a_pull_that_nobody_wants_any_more_ends() -> None:
    pulls, asked = begun(1000)
    assert pulls.handle(ev.ProcessGone(b"p"), 0) == [ev.CancelChunk(asked[0].number)]
    # Somebody asks while it ends: it begins anew.
    assert pulls.handle(ev.PullAsked(b"q", 2, OID, 1000, A, ev.GET), 0) == []
    assert pulls.handle(ev.ChunkFailed(asked[0].number, "cancelled"), 0) == [
        ev.GiveUpCopy(OID),
        ev.TellPullEnded(A, OID, False),
        ev.AskRoom(OID, 1000, A),
    ]


def test_no_room_is_told() -> None:
    pulls = Pulls(1 << 30)
    pulls.handle(ev.PullAsked(b"p", 1, OID, 1000, A, ev.GET), 0)
    assert pulls.handle(ev.RoomRefused(OID, ev.FAILED_FULL, "full"), 0) == [
        ev.FailPull(b"p", 1, OID, ev.FAILED_FULL, "full")
    ]
    pulls.handle(ev.PullAsked(b"p", 1, OID, 1000, A, ev.GET), 0)
    assert pulls.handle(ev.RoomRefused(OID, ev.FAILED_FULL, ""), 0) == [ev.AnswerPull(b"p", 1, OID)]


# ---------------------------------------------------------------- the sending side


def want(node: bytes, number: int, state: str = ev.WHOLE, fresh: bool = True, version: int = 0) -> ev.ChunkWanted:
    return ev.ChunkWanted(node, number, 1, OID, version, 0, 100, fresh, state, 7, state == ev.WHOLE)


def test_the_origin_sends_to_the_first_and_refers_the_others_along_the_chain() -> None:
    servings = Servings()
    assert servings.handle(want(B, 1), 0) == [ev.Serve(want(B, 1))]
    assert servings.handle(want(C, 1), 0) == [ev.Refer(C, 1, 7, [B])]
    assert servings.handle(want(D, 1), 0) == [ev.Refer(D, 1, 7, [C, B])]
    assert servings.handle(want(C, 2), 0) == [ev.Refer(C, 2, 7, [B])], "the same answer to the same node"
    assert servings.handle(want(D, 2, fresh=False, version=7), 0) == [ev.Serve(want(D, 2, fresh=False, version=7))]
    for node in (B, C, D):
        servings.handle(ev.PullEndedThere(node, OID, node != C), 0)
    assert servings.handle(ev.ObjectsFreed([OID]), 0) == [ev.FreeCopiesAt(B, [OID]), ev.FreeCopiesAt(D, [OID])]
    for node, number in ((B, 1), (D, 2)):
        servings.handle(ev.ServeEnded(node, number), 0)
    assert servings.statistics() == {"shared": 0, "serving": 0, "deferred": 0, "served": 2, "referred": 3}


def test_what_is_about_to_come_is_sent_when_it_comes() -> None:
    servings = Servings()
    wanted = want(B, 1, ev.COMING, fresh=False)
    assert servings.handle(wanted, 0) == []
    assert servings.handle(ev.PartCame(OID, 100, 100), 0) == []
    assert servings.handle(ev.PartCame(OID, 0, 100), 0) == [ev.Serve(wanted)]
    servings.handle(want(C, 1, ev.COMING, fresh=False), 0)
    assert servings.handle(ev.CopyEnded(OID, False), 0) == [
        ev.Refuse(C, 1, ev.REFUSED_ABSENT, "it could not get it itself")
    ]
    servings.handle(want(D, 1, ev.COMING, fresh=False), 0)
    servings.handle(ev.ChunksForgotten(D, [1]), 0)
    assert servings.handle(ev.CopyEnded(OID, True), 0) == []


def test_other_bytes_than_those_asked_for_are_refused() -> None:
    (effect,) = Servings().handle(want(B, 1, version=3), 0)
    assert isinstance(effect, ev.Refuse) and effect.kind == ev.REFUSED_CHANGED


def test_a_node_that_asks_for_too_much_is_refused() -> None:
    servings = Servings()
    kinds = [type(servings.handle(want(B, number), 0)[0]) for number in range(1100)]
    assert kinds == [ev.Serve] * 1024 + [ev.Refuse] * 76


def test_what_is_gone_here_is_had_from_those_who_have_copies() -> None:
    servings = Servings()
    servings.handle(want(B, 1), 0)
    servings.handle(ev.PullEndedThere(B, OID, True), 0)
    assert servings.handle(want(C, 1, ev.NOTHING), 0) == [ev.Refer(C, 1, 7, [B])]
    servings.handle(ev.CopiesDroppedThere(B, [OID]), 0)
    (effect,) = servings.handle(want(C, 2, ev.NOTHING), 0)
    assert isinstance(effect, ev.Refuse) and effect.kind == ev.REFUSED_ABSENT


# ---------------------------------------------------------------- both, in a world


def broadcast(count: int, size: int, rate: float = 1e8) -> tuple[World, float, float]:
    """`count` nodes pull one object at the same time: the world, and the times of all of them and of one transfer."""
    world = World(1, count + 1, rate=rate)
    origin, *others = nodes_of(world)
    oid = world.make(origin, size)
    for node in others:
        node.ask(b"p", 1, oid, origin)
    took = world.run_until(lambda: all(node.answers for node in others))
    assert all(node.answers == {(b"p", 1): ["here"]} for node in others)
    return world, took, size / rate


def test_a_broadcast_takes_hardly_longer_than_one_transfer() -> None:
    world, took, one = broadcast(8, 64 * MB)
    assert took < 1.3 * one
    assert sorted(round(node.sent_bytes / (64 * MB), 1) for node in nodes_of(world)) == [0.0] + [1.0] * 8
    _, took, one = broadcast(50, 64 * MB)
    assert took < 2.5 * one, "a star takes 50 times as long"


def test_a_slow_node_in_the_chain_does_not_hold_up_the_rest_for_ever() -> None:
    world = World(2, 6)
    origin, *others = nodes_of(world)
    world.rates[others[1].node_id] = 1e6
    oid = world.make(origin, 64 * MB)
    for node in others:
        node.ask(b"p", 1, oid, origin)
    took = world.run_until(lambda: all(node.answers for node in others))
    assert took < 5 * 64 * MB / 1e8, "it would take 100 times as long"


def test_the_origin_dies_when_all_of_it_has_left() -> None:
    world = World(3, 4)
    origin, *others = nodes_of(world)
    oid = world.make(origin, 64 * MB)
    others[0].ask(b"p", 1, oid, origin)
    world.run_until(lambda: origin.sent_bytes > 32 * MB)
    for node in others[1:]:
        node.ask(b"p", 1, oid, origin)
    world.run_until(lambda: origin.sent_bytes == 64 * MB and origin.sends_until < world.now)
    world.run(0.001)
    world.kill(origin)
    world.run_until(lambda: all(node.answers for node in others))
    assert [node.answers[b"p", 1] for node in others[1:]] == [["here"]] * 2


@pytest.mark.parametrize("seed", range(80))
def test_whatever_happens_everybody_is_answered_and_no_copy_is_wrong(seed: int) -> None:
    world = World(seed, 3 + seed % 4, capacity=20 * MB)
    dice = world.dice
    world.breaks = dice.choice([0.0, 0.02, 0.1])
    full = dice.choice([0.0, 0.1])
    nodes = nodes_of(world)
    for node in nodes:
        node.full = full
    homes: dict[bytes, Node] = {}
    asked: dict[tuple[bytes, bytes, int], Node] = {}
    gone: set[tuple[bytes, bytes]] = set()
    deaths = 0
    for step in range(300):
        alive = [node for node in nodes if node.alive]
        node = dice.choice(alive)
        what = dice.random()
        if what < 0.1:
            homes[world.make(node, dice.choice([10, 1000, MB, 3 * MB + 5, 9 * MB]))] = node
        elif what < 0.7 and homes:
            oid = dice.choice(sorted(homes))
            process = bytes([dice.randrange(3)])
            if node is not homes[oid] and (node.node_id, process) not in gone:
                asked[node.node_id, process, step] = node
                node.ask(process, step, oid, homes[oid], dice.choice([ev.GET, ev.ARGUMENT, ev.BACKGROUND]))
        elif what < 0.75 and homes:
            oid = dice.choice(sorted(homes))
            home = homes.pop(oid)
            if home.alive:
                home.free(oid)
        elif what < 0.78 and homes:
            oid = dice.choice(sorted(homes))
            if homes[oid].alive:
                world.make(homes[oid], world.sizes[oid], oid)
        elif what < 0.85:
            sealed = [oid for oid, copy in node.copies.items() if copy.sealed]
            if sealed:
                node.drop_copy(dice.choice(sorted(sealed)))
        elif what < 0.87:
            process = bytes([dice.randrange(3)])
            gone.add((node.node_id, process))
            node.feed(ev.ProcessGone(process))
        elif what < 0.875 and len(alive) > 2 and deaths < 2:
            deaths += 1
            world.kill(node)
        world.run(dice.random() * 0.05)
    world.breaks = 0.0
    world.run(200.0)
    for (node_id, process, request), node in asked.items():
        if node.alive and (node_id, process) not in gone:
            assert len(node.answers.get((process, request), [])) == 1, "one answer"
    for node in nodes:
        if node.alive:
            assert not node.asked
            assert {name: node.pulls.statistics()[name] for name in ("pulls", "active_bytes", "chunks")} == {
                "pulls": 0,
                "active_bytes": 0,
                "chunks": 0,
            }
            assert not node.servings.statistics()["deferred"]
            assert all(copy.sealed for copy in node.copies.values())
    for oid, home in homes.items():
        if home.alive:
            home.free(oid)
    world.run(1.0)
    assert not any(node.copies for node in nodes if node.alive), "copies are left"
    assert all(
        not value
        for node in nodes
        if node.alive
        for name, value in node.servings.statistics().items()
        if name in ("shared", "serving", "deferred")
    )
