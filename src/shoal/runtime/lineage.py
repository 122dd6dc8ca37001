"""What this process could run again: the specs of finished tasks whose results lie in the store.

Purpose: an object that is lost can be made anew as long as somebody refers to it, or to something that was made from it.

Design: one pure table. A task gets a `Record` with the first of its results that lies in the store; inline results cannot be lost and cost
nothing here. A record stays while one of its results does (`entries`), or while other records need it (`needed`): then the value of
its result is freed as ever, and only the spec stays. Entries of inputs are kept, not counted: of a freed one that was inline the value
is still there, of a stored one its own record tells how it is made. Of one that another process owns the daemon does (`borrowed`, and
`objects.NeedLineage`): it is told when the last ref here goes, and when no record needs it any more.

    keep(task, entry)    a result of the task lies in the store
    forget(oid)          that result is freed
    evict                beyond `bytes_max` the oldest records keep their name only

A record knows what making its result again would cost (`cost_s`): its task's time and, as they run side by side, that of its dearest input, back to
inputs of which there is a spare copy (`spares`).

What it does not do: run anything (`remaking`), make copies (`spares`), or count references (`objects`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from shoal.protocol.ids import TASK_ID_BYTES
from shoal.protocol.messages import Stored

if TYPE_CHECKING:
    from shoal.runtime.objects import ObjectEntry
    from shoal.runtime.tasks import PendingTask

RECORD_BYTES = 600  #: what a record takes beside its arguments and inputs


class Record:
    """How to make the results of one finished task again. Written by `LineageTable`, but for `run`."""

    __slots__ = (
        "argument",
        "borrowed",
        "bytes",
        "cost_s",
        "entries",
        "evicted",
        "inputs",
        "needed",
        "needs",
        "run",
        "spare",
        "task",
    )

    def __init__(self, task: PendingTask) -> None:
        self.task = task
        #: its results that lie in the store, by id
        self.entries: dict[bytes, ObjectEntry] = {}
        #: what it was given: dependencies and refs inside its arguments
        self.inputs: list[ObjectEntry] = []
        #: the entry of arguments too large to travel inline, used by this record
        self.argument: ObjectEntry | None = None
        #: inputs that other processes own, and that would have to be made, too
        self.borrowed: list[bytes] = []
        #: tasks whose results are among the inputs
        self.needs: list[bytes] = []
        #: how many records have this one among their needs
        self.needed = 0
        self.bytes = RECORD_BYTES
        self.evicted = False
        self.run: Any = None  #: the re-run in progress; written by `remaking`
        self.cost_s = 0.0  #: time to make it again
        self.spare: Stored | None = (
            None  #: a second copy of its one result, on this process's node; written by `spares`
        )


class LineageTable:
    """All records of one process. Guarded by the reactor's lock.

    Args:
        bytes_max: what all records may take.
        unuse: ends the use of stored arguments.
        free_spare: a spare copy is of use to nobody.
        unneed: no record needs a borrowed object any more.
    """

    def __init__(
        self,
        bytes_max: int,
        unuse: Callable[[Iterable[ObjectEntry]], None],
        free_spare: Callable[[Record], None] = lambda record: None,
        unneed: Callable[[bytes], None] = lambda oid: None,
    ) -> None:
        self.records: dict[bytes, Record] = {}
        #: those that are not evicted, the oldest first
        self._whole: dict[bytes, Record] = {}
        self.bytes = 0
        self.evictions = 0
        self._bytes_max = bytes_max
        self._unuse = unuse
        self._free_spare = free_spare
        self._unneed = unneed
        #: borrowed objects that records would need -> how many
        self.borrowed: dict[bytes, int] = {}
        #: tasks that records need, and that have no record (yet): a result nested in arguments may be pending
        self._promised: dict[bytes, int] = {}

    def keep(self, task: PendingTask, entry: ObjectEntry) -> Record:
        """A result of `task` lies in the store."""
        record = self.records.get(task.task_id)
        if record is None:
            record = self.records[task.task_id] = self._whole[task.task_id] = Record(task)
            record.needed = self._promised.pop(task.task_id, 0)
            if task.template.max_retries:
                self._fill(record, task)
            self.bytes += record.bytes
        record.entries[entry.oid] = entry
        if self.bytes > self._bytes_max:
            self._evict(record)
        return record

    def add(self, record: Record) -> None:
        """A record made elsewhere: of a task that this process runs for a dead one."""
        task_id = record.task.task_id
        former = self.records.get(task_id)
        if former is not None:
            record.entries.update(former.entries)
            record.needed = former.needed
            record.spare = former.spare
        else:
            record.needed = self._promised.pop(task_id, 0)
        self.records[task_id] = self._whole[task_id] = record
        self.bytes += record.bytes

    def _fill(self, record: Record, task: PendingTask) -> None:
        """Note what a re-run would need."""
        args = task.args
        if type(args) is bytes:
            record.bytes += len(args)
        for entry in task.held or ():
            if type(args) is Stored and entry.oid == args.oid:
                record.argument = entry
                entry.count += 1
                record.bytes += args.size
                continue
            record.inputs.append(entry)
            value = entry.value
            if type(value) is bytes:
                record.bytes += len(value)
            elif entry.shared is None or entry.shared.owned:
                record.needs.append(entry.oid[:TASK_ID_BYTES])
            else:
                record.borrowed.append(entry.oid)
                self.borrowed[entry.oid] = self.borrowed.get(entry.oid, 0) + 1
        for task_id in record.needs:
            known = self.records.get(task_id)
            if known is not None:
                known.needed += 1
            else:
                self._promised[task_id] = self._promised.get(task_id, 0) + 1
        self.weigh(record)

    def weigh(self, record: Record) -> None:
        """Note what making a record's result again costs now."""
        known = (self.records.get(task_id) for task_id in record.needs)
        inputs_s = max((need.cost_s for need in known if need is not None and need.spare is None), default=0.0)
        record.cost_s = record.task.template.estimate_s + inputs_s

    def superseded(self, record: Record) -> list[Record]:
        """Records behind `record`, of which there is a spare now, whose own spares no other result needs: a re-run would begin here."""
        found = []
        behind = list(record.needs)
        while behind:
            need = self.records.get(behind.pop())
            if need is None or need.entries or need.needed != 1:
                continue
            if need.spare is not None:
                found.append(need)  # what lies behind it was looked at when that was made
            else:
                behind.extend(need.needs)
        return found

    def forget(self, oid: bytes) -> None:
        """A result that lay in the store is freed."""
        record = self.records.get(oid[:TASK_ID_BYTES])
        if record is not None and record.entries.pop(oid, None) is not None:
            self.drop_idle(record)

    def drop_idle(self, record: Record) -> None:
        """Drop a record that nobody needs any more, and those that only it needed, and so on."""
        idle = [record]
        arguments: list[ObjectEntry] = []
        while idle:
            record = idle.pop()
            if record.entries or record.needed or record.run is not None:
                continue
            if self.records.pop(record.task.task_id, None) is not record:
                continue
            self._whole.pop(record.task.task_id, None)
            self._strip(record, idle, arguments)
            self.bytes -= record.bytes
            if record.spare is not None:
                self._free_spare(record)
        if arguments:
            self._unuse(arguments)

    def _strip(self, record: Record, idle: list[Record], arguments: list[ObjectEntry]) -> None:
        """Take from a record what it refers to; records that may be of no use now are added to `idle`."""
        needs, record.needs = record.needs, []
        for task_id in needs:
            needed = self.records.get(task_id)
            if needed is not None:
                needed.needed -= 1
                idle.append(needed)
            else:
                left = self._promised[task_id] - 1
                if left:
                    self._promised[task_id] = left
                else:
                    del self._promised[task_id]
        borrowed, record.borrowed = record.borrowed, []
        for oid in borrowed:
            self.borrowed[oid] -= 1
            if not self.borrowed[oid]:
                del self.borrowed[oid]
                self._unneed(oid)
        record.inputs = []
        if record.argument is not None:
            arguments.append(record.argument)
            record.argument = None

    def _evict(self, newest: Record) -> None:
        """Let the oldest records go, but for their names."""
        idle: list[Record] = []
        arguments: list[ObjectEntry] = []
        running: list[Record] = []
        while self.bytes > self._bytes_max and self._whole:
            task_id = next(iter(self._whole))
            record = self._whole[task_id]
            if record is newest:
                break
            del self._whole[task_id]
            if record.run is not None:
                running.append(record)
                continue
            record.evicted = True
            self.evictions += 1
            self._strip(record, idle, arguments)
            self.bytes -= record.bytes
            record.bytes = 0  # what is left of it is no more than the refs to its results take
        for record in running:
            self._whole[record.task.task_id] = record
        for record in idle:
            self.drop_idle(record)
        if arguments:
            self._unuse(arguments)

    def statistics(self) -> dict[str, int]:
        """Sizes of the table."""
        return {
            "records": len(self.records),
            "bytes": self.bytes,
            "evictions": self.evictions,
            "promised": len(self._promised),
            "borrowed": len(self.borrowed),
        }
