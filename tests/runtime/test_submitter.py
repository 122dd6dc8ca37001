"""The submitting side in single situations that the simulation meets rarely or not at all; see `simulation`."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tests.runtime.plans import Plan
from tests.runtime.played_machine import FakeSocket
from tests.runtime.simulation import World
from tests.runtime.simulation_checks import known, outcome_of

from shoal.protocol import errors
from shoal.protocol.limits import ALL_STARTED
from shoal.protocol.messages import WorkerDied
from shoal.protocol.strategies import LOCALITY
from shoal.runtime import exports
from shoal.runtime.jobs import SLOW_TASK_S, BoundTemplate
from shoal.runtime.submitter import DEATH_TOLD_WITHIN_S


def leased(world: World, plan: Plan) -> SimpleNamespace:
    """Submit one task and let it get its lease, without stepping its worker."""
    driver = world.drivers[0]
    world.plans[plan.number] = plan
    world.submit(plan, driver)
    world.whole = True
    world.read(driver)
    (key,) = world.grantable()
    world.grant(key)
    driver.deliver()
    (lease,) = driver.runtime.submitter.classes[0].leases.values()
    return SimpleNamespace(driver=driver, lease=lease, worker=world.workers[0])


def test_a_failure_travels_along_a_chain_longer_than_the_stack() -> None:
    with World(1) as world:
        driver = world.drivers[0]
        world.plans[1] = Plan(1, outcome="error")
        world.submit(world.plans[1], driver)
        for number in range(2, 3000):
            world.plans[number] = Plan(number, deps=[number - 1])
            world.submit(world.plans[number], driver)
        for _ in range(40):
            world.calm_round()
        assert known(world.plans[2999])
        assert isinstance(outcome_of(world.plans[2999].result), errors.TaskError)
        assert driver.runtime.submitter.pending == 0


def test_a_dead_worker_is_buried_although_its_child_holds_the_connection() -> None:
    with World(2) as world:
        at = leased(world, Plan(1, max_retries=1))
        world_end = at.lease.connection.sock.peer
        assert isinstance(world_end, FakeSocket)
        at.worker.die()
        world_end.closed = False  # a process that the task has started keeps it
        world.bury(at.worker)
        at.driver.deliver()
        assert at.lease.connection.closed
        world.finish()
        assert outcome_of(world.plans[1].result) == 10


def test_who_waited_behind_a_task_that_ended_with_its_worker_is_asked_for() -> None:
    """Tasks with large inputs share one lease, and ask for none as long as they have it."""
    with World(8) as world:
        at = leased(world, Plan(1, max_retries=0, pauses=100_000))
        klass, submitter = at.lease.klass, at.driver.runtime.submitter
        for _ in range(10):
            world.calm_round()
        assert world.plans[1].started
        klass.strategy[LOCALITY] = {b"n" * 16: 1 << 30}
        world.plans[2] = Plan(2)
        world.submit(world.plans[2], at.driver)
        assert len(klass.queue) == 1 and klass.backlog_told == 0
        at.worker.die()
        world.bury(at.worker)
        at.driver.deliver()
        assert isinstance(outcome_of(world.plans[1].result), errors.WorkerCrashedError)
        assert submitter.pending == 1 and not klass.leases
        assert klass.backlog_told == 1, "at once: nothing but replies is waited for, so no tick may come"


def test_a_bounce_of_all_that_a_lease_has_leaves_it_open() -> None:
    with World(3) as world:
        at = leased(world, Plan(1))
        for _ in range(3):
            at.worker.deliver()  # read, not begun
        (job,) = at.worker.executor.queue
        assert job.seq == 1
        at.worker.executor._bounce(at.lease.lease_id)
        at.driver.deliver()
        world.check()
        assert at.lease.inflight, "the task went back to the worker that had nothing else to do"
        world.finish()


def test_what_never_ran_here_is_taken_as_slow() -> None:
    """Replies gathered before it leave before it runs: it may end the process."""
    assert BoundTemplate(SimpleNamespace(num_returns=1, kind=0, options={}, method="")).estimate_s > SLOW_TASK_S  # type: ignore[arg-type]


def test_a_cancelled_call_frees_those_that_it_held_back() -> None:
    with World(4) as world:
        driver = world.drivers[0]
        world.add_actor(0)
        slow, first, second = Plan(1, pauses=100_000), Plan(2, is_call=True, deps=[1]), Plan(3, is_call=True)
        for plan in (slow, first, second):
            world.plans[plan.number] = plan
            world.submit(plan, driver)
        for _ in range(30):
            world.calm_round()
        assert not known(second), "it waits for the call before it"
        driver.runtime.cancel(first.result, False, True)
        for _ in range(10):
            world.calm_round()
        assert isinstance(outcome_of(first.result), errors.TaskCancelledError)
        assert outcome_of(second.result) == 30


def test_calls_in_any_order_that_wait_for_one_another_are_not_forgotten() -> None:
    """The second fails while the queue is looked through, and the first waited for it."""
    with World(5) as world:
        driver = world.drivers[0]
        world.add_actor(0, in_order=False)
        world.plans[1] = Plan(1, outcome="error")
        world.submit(world.plans[1], driver)
        # Two calls of the same queue: number 3 stands before number 2, on which it depends.
        world.plans[2] = Plan(2, is_call=True, deps=[1])
        world.submit(world.plans[2], driver)
        world.plans[3] = Plan(3, is_call=True, deps=[2])
        world.submit(world.plans[3], driver)
        (queue,) = driver.runtime.actor_calls.queues.values()
        queue.unsent.reverse()
        world.finish()
        assert isinstance(outcome_of(world.plans[3].result), errors.TaskError)


def test_a_retried_stream_is_not_stuck_behind_what_was_taken() -> None:
    with World(6) as world:
        plan = Plan(1, kind="stream", items=6, backpressure=1, max_retries=1, pauses=1, crash_on=frozenset({0}))
        world.plans[1] = plan
        world.submit(plan, world.drivers[0])
        world.finish()
        assert len(plan.started) == 2 and [outcome_of(ref) for ref in plan.taken] == [100, 101, 102, 103, 104, 105]


def test_a_connection_that_breaks_without_a_death_is_given_up() -> None:
    """A worker refused a message: nobody will ever say that it died."""
    with World(7) as world:
        at = leased(world, Plan(1, max_retries=1))
        at.worker.reactor.close(at.worker.executor.reactor.connections[at.lease.connection.sock.peer.fd])
        at.driver.deliver()
        assert at.lease.connection.closed and at.driver.runtime.submitter.pending == 1
        world.now += DEATH_TOLD_WITHIN_S + 1
        world.finish()
        assert outcome_of(world.plans[1].result) == 10


def test_calls_go_on_when_the_connection_to_a_living_actor_broke() -> None:
    with World(8) as world:
        driver = world.drivers[0]
        world.add_actor(0)
        calls = [
            Plan(1, is_call=True),
            Plan(2, is_call=True, pauses=1000, max_retries=1),
            Plan(3, is_call=True, max_retries=1),
        ]
        for plan in calls:
            world.plans[plan.number] = plan
            world.submit(plan, driver)
        while not known(calls[0]):
            world.calm_round()
        (queue,) = driver.runtime.actor_calls.queues.values()
        assert queue.lease is not None
        (host,) = [each for each in world.workers if each.actor is not None]
        host.reactor.close(host.reactor.connections[queue.lease.connection.sock.peer.fd])  # type: ignore[attr-defined]
        driver.deliver()
        for _ in range(5):
            world.calm_round()
        calls[1].pauses = 0
        calls[1].max_retries = calls[2].max_retries = 3
        next(iter(world.actors.values())).in_order = False  # for the twin: this life sees some calls twice
        world.now += DEATH_TOLD_WITHIN_S + 1
        world.finish()
        assert [outcome_of(plan.result) for plan in calls] == [10, 20, 30]


def test_a_call_that_was_lost_with_its_actor_is_not_said_to_be_with_a_worker() -> None:
    with World(12) as world:
        driver = world.drivers[0]
        actor = world.add_actor(5)
        plan = world.plans[1] = Plan(1, is_call=True, pauses=1000, max_retries=2)
        world.submit(plan, driver)
        while not plan.started:
            world.calm_round()
        assert actor.worker is not None
        actor.worker.die()
        world.bury(actor.worker)
        driver.deliver()
        (queue,) = driver.runtime.actor_calls.queues.values()
        (task,) = [*queue.unsent, *(task for task, _ in queue.lost)]
        assert task.lease is None
        plan.pauses = 0
        world.finish()
        assert outcome_of(plan.result) == 10


def test_an_actor_that_lives_elsewhere_before_its_death_was_told() -> None:
    with World(9) as world:
        driver = world.drivers[0]
        actor = world.add_actor(5)
        calls = [Plan(1, is_call=True), Plan(2, is_call=True, pauses=1000, max_retries=2)]
        for plan in calls:
            world.plans[plan.number] = plan
            world.submit(plan, driver)
        while not known(calls[0]) or not calls[1].started:
            world.calm_round()
        host = actor.worker
        assert host is not None
        host.die()
        host.buried = True  # its node is out of reach: nobody tells of it
        del world.leases[host.lease_id]
        calls[1].pauses = 0
        actor.worker, actor.state = None, "restarting"
        world.finish()
        assert outcome_of(calls[1].result) == 20


def test_calls_on_a_node_that_died_count_as_begun() -> None:
    with World(9) as world:
        driver = world.drivers[0]
        actor = world.add_actor(5)
        calls = [Plan(1, is_call=True), Plan(2, is_call=True, pauses=1000)]
        for plan in calls:
            world.plans[plan.number] = plan
            world.submit(plan, driver)
        while not known(calls[0]) or not calls[1].started:
            world.calm_round()
        host = actor.worker
        assert host is not None
        host.die()
        host.buried = True
        del world.leases[host.lease_id]
        driver.from_daemon(WorkerDied(host.worker_id, host.lease_id, ALL_STARTED, "its node died", 0))
        actor.worker, actor.state = None, "restarting"
        world.finish()
        assert isinstance(outcome_of(calls[1].result), errors.ActorUnavailableError)


def test_a_task_loses_one_retry_with_its_node_and_not_one_with_each_worker_there() -> None:
    with World(12) as world:
        driver = world.drivers[0]
        for number in range(1, 5):
            world.plans[number] = Plan(number, pauses=1000 if number == 1 else 0, max_retries=3)
            world.submit(world.plans[number], driver)
        for _ in range(20):
            world.calm_round()
        submitter = driver.runtime.submitter
        leases = sorted(submitter.classes[0].leases.values(), key=lambda lease: not lease.inflight)
        (task,) = leases[0].inflight.values()
        assert len(leases) > 1, "another one is idle"
        for lease in leases:
            worker_id = lease.connection.attachment.worker_id
            death = WorkerDied(worker_id, lease.lease_id, ALL_STARTED, "its node died", 0)
            submitter.on_worker_died(lease.connection, death)
        assert not submitter.classes[0].leases
        assert task.retries_left == 2


def test_nothing_is_sent_to_a_worker_whose_connection_has_ended() -> None:
    """Its death is told later; with its node it would count as begun, and cost a retry."""
    with World(13) as world:
        driver = world.drivers[0]
        world.plans[1] = Plan(1)
        world.submit(world.plans[1], driver)
        while not known(world.plans[1]):
            world.calm_round()
        submitter = driver.runtime.submitter
        (lease,) = submitter.classes[0].leases.values()
        submitter.on_peer_closed(lease.connection)
        world.plans[2] = Plan(2)
        world.submit(world.plans[2], driver)
        assert not lease.inflight and len(submitter.classes[0].queue) == 1


def test_code_that_captures_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "CODE_BYTES_MAX", 10_000)
    captured = bytes(20_000)
    with World(10) as world, pytest.raises(ValueError, match="captures too much"):
        world.drivers[0].runtime.exports.export(lambda: captured)
