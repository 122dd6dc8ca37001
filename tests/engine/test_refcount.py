"""Memory goes when the last ref does, wherever the refs have been, and whoever died with some of them.

Measured by the node's own statistics: its directory of escaped objects and its store must come back to what they were.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from tests.engine.node_counts import counts, eventually, pid_of, settled_counts, wait_for_counts

import shoal
from shoal.exceptions import ObjectLostError, ShoalError, WorkerCrashedError
from shoal.runtime import core

pytestmark = pytest.mark.usefixtures("shoal_session")

BIG_BYTES = 300_000
SMALL, BIG = "small", b"b" * BIG_BYTES


@shoal.remote
def same(value: Any) -> Any:
    return value


@shoal.remote
def put_inside(value: Any, layers: int = 1) -> Any:
    """A ref made by a worker, inside `layers` lists that are objects of their own."""
    ref = shoal.put(value)
    for _ in range(layers - 1):
        ref = shoal.put([ref])
    return [ref]


@shoal.remote
def fetch(nested: Any) -> Any:
    value = nested
    while isinstance(value, (list, shoal.ObjectRef)):
        value = shoal.get(value) if isinstance(value, shoal.ObjectRef) else value[0]
    return value


@shoal.remote
class Keeper:
    def __init__(self) -> None:
        self.kept: list[Any] = []

    def keep(self, nested: Any) -> int:
        self.kept.append(nested)
        return len(self.kept)

    def give(self) -> Any:
        return self.kept[-1] if self.kept else None

    def drop(self) -> None:
        self.kept.clear()

    def values(self) -> Any:
        return [shoal.get(nested[0]) for nested in self.kept]

    def make(self, value: Any) -> Any:
        ref = shoal.put(value)
        self.kept.append([ref])
        return [ref]

    def pass_on(self, other: Any) -> Any:
        return shoal.get(other.keep.remote(self.kept[-1]))

    def ask(self, value: Any, seconds: float = 0.0) -> Any:
        """A ref to a task of this actor's."""
        ref = slow.remote(value, seconds)
        self.kept.append([ref])
        return [ref]


@shoal.remote(num_cpus=0)
def slow(value: Any, seconds: float) -> Any:
    time.sleep(seconds)
    return value


@pytest.fixture(scope="module")
def keepers(shoal_session: None) -> list[Any]:
    """Two actors that the tests share; each test drops what they keep."""
    keepers = [Keeper.remote(), Keeper.remote()]
    shoal.get([keeper.drop.remote() for keeper in keepers], timeout=60)
    return keepers


values = pytest.mark.parametrize("value", [SMALL, BIG], ids=["small", "big"])


# ---------------------------------------------------------------- journeys that end


@values
def test_put_and_drop(value: Any, freed: None) -> None:
    ref = shoal.put(value)
    assert shoal.get(ref) == value


@values
def test_as_argument(value: Any, freed: None) -> None:
    ref = shoal.put(value)
    assert shoal.get(same.remote(ref), timeout=60) == value


@values
def test_nested_in_an_argument(value: Any, freed: None) -> None:
    ref = shoal.put(value)
    assert shoal.get(fetch.remote([ref]), timeout=60) == value
    assert shoal.get(fetch.remote([[ref]]), timeout=60) == value


@values
def test_dropped_before_the_task_runs(value: Any, freed: None) -> None:
    result = fetch.remote([shoal.put(value)])
    assert shoal.get(result, timeout=60) == value


@values
def test_pending_result_nested_and_dropped(value: Any, freed: None) -> None:
    assert shoal.get(fetch.remote([slow.remote(value, 0.05)]), timeout=60) == value


@values
def test_put_inside_put(value: Any, freed: None) -> None:
    ref = shoal.put(value)
    for _ in range(10):
        ref = shoal.put([ref])
    assert shoal.get(fetch.remote([ref]), timeout=60) == value


@values
@pytest.mark.parametrize("layers", [1, 4])
def test_made_and_returned_by_a_task(value: Any, layers: int, freed: None) -> None:
    assert shoal.get(fetch.remote(shoal.get(put_inside.remote(value, layers))), timeout=60) == value
    nested = shoal.get(put_inside.remote(value, layers), timeout=60)
    while isinstance(nested, (list, shoal.ObjectRef)):
        nested = shoal.get(nested, timeout=60) if isinstance(nested, shoal.ObjectRef) else nested[0]
    assert nested == value


@values
def test_returned_and_never_looked_at(value: Any, freed: None) -> None:
    ref = put_inside.remote(value, 3)
    shoal.wait([ref], timeout=60)


@values
def test_returned_to_nobody(value: Any, freed: None) -> None:
    for _ in range(5):
        put_inside.remote(value, 2)  # the ref is dropped at once
    shoal.get(same.remote(1), timeout=60)


@values
def test_several_results_with_refs(value: Any, freed: None) -> None:
    @shoal.remote(num_returns=2)
    def two() -> Any:
        return [shoal.put(value)], shoal.put([shoal.put(value)])

    first, second = two.remote()
    del first
    assert shoal.get(shoal.get(shoal.get(second, timeout=60))[0]) == value


@values
def test_sent_to_an_actor_and_back(value: Any, keepers: list[Any], freed: None) -> None:
    ref = shoal.put(value)
    shoal.get(keepers[0].keep.remote([ref]), timeout=60)
    back = shoal.get(keepers[0].give.remote(), timeout=60)
    assert back[0] is ref
    shoal.get(keepers[0].drop.remote(), timeout=60)


@values
def test_kept_by_an_actor_alone(value: Any, keepers: list[Any], freed: None) -> None:
    shoal.get(keepers[0].keep.remote([shoal.put(value)]), timeout=60)
    time.sleep(0.15)  # sweeps that could free it too early
    assert shoal.get(keepers[0].values.remote(), timeout=60) == [value]
    back = shoal.get(keepers[0].give.remote(), timeout=60)
    shoal.get(keepers[0].drop.remote(), timeout=60)
    time.sleep(0.15)
    assert shoal.get(back[0], timeout=60) == value


@values
def test_from_actor_to_actor_to_driver(value: Any, keepers: list[Any], freed: None) -> None:
    first, second = keepers
    shoal.get(first.make.remote(value), timeout=60)
    shoal.get(first.pass_on.remote(second), timeout=60)
    shoal.get(first.drop.remote(), timeout=60)
    time.sleep(0.1)
    assert shoal.get(second.values.remote(), timeout=60) == [value]
    assert shoal.get(fetch.remote(shoal.get(second.give.remote())), timeout=60) == value
    shoal.get(second.drop.remote(), timeout=60)


@values
def test_an_actors_task_result_goes_on(value: Any, keepers: list[Any], freed: None) -> None:
    nested = shoal.get(keepers[0].ask.remote(value, 0.1), timeout=60)
    shoal.get(keepers[1].keep.remote(nested), timeout=60)
    shoal.get(keepers[0].drop.remote(), timeout=60)
    del nested
    assert shoal.get(keepers[1].values.remote(), timeout=60) == [value]
    shoal.get(keepers[1].drop.remote(), timeout=60)


@values
def test_as_top_level_argument_of_a_call(value: Any, keepers: list[Any], freed: None) -> None:
    shoal.get(keepers[0].keep.remote(same.remote(value)), timeout=60)
    shoal.get(keepers[0].drop.remote(), timeout=60)


@values
def test_in_streams(value: Any, freed: None) -> None:
    @shoal.remote
    def stream() -> Any:
        for _ in range(6):
            yield [shoal.put(value)]

    assert [shoal.get(shoal.get(ref)[0]) for ref in stream.remote()] == [value] * 6
    generator = stream.remote()
    next(generator)
    del generator  # four items are never taken


@values
def test_with_errors(value: Any, freed: None) -> None:
    @shoal.remote
    def fail(nested: Any, plain: Any) -> None:
        raise ValueError("no")

    ref = fail.remote([shoal.put(value)], shoal.put(value))
    try:
        shoal.get(ref, timeout=60)
    except ValueError:
        pass
    else:
        raise AssertionError("it fails")


@values
def test_dependents_of_failures(value: Any, freed: None) -> None:
    @shoal.remote
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError):
        shoal.get(fetch_two.remote(fail.remote(), [shoal.put(value)]), timeout=60)


@shoal.remote
def fetch_two(first: Any, second: Any) -> Any:
    return second


@values
def test_cancelled_tasks(value: Any, freed: None) -> None:
    refs = [slow.options(num_cpus=1).remote([shoal.put(value)], 0.3) for _ in range(6)]
    for ref in refs:
        shoal.cancel(ref)
    for ref in refs:
        with pytest.raises(ShoalError):
            shoal.get(ref, timeout=60)


def test_captured_refs_live_with_the_function(freed: None) -> None:
    ref = shoal.put(BIG)

    @shoal.remote
    def captured() -> int:
        return len(shoal.get(ref))  # noqa: F821  # deleted below, after it was captured

    assert shoal.get(captured.remote(), timeout=60) == BIG_BYTES
    del ref
    time.sleep(0.1)
    assert shoal.get([captured.remote() for _ in range(4)], timeout=60) == [BIG_BYTES] * 4


def test_functions_are_forgotten_and_may_come_again(freed: None) -> None:
    def made(ref: Any) -> Any:
        @shoal.remote
        def captured() -> Any:
            return shoal.get(ref)

        return captured

    ref = shoal.put("captured")
    for _ in range(3):  # the same code with the same ref has the same name
        functions = [made(ref) for _ in range(3)]
        assert shoal.get([function.remote() for function in functions], timeout=60) == ["captured"] * 3
        pending = [made(ref).remote() for _ in range(3)]  # nobody but the pending tasks has them
        del functions
        assert shoal.get(pending, timeout=60) == ["captured"] * 3
        time.sleep(0.05)


def test_a_worker_hands_on_a_function_with_a_captured_ref(freed: None) -> None:
    ref = shoal.put(BIG)

    @shoal.remote
    def captured() -> int:
        return len(shoal.get(ref))

    @shoal.remote
    def hand_on(function: Any) -> Any:
        return shoal.get(function.remote())

    @shoal.remote
    def hold_on() -> Any:
        return shoal.get(captured.remote())

    assert shoal.get(hand_on.remote(captured), timeout=60) == BIG_BYTES
    assert shoal.get(hold_on.remote(), timeout=60) == BIG_BYTES


def test_dropped_in_one_place_kept_in_another(keepers: list[Any], freed: None) -> None:
    """The sender lets go at the very moment in which the receiver takes hold, again and again."""
    for n in range(60):
        shoal.get(keepers[n % 2].keep.remote([shoal.put(n)]), timeout=60)
    found = shoal.get([keeper.values.remote() for keeper in keepers], timeout=60)
    assert found == [list(range(0, 60, 2)), list(range(1, 60, 2))]
    shoal.get([keeper.drop.remote() for keeper in keepers], timeout=60)


def test_many_refs_in_one_object(freed: None) -> None:
    refs = [shoal.put(i) for i in range(3000)]
    holder = shoal.put(refs)
    assert shoal.get(fetch_sum.remote(holder), timeout=60) == sum(range(3000))
    del refs
    for _ in range(3):
        assert len(shoal.get(holder)) == 3000
    some = shoal.get(holder)[:5]
    del holder
    time.sleep(0.2)
    assert shoal.get(some, timeout=60) == [0, 1, 2, 3, 4]


@shoal.remote
def fetch_sum(refs: list[Any]) -> int:
    return sum(shoal.get(refs))


def test_refs_taken_out_of_an_object_of_a_task(freed: None) -> None:
    @shoal.remote
    def many() -> Any:
        return [shoal.put(i) for i in range(500)]

    @shoal.remote
    def some_of(nested: Any) -> Any:
        return shoal.get(nested[0])[3:6]

    holder = many.remote()
    taken = shoal.get(holder, timeout=60)[7:9]
    third = shoal.get(some_of.remote([holder]), timeout=60)
    del holder
    time.sleep(0.2)
    assert shoal.get(taken + third, timeout=60) == [7, 8, 3, 4, 5]


# ---------------------------------------------------------------- after the maker has gone on or gone away


@values
def test_the_maker_has_gone_on(value: Any, freed: None) -> None:
    nested = shoal.get(put_inside.remote(value), timeout=60)
    shoal.get([same.remote(n) for n in range(50)], timeout=60)
    assert shoal.get(nested[0], timeout=60) == value


@values
def test_the_maker_has_left(value: Any, freed: None) -> None:
    @shoal.remote(max_calls=1)
    def make_and_leave() -> Any:
        return os.getpid(), [shoal.put(value)]

    pid, nested = shoal.get(make_and_leave.remote(), timeout=60)
    eventually(lambda: not os.path.exists(f"/proc/{pid}"))
    time.sleep(0.1)
    assert shoal.get(nested[0], timeout=60) == value


def test_a_maker_that_leaves_has_said_all_it_had_to_say(freed: None) -> None:
    value = b"b" * 3_000_000  # the task's code, which goes to the node with the ref

    @shoal.remote(max_calls=1, max_retries=0)
    def make_and_leave() -> Any:
        return [shoal.put(value)]

    nested = shoal.get(make_and_leave.remote(), timeout=30)
    assert shoal.get(nested[0], timeout=30) == value


@values
def test_the_maker_leaves_while_its_task_runs(value: Any, freed: None) -> None:
    @shoal.remote(max_calls=1)
    def submit_and_leave() -> Any:
        return [slow.remote(value, 0.3)]

    nested = shoal.get(submit_and_leave.remote(), timeout=60)
    assert shoal.get(nested[0], timeout=60) == value


# ---------------------------------------------------------------- deaths


def test_holds_of_a_killed_borrower_vanish(freed: None) -> None:
    keeper = Keeper.remote()
    shoal.get([keeper.keep.remote([shoal.put(BIG)]) for _ in range(3)], timeout=60)
    os.kill(pid_of(keeper), signal.SIGKILL)


def test_a_ref_borrowed_by_a_killed_process_stays_valid(freed: None) -> None:
    refs = [shoal.put(SMALL), shoal.put(BIG), slow.remote(3, 0.3)]
    keeper = Keeper.remote()
    shoal.get(keeper.keep.remote(refs), timeout=60)
    os.kill(pid_of(keeper), signal.SIGKILL)
    with pytest.raises(ShoalError):
        shoal.get(keeper.values.remote(), timeout=60)
    assert shoal.get(refs, timeout=60) == [SMALL, BIG, 3]
    assert shoal.get(fetch.remote([refs[1]]), timeout=60) == BIG


def test_a_task_that_dies_with_borrowed_refs(freed: None) -> None:
    @shoal.remote(max_retries=0)
    def die(nested: Any) -> None:
        shoal.get(nested)
        os.kill(os.getpid(), signal.SIGKILL)

    ref = shoal.put(BIG)
    with pytest.raises(WorkerCrashedError):
        shoal.get(die.remote([ref]), timeout=60)
    assert shoal.get(ref) == BIG


@values
def test_published_values_of_a_killed_owner_stay(value: Any, freed: None) -> None:
    keeper = Keeper.remote()
    nested = shoal.get(keeper.make.remote(value), timeout=60)
    os.kill(pid_of(keeper), signal.SIGKILL)
    with pytest.raises(ShoalError):
        shoal.get(keeper.give.remote(), timeout=60)
    time.sleep(0.1)
    assert shoal.get(nested[0], timeout=60) == value
    assert shoal.get(fetch.remote(nested), timeout=60) == value


def test_unpublished_values_of_a_killed_owner_come(freed: None) -> None:
    keeper = Keeper.remote()
    nested = shoal.get(keeper.ask.remote("late", 0.6), timeout=60)
    os.kill(pid_of(keeper), signal.SIGKILL)
    assert shoal.get(nested[0], timeout=60) == "late"
    assert shoal.get(same.remote(nested[0]), timeout=60) == "late"


def test_waiting_while_the_owner_is_killed(freed: None) -> None:
    keeper = Keeper.remote()
    nested = shoal.get(keeper.ask.remote("late", 0.6), timeout=60)
    result = fetch.remote(nested)
    pid = pid_of(keeper)
    import threading

    threading.Timer(0.2, os.kill, (pid, signal.SIGKILL)).start()
    assert shoal.get(nested[0], timeout=60) == "late"
    assert shoal.get(result, timeout=60) == "late"


# ---------------------------------------------------------------- anything at all


def len_kept(keeper: Any) -> int:
    return len(keeper.kept)


def _random_walk(seed: int, steps: int, keepers: list[Any]) -> None:
    """Refs travel at random between the driver, three actors and tasks; every value seen is checked."""
    rng = random.Random(seed)
    held: list[tuple[Any, Any]] = []  # (nested, value) of the driver
    kept: dict[int, list[Any]] = {n: [] for n in range(len(keepers))}  # values that each actor keeps
    made = 0

    def value() -> Any:
        nonlocal made
        made += 1
        return bytes([made % 251]) * (rng.choice([10, 5_000, 150_000]))

    for _ in range(steps):
        n = rng.randrange(len(keepers))
        keeper = keepers[n]
        step = rng.randrange(12)
        if step == 0:
            new = value()
            held.append(([shoal.put(new)], new))
        elif step == 1:
            new = value()
            held.append((shoal.get(put_inside.remote(new, 1), timeout=60), new))
        elif step == 2:
            new = value()
            held.append(([slow.remote(new, rng.random() * 0.02)], new))
        elif step == 3:
            new = value()
            held.append((shoal.get(keeper.make.remote(new), timeout=60), new))
            kept[n].append(new)
        elif step == 4 and held:
            held.pop(rng.randrange(len(held)))
        elif step == 5 and held:
            nested, known = rng.choice(held)
            keeper.keep.remote(nested)
            kept[n].append(known)
        elif step == 6 and held:
            nested, known = held.pop()
            keeper.keep.remote(nested)  # the driver's last ref goes with the call
            kept[n].append(known)
            del nested
        elif step == 7 and kept[n]:
            held.append((shoal.get(keeper.give.remote(), timeout=60), kept[n][-1]))
        elif step == 8 and kept[n]:
            other = (n + 1) % len(keepers)
            # Only calls of one caller keep their order: what the driver has said to the other actor must have been heard before this one calls it.
            shoal.get(keepers[other].__shoal_call__.remote(len_kept), timeout=60)
            shoal.get(keeper.pass_on.remote(keepers[other]), timeout=60)
            kept[other].append(kept[n][-1])
        elif step == 9:
            keeper.drop.remote()
            kept[n].clear()
        elif step == 10 and held:
            nested, known = rng.choice(held)
            deeper = shoal.put([shoal.put(nested)])
            held.append(([deeper], known))
            assert shoal.get(fetch.remote([deeper]), timeout=60) == known
        elif step == 11 and held:
            nested, known = rng.choice(held)
            assert shoal.get(fetch.remote(same.remote(nested)), timeout=60) == known
    for nested, known in held:
        assert shoal.get(fetch.remote(nested), timeout=60) == known
    for n, keeper in enumerate(keepers):
        for known, nested_value in zip(kept[n], shoal.get(deep_values.remote(keeper), timeout=60), strict=True):
            assert nested_value == known
    shoal.get([keeper.drop.remote() for keeper in keepers], timeout=60)


@shoal.remote
def deep_values(keeper: Any) -> Any:
    def fetched(value: Any) -> Any:
        while isinstance(value, (list, shoal.ObjectRef)):
            value = shoal.get(value) if isinstance(value, shoal.ObjectRef) else value[0]
        return value

    kept = shoal.get(keeper.__shoal_call__.remote(lambda self: list(self.kept)))
    return [fetched(nested) for nested in kept]


@pytest.mark.parametrize("seed", range(6))
def test_random_walks(seed: int, keepers: list[Any], freed: None) -> None:
    rng = random.Random(seed)
    third = Keeper.remote()
    _random_walk(seed, rng.randrange(60, 200), [*keepers, third])


def test_walks_in_threads(keepers: list[Any], freed: None) -> None:
    import threading

    failures: list[BaseException] = []

    def walk(seed: int) -> None:
        try:
            _random_walk(seed, 50, [Keeper.remote() for _ in range(2)])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=walk, args=(100 + n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures


def test_workers_killed_while_they_hand_over_refs(freed: None) -> None:
    @shoal.remote(max_retries=-1)
    def made(size: int) -> Any:
        return [shoal.put(b"x" * size), shoal.put(size)]

    rng = random.Random(3)
    for _ in range(5):
        results = [made.remote(BIG_BYTES if n % 5 == 0 else 10) for n in range(40)]
        time.sleep(rng.random() * 0.02)
        rows = core.current().call("node.workers")["workers"]
        workers = [row["pid"] for row in rows if row["lease_id"] and not row["actor_id"]]  # others' actors must live
        if workers:
            os.kill(rng.choice(workers), signal.SIGKILL)
        pairs = shoal.get(results, timeout=60)
        sizes = shoal.get([size for _, size in pairs], timeout=60)
        # A value is gone with its maker only if the maker died before it told the node.
        assert [len(shoal.get(text, timeout=60)) for text, _ in pairs] == sizes


def _die_after(owner: Any, name: str) -> None:
    """Have this worker killed once it has done `owner.name(...)` and the node has heard of it, before any reply."""
    done = getattr(owner, name)

    def do_and_die(*args: Any) -> None:
        done(*args)
        core.current().reactor.flush_dirty()
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, do_and_die)


@pytest.mark.parametrize("retries", [0, 1])
def test_a_worker_dies_between_holding_refs_for_its_submitter_and_the_reply(
    retries: int, tmp_path: Any, freed: None
) -> None:
    mark = str(tmp_path / "tried")

    @shoal.remote(max_retries=retries)
    def hand_over() -> Any:
        refs = [shoal.put(BIG), shoal.put(SMALL)]
        if not os.path.exists(mark):
            open(mark, "w").close()
            _die_after(core.current().objects, "hold_for")
        return refs

    result = hand_over.remote()
    if retries:
        assert shoal.get(shoal.get(result, timeout=60)) == [BIG, SMALL]
    else:
        with pytest.raises(WorkerCrashedError):
            shoal.get(result, timeout=60)


def test_a_worker_dies_between_storing_its_result_and_the_reply(freed: None) -> None:
    @shoal.remote(max_retries=0)
    def store() -> bytes:
        _die_after(core.current(), "store_blob")
        return BIG

    with pytest.raises(WorkerCrashedError):
        shoal.get(store.remote(), timeout=60)


def test_refs_of_another_cluster_are_lost() -> None:
    from shoal.runtime.objects import restore_ref

    stranger = restore_ref(os.urandom(20), os.urandom(16))
    unknown = restore_ref(os.urandom(20), core.current().node_id)
    start = time.perf_counter()
    with pytest.raises(ObjectLostError, match="another cluster"):
        shoal.get(stranger, timeout=60)
    with pytest.raises(ObjectLostError, match="another cluster"):
        shoal.get(unknown, timeout=60)
    with pytest.raises(ObjectLostError):
        shoal.get(same.remote(restore_ref(os.urandom(20), os.urandom(16))), timeout=60)
    assert time.perf_counter() - start < 30


# ---------------------------------------------------------------- in the long run


def test_nothing_is_left_of_many_tasks() -> None:
    shoal.get([same.remote(i) for i in range(2000)], timeout=60)
    before = settled_counts()
    own = os.getpid()
    grown = _resident_bytes(own)
    for _ in range(20):
        shoal.get([same.remote(i) for i in range(1000)], timeout=60)
    wait_for_counts(before)
    grown = _resident_bytes(own) - grown
    assert grown < 8 << 20, f"the driver grew by {grown} bytes over 20,000 tasks"


def _resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * 4096


@shoal.remote(num_cpus=0)
def tell_when_freed(stored: int, path: Path) -> None:
    """Make a file when the store has come down to so many objects."""
    eventually(lambda: counts()["stored"] <= stored)
    path.touch()


@pytest.mark.parametrize("idle_s", [0.0, 0.3])
def test_freed_while_the_driver_does_nothing(idle_s: float, tmp_path: Path) -> None:
    """Nobody calls the API after the drop: the background must see to it, however long it slept."""
    before = settled_counts()
    refs = [shoal.put(BIG), shoal.put([shoal.put(BIG)])]
    for turn in range(2):
        watch = tell_when_freed.remote(before["stored"] + len(refs) - 1, tmp_path / str(turn))
        shoal.wait([watch], timeout=0.2)
        time.sleep(idle_s)
        refs.pop()
        eventually((tmp_path / str(turn)).exists)
    del watch
    wait_for_counts(before)


def test_freed_when_a_thread_of_an_idle_actor_drops(keepers: list[Any], tmp_path: Path) -> None:
    import threading

    def drop_later(self: Any) -> None:
        threading.Timer(0.3, self.kept.clear).start()

    before = settled_counts()
    shoal.get(keepers[0].make.remote(BIG), timeout=60)
    watch = tell_when_freed.remote(before["stored"], tmp_path / "freed")
    shoal.get(keepers[0].__shoal_call__.remote(drop_later), timeout=60)
    eventually((tmp_path / "freed").exists)
    del watch


def test_counts_are_told() -> None:
    before = settled_counts()
    refs = [shoal.put(BIG), shoal.put(SMALL)]
    holder = shoal.put(refs)
    eventually(lambda: counts()["stored"] == before["stored"] + 1)
    assert counts()["objects"] == before["objects"] + 2
    del refs, holder
    wait_for_counts(before)
