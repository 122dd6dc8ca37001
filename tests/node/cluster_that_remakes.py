"""The cluster of refs whose tasks can run again: owners, nodes and blocks of stores are lost at any moment, and every ref still gives its value.

Added to `cluster_of_refs`: tasks whose results others hold before they are known, lineage that escapes with them, successors that run them again
(`Adopt`, `Remake`), workers that claim what they run for the dead, mirrors and heirs, copies of what was put, blocks that are lost, and a GCS
that tells each node of a death when the dice say so. A node that is cut off is declared dead while it lives, does what it likes for a
while, and ends when it hears of it.

The twin: the value of a task's result is known by its name. A ref of a living process gives that value, or an error that is permitted
(`World.tainted` says of what: what was put without copies, what nobody can run again).
"""

from __future__ import annotations

import inspect
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from tests.node.cluster_of_refs import Node, PlayedLinks, PlayedLoop, Process, World, _Gone, sent

from shoal.protocol import messages
from shoal.protocol.errors import ObjectLostError
from shoal.protocol.messages import (
    Adopt,
    Answer,
    Claims,
    Failed,
    Publish,
    Remake,
    Resolved,
    Stored,
    SubmitterDied,
)
from shoal.runtime.objects import ObjectEntry, ObjectRef, SharedState, home_of

RESULT, PUT = b"\0\0\0\1", b"\x80\0\0\1"


def value_of(oid: bytes) -> bytes:
    """What a task's result is, however often it is made."""
    return b"made " + oid


class Task:
    """One task of this process that may run again."""

    def __init__(self, number: int, oid: bytes, entry: ObjectEntry | None, needs: list[ObjectEntry]) -> None:
        self.number, self.oid, self.entry, self.needs = number, oid, entry, needs
        self.worker: Maker | None = None
        self.order: list[tuple[bytes, bytes]] = []
        self.wanted = True  #: its value is to be made (again)


class Run:
    """A task that runs in this process, for itself (a successor) or for a submitter."""

    def __init__(self, submitter: Maker, oid: bytes, refs: list[ObjectRef]) -> None:
        self.submitter, self.oid, self.refs = submitter, oid, refs
        self.claimed = False


def is_to_ask(ref: ObjectRef) -> bool:
    """Whether a value must be asked for, and was not."""
    shared = ref._entry.shared
    return shared is not None and not shared.owned and not shared.resolving


class Maker(Process):
    """A process whose tasks run again."""

    world: Remaking

    def __init__(self, world: World, node: Node, number: int) -> None:
        super().__init__(world, node, number)
        self.table.describe = self.describe
        self.table._forget_lineage = self.forget
        #: by result: what is pending, and what lies in a store
        self.tasks: dict[bytes, Task] = {}
        self.runs: list[Run] = []
        self.requests: dict[int, bytes] = {}

    # -------- submitting

    def start(self, worker: Maker, refs: list[ObjectRef]) -> None:
        """Submit a task; its ref may travel before it has ended."""
        number = self.world.next_number()
        oid = self.worker_id[:12] + number.to_bytes(4, "big") + RESULT
        entry = ObjectEntry(oid)
        self.world.blobs[oid] = []
        self.world.made[oid] = [ref.binary() for ref in refs]
        task = self.tasks[oid] = Task(number, oid, entry, self.table.escape(refs))
        task.order = [(ref.binary(), home_of(ref)) for ref in refs]
        self.refs.append(ObjectRef(entry))
        self.push_to(task, worker)

    def push_to(self, task: Task, worker: Maker) -> None:
        task.worker = worker
        self.write_notes()
        self.world.orders[self, worker].append((task.oid, task.order))

    def describe(self, entry: ObjectEntry) -> Any:
        task = self.tasks.get(entry.oid)
        if task is None or (entry.value is not None and type(entry.value) is not Stored):
            return None
        return entry.oid[:16], task.needs, [], b""

    def forget(self, oid: bytes) -> None:
        task = self.tasks.get(oid)
        if task is not None and not task.wanted:
            del self.tasks[oid]
            self.table.unuse(task.needs)

    def take_result(self, oid: bytes, value: Any) -> None:
        """A worker has run a task."""
        task = self.tasks.get(oid)
        if task is None or not task.wanted or task.entry is None:
            return
        task.worker, task.wanted = None, False
        self.know(task.entry, value)
        if type(value) is not Stored:
            del self.tasks[oid]
            self.table.unuse(task.needs)

    def know(self, entry: ObjectEntry, value: Any) -> None:
        """As core.store_value: a value of ours is known."""
        self.world.check_value(entry.oid, value)
        if entry.shared is not None:
            entry.shared.place, entry.shared.resolving = None, False
        entry.value = value
        if entry.shared is not None and entry.shared.escaped:
            self.table.publish(entry)
        if entry.count <= 0:
            self.table.free(entry)

    # -------- running

    def take_order(self, submitter: Maker, oid: bytes, refs: list[tuple[bytes, bytes]]) -> None:
        before = len(self.refs)
        self.unpickle(refs)
        taken, self.refs[before:] = self.refs[before:], []
        self.runs.append(Run(submitter, oid, taken))

    def ask(self, run: Run) -> None:
        """Ask for an input that nobody has asked for."""
        for ref in run.refs:
            if ref._entry.value is None and is_to_ask(ref):
                self.table.resolve([ref._entry])
                return

    def finish_run(self, run: Run) -> None:
        """It has its inputs: it ends."""
        self.runs.remove(run)
        owner = run.submitter
        failed = next((ref._entry.value for ref in run.refs if type(ref._entry.value) is Failed), None)
        run.refs.clear()
        value: Any = failed or value_of(run.oid)
        if failed is None and self.world.dice.random() < 0.5:
            value = self.node.store_block(run.oid, owner.worker_id)  # type: ignore[attr-defined]
        self.world.executions[run.oid] += 1
        if owner is self:
            task = self.tasks.get(run.oid)
            if task is not None:
                self.take_result(run.oid, value)
        elif run.claimed:
            self.queue.send(Publish(run.oid, value, owner.worker_id))
        elif owner.alive or owner.node is self.node:
            self.world.results[self, owner].append((run.oid, sent(value)))

    # -------- what the daemon says

    def read_daemon(self) -> None:
        message = self.inbox[0]
        kind = type(message)
        if kind not in (Adopt, Remake, SubmitterDied, Answer):
            super().read_daemon()
            return
        self.inbox.popleft()
        if kind is Adopt:
            self.on_adopt(message)
        elif kind is Remake:
            self.on_remake(message)
        elif kind is SubmitterDied:
            mine = [run for run in self.runs if run.submitter.worker_id == message.process]
            for run in mine:
                run.claimed = True
            dead = next(each for each in self.world.processes if each.worker_id == message.process)
            unread = self.world.results[self, dead]
            while unread:
                oid, value = unread.popleft()
                self.queue.send(Publish(oid, value, message.process))
            refs = self.refs_called_with(message.process)
            self.queue.send(Claims(message.process, [run.oid[:16] for run in mine], False, refs))
        else:
            self.world.on_copies(self.requests.pop(message.request), message.body)

    def on_adopt(self, message: Adopt) -> None:
        """As closures.on_adopt."""
        needs = self.table.adopt_held(message.needs)
        for oid in message.oids:
            entry = self.own(oid)
            task = self.tasks.get(oid)
            if task is None:
                for need in needs:
                    need.count += 1
                task = self.tasks[oid] = Task(0, oid, entry, list(needs))
            else:
                task.entry = entry
            self.run_again(task)
        self.table.unuse(needs)

    def own(self, oid: bytes) -> ObjectEntry:
        """As closures._own."""
        entry = self.table.table.get(oid)
        if entry is None:
            entry = self.table.table[oid] = ObjectEntry(oid)
            entry.count = 0
            entry.shared = SharedState(owned=True)
        shared = entry.shared
        assert shared is not None
        shared.owned = shared.escaped = True
        shared.holds += 1
        shared.resolving = False
        if entry.value is not None:
            self.table.displace(entry)
        return entry

    def run_again(self, task: Task) -> None:
        """Make a value of ours, here."""
        task.wanted = True
        if any(run.oid == task.oid for run in self.runs) or task.worker is not None:
            return
        refs = []
        for need in task.needs:
            need.count += 1
            refs.append(ObjectRef(need))
        self.runs.append(Run(self, task.oid, refs))

    def on_remake(self, message: Remake) -> None:
        """As remaking.on_remake."""
        oid = message.oid
        task = self.tasks.get(oid)
        entry = self.table.table.get(oid) or (task.entry if task is not None else None)
        if entry is None or task is None:
            self.queue.send(messages.NotMade([oid], Failed(b"what made it is not known")))
            return
        if entry.shared is None:
            entry.shared = SharedState(owned=True)
        is_lost = entry.value is None or type(entry.value) is Stored
        if is_lost:
            self.table.displace(entry)
        if message.held:
            self.table.escape_held(entry)
        if is_lost:
            self.run_again(task)
        else:
            self.table.publish(entry)

    def get(self, ref: ObjectRef) -> None:
        """As a get of the program: what lies in a store is read, here or by a pull."""
        entry = ref._entry
        value = entry.value
        shared = entry.shared
        if type(value) is not Stored or value.oid not in self.world.made:
            if value is None and shared is not None and shared.owned:
                return
            super().get(ref)
            return
        node = self.world.node(value.node)
        if self.world.can_read(self.node, node, value):
            return
        if node.alive and value.oid not in node.blocks:
            node.shell.lost(value.oid, "its file is gone", node.owners.get(value.oid, b""))
        if value.node == self.node.node_id:
            self.table.resolve_again(entry)
        elif shared is None or shared.owned:
            task = self.tasks.get(entry.oid)
            assert task is not None, "what is made again has a record"
            self.table.displace(entry)
            self.run_again(task)
        else:
            self.table.displace(entry)
            self.table.resolve_lost(entry, value)

    def get_all(self) -> None:
        for ref in list(self.refs):
            if ref.binary() in self.world.made:
                self.get(ref)

    def take_resolved(self, message: Resolved) -> None:
        value = message.value
        if type(value) is Stored:
            assert value.node, "a place has a node"
        if message.oid in self.table.table:
            self.world.check_value(message.oid, value)
        super().take_resolved(message)


class Loop(PlayedLoop):
    """Coroutines run to their end when the dice say so: none waits for anything here."""

    def create_task(self, coroutine: Any) -> Any:
        self.due.append((self._finish, (coroutine,)))
        return self

    def add_done_callback(self, call: Any) -> None:
        pass

    def _finish(self, coroutine: Any) -> None:
        try:
            coroutine.send(None)
        except StopIteration:
            return
        raise AssertionError("a played store does not wait")


class MakerNode(Node):
    """A daemon in a cluster with a GCS, and a store that may lose blocks."""

    world: Remaking

    def __init__(self, world: World, number: int) -> None:
        super().__init__(world, number)
        self.loop = Loop()
        #: in its store: oid -> generation
        self.blocks: dict[bytes, int] = {}
        self.owners: dict[bytes, bytes] = {}
        self.links = PlayedLinks(self)
        self.shell = self.make_shell()
        self.shell.inherit(self.call_gcs, self.fetch)
        self.links.handlers[_Gone] = lambda sender, message: self.world.hear_of_death(self, message.process)
        self.to_gcs: deque[tuple[str, dict[str, Any], Callable[[Any, Any], None]]] = deque()
        self.from_gcs: deque[Callable[[], None]] = deque()

    def call_gcs(self, method: str, body: dict[str, Any], answered: Callable[[Any, Any], None]) -> None:
        self.to_gcs.append((method, body, answered))

    # -------- the store

    def store_block(self, oid: bytes, owner: bytes) -> Stored:
        self.world.generations += 1
        self.blocks[oid] = self.world.generations
        self.stored[oid] = self.owners[oid] = owner
        return Stored(oid, 1, 0, 1, self.world.generations, [], self.node_id)

    def place_of(self, oid: bytes) -> Stored | None:
        generation = self.blocks.get(oid)
        return None if generation is None else Stored(oid, 1, 0, 1, generation, [], self.node_id)

    def lose_block(self, oid: bytes) -> None:
        self.blocks.pop(oid, None)
        self.stored.pop(oid, None)

    def free(self, oids: list[bytes], of_dead: bool = False) -> None:
        for oid in oids:
            if oid in self.world.made:
                self.lose_block(oid)  # an earlier one, perhaps: the directory tells when it frees the object
        super().free(oids)

    async def ensure_resident(self, oid: bytes) -> Stored:
        place = self.place_of(oid)
        if place is None and oid not in self.world.made:  # the blocks of other values have no generations
            if oid in self.stored:
                return Stored(oid, 1, 0, 1, 1, [], self.node_id)
        if place is None:
            self.shell.lost(oid, "its file is gone", self.owners.get(oid, b""))
            raise ObjectLostError("its file is gone", object_id=oid.hex())
        return place

    def fetch(self, stored: Stored, then: Callable[[Stored | None, str], None]) -> None:
        """Pull a value for the daemon itself; it comes, or not, when the dice say so."""
        self.loop.due.append((self._fetched, (stored, then)))

    def _fetched(self, stored: Stored, then: Callable[[Stored | None, str], None]) -> None:
        source = self.world.node(stored.node)
        if (
            not source.alive
            or stored.oid not in source.stored
            or (self.world.dice.random() < 0.05 and source is not self)
        ):
            then(None, "it cannot be had")
            return
        self.stored.setdefault(stored.oid, b"")
        then(Stored(stored.oid, 1, 0, 1, 1, [], self.node_id), "")

    def keep_copy(self, oid: bytes, owner: bytes) -> Stored | None:
        return Stored(oid, 1, 0, 1, 1, [], self.node_id) if oid in self.stored else None


class Permitted(set[bytes]):
    """What may be lost: and what is made of that."""

    def __init__(self, made: dict[bytes, list[bytes]]) -> None:
        super().__init__()
        self._made = made

    def __contains__(self, oid: object) -> bool:
        todo, seen = [oid], set()
        while todo:
            each = todo.pop()
            if super().__contains__(each):
                return True
            if each not in seen:
                seen.add(each)
                todo.extend(self._made.get(each, ()))  # type: ignore[call-overload]
        return False


class Remaking(World):
    """Such a cluster."""

    def __init__(
        self, seed: int, nodes: int, processes: int, node_kind: type[Node] = MakerNode, kind: type[Process] = Maker
    ) -> None:
        self.made: dict[bytes, list[bytes]] = {}
        self.executions: Counter[bytes] = Counter()
        self.generations = 1
        self.heirs: dict[bytes, bytes] = {}
        self.declared: dict[bytes, None] = {}
        self.losses = 1.0
        self.counts: Counter[str] = Counter()
        super().__init__(seed, nodes, processes, node_kind, kind)
        self.tainted = Permitted(self.made)
        pairs = [(a, b) for a in self.processes for b in self.processes]
        self.orders: dict[tuple[Any, Any], deque[Any]] = {pair: deque() for pair in pairs}
        self.results: dict[tuple[Any, Any], deque[Any]] = {pair: deque() for pair in pairs}
        self.again: deque[tuple[Maker, bytes]] = deque()

    # -------- the twin

    def check_value(self, oid: bytes, value: Any) -> None:
        """A value that somebody gets."""
        if oid not in self.made:
            return
        if type(value) is Failed:
            may = oid in self.tainted or b"no process is left on its node" in value.error
            assert may, f"{oid.hex()} failed: {value.error!r}"
        elif type(value) is bytes:
            assert value == value_of(oid), f"{oid.hex()} is {value!r}"
        else:
            assert type(value) is Stored and value.oid == oid and not value.nested

    def can_read(self, reader: Any, node: Any, value: Stored) -> bool:
        return node.alive and node.blocks.get(value.oid) == value.generation and node.node_id not in reader.links.dead

    def taint(self, oids: Any) -> None:
        """What dead processes knew is lost, but for what can be made again; what was inside of something lost may be let go."""
        stack = [(oid, False) for oid in oids]
        while stack:
            oid, inside = stack.pop()
            if not set.__contains__(self.tainted, oid) and (inside or oid not in self.made):
                self.tainted.add(oid)
                stack.extend((inner, True) for inner, _ in self.blobs.get(oid, ()))

    def home_of_made(self, oid: bytes) -> Any:
        return next(node for node in self.nodes if node.node_id[:4] == oid[:4])

    def freed(self, oid: bytes) -> None:
        """As in the base; what a node does that was declared dead, and what its processes refer to, counts for nothing."""
        self.frees += 1
        if oid in self.tainted or (oid in self.made and self.home_of_made(oid).node_id in self.declared):
            return
        for process in self.processes:
            if process.alive and process.node.node_id not in self.declared:
                entry = process.table.table.get(oid)
                assert entry is None or entry.count <= 0, (
                    f"{oid.hex()} freed while {process.worker_id.hex()} refers to it"
                )
        if oid not in self.made:
            self.tainted.add(oid)  # who needs it to make another one anew comes too late

    # -------- what can happen next

    def moves(self, hurry: bool = False) -> list[Callable[[], None]]:
        out = [*super().moves(hurry)]
        for process in self.processes:
            if process.alive:
                out.extend(self.moves_of(process))
        for (submitter, worker), orders in self.orders.items():
            if orders and worker.alive:
                out.append(lambda s=submitter, w=worker: self.take_order(s, w))  # type: ignore[misc]
        for (worker, submitter), results in self.results.items():
            if results and submitter.alive:
                out.append(lambda w=worker, s=submitter: self.take_result(w, s))  # type: ignore[misc]
        for node in self.nodes:
            if node.alive and node.from_gcs:
                out.append(lambda n=node: n.from_gcs.popleft()())  # type: ignore[misc]
            if node.alive and node.to_gcs and node.node_id not in self.declared:
                out.append(lambda n=node: self.gcs_takes(n))  # type: ignore[misc]
        if self.again:
            out.append(self.push_again)
        return out

    def moves_of(self, process: Any) -> list[Callable[[], None]]:
        out: list[Callable[[], None]] = []
        for run in process.runs:
            if all(ref._entry.value is not None for ref in run.refs):
                out.append(lambda p=process, r=run: self.run(p, p.finish_run, r))  # type: ignore[misc]
            elif any(ref._entry.value is None and is_to_ask(ref) for ref in run.refs):
                out.append(lambda p=process, r=run: self.run(p, p.ask, r))  # type: ignore[misc]
        return out

    def take_order(self, submitter: Any, worker: Any) -> None:
        oid, refs = self.orders[submitter, worker].popleft()
        if worker.node.node_id not in submitter.node.links.dead and submitter.alive:
            self.run(worker, worker.take_order, submitter, oid, refs)

    def take_result(self, worker: Any, submitter: Any) -> None:
        oid, value = self.results[worker, submitter].popleft()
        self.run(submitter, submitter.take_result, oid, value)

    def push_again(self) -> None:
        """A task whose worker died goes to another."""
        submitter, oid = self.again.popleft()
        task = submitter.tasks.get(oid) if submitter.alive else None
        if task is None or not task.wanted or task.worker is not None:
            return
        near = [each for each in self.processes if each.alive and each.node.node_id not in submitter.node.links.dead]
        self.run(submitter, submitter.push_to, task, self.dice.choice(near))

    def gcs_takes(self, node: Any) -> None:
        """The GCS handles a call; its answer goes the way of all that it tells the node."""
        method, body, answered = node.to_gcs.popleft()
        key = body["key"]
        answer: dict[str, Any] = {}
        if method == "gcs.kv_put":
            answer["added"] = key not in self.heirs
            self.heirs.setdefault(key, body["value"])
        elif method == "gcs.kv_get":
            answer["value"] = self.heirs.get(key)
        else:
            self.heirs.pop(key, None)
        node.from_gcs.append(lambda: answered(answer, []))

    def step(self, busy: float) -> None:
        """Something advances, or is done."""
        moves = self.moves()
        if moves and self.dice.random() < busy:
            self.dice.choice(moves)()
        else:
            self.act()

    # -------- what is done

    def act(self) -> None:
        dice = self.dice
        process: Any = dice.choice([process for process in self.processes if process.alive])
        kind = dice.randrange(10)
        few = dice.sample(process.refs, min(len(process.refs), dice.randrange(3)))
        if kind < 3 and len(process.tasks) < 6 and len(process.refs) < 10:
            near = [each for each in self.processes if each.alive and each.node.node_id not in process.node.links.dead]
            self.run(process, process.start, dice.choice(near), few)
        elif kind < 4 and dice.random() < self.losses:
            del few
            self.lose_block()
        elif kind < 5:
            self.keep_copies(process)
        else:
            del few
            super().act()
        few = []

    def lose_block(self) -> None:
        """A file of a store is damaged."""
        kept = [(node, oid) for node in self.nodes if node.alive for oid in node.blocks]
        if kept:
            node, oid = self.dice.choice(kept)
            node.lose_block(oid)
            self.blocks_lost.add(oid)
            self.counts["blocks lost"] += 1

    def keep_copies(self, process: Any) -> None:
        """Something that was put is to be on two nodes."""
        for ref in process.refs:
            entry = ref._entry
            shared = entry.shared
            if type(entry.value) is Stored and shared is not None and shared.escaped and entry.oid not in self.made:
                number = self.next_number()
                process.requests[number] = entry.oid
                process.queue.send(messages.KeepCopies(number, entry.oid, 2))
                return

    def on_copies(self, oid: bytes, body: dict[str, Any]) -> None:
        """A process hears how many copies there are."""
        self.counts["copies"] += body["made"] > 1

    # -------- deaths

    def kill(self, process: Process) -> None:
        if not process.alive:
            return
        self.deaths += 1
        self.counts["processes"] += 1
        local = [each for each in process.node.processes if each.alive and each is not process]
        executors = [each.worker_id for each in local if self.has_tasks_of(each, process)]
        known = list(process.table.table)
        self.bury(process)
        while process.queue.waiting:
            process.queue.read()
        del process.node.by_id[process.worker_id]
        self.note_at_risk(known)
        self.note_needs_at_risk(known, process.node)
        process.node.shell.process_died(process, "killed", executors, [], [])  # type: ignore[arg-type]
        self.tell_of_death(process.node, process.worker_id)
        for node in self.nodes:
            if node.alive and node is not process.node:
                self.lines[process.node.node_id, node.node_id].append(_Gone(process.worker_id))

    def has_tasks_of(self, worker: Any, process: Any) -> bool:
        return any(run.submitter is process for run in worker.runs) or bool(self.results[worker, process])

    def note_at_risk(self, oids: list[bytes]) -> None:
        """The dead had these. Who has a ref that its home does not count may have had it from there: its hold may come too late."""
        for oid in oids:
            if oid not in self.made:
                continue
            home = self.home_of_made(oid)
            for process in self.processes:
                entry = process.table.table.get(oid) if process.alive else None
                if entry is not None and entry.count > 0:
                    counter = process.worker_id if process.node is home else process.node.node_id
                    if not home.machine._held.get(counter, {}).get(oid):
                        self.tainted.add(oid)
                        self.counts["at risk"] += 1
            if not any(each.alive for each in home.processes):
                self.tainted.add(oid)  # nobody there can run anything

    def note_needs_at_risk(self, oids: list[bytes], node: Any) -> None:
        """Its node knows what the tasks of the dead need; whoever lent it that hears of the death before the home hears of the node's hold."""
        for oid in oids:
            if oid in self.made and oid in node.machine._succession.needed:
                home = self.home_of_made(oid)
                if home is not node and not home.machine._held.get(node.node_id, {}).get(oid):
                    self.tainted.add(oid)
                    self.counts["at risk"] += 1

    def hear_of_death(self, node: Node, worker_id: bytes) -> None:
        super().hear_of_death(node, worker_id)
        self.lose_worker(node, worker_id)

    def tell_of_death(self, node: Node, worker_id: bytes) -> None:
        super().tell_of_death(node, worker_id)
        self.lose_worker(node, worker_id)

    def lose_worker(self, node: Node, worker_id: bytes) -> None:
        """The processes of a node read the dead worker's socket to the end, and send again what it had not answered."""
        dead: Any = next(process for process in self.processes if process.worker_id == worker_id)
        for submitter in node.processes:
            if submitter.alive:
                while self.results[dead, submitter]:
                    self.take_result(dead, submitter)
                for task in submitter.tasks.values():  # type: ignore[attr-defined]
                    if task.worker is dead:
                        task.worker = None
                        self.again.append((submitter, task.oid))  # type: ignore[arg-type]

    def bury(self, process: Process) -> None:
        maker: Any = process
        super().bury(process)
        for key, queue in self.orders.items():
            if process is key[1] or process is key[0]:
                queue.clear()
        for (_, submitter), queue in self.results.items():
            if submitter is process and not process.node.alive:
                queue.clear()
        maker.runs.clear()
        maker.tasks.clear()
        for other in self.processes:
            for run in list(other.runs):  # type: ignore[attr-defined]
                if run.submitter is process and other.node is not process.node:
                    other.runs.remove(run)  # type: ignore[attr-defined]
                    if other.alive:
                        self.run(other, run.refs.clear)
        with process.running():
            pass

    def kill_node(self, node: Node, lives_on: bool = False) -> None:
        """A node dies, or is taken for dead and lives on until it hears of it. The others hear of it one by one."""
        if not node.alive or node.node_id in self.declared:
            return
        self.deaths += 1
        self.counts["nodes cut off" if lives_on else "nodes"] += 1
        self.declared[node.node_id] = None
        for key in [key for key, heir in self.heirs.items() if heir == node.node_id]:
            del self.heirs[key]
        self.note_lost_home(node)
        if not lives_on:
            self.end_node(node)
        for other in self.nodes:
            if other is node:
                other.from_gcs.append(lambda: self.end_node(node))
            elif other.alive:
                other.from_gcs.append(lambda other=other: self.hear_node_died(other, node))  # type: ignore[misc]

    def note_lost_home(self, node: Any) -> None:
        """What nobody else knows how to make is lost, and what needs something of a third home."""
        living = [each for each in self.nodes if each.alive and each.node_id not in self.declared]
        for oid, needs in self.made.items():
            if self.home_of_made(oid) is node:
                if not any(oid in each.machine._mirrors.kept.get(node.node_id, ()) for each in living):
                    self.tainted.add(oid)
                elif any(self.home_of_made(need) is not node for need in needs if need in self.made):
                    self.tainted.add(oid)
        self.taint(node.machine._objects)
        self.taint(node.stored)

    def end_node(self, node: Any) -> None:
        """It is over with a node."""
        if not node.alive:
            return
        node.alive = False
        for _, args in node.loop.due:
            for coroutine in filter(inspect.iscoroutine, args):
                coroutine.close()
        node.loop.due.clear()
        known = [oid for process in node.processes for oid in process.table.table]
        for process in node.processes:
            if process.alive:
                self.bury(process)
        self.note_at_risk(known)
        for (sender, receiver), line in self.lines.items():
            if receiver == node.node_id:
                line.clear()
            elif sender == node.node_id:  # what was in its sockets may be lost
                for _ in range(self.dice.randrange(len(line) + 1)):
                    self.taint(getattr(line.pop(), "oids", ()))

    def hear_node_died(self, node: Any, dead: Any) -> None:
        """The GCS tells a node that another is dead."""
        node.links.dead[dead.node_id] = "killed"
        self.lines[dead.node_id, node.node_id].clear()
        self.lines[node.node_id, dead.node_id].clear()
        for died in node.links.on_died:
            died(dead.node_id, "killed")
        for process in dead.processes:
            self.hear_of_death(node, process.worker_id)

    # -------- the end

    def finish(self) -> None:
        """Every ref gives its value; then nothing is left."""
        self.settle()
        for _ in range(8):
            for process in self.processes:
                if process.alive:
                    self.run(process, process.get_all)  # type: ignore[attr-defined]
            self.settle()
        for process in self.processes:
            if process.alive:
                self.check_refs(process)
        if all(node.alive for node in self.nodes):
            self.check_agreement()
        super().finish()
        assert not self.heirs, "the GCS knows heirs of objects that are gone"

    def check_refs(self, process: Any) -> None:
        for ref in process.refs:
            oid, value = ref.binary(), ref._entry.value
            if oid not in self.made:
                continue
            assert value is not None, f"{oid.hex()} has no value at {process.worker_id.hex()}"
            self.check_value(oid, value)
            if type(value) is Stored:
                node: Any = self.node(value.node)
                assert self.can_read(process.node, node, value), f"{oid.hex()} cannot be read where it is said to lie"
        assert not process.runs and not [task for task in process.tasks.values() if task.wanted], "work is left"

    def check_agreement(self) -> None:
        """What one node says of another, that one says too."""
        for home in self.nodes:
            for node in self.nodes:
                if node is home:
                    continue
                counted = home.machine._held[node.node_id] if node.node_id in home.machine._held else {}
                taken = {
                    oid: row.abroad.taken
                    for oid, row in node.machine._objects.items()
                    if row.abroad is not None and row.abroad.home == home.node_id and row.abroad.taken
                }
                assert counted == taken, f"{home.node_id!r} counts {counted} for {node.node_id!r}, which has {taken}"
                told = home.machine._mirrors.told.get(node.node_id, {})
                kept = node.machine._mirrors.kept.get(home.node_id, {})
                assert set(told) == set(kept), "mirrors are not what was told"
                needed = {oid for oid, known in node.machine._needs.homes.items() if known == home.node_id}
                assert needed == set(home.machine._needs._of.get(node.node_id, ())), "needs are not what was told"
