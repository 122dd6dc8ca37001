"""The object directory: each rule by itself, then a whole node of processes that pass refs around, against a dumb twin."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.node.object_directory import ObjectDirectory
from shoal.node.object_events import (
    ActorHandleGone,
    EnsureResident,
    Escaped,
    FreeStored,
    Held,
    Lost,
    Moved,
    NoRoom,
    OrphansSettled,
    ProcessDied,
    ProcessJoined,
    Published,
    Released,
    RequestSweep,
    ResolveAsked,
    SendBeingRemade,
    SendResolved,
    Swept,
)
from shoal.protocol.ids import actor_handle_id
from shoal.protocol.messages import Containing, Failed, Stored

A, B, C = b"a" * 16, b"b" * 16, b"c" * 16


def oid_of(number: int) -> bytes:
    return number.to_bytes(16, "big") + b"\0\0\0\1"


X, Y, Z = oid_of(1), oid_of(2), oid_of(3)


def stored(oid: bytes, generation: int = 1, nested: list[bytes] | None = None) -> Stored:
    return Stored(oid, 1, 0, 100, generation, nested or [])


class Node:
    """A directory, and the last things it asked for."""

    def __init__(self, *processes: bytes) -> None:
        self.directory = ObjectDirectory(lambda error: f"{type(error).__name__}: {error}".encode())
        self.token = 0
        for process in processes:
            self.tell(ProcessJoined(process))

    def tell(self, *events: Any) -> list[Any]:
        """Effects of the events, without the requests for sweeps, which are remembered."""
        out = []
        for event in events:
            for effect in self.directory.handle(event, 0.0):
                if type(effect) is RequestSweep:
                    assert not self.token, "one sweep at a time"
                    self.token = effect.token
                elif type(effect) is not OrphansSettled:  # for the store; see test_succession
                    out.append(effect)
        return out

    def sweep(self) -> list[Any]:
        token, self.token = self.token, 0
        return self.tell(Swept(token)) if token else []

    def settle(self) -> list[Any]:
        out = []
        while self.token:
            out += self.sweep()
        return out


def empty(node: Node) -> bool:
    counts = node.directory.statistics()
    return counts["objects"] == counts["holds"] == counts["candidates"] == 0


# ---------------------------------------------------------------- rules


def test_an_object_is_freed_after_its_last_release_and_a_sweep() -> None:
    node = Node(A, B)
    assert node.tell(Escaped(A, [X]), Published(A, X, stored(X)), Held(B, [X]), Released(A, [X])) == []
    assert node.token == 0
    assert node.tell(Released(B, [X])) == []
    assert node.sweep() == [FreeStored(X)]
    assert empty(node) and node.token == 0


def test_a_hold_read_late_keeps_the_object() -> None:
    node = Node(A, B)
    node.tell(Escaped(A, [X]), Published(A, X, stored(X)), Released(A, [X]))
    node.tell(Held(B, [X]))
    assert node.settle() == []
    node.tell(Released(B, [X]))
    assert node.settle() == [FreeStored(X)]


def test_a_count_that_came_back_to_zero_needs_a_new_sweep() -> None:
    node = Node(A, B)
    node.tell(Escaped(A, [X]), Published(A, X, stored(X)), Released(A, [X]))
    node.tell(Held(B, [X]), Released(B, [X]))
    assert node.sweep() == []
    assert node.sweep() == [FreeStored(X)]


def test_a_row_may_be_negative_for_a_moment() -> None:
    node = Node(A, B)
    node.tell(Escaped(A, [X]), Published(A, X, stored(X)), Released(B, [X]), Released(A, [X]))
    assert node.directory.holders(X) == {B: -1}
    assert node.settle() == []
    node.tell(Held(A, [X], holder=B))
    assert node.settle() == [FreeStored(X)]
    assert empty(node)


def test_a_hold_may_come_before_the_escape() -> None:
    node = Node(A, B)
    node.tell(Held(B, [X]), Released(B, [X]))
    node.tell(Escaped(A, [X]), Published(A, X, b"v"))
    assert node.settle() == []
    assert node.directory.value_of(X) == b"v"


def test_a_repeated_escape_counts_once() -> None:
    node = Node(A)
    node.tell(Escaped(A, [X]), Escaped(A, [X]), Published(A, X, stored(X)), Released(A, [X]))
    assert node.settle() == [FreeStored(X)]


def test_a_value_is_sent_when_it_is_known() -> None:
    node = Node(A, B, C)
    node.tell(Escaped(A, [X]), Held(B, [X]), Held(C, [X]))
    assert node.tell(ResolveAsked(B, [X]), ResolveAsked(B, [X]), ResolveAsked(C, [X])) == []
    assert node.tell(Published(A, X, b"v")) == [SendResolved(B, X, b"v"), SendResolved(C, X, b"v")]
    assert node.tell(ResolveAsked(B, [X])) == [SendResolved(B, X, b"v")]


def test_an_unknown_object_waits_for_its_escape() -> None:
    node = Node(A, B)
    assert node.tell(Held(B, [X]), ResolveAsked(B, [X])) == []
    assert node.tell(Escaped(A, [X])) == []
    assert node.settle() == []
    assert node.tell(Published(A, X, b"v")) == [SendResolved(B, X, b"v")]


def test_an_object_unknown_after_a_sweep_is_lost() -> None:
    node = Node(B)
    node.tell(Held(B, [X]), ResolveAsked(B, [X]))
    [answer] = node.settle()
    assert type(answer.value) is Failed and answer.value.error.startswith(b"ObjectLostError")
    node.tell(Released(B, [X]))
    node.settle()
    assert empty(node)


def test_what_a_dead_owner_published_stays_while_held() -> None:
    node = Node(A, B)
    node.tell(Escaped(A, [X]), Published(A, X, stored(X)), Held(B, [X]), ProcessDied(A, "SIGKILL"))
    assert node.settle() == []
    assert node.tell(ResolveAsked(B, [X])) == [SendResolved(B, X, stored(X))]
    node.tell(Released(B, [X]))
    assert node.settle() == [FreeStored(X)]


def test_what_a_dead_owner_did_not_publish_fails() -> None:
    node = Node(A, B)
    node.tell(Escaped(A, [X]), Held(B, [X]), ResolveAsked(B, [X]))
    [answer] = node.tell(ProcessDied(A, "SIGKILL"))
    assert answer.process == B and answer.value.error.startswith(b"OwnerDiedError") and b"SIGKILL" in answer.value.error
    [again] = node.tell(ResolveAsked(B, [X]))
    assert again.value == answer.value
    node.tell(Released(B, [X]))
    node.settle()
    assert empty(node)


def test_nothing_is_taken_from_the_dead_or_the_unknown() -> None:
    node = Node(A, B)
    node.tell(Escaped(A, [X]), Published(A, X, stored(X)), Held(B, [X]), ProcessDied(B, ""))
    node.tell(Held(B, [X]), Held(A, [X], holder=B), Held(C, [X]), Escaped(C, [Y]), Published(C, Y, b""))
    assert node.tell(ResolveAsked(C, [X])) == []
    node.tell(Released(A, [X]))
    assert node.settle() == [FreeStored(X)]
    assert empty(node)


def test_a_container_holds_what_is_inside_until_it_is_freed() -> None:
    node = Node(A, B)
    node.tell(Escaped(A, [X, Y]), Published(A, X, stored(X)), Published(A, Y, stored(Y, nested=[X, X])))
    node.tell(Held(B, [Y]), Released(A, [X]), Released(A, [Y]))
    assert node.settle() == []
    node.tell(Released(B, [Y]))
    assert node.sweep() == [FreeStored(Y), FreeStored(X)]
    assert empty(node)


def test_a_chain_of_any_depth_goes_with_one_sweep() -> None:
    node = Node(A)
    depth = 5000
    node.tell(Escaped(A, [oid_of(0)]), Published(A, oid_of(0), stored(oid_of(0))))
    for number in range(1, depth):
        oid, inner = oid_of(number), oid_of(number - 1)
        node.tell(Escaped(A, [oid]), Published(A, oid, stored(oid, nested=[inner])), Released(A, [inner]))
        node.settle()
    node.tell(Released(A, [oid_of(depth - 1)]))
    assert len(node.sweep()) == depth
    assert empty(node)


def test_what_was_touched_after_the_token_outlives_its_container_by_a_sweep() -> None:
    node = Node(A, B)
    node.tell(Escaped(A, [X, Y]), Published(A, X, stored(X)), Published(A, Y, Containing(b"", [X])))
    node.tell(Released(A, [X]), Released(A, [Y]))
    node.tell(Held(B, [X]), Released(B, [X]))
    assert node.sweep() == []
    assert node.sweep() == [FreeStored(X)]
    assert empty(node)


def test_a_value_published_after_the_last_release_is_freed_too() -> None:
    node = Node(A)
    node.tell(Escaped(A, [X]), Released(A, [X]))
    assert node.settle() == [] and empty(node)
    node.tell(Published(A, X, stored(X)))
    assert node.settle() == [FreeStored(X)]
    assert empty(node)


def test_publishing_anew_exchanges_what_is_inside() -> None:
    node = Node(A)
    node.tell(Escaped(A, [X, Y, Z]), Published(A, X, stored(X)), Published(A, Y, stored(Y)))
    node.tell(Published(A, Z, Containing(b"", [X])), Released(A, [X]), Released(A, [Y]))
    node.settle()
    node.tell(Escaped(A, [Y]), Published(A, Y, stored(Y)), Published(A, Z, Containing(b"", [Y])), Released(A, [Y]))
    assert node.settle() == [FreeStored(X)]
    node.tell(Released(A, [Z]))
    assert node.settle() == [FreeStored(Y)]


def test_the_last_hold_of_a_handle_ends_an_actor() -> None:
    node = Node(A, B)
    handle = actor_handle_id(b"t" * 16)
    node.tell(Escaped(A, [handle, X]), Published(A, X, stored(X)), Published(A, handle, Containing(b"", [X])))
    node.tell(Released(A, [X]), Held(B, [handle]), ProcessDied(A, ""))
    assert node.settle() == []
    node.tell(ProcessDied(B, ""))
    assert node.settle() == [ActorHandleGone(b"t" * 16), FreeStored(X)]


def test_a_stale_place_is_brought_back() -> None:
    node = Node(A, B)
    node.tell(Escaped(A, [X]), Published(A, X, stored(X, nested=[Y])), Held(B, [X]))
    assert node.tell(ResolveAsked(B, [X], stale_generation=1)) == [EnsureResident(X, B)]
    moved = Stored(X, 2, 64, 100, 9)
    assert node.tell(Moved(X, moved)) == [SendResolved(B, X, Stored(X, 2, 64, 100, 9, [Y]))]
    assert node.tell(ResolveAsked(B, [X], stale_generation=1)) == [SendResolved(B, X, Stored(X, 2, 64, 100, 9, [Y]))]
    assert node.tell(Moved(X, None), ResolveAsked(B, [X])) == [EnsureResident(X, B)]
    [ask, tell] = node.tell(Lost(X, "the disk is gone"))
    assert (ask.process, ask.oid, ask.held) == (A, X, False) and "disk is gone" in ask.reason
    assert tell == SendBeingRemade(B, X)
    assert node.tell(Lost(X, "said twice")) == [], "it is being made anew"
    again = stored(X, 2, nested=[Y])
    assert node.tell(Published(A, X, again)) == [SendResolved(B, X, again)]


def test_what_is_lost_after_its_owner_is_an_error() -> None:
    node = Node(A, B)
    node.tell(Escaped(A, [X]), Published(A, X, stored(X)), Held(B, [X]), ProcessDied(A, "killed"))
    node.tell(Moved(X, None), ResolveAsked(B, [X]))
    [answer] = node.tell(Lost(X, "the disk is gone"))
    assert b"disk" in answer.value.error
    assert node.tell(ResolveAsked(B, [X])) == [answer]


def test_an_owner_that_is_to_make_an_object_anew_dies() -> None:
    node = Node(A, B)
    node.tell(Escaped(A, [X]), Published(A, X, stored(X)), Held(B, [X]), Moved(X, None), ResolveAsked(B, [X]))
    node.tell(Lost(X, "the disk is gone"))
    [answer] = node.tell(ProcessDied(A, "killed"))
    assert answer.process == B and answer.value.error.startswith(b"OwnerDiedError")


def test_a_lost_object_that_never_escaped() -> None:
    node = Node(A, B)
    assert node.tell(ResolveAsked(B, [X], stale_generation=1)) == [EnsureResident(X, B)]
    [ask, tell] = node.tell(Lost(X, "the file is gone", A))
    assert (ask.process, ask.held) == (A, True) and tell == SendBeingRemade(B, X)
    assert node.settle() == [] and node.tell(ResolveAsked(B, [X], stale_generation=1)) == [tell]
    assert node.tell(Published(A, X, stored(X, 2))) == [SendResolved(B, X, stored(X, 2))]
    assert node.tell(Released(A, [X])) == [] and node.settle() == [FreeStored(X)]
    assert empty(node)


def test_a_stale_place_of_an_object_that_never_escaped() -> None:
    node = Node(A)
    assert node.tell(ResolveAsked(A, [X], stale_generation=3)) == [EnsureResident(X, A)]
    assert node.settle() == []
    assert node.tell(Moved(X, stored(X, 4))) == [SendResolved(A, X, stored(X, 4))]
    assert empty(node) and node.token == 0


def test_who_was_told_that_there_is_no_room_waits_no_longer() -> None:
    node = Node(A, B)
    node.tell(ResolveAsked(A, [X], stale_generation=3))
    assert node.tell(NoRoom(X, A)) == [] and empty(node), "of an object that never escaped nothing is left"
    node.tell(Escaped(A, [X]), Published(A, X, stored(X)), Held(B, [X]), Moved(X, None))
    node.tell(ResolveAsked(A, [X], stale_generation=1), ResolveAsked(B, [X], stale_generation=1))
    assert node.tell(NoRoom(X, A), NoRoom(X, A)) == []
    assert node.tell(Moved(X, stored(X, 2))) == [SendResolved(B, X, stored(X, 2))]
    node.tell(Released(A, [X]), Released(B, [X]), ResolveAsked(B, [X], stale_generation=2), NoRoom(X, B))
    assert node.settle() == [FreeStored(X)] and empty(node)


# ---------------------------------------------------------------- the node and its dumb twin
#
# Processes follow the protocol of the runtime (runtime/objects.py) in small; their sockets to the daemon and to each other are queues that
# advance in any order. The twin knows by looking at everything at once who still refers to an object.


@dataclass
class Entry:
    owned: bool
    count: int  #: handles, and uses by messages in flight and by owned containers
    handles: int = 1
    holds: int = 0
    escaped: bool = False
    #: refs inside: of an owned container each is counted once as in use
    inside: list[bytes] = field(default_factory=list)
    asked: bool = False
    known: bool = False


class Process:
    def __init__(self, name: bytes) -> None:
        self.name = name
        self.alive = True
        self.table: dict[bytes, Entry] = {}
        self.to_daemon: deque[Any] = deque()
        #: from the daemon
        self.inbox: deque[SendResolved] = deque()
        self.puts = 0
        #: (receiver, oid) of uses that the receiver has not acknowledged
        self.lent: list[tuple[int, bytes]] = []


class World:
    def __init__(self, count: int) -> None:
        self.node = Node()
        self.processes = [Process(bytes([65 + number]) * 16) for number in range(count)]
        for process in self.processes:
            self.node.tell(ProcessJoined(process.name))
        #: (sender, receiver) -> messages: ("use", oid), ("given", oid), ("done", oid)
        self.peers: dict[tuple[int, int], deque[tuple[str, bytes]]] = {
            (a, b): deque() for a in range(count) for b in range(count) if a != b
        }
        self.inside: dict[bytes, list[bytes]] = {}
        #: escaped objects not freed by the directory
        self.living: set[bytes] = set()
        self.seen_empty: set[int] = set()
        self.deaths = False
        self.freed = 0

    # -------- the runtime's protocol

    def put(self, who: int, inside_count: int) -> None:
        process = self.processes[who]
        process.puts += 1
        oid = process.name[:8] + process.puts.to_bytes(8, "big") + b"\x80\0\0\1"
        inside = list(process.table)[-inside_count:] if inside_count else []
        process.table[oid] = Entry(True, 1, inside=inside, known=True)
        self.inside[oid] = inside
        for inner in inside:
            self.escape(process, inner)
            process.table[inner].count += 1

    def escape(self, process: Process, oid: bytes) -> None:
        entry = process.table[oid]
        if entry.owned and not entry.escaped:
            entry.escaped, entry.holds = True, 1
            self.living.add(oid)
            process.to_daemon.append(Escaped(process.name, [oid]))
            process.to_daemon.append(Published(process.name, oid, stored(oid, nested=self.inside[oid])))

    def borrow(self, process: Process, oid: bytes) -> None:
        entry = process.table.get(oid)
        if entry is None:
            process.table[oid] = Entry(False, 1, holds=1)
            process.to_daemon.append(Held(process.name, [oid]))
        else:
            entry.count += 1
            entry.handles += 1

    def drop_handle(self, process: Process, oid: bytes) -> None:
        entry = process.table[oid]
        if entry.handles:
            entry.handles -= 1
            self.unuse(process, oid)

    def unuse(self, process: Process, oid: bytes) -> None:
        stack = [oid]
        while stack:
            oid = stack.pop()
            entry = process.table[oid]
            entry.count -= 1
            if entry.count == 0:
                del process.table[oid]
                if entry.holds:
                    process.to_daemon.append(Released(process.name, [oid] * entry.holds))
                if entry.owned:
                    stack.extend(entry.inside)

    def pass_ref(self, who: int, whom: int, oid: bytes) -> None:
        """As in an argument: the sender uses it until the receiver says done."""
        process = self.processes[who]
        self.escape(process, oid)
        process.table[oid].count += 1
        process.lent.append((whom, oid))
        self.peers[who, whom].append(("use", oid))

    def give_ref(self, who: int, whom: int, oid: bytes) -> None:
        """As in a result: the sender holds it in the receiver's name and forgets it."""
        process = self.processes[who]
        self.escape(process, oid)
        process.to_daemon.append(Held(process.name, [oid], holder=self.processes[whom].name))
        self.peers[who, whom].append(("given", oid))

    def deliver(self, who: int, whom: int) -> None:
        queue = self.peers[who, whom]
        if not queue:
            return
        kind, oid = queue.popleft()
        process = self.processes[whom]
        if not process.alive:
            return
        if kind == "use":
            self.borrow(process, oid)
            if self.processes[who].alive:
                self.peers[whom, who].append(("done", oid))
        elif kind == "done":
            if (who, oid) in process.lent:
                process.lent.remove((who, oid))
                self.unuse(process, oid)
        else:
            entry = process.table.get(oid)
            if entry is None:
                process.table[oid] = Entry(False, 1, holds=1)
            else:
                entry.count += 1
                entry.handles += 1
                entry.holds += 1

    def resolve(self, who: int, oid: bytes) -> None:
        process = self.processes[who]
        entry = process.table[oid]
        if not entry.owned and not entry.asked:
            entry.asked = True
            process.to_daemon.append(ResolveAsked(process.name, [oid]))

    def take_resolved(self, who: int) -> None:
        """The value came: unpickling it makes refs to what is inside, if somebody still wants it."""
        process = self.processes[who]
        if not process.inbox:
            return
        answer = process.inbox.popleft()
        entry = process.table.get(answer.oid)
        if entry is None or entry.owned or entry.known:
            return
        if type(answer.value) is Failed:
            assert self.deaths, f"{answer.oid.hex()} was lost although it was held: {answer.value.error!r}"
            return
        entry.known = True
        for inner in answer.value.nested:  # type: ignore[union-attr]
            self.borrow(process, inner)

    # -------- the daemon

    def read(self, who: int) -> None:
        queue = self.processes[who].to_daemon
        if queue:
            self.perform(self.node.tell(queue.popleft()))
        else:
            self.see_empty(who)

    def see_empty(self, who: int) -> None:
        self.seen_empty.add(who)
        if self.node.token and len(self.seen_empty) == len(self.processes):
            self.perform(self.node.sweep())

    def perform(self, effects: list[Any]) -> None:
        for effect in effects:
            if type(effect) is FreeStored:
                self.check_unreachable(effect.oid)
                self.living.remove(effect.oid)
                self.freed += 1
            elif type(effect) is SendResolved:
                for process in self.processes:
                    if process.name == effect.process:
                        process.inbox.append(effect)

    def kill(self, who: int) -> None:
        process = self.processes[who]
        if not process.alive:
            return
        process.alive = False
        self.deaths = True
        while process.to_daemon:
            self.perform(self.node.tell(process.to_daemon.popleft()))
        self.perform(self.node.tell(ProcessDied(process.name, "killed")))
        for (_, receiver), queue in self.peers.items():
            if receiver == who:
                queue.clear()
        process.inbox.clear()
        for other in self.processes:
            if other.alive:  # it learns of the death from its socket
                for whom, oid in [pair for pair in other.lent if pair[0] == who]:
                    other.lent.remove((whom, oid))
                    self.unuse(other, oid)

    # -------- the twin

    def check_unreachable(self, oid: bytes) -> None:
        assert oid in self.living, "freed twice"
        for process in self.processes:
            if process.alive:
                entry = process.table.get(oid)
                held = entry is not None and entry.count > 0
                if held and self.deaths:  # it may hold what was lost in a dead process's hands
                    held = process.name in self.node.directory.holders(oid)
                assert not held, f"{oid.hex()} freed while {process.name!r} holds it"
        if not self.deaths:
            for queue in self.peers.values():
                assert all(kind == "done" or sent != oid for kind, sent in queue), "freed in flight"
        for outer in self.living:
            if oid in self.inside[outer] and self.node.directory.value_of(outer) is not None:
                raise AssertionError("freed inside a living container")

    def advance(self) -> None:
        for who in range(len(self.processes)):
            while self.processes[who].to_daemon:
                self.read(who)
            while self.processes[who].alive and self.processes[who].inbox:
                self.take_resolved(who)
        for who, whom in self.peers:
            while self.peers[who, whom]:
                self.deliver(who, whom)

    def busy(self) -> bool:
        return any(self.peers.values()) or any(
            process.to_daemon or (process.alive and process.inbox) for process in self.processes
        )

    def finish(self) -> None:
        """Everybody drops everything; nothing may be left."""
        while self.busy():
            self.advance()
        for process in self.processes:
            for oid in list(process.table):
                while process.alive and oid in process.table and process.table[oid].handles:
                    self.drop_handle(process, oid)
            assert not process.alive or not process.table, "the test's own protocol leaks"
        for _ in range(100):
            self.seen_empty.clear()
            while self.busy():
                self.advance()
            if not self.node.token:
                break
            for who in range(len(self.processes)):
                self.see_empty(who)
        assert not self.living, "never freed"
        assert empty(self.node)


def act(world: World, action: int, first: int, second: int, third: int, deadly: bool) -> None:
    count = len(world.processes)
    who, whom = first % count, second % count
    process = world.processes[who]
    token = world.node.token
    if action <= 3:
        world.read(who)
    elif action <= 6:
        if who != whom:
            world.deliver(who, whom)
    elif action == 7:
        world.take_resolved(who)
    elif not process.alive:
        pass
    elif action == 8:
        if len(process.table) < 6:
            world.put(who, third % 3)
    elif action == 15:
        if deadly and who and third < 2:
            world.kill(who)
    elif process.table:
        oid = list(process.table)[third % len(process.table)]
        if action <= 10 and who != whom and world.processes[whom].alive:
            world.pass_ref(who, whom, oid)
        elif action == 11 and who != whom and world.processes[whom].alive:
            world.give_ref(who, whom, oid)
        elif action == 12:
            world.resolve(who, oid)
        elif action >= 13:
            world.drop_handle(process, oid)
    if world.node.token != token:
        world.seen_empty.clear()
    for number, other in enumerate(world.processes):
        if not other.alive:
            world.see_empty(number)


STEPS = st.lists(
    st.tuples(st.integers(0, 15), st.integers(0, 11), st.integers(0, 11), st.integers(0, 11)), max_size=150
)
SETTINGS = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def run_world(count: int, steps: Iterable[tuple[int, int, int, int]], deadly: bool) -> World:
    world = World(count)
    for step in steps:
        act(world, *step, deadly=deadly)
    world.finish()
    return world


@SETTINGS
@given(st.integers(2, 4), STEPS, st.booleans())
def test_never_freed_while_held_and_always_freed_at_the_end(
    count: int, steps: list[tuple[int, int, int, int]], deadly: bool
) -> None:
    run_world(count, steps, deadly)


@pytest.mark.parametrize("seed", range(80))
def test_long_lives(seed: int) -> None:
    dice = random.Random(seed)
    steps = [(dice.randrange(16), dice.randrange(12), dice.randrange(12), dice.randrange(12)) for _ in range(600)]
    world = run_world(2 + seed % 3, steps, deadly=seed % 4 == 3)
    assert world.freed > 3 or world.deaths
