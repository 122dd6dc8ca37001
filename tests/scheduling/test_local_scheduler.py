"""The local scheduler, one rule at a time: who gets a lease, when it ends, what is held, which workers run."""

from __future__ import annotations

import math
from typing import Any

from shoal.protocol.limits import LEASE_SLICE_S, WORKER_IDLE_S, WORKER_SPARES
from shoal.protocol.resources import to_units
from shoal.scheduling import events as e
from shoal.scheduling.local_scheduler import LocalScheduler

D, P, Q = b"driver", b"process p", b"process q"
J, K = b"job1", b"job2"


class Node:
    """A scheduler whose workers come up at once; it collects effects and checks invariants after each event."""

    def __init__(self, auto: bool = True, **total: float) -> None:
        self.machine = LocalScheduler(to_units(total or {"CPU": 2}))
        self.now = 0.0
        self.auto = auto
        self.workers = 0
        self.tell(e.Tick())

    def tell(self, event: Any, after_s: float = 0.0) -> list[Any]:
        self.now += after_s
        effects = self.machine.handle(event, self.now)
        self.machine.check()
        rest = []
        for effect in effects:
            if isinstance(effect, e.StartWorkers) and self.auto:
                for _ in range(effect.count):
                    self.workers += 1
                    rest += self.tell(e.WorkerReady(b"w%d" % self.workers, effect.environment_key))
            else:
                rest.append(effect)
        return rest

    def ask(self, process: bytes, class_no: int, backlog: int = 1, **options: Any) -> list[Any]:
        demand = to_units(options.pop("demand", {"CPU": 1}))
        job, depth = options.pop("job", J), options.pop("depth", 0)
        return self.tell(e.LeasesRequested(process, class_no, job, demand, depth, backlog, **options))

    def place(
        self, actor_id: bytes, placement: dict[str, float], demand: dict[str, float], **options: Any
    ) -> list[Any]:
        return self.tell(e.ActorPlacementRequested(actor_id, 1, J, to_units(placement), to_units(demand), **options))

    def ticks(self, seconds: float) -> list[Any]:
        """Ticks when the machine wants them, for a while."""
        end, effects = self.now + seconds, []
        while self.machine.tick_at <= end:
            self.now = max(self.now + 1e-6, self.machine.tick_at)
            effects += self.tell(e.Tick())
        self.now = end
        return effects

    def available(self, name: str = "CPU") -> float:
        return self.machine.available().get(name, 0) / 10000


def granted(effects: list[Any]) -> list[tuple[bytes, int]]:
    return [(each.process, each.class_no) for each in effects if isinstance(each, e.GrantLease)]


def revoked(effects: list[Any]) -> list[int]:
    return [each.lease_id for each in effects if isinstance(each, e.RevokeLease)]


# ---------------------------------------------------------------- grants


def test_up_to_the_backlog_while_resources_fit() -> None:
    node = Node(CPU=4)
    first = node.ask(D, 1, 2)
    assert granted(first) == [(D, 1)] * 2
    assert [each.lease_id for each in first] == [1, 2]
    assert first[0].worker_id != first[1].worker_id
    assert granted(node.ask(D, 2, 5)) == [(D, 2)] * 2
    assert node.available() == 0
    assert granted(node.tell(e.LeaseFinished(1))) == [(D, 2)]
    assert node.ask(D, 2, 0) == []
    assert node.tell(e.LeaseFinished(2)) == []
    assert node.available() == 1


def test_deepest_first_within_a_job() -> None:
    node = Node(CPU=1)
    node.ask(D, 1)
    for depth in (1, 3, 2):
        node.ask(P, depth, depth=depth)
    order = [granted(node.tell(e.LeaseFinished(lease_id)))[0][1] for lease_id in (1, 2, 3)]
    assert order == [3, 2, 1]


def test_equal_classes_take_turns_and_the_poorest_goes_first() -> None:
    node = Node(CPU=2)
    node.ask(D, 1, 100)
    node.ask(P, 7, 100)
    assert granted(node.tell(e.LeaseFinished(1))) == [(P, 7)]
    assert granted(node.tell(e.LeaseFinished(2))) == [(D, 1)]
    assert granted(node.tell(e.LeaseFinished(3))) == [(P, 7)]


def test_jobs_share_evenly() -> None:
    node = Node(CPU=4)
    node.ask(D, 1, 100, depth=5)
    node.ask(P, 1, 100, job=K)
    assert granted(node.tell(e.LeaseFinished(1))) == [(P, 1)]
    assert granted(node.tell(e.LeaseFinished(2))) == [(P, 1)]
    assert granted(node.tell(e.LeaseFinished(3))) == [(D, 1)]


def test_what_can_never_fit_is_refused_with_both_sides() -> None:
    node = Node(CPU=2)
    (refusal,) = node.ask(D, 1, demand={"CPU": 1, "GPU": 1}, name="train")
    assert isinstance(refusal, e.RefuseClass)
    assert "train asks for 1 CPU, 1 GPU" in refusal.reason
    assert "2 CPU in total" in refusal.reason
    assert "lacks 1 GPU" in refusal.reason
    (refusal,) = node.place(b"a", {"CPU": 1}, {"x": 2}, name="Actor")
    assert isinstance(refusal, e.RefuseActor)
    assert "lacks 2 x" in refusal.reason
    assert node.machine.statistics().classes_waiting == 0


def test_gpus_are_named_and_shared() -> None:
    node = Node(CPU=8, GPU=2)
    grants = node.ask(D, 1, 3, demand={"GPU": 0.5})
    assert [each.assigned for each in grants] == [{"GPU": [0]}, {"GPU": [0]}, {"GPU": [1]}]
    assert node.ask(D, 2, 1, demand={"GPU": 1}) == []
    (grant,) = node.tell(e.LeaseFinished(3))
    assert grant.assigned == {"GPU": [1]}


def test_scattered_gpu_halves_are_gathered() -> None:
    node = Node(CPU=8, GPU=2)
    node.ask(D, 1, 3, demand={"GPU": 0.5})
    node.tell(e.LeaseFinished(1))  # half of each is free now
    assert node.available("GPU") == 1
    node.ask(D, 2, 1, demand={"GPU": 1})
    victims = revoked(node.ticks(0.02))
    assert victims
    assert granted(node.tell(e.LeaseFinished(victims[0]))) == [(D, 2)]


def test_tasks_without_cpu_grow_slowly_beyond_the_cpus() -> None:
    node = Node(CPU=2)
    assert len(granted(node.ask(D, 1, 1000, demand={}))) == 2
    assert 10 <= len(granted(node.ticks(0.03))) <= 30
    assert node.machine.statistics().workers_serving <= 40


# ---------------------------------------------------------------- blocking


def test_blocked_leases_lend_cpus_only() -> None:
    node = Node(CPU=1, GPU=1)
    node.ask(D, 1, demand={"CPU": 1, "GPU": 1})
    node.ask(P, 1, 2, depth=1)
    node.ask(Q, 1, demand={"GPU": 1}, depth=1)
    assert granted(node.tell(e.WorkerBlocked(1))) == [(P, 1)]
    assert node.tell(e.WorkerBlocked(1)) == []
    assert node.tell(e.WorkerUnblocked(1)) == []
    assert node.machine._view.available["CPU"] == -10000
    assert node.available() == 0
    assert node.tell(e.LeaseFinished(2)) == []  # the balance is back at 0, not above
    assert set(granted(node.tell(e.LeaseFinished(1)))) == {(P, 1), (Q, 1)}


def test_a_lease_may_end_while_blocked() -> None:
    node = Node(CPU=1)
    node.ask(D, 1)
    node.tell(e.WorkerBlocked(1))
    node.tell(e.LeaseFinished(1))
    assert node.available() == 1


# ---------------------------------------------------------------- revocation


def test_slices_grow_until_a_class_far_away_has_used_one() -> None:
    node = Node(CPU=1)
    node.ask(D, 1, 1)
    lease_id = 1
    held_s = []
    for used in (False, False, False, True):
        node.ask(P, 2, 1)  # equal to the other, so each lease ends after a slice
        begin = node.now
        while not (victims := revoked(node.ticks(LEASE_SLICE_S / 4))):
            assert node.now < begin + 1
        assert victims == [lease_id]
        held_s.append((node.now - begin) / LEASE_SLICE_S)
        node.ask(D, 1, 1)  # its task has bounced, or there is another one
        assert granted(node.tell(e.LeaseFinished(lease_id, used=used))) == [(P, 2)]
        assert granted(node.tell(e.LeaseFinished(lease_id + 1))) == [(D, 1)]
        lease_id += 2
    assert [math.floor(each) for each in held_s] == [1, 2, 4, 8]
    node.ask(P, 2, 1)
    assert revoked(node.ticks(5 * LEASE_SLICE_S)) == [lease_id], "it was used, so the next one is shorter again"


def test_a_lease_ends_after_its_slice_when_others_wait() -> None:
    node = Node(CPU=2)
    node.ask(D, 1, 100)
    assert node.ask(P, 1, 100) == []
    assert revoked(node.ticks(LEASE_SLICE_S * 0.9)) == []
    assert revoked(node.ticks(LEASE_SLICE_S)) == [1]  # one is enough for an even share
    assert granted(node.tell(e.LeaseFinished(1))) == [(P, 1)]
    assert revoked(node.ticks(LEASE_SLICE_S * 3)) == []


def test_an_old_lease_is_revoked_at_once() -> None:
    node = Node(CPU=1)
    node.ask(D, 1)
    node.now += 1
    assert revoked(node.ask(D, 2)) == [1]


def test_an_idle_lease_of_an_equal_does_not_stay_long() -> None:
    node = Node(CPU=2)
    node.ask(D, 1, 1)
    node.ask(D, 2, 2)
    assert 1 in revoked(node.ticks(0.1))


def test_a_deeper_class_ends_a_shallower_lease_and_not_the_other_way_round_at_once() -> None:
    node = Node(CPU=1)
    node.ask(D, 1, 10)
    node.ask(P, 1, depth=1)
    assert revoked(node.ticks(0.02)) == [1]
    assert granted(node.tell(e.LeaseFinished(1))) == [(P, 1)]
    assert revoked(node.ticks(0.03)) == []
    assert revoked(node.ticks(0.06)) == [2]  # it may be idle


def test_nothing_is_revoked_that_would_not_help() -> None:
    node = Node(CPU=4)
    node.place(b"a", {"CPU": 1}, {"CPU": 1})
    node.ask(D, 1, 10)
    assert node.ask(P, 1, demand={"CPU": 4}) == []
    assert revoked(node.ticks(0.3)) == []


def test_a_task_that_goes_on_is_not_relied_on() -> None:
    node = Node(CPU=2)
    node.ask(D, 1, 2)
    node.ask(P, 1, 1)
    assert revoked(node.ticks(0.02)) == [1]
    assert revoked(node.ticks(0.1)) == [2]
    assert granted(node.tell(e.LeaseFinished(2))) == [(P, 1)]


def test_returned_leases_are_finished_by_the_worker_first() -> None:
    node = Node(CPU=1)
    node.ask(D, 1)
    (effect,) = node.tell(e.LeaseReturned(1))
    assert effect.reason == e.REVOKED_RETURNED
    assert node.tell(e.LeaseReturned(1)) == []
    assert node.available() == 0
    node.tell(e.LeaseFinished(1))
    assert node.available() == 1
    assert node.tell(e.LeaseFinished(1)) == []


# ---------------------------------------------------------------- starvation


def test_wide_needs_are_met_beside_a_stream_of_narrow_ones() -> None:
    node = Node(CPU=2)
    node.ask(D, 1, 10**6)
    node.ask(P, 1, demand={"CPU": 2})
    served_at = None
    leases = {1: 0.0, 2: 0.0005}
    for _ in range(2000):
        effects = node.ticks(0.001)
        if leases:
            oldest = min(leases)
            del leases[oldest]
            effects += node.tell(e.LeaseFinished(oldest))
        for grant in effects:
            if isinstance(grant, e.GrantLease):
                leases[grant.lease_id] = node.now
                if grant.process == P:
                    served_at = node.now
        if served_at:
            break
    assert served_at
    assert served_at < 0.6


def test_what_nobody_frees_keeps_others_waiting_a_part_of_the_time_only() -> None:
    node = Node(CPU=2)
    node.ask(D, 1)  # runs for ever
    node.ask(P, 1, demand={"CPU": 2})
    node.now += 1.0
    free_s = 0.0
    for _ in range(3000):
        node.ticks(0.02)
        lease = granted(node.ask(Q, 1))
        free_s += 0.02 * bool(lease)
        node.ask(Q, 1, 0)
        if lease:
            node.tell(e.LeaseFinished(node.machine._last_lease_id))
    assert free_s > 35


def test_actors_hold_and_cannot_be_waited_for() -> None:
    node = Node(CPU=2)
    node.place(b"a", {"CPU": 1}, {"CPU": 1})
    node.ask(P, 1, demand={"CPU": 2})
    node.ticks(2.0)
    assert granted(node.ask(Q, 1)) == [(Q, 1)]


# ---------------------------------------------------------------- actors


def test_an_actor_needs_its_placement_and_holds_its_demand() -> None:
    node = Node(CPU=1)
    (one,) = node.place(b"a", {"CPU": 1}, {})
    (two,) = node.place(b"b", {"CPU": 1}, {})
    assert one.worker_id != two.worker_id
    assert node.available() == 1
    node.ask(D, 1)
    assert node.place(b"c", {"CPU": 1}, {}) == []
    assert "asks for 1 CPU" in node.machine.explain(b"c")
    node.tell(e.ActorPlacementWithdrawn(b"c"))
    assert node.machine.explain(b"c") == ""
    node.tell(e.LeaseFinished(3))
    assert node.machine.statistics().actors == 2
    node.tell(e.WorkerDied(one.worker_id))
    assert node.machine.statistics().actors == 1


def test_an_actor_blocks_ends_and_its_worker_is_never_reused() -> None:
    node = Node(CPU=1)
    (actor,) = node.place(b"a", {"CPU": 1}, {"CPU": 1})
    node.ask(D, 1, 1)
    assert granted(node.tell(e.WorkerBlocked(actor.lease_id))) == [(D, 1)]
    node.tell(e.WorkerUnblocked(actor.lease_id))
    node.tell(e.LeaseFinished(2))
    assert node.tell(e.LeaseReturned(actor.lease_id)) == []
    node.tell(e.LeaseFinished(actor.lease_id))
    assert node.available() == 1
    workers = {each.worker_id for each in node.ask(D, 2)}
    assert actor.worker_id not in workers
    node.tell(e.WorkerDied(actor.worker_id))


def test_a_waiting_actor_ends_a_lease() -> None:
    node = Node(CPU=1)
    node.ask(D, 1, 10)
    assert node.place(b"a", {"CPU": 1}, {}) == []
    assert revoked(node.ticks(0.02)) == [1]
    effects = node.tell(e.LeaseFinished(1))
    assert isinstance(effects[0], e.AssignActor)
    assert granted(effects) == [(D, 1)]


# ---------------------------------------------------------------- deaths


def test_death_of_a_submitter() -> None:
    node = Node(CPU=1)
    node.ask(D, 1, 10)
    node.ask(D, 2, 10)
    (effect,) = node.tell(e.ProcessDied(D))
    assert effect.reason == e.REVOKED_SUBMITTER_DIED
    assert node.tell(e.LeaseFinished(1)) == []
    assert node.available() == 1
    assert not node.machine._queue.jobs
    assert not node.machine._classes


def test_death_of_a_worker_frees_and_its_submitter_gets_another() -> None:
    node = Node(CPU=1)
    (grant,) = node.ask(D, 1, 1)
    (again,) = node.tell(e.WorkerDied(grant.worker_id))
    assert granted([again]) == [(D, 1)]
    assert again.worker_id != grant.worker_id
    assert node.tell(e.WorkerDied(b"unknown")) == []


def test_a_lease_of_a_dying_worker_that_others_get_before_its_death_is_known() -> None:
    """The daemon does not tell of a lease whose worker's connection has ended already, and waits for the worker's death to be known."""
    node = Node(CPU=1)
    (untold,) = node.ask(D, 1, 1)
    node.ask(P, 1, 1)
    assert revoked(node.ticks(0.1)) == [untold.lease_id]
    assert granted(node.tell(e.WorkerDied(untold.worker_id))) == [(P, 1)]
    assert granted(node.tell(e.LeaseFinished(2))) == [(D, 1)]


def test_a_lease_of_a_dying_worker_that_a_drain_meets() -> None:
    node = Node(CPU=1)
    (untold,) = node.ask(D, 1, 1)
    node.tell(e.NodeDrains("a test"))
    (refused,) = node.tell(e.WorkerDied(untold.worker_id))
    assert (type(refused), refused.process, refused.class_no) == (e.RefuseClass, D, 1)
    assert node.machine.statistics().classes_waiting == 0


def test_a_lease_that_was_returned_is_not_granted_anew() -> None:
    node = Node(CPU=1)
    (lease,) = node.ask(D, 1, 1)
    node.tell(e.LeaseReturned(lease.lease_id))
    assert granted(node.tell(e.WorkerDied(lease.worker_id))) == []


def test_an_exiting_worker_is_not_reused() -> None:
    node = Node(CPU=1)
    seen = set()
    node.ask(D, 1, 20)
    for lease_id in range(1, 15):
        worker_id = node.machine._leases[lease_id].worker.worker_id
        assert worker_id not in seen
        seen.add(worker_id)
        node.tell(e.LeaseFinished(lease_id, exiting=True))
        node.tell(e.WorkerDied(worker_id))


# ---------------------------------------------------------------- workers


def test_workers_are_warm_before_anybody_asks_and_surplus_leaves() -> None:
    node = Node(CPU=2)
    assert node.machine.statistics().workers_idle == 2 + WORKER_SPARES
    assert node.machine.tick_at == math.inf
    node.ask(D, 1, 20, demand={"CPU": 0.1})
    node.ticks(0.1)
    assert node.machine.statistics().leases == 20
    for lease_id in range(1, 21):
        node.tell(e.LeaseFinished(lease_id))
    assert node.machine.statistics().workers_idle > 10
    stopped = [each for each in node.ticks(WORKER_IDLE_S + 1) if isinstance(each, e.StopWorker)]
    for each in stopped:
        node.tell(e.WorkerDied(each.worker_id))
    assert node.machine.statistics().workers_idle == 2 + WORKER_SPARES
    assert node.machine.tick_at == math.inf


def test_environments_have_their_own_workers() -> None:
    node = Node(CPU=2)
    env = {"env_vars": {"A": "1"}}
    (grant,) = node.ask(D, 1, environment=env)
    assert grant.environment == env
    node.tell(e.LeaseFinished(1))
    (plain,) = node.ask(D, 2)
    assert plain.worker_id != grant.worker_id
    (same,) = node.ask(P, 1, environment={"env_vars": {"A": "1"}})
    assert same.worker_id == grant.worker_id
    assert len(node.machine._pool.pools) == 2
    node.tell(e.LeaseFinished(3))
    node.ticks(WORKER_IDLE_S * 3)
    assert list(node.machine._pool.pools) == [""]


def test_a_submitter_gets_the_worker_it_knows() -> None:
    node = Node(CPU=2)
    (one,) = node.ask(D, 1)
    (two,) = node.ask(P, 1)
    node.tell(e.LeaseFinished(one.lease_id))
    node.tell(e.LeaseFinished(two.lease_id))
    (again,) = node.ask(D, 1)
    assert again.worker_id == one.worker_id


def test_starts_are_bounded_and_failures_reported() -> None:
    node = Node(auto=False, CPU=2)
    (start,) = node.ask(D, 1, 2, environment={"x": 1}, name="f")
    assert start.count == 2
    told = []
    for _ in range(40):
        told += node.tell(e.WorkerStartFailed(start.environment_key, "no such file"))
        told += node.ticks(1.0)
    refusals = [each for each in told if isinstance(each, e.RefuseClass)]
    assert len(refusals) == 1
    assert "f cannot run" in refusals[0].reason
    assert "no such file" in refusals[0].reason


def test_many_actors_start_a_few_workers_at_a_time() -> None:
    node = Node(auto=False, CPU=2)
    node.tell(e.WorkerReady(b"first"))
    for number in range(100):
        node.place(b"a%d" % number, {"CPU": 1}, {})
        assert node.machine.statistics().workers_starting <= 8
    alive = 1
    while node.machine.statistics().actors < 100:
        alive += 1
        assert alive < 120
        node.tell(e.WorkerReady(b"w%d" % alive))


# ---------------------------------------------------------------- questions


def test_explanations_say_what_a_class_waits_for() -> None:
    node = Node(auto=False, CPU=1)
    node.ask(D, 1, 5, name="f")
    assert "workers for it are starting" in node.machine.explain(D, 1)
    node.tell(e.WorkerReady(b"w"))
    text = node.machine.explain(D, 1)
    assert "f (4 wait) asks for 1 CPU; free: 0 CPU of 1 CPU; held by 1 x task f (1 CPU)." == text
    assert node.machine.explain(b"nobody", 1) == ""
    assert node.machine.holder_of(1) == D
    assert node.machine.workers_of_job(J) == [b"w"]
