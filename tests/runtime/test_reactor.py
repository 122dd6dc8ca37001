"""The reactor with real sockets and threads: no wake-up is lost, nobody reads out of turn, interrupts leave it whole."""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from time import perf_counter, sleep
from typing import Any

import pytest

from shoal.protocol.messages import Answer, Call
from shoal.runtime import core
from shoal.runtime.objects import ObjectEntry, ObjectRef
from shoal.runtime.reactor import Connection, Reactor, Waiter
from shoal.wire.framing import FrameDecoder, encode_frame

LONG_S = 60.0  #: a wait that lasts so long was forgotten


class Echo:
    """The other side of some connections: answers each call after the time that the call asks for."""

    def __init__(self, reactor: Reactor, count: int = 1) -> None:
        self.reactor = reactor
        self.waiters: dict[int, Waiter] = {}
        self.connections: list[Connection] = []
        self._ends: dict[int, tuple[socket.socket, FrameDecoder[Any]]] = {}
        self._numbers = iter(range(1, 1 << 30))
        self._stop = False
        reactor.handlers[Answer] = self._on_answer
        for index in range(count):
            mine, other = socket.socketpair()
            self.connections.append(reactor.add(mine, lambda connection: None, causal=index == 0))
            self._ends[other.fileno()] = (other, FrameDecoder(Call))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def ask(self, delay_s: float, index: int = 0) -> Waiter:
        """Send a call; the waiter is done when its answer was read."""
        waiter = Waiter()
        with self.reactor.lock:
            number = next(self._numbers)
            self.waiters[number] = waiter
            self.connections[index].send(Call(number, "echo", {"delay_s": delay_s}))
        return waiter

    def _on_answer(self, connection: Connection, message: Answer) -> None:
        self.waiters.pop(message.request).arrived()

    def _serve(self) -> None:
        due: list[tuple[float, int, socket.socket]] = []
        while not self._stop:
            ready, _, _ = select.select(list(self._ends), [], [], 0.0002 if due else 0.01)
            for fd in ready:
                end, decoder = self._ends[fd]
                for call in decoder.receive_data(end.recv(65536)):
                    due.append((perf_counter() + call.body["delay_s"], call.request, end))
            now = perf_counter()
            for when, number, end in [each for each in due if each[0] <= now]:
                due.remove((when, number, end))
                end.sendall(encode_frame(Answer(number, None)))

    def stop(self) -> None:
        self._stop = True
        self._thread.join()
        for end, _ in self._ends.values():
            end.close()


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    made = Reactor()
    yield made
    made.stop()


@pytest.fixture
def echo(reactor: Reactor) -> Iterator[Echo]:
    made = Echo(reactor, 3)
    yield made
    made.stop()


def in_threads(count: int, body: Callable[[int], None]) -> None:
    """Run `body(index)` in threads; the first error is raised here."""
    failures: list[BaseException] = []

    def run(index: int) -> None:
        try:
            body(index)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread waits for ever"
    if failures:
        raise failures[0]


@pytest.mark.parametrize("background", [False, True], ids=["alone", "background"])
def test_eight_threads_lose_no_wakeup(reactor: Reactor, echo: Echo, background: bool) -> None:
    """Without a background thread nobody repairs what leader and followers forget."""
    if background:
        reactor.is_active = lambda: bool(echo.waiters)
        reactor.start_background()
    end = perf_counter() + 1.5

    def body(index: int) -> None:
        dice = random.Random(index)
        while perf_counter() < end:
            waiter = echo.ask(dice.choice((0.0, 0.0, 0.0003, 0.003)), dice.randrange(3))
            if dice.random() < 0.3:
                reactor.wait(waiter, perf_counter() + dice.choice((0.0, 0.0002, 0.002)))
            assert reactor.wait(waiter, perf_counter() + LONG_S), "an answer came and its waiter was not told"
            if dice.random() < 0.1:
                sleep(0.001)

    in_threads(8, body)
    assert not reactor._followers and not echo.waiters


def test_the_background_reads_for_nobody_and_hands_over(reactor: Reactor, echo: Echo) -> None:
    """Parking, attending and poking: a thing begun by a thread that does not wait is finished by the background."""
    reactor.is_active = lambda: bool(echo.waiters)
    reactor.start_background()
    dice = random.Random(1)
    for _ in range(40):
        waiter = echo.ask(dice.choice((0.0, 0.001)))
        reactor.attend()
        until = perf_counter() + LONG_S
        if dice.random() < 0.5:
            while not waiter.done:
                assert perf_counter() < until, "the background does not read"
                sleep(0.0005)
        else:
            assert reactor.wait(waiter, until)
        sleep(dice.choice((0.0, 0.0, 0.002, 0.12)))  # 0.12: it parks


def test_deadlines_of_leader_and_follower(reactor: Reactor, echo: Echo) -> None:
    def body(index: int) -> None:
        start = perf_counter()
        assert not reactor.wait(Waiter(), start + 0.05)
        assert 0.05 <= perf_counter() - start < 30

    in_threads(4, body)
    assert not reactor._followers
    assert not reactor.wait(Waiter(), perf_counter() - 1)


def test_a_follower_is_promoted_when_the_leader_leaves(reactor: Reactor, echo: Echo) -> None:
    first, second = echo.ask(0.05), echo.ask(0.15)

    def body(index: int) -> None:
        assert reactor.wait((first, second)[index], perf_counter() + LONG_S)

    in_threads(2, body)


def test_a_promoted_thread_that_is_out_of_time_passes_the_lead_on(reactor: Reactor, echo: Echo) -> None:
    waiter = echo.ask(0.0)
    reactor._lead.acquire()
    thread = threading.Thread(target=reactor.wait, args=(waiter,), daemon=True)
    thread.start()
    while not reactor._followers:
        sleep(0.001)
    sleep(0.01)  # it sleeps
    reactor._lead.release()  # as a leader that promoted this thread, which now finds that its time is over:
    assert not reactor.wait(Waiter(), perf_counter() - 1)
    thread.join(LONG_S)
    assert not thread.is_alive(), "nobody reads"


def test_nested_waits_keep_the_lead(reactor: Reactor, echo: Echo) -> None:
    """A callback made by the leader may wait itself; an event loop's thread leads for good."""
    inner: list[bool] = []
    outer = echo.ask(0.0)

    def callback() -> None:
        reactor.poll_once()
        inner.append(reactor.wait(echo.ask(0.0), perf_counter() + LONG_S))
        assert reactor._lead._is_owned()  # type: ignore[attr-defined]

    reactor.later.append(callback)
    assert reactor.wait(outer, perf_counter() + LONG_S)
    assert inner == [True]
    assert not reactor._lead._is_owned()  # type: ignore[attr-defined]
    reactor.claim_lead()
    assert reactor.wait(echo.ask(0.0), perf_counter() + LONG_S)
    assert reactor._lead._is_owned()  # type: ignore[attr-defined]
    reactor.release_lead()
    assert not reactor._lead._is_owned()  # type: ignore[attr-defined]


def test_a_thousand_interrupts_leave_the_reactor_whole(reactor: Reactor, echo: Echo) -> None:
    """KeyboardInterrupt at random moments of waits, of leaders and of followers."""
    dice = random.Random(7)
    interrupts = 0
    end = False

    def on_alarm(number: int, frame: Any) -> None:
        if reactor.lock._is_owned():  # type: ignore[attr-defined]
            signal.setitimer(
                signal.ITIMER_REAL, 50e-6
            )  # in the middle of a message: a moment later, as the sessions do
            return
        raise KeyboardInterrupt

    def other() -> None:
        """Another thread that waits, so that the main one leads now and follows then."""
        while not end:
            assert reactor.wait(echo.ask(dice.choice((0.0, 0.0005))), perf_counter() + LONG_S)

    failures: list[BaseException] = []

    def run_other() -> None:
        try:
            other()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run_other, daemon=True)
    thread.start()
    before = signal.signal(signal.SIGALRM, on_alarm)
    try:
        while interrupts < 1000 and not failures:
            try:
                signal.setitimer(signal.ITIMER_REAL, dice.uniform(20e-6, 1e-3))
                while True:
                    reactor.wait(echo.ask(dice.choice((0.0, 0.0003))), perf_counter() + LONG_S)
            except KeyboardInterrupt:
                interrupts += 1
            assert not reactor._lead._is_owned(), f"interrupt {interrupts}: this thread leads without waiting"  # type: ignore[attr-defined]
            assert not reactor.lock._is_owned()  # type: ignore[attr-defined]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        end = True
    thread.join(LONG_S * 2)
    assert not failures, failures
    assert not thread.is_alive()
    assert reactor.wait(echo.ask(0.0), perf_counter() + LONG_S)


# ---------------------------------------------------------------- writing


def small_pair() -> tuple[socket.socket, socket.socket]:
    mine, other = socket.socketpair()
    mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    other.setblocking(False)
    return mine, other


def drained(end: socket.socket) -> bytes:
    out = b""
    while True:
        try:
            out += end.recv(1 << 16)
        except BlockingIOError:
            return out


def test_nothing_reaches_a_peer_before_what_the_daemon_was_told(reactor: Reactor) -> None:
    """The causal rule, with a daemon that does not read: however much it lags, a peer's frame waits for it."""
    daemon_socket, daemon_end = small_pair()
    peer_socket, peer_end = small_pair()
    daemon = reactor.add(daemon_socket, lambda connection: None, causal=True)
    peer = reactor.add(peer_socket, lambda connection: None)
    told = encode_frame(Call(1, "told", {"padding": b"x" * 300_000}))
    with reactor.lock:
        daemon.send(Call(1, "told", {"padding": b"x" * 300_000}))
        peer.send(Call(2, "then", {}))
        reactor.flush_dirty()
        assert daemon.stalled
        peer.send_now(Call(3, "and then", {}))
    received = b""
    at_peer = b""
    for _ in range(1000):
        at_peer += drained(peer_end)
        received += drained(daemon_end)
        assert not at_peer or received == told, (
            f"a peer was written to with {len(told) - len(received)} bytes left for the daemon"
        )
        if at_peer:
            break
        reactor.poll_once()
    assert at_peer == encode_frame(Call(2, "then", {})) + encode_frame(Call(3, "and then", {}))
    assert not daemon.stalled


def test_notes_are_written_before_a_peers_frame(reactor: Reactor) -> None:
    """Holds and releases are gathered; whoever writes to a peer writes them first."""
    daemon_socket, daemon_end = small_pair()
    peer_socket, peer_end = small_pair()
    daemon = reactor.add(daemon_socket, lambda connection: None, causal=True)
    peer = reactor.add(peer_socket, lambda connection: None)

    def write_notes() -> None:
        reactor.has_notes = False
        assert not drained(peer_end)
        daemon.send(Call(1, "note", {}))

    reactor.write_notes = write_notes
    reactor.has_notes = True
    with reactor.lock:
        peer.send_now(Call(2, "then", {}))
    assert drained(daemon_end) == encode_frame(Call(1, "note", {}))
    assert drained(peer_end) == encode_frame(Call(2, "then", {}))


def test_notes_that_the_last_message_left_are_written_before_the_background_sleeps(reactor: Reactor) -> None:
    """A result that nobody can take any more is freed when it comes, and nothing may come after it for hours."""
    mine, daemon = socket.socketpair()
    peer, other = socket.socketpair()
    causal = reactor.add(mine, lambda connection: None, causal=True)
    reactor.add(peer, lambda connection: None)

    def write_notes() -> None:
        reactor.has_notes = False
        causal.send(Call(1, "freed", {}))

    def on_answer(connection: Connection, message: Answer) -> None:
        reactor.has_notes = True

    reactor.write_notes = write_notes
    reactor.handlers[Answer] = on_answer
    daemon.settimeout(LONG_S)
    reactor.start_background()
    for number in range(5):  # the background may be on its way to sleep, or sleep
        other.sendall(encode_frame(Answer(number, None)))
        assert daemon.recv(65536) == encode_frame(Call(1, "freed", {}))
    daemon.close()
    other.close()


def test_a_stalled_peer_goes_on_and_keeps_the_order(reactor: Reactor) -> None:
    mine, end = small_pair()
    connection = reactor.add(mine, lambda connection: None)
    expected = b""
    dice = random.Random(3)
    received = b""
    for number in range(200):
        message = Call(number, "m", {"padding": b"y" * dice.randrange(5000)})
        expected += encode_frame(message)
        with reactor.lock:
            connection.send(message) if dice.random() < 0.5 else connection.send_now(message)
        if dice.random() < 0.3:
            received += drained(end)
            reactor.poll_once()
    for _ in range(10_000):
        if len(received) == len(expected):
            break
        received += drained(end)
        reactor.poll_once()
    assert received == expected
    assert not connection.stalled and not connection.out


def test_what_makes_others_let_go_waits_for_holds_on_other_nodes(reactor: Reactor) -> None:
    """Each frame waits for the holds that were written before it, and for no later ones; order and stalls are as ever."""
    for seed in range(5):
        mine, end = small_pair()
        connection = reactor.add(mine, lambda connection: None)
        connection.withholds = True
        dice = random.Random(seed)
        expected = received = b""
        allowed = {reactor.holds_written: 0}  # holds -> length of what may be read when so many are confirmed
        for number in range(300):
            kind = dice.randrange(5)
            with reactor.lock:
                if kind == 0 and reactor.holds_written - reactor.holds_confirmed < 4:
                    reactor.await_confirmation()
                elif kind == 1 and reactor.unconfirmed:
                    reactor.on_holds_confirmed(dice.randint(reactor.holds_confirmed + 1, reactor.holds_written))
                else:
                    message = Call(number, "m", {"padding": b"y" * dice.randrange(5000)})
                    expected += encode_frame(message)
                    connection.send(message) if dice.random() < 0.5 else connection.send_now(message)
                allowed[reactor.holds_written] = len(expected)
            if dice.random() < 0.5:
                received += drained(end)
                reactor.poll_once()
            assert len(received) <= max(length for count, length in allowed.items() if count <= reactor.holds_confirmed)
        with reactor.lock:
            if reactor.unconfirmed:
                reactor.on_holds_confirmed(reactor.holds_written)
        for _ in range(10_000):
            if len(received) == len(expected):
                break
            received += drained(end)
            reactor.poll_once()
        assert received == expected
        assert not connection.out and not connection.stalled and not reactor.withheld
        reactor.close(connection)


@pytest.mark.parametrize(
    "garbage", [b"\xff" * 64, b"\5\0\0\0\x95\x05\x01\x02\x03", b"\1\0\0\0\xc1"], ids=["long", "types", "code"]
)
def test_garbage_ends_its_connection_and_nothing_else(reactor: Reactor, echo: Echo, garbage: bytes) -> None:
    mine, end = socket.socketpair()
    ended: list[Connection] = []
    connection = reactor.add(mine, ended.append)
    end.sendall(garbage)
    deadline = perf_counter() + LONG_S
    while not ended and perf_counter() < deadline:
        reactor.poll_once()
    assert ended == [connection] and connection.closed
    assert reactor.wait(echo.ask(0.0), perf_counter() + LONG_S)


def test_a_handler_that_raises_ends_its_connection_so_that_nobody_waits_for_the_rest(
    reactor: Reactor, echo: Echo, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, end = socket.socketpair()
    ended: list[Connection] = []
    connection = reactor.add(mine, ended.append)
    with end:
        end.sendall(encode_frame(Answer(1 << 40, None)))  # which no call has asked for: the handler raises KeyError
        assert reactor.wait(echo.ask(0.01), perf_counter() + LONG_S)
    assert ended == [connection] and connection.closed
    assert "mistake in shoal" in capsys.readouterr().err


def test_a_callback_that_raises_ends_neither_the_reader_nor_the_wait(
    reactor: Reactor, echo: Echo, capsys: pytest.CaptureFixture[str]
) -> None:
    def callback() -> None:
        raise ValueError("a user's callback")

    reactor.later.append(callback)
    assert reactor.wait(echo.ask(0.0), perf_counter() + LONG_S)
    assert "a user's callback" in capsys.readouterr().err


def test_a_fork_made_by_the_user_is_inert(echo: Echo, reactor: Reactor) -> None:
    """The child may not use the session, and drops its refs in peace; the parent goes on."""
    former = core.current_or_none()  # a session that other tests share
    runtime = core.Runtime("driver", b"0123456789abcdef")
    core.set_current(runtime)
    try:
        refs = [ObjectRef(ObjectEntry(bytes([index]) * 20)) for index in range(10)]
        child = os.fork()
        if not child:
            code = 1
            try:
                refs.clear()
                runtime.close()
                core.current()
            except RuntimeError:
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert core.current() is runtime
        assert reactor.wait(echo.ask(0.0), perf_counter() + LONG_S)
    finally:
        core.set_current(former)
        runtime.close()


def test_the_background_and_a_waiting_thread_do_not_take_turns(
    reactor: Reactor, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While somebody awaits, the background leads at once: it must leave the lead to a thread that it has promoted."""
    promotions = 0
    promote = reactor._promote

    def count() -> None:
        nonlocal promotions
        promotions += 1
        promote()

    monkeypatch.setattr(reactor, "_promote", count)
    reactor.is_active = lambda: bool(echo.waiters)
    reactor.start_background()
    reactor.async_wait_began()
    for _ in range(30):
        sleep(0.003)  # the background leads
        assert reactor.wait(echo.ask(0.01), perf_counter() + LONG_S)
    reactor.async_wait_ended()
    assert promotions < 200


def test_stop_ends_every_wait() -> None:
    """The eventfd must not be closed before a thread that it has woken in epoll has looked: it would sleep for ever."""
    for _ in range(100):
        reactor = Reactor()
        reactor.start_background()
        threads = [threading.Thread(target=reactor.wait, args=(Waiter(),), daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        reactor.stop()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
