"""Actors with checkpoints: the production ledger in the worker, the production logs at its node and in the GCS, and what callers may see of both.

Purpose: whoever is killed, cut off or drained whenever, the actor's state is that of the serial program.

Design: `ExactLife` stands beside `runtime.exact_actor`: record, run, keep the answer, checkpoint, answer. The node's part is `node.io.recoveries` as
it is, over the node's line to the GCS. The state of a played actor is the list of the calls that it has run, and the answer to a call is its place
in that list; so what callers were answered says which list they have seen (`Seen`), and nobody need believe a log.

    call -> RecordCall -> [recoveries] -> gcs.actor_log_append -> GCS        what the daemon has not read when the worker dies, it reads then
    answer waits for the GCS (`Promises`), and for the leash

What it does not do: checkpoints too large for the GCS (tests/node/test_log_copies.py), refs in states, calls of one such actor to another.
"""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec

from shoal.node import object_events
from shoal.node.io.recoveries import Recoveries
from shoal.protocol.ids import TASK_PREFIX_BYTES
from shoal.protocol.messages import CHECKPOINT_INTERVAL, RecordCall, Recovery, StoreCheckpoint
from shoal.runtime import replay
from shoal.runtime.replay import AWAITED, KNOWN, NEW, CallLedger, KeptReply, Record, ReplayGap
from shoal.simulator.actors import Actor, Call, CallQueue, Life

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.simulator.node import Node
    from shoal.simulator.process import Worker
    from shoal.simulator.shells import Clock


class InexactError(AssertionError):
    """Callers have seen what no serial program shows."""


def task_id_of(caller: bytes, number: int) -> bytes:
    """The name of a caller's call."""
    return caller[-TASK_PREFIX_BYTES:].rjust(TASK_PREFIX_BYTES, b"\0") + number.to_bytes(4, "big")


class Seen:
    """What the callers of one actor were answered."""

    def __init__(self) -> None:
        #: place in the list of calls -> the call, and the other way round
        self._at: dict[int, bytes] = {}
        self._place: dict[bytes, int] = {}

    def answered(self, caller: bytes, number: int, place: int) -> None:
        """A caller has an answer.

        Raises:
            InexactError: another call was at that place, or this call at another.
        """
        task_id = task_id_of(caller, number)
        if self._at.setdefault(place, task_id) != task_id:
            raise InexactError(f"calls {self._at[place].hex()} and {task_id.hex()} are both number {place}")
        if self._place.setdefault(task_id, place) != place:
            raise InexactError(f"call {task_id.hex()} was number {self._place[task_id]}, and is number {place}")

    def check(self, state: list[bytes]) -> None:
        """The list of the last life.

        Raises:
            InexactError: an answered call is not in its place, or a call is in it twice.
        """
        if len(set(state)) != len(state):
            raise InexactError(f"of {len(state)} calls that have run only {len(set(state))} are different")
        for place, task_id in self._at.items():
            if place > len(state) or state[place - 1] != task_id:
                raise InexactError(
                    f"call {task_id.hex()} was answered as number {place} of {len(state)}, where another one is"
                )
        last: dict[bytes, bytes] = {}
        for task_id in state:
            caller = task_id[:TASK_PREFIX_BYTES]
            if task_id < last.get(caller, b""):
                raise InexactError(f"call {task_id.hex()} ran after later ones of its caller")
            last[caller] = task_id


class Promises:
    """What the object directory does for the logs of actors: it tells a worker when the GCS has all that the worker has written."""

    def __init__(self, tell: Callable[[bytes], None]) -> None:
        self._owed: dict[bytes, dict[int, None]] = {}
        self._of: dict[int, bytes] = {}
        self._tell = tell

    def handle(self, event: Any) -> None:
        """An event of the directory."""
        if type(event) is object_events.Promised:
            self._owed.setdefault(event.process, {})[event.number] = None
            self._of[event.number] = event.process
        elif type(event) is object_events.PromiseKept:
            process = self._of.pop(event.number, b"")
            owed = self._owed.get(process)
            if owed is not None:
                owed.pop(event.number, None)
                self._tell(process)

    def owner_gone(self, actor_id: bytes) -> None:
        """The log of an actor is dropped."""

    def oldest(self, process: bytes) -> int:
        """Which of its writings the GCS does not have; they count down."""
        return next(iter(self._owed.get(process, ())), 0)

    def newest(self, process: bytes) -> int:
        """The last of them, 0 when there is none."""
        return next(reversed(self._owed.get(process, {})), 0)


class Keeper:
    """The logs of one node."""

    def __init__(self, node: Node, clock: Clock) -> None:
        self._node = node
        self.promises = Promises(self._kept)
        directory: Any = self.promises
        line: Any = node.actors.line
        loop: Any = clock
        self.recoveries = Recoveries(directory, lambda oids: None, line, loop)

    def _kept(self, process: bytes) -> None:
        worker = self._node.cluster.worker(process)
        life = worker.actor if worker is not None else None
        if worker is not None and isinstance(life, ExactLife):
            worker.from_daemon.send(worker.station, 0.0, life.on_confirmed, self.promises.oldest(process))


class ExactLife(Life):
    """The worker of an actor with checkpoints."""

    def __init__(self, actor: Actor, worker: Worker, lease_id: int, incarnation: int) -> None:
        super().__init__(actor, worker, lease_id, incarnation)
        self._ledger = CallLedger()
        self._state: list[bytes] = []
        self._interval: int = actor.spec.options[CHECKPOINT_INTERVAL]
        self._since = 0  #: calls since the last checkpoint
        self._moving = False
        self._replays = False
        self._again: dict[bytes, list[tuple[CallQueue, int]]] = {}
        #: written to the daemon, and not read by it
        self._socket: deque[RecordCall | StoreCheckpoint] = deque()
        self._written = self._read = 0
        #: answers that wait until the daemon, and the GCS, have what was written before: (how many writings, ...)
        self._unconfirmed: deque[tuple[int, CallQueue, int, int]] = deque()
        self._confirmed = 0
        #: number of each promise of the daemon's -> of the writing
        self._promised: dict[int, int] = {}

    # ---------------------------------------------------------------- the beginning

    def begin(self) -> None:
        """Construct, or go on where the former life was."""
        worker = self.worker
        if worker.dead:
            return
        recovery: Recovery | None = worker.node.keeper.recoveries.recovery(self.actor_id)
        if recovery is None:
            worker.world.after(self.actor.construct_s, self._begun)
            return
        try:
            if recovery.problem:
                raise ReplayGap(recovery.problem)
            assert type(recovery.checkpoint) is bytes, "it is small"
            encoded, self._state = msgspec.msgpack.decode(recovery.checkpoint, type=tuple[bytes, list[bytes]])
            self._ledger.restore(replay.decode_snapshot(encoded), map(replay.decode_record, recovery.records))
        except ReplayGap as error:
            raise InexactError(f"the state of an actor cannot be recovered: {error}") from None
        self._replays = True
        worker.world.after(self.actor.construct_s / 10 + 0.001 * len(self._ledger.plan), self._replay)

    def _replay(self) -> None:
        if self.worker.dead:
            return
        for record in self._ledger.plan:
            self._ledger.begin(record.task_id)
            self._finish(record.task_id)
        self._ledger.plan.clear()
        self._replays = False
        self._begun()

    def _begun(self) -> None:
        if self.worker.dead:
            return
        if not self.actor.fails:
            self._checkpoint()
        self._construct()

    # ---------------------------------------------------------------- calls

    def on_calls(self, queue: CallQueue, lease_id: int, items: list[tuple[int, Call]]) -> None:
        """Calls of one caller: new ones, and such as have run."""
        assert lease_id == self.lease_id
        if self.worker.dead or self._moving:
            return
        for seq, call in items:
            task_id = task_id_of(queue.caller.process_id, call.number)
            verdict = self._ledger.arrive(task_id)
            if verdict is NEW:
                self._waiting.append((queue, seq, call))
            elif verdict is AWAITED:
                self._again.setdefault(task_id, []).append((queue, seq))
            elif verdict is KNOWN:
                self._reply(queue, seq, self._ledger.answer(task_id))
            else:
                raise InexactError(f"call {task_id.hex()} has run, and its answer is not kept though it was not given")
        self._next()

    def _runs_now(self, queue: CallQueue, seq: int, call: Call) -> None:
        task_id = task_id_of(queue.caller.process_id, call.number)
        record = Record(self._ledger.index + 1, task_id, "method", "Actor.method", 1, b"")
        index = self._ledger.begin(task_id)
        self._write(RecordCall(self.actor_id, self.incarnation, index, replay.encode(record)))

    def _done_now(self, queue: CallQueue, seq: int, call: Call) -> None:
        task_id = task_id_of(queue.caller.process_id, call.number)
        self._finish(task_id)
        kept = self._ledger.answer(task_id)
        if self._since >= self._interval:
            self._checkpoint()
        self._reply(queue, seq, kept)
        for other, again in self._again.pop(task_id, ()):
            self._reply(other, again, kept)

    def _finish(self, task_id: bytes) -> None:
        self._state.append(task_id)
        self._since += 1
        self._ledger.finish(KeptReply(task_id, len(self._state).to_bytes(8, "big")))

    def _checkpoint(self) -> None:
        snapshot = self._ledger.snapshot(0)
        blob = msgspec.msgpack.encode((replay.encode(snapshot), self._state))
        self._write(StoreCheckpoint(self.actor_id, self.incarnation, snapshot.index, blob))
        self._since = 0

    def settle(self, caller: bytes, number: int) -> None:
        """See Life."""
        if not self.worker.dead:
            self._ledger.settle([task_id_of(caller, number)])

    # ---------------------------------------------------------------- the daemon

    def _write(self, message: RecordCall | StoreCheckpoint) -> None:
        worker = self.worker
        self._socket.append(message)
        self._written += 1
        worker.to_daemon.send(worker.node.station, worker.world.costs.daemon_message_s, self._read_one)

    def _read_one(self) -> None:
        if not self.worker.node.dead and self._socket:
            keeper = self.worker.node.keeper
            message, worker_id = self._socket.popleft(), self.worker.process_id
            sender: Any = SimpleNamespace(worker_id=worker_id)
            if type(message) is RecordCall:
                keeper.recoveries.on_record(sender, message)
            elif type(message) is StoreCheckpoint:
                keeper.recoveries.on_checkpoint(sender, message)
            self._read += 1
            self._promised[keeper.promises.newest(worker_id)] = self._read

    def read_to_the_end(self) -> None:
        """See Life."""
        while self._socket:
            self._read_one()

    def on_confirmed(self, oldest: int) -> None:
        """The GCS has all that was written before what the daemon numbered `oldest`; 0: all that the daemon has read."""
        if self.worker.dead:
            return
        confirmed = self._read if not oldest else self._promised[oldest] - 1
        self._confirmed = max(self._confirmed, confirmed)
        while self._unconfirmed and self._unconfirmed[0][0] <= self._confirmed:
            _, queue, seq, place = self._unconfirmed.popleft()
            self._say(queue, seq, place)
        if self._moving:
            self._move_on()

    def _reply(self, queue: CallQueue, seq: int, kept: KeptReply) -> None:
        assert type(kept.value) is bytes, "a place"
        place = int.from_bytes(kept.value, "big")
        if self._confirmed >= self._written and not self._unconfirmed:
            self._say(queue, seq, place)
        else:
            self._unconfirmed.append((self._written, queue, seq, place))

    def _say(self, queue: CallQueue, seq: int, place: int) -> None:
        queue.places[self.lease_id, seq] = place
        self._answer_on_leash(queue, seq)

    # ---------------------------------------------------------------- moving

    def move(self) -> None:
        """Begin nothing more, take a checkpoint after the call that runs, and go on elsewhere."""
        if self.worker.dead or self._moving:
            return
        self._moving = True
        self._waiting.clear()
        self._move_on()

    def _move_on(self) -> None:
        if self._runs or self._replays or not self._constructed:
            return
        if self._since:
            self._checkpoint()
        if self._confirmed >= self._written:
            self.moves = True
            self.worker.node.process_died(self.worker, "moved: its node leaves")

    def state(self) -> list[bytes]:
        """The calls that have run, in their order."""
        return self._state
