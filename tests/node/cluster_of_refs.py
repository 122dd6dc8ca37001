"""A cluster in which processes pass refs around: the real object tables of processes, the real shells and directories of nodes, and sockets that
are queues, each of which advances when the dice say so.

What is real: `runtime.objects.ObjectTable`, `node.io.objects.Objects`, `node.object_directory.ObjectDirectory`. What is played: sockets, lines
between nodes, the store, and the few lines of submitter and executor that pass refs on. The world looks at everything at once, so it knows
who refers to an object when a directory frees it.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from shoal.node.io.objects import Objects
from shoal.node.object_directory import ObjectDirectory, ObjectRow
from shoal.protocol import messages
from shoal.protocol.messages import (
    BeingRemade,
    Containing,
    Failed,
    HoldsConfirmed,
    Remake,
    Resolved,
    Stored,
    SubmitterDied,
    Value,
)
from shoal.runtime import objects as objects_module
from shoal.runtime.objects import ObjectEntry, ObjectRef, ObjectTable, home_of, sendable


def sent(message: Any) -> Any:
    """A message as it comes out at the other end."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=type(message))


class Queue:
    """What a process writes to its daemon; the daemon's end of it."""

    def __init__(self, world: World, process: Process) -> None:
        self.world, self.process = world, process
        self.waiting: deque[Any] = deque()
        self.closed = False

    def send(self, message: Any) -> None:
        self.waiting.append(sent(message))

    def read(self) -> None:
        message = self.waiting.popleft()
        shell, process = self.process.node.shell, self.process
        handler: dict[type, Callable[[Any, Any], None]] = {
            messages.Escape: shell.on_escape,
            messages.Publish: shell.on_publish,
            messages.Hold: shell.on_hold,
            messages.Release: shell.on_release,
            messages.RefsReceived: shell.on_refs_received,
            messages.Resolve: shell.on_resolve,
            messages.FreeObjects: shell.on_free,
            messages.KeepCopies: shell.on_keep_copies,
            messages.Claims: shell.on_claims,
            messages.NotMade: shell.on_not_made,
        }
        handler[type(message)](process, message)

    def drain(self) -> bool:
        """As the daemon's Connection: read all that is there; sometimes the peer has written more by then."""
        while self.waiting:
            self.read()
        return self.world.dice.random() < 0.9


class PlayedReactor:
    """What an object table needs of its reactor."""

    def __init__(self, queue: Queue) -> None:
        self.lock = threading.RLock()
        self.causal = queue
        self.has_notes = False
        self.write_notes: Callable[[], None] = lambda: None
        self.handlers: dict[type, Any] = {}
        self.holds_written = self.holds_confirmed = 0

    def attend(self) -> None:
        pass

    def await_confirmation(self) -> None:
        self.holds_written += 1

    def on_holds_confirmed(self, count: int) -> None:
        assert self.holds_confirmed < count <= self.holds_written
        self.holds_confirmed = count


class Process:
    """A driver or worker: its own object table, and what its program does."""

    def __init__(self, world: World, node: Node, number: int) -> None:
        self.world, self.node = world, node
        self.worker_id = node.node_id[:4] + bytes([number]) * 12
        self.alive = True
        self.queue = Queue(world, self)
        self.inbox: deque[Any] = deque()
        self.reactor = PlayedReactor(self.queue)
        self.kept: dict[bytes, ObjectRef] = {}
        self.table = ObjectTable(self.reactor, lambda entry: world.store_freed(entry.oid), lambda name, value: None)  # type: ignore[arg-type]
        self.refs: list[ObjectRef] = []
        #: pushed tasks without a reply: number -> (worker, what they use)
        self.lent: dict[int, tuple[Process, list[ObjectEntry]]] = {}
        #: tasks that run here: (submitter, number)
        self.jobs: list[tuple[Process, int]] = []
        self.puts = 0
        #: refs that came in results, by worker
        self.received: dict[bytes, int] = {}
        #: refs that came in calls, by caller
        self.called: dict[bytes, int] = {}
        #: calls without an answer: number -> what their arguments refer to
        self.held: dict[int, list[ObjectEntry]] = {}
        #: calls that came and have not begun: the refs that are to be unpickled
        self.waiting: dict[int, list[tuple[bytes, bytes]]] = {}

    def send(self, message: Any) -> None:
        """From the daemon."""
        self.inbox.append(sent(message))

    @contextmanager
    def running(self) -> Iterator[None]:
        """This process has the CPU: the module's globals are its own."""
        objects_module._kept, objects_module._here = self.kept, self.node.node_id
        self.table.node_id = self.node.node_id
        objects_module.dropped.clear()
        yield
        self.table.drain_dropped()
        self.kept = objects_module._kept

    # -------- the program

    def new_oid(self) -> bytes:
        self.puts += 1
        return self.worker_id[:12] + self.puts.to_bytes(4, "big") + b"\x80\0\0\1"

    def put(self, inside: list[ObjectRef]) -> None:
        world = self.world
        entry = ObjectEntry(self.new_oid())
        world.blobs[entry.oid] = [(ref.binary(), home_of(ref)) for ref in inside]
        if inside:
            self.table.contain(entry, self.table.escape(inside))
        oids = [ref.binary() for ref in inside]
        if world.dice.random() < 0.5:
            where = world.dice.choice([self.node, *[node for node in world.nodes if node.alive]])
            entry.value = Stored(entry.oid, 1, 0, 1, 1, oids, where.node_id)
            where.stored[entry.oid] = self.worker_id
        else:
            entry.value = b"v"
        self.refs.append(ObjectRef(entry))

    def push(self, worker: Process, refs: list[ObjectRef]) -> None:
        """A task with refs inside its arguments."""
        number = self.world.next_number()
        self.lent[number] = (worker, self.table.escape(refs))
        self.write_notes()
        self.world.pushes[self, worker].append((number, [(ref.binary(), home_of(ref)) for ref in refs]))

    def call(self, worker: Process, refs: list[ObjectRef]) -> None:
        """A call of an actor, with refs inside its arguments. To another node it leaves when that has confirmed that it holds them."""
        number = self.world.next_number()
        entries = self.table.escape(refs)
        self.lent[number] = (worker, entries)
        node = b"" if worker.node is self.node else worker.node.node_id
        if refs:
            self.table.hand_over([entry.oid for entry in entries], worker.worker_id, node)
        self.write_notes()
        awaited = self.reactor.holds_written if node else 0
        self.world.promised[number] = (worker, awaited, self, [entry.oid for entry in entries if self.counts(entry)])
        self.world.calls[self, worker].append((awaited, number, [(ref.binary(), home_of(ref)) for ref in refs]))

    def counts(self, entry: ObjectEntry) -> bool:
        """Whether this process's hold is known where it matters: a ref that came from the dead may be of something freed."""
        node = next(node for node in self.world.nodes if node.node_id[:4] == entry.oid[:4])
        if entry.shared is not None and entry.shared.owned:
            return True
        holder = self.worker_id if node is self.node else self.node.node_id
        return node.alive and node.machine.value_of(entry.oid) is not None and holder in node.machine.holders(entry.oid)

    def take_call(self, caller: Process, number: int, refs: list[tuple[bytes, bytes]]) -> None:
        """It came, and stands in the actor's queue."""
        giver = caller.worker_id
        oids = [oid for oid, _ in refs]
        self.called[giver] = self.called.get(giver, 0) + len(oids)
        self.held[number] = self.table.adopt_held(oids)
        self.waiting[number] = refs
        self.jobs.append((caller, number))
        if self.world.dice.random() < 0.3:
            self.tell_called(giver)

    def refs_called_with(self, dead: bytes) -> int:
        """How many refs came in calls of a dead process, all of which are read now."""
        self.world.read_calls(dead, self)
        return self.called.pop(dead, 0)

    def tell_called(self, giver: bytes) -> None:
        """How many refs came in calls of a living process."""
        self.queue.send(messages.RefsReceived(giver, self.called.get(giver, 0), False, True))

    def push_value(self, worker: Process, ref: ObjectRef) -> None:
        """A task with a known value as its argument; the worker finds the refs that are inside it."""
        entry = ref._entry
        if entry.value is None or type(entry.value) is Failed:
            return
        sendable(entry)
        number = self.world.next_number()
        entry.count += 1
        self.lent[number] = (worker, [entry])
        self.write_notes()
        self.world.pushes[self, worker].append((number, self.world.blobs[entry.oid]))

    def begin_job(self, submitter: Process, number: int, refs: list[tuple[bytes, bytes]]) -> None:
        self.jobs.append((submitter, number))
        self.unpickle(refs)

    def unpickle(self, refs: list[tuple[bytes, bytes]]) -> None:
        for oid, home in refs:
            self.refs.append(objects_module._kept.get(oid) or self.table.borrow(oid, home))

    def reply(self, refs: list[ObjectRef]) -> None:
        """A task here ends; refs inside its result are handed to the submitter."""
        submitter, number = self.jobs.pop(self.world.dice.randrange(len(self.jobs)))
        self.waiting.pop(number, None)  # it never began: cancelled, or what it unpickles fails
        self.table.let_go_of(self.held.pop(number, []))
        self.world.promised.pop(number, None)
        if not submitter.alive:
            return
        oid = submitter.worker_id[:12] + number.to_bytes(4, "big") + b"\0\0\0\1"
        self.world.blobs[oid] = [(ref.binary(), home_of(ref)) for ref in refs]
        value: Value = b"v"
        entries = self.table.escape(refs)
        oids = [entry.oid for entry in entries]
        if self.world.dice.random() < 0.3:
            value = Stored(oid, 1, 0, 1, 1, oids, self.node.node_id)
            self.node.stored[oid] = submitter.worker_id
        elif refs:
            value = Containing(b"v", oids)
        if entries:
            self.table.hold_for(entries, submitter.worker_id)
        self.table.unuse(entries)
        self.write_notes()
        self.world.replies[self, submitter].append((self.reactor.holds_written, number, oid, sent(value)))

    def take_reply(self, worker: Process, number: int, oid: bytes, value: Value) -> None:
        if type(value) in (Containing, Stored):
            giver = worker.worker_id
            self.received[giver] = self.received.get(giver, 0) + len(value.nested)  # type: ignore[union-attr]
            if self.world.dice.random() < 0.3:
                self.tell_received(giver)
        if number not in self.lent:
            return
        entry = ObjectEntry(oid)
        self.refs.append(ObjectRef(entry))
        nested = value.nested if type(value) in (Containing, Stored) else []  # type: ignore[union-attr]
        if nested:
            self.table.contain(entry, self.table.adopt_held(nested))
        entry.value = value.blob if type(value) is Containing else value
        self.table.unuse(self.lent.pop(number)[1])

    def tell_received(self, giver: bytes, last: bool = False) -> None:
        """How many refs came from a worker; `last` when it is dead."""
        self.queue.send(messages.RefsReceived(giver, self.received.get(giver, 0), last))
        if last:
            self.received.pop(giver, None)

    def get(self, ref: ObjectRef) -> None:
        """Unpickle what is known; ask for what is not."""
        entry = ref._entry
        if entry.value is None:
            self.table.resolve([entry])
        elif type(entry.value) is not Failed:
            self.unpickle(self.world.blobs[entry.oid])

    def take_resolved(self, message: Resolved) -> None:
        entry = self.table.table.get(message.oid)
        if entry is None:
            return
        shared, value = entry.shared, message.value
        assert shared is not None
        shared.resolving = False
        if type(value) is Failed:
            assert message.oid in self.world.tainted or b"no process is left on its node" in value.error, (
                f"{message.oid.hex()} was lost although it was held: {value.error!r}"
            )
        nested = value.nested if type(value) in (Containing, Stored) else []  # type: ignore[union-attr]
        if nested and shared.nested is None:
            self.table.contain_borrowed(entry, nested)
        if entry.value is None:
            entry.value = value.blob if type(value) is Containing else value

    def read_daemon(self) -> None:
        message = self.inbox.popleft()
        if type(message) is HoldsConfirmed:
            self.reactor.on_holds_confirmed(message.count)
        elif type(message) is Remake:  # these processes cannot make anything again
            self.queue.send(messages.Publish(message.oid, Failed(b"its node is dead")))
            if message.held:
                self.queue.send(messages.Release([message.oid]))
        elif type(message) is SubmitterDied:
            self.queue.send(messages.Claims(message.process, [], False, self.refs_called_with(message.process)))
        elif type(message) is not BeingRemade:
            assert type(message) is Resolved
            self.take_resolved(message)

    def write_notes(self) -> None:
        if self.reactor.has_notes:
            self.reactor.has_notes = False
            self.reactor.write_notes()


class WatchedDirectory(ObjectDirectory):
    """Tells the world what it frees."""

    __slots__ = ("world",)
    world: World

    def _free(self, oid: bytes, row: ObjectRow, following: dict[bytes, None], effects: list[Any]) -> None:
        if row.abroad is None and row.known and self._is_home(oid):
            self.world.check_calls(oid)
            self.world.freed(oid)
        super()._free(oid, row, following, effects)

    def _is_home(self, oid: bytes) -> bool:
        """Or an heir's. Any other node may remember an inline value of what it needs, and forget that."""
        home = next(node for node in self.world.nodes if node.node_id[:4] == oid[:4])
        return home.machine is self or not home.alive


class PlayedLoop:
    """Timers that are due when the dice say so."""

    def __init__(self) -> None:
        self.due: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        #: those of 3 s and more: when all has come to rest
        self.late: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    def call_later(self, delay_s: float, call: Callable[..., None], *args: Any) -> None:
        (self.due if delay_s < 3 else self.late).append((call, args))

    def call_soon(self, call: Callable[..., None], *args: Any) -> None:
        self.due.append((call, args))


class PlayedLinks:
    """Lines to the other nodes."""

    alone = False

    def __init__(self, node: Node) -> None:
        self._node = node
        self.handlers: dict[type, Callable[[bytes, Any], None]] = {}
        self.on_joined: list[Any] = []
        self.on_died: list[Any] = []
        self.on_died_before: list[Any] = []
        self.dead: dict[bytes, str] = {}

    def send(self, node_id: bytes, message: Any) -> bool:
        if node_id in self.dead:
            return False
        assert node_id != self._node.node_id
        self._node.world.lines[self._node.node_id, node_id].append(sent(message))
        return True

    def is_dead(self, node_id: bytes) -> str:
        return self.dead.get(node_id, "")


class Node:
    """A daemon, as far as it has to do with refs; also the fake table of its processes and its store."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.node_id = bytes([65 + number]) * 16
        self.alive = True
        self.processes: list[Process] = []
        self.by_id: dict[bytes, Process] = {}
        #: in its store: oid -> owner
        self.stored: dict[bytes, bytes] = {}
        self.loop = PlayedLoop()
        self.links = PlayedLinks(self)
        self.machine = WatchedDirectory(lambda error: str(error).encode(), self.node_id)
        self.machine.world = world
        self.shell = self.make_shell()
        #: processes of other nodes that are known to be dead
        self.gone: set[bytes] = set()

    def make_shell(self) -> Objects:
        """The daemon's own shell, over what is played here."""
        return Objects(
            self.machine,
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            self.loop,  # type: ignore[arg-type]
            lambda: [process.queue for process in self.processes if process.alive],  # type: ignore[misc]
            lambda actor_id: None,
            self.links,  # type: ignore[arg-type]
            self.node_id,
            self.node_of,
        )

    def node_of(self, process: bytes) -> bytes | None:
        if process in self.gone or process[:4] == self.node_id[:4]:
            return None
        return next(node.node_id for node in self.world.nodes if node.node_id[:4] == process[:4])

    # the table of processes
    def send(self, process_id: bytes, message: Any) -> None:
        process = self.by_id.get(process_id)
        if process is not None:
            process.send(message)

    # the store
    def used(self, oid: bytes) -> None:
        pass

    def free(self, oids: list[bytes], of_dead: bool = False) -> None:
        for oid in oids:
            if self.stored.pop(oid, None) is not None:
                self.world.freed(oid)

    def owned_by(self, process_id: bytes) -> list[bytes]:
        return [oid for oid, owner in self.stored.items() if owner == process_id]

    def written_by(self, process_id: bytes) -> list[Any]:
        return []  # here processes that die have told what they stored

    def free_of(self, giver: bytes, oids: list[bytes]) -> None:
        assert not oids

    def on_free_objects(self, process_id: bytes, message: messages.FreeObjects) -> None:
        self.free(message.oids)


class World:
    """Nodes, processes, and what is on its way between them."""

    def __init__(
        self, seed: int, nodes: int, processes: int, node_kind: type[Node] = Node, kind: type[Process] = Process
    ) -> None:
        self.dice = random.Random(seed)
        self.blobs: dict[bytes, list[tuple[bytes, bytes]]] = {}
        #: what may be lost, because someone died who had to do with it
        self.tainted: set[bytes] = set()
        #: whose bytes a store lost: what it was told to keep may have come later (a word of memory each, with the node's)
        self.blocks_lost: set[bytes] = set()
        self.deaths = 0
        self.frees = 0
        self._numbers = 0
        self.nodes = [node_kind(self, number) for number in range(nodes)]
        self.processes: list[Process] = []
        for node in self.nodes:
            for number in range(processes):
                process = kind(self, node, number)
                node.processes.append(process)
                node.by_id[process.worker_id] = process
                self.processes.append(process)
                node.shell.joined(process)  # type: ignore[arg-type]
        ids = [node.node_id for node in self.nodes]
        self.lines: dict[tuple[bytes, bytes], deque[Any]] = {(a, b): deque() for a in ids for b in ids if a != b}
        #: lines on which messages take long
        self.slow = {pair for pair in self.lines if self.dice.random() < 0.3}
        #: lines on which nothing moves for the time being
        self.blocked: set[tuple[bytes, bytes]] = set()
        pairs = [(a, b) for a in self.processes for b in self.processes if a is not b]
        self.pushes: dict[tuple[Process, Process], deque[Any]] = {pair: deque() for pair in pairs}
        self.replies: dict[tuple[Process, Process], deque[Any]] = {pair: deque() for pair in pairs}
        #: (holds that must be confirmed before, number, refs)
        self.calls: dict[tuple[Process, Process], deque[Any]] = {pair: deque() for pair in pairs}
        #: calls without an answer: receiver, holds of the caller that must be confirmed before it leaves, caller, refs
        self.promised: dict[int, tuple[Process, int, Process, list[bytes]]] = {}

    def next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def node(self, node_id: bytes) -> Node:
        return next(node for node in self.nodes if node.node_id == node_id)

    # -------- the twin

    def store_freed(self, oid: bytes) -> None:
        """A process frees a block of its own node's store by itself; its daemon hears of it later."""

    def freed(self, oid: bytes) -> None:
        """A directory or a store lets an object go: nobody may refer to it."""
        self.frees += 1
        if oid in self.tainted:
            return
        for process in self.processes:
            if process.alive:
                entry = process.table.table.get(oid)
                assert entry is None or entry.count <= 0, (
                    f"{oid.hex()} freed while {process.worker_id.hex()} refers to it"
                )
        for (_, receiver), queue in self.pushes.items():
            assert not receiver.alive or all(all(r[0] != oid for r in m[1]) for m in queue), (
                "freed in a task's arguments"
            )
        for (_, receiver), queue in self.replies.items():
            for _, number, _, value in queue:
                nested = value.nested if type(value) in (Containing, Stored) else ()
                assert not receiver.alive or number not in receiver.lent or oid not in nested, "freed in a reply"

    def check_calls(self, oid: bytes) -> None:
        """A directory that lives counts what a call refers to that has left, or waits, whoever is dead."""
        for receiver, awaited, caller, oids in self.promised.values():
            left = awaited <= caller.reactor.holds_confirmed
            assert not (receiver.alive and left and oid in oids), (
                f"{oid.hex()} freed while a call waits that refers to it"
            )

    def taint(self, oids: Any) -> None:
        """These may be lost now, and what is in them too."""
        stack = list(oids)
        while stack:
            oid = stack.pop()
            if oid not in self.tainted:
                self.tainted.add(oid)
                stack.extend(inner for inner, _ in self.blobs.get(oid, ()))

    # -------- what can happen next

    def moves(self, hurry: bool = False) -> list[Callable[[], None]]:
        """All queues that can advance; those that are slow seldom, unless in a hurry."""
        out: list[Callable[[], None]] = []
        for process in self.processes:
            if process.alive:
                if process.queue.waiting:
                    out.append(process.queue.read)
                if process.inbox:
                    out.append(lambda p=process: self.run(p, p.read_daemon))  # type: ignore[misc]
                if process.reactor.has_notes:
                    out.append(process.write_notes)
        for (sender, receiver), line in self.lines.items():
            if (
                line
                and (sender, receiver) not in self.blocked
                and ((sender, receiver) not in self.slow or self.dice.random() < 0.03 or hurry)
            ):
                out.append(
                    lambda s=sender, r=receiver: self.node(r).links.handlers[type(self.lines[s, r][0])](
                        s, self.lines[s, r].popleft()
                    )
                )  # type: ignore[misc]
        for (_, worker), queue in self.pushes.items():
            if queue:
                out.append(lambda key=(_, worker): self.take_push(*key))  # type: ignore[misc]
        for (caller, worker), queue in self.calls.items():
            if queue and queue[0][0] <= caller.reactor.holds_confirmed:
                out.append(lambda key=(caller, worker): self.take_call(*key))  # type: ignore[misc]
        for (worker, _), queue in self.replies.items():
            if queue and queue[0][0] <= worker.reactor.holds_confirmed:
                out.append(lambda key=(worker, _): self.take_reply(*key))  # type: ignore[misc]
        for node in self.nodes:
            if node.alive and node.loop.due:
                out.append(lambda n=node: self.fire(n))  # type: ignore[misc]
        return out

    def fire(self, node: Node) -> None:
        call, args = node.loop.due.pop(self.dice.randrange(len(node.loop.due)))
        call(*args)

    def run(self, process: Process, act: Callable[..., None], *args: Any) -> None:
        with process.running():
            act(*args)

    def take_push(self, submitter: Process, worker: Process) -> None:
        number, refs = self.pushes[submitter, worker].popleft()
        if worker.alive:
            self.run(worker, worker.begin_job, submitter, number, refs)

    def take_call(self, caller: Process, worker: Process) -> None:
        _, number, refs = self.calls[caller, worker].popleft()
        if worker.alive:
            self.run(worker, worker.take_call, caller, number, refs)

    def read_calls(self, caller_id: bytes, worker: Process) -> None:
        """A worker reads all that a dead caller has written to it."""
        for (caller, receiver), queue in self.calls.items():
            while queue and receiver is worker and caller.worker_id == caller_id:
                _, number, refs = queue.popleft()
                worker.take_call(caller, number, refs)

    def begin_call(self, process: Process) -> None:
        number = self.dice.choice(list(process.waiting))
        process.unpickle(process.waiting.pop(number))

    def take_reply(self, worker: Process, submitter: Process) -> None:
        _, number, oid, value = self.replies[worker, submitter].popleft()
        if submitter.alive:
            self.run(submitter, submitter.take_reply, worker, number, oid, value)

    def act(self) -> None:
        """A living process does something."""
        dice = self.dice
        process = dice.choice([process for process in self.processes if process.alive])
        others = [other for other in self.processes if other.alive and other is not process]
        few = dice.sample(process.refs, min(len(process.refs), dice.randrange(3)))
        kind = dice.randrange(15)
        if kind < 2 or not process.refs:
            if len(process.refs) < 8:
                self.run(process, process.put, few)
        elif kind < 4 and others:
            self.run(process, process.push, dice.choice(others), few)
        elif kind < 5 and others:
            self.run(process, process.push_value, dice.choice(others), dice.choice(process.refs))
        elif kind < 7:
            if process.jobs:
                self.run(process, process.reply, few)
        elif kind < 9:
            self.run(process, process.get, dice.choice(process.refs))
        elif kind < 12:
            del few
            self.run(process, self.drop, process)
        elif kind < 14 and others:
            self.run(process, process.call, dice.choice(others), few)
        elif process.waiting:
            self.run(process, self.begin_call, process)
        few = []

    def drop(self, process: Process) -> None:
        del process.refs[self.dice.randrange(len(process.refs))]

    # -------- deaths

    def kill(self, process: Process) -> None:
        """A process dies; its daemon reads its socket to the end and tells the other nodes."""
        if not process.alive:
            return
        self.deaths += 1
        self.bury(process)
        while process.queue.waiting:
            process.queue.read()
        del process.node.by_id[process.worker_id]
        process.node.shell.process_died(process, "killed", [], [], [])  # type: ignore[arg-type]
        self.tell_of_death(process.node, process.worker_id)
        for node in self.nodes:
            if node.alive and node is not process.node:
                # As the daemons tell each other, behind everything said before on that line.
                self.lines[process.node.node_id, node.node_id].append(_Gone(process.worker_id))

    def tell_of_death(self, node: Node, worker_id: bytes) -> None:
        """The processes of a node hear of a worker's death, whose sockets they have read to the end."""
        for process in node.processes:
            if process.alive:
                process.tell_received(worker_id, last=True)

    def hear_of_death(self, node: Node, worker_id: bytes) -> None:
        """A daemon is told that a process of another node is dead."""
        node.gone.add(worker_id)
        node.shell.foreign_process_died(worker_id, worker_id[:1] * 16, [])
        self.tell_of_death(node, worker_id)

    def bury(self, process: Process) -> None:
        process.alive = False
        self.taint(process.table.table)
        self.taint(process.reactor.handlers and process.table.table)
        for ref in process.refs:
            self.taint([ref.binary()])
        for (sender, receiver), queue in self.pushes.items():
            if process in (sender, receiver):
                for _, refs in queue:
                    self.taint(oid for oid, _ in refs)
                queue.clear()
        for (sender, receiver), queue in self.replies.items():
            if process in (sender, receiver):
                for _, _, oid, value in queue:
                    self.taint([oid, *(value.nested if type(value) in (Containing, Stored) else ())])
                queue.clear()
        for (caller, receiver), queue in self.calls.items():
            for _, _, refs in queue:
                if process in (caller, receiver):
                    self.taint(oid for oid, _ in refs)
            if receiver is process:
                queue.clear()
            while caller is process and queue and queue[-1][0] > process.reactor.holds_confirmed:
                del self.promised[queue.pop()[1]]  # it had not left yet
        for message in process.queue.waiting:
            self.taint(getattr(message, "oids", ()))
        for _, entries in process.lent.values():
            self.taint(entry.oid for entry in entries)
        with process.running():
            pass
        self.forget(process)
        for other in self.processes:
            other.jobs = [job for job in other.jobs if job[0] is not process or job[1] in other.held]
            lost = [number for number, (worker, _) in other.lent.items() if worker is process]
            for number in lost:
                entries = other.lent.pop(number)[1]
                if other.alive:
                    self.run(other, other.table.unuse, entries)

    def forget(self, process: Process) -> None:
        """Its memory goes with it: no finalizer tells anybody."""
        process.refs.clear()
        process.kept.clear()
        process.lent.clear()
        process.held.clear()
        process.waiting.clear()
        process.table.table.clear()
        objects_module.dropped.clear()

    def kill_node(self, node: Node) -> None:
        """A node dies with all its processes; the others are told at once, in any order with what it has sent."""
        if not node.alive:
            return
        self.deaths += 1
        node.alive = False
        for process in node.processes:
            if process.alive:
                self.bury(process)
        self.taint(node.machine._objects)
        self.taint(node.stored)
        for key, line in self.lines.items():
            if node.node_id in key:
                for message in line:
                    self.taint(getattr(message, "oids", ()))
                line.clear()
        for other in self.nodes:
            if other.alive:
                other.links.dead[node.node_id] = "killed"
                for died in other.links.on_died:
                    died(node.node_id, "killed")
                for process in node.processes:
                    self.hear_of_death(other, process.worker_id)

    # -------- the end

    def settle(self) -> None:
        """Let everything arrive."""
        for _ in range(100_000):
            moves = self.moves() or self.moves(hurry=True)
            if not moves:
                return
            self.dice.choice(moves)()
        raise AssertionError("it never comes to rest")

    def finish(self) -> None:
        """All tasks end and everybody lets go of everything: nothing may be left."""
        self.settle()
        for process in self.processes:
            while process.alive and process.jobs:
                self.run(process, process.reply, [])
        self.settle()
        for process in self.processes:
            if process.alive:
                assert not process.lent, "every reply came"
                assert process.reactor.holds_written == process.reactor.holds_confirmed
                for entry in process.table.table.values():
                    assert entry.shared is None or not entry.shared.resolving, f"no answer for {entry.oid.hex()}"
                self.run(process, process.refs.clear)
                for giver in process.received:
                    process.tell_received(giver)
                for giver in process.called:
                    process.tell_called(giver)
        self.settle()
        if all(node.alive for node in self.nodes):
            self.check_directories()
        # What a dead node's lines had not brought (HoldFor), and results that dead workers had stored on other nodes, end with the receiver.
        if self.deaths:
            for process in self.processes:
                if process.alive:
                    self.kill(process)
            self.settle()
        self.check_directories()
        for node in self.nodes:
            if node.alive:
                assert not node.stored, f"blocks are left in the store: {[oid.hex() for oid in node.stored]}"
                kept = [oid.hex() for oid in node.shell._kept_for if oid not in self.blocks_lost]
                assert not kept, f"kept for others: {kept}"

    def check_directories(self) -> None:
        """Nobody refers to anything any more, when what had a long time to wait has waited."""
        for node in self.nodes:
            while node.alive and node.loop.late:
                call, args = node.loop.late.pop(0)
                call(*args)
                self.settle()
        for process in self.processes:
            assert not process.table.table, "the processes leak"
        for node in self.nodes:
            if node.alive:
                counts = node.machine.statistics()
                left = {name: counts[name] for name in counts if name not in ("processes", "sweeps")}
                assert not any(left.values()), (
                    f"{left}, {[(o.hex(), r.rows, r.known) for o, r in node.machine._objects.items()]}"
                )


class _Gone(messages.Message):
    """Stands for ForeignProcessDied."""

    process: bytes
