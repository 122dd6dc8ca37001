"""Who holds what a log refers to: after any death of the actor's node it is all there for the next life, and nothing is left in the end."""

from __future__ import annotations

from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.node.log_holds import AskHold, KeptHolds, LogHolds, position_of

ACTOR, HERE, THERE, YONDER = b"a" * 16, b"h", b"t", b"y"
X, Y, Z = b"x", b"y1", b"z"


def started(*nodes: bytes) -> LogHolds:
    holds = LogHolds()
    for node in nodes:
        holds.node_seen(node, False)
    return holds


def test_the_home_is_the_keeper_unless_it_is_the_actors_own_node() -> None:
    holds = started(THERE, YONDER)
    asks = holds.want(ACTOR, 2, {X: THERE, Y: HERE, Z: HERE})
    assert [(ask.node, ask.oids) for ask in asks if ask.home == THERE] == [(THERE, [X])]
    others = [ask for ask in asks if ask.home == HERE]
    assert {ask.node for ask in others} == {THERE, YONDER} and [ask.oids for ask in others] == [[Y, Z], [Y, Z]]
    assert not holds.is_settled(ACTOR)
    assert [holds.told(ACTOR, ask.number) for ask in asks] == [False, False, True]
    assert holds.is_settled(ACTOR) and not holds.told(ACTOR, asks[1].number)


def test_a_node_that_is_alone_or_drains() -> None:
    holds = started()
    assert holds.want(ACTOR, 2, {X: HERE}) == [] and holds.is_settled(ACTOR) and holds.lacking() == []
    holds.node_seen(THERE, True)
    assert holds.lacking() == [(ACTOR, X, 2)]
    (ask,) = holds.want(ACTOR, 2, {X: HERE})
    assert ask.node == THERE, "better than none"
    holds.node_seen(YONDER, False)
    (ask,) = holds.want(ACTOR, 2, {Y: HERE})
    assert ask.node == YONDER and holds.lacking() == []
    holds.node_seen(b"n", False)
    assert holds.lacking() == [(ACTOR, X, 2), (ACTOR, Y, 2)], "each has one"
    assert {ask.node for ask in holds.want(ACTOR, 2, {Y: HERE})} == {YONDER, b"n"}
    assert holds.lacking() == [(ACTOR, X, 2)]


def test_a_keeper_that_dies_is_not_waited_for_and_replaced() -> None:
    holds = started(THERE, YONDER)
    (ask,) = holds.want(ACTOR, 2, {X: THERE})
    assert holds.node_gone(THERE) == [ACTOR] and holds.is_settled(ACTOR)
    assert holds.lacking() == [(ACTOR, X, 2)]
    (ask,) = holds.want(ACTOR, 2, {X: HERE})
    assert ask.node == YONDER and holds.lacking() == []
    assert holds.covered(ACTOR, 3) == [YONDER]
    assert holds.statistics()["log_holds"] == 0


def test_what_the_actor_that_lives_elsewhere_had_is_forgotten_here_alone() -> None:
    holds = started(THERE)
    (ask,) = holds.want(ACTOR, 2, {X: THERE})
    holds.forget(ACTOR)
    assert not holds.told(ACTOR, ask.number) and holds.covered(ACTOR, 9) == [] and holds.node_gone(THERE) == []


def test_what_another_home_counts_by_now_is_held_there_too() -> None:
    kept = KeptHolds()
    assert kept.hold(ACTOR, 2, [X, Y], HERE) == ([X, Y], [])
    assert kept.hold(ACTOR, 4, [X, Z], THERE) == ([Z], [X]), "it may have been lost with HERE, and made anew"
    assert kept.hold(ACTOR, 5, [X], THERE) == ([], [])
    assert kept.free(ACTOR, 5) == [Y, Z]
    # A life goes on elsewhere without what a former one had asked for, and the GCS never got.
    kept.hold(ACTOR, 20, [Y], HERE, 1)
    kept.hold(ACTOR, 9, [Z], HERE, 2)
    assert kept.free(ACTOR, 7, 2) == [X, Y] and kept.hold(ACTOR, 22, [Y], HERE, 1) == ([], []), "it comes late"
    assert kept.hold(ACTOR, 10, [Y], HERE, 2) == ([Y], [])


class World:
    """An actor's node, the GCS, and two keepers; messages come in their order, whenever."""

    def __init__(self) -> None:
        self.holds = started(THERE, YONDER)
        self.kept = {THERE: KeptHolds(), YONDER: KeptHolds()}
        self.held: dict[bytes, set[bytes]] = {THERE: set(), YONDER: set()}
        self.links: dict[bytes, deque[AskHold | int]] = {THERE: deque(), YONDER: deque()}
        self.index = 0
        #: of the last checkpoint: its index, and its refs; and those of the calls since
        self.checkpoint: tuple[int, frozenset[bytes]] = (0, frozenset())
        self.records: list[frozenset[bytes]] = []
        #: what the GCS has of both
        self.stored: set[bytes] = set()
        self.stored_index = 0

    def write(self, refs: frozenset[bytes], is_checkpoint: bool) -> None:
        if is_checkpoint:
            self.checkpoint, self.records = (self.index, refs), []
        else:
            self.index += 1
            self.records.append(refs)
        homes = {oid: (HERE, THERE, YONDER)[oid[0] % 3] for oid in sorted(refs)}
        for ask in self.holds.want(ACTOR, position_of(self.index, is_checkpoint), homes):
            self.links[ask.node].append(ask)

    def commit(self) -> None:
        if not self.holds.is_settled(ACTOR):
            return
        index, refs = self.checkpoint
        self.stored = set(refs).union(*self.records)
        if index > self.stored_index:
            self.stored_index = index
            for node in self.holds.covered(ACTOR, position_of(index, True)):
                self.links[node].append(position_of(index, True))

    def deliver(self, node: bytes) -> None:
        if not self.links[node]:
            return
        message = self.links[node].popleft()
        if isinstance(message, AskHold):
            fresh, _ = self.kept[node].hold(ACTOR, message.position, message.oids, message.home)
            assert not self.held[node] & set(fresh)
            self.held[node] |= set(fresh)
            self.holds.told(ACTOR, message.number)
        else:
            self.held[node] -= set(self.kept[node].free(ACTOR, message))

    def check(self) -> None:
        for oid in self.stored:
            home = (HERE, THERE, YONDER)[oid[0] % 3]
            assert all(oid in self.held[node] for node in (THERE, YONDER) if home in (HERE, node))


REFS = st.frozensets(st.sampled_from([bytes([number]) for number in range(6)]), max_size=3)
STEPS = st.one_of(
    st.tuples(st.just("record"), REFS),
    st.tuples(st.just("checkpoint"), REFS),
    st.tuples(st.sampled_from(["commit", "there", "yonder"]), st.just(frozenset())),
)


@settings(max_examples=150)
@given(st.lists(STEPS, max_size=40))
def test_what_the_gcs_has_of_a_log_is_held_elsewhere(steps: list[tuple[str, frozenset[bytes]]]) -> None:
    world = World()
    for kind, refs in steps:
        if kind in ("record", "checkpoint"):
            world.write(refs, kind == "checkpoint")
        elif kind == "commit":
            world.commit()
        else:
            world.deliver(THERE if kind == "there" else YONDER)
        world.check()
    world.write(frozenset(), False)
    world.write(frozenset(), True)
    for _ in range(2):
        while any(world.links.values()):
            world.deliver(THERE)
            world.deliver(YONDER)
        world.commit()
    while any(world.links.values()):
        world.deliver(THERE)
        world.deliver(YONDER)
    assert world.held == {THERE: set(), YONDER: set()}
    assert world.holds.statistics() == {"log_holds": 0, "log_holds_asked": 0}
