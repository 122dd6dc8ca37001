"""Spare copies: what would take long to make again lies on two nodes.

Purpose: the death of a node costs seconds, not the hours that led to what lay there. Of a chain of short tasks there is nothing but its last result,
and the lineage of that goes back to the beginning; of one result a second or so a copy lies on another node, and a re-run begins there.

Design: the owner decides, since it knows what making a result again costs (`Record.cost_s`, from the times that tasks took). If that is SPARE_COST_S
or more, and copying takes no more than a tenth of it, the owner's own node fetches a copy and keeps it as an original of its store, owned by this
process: if that node dies, so does the owner, and others begin anew. So a result that lies on the owner's node needs none.

    result of another node -> dear enough? -> waits -> its turn -> Call node.keep_here -> record.spare
                                                                     |  lost: the spare is the value (`take`), nothing runs again
                                                                     `- freed with its record, or when a later result in the line has a spare

The daemon answers when the copy is there or cannot be; one that has not within ANSWER_S is waited for no longer, the original is let go, and the next
one has its turn. A copy that comes later is taken all the same.

It may cost little: one copy at a time, the newest first, as it saves most; COPY_BYTES_PER_S in the long run, after everything that processes ask for;
at most SPARE_SHARE of the node's store, and none when that is half full.

What it does not do: copies of several results of one task, of a stream's items, of values with refs inside, or of what is on the owner's node.
"""

from __future__ import annotations

from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Any

import msgspec

from shoal.protocol.ids import TASK_ID_BYTES
from shoal.protocol.messages import Answer, Call, FreeObjects, Stored
from shoal.runtime.pulling import Told

if TYPE_CHECKING:
    from shoal.runtime.core import Runtime
    from shoal.runtime.lineage import Record
    from shoal.runtime.objects import ObjectEntry

SPARE_COST_S = 1.0  #: what is made again in less time gets none
COPY_BYTES_PER_S = 100e6
COPY_SHARE = 0.1  #: of the time that it saves
SPARE_SHARE = 1 / 8  #: of the store
WAITING_MAX = 64
ANSWER_S = 120.0  #: a pull ends 60 s after its last chunk


def is_worth_a_copy(cost_s: float, size: int) -> bool:
    """Whether copying a result costs little beside making it again."""
    return cost_s >= SPARE_COST_S and size / COPY_BYTES_PER_S <= COPY_SHARE * cost_s


class Spares:
    """The spare copies of one process. Written under the reactor's lock."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        #: results that may get one, the newest last
        self.waiting: deque[tuple[Record, ObjectEntry, Stored]] = deque(maxlen=WAITING_MAX)
        self.bytes = 0  #: of all that there are
        self.made = self.taken = 0
        #: the original that is held while it is copied
        self.copied: ObjectEntry | None = None
        self._free_at = 0.0  #: when the next copy may begin; while one is made, when it is given up

    def statistics(self) -> dict[str, int]:
        """What there is, and what was done."""
        return {"spare_bytes": self.bytes, "made": self.made, "taken": self.taken}

    def consider(self, record: Record, entry: ObjectEntry, value: Stored) -> None:
        """A result has come that lies in a store. Caller holds the lock."""
        plain = value.node != self._runtime.node_id and not value.nested and not record.task.template.multiple
        if plain and is_worth_a_copy(record.cost_s, value.size):
            self.waiting.append((record, entry, value))
            self.next()

    def next(self) -> None:
        """Begin a copy, if it is time for one. Caller holds the lock."""
        if perf_counter() < self._free_at:
            return
        self._let_go()
        while self.waiting and self.copied is None and perf_counter() >= self._free_at:
            record, entry, value = self.waiting.pop()
            if (
                entry.count > 0
                and entry.value in (None, value)
                and record.spare is None
                and is_worth_a_copy(record.cost_s, value.size)
                and self.bytes + value.size <= SPARE_SHARE * self._runtime.config["object_store_memory"]
            ):
                self._copy(record, entry, value)

    def _copy(self, record: Record, entry: ObjectEntry, value: Stored) -> None:
        """Ask the daemon for a copy; until it is there the original is held."""
        runtime = self._runtime
        daemon = runtime.reactor.causal
        if daemon is None or runtime.lost is not None:
            return
        self.copied = entry
        self._free_at = perf_counter() + ANSWER_S
        entry.count += 1
        runtime._requests += 1
        number = runtime._requests

        def answered() -> None:
            slot = runtime._answers.pop(number, None)
            if slot is None or not slot[1] or runtime.lost is not None:
                return
            if record.spare is None:
                self._copied(record, slot[1][0])
            if self.copied is entry:
                self._free_at = perf_counter() + value.size / COPY_BYTES_PER_S
                self._let_go()
                self.next()

        runtime._answers[number] = (Told(answered), [])
        daemon.send(Call(number, "node.keep_here", {"stored": value}))

    def _let_go(self) -> None:
        """Nothing is copied now (any more)."""
        entry, self.copied = self.copied, None
        if entry is not None:
            self._runtime.objects.unuse([entry])

    def _copied(self, record: Record, answer: Answer) -> None:
        if answer.error:
            return  # no room, or lost: as without
        spare: Stored = msgspec.convert(answer.body["stored"], Stored)
        spare.node = self._runtime.node_id
        lineage = self._runtime.lineage
        record.spare = spare
        self.bytes += spare.size
        if lineage.records.get(spare.oid[:TASK_ID_BYTES]) is not record:
            self.free(record)
            return
        self.made += 1
        for former in lineage.superseded(record):
            self.free(former)
        for other, _, _ in self.waiting:  # in the order in which they were made: what was dear may be cheap now
            lineage.weigh(other)

    def take(self, record: Record | None) -> Any:
        """The spare copy of a lost result, which is the value from now on; None if there is none. Caller holds the lock."""
        if record is None or record.spare is None:
            return None
        spare, record.spare = record.spare, None
        self.bytes -= spare.size
        self.taken += 1
        return spare

    def free(self, record: Record) -> None:
        """A record's spare copy is of use to nobody. Caller holds the lock."""
        spare, record.spare = record.spare, None
        daemon = self._runtime.reactor.causal
        assert spare is not None, "there is one"
        self.bytes -= spare.size
        if daemon is not None:
            daemon.send(FreeObjects([spare.oid]))
