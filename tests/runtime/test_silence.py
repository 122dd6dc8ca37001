"""What an actor that may live elsewhere by now has to say stays with it, by whichever way it would leave, and comes out whole and in order later."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from tests.runtime.played_machine import FakePage
from tests.runtime.simulation import World

from shoal.protocol.messages import (
    Answer,
    Call,
    Claims,
    Containing,
    Failed,
    Many,
    Publish,
    SubmitterDied,
    ToDaemon,
)
from shoal.runtime.jobs import SubmitterPeer
from shoal.runtime.orphans import GONE_MAX, OrphanTasks
from shoal.runtime.reactor import Connection, Reactor
from shoal.runtime.received_refs import CalledRefs
from shoal.wire.framing import FrameDecoder


class Page:
    """The word of the status page that counts here."""

    silenced = False

    def is_silenced(self) -> bool:
        return self.silenced


class Far:
    """The other end of a connection: what has come so far."""

    def __init__(self, reactor: Reactor, expected: Any, causal: bool = False) -> None:
        mine, self.sock = socket.socketpair()
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.sock.setblocking(False)
        self.connection = reactor.add(mine, lambda connection: None, causal=causal)
        self._decoder: FrameDecoder[Any] = FrameDecoder(expected)
        self.came: list[Any] = []

    def look(self) -> list[Any]:
        while True:
            try:
                data = self.sock.recv(1 << 16)
            except BlockingIOError:
                return self.came
            if not data:
                return self.came
            self.came.extend(self._decoder.receive_data(data))


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    reactor = Reactor()
    reactor.leash = Page()  # type: ignore[assignment]
    yield reactor
    reactor.stop()


@pytest.mark.parametrize("seed", range(8))
def test_nothing_leaves_while_it_is_silent(reactor: Reactor, seed: int) -> None:
    dice = random.Random(seed)
    page: Any = reactor.leash
    daemon, peers = Far(reactor, ToDaemon, causal=True), [Far(reactor, Answer) for _ in range(3)]
    for peer in peers:
        peer.connection.withholds = True
    said: dict[Connection, int] = dict.fromkeys([peer.connection for peer in peers], 0)

    def speak() -> None:
        connection = dice.choice(peers).connection
        said[connection] += 1
        answer = Answer(said[connection], "x" * dice.choice((1, 10, 3000)))
        (connection.send_now if dice.random() < 0.5 else connection.send)(answer)

    def hold() -> None:
        daemon.connection.send(Call(1, "a hold on another node's object", {}))
        reactor.await_confirmation()

    def toggle() -> None:
        page.silenced = not page.silenced
        if not page.silenced:
            reactor.on_may_answer()

    steps = [speak, speak, speak, hold, toggle, reactor.flush_dirty]
    steps.append(lambda: reactor.on_holds_confirmed(dice.randint(reactor.holds_confirmed, reactor.holds_written)))
    steps.append(lambda: reactor._dispatch(reactor.epoll.poll(0)))  # room to write, perhaps
    for _ in range(300):
        if dice.random() < 0.5:
            for peer in peers:
                peer.look()
        before = {peer: len(peer.look()) for peer in peers} if page.silenced else {}
        with reactor.lock:
            dice.choice(steps)()
            if page.silenced:
                assert all(len(peer.look()) == count for peer, count in before.items())
        daemon.look()
    if page.silenced:
        toggle()
    reactor.on_holds_confirmed(reactor.holds_written)
    for _ in range(1000):
        reactor.flush_dirty()
        reactor._dispatch(reactor.epoll.poll(0))
        if all(len(peer.look()) == said[peer.connection] for peer in peers):
            break
    for peer in peers:
        assert [answer.request for answer in peer.came] == list(range(1, said[peer.connection] + 1))


def test_a_worker_that_becomes_an_actor_while_it_registers_is_held_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """`BecomeActor` may be read together with `Registered`: before the worker has its page, in which its leash stands."""
    monkeypatch.setattr(FakePage, "is_leashed", lambda page: True)
    monkeypatch.setattr(FakePage, "is_silenced", lambda page: False, raising=False)
    with World(0) as world:
        host = world.spawn()
        page, host.executor.page = host.page, None  # type: ignore[assignment]
        world.place(world.add_actor(0))
        world.whole = True
        host.flush_daemon()
        host.deliver()
        assert host.executor.host.has_work(), "it has read that it is an actor"
        host.executor.page = page
        for _ in range(3):
            world.step_worker(host)
        assert host.reactor.leash is page  # type: ignore[comparison-overlap]


def idle_executor(reactor: Reactor) -> Any:
    """What `OrphanTasks` looks at."""
    called = CalledRefs(SimpleNamespace(reactor=reactor))  # type: ignore[arg-type]
    return SimpleNamespace(reactor=reactor, queue=[], running=None, actor=None, called=called, accept=lambda: None)


def test_what_cannot_be_told_for_the_dead_is_not_waited_for(reactor: Reactor) -> None:
    """Of several results those with refs inside are lost with their submitter; the last of the others says that no more follow."""
    daemon, caller = Far(reactor, ToDaemon, causal=True), Far(reactor, Answer)
    orphans = OrphanTasks(idle_executor(reactor))
    peer = caller.connection.attachment = SubmitterPeer()
    peer.worker_id = b"c" * 16
    three = (3).to_bytes(4, "big")
    values = Many([b"one", b"two", Containing(b"three", [b"r" * 20])])
    peer.unread.append(([(1, values), (2, Failed(b"all"))], [b"t" * 16 + three, b"u" * 16 + three]))
    orphans.note_gone(caller.connection)
    with reactor.lock:
        reactor.handlers[SubmitterDied](daemon.connection, SubmitterDied(peer.worker_id))
        reactor.flush_dirty()
    *told, claims = daemon.look()
    assert [(each.value, each.left) for each in told[:2]] == [(b"one", 1), (b"two", 0)]
    assert [(type(each.value), each.left) for each in told[2:]] == [(Failed, 2), (Failed, 1), (Failed, 0)]
    assert claims.begun and all(each.of == peer.worker_id for each in told)


def test_answers_to_the_dead_wait_as_well(reactor: Reactor) -> None:
    """What it would tell its daemon for a dead caller goes to all who hold the ref, on whichever node."""
    page: Any = reactor.leash
    daemon, caller = Far(reactor, ToDaemon, causal=True), Far(reactor, Answer)
    executor = idle_executor(reactor)
    orphans = OrphanTasks(executor)
    peer = caller.connection.attachment = SubmitterPeer()
    peer.worker_id = b"c" * 16
    peer.unread.append(([(1, b"told")], [b"t" * 16]))
    orphans.note_gone(caller.connection)
    page.silenced = True
    with reactor.lock:
        reactor.handlers[SubmitterDied](daemon.connection, SubmitterDied(peer.worker_id))
        orphans.publish(peer.worker_id, [(2, b"later")], [b"u" * 16])
        reactor.flush_dirty()
    assert daemon.look() == []
    page.silenced = False
    with reactor.lock:
        reactor.on_may_answer()
        reactor.flush_dirty()
    told, claims, later = daemon.look()
    assert (type(told), told.value, type(later), later.value) == (Publish, b"told", Publish, b"later")
    assert type(claims) is Claims and claims.process == peer.worker_id


class Gone:
    """The connection of a caller that is gone."""

    def __init__(self, number: int) -> None:
        self.attachment = SubmitterPeer()
        self.attachment.worker_id = number.to_bytes(16, "big")


def test_a_task_of_a_caller_that_is_gone_for_long_is_claimed_all_the_same() -> None:
    reactor = Reactor()
    said: list[Any] = []
    reactor.causal = SimpleNamespace(send_now=said.append, out=b"")  # type: ignore[assignment]
    gone = [Gone(number) for number in range(3 * GONE_MAX)]
    template = SimpleNamespace(outlives=True)
    running, queued = (
        SimpleNamespace(connection=gone[number], task_id=bytes([number]) * 16, template=template, cancelled=False)
        for number in (0, 1)
    )
    executor = idle_executor(reactor)
    executor.queue, executor.running = [queued], running
    orphans = OrphanTasks(executor)
    for connection in gone:
        orphans.note_gone(connection)  # type: ignore[arg-type]
    assert len(orphans._gone) == GONE_MAX + 2, "those that have nothing here are forgotten at last"
    for number in (0, 1):
        orphans._tell(reactor.causal, gone[number].attachment.worker_id)  # type: ignore[arg-type]
    assert [claims.task_ids for claims in said] == [[bytes(16)], [bytes([1]) * 16]]
    reactor.causal = None
    reactor.stop()
