"""Refs outlive the processes that made them: owners are killed at every step, and whoever holds a ref gets its value.

Every task that matters appends a line to a file each time it runs. What runs when its owner dies goes on; what nobody runs is run, once.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.engine.node_counts import counts, eventually, settled_counts
from tests.engine.test_lost_objects import lose, note, runs

import shoal
from shoal.exceptions import ObjectReconstructionFailedError, OwnerDiedError, ShoalError, TaskCancelledError
from shoal.runtime import core

BIG = 200_000
STORE_BYTES = 24 << 20


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    shoal.shutdown()
    shoal.init(num_cpus=4, object_store_memory=STORE_BYTES, log_to_driver=False)
    yield
    shoal.shutdown()


@shoal.remote(num_cpus=0)
class Owner:
    """An actor that submits tasks, hands their refs on, and is killed."""

    def pid(self) -> int:
        return os.getpid()

    def submit(self, function: Any, *args: Any, **options: Any) -> Any:
        self.kept = [function.options(**options).remote(*args)]
        return self.kept

    def chain(self, path: str, depth: int, seconds: float) -> Any:
        ref = work.remote(path, "0", seconds)
        for number in range(1, depth):
            ref = work.remote(path, str(number), 0.0, ref)
        self.kept = [ref]
        return self.kept

    def store(self, value: Any) -> Any:
        self.kept = [shoal.put(value)]
        return self.kept


@shoal.remote(num_cpus=0)
def work(path: str, name: str, seconds: float, *inputs: Any) -> Any:
    note(path, name)
    time.sleep(seconds)
    note(path, name + "-done")
    return name


@shoal.remote(num_cpus=0)
def gated(path: str, name: str, gate: str) -> Any:
    """Ends when there is a file `gate`."""
    note(path, name)
    while not os.path.exists(gate):
        time.sleep(0.005)
    note(path, name + "-done")
    return name


@shoal.remote(num_cpus=0)
def large(path: str, name: str, seconds: float, size: int = BIG) -> Any:
    note(path, name)
    time.sleep(seconds)
    return b"x" * size


def kill(owner: Any) -> None:
    os.kill(shoal.get(owner.pid.remote(), timeout=60), signal.SIGKILL)
    with pytest.raises(ShoalError):
        shoal.get(owner.pid.remote(), timeout=60)


def until(path: Path, name: str, count: int = 1) -> None:
    deadline = time.monotonic() + 60
    while runs(path, name) < count:
        assert time.monotonic() < deadline, f"{name} did not run"
        time.sleep(0.005)


def test_a_running_task_goes_on(tmp_path: Path, freed: None) -> None:
    path = tmp_path / "runs"
    owner = Owner.remote()
    [ref] = shoal.get(owner.submit.remote(work, str(path), "a", 0.6), timeout=60)
    until(path, "a")
    kill(owner)
    assert shoal.get(ref, timeout=60) == "a"
    assert runs(path, "a") == 1


@pytest.mark.parametrize("force", [False, True])
def test_what_its_owner_left_running_is_cancelled(tmp_path: Path, force: bool, freed: None) -> None:
    path = tmp_path / "runs"
    owner = Owner.remote()
    [ref] = shoal.get(owner.submit.remote(work, str(path), "a", 60.0), timeout=60)
    until(path, "a")
    kill(owner)
    shoal.cancel(ref, force=force)
    with pytest.raises(TaskCancelledError):
        shoal.get(ref, timeout=60)
    assert runs(path, "a") == 1 and not runs(path, "a-done")


def test_a_running_task_with_a_large_result(tmp_path: Path, freed: None) -> None:
    path = tmp_path / "runs"
    owner = Owner.remote()
    [ref] = shoal.get(owner.submit.remote(large, str(path), "a", 0.5), timeout=60)
    until(path, "a")
    kill(owner)
    assert len(shoal.get(ref, timeout=60)) == BIG
    assert runs(path, "a") == 1


def test_what_had_not_begun_is_run_once(tmp_path: Path, freed: None) -> None:
    path = tmp_path / "runs"
    owner = Owner.remote()
    [ref] = shoal.get(owner.chain.remote(str(path), 5, 0.6), timeout=60)
    until(path, "0")
    kill(owner)
    assert shoal.get(ref, timeout=60) == "4"
    assert [runs(path, str(number)) for number in range(5)] == [1] * 5


def test_a_task_that_waits_for_a_worker(tmp_path: Path, freed: None) -> None:
    path = tmp_path / "runs"
    blockers = [work.options(num_cpus=4).remote(str(path), "blocker", 0.8)]
    until(path, "blocker")
    owner = Owner.remote()
    [ref] = shoal.get(owner.submit.remote(work, str(path), "a", 0.0, num_cpus=1, max_retries=0), timeout=60)
    kill(owner)
    assert shoal.get(ref, timeout=60) == "a"
    assert runs(path, "a") == 1
    del blockers


def test_what_has_ended_and_was_not_read_is_not_run_again(tmp_path: Path, freed: None) -> None:
    path = tmp_path / "runs"
    owner = Owner.remote()
    [ref] = shoal.get(owner.submit.remote(work, str(path), "a", 0.3), timeout=60)
    pid = shoal.get(owner.pid.remote(), timeout=60)
    until(path, "a")
    os.kill(pid, signal.SIGSTOP)
    until(path, "a-done")
    time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    assert shoal.get(ref, timeout=60) == "a"
    assert runs(path, "a") == 1


def test_nobody_adopts_from_a_stopped_owner(tmp_path: Path, freed: None) -> None:
    path, gate = tmp_path / "runs", tmp_path / "gate"
    owner = Owner.remote()
    [ref] = shoal.get(owner.submit.remote(work, str(path), "a", 0.0), timeout=60)
    assert shoal.get(ref, timeout=60) == "a"
    [late] = shoal.get(owner.submit.remote(gated, str(path), "late", str(gate)), timeout=60)
    pid = shoal.get(owner.pid.remote(), timeout=60)
    until(path, "late")
    os.kill(pid, signal.SIGSTOP)
    gate.touch()
    until(path, "late-done")
    assert shoal.get(ref, timeout=60) == "a", "what it had told is known"
    assert shoal.wait([late], timeout=0.5)[0] == []
    os.kill(pid, signal.SIGCONT)
    assert shoal.get(late, timeout=60) == "late"
    assert runs(path, "a") == runs(path, "late") == 1
    del ref, late


def test_a_busy_owner_is_not_robbed(tmp_path: Path, freed: None) -> None:
    path = tmp_path / "runs"

    @shoal.remote(num_cpus=0)
    class Busy:
        def submit(self) -> Any:
            return [work.remote(str(path), "a", 0.1)]

        def compute(self) -> None:
            end = time.monotonic() + 1
            while time.monotonic() < end:
                sum(range(1000))

    busy = Busy.remote()
    [ref] = shoal.get(busy.submit.remote(), timeout=60)
    busy.compute.remote()
    assert shoal.get(ref, timeout=60) == "a"
    assert runs(path, "a") == 1


def test_a_large_value_that_the_owner_had_put(freed: None) -> None:
    owner = Owner.remote()
    [ref] = shoal.get(owner.store.remote(b"y" * BIG), timeout=60)
    kill(owner)
    assert shoal.get(ref, timeout=60) == b"y" * BIG


def test_lost_after_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "runs"
    owner = Owner.remote()
    [ref] = shoal.get(owner.submit.remote(large, str(path), "a", 0.0, 2_000_000), timeout=60)
    assert len(shoal.get(ref, timeout=60)) == 2_000_000
    kill(owner)
    lose(ref)
    assert len(shoal.get(ref, timeout=60)) == 2_000_000
    assert runs(path, "a") == 2


def test_a_put_of_a_task_is_made_anew_by_running_the_task(tmp_path: Path) -> None:
    path = tmp_path / "runs"

    @shoal.remote
    def putting(number: float) -> Any:
        note(str(path), "putting")
        return [shoal.put(np.full(250_000, number))]

    [ref] = shoal.get(putting.remote(3.0), timeout=60)
    assert shoal.get(ref, timeout=60)[0] == 3
    lose(ref)
    assert shoal.get(ref, timeout=60)[0] == 3
    assert runs(path, "putting") == 2


def test_a_put_that_is_not_put_again(tmp_path: Path) -> None:
    path = tmp_path / "runs"

    @shoal.remote
    def fickle() -> Any:
        note(str(path), "fickle")
        return [shoal.put(np.zeros(250_000))] if runs(path, "fickle") == 1 else "nothing"

    [ref] = shoal.get(fickle.remote(), timeout=60)
    assert len(shoal.get(ref, timeout=60)) == 250_000
    lose(ref)
    with pytest.raises(ShoalError, match=r"(?s)fickle\(\), ran again and did not put it"):
        shoal.get(ref, timeout=60)


def test_an_owner_that_let_go_is_asked_to_make_it_anew(tmp_path: Path) -> None:
    path = tmp_path / "runs"

    @shoal.remote(num_cpus=0)
    class Forgetful:
        def submit(self) -> Any:
            return [large.remote(str(path), "a", 0.0, 2_000_000)]

        def ping(self) -> None:
            pass

    owner = Forgetful.remote()
    [ref] = shoal.get(owner.submit.remote(), timeout=60)
    assert len(shoal.get(ref, timeout=60)) == 2_000_000
    shoal.get(owner.ping.remote(), timeout=60)
    lose(ref)
    assert len(shoal.get(ref, timeout=60)) == 2_000_000
    assert runs(path, "a") == 2


def test_calls_of_an_actor(tmp_path: Path, freed: None) -> None:
    path = tmp_path / "runs"

    @shoal.remote(num_cpus=0)
    class Server:
        def serve(self, name: str, seconds: float) -> str:
            note(str(path), name)
            time.sleep(seconds)
            return name

    @shoal.remote(num_cpus=0)
    class Caller:
        def pid(self) -> int:
            return os.getpid()

        def call(self, server: Any) -> Any:
            return [server.serve.remote("running", 0.5), server.serve.remote("queued", 0.0)]

    server, caller = Server.remote(), Caller.remote()
    running, queued = shoal.get(caller.call.remote(server), timeout=60)
    until(path, "running")
    kill(caller)
    assert shoal.get([running, queued], timeout=60) == ["running", "queued"]
    assert runs(path, "running") == runs(path, "queued") == 1


class Busy:
    """An actor that stands at a gate while calls of it wait, with refs inside of their arguments."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def wait_for(self, gate: str) -> None:
        while not os.path.exists(gate):
            time.sleep(0.005)

    def measure(self, refs: list[Any]) -> None:
        self.sizes.append(len(shoal.get(refs[0], timeout=60)))

    def ignore(self, refs: list[Any]) -> None:
        """The refs are unpickled, and nobody asks for them."""

    def all_sizes(self) -> list[int]:
        return self.sizes


class BusyLoop(Busy):
    """The same on an event loop."""

    async def wait_for(self, gate: str) -> None:  # type: ignore[override]
        import asyncio

        while not os.path.exists(gate):
            await asyncio.sleep(0.005)

    async def measure(self, refs: list[Any]) -> None:  # type: ignore[override]
        self.sizes.append(len(await refs[0]))


@shoal.remote(num_cpus=0)
class Sender:
    """Sends refs of its own, and goes."""

    def pid(self) -> int:
        return os.getpid()

    def meet(self, busy: list[Any]) -> None:
        shoal.get([actor.all_sizes.remote() for actor in busy], timeout=60)

    def send(self, busy: list[Any], path: str, gate: str) -> int:
        name = str(os.getpid())
        for actor in busy:
            for ref in (gated.remote(path, name, gate), shoal.put(b"xx"), shoal.put(b"x" * BIG)):
                actor.measure.remote([ref])
            actor.ignore.remote([large.remote(path, name, 0.0)])
        shoal.get(work.remote(path, name, 0.0), timeout=60)  # who waits has sent what was to be sent
        return os.getpid()


def test_refs_inside_of_calls_that_wait(tmp_path: Path, freed: None) -> None:
    """They are held in the name of the actor that is called, whatever becomes of who has called it."""
    path, gate = str(tmp_path / "runs"), str(tmp_path / "gate")
    remote = shoal.remote(num_cpus=0)
    busy = [
        remote(Busy).remote(),
        remote(BusyLoop).options(max_concurrency=1).remote(),
        shoal.remote(num_cpus=0, concurrency_groups={"io": 1})(Busy).remote(),
        remote(Busy).options(checkpoint_interval=2).remote(),
    ]
    senders = [Sender.remote() for _ in range(3)]
    shoal.get([sender.meet.remote(busy) for sender in senders], timeout=60)
    waiting = [actor.wait_for.remote(gate) for actor in busy]
    pids = shoal.get([sender.send.remote(busy, path, gate) for sender in senders], timeout=60)
    os.kill(pids[0], signal.SIGKILL)
    shoal.kill(senders[1])
    del senders
    for pid in pids:
        eventually(lambda folder=f"/proc/{pid}": not os.path.exists(folder))
    settled_counts()  # what nobody holds is freed by now
    Path(gate).touch()
    assert shoal.get(waiting, timeout=60) == [None] * len(busy)
    told = [sorted(sizes) for sizes in shoal.get([actor.all_sizes.remote() for actor in busy], timeout=60)]
    assert told == [sorted(len(pids) * [2, BIG] + [len(str(pid)) for pid in pids])] * len(busy)


def test_what_may_not_run_again_says_so(tmp_path: Path, freed: None) -> None:
    path = tmp_path / "runs"

    @shoal.remote(num_cpus=0, max_retries=0)
    def suicidal(pid_of_owner: int) -> None:
        note(str(path), "suicidal")
        os.kill(pid_of_owner, signal.SIGKILL)
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)

    owner = Owner.remote()
    pid = shoal.get(owner.pid.remote(), timeout=60)
    [ref] = shoal.get(owner.submit.remote(suicidal, pid), timeout=60)
    with pytest.raises(OwnerDiedError, match=r"(?s)max_retries=0"):
        shoal.get(ref, timeout=60)
    assert runs(path, "suicidal") == 1


@pytest.mark.parametrize("seed", range(3))
def test_owners_killed_at_any_moment(tmp_path: Path, seed: int, freed: None) -> None:
    """Each owner dies somewhere between being asked and long after it has answered."""
    path = tmp_path / "runs"
    rng = random.Random(seed)
    for round_ in range(12):
        owner = Owner.remote()
        pid = shoal.get(owner.pid.remote(), timeout=60)
        answer = owner.chain.remote(str(path), 3, rng.random() * 0.03)
        time.sleep(rng.random() * 0.05)
        os.kill(pid, signal.SIGKILL)
        try:
            [ref] = shoal.get(answer, timeout=60)
        except ShoalError:
            continue  # it died before it had answered: nobody holds a ref
        assert shoal.get(ref, timeout=60) == "2", f"round {round_}"
        del ref


def test_children_of_a_repeated_task_are_not_run_again(tmp_path: Path, freed: None) -> None:
    path = tmp_path / "runs"

    @shoal.remote
    def parent() -> Any:
        note(str(path), "parent")
        child = work.remote(str(path), "child", 0.0)
        return [child, shoal.put(np.full(250_000, 3.0))]

    child, put = shoal.get(parent.remote(), timeout=60)
    assert shoal.get(child, timeout=60) == "child" and shoal.get(put, timeout=20)[0] == 3
    lose(put)
    assert shoal.get(put, timeout=60)[0] == 3
    assert runs(path, "parent") == 2 and runs(path, "child") == 1


def test_a_task_that_branches_differently_the_second_time(tmp_path: Path, freed: None) -> None:
    path = tmp_path / "runs"

    @shoal.remote
    def fickle() -> Any:
        note(str(path), "fickle")
        again = runs(path, "fickle") > 1
        child = (work if again else large).remote(str(path), "child", 0.0)
        return [child, shoal.put(np.full(250_000, 3.0))]

    child, put = shoal.get(fickle.remote(), timeout=60)
    assert len(shoal.get(child, timeout=60)) == BIG and shoal.get(put, timeout=20)[0] == 3
    lose(put)
    with pytest.raises(ObjectReconstructionFailedError, match=r"(?s)another way.*large\(\).*work\(\)"):
        shoal.get(put, timeout=60)
    assert len(shoal.get(child, timeout=60)) == BIG


# ---------------------------------------------------------------- what nobody was told of

SETTLES_S = 0.2  #: in which the node has settled what a dead owner had. A gate opened too early shows nothing, and fails nothing


class Gated:
    """A value that is pickled when there is a file `gate`."""

    def __init__(self, path: str, gate: str) -> None:
        self.path, self.gate = path, gate

    def __reduce__(self) -> Any:
        note(self.path, "pickles")
        while not os.path.exists(self.gate):
            time.sleep(0.005)
        return str, ("x",)


@shoal.remote(num_cpus=0, max_retries=0)
def several(path: str, gate: str, never: str) -> Any:
    """Several values, or a stream of them."""
    note(path, f"{os.getpid()}")
    note(path, "several")
    while not os.path.exists(gate):
        time.sleep(0.005)
    yield b"x" * BIG
    yield Gated(path, never)


def test_an_item_of_a_stream_that_is_made_when_its_reader_is_dead(tmp_path: Path, freed: None) -> None:
    path, gate = tmp_path / "runs", tmp_path / "gate"

    @shoal.remote(num_cpus=0)
    class Reader:
        def pid(self) -> int:
            return os.getpid()

        def read(self) -> None:
            self.kept = several.options(num_returns="streaming").remote(str(path), str(gate), "")

    reader = Reader.remote()
    shoal.get(reader.read.remote(), timeout=60)
    until(path, "several")
    kill(reader)
    time.sleep(SETTLES_S)
    gate.touch()


def test_a_worker_that_dies_in_the_middle_of_results_for_a_dead_owner(tmp_path: Path, freed: None) -> None:
    path, gate = tmp_path / "runs", tmp_path / "gate"

    @shoal.remote(num_cpus=0)
    class Asker:
        def pid(self) -> int:
            return os.getpid()

        def ask(self) -> None:
            self.kept = several.options(num_returns=2).remote(str(path), str(gate), str(tmp_path / "never"))

    stored = counts()["stored"]
    asker = Asker.remote()
    shoal.get(asker.ask.remote(), timeout=60)
    until(path, "several")
    kill(asker)
    time.sleep(SETTLES_S)
    gate.touch()
    until(path, "pickles")
    eventually(lambda: counts()["stored"] > stored)
    os.kill(int(path.read_text().split()[0]), signal.SIGKILL)


def test_results_before_one_that_cannot_be_sent(freed: None) -> None:
    @shoal.remote(num_returns=2)
    def half() -> Any:
        return b"x" * BIG, iter(number for number in range(2))

    refs = half.remote()
    for ref in refs:
        with pytest.raises(TypeError, match="cannot be sent"):
            shoal.get(ref, timeout=60)


def test_refs_in_results_before_one_that_cannot_be_sent(freed: None) -> None:
    """They come to nobody, and are not counted among those that came later from the same worker, whose death tells them apart."""

    @shoal.remote(num_cpus=4, num_returns=2, max_retries=0)
    def half() -> Any:
        return [shoal.put(b"x" * BIG)], iter(number for number in range(2))

    @shoal.remote(num_cpus=4, max_retries=0)
    def whole() -> Any:
        return [shoal.put(b"y" * BIG)], os.getpid()

    with pytest.raises(TypeError, match="cannot be sent"):
        shoal.get(half.remote(), timeout=60)
    [ref], pid = shoal.get(whole.remote(), timeout=60)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: pid not in [row["pid"] for row in core.current().call("node.workers")["workers"]])
    assert shoal.get(ref, timeout=60) == b"y" * BIG
