"""The actor state machine: each rule, then random events against what must always be true."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.gcs.actor_specs import actor_spec

from shoal.gcs import actor_manager
from shoal.gcs.actor_manager import (
    TRANSITIONS,
    ActorKillAsked,
    ActorManager,
    ActorMoved,
    ActorRequested,
    AnnounceActor,
    InvalidTransitionError,
    JobEnded,
    NodeJoined,
    NodeLost,
    SendToNode,
    StoreActor,
)
from shoal.protocol.gcs_messages import (
    ActorConstructed,
    ActorPlacementRefused,
    ActorRefsGone,
    ActorWorkerDied,
    ActorWorkerStarted,
    StartActor,
    StopActor,
)
from shoal.protocol.limits import STORY_LINES_MAX
from shoal.protocol.messages import ActorSpec

NODE, OTHER = b"n" * 16, b"o" * 16
JOB = b"\0\0\0\1"


def actor(number: int = 1) -> bytes:
    return number.to_bytes(16, "big")


class Machine:
    """A manager with one node, and short names for events."""

    def __init__(self, **changes: Any) -> None:
        self.nodes: list[bytes] = []
        self.refusal = ""  #: why no node takes an actor
        self.manager = ActorManager(self.where)
        self.now = 0.0
        self.do(NodeJoined(NODE))
        self.spec = actor_spec(**changes)
        self.first = self.do(ActorRequested(self.spec, NODE))

    def where(self, spec: ActorSpec, near: bytes, stay: bool, now: float) -> tuple[bytes, str]:
        """Where it was, or on the node that joined first."""
        if self.refusal:
            return b"", self.refusal
        return (near if near in self.nodes else next(iter(self.nodes), b"")), ""

    def do(self, event: Any) -> list[Any]:
        """The effects, without those for storage."""
        if type(event) is NodeJoined and event.node_id not in self.nodes:
            self.nodes.append(event.node_id)
        if type(event) is NodeLost and event.node_id in self.nodes:
            self.nodes.remove(event.node_id)
        self.now += 1.0
        return [e for e in self.manager.handle(event, self.now) if type(e) is not StoreActor]

    def started(self, incarnation: int = 1) -> list[Any]:
        return self.do(ActorWorkerStarted(actor(), incarnation, b"w" * 16, "addr", 100 + incarnation, 5))

    def constructed(self, incarnation: int = 1, error: bytes = b"") -> list[Any]:
        return self.do(ActorConstructed(actor(), incarnation, error))

    def died(self, incarnation: int = 1, intended: bool = False) -> list[Any]:
        return self.do(ActorWorkerDied(actor(), incarnation, "killed by SIGKILL", intended))

    def live(self) -> Machine:
        self.started()
        self.constructed()
        return self

    @property
    def record(self) -> actor_manager.ActorRecord:
        record = self.manager.get(actor())
        assert record is not None
        return record


def messages(effects: list[Any]) -> list[Any]:
    return [effect.message for effect in effects if type(effect) is SendToNode]


def states(effects: list[Any]) -> list[str]:
    return [effect.state.state for effect in effects if type(effect) is AnnounceActor]


def test_a_request_goes_to_the_asking_node_and_becomes_alive() -> None:
    machine = Machine()
    assert messages(machine.first) == [StartActor(actor(), 1, machine.spec)]
    assert states(machine.first) == ["pending"]
    assert states(machine.started()) == ["pending"]
    [announced] = machine.constructed()
    state = announced.state
    assert (state.state, state.address, state.pid, state.lease_id) == ("alive", "addr", 101, 5)
    assert not announced.final


def test_an_actor_that_came_back_to_a_node_before_it_began_is_not_taken_for_the_one_that_left() -> None:
    machine = Machine(max_restarts=1)
    machine.do(NodeJoined(OTHER))
    assert messages(machine.do(ActorMoved(actor(), OTHER))) == [
        StopActor(actor(), 1, True, "it begins on another node, which has room"),
        StartActor(actor(), 2, machine.spec, moves=1),
    ]
    [start] = messages(machine.do(ActorMoved(actor(), NODE)))[1:]
    assert start == StartActor(actor(), 3, machine.spec, moves=2)
    assert start.may_restart(), "it has moved twice, and was never restarted"
    assert machine.started(1) == machine.died(1) == []
    machine.started(3)
    machine.constructed(3)
    assert (machine.record.state, machine.record.restarts) == ("alive", 0)
    [again] = messages(machine.died(3))
    assert not again.may_restart() and machine.record.restarts == 1
    machine.died(3)
    assert (machine.record.state, machine.record.restarts, machine.record.incarnation) == ("restarting", 1, 4)
    machine.died(4)
    assert machine.record.state == "dead"


def test_every_change_is_stored_before_it_is_told() -> None:
    machine = Machine()
    effects = machine.manager.handle(ActorKillAsked(actor(), True), 9.0)
    kinds = [type(effect) for effect in effects]
    assert kinds.index(StoreActor) < kinds.index(AnnounceActor)


def test_a_failed_constructor_is_death_with_its_exception() -> None:
    machine = Machine(max_restarts=5)
    machine.started()
    [announced] = machine.constructed(error=b"pickled")
    assert (announced.state.state, announced.state.death) == ("dead", "constructor")
    assert announced.state.creation_error == b"pickled" and announced.final


def test_a_placement_that_can_never_be_is_death_with_the_reason() -> None:
    machine = Machine()
    [announced] = machine.do(ActorPlacementRefused(actor(), 1, "asked 9 CPU, there are 2"))
    assert (announced.state.state, announced.state.death) == ("dead", "unschedulable")
    assert "9 CPU" in announced.state.cause


@pytest.mark.parametrize(("max_restarts", "lives"), [(0, 1), (1, 2), (3, 4)])
def test_restarts_are_counted(max_restarts: int, lives: int) -> None:
    machine = Machine(max_restarts=max_restarts)
    for life in range(1, lives + 1):
        machine.started(life)
        machine.constructed(life)
        assert machine.record.state == "alive"
        effects = machine.died(life)
        if life < lives:
            assert states(effects) == ["restarting", "restarting"][:1]
            assert messages(effects) == [StartActor(actor(), life + 1, machine.spec)]
            assert (machine.record.address, machine.record.pid) == ("", 0)
    assert (machine.record.state, machine.record.death) == ("dead", "crashed")
    assert "SIGKILL" in machine.record.cause


def test_a_constructor_that_crashes_again_and_again_is_restarted_at_growing_intervals() -> None:
    machine = Machine(max_restarts=-1)
    delays = []
    for life in range(1, 12):
        machine.started(life)
        [start] = messages(machine.died(life))
        delays.append(start.delay_s)
    assert delays[:4] == pytest.approx([0.0, 0.1, 0.2, 0.4])
    assert delays == sorted(delays) and delays[-1] == 10.0
    machine.started(12)
    machine.constructed(12)
    [start] = messages(machine.died(12))
    assert start.delay_s == 0.0


def test_a_life_that_is_moved_or_sent_again_waits_only_for_what_is_left() -> None:
    machine = Machine(max_restarts=-1)
    machine.do(NodeJoined(OTHER))
    for life in range(1, 8):
        machine.started(life)
        [start] = messages(machine.died(life))
    assert start.delay_s == pytest.approx(3.2)
    moved = messages(machine.do(ActorMoved(actor(), OTHER)))[-1]
    assert (moved.incarnation, moved.delay_s) == (9, pytest.approx(2.2))
    [again] = messages(machine.do(NodeLost(OTHER, "gone")))
    assert again.delay_s == pytest.approx(1.2)
    delays = [messages(machine.do(ActorMoved(actor(), NODE)))[-1].delay_s for _ in range(2)]
    assert delays == [pytest.approx(0.2), 0.0]
    machine.now = 0.0  # a GCS server whose clock is behind that of the former one
    assert messages(machine.do(ActorMoved(actor(), NODE)))[-1].delay_s == pytest.approx(3.2)


def test_minus_one_restarts_without_end() -> None:
    machine = Machine(max_restarts=-1)
    for life in range(1, 200):
        machine.started(life)
        if life % 2:
            machine.constructed(life)
        machine.died(life)
    assert (machine.record.state, machine.record.incarnation) == ("restarting", 200)
    assert len(machine.manager.story(actor())) == STORY_LINES_MAX


def test_leaving_by_itself_is_no_reason_to_restart() -> None:
    machine = Machine(max_restarts=-1).live()
    machine.died(intended=True)
    assert (machine.record.state, machine.record.death) == ("dead", "exited")


def test_a_life_that_moves_is_no_restart() -> None:
    machine = Machine(max_restarts=1).live()
    [start] = messages(machine.do(ActorWorkerDied(actor(), 1, "its node leaves", moved=True)))
    assert start.incarnation == 2 and machine.record.row()["restarts"] == 0
    machine.started(2)
    machine.constructed(2)
    [start] = messages(machine.died(2))
    assert start.incarnation == 3 and machine.record.row()["restarts"] == 1
    machine.died(3)
    assert machine.record.state == "dead"


@pytest.mark.parametrize("lived", [False, True])
def test_a_life_that_a_draining_node_gives_back_goes_elsewhere_or_waits(lived: bool) -> None:
    machine = Machine(max_restarts=1)
    if lived:
        machine.live()
        machine.died()
    life = machine.record.incarnation
    machine.do(ActorPlacementRefused(actor(), life, "this node drains", drains=True))
    assert machine.record.state == ("restarting" if lived else "pending")
    assert machine.record.incarnation == life


def test_who_has_moved_and_finds_no_place_waits_for_one() -> None:
    machine = Machine(max_restarts=1).live()
    machine.refusal = "no node has a gripper"
    machine.do(ActorWorkerDied(actor(), 1, "its node leaves", moved=True))
    assert (machine.record.state, machine.record.waits) == ("restarting", "no node has a gripper")


def test_kill_is_final_and_frees_the_name_at_once() -> None:
    machine = Machine(name="bob", max_restarts=-1).live()
    effects = machine.do(ActorKillAsked(actor(), no_restart=True))
    [stop] = messages(effects)
    assert (stop.kill, stop.incarnation) == (True, 1)
    assert states(effects) == ["dead"]
    assert machine.manager.find("space", "bob") is None
    assert machine.died() == []
    assert machine.do(ActorKillAsked(actor(), True)) == []


def test_kill_with_restart_ends_one_life() -> None:
    machine = Machine(max_restarts=1).live()
    effects = machine.do(ActorKillAsked(actor(), no_restart=False))
    assert [stop.kill for stop in messages(effects)] == [True] and states(effects) == []
    assert messages(machine.died())[0].incarnation == 2
    assert machine.do(ActorKillAsked(actor(), no_restart=False)) == []  # no worker yet
    machine.started(2)
    machine.constructed(2)
    machine.do(ActorKillAsked(actor(), no_restart=False))
    machine.died(2)
    assert machine.record.death == "crashed"


def test_kill_of_an_actor_that_waits_for_a_place() -> None:
    machine = Machine()
    effects = machine.do(ActorKillAsked(actor(), no_restart=True))
    assert [type(message) for message in messages(effects)] == [StopActor]
    assert machine.started() == [] and machine.constructed() == []
    assert machine.record.state == "dead"


def test_the_last_handle_lets_the_actor_finish_its_queue() -> None:
    machine = Machine(name="bob", max_restarts=-1).live()
    [stop] = messages(machine.do(ActorRefsGone(actor())))
    assert not stop.kill
    assert machine.record.state == "alive"
    assert machine.manager.find("space", "bob") is None
    assert machine.do(ActorRefsGone(actor())) == []
    machine.died()  # even when it crashes meanwhile
    assert (machine.record.state, machine.record.death) == ("dead", "unreferenced")


def test_the_last_handle_of_an_actor_under_construction() -> None:
    machine = Machine()
    machine.started()
    assert [stop.kill for stop in messages(machine.do(ActorRefsGone(actor())))] == [False]
    machine.constructed()
    machine.died(intended=True)
    assert machine.record.death == "unreferenced"


def test_the_last_handle_of_an_actor_without_a_worker() -> None:
    machine = Machine()
    effects = machine.do(ActorRefsGone(actor()))
    assert [stop.kill for stop in messages(effects)] == [True]
    assert machine.record.death == "unreferenced"


def test_detached_actors_outlive_handles_and_jobs() -> None:
    machine = Machine(name="bob", detached=True).live()
    assert machine.do(ActorRefsGone(actor())) == []
    assert machine.do(JobEnded(JOB, "over")) == []
    assert machine.record.state == "alive"


def test_the_end_of_a_job_is_the_end_of_its_actors() -> None:
    machine = Machine(name="bob").live()
    machine.do(ActorRequested(actor_spec(2), NODE))
    machine.do(ActorRequested(actor_spec(3, job_id=b"\0\0\0\2"), NODE))
    effects = machine.do(JobEnded(JOB, "the driver left"))
    assert [(stop.actor_id, stop.kill) for stop in messages(effects)] == [(actor(1), True), (actor(2), True)]
    assert [record.state for record in machine.manager.records()] == ["dead", "dead", "pending"]
    assert machine.record.death == "job_ended" and "the driver left" in machine.record.cause
    assert machine.manager.names() == []


def test_news_of_a_former_life_is_noted_and_ignored() -> None:
    machine = Machine(max_restarts=1).live()
    machine.died()
    assert machine.constructed(1) == [] and machine.died(1) == [] and machine.started(1) == []
    assert (machine.record.state, machine.record.incarnation) == ("restarting", 2)
    assert any("ignored" in line for line in machine.manager.story(actor()))
    machine.started(2)
    machine.constructed(2)
    assert machine.constructed(2) == []  # said twice
    assert machine.do(ActorConstructed(actor(77), 1)) == []  # never heard of


def test_names_are_kept_apart_by_namespace() -> None:
    machine = Machine(name="bob")
    machine.do(ActorRequested(actor_spec(2, name="bob", namespace="other"), NODE))
    assert machine.manager.find("other", "bob").spec.actor_id == actor(2)  # type: ignore[union-attr]
    assert machine.manager.names() == [("space", "bob", actor(1)), ("other", "bob", actor(2))]
    with pytest.raises(AssertionError, match="taken"):
        machine.do(ActorRequested(actor_spec(3, name="bob"), NODE))


def test_the_death_of_a_node_moves_its_actors() -> None:
    machine = Machine(max_restarts=1).live()
    machine.do(ActorRequested(actor_spec(2), NODE))
    machine.do(ActorRequested(actor_spec(3), NODE))
    machine.do(ActorWorkerStarted(actor(3), 1, b"v" * 16, "", 1, 1))
    machine.do(NodeJoined(OTHER))
    effects = machine.do(NodeLost(NODE, "unplugged"))
    starts = [effect for effect in effects if type(effect) is SendToNode]
    assert [(effect.node_id, effect.message.actor_id, effect.message.incarnation) for effect in starts] == [
        (OTHER, actor(1), 2),
        (OTHER, actor(2), 1),  # it had not begun anywhere: no life is charged
    ]
    assert machine.manager.get(actor(3)).death == "crashed"  # type: ignore[union-attr]


def test_without_a_node_an_actor_waits_for_one() -> None:
    machine = Machine(max_restarts=1).live()
    assert messages(machine.do(NodeLost(NODE, "unplugged"))) == []
    assert machine.record.state == "restarting"
    assert [message.incarnation for message in messages(machine.do(NodeJoined(OTHER)))] == [2]


def test_the_dead_are_remembered_for_a_while_without_their_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor_manager, "ACTORS_DEAD_MAX", 3)
    machine = Machine()
    for number in range(1, 7):
        if number > 1:
            machine.do(ActorRequested(actor_spec(number), NODE))
        effects = machine.manager.handle(ActorKillAsked(actor(number), True), 0.0)
        forgotten = [effect.actor_id for effect in effects if type(effect) is StoreActor and effect.record is None]
        assert forgotten == ([actor(number - 3)] if number > 3 else [])
    assert [record.spec.actor_id for record in machine.manager.records()] == [actor(4), actor(5), actor(6)]
    assert machine.manager.get(actor(6)).spec.arguments == b""  # type: ignore[union-attr]
    version, state = machine.manager.state_of(actor(1))
    assert (version, state.state, state.death) == (0, "dead", "forgotten")
    assert machine.manager.story(actor(1)) == []


def test_our_own_mistake_tells_the_story() -> None:
    machine = Machine().live()
    with pytest.raises(InvalidTransitionError, match=r"alive \+ constructed(.|\n)*requested: Counter"):
        machine.manager._move(machine.record, "constructed", 1.0, "")


def test_the_table_is_closed() -> None:
    for state, triggers in TRANSITIONS.items():
        assert set(triggers.values()) <= set(TRANSITIONS), state
    assert TRANSITIONS["dead"] == {}


# ---------------------------------------------------------------- anything may happen

ACTORS = st.integers(1, 3).map(actor)
LIVES = st.integers(1, 4)
EVENTS = st.one_of(
    st.builds(ActorWorkerStarted, ACTORS, LIVES, st.just(b"w" * 16), st.just("a"), st.just(1), st.just(1)),
    st.builds(ActorConstructed, ACTORS, LIVES, st.sampled_from([b"", b"", b"error"])),
    st.builds(ActorPlacementRefused, ACTORS, LIVES, st.just("never")),
    st.builds(ActorWorkerDied, ACTORS, LIVES, st.just("cause"), st.booleans()),
    st.builds(ActorRefsGone, ACTORS),
    st.builds(ActorKillAsked, ACTORS, st.booleans()),
    st.builds(JobEnded, st.just(JOB), st.just("over")),
    st.builds(NodeJoined, st.sampled_from([NODE, OTHER])),
    st.builds(NodeLost, st.sampled_from([NODE, OTHER]), st.just("gone")),
)


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(EVENTS, max_size=40))
def test_what_is_always_true(events: list[Any]) -> None:
    machine = Machine(name="one", max_restarts=2)
    machine.do(ActorRequested(actor_spec(2, name="two", detached=True, max_restarts=-1), NODE))
    machine.do(ActorRequested(actor_spec(3), NODE))
    versions: dict[bytes, int] = {}
    finals: set[bytes] = set()
    nodes = {NODE}
    for event in events:
        if type(event) is NodeJoined:
            nodes.add(event.node_id)
        elif type(event) is NodeLost:
            nodes.discard(event.node_id)
        for effect in machine.do(event):
            if type(effect) is SendToNode:
                assert effect.node_id in nodes
            elif type(effect) is AnnounceActor:
                actor_id = effect.state.actor_id
                assert actor_id not in finals and effect.version > versions.get(actor_id, 0)
                versions[actor_id] = effect.version
                if effect.final:
                    finals.add(actor_id)
        for record in machine.manager.records():
            limit = record.spec.max_restarts
            assert limit < 0 or record.incarnation <= limit + 1
            assert (record.state == "dead") == bool(record.death) == (record.spec.actor_id in finals)
            named = machine.manager.find(record.spec.namespace, record.spec.name) is record
            assert named == bool(record.spec.name and record.state != "dead" and not record.stopping)
