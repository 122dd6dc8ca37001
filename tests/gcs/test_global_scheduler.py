"""The global scheduler: single rules, and a random world in which everybody is served or told why not."""

from __future__ import annotations

import random
from typing import Any

import pytest

from shoal.gcs.global_scheduler import (
    LOOK_S,
    MOVE_AFTER_S,
    QUEUED_AFTER_S,
    QUEUES_MAX,
    ActorPlaced,
    ActorSettled,
    ActorWanted,
    AskActorsAgain,
    GlobalScheduler,
    NodeAway,
    NodeDrains,
    NodeGone,
    NodeSpoke,
    NodeUp,
    TellPlaced,
    TimePassed,
    Wanted,
)
from shoal.gcs.node_views import PROMISE_SEEN_S, PROMISED_S, REPLACED_WITHIN_S, SAMPLE_MAX, NodeViews
from shoal.protocol import strategies
from shoal.protocol.gcs_messages import NodeLoad, PlaceLeases
from shoal.scheduling.node_policy import Wish, can_ever

CPU = 10_000
A, B, C = b"a" * 16, b"b" * 16, b"c" * 16


class Nodes:
    """A scheduler, and what it answered last."""

    def __init__(self, **cpus: int) -> None:
        self.machine = GlobalScheduler(lambda below: 0)
        self.now = 100.0
        self.cpus = {name.encode() * 16: count for name, count in cpus.items()}
        for node_id, count in self.cpus.items():
            self.feed(NodeUp(node_id, node_id[:1].decode(), {"CPU": count * CPU}, {}))

    def feed(self, event: Any) -> list[Any]:
        """(asker, placements or refusal) of each answer."""
        found = []
        for told in self.machine.handle(event, self.now):
            if type(told) is AskActorsAgain:
                continue
            assert type(told) is TellPlaced
            found.append((told.node_id, told.message.refused or dict(told.message.placements)))
        return found

    def speak(self, node_id: bytes, free: int, queued: int = 0) -> list[Any]:
        total = {"CPU": self.cpus[node_id] * CPU}
        return self.feed(NodeSpoke(node_id, NodeLoad(1, {"CPU": free * CPU}, total, [({}, queued)], 0.1)))

    def want(self, backlog: int, cpus: int = 1, asker: bytes = A, class_no: int = 0, **more: Any) -> list[Any]:
        return self.feed(Wanted(asker, PlaceLeases(b"p", class_no, b"job1", {"CPU": cpus * CPU}, backlog, **more)))

    def waiting(self) -> int:
        return self.machine.statistics()["waiting"]


@pytest.fixture
def nodes() -> Nodes:
    made = Nodes(a=4, b=4, c=4)
    for node_id, free in ((A, 0), (B, 4), (C, 2)):
        made.speak(node_id, free)
    return made


def test_what_fits_is_placed_the_rest_waits_in_order(nodes: Nodes) -> None:
    assert nodes.want(8) == [(A, {B: 4, C: 2})]
    assert nodes.want(3, class_no=1) == [] and nodes.waiting() == 5
    nodes.now += 1.0
    assert nodes.speak(B, 0) == []
    assert nodes.speak(C, 3) == [(A, {C: 2}), (A, {C: 1})]
    assert [row["class_no"] for row in nodes.machine.demands(10)] == [1]
    assert nodes.want(0, class_no=1) == [] and nodes.waiting() == 0
    assert nodes.machine.next_deadline() is None


def test_a_repeated_request_replaces_the_former(nodes: Nodes) -> None:
    nodes.want(8)
    nodes.want(5)
    assert nodes.waiting() == 5
    nodes.want(9)
    assert nodes.waiting() == 9


def test_a_promise_holds_until_its_node_can_know(nodes: Nodes) -> None:
    assert nodes.want(4) == [(A, {B: 3, C: 1})]
    nodes.now += PROMISE_SEEN_S / 2
    nodes.speak(B, 4)  # said before it could know
    assert nodes.want(4, class_no=1) == [(A, {C: 1, B: 1})]
    nodes.now += PROMISE_SEEN_S
    assert nodes.speak(B, 4) == [(A, {B: 2})]  # nobody used the promises


def test_a_promise_ends_by_time(nodes: Nodes) -> None:
    nodes.want(6)
    assert nodes.want(6, class_no=1) == []
    deadline = nodes.machine.next_deadline()
    assert deadline is not None and deadline <= nodes.now + LOOK_S
    nodes.now += PROMISED_S
    assert nodes.feed(TimePassed()) == [(A, {B: 4}), (A, {C: 2})]


def test_room_is_offered_to_those_it_fits(nodes: Nodes) -> None:
    nodes.want(6)
    nodes.want(1, cpus=3, class_no=1)
    nodes.want(1, class_no=2)
    nodes.now += 1.0
    assert nodes.speak(B, 1) == [(A, {B: 1})]
    assert [row["class_no"] for row in nodes.machine.demands(10)] == [1]


def test_who_waits_long_is_queued_at_some_nodes_too(nodes: Nodes) -> None:
    for node_id in (B, C):
        nodes.speak(node_id, 0, queued=9 if node_id == B else 1)
    assert nodes.want(1, cpus=4) == []
    found = []
    for _ in range(100):
        nodes.now += QUEUED_AFTER_S / 10
        found += nodes.feed(TimePassed())
    assert found == [(A, {C: 1}), (A, {B: 1})]  # the shorter queue first; at home it waits anyway
    assert nodes.waiting() == 1 and len(found) <= QUEUES_MAX


def test_what_is_queued_is_said_to_be_and_goes_wherever_room_comes_first(nodes: Nodes) -> None:
    """A node dies, eight chains wait on two that are full: the node that joins gets all that it has room for, and a dead one's queue is another's."""
    for node_id in (B, C):
        nodes.speak(node_id, 0)
    assert nodes.want(4) == []
    answers = []
    for _ in range(2):
        nodes.now += QUEUED_AFTER_S
        answers += nodes.machine.handle(TimePassed(), nodes.now)
    assert [(told.message.placements, told.message.queued) for told in answers if type(told) is TellPlaced] == [
        ([(B, 1)], True),
        ([(C, 1)], True),
    ]
    assert nodes.waiting() == 4
    nodes.feed(NodeGone(C))
    joined = b"d" * 16
    nodes.cpus[joined] = 3
    nodes.feed(NodeUp(joined, "d", {"CPU": 3 * CPU}, {}))
    [told] = nodes.machine.handle(NodeSpoke(joined, NodeLoad(1, {"CPU": 3 * CPU}, {"CPU": 3 * CPU})), nodes.now)
    assert type(told) is TellPlaced and told.message.placements == [(joined, 3)] and not told.message.queued
    nodes.speak(joined, 0)
    nodes.now += QUEUED_AFTER_S
    assert nodes.feed(TimePassed()) == [(A, {joined: 1})] and nodes.waiting() == 1


def test_an_actor_that_may_not_begin_yet_is_not_stuck_and_hides_nobody_who_is() -> None:
    nodes = Nodes(a=1, b=1)
    for node_id in (A, B):
        nodes.speak(node_id, 1)

    def want(actor_id: bytes, begins_s: float) -> list[Any]:
        wanted = ActorWanted(actor_id, A, True, {"CPU": CPU}, {}, "Flaky", b"job1", begins_s)
        return nodes.machine.handle(wanted, nodes.now)

    def look() -> list[Any]:
        return [e for e in nodes.machine.handle(TimePassed(), nodes.now) if type(e) is ActorPlaced]

    assert want(b"flaky", nodes.now + 10.0) == [ActorPlaced(b"flaky", A)]
    assert want(b"stuck", 0.0) == [ActorPlaced(b"stuck", A)]
    nodes.now += MOVE_AFTER_S + LOOK_S
    assert look() == [ActorPlaced(b"stuck", B)]
    nodes.now += 9.0
    nodes.speak(A, 0)
    nodes.speak(B, 1)
    assert ActorPlaced(b"flaky", B) not in look()
    nodes.machine.handle(ActorSettled(b"stuck"), nodes.now)
    nodes.now += 2.0 + MOVE_AFTER_S
    assert look() == [ActorPlaced(b"flaky", B)]


def test_what_no_node_can_ever_give_is_refused_with_the_reason(nodes: Nodes) -> None:
    [(asker, reason)] = nodes.want(1, cpus=5)
    assert asker == A and "asks for 5 CPU" in reason and nodes.waiting() == 0
    [(_, reason)] = nodes.want(1, strategy=strategies.node_affinity(b"x" * 16, False))
    assert "dead or was never part" in reason
    nodes.cpus[C] = 8
    nodes.feed(NodeGone(C))
    nodes.feed(NodeUp(C, "c", {"CPU": 8 * CPU}, {}))
    assert nodes.want(1, cpus=8) == []
    assert nodes.feed(NodeAway(C)) == []  # it may come back
    assert nodes.feed(NodeGone(C)) == []  # another one like it may come
    nodes.now += REPLACED_WITHIN_S
    [(asker, reason)] = nodes.feed(TimePassed())
    assert asker == A and "asks for 8 CPU" in reason
    assert nodes.machine.next_deadline() is None


def test_what_only_a_dead_node_could_serve_waits_for_another_one_for_a_while(nodes: Nodes) -> None:
    nodes.feed(NodeUp(b"d" * 16, "d", {"CPU": 8 * CPU}, {}))
    assert nodes.want(1, cpus=8) == []
    assert nodes.feed(NodeGone(b"d" * 16)) == []
    assert nodes.want(1, cpus=8, class_no=1) == [] and nodes.waiting() == 2
    assert [reason for _, reason in nodes.want(1, cpus=9, class_no=2) if "asks for 9 CPU" in reason]
    assert nodes.want(1, class_no=3, strategy=strategies.node_affinity(b"d" * 16, False)) != []
    nodes.now += REPLACED_WITHIN_S
    refused = nodes.feed(TimePassed())
    assert len(refused) == 2 and all("asks for 8 CPU" in reason for _, reason in refused)
    assert nodes.waiting() == 0


def test_the_last_node_that_could_drains(nodes: Nodes) -> None:
    nodes.want(1, strategy=strategies.node_affinity(C, True))
    assert nodes.feed(NodeAway(C)) == []
    assert nodes.want(1, class_no=2, strategy=strategies.node_affinity(C, False)) == []
    [(_, reason)] = nodes.feed(NodeDrains(C))
    assert "draining" in reason


def test_a_node_that_returns_is_asked_for_what_waits_for_it(nodes: Nodes) -> None:
    nodes.feed(NodeAway(C))
    assert nodes.want(2, strategy=strategies.node_affinity(C, False)) == []
    assert nodes.feed(NodeUp(C, "c", {"CPU": 4 * CPU}, {})) == [(A, {C: 2})]


def test_what_a_lost_node_wanted_is_forgotten(nodes: Nodes) -> None:
    nodes.want(9)
    nodes.feed(NodeAway(A))
    assert nodes.waiting() == 0 and nodes.speak(B, 4) == []


class RandomWorld:
    """Nodes that run what is placed there for a while; messages take up to 10 ms, heartbeats come every 0.5 s and soon after changes. Of what is
    queued besides, nodes say when it has begun, and take it back when all is placed, as `scheduling.forwarding` does."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.machine = GlobalScheduler(self.rng.randrange)
        self.now = 0.0
        self.cpus = {bytes([65 + number]) * 16: self.rng.randint(1, 8) for number in range(self.rng.randint(2, 6))}
        self.running: dict[bytes, list[tuple[float, int]]] = {node_id: [] for node_id in self.cpus}
        #: (asker, class) -> (CPUs, wanted and not begun)
        self.open: dict[tuple[bytes, int], list[int]] = {}
        #: what the global scheduler still owes each, as its node counts
        self.asked: dict[tuple[bytes, int], int] = {}
        #: (who, CPUs, whether it is queued besides)
        self.queues: dict[bytes, list[tuple[tuple[bytes, int], int, bool]]] = {node_id: [] for node_id in self.cpus}
        #: (when, what): messages to nodes on their way
        self.mail: list[tuple[float, Any]] = []
        self.alive = set(self.cpus)
        self.refused: dict[tuple[bytes, int], int] = {}
        for node_id, count in self.cpus.items():
            self.feed(NodeUp(node_id, node_id[:1].decode(), {"CPU": count * CPU}, {}))

    def feed(self, event: Any) -> None:
        for told in self.machine.handle(event, self.now):
            if type(told) is TellPlaced:
                self.mail.append((self.now + self.rng.uniform(0, 0.01), told))

    def free(self, node_id: bytes) -> int:
        return self.cpus[node_id] - sum(cpus for _, cpus in self.running[node_id])

    def speak(self, node_id: bytes) -> None:
        queued = len(self.queues[node_id])
        total = {"CPU": self.cpus[node_id] * CPU}
        self.feed(NodeSpoke(node_id, NodeLoad(1, {"CPU": self.free(node_id) * CPU}, total, [({}, queued)], 0.05)))

    def ask(self, key: tuple[bytes, int]) -> None:
        self.say(key, self.open[key][1])

    def say(self, key: tuple[bytes, int], backlog: int) -> None:
        self.asked[key] = backlog
        asker, class_no = key
        cpus = self.open[key][0]
        self.feed(Wanted(asker, PlaceLeases(b"p", class_no, b"job1", {"CPU": cpus * CPU}, backlog)))
        if not backlog:
            self.unqueue(key)

    def unqueue(self, key: tuple[bytes, int]) -> None:
        for node_id, queue in self.queues.items():
            self.queues[node_id] = [each for each in queue if not (each[2] and each[0] == key)]

    def deliver(self, told: TellPlaced) -> None:
        key = (told.node_id, told.message.class_no)
        if key not in self.open:
            return
        if told.message.refused:
            self.refused[key] = self.open.pop(key)[0]
            return
        queued = told.message.queued
        for node_id, count in told.message.placements:
            if queued and not self.asked[key]:
                continue
            if node_id in self.alive:
                self.queues[node_id] += [(key, self.open[key][0], queued)] * count
            if not queued:
                self.asked[key] = max(0, self.asked[key] - count)
                if not self.asked[key]:
                    self.unqueue(key)

    def step(self) -> None:
        self.now += 0.01
        due = [told for at, told in self.mail if at <= self.now]
        self.mail = [(at, told) for at, told in self.mail if at > self.now]
        for told in due:
            self.deliver(told)
        for node_id in sorted(self.alive):
            before = self.free(node_id)
            self.running[node_id] = [(until, cpus) for until, cpus in self.running[node_id] if until > self.now]
            for key, cpus, queued in list(self.queues[node_id]):
                if (key, cpus, queued) not in self.queues[node_id]:
                    continue  # taken back just now
                if key not in self.open:
                    self.queues[node_id].remove((key, cpus, queued))
                elif cpus <= self.free(node_id):
                    self.queues[node_id].remove((key, cpus, queued))
                    self.running[node_id].append((self.now + self.rng.expovariate(10), cpus))
                    self.open[key][1] -= 1
                    if not self.open[key][1]:
                        self.say(key, 0)
                        del self.open[key]
                    elif queued:
                        self.say(key, self.asked[key] - 1)
            assert self.free(node_id) >= 0
            if self.free(node_id) != before or self.rng.random() < 0.02:
                self.speak(node_id)
        deadline = self.machine.next_deadline()
        if deadline is not None and deadline <= self.now:
            self.feed(TimePassed())

    def kill(self) -> None:
        node_id = self.rng.choice(sorted(self.alive))
        self.alive.discard(node_id)
        self.feed(NodeAway(node_id))
        self.feed(NodeGone(node_id))
        self.queues[node_id].clear()
        for key in [key for key in self.open if key[0] == node_id]:
            del self.open[key]
        for key in self.open:  # their nodes hear of the death, and ask again for what was placed there
            self.ask(key)

    def run(self) -> None:
        for number in range(300):
            if self.rng.random() < 0.2:
                asker = self.rng.choice(sorted(self.alive))
                self.open[asker, number] = [self.rng.randint(1, 9), self.rng.randint(1, 6)]
                self.ask((asker, number))
            if self.rng.random() < 0.005 and len(self.alive) > 2:
                self.kill()
            self.step()
        for _ in range(6000):
            if not self.open:
                break
            self.step()


@pytest.mark.parametrize("sample", [64, 2])
@pytest.mark.parametrize("seed", range(30))
def test_in_a_random_world_everybody_is_served_or_told_why_not(
    seed: int, sample: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.gcs.node_views.SAMPLE_MAX", sample)
    monkeypatch.setattr("shoal.gcs.node_views.SCANNED_MAX", sample + 1)
    world = RandomWorld(seed)
    world.run()
    # What only its own node can do is not the global scheduler's business.
    left = {
        key: cpus
        for key, (cpus, _) in world.open.items()
        if any(world.cpus[node_id] >= cpus for node_id in world.alive if node_id != key[0])
    }
    assert not left
    assert world.machine.statistics()["waiting"] == sum(count for _, count in world.open.values())
    largest = max(world.cpus[node_id] for node_id in world.alive)
    assert all(cpus > largest or world.alive != set(world.cpus) for cpus in world.refused.values())


def test_of_many_nodes_those_with_room_are_found_and_few_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def counted(view: Any, wish: Any) -> bool:
        nonlocal looks
        looks += 1
        return can_ever(view, wish)

    rng = random.Random(1)
    views = NodeViews()
    for number in range(2000):
        view = views.up(number.to_bytes(16, "big"), f"n{number}", {"CPU": 4 * CPU}, {"rack": str(number % 7)})
        views.spoke(view, NodeLoad(1, {"CPU": CPU if number % 50 == 0 else 0}, {"CPU": 4 * CPU}), 0.0)
    wish = Wish({"CPU": CPU})
    shape = views.shape(wish)
    monkeypatch.setattr("shoal.gcs.node_views.can_ever", counted)
    found = views.with_room(views.shape(wish), wish, 100, rng.randrange)
    assert len(found) == 40 and looks <= 40  # all with room, and nobody else was looked at
    for view in found:
        views.promise(view, wish.demand, 1, 0.0)
    assert views.with_room(shape, wish, 1, rng.randrange) == []
    assert len(views.any_of(shape, wish, rng.randrange)) == SAMPLE_MAX
    assert len(views.end_promises(PROMISED_S)) == 40 and len(views.with_room(shape, wish, 3, rng.randrange)) == 14
    named = Wish({"CPU": CPU}, strategies.node_affinity((7).to_bytes(16, "big"), True))
    assert views.get((7).to_bytes(16, "big")) in views.with_room(views.shape(named), named, 1, rng.randrange)
    rare = Wish({"CPU": CPU}, strategies.labels([("rack", strategies.IN, ["3"])], []))
    assert all(view.labels["rack"] == "3" for view in views.any_of(views.shape(rare), rare, rng.randrange))


def test_who_asks_for_much_has_all_that_is_free_at_once() -> None:
    """Many nodes speak seldom: who had to wait for what a sample did not show waited for them, one by one."""
    machine = GlobalScheduler(random.Random(1).randrange)
    ids = [number.to_bytes(16, "big") for number in range(5 * SAMPLE_MAX)]
    for node_id in ids:
        machine.handle(NodeUp(node_id, "n", {"CPU": 4 * CPU}, {}), 1.0)
        machine.handle(NodeSpoke(node_id, NodeLoad(1, {"CPU": 2 * CPU}, {"CPU": 4 * CPU})), 1.0)
    [told] = machine.handle(Wanted(A, PlaceLeases(b"p", 0, b"job1", {"CPU": CPU}, 10_000)), 1.0)
    assert type(told) is TellPlaced
    assert sorted(told.message.placements) == [(node_id, 2) for node_id in ids]
    assert machine.statistics()["waiting"] == 10_000 - 2 * len(ids)


def test_nodes_with_room_agree_with_a_dumb_list() -> None:
    rng = random.Random(2)
    views = NodeViews()
    free: dict[bytes, int] = {}
    for step in range(3000):
        node_id = rng.randrange(12).to_bytes(16, "big")
        view = views.get(node_id)
        if view is None:
            views.up(node_id, "n", {"CPU": 9 * CPU}, {})
            free[node_id] = 0
        elif rng.random() < 0.05:
            views.gone(node_id, float(step))
            del free[node_id]
        else:
            free[node_id] = rng.randrange(3)
            views.spoke(view, NodeLoad(1, {"CPU": free[node_id] * CPU}, {"CPU": 9 * CPU}), float(step))
        roomy = {each.node_id for each in views._roomy.views}
        assert roomy == {each for each, cpus in free.items() if cpus} and len(roomy) == len(views._roomy.views)
