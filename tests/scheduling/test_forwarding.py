"""Forwarding: single rules, and a random world in which no submitter may wait in vain."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest

from shoal.protocol.messages import LeaseGranted, LeasesUnschedulable, RequestLeases, WorkerDied
from shoal.scheduling import forwarding as fw

SELF, OTHER, THIRD = b"s" * 16, b"o" * 16, b"t" * 16
P = b"p" * 16


def request(backlog: int, class_no: int = 0, **strategy: Any) -> RequestLeases:
    return RequestLeases(class_no, b"job1", {"CPU": 10_000}, 1, backlog, strategy)


def machine() -> fw.Forwarding:
    made = fw.Forwarding(SELF)
    made.join_cluster()
    return made


def grant(number: int, class_no: int = 0) -> LeaseGranted:
    return LeaseGranted(class_no, number, b"w%015d" % number, "tcp:h:1/aa", 7)


def test_a_plain_request_stays_here() -> None:
    assert machine().handle(fw.Requested(P, request(3))) == [fw.RequestHere(P, request(3))]


def test_what_is_refused_here_is_asked_of_the_cluster_and_alone_told() -> None:
    lone = fw.Forwarding(SELF)
    lone.handle(fw.Requested(P, request(3)))
    assert lone.handle(fw.RefusedHere(P, 0, "no GPU")) == [fw.TellProcess(P, LeasesUnschedulable(0, "no GPU"))]
    many = machine()
    many.handle(fw.Requested(P, request(3)))
    assert many.handle(fw.RefusedHere(P, 0, "no GPU")) == [fw.AskGlobal(P, request(3), 3)]
    assert many.handle(fw.Placed(P, 0, [], "nobody has a GPU")) == [
        fw.AskGlobal(P, request(3), 0),
        fw.TellProcess(P, LeasesUnschedulable(0, "nobody has a GPU")),
    ]


def test_overdue_is_placed_granted_and_taken_back() -> None:
    made = machine()
    made.handle(fw.Requested(P, request(10)))
    assert made.handle(fw.Overdue(P, 0, 8)) == [fw.AskGlobal(P, request(10), 8)]
    assert made.handle(fw.Overdue(P, 0, 7)) == []  # about the same
    assert made.handle(fw.Placed(P, 0, [(OTHER, 3)])) == [fw.AskNode(OTHER, P, request(10), 3)]
    assert made.handle(fw.GrantedAbroad(OTHER, P, grant(5))) == [fw.TellProcess(P, grant(5))]
    assert made.node_of_lease(5) == OTHER and made.node_of_lease(6) == b""
    assert made.handle(fw.Requested(P, request(0))) == [
        fw.RequestHere(P, request(0)),
        fw.AskGlobal(P, request(10), 0),
        fw.AskNode(OTHER, P, request(10), 0),
    ]
    made.handle(fw.EndedAbroad(5))
    assert made.statistics() == {"classes_abroad": 0, "leases_abroad": 0}


def test_spread_goes_through_the_global_scheduler_and_may_come_back() -> None:
    made = machine()
    spread = request(4, kind="SPREAD")
    assert made.handle(fw.Requested(P, spread)) == [fw.AskGlobal(P, spread, 4)]
    assert made.handle(fw.Placed(P, 0, [(SELF, 2), (OTHER, 2)])) == [
        fw.RequestHere(P, spread, 2),
        fw.AskNode(OTHER, P, spread, 2),
    ]


def test_a_node_that_dies_ends_its_leases_and_is_asked_for_elsewhere() -> None:
    made = machine()
    made.handle(fw.Requested(P, request(10)))
    made.handle(fw.Overdue(P, 0, 8))
    made.handle(fw.Placed(P, 0, [(OTHER, 8)]))
    made.handle(fw.GrantedAbroad(OTHER, P, grant(5)))
    told = made.handle(fw.NodeDied(OTHER, "killed"))
    assert told == [
        fw.TellProcess(P, WorkerDied(grant(5).worker_id, 5, fw.ALL_STARTED, "killed", 0)),
        fw.AskGlobal(P, request(10), 7),
    ]


def test_a_replica_that_names_a_dead_node_is_told_and_asked_again() -> None:
    """Nobody tells the shards beyond the first of deaths. What is sent to a dead node is dropped: its tasks waited for good."""
    made = machine()
    made.handle(fw.NodeDied(OTHER, "killed"))
    made.handle(fw.Requested(P, request(10)))
    made.handle(fw.Overdue(P, 0, 8))
    assert made.handle(fw.Placed(P, 0, [(OTHER, 5), (THIRD, 3)])) == [
        fw.AskNode(THIRD, P, request(10), 3),
        fw.AskGlobal(P, request(10), 5, dead=[OTHER]),
    ]
    assert made.handle(fw.Placed(P, 0, [(OTHER, 1)], queued=True)) == [fw.AskGlobal(P, request(10), 5, dead=[OTHER])]
    assert made.handle(fw.Placed(P, 0, [(THIRD, 5)])) == [fw.AskNode(THIRD, P, request(10), 8)]


def test_a_dead_process_is_told_of_and_its_late_leases_given_back() -> None:
    made = machine()
    made.handle(fw.Requested(P, request(10)))
    made.handle(fw.Overdue(P, 0, 8))
    made.handle(fw.Placed(P, 0, [(OTHER, 8)]))
    gone = made.handle(fw.ProcessDied(P, b"job1", "exit"))
    assert gone[-1] == fw.TellProcessDied(OTHER, P, b"job1", "exit")
    assert made.handle(fw.GrantedAbroad(OTHER, P, grant(5))) == [fw.GiveBack(OTHER, 5)]


def test_refusals_of_nodes_end_in_words() -> None:
    made = machine()
    made.handle(fw.Requested(P, request(1)))
    made.handle(fw.RefusedHere(P, 0, "no"))
    for _ in range(fw.REFUSALS_MAX):
        made.handle(fw.Placed(P, 0, [(OTHER, 1)]))
        assert [type(effect) for effect in made.handle(fw.RefusedAbroad(OTHER, P, 0, "nor here"))] == [fw.AskGlobal]
    made.handle(fw.Placed(P, 0, [(OTHER, 1)]))
    last = made.handle(fw.RefusedAbroad(OTHER, P, 0, "nor here"))
    assert last[-1] == fw.TellProcess(P, LeasesUnschedulable(0, "nor here"))


def test_what_waits_here_too_is_told_by_quarters_and_the_rest_exactly() -> None:
    made = machine()
    made.handle(fw.Requested(P, request(100)))
    asked = []
    for backlog in (40, 41, 49, 50, 30, 13, 4, 3, 2, 1):
        asked += [effect.backlog for effect in made.handle(fw.Overdue(P, 0, backlog)) if type(effect) is fw.AskGlobal]
    assert asked == [40, 50, 3]
    made = machine()
    spread = [made.handle(fw.Requested(P, request(backlog, kind="SPREAD"))) for backlog in (40, 41, 20, 2)]
    assert [len(effects) for effects in spread] == [1, 1, 0, 1]  # it waits nowhere else


def waits_for_four(*queued: bytes) -> fw.Forwarding:
    """Four leases are asked of the global scheduler, which has queued one at each of some nodes."""
    made = machine()
    made.handle(fw.Requested(P, request(8)))
    made.handle(fw.Overdue(P, 0, 4))
    for node_id in queued:
        assert made.handle(fw.Placed(P, 0, [(node_id, 1)], queued=True)) == [fw.AskNode(node_id, P, request(8), 1)]
    return made


def test_what_is_queued_at_nodes_without_room_is_still_asked_for() -> None:
    made = waits_for_four(OTHER, THIRD)
    assert made.handle(fw.Overdue(P, 0, 4)) == []  # all four, not the two that are queued nowhere
    assert made.handle(fw.Overdue(P, 0, 8)) == [fw.AskGlobal(P, request(8), 8)]
    assert made.handle(fw.Placed(P, 0, [(OTHER, 1)], queued=True)) == [fw.AskNode(OTHER, P, request(8), 1)]  # a new GCS


def test_what_is_queued_is_taken_back_when_all_is_placed() -> None:
    made = waits_for_four(OTHER, THIRD)
    joined = b"j" * 16
    assert made.handle(fw.Placed(P, 0, [(joined, 3)])) == [fw.AskNode(joined, P, request(8), 3)]
    assert made.handle(fw.Placed(P, 0, [(OTHER, 1)])) == [
        fw.AskNode(OTHER, P, request(8), 1),  # now that it has room; what was queued there goes
        fw.AskNode(THIRD, P, request(8), 0),
    ]
    late = made.handle(fw.GrantedAbroad(THIRD, P, grant(5)))  # it had granted before it heard
    assert late == [fw.TellProcess(P, grant(5))]
    assert made.handle(fw.Placed(P, 0, [(THIRD, 1)], queued=True)) == [
        fw.AskGlobal(P, request(8), 0)
    ]  # nothing is asked


def test_a_queue_that_grants_leaves_less_to_be_placed() -> None:
    made = waits_for_four(OTHER, THIRD)
    assert made.handle(fw.GrantedAbroad(OTHER, P, grant(5))) == [
        fw.AskGlobal(P, request(8), 3),
        fw.TellProcess(P, grant(5)),
    ]
    made.handle(fw.Placed(P, 0, [(OTHER, 2)]))
    assert made.handle(fw.GrantedAbroad(THIRD, P, grant(6))) == [
        fw.AskGlobal(P, request(8), 0),
        fw.TellProcess(P, grant(6)),
    ]


def test_nodes_in_whose_queues_it_waits_may_die_or_refuse() -> None:
    made = waits_for_four(OTHER, THIRD)
    assert made.handle(fw.NodeDied(OTHER, "killed")) == []  # all of it is asked for
    assert made.handle(fw.RefusedAbroad(THIRD, P, 0, "draining")) == []
    assert made.handle(fw.Requested(P, request(0))) == [
        fw.RequestHere(P, request(0)),
        fw.AskGlobal(P, request(8), 0),
    ]


class World:
    """One submitter as `runtime.submitter` counts, this node, a global scheduler that places (with `queues` it queues, too) at random, and other
    nodes; channels keep order."""

    def __init__(self, seed: int, strategy: dict[str, Any], queues: bool = False, full: bytes = b"") -> None:
        self.dice = random.Random(seed)
        self.queues = queues
        self.machine = machine()
        self.strategy = strategy
        self.tasks = self.told = 0
        self.done = 0
        self.here = 0  #: the local scheduler's backlog
        self.free = {SELF: 1, OTHER: 2, THIRD: 1}
        self.alive = {SELF, OTHER, THIRD}
        if full:
            self.free[full] = 0  # others run there without end
        self.anywhere = False  #: inputs were not to be looked at when the global scheduler was asked last
        self.now = 0.0
        self.named = set(self.alive)  #: by the global scheduler, which hears of deaths from who asks it
        self.asked = 0  #: of the global scheduler
        self.abroad = dict.fromkeys((OTHER, THIRD), 0)
        self.channels: dict[Any, deque[Any]] = {
            name: deque()
            for name in ("up", "down", "gcs", "placed", (OTHER, "to"), (OTHER, "from"), (THIRD, "to"), (THIRD, "from"))
        }
        self.leases: dict[int, bytes] = {}
        self.last = 0

    def say(self, backlog: int) -> None:
        if backlog != self.told:
            self.told = backlog
            self.channels["up"].append(backlog)

    def submit(self, count: int) -> None:
        self.tasks += count
        if self.tasks >= 2 * self.told:
            self.say(self.tasks)

    def granted(self, lease: int) -> None:
        """As Submitter.on_granted: a lease serves one task here, to make it hard."""
        self.told = max(0, self.told - 1)
        if self.tasks:
            self.tasks -= 1
            self.done += 1
            if not self.tasks and self.told:
                self.say(0)
        elif self.told == 0 and self.tasks:
            self.say(self.tasks)
        node = self.leases.pop(lease, None)
        if node is not None:
            self.free[node] += 1
        if self.tasks and self.told == 0:
            self.say(self.tasks)

    def feed(self, event: fw.Event) -> None:
        for effect in self.machine.handle(event):
            if isinstance(effect, fw.RequestHere):
                self.here = self.here + effect.more if effect.more else effect.request.backlog
            elif isinstance(effect, fw.AskGlobal):
                self.channels["gcs"].append((effect.backlog, effect.dead))
                self.anywhere = effect.anywhere
            elif isinstance(effect, fw.AskNode):
                self.channels[effect.node_id, "to"].append(effect.backlog)
            elif isinstance(effect, fw.TellProcess):
                self.channels["down"].append(effect.message)

    def grant(self, node: bytes) -> None:
        self.last += 1
        self.free[node] -= 1
        self.leases[self.last] = node
        if node == SELF:
            self.here -= 1
            self.channels["down"].append(grant(self.last))
        else:
            self.abroad[node] -= 1
            self.channels[node, "from"].append(grant(self.last))

    def kill(self, node: bytes) -> None:
        self.alive.discard(node)
        self.abroad[node] = 0
        self.channels[node, "to"].clear()
        self.channels[node, "from"].clear()
        self.leases = {number: where for number, where in self.leases.items() if where != node}
        self.feed(fw.NodeDied(node, "killed"))

    def step(self) -> bool:
        """One random thing that can happen; False when nothing can."""
        choices: list[Any] = [("deliver", name) for name, queue in self.channels.items() if queue]
        choices += [
            ("grant", node)
            for node in sorted(self.alive)
            if self.free[node] > 0 and (self.here if node == SELF else self.abroad[node]) > 0
        ]
        if self.asked:
            choices.append(("place", None))
            if self.queues:
                choices.append(("queue", None))
        if self.here and not self.asked:
            choices.append(("overdue", None))
        if self.machine.awaits_nodes():
            choices.append(("look", None))
        if not choices:
            return False
        self.check()
        what, where = self.dice.choice(choices)
        if what == "grant":
            self.grant(where)
        elif what == "place":
            inputs = self.strategy.get("locality", {}) if not self.anywhere else {}
            node = self.dice.choice(sorted(self.named & set(inputs) or self.named))
            count = self.dice.randint(1, self.asked)
            self.asked -= count
            self.channels["placed"].append(([(node, count)], False))
        elif what == "queue":
            self.channels["placed"].append(([(self.dice.choice(sorted(self.named)), 1)], True))
        elif what == "overdue":
            self.feed(fw.Overdue(P, 0, self.here))
        elif what == "look":
            self.now += fw.PLACED_WAIT_S / 3
            self.feed(fw.Looked(self.now))
        else:
            self.deliver(where)
        return True

    def check(self) -> None:
        """The global scheduler never has less to place than is asked of it here, and who has nothing to place queues nothing."""
        abroad = self.machine.waits_abroad(P, 0)
        if abroad is not None:
            underway = sum(count for items, queued in self.channels["placed"] if not queued for _, count in items)
            asked, _ = (self.channels["gcs"] or [(self.asked, [])])[-1]
            assert asked + underway >= abroad.asked
            assert abroad.asked or not abroad.queued

    def deliver(self, where: Any) -> None:
        item = self.channels[where].popleft()
        if where == "up":
            self.feed(fw.Requested(P, RequestLeases(0, b"job1", {"CPU": 1}, 1, item, self.strategy)))
        elif where == "down":
            if isinstance(item, LeaseGranted):
                self.granted(item.lease_id)
        elif where == "gcs":
            self.asked, dead = item
            self.named.difference_update(dead)
        elif where == "placed":
            placements, queued = item
            self.feed(fw.Placed(P, 0, placements, queued=queued))
        elif where[1] == "to":
            self.abroad[where[0]] = item
        else:
            self.feed(fw.GrantedAbroad(where[0], P, item))


@pytest.mark.parametrize("strategy", [{}, {"kind": "SPREAD"}, {"locality": {OTHER: 20 << 20}}])
@pytest.mark.parametrize("kills", [0, 1])
@pytest.mark.parametrize("queues", [False, True])
@pytest.mark.parametrize("full", [b"", OTHER])
def test_no_submitter_waits_in_vain(strategy: dict[str, Any], kills: int, queues: bool, full: bytes) -> None:
    for seed in range(40):
        world = World(seed, strategy, queues, full)
        submitted = 0
        for turn in range(400):
            if turn < 200 and world.dice.random() < 0.15:
                count = world.dice.randint(1, 6)
                submitted += count
                world.submit(count)
            if kills and turn == 100:
                world.kill(OTHER)
            world.step()
        for _ in range(20_000):
            if not world.step() or (world.done == submitted and not world.tasks):
                break
        assert world.done == submitted, (
            f"seed {seed}: {world.tasks} tasks wait, told {world.told}, here {world.here}, asked {world.asked}"
        )
        world.queues = False
        for _ in range(20_000):
            if not world.step():
                break
        world.say(0)
        for _ in range(20_000):
            if not world.step():
                break
        assert not any(world.channels.values())
        left = [count for node, count in world.abroad.items() if node in world.alive and count]
        assert not world.asked and not left, f"seed {seed}: asked for without a use"


def test_inputs_elsewhere_are_the_global_schedulers_to_weigh_while_it_is_there() -> None:
    made = machine()
    far = request(2, locality={OTHER: 10 << 20, SELF: 1 << 20})
    assert made.handle(fw.Requested(P, far)) == [fw.AskGlobal(P, far, 2)]
    assert made.handle(fw.Placed(P, 0, [(SELF, 1)])) == [fw.RequestHere(P, far, 1)]
    near = request(2, 1, locality={OTHER: 1 << 20, SELF: 10 << 20})
    assert made.handle(fw.Requested(P, near)) == [fw.RequestHere(P, near)]
    assert made.handle(fw.GcsLost()) == [fw.RequestHere(P, far)]
    third = request(2, 2, locality={OTHER: 10 << 20})
    assert made.handle(fw.Requested(P, third)) == [fw.RequestHere(P, third)]
    assert made.handle(fw.GcsReturned()) == [fw.AskGlobal(P, far, 1)]


def test_a_node_that_was_filled_meanwhile_is_not_waited_for() -> None:
    made = machine()
    far = request(2, locality={OTHER: 10 << 20})
    made.handle(fw.Requested(P, far))
    assert not made.awaits_nodes()
    made.handle(fw.Placed(P, 0, [(OTHER, 2)]))
    assert made.awaits_nodes()
    assert made.handle(fw.Looked(10.0)) == []
    assert made.handle(fw.Looked(10.0 + 0.9 * fw.PLACED_WAIT_S)) == []
    assert made.handle(fw.Looked(10.0 + fw.PLACED_WAIT_S)) == [
        fw.RequestHere(P, far, 2),
        fw.AskGlobal(P, far, 2, anywhere=True),
    ]
    assert not made.awaits_nodes()
    assert made.handle(fw.Placed(P, 0, [(THIRD, 1)])) == [fw.AskNode(THIRD, P, far, 1)]
    made.handle(fw.Looked(20.0))
    assert made.handle(fw.Looked(20.0 + fw.PLACED_WAIT_S)) == [], "it has more patience now"
    assert made.handle(fw.GrantedHere(P, 0)) == []
    assert made.handle(fw.GrantedAbroad(THIRD, P, grant(5))) == [
        fw.TellProcess(P, grant(5)),
        fw.AskGlobal(P, far, 0),
        fw.AskNode(OTHER, P, far, 0),
    ]
    assert made.handle(fw.Requested(P, far)) == [fw.AskGlobal(P, far, 2)], "the next go to their inputs again"


def test_moving_large_inputs_is_worth_a_longer_wait() -> None:
    made = machine()
    made.handle(fw.Requested(P, request(1, locality={OTHER: 5_000_000_000})))
    made.handle(fw.Placed(P, 0, [(OTHER, 1)]))
    assert made.handle(fw.Looked(0.0)) == made.handle(fw.Looked(4.9)) == []
    assert made.handle(fw.Looked(5.0)) != []


def test_who_has_no_choice_waits() -> None:
    made = machine()
    made.handle(fw.Requested(P, request(1, kind="NODE_AFFINITY", node_id=OTHER, soft=False)))
    made.handle(fw.Placed(P, 0, [(OTHER, 1)]))
    assert made.handle(fw.Looked(0.0)) == made.handle(fw.Looked(1000.0)) == []
