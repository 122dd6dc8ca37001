"""Programs that do odd things: waits that nobody would end, tables that would only grow, user code that could break the runtime's own."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.runtime import core
from shoal.runtime.jobs import SubmitterPeer

pytestmark = pytest.mark.usefixtures("shoal_session")

WAIT_S = 60.0


class Worker:
    """A class whose actors cannot be shown."""

    def __repr__(self) -> str:
        raise ValueError("no repr")

    def fail(self) -> None:
        raise KeyError("the method's own")

    def threads(self) -> int:
        return threading.active_count()

    def numbers(self, count: int) -> Any:
        yield from range(count)

    def templates(self) -> int:
        return templates_known_here()


class AsyncWorker(Worker):
    async def fail(self) -> None:
        raise KeyError("the method's own")


def templates_known_here() -> int:
    """How many templates this worker keeps for those who call it."""
    peers = [connection.attachment for connection in core.current().reactor.connections.values()]
    return sum(len(peer.templates) for peer in peers if isinstance(peer, SubmitterPeer))


@shoal.remote
def nap(duration_s: float) -> float:
    time.sleep(duration_s)
    return duration_s


@pytest.mark.parametrize(("cls", "concurrency"), [(Worker, 1), (Worker, 2), (AsyncWorker, 2)])
def test_an_actor_whose_repr_raises_answers_with_the_error_of_its_method(cls: type, concurrency: int) -> None:
    actor = shoal.remote(cls).options(max_concurrency=concurrency, num_cpus=0).remote()
    for _ in range(3):  # more often than there are threads: each must survive it
        with pytest.raises(KeyError, match="the method's own"):
            shoal.get(actor.fail.remote(), timeout=WAIT_S)


def test_cancelling_in_one_thread_wakes_another_that_reads_the_sockets() -> None:
    """A queued task is cancelled without a message from anybody: the thread that waits in `epoll` must be told."""
    busy = [nap.remote(2 * WAIT_S) for _ in range(2)]
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            shoal.get(queued, timeout=WAIT_S)
        except BaseException as error:
            ended.append(error)

    queued = nap.remote(0)
    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.3)
    shoal.cancel(queued)
    thread.join(WAIT_S)
    for ref in busy:
        shoal.cancel(ref, force=True)
    assert [type(error).__name__ for error in ended] == ["TaskCancelledError"]


def test_threads_of_an_actor_are_started_as_they_are_needed() -> None:
    actor = shoal.remote(Worker).options(max_concurrency=60, num_cpus=0).remote()
    before = shoal.get(actor.threads.remote(), timeout=WAIT_S)
    for _ in range(60):
        shoal.get(actor.threads.remote(), timeout=WAIT_S)
    assert shoal.get(actor.threads.remote(), timeout=WAIT_S) < before + 20


def test_an_abandoned_stream_gives_its_thread_back() -> None:
    actor = shoal.remote(Worker).options(max_concurrency=2, num_cpus=0).remote()
    for _ in range(4):
        stream = actor.numbers.options(num_returns="streaming", _generator_backpressure_num_objects=2).remote(100)
        assert shoal.get(next(stream), timeout=WAIT_S) == 0
        del stream
    assert shoal.get(actor.threads.remote(), timeout=WAIT_S) > 0


@shoal.remote
def begin_stream(actor: Any) -> None:
    stream = actor.numbers.options(num_returns="streaming", _generator_backpressure_num_objects=2).remote(100)
    shoal.get(next(stream))
    import os

    os._exit(1)  # the consumer dies with the stream in its hands


def test_a_stream_whose_consumer_died_gives_its_thread_back() -> None:
    actor = shoal.remote(Worker).options(max_concurrency=2, num_cpus=0).remote()
    for _ in range(3):
        with pytest.raises(shoal.exceptions.WorkerCrashedError):
            shoal.get(begin_stream.options(max_retries=0).remote(actor), timeout=WAIT_S)
    assert shoal.get(actor.threads.remote(), timeout=WAIT_S) > 0


def test_a_task_that_closes_its_output_is_answered() -> None:
    @shoal.remote(max_retries=0)
    def close_output() -> int:
        print("no end of line", end="")
        sys.stdout.close()
        return 5

    assert shoal.get(close_output.remote(), timeout=WAIT_S) == 5


def test_a_worker_that_lingers_after_max_calls_is_not_fed() -> None:
    """It has left its lease as far as its submitter is concerned; tasks that are pushed to it bounce as fast as sockets are."""

    @shoal.remote(num_cpus=0)
    def child() -> None:
        time.sleep(1.5)

    @shoal.remote(max_calls=1)
    def parent() -> None:
        child.remote()

    def cpu_s() -> float:
        return time.process_time()

    used_s = cpu_s()
    shoal.get([parent.remote() for _ in range(4)], timeout=WAIT_S)
    assert cpu_s() - used_s < 0.5


@shoal.remote
def call_once(actor: Any) -> int:
    known: int = shoal.get(actor.threads.remote())
    return known


def test_handles_that_travel_leave_no_templates_with_their_actor() -> None:
    """Each copy of a handle makes templates of its own, and goes with its task."""
    actor = shoal.remote(Worker).options(num_cpus=0).remote()
    for _ in range(5):
        shoal.get([call_once.remote(actor) for _ in range(20)], timeout=WAIT_S)
    deadline = time.monotonic() + WAIT_S
    while (known := shoal.get(actor.templates.remote(), timeout=WAIT_S)) > 20 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert known <= 20


def test_options_in_a_loop_leave_no_templates_with_the_worker() -> None:
    look = shoal.remote(templates_known_here)
    most = max(shoal.get(look.options(num_cpus=1).remote(), timeout=WAIT_S) for _ in range(3000))
    assert most < 1000  # they are told at each tick: about a hundred calls, more on a busy machine


def test_a_future_ends_with_the_session_and_so_does_what_is_submitted_after() -> None:
    shoal.shutdown()
    shoal.init(num_cpus=1, log_to_driver=False)
    future = nap.remote(2 * WAIT_S).future()
    runtime = core.current()
    shoal.shutdown()
    with pytest.raises(RuntimeError, match="shutdown"):
        future.result(timeout=WAIT_S)
    with pytest.raises(RuntimeError, match="shutdown"):
        runtime.request(lambda number: None, 1.0)
    shoal.init(num_cpus=2, log_to_driver=False)


def test_an_argument_that_was_spilled_leaves_nothing_in_its_readers_table() -> None:
    import numpy as np

    shoal.shutdown()
    shoal.init(num_cpus=1, object_store_memory=60_000_000, log_to_driver=False)

    @shoal.remote
    def first(values: Any) -> float:
        return float(values[0])

    @shoal.remote
    def known() -> int:
        return len(core.current().objects.table)

    refs = [shoal.put(np.full(2_000_000, number, dtype=float)) for number in range(6)]
    assert [shoal.get(first.remote(ref), timeout=WAIT_S) for ref in refs] == list(range(6))
    assert shoal.get(known.remote(), timeout=WAIT_S) == 0
    shoal.shutdown()
    shoal.init(num_cpus=2, log_to_driver=False)


def test_a_finalizer_that_waits_in_the_midst_of_the_runtime_ends() -> None:
    """A collection may call `__del__` under the runtime's lock, while another thread reads: that one must let it read."""
    values: list[float] = []

    class Waiting:
        def __del__(self) -> None:
            values.append(shoal.get(nap.remote(0.1), timeout=WAIT_S))

    reader = threading.Thread(target=lambda: values.append(shoal.get(nap.remote(0.3), timeout=WAIT_S)))
    reader.start()
    time.sleep(0.1)
    began = time.monotonic()
    with core.current().reactor.lock:
        waiting = Waiting()
        del waiting
    reader.join(WAIT_S)
    assert sorted(values) == [0.1, 0.3]
    assert time.monotonic() - began < WAIT_S / 2


def test_a_decoder_read_further_while_a_message_is_handled_gives_each_message_once() -> None:
    from shoal.protocol.messages import RevokeLease, ToRuntime
    from shoal.wire.framing import FrameDecoder, append_frame

    data = bytearray()
    for number in range(6):
        append_frame(data, RevokeLease(number))
    decoder: FrameDecoder[Any] = FrameDecoder(ToRuntime)
    half = len(data) // 2
    decoder.writable()[:half] = data[:half]
    seen = []
    for message in decoder.received(half):
        seen.append(message.lease_id)
        if message.lease_id == 1:
            decoder.writable()[: len(data) - half] = data[half:]
            seen += [inner.lease_id for inner in decoder.received(len(data) - half)]
    assert seen == list(range(6))


def test_classes_of_demands_go_when_nothing_uses_them() -> None:
    nothing = shoal.remote(lambda: None)
    for number in range(50):
        assert shoal.get(nothing.options(memory=1000 + number).remote(), timeout=WAIT_S) is None
    for number in range(50):
        nothing.options(memory=5000 + number).remote()  # nobody but the queue knows the task
    assert shoal.get(nothing.remote(), timeout=WAIT_S) is None
    submitter = core.current().submitter
    deadline = time.monotonic() + WAIT_S
    while len(submitter.classes) > 20 and time.monotonic() < deadline:  # leases last a second
        time.sleep(0.05)
    assert len(submitter.classes) <= 20


class Writer:
    """Its calls run once: each leaves a line."""

    def ready(self) -> bool:
        return True

    def big(self, path: str, number: int) -> bytes:
        with open(path, "a") as file:
            file.write(f"{number}\n")
        return bytes(90_000)

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_replies_that_a_caller_did_not_take_count_as_started_when_the_actor_dies(tmp_path: Path) -> None:
    """The caller is stopped; its socket is full, the rest of the replies goes down with the actor. Without retries nothing may run again."""
    path = tmp_path / "ran"
    count = 40
    actor = shoal.remote(Writer).options(num_cpus=0, max_restarts=1).remote()

    @shoal.remote(max_retries=0)
    def call(writer: Any) -> tuple[int, int]:
        shoal.get(writer.ready.remote())
        refs = [writer.big.remote(str(path), number) for number in range(count)]
        shoal.wait(refs, num_returns=count, timeout=0)  # sends what is gathered
        os.kill(os.getpid(), signal.SIGSTOP)
        came = lost = 0
        for ref in refs:
            try:
                shoal.get(ref)
                came += 1
            except shoal.exceptions.ActorUnavailableError:
                lost += 1
        return came, lost

    result = call.remote(actor)
    deadline = time.monotonic() + WAIT_S
    while (not path.exists() or len(path.read_text().split()) < count) and time.monotonic() < deadline:
        time.sleep(0.02)
    pids = [row["pid"] for row in core.current().call("node.workers")["workers"] if not row["actor_id"]]
    stopped = [pid for pid in pids if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"]
    with pytest.raises(shoal.exceptions.ActorUnavailableError):
        shoal.get(actor.die.remote(), timeout=WAIT_S)
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    came, lost = shoal.get(result, timeout=WAIT_S)
    assert stopped and came + lost == count and lost > 0
    assert sorted(map(int, path.read_text().split())) == list(range(count)), "a call ran twice"


def test_a_task_with_more_inline_values_than_a_frame_takes_is_refused_at_once() -> None:
    parts = shoal.remote(num_returns=700)(lambda: [bytes(99_000) for _ in range(700)]).remote()
    with pytest.raises(ValueError, match=r"700 arguments.*64 MB.*refs in a list"):
        shoal.get(shoal.remote(lambda *values: None).remote(*parts), timeout=WAIT_S)
    assert (
        shoal.get(shoal.remote(lambda refs: sum(map(len, shoal.get(refs)))).remote(parts), timeout=WAIT_S) == 69_300_000
    )


def test_results_beyond_what_a_frame_takes_are_stored() -> None:
    parts = shoal.remote(num_returns=3000)(lambda: [bytes([n % 251]) * 95_000 for n in range(3000)]).remote()
    values = shoal.get(parts, timeout=60)
    assert [(len(value), value[0]) for value in values] == [(95_000, n % 251) for n in range(3000)]
