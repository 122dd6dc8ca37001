"""The daemon's hands in the store: segments, pages, pins, and the disk. Performs what `store_table` decides.

Design: everything runs on the daemon's event loop but reading and writing files, which two threads do. Events that arise while effects are
performed are queued and handled next, so the table is never entered twice. Blocks that wait for their grace are checked together, for one look at
the pins of all processes costs the same for one block and for a thousand.

A file of a spilled object holds a 48-byte header (magic, version, ObjectID, size, CRC-32 of the payload: 3.7 GB/s) and the payload. A file that
does not match is a lost object, never a wrong value.

Objects that are being sent to other nodes are pinned by the daemon itself (`pin`), in a table that is looked at like the processes' pages. Copies of
other nodes' objects get their place here (`receive`), and are written by `transfer`.

What it does not do: decide what moves (`store_table`), count references (`object_directory`), or talk to sockets (`send`, `transfer`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import struct
import time
import zlib
from collections import deque
from collections.abc import Callable, Container
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from shoal.node import store_events as ev
from shoal.node.io.room_keeper import RoomKeeper
from shoal.node.store_rows import DYING, MARKED, RESIDENT, WRITING, ObjectRow, StoreTableStatistics
from shoal.node.store_table import StoreTable
from shoal.protocol.errors import ObjectLostError, ObjectStoreFullError, OutOfDiskError
from shoal.protocol.limits import BLOCK_HEADER_BYTES
from shoal.protocol.messages import BudgetReturned, FreeObjects, OpenSegment, Sealed, Stored
from shoal.store.client import DISK_REASON
from shoal.store.mapping import Mapping
from shoal.store.page import ProcessPage
from shoal.store.segment import ASKED, BLOCKS_START, EVICTED, SEALED, TAKEN, Segment
from shoal.store.segment import WRITING as BLOCK_WRITING

GRACE_SLACK_S = 0.005  #: blocks whose grace ends within it are checked together
SCAN_SHARE_MAX = 0.1  #: of the loop's time that looking at pins may take
DISK_RESERVE_SHARE = 0.02  #: of the disk that is never used for spilled objects
DISK_CHUNK_BYTES = 8 << 20
DISK_THREADS = 2
_FILE_HEADER = struct.Struct("<8sI20sQI4x")
_FILE_MAGIC = b"SHOALSPL"
_FILE_VERSION = 1


class Receiver(Protocol):
    """Who brings copies from other nodes, and sends originals there."""

    def room_made(self, place: ev.ReceiveCopy) -> None:
        """There is room for a copy that `receive` wanted."""

    def room_refused(self, oid: bytes, error: Exception | None) -> None:
        """There is none; with None the object is in this store already."""

    def copy_dropped(self, oid: bytes, origin: bytes) -> None:
        """A copy of an object of node `origin` has made room for others."""

    def freed(self, oids: list[bytes]) -> None:
        """Nobody refers to these objects of this node any more."""


class StoreShell:
    """The store of one node daemon.

    Args:
        loop: the daemon's event loop; all methods are called on it.
        session_dir: spilled objects go to `spill/` under it.
        capacity_bytes: the pool.
        send: sends a message to a process of this node.
        on_moved: told when an object's place changes: the new one, or None while it is on disk only (`ensure_resident` brings it back).
        on_lost: told when an object is gone for good, why, and who owns it (if the store knows).
        spill_dir: another folder for spilled objects.
        spill_allowed: False keeps everything in memory; then a full store is an error at once.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        session_dir: str,
        capacity_bytes: int,
        send: Callable[[bytes, Any], None],
        on_moved: Callable[[bytes, Stored | None], None] = lambda oid, stored: None,
        on_lost: Callable[[bytes, str, bytes], None] = lambda oid, reason, owner: None,
        spill_dir: str = "",
        spill_allowed: bool = True,
    ) -> None:
        self._loop = loop
        self._send = send
        self._on_moved = on_moved
        self._on_lost = on_lost
        self._spill_dir = spill_dir or os.path.join(session_dir, "spill")
        self._table = StoreTable(capacity_bytes, spill_allowed)
        #: which tasks may wait for arguments
        self.room = RoomKeeper(loop, capacity_bytes, send)
        self._segments: dict[int, Segment] = {}
        self._serial = 0
        self._pages: dict[bytes, tuple[ProcessPage, str]] = {}
        self._waiters: dict[bytes, list[asyncio.Future[Stored]]] = {}
        self._graces: dict[float, tuple[float, list[ev.AwaitGrace]]] = {}  #: delay -> (latest time to join, blocks)
        self._scan_cost_s = 0.0
        self._events: deque[ev.Event] = deque()
        self._handling = False
        self._closed = False
        #: of a cluster's node
        self.receiver: Receiver | None = None
        self._sending: dict[tuple[int, int], int] = {}  #: place -> how often it is pinned here
        self._disk = ThreadPoolExecutor(DISK_THREADS, thread_name_prefix="shoal-spill")

    # ---------------------------------------------------------------- processes

    def add_process(self, worker_id: bytes, label: str) -> ProcessPage:
        """A page for a new process; `label` names it in messages to users. Its `fd` goes into Registered."""
        page = ProcessPage.create()
        self._pages[worker_id] = (page, label)
        return page

    def remove_process(self, worker_id: bytes) -> None:
        """The process is dead and its socket was read to the end: its pins are gone, its segment is ours."""
        found = self._pages.pop(worker_id, None)
        if found is not None:
            found[0].close()
        taken = [
            row.generation
            for row in self._table.blocks_of(worker_id)
            if row.state in (RESIDENT, WRITING, MARKED)
            and self._is_taken(row.segment, row.offset, row.generation, row.oid, row.size)
        ]
        self._feed(ev.WriterDied(worker_id, taken))
        self.room.process_died(worker_id)

    # ---------------------------------------------------------------- messages

    def on_open_segment(self, worker_id: bytes, message: OpenSegment) -> None:
        """A process wants budget; it is answered by SegmentBudget."""
        self._feed(ev.BudgetAsked(worker_id, message))

    def on_sealed(self, worker_id: bytes, message: Sealed) -> None:
        """A process has sealed objects."""
        self._feed(ev.ObjectsSealed(worker_id, message.items))

    def on_budget_returned(self, worker_id: bytes, message: BudgetReturned) -> None:
        """A process answers TrimBudget."""
        self._feed(ev.BudgetGivenBack(worker_id, message))

    def on_free_objects(self, worker_id: bytes, message: FreeObjects) -> None:
        """An owner says that nobody refers to these objects."""
        del worker_id
        if message.giver:
            self.free_of(message.giver, message.oids)
        else:
            self.free(message.oids)

    def free_of(self, giver: bytes, oids: list[bytes]) -> None:
        """Nobody will ever refer to those of the objects that a dead worker has sealed. What a retry has sealed since stays."""
        rows = [self._table.row_of(oid) for oid in oids]
        of_giver = [row.oid for row in rows if row is not None and row.writer == giver]
        if of_giver:
            self.free(of_giver, of_dead=True)

    def free(self, oids: list[bytes], of_dead: bool = False) -> None:
        """Nobody refers to these objects any more: memory and files go when nobody reads them. `of_dead`: what a retry seals from now on stays."""
        items: list[tuple[bytes, bool]] = []
        for oid in oids:
            row = self._table.row_of(oid)
            taken = (
                row is not None
                and row.state in (RESIDENT, WRITING, MARKED)
                and self._table.is_written_by_live_writer(row.segment)
                and self._is_taken(row.segment, row.offset, row.generation, oid, row.size)
            )
            items.append((oid, taken))
        self._feed(ev.ObjectsFreed(items, of_dead))
        if self.receiver is not None:
            self.receiver.freed(oids)

    def _is_taken(self, number: int, offset: int, generation: int, oid: bytes, size: int) -> bool:
        """Whether a block that was sealed once has been reused by its writer."""
        segment = self._segments[number]
        return not segment.is_sealed(offset, generation, oid, size) or segment.get_freed(offset) == TAKEN

    # ---------------------------------------------------------------- questions

    def used(self, oid: bytes) -> None:
        """Somebody was told the object's place and is about to read it."""
        self._feed(ev.ObjectUsed(oid))

    async def ensure_resident(self, oid: bytes) -> Stored:
        """The object's place in memory now, after reading it from disk if need be.

        Raises ObjectLostError when it is gone, ObjectStoreFullError or OutOfDiskError when there is no room for it; in bounded time.
        """
        future: asyncio.Future[Stored] = self._loop.create_future()
        self._waiters.setdefault(oid, []).append(future)
        self._feed(ev.ResidencyAsked(oid))
        return await future

    def place_of(self, oid: bytes) -> Stored | None:
        """Where the object lies, None when it is not in memory or not known."""
        row = self._table.row_of(oid)
        return row.stored if row is not None and row.state in (RESIDENT, WRITING) else None

    def owned_by(self, worker_id: bytes) -> list[bytes]:
        """The stored objects of an owner: when it dies, those that never escaped are freed by `free`."""
        return [row.oid for row in self._table.rows() if row.owner == worker_id and row.state != DYING]

    def written_by(self, worker_id: bytes) -> list[ObjectRow]:
        """What a process has stored, for itself or others, to be read only."""
        return [row for row in self._table.rows() if row.writer == worker_id and row.state != DYING]

    # ---------------------------------------------------------------- other nodes

    def row_of(self, oid: bytes) -> ObjectRow | None:
        """The row of an object, to be read only."""
        return self._table.row_of(oid)

    def mapping_of(self, segment: int) -> Mapping:
        """The memory of a segment: whoever keeps it keeps it mapped."""
        return self._segments[segment].mapping

    def pin(self, stored: Stored) -> None:
        """Keep an object, resident now, in its place until `unpin`."""
        place = (stored.segment, stored.offset)
        self._sending[place] = self._sending.get(place, 0) + 1

    def is_pinned(self, segment: int, offset: int) -> bool:
        """Whether `pin` keeps what is at a place."""
        return (segment, offset) in self._sending

    def unpin(self, stored: Stored) -> None:
        """The counterpart of `pin`."""
        place = (stored.segment, stored.offset)
        left = self._sending.pop(place) - 1
        if left:
            self._sending[place] = left

    def receive(self, oid: bytes, size: int, origin: bytes) -> None:
        """Make room for a copy of an object of node `origin`; `receiver` is told. Bounded in time."""
        self._feed(ev.CopyAsked(oid, size, origin))

    def copy_whole(self, place: ev.ReceiveCopy, version: int) -> Stored:
        """All bytes of a copy are in their place."""
        segment = self._segments[place.segment]
        segment.write_header(place.offset, place.generation, place.oid, place.size, SEALED)
        self._feed(ev.CopyArrived(place.generation, version))
        return Stored(place.oid, place.segment, place.offset, place.size, place.generation)

    def give_up_copy(self, place: ev.ReceiveCopy) -> None:
        """The copy will not become whole; nobody writes to its place any more."""
        self._feed(ev.CopyGivenUp(place.generation))

    def keep_copy(self, oid: bytes, owner: bytes) -> Stored | None:
        """Make a whole copy an original of this node, owned by `owner`; its place, or None when it is not in memory (any more)."""
        self._feed(ev.CopyKept(oid, owner))
        row = self._table.row_of(oid)
        return self.place_of(oid) if row is not None and not row.copy_of else None

    def free_copies(self, oids: list[bytes] | None, origin: bytes) -> None:
        """The originals of these copies are gone; with None all those of a node, which is dead."""
        self._feed(ev.CopiesFreed(oids, origin))

    def rows(self, limit: int) -> list[dict[str, Any]]:
        """The first `limit` objects that lie here: oid, size, state, owner, the node of which it is a copy, version, and who reads it now."""
        shown = ("oid", "size", "state", "owner", "copy_of", "version")
        pins = self._scan()
        return [
            {**{name: getattr(row, name) for name in shown}, "readers": pins.get((row.segment, row.offset), [])}
            for row in self._table.rows()[:limit]
        ]

    def kept_for_others(self, processes: Container[bytes]) -> list[ObjectRow]:
        """The objects that lie here and that others than `processes` own, without copies of what lies elsewhere; to be read only."""
        return [
            row for row in self._table.rows() if not row.copy_of and row.owner not in processes and row.state != DYING
        ]

    @property
    def resident_bytes(self) -> int:
        """What lies in memory; told in every heartbeat, so it must not walk the objects."""
        return self._table.resident_bytes

    def statistics(self) -> StoreTableStatistics:
        """What the store of the node uses."""
        return self._table.statistics()

    def close(self) -> None:
        """Stop. Files are removed; memory goes with the last process that maps it."""
        self._closed = True
        self._disk.shutdown(wait=True, cancel_futures=True)
        for waiters in self._waiters.values():
            for future in waiters:
                if not future.done():
                    future.set_exception(ObjectLostError("the node daemon stops, and its object store with it"))
        self._waiters.clear()
        for segment in self._segments.values():
            segment.close()
        for page, _ in self._pages.values():
            page.close()
        shutil.rmtree(self._spill_dir, ignore_errors=True)

    # ---------------------------------------------------------------- events and effects

    def _feed(self, event: ev.Event) -> None:
        if self._closed:
            return
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._events:
                effects = self._table.handle(self._events.popleft(), time.monotonic())
                for effect in effects:
                    self._PERFORM[type(effect)](self, effect)
        finally:
            self._handling = False

    def _receive_copy(self, effect: ev.ReceiveCopy) -> None:
        # Until it is sealed, nobody must take what the place held before for something.
        self._segments[effect.segment].write_header(
            effect.offset, effect.generation, effect.oid, effect.size, BLOCK_WRITING
        )
        assert self.receiver is not None, "only a receiver asks for room"
        self.receiver.room_made(effect)

    def _refuse_copy(self, effect: ev.RefuseCopy) -> None:
        assert self.receiver is not None, "only a receiver asks for room"
        what = f"no room for a copy of object {effect.oid.hex()} in the object store of this node: {effect.reason}"
        self.receiver.room_refused(effect.oid, full_error(what, effect.reason) if effect.reason else None)

    def _report_dropped(self, effect: ev.ReportDropped) -> None:
        if self.receiver is not None:
            self.receiver.copy_dropped(effect.oid, effect.origin)

    def _send_to_writer(self, effect: ev.SendToWriter) -> None:
        self._send(effect.process, effect.message)

    def _create_segment(self, effect: ev.CreateSegment) -> None:
        self._serial += 1
        try:
            segment = Segment.create(self._serial, effect.capacity_bytes)
        except OSError as error:
            self._events.append(ev.SegmentCreated(effect.process, 0, 0, 0, str(error)))
            return
        self._segments[segment.number] = segment
        self._events.append(ev.SegmentCreated(effect.process, segment.number, BLOCKS_START, segment.mapping.size_bytes))

    def _close_segment(self, effect: ev.CloseSegment) -> None:
        self._segments.pop(effect.segment).close()

    def _punch_range(self, effect: ev.PunchRange) -> None:
        self._segments[effect.segment].punch(effect.offset, effect.length_bytes)

    def _list_evicting(self, effect: ev.ListEvicting) -> None:
        listed = self._segments[effect.segment].list_evicting(effect.offset)
        assert listed, "more blocks are being evicted than the control page can name"

    def _unlist_evicting(self, effect: ev.UnlistEvicting) -> None:
        self._segments[effect.segment].unlist_evicting(effect.offset)

    def _mark_evicted(self, effect: ev.MarkEvicted) -> None:
        segment = self._segments[effect.segment]
        segment.set_state(effect.offset, EVICTED)
        segment.unlist_evicting(effect.offset)

    def _report_moved(self, effect: ev.ReportMoved) -> None:
        self._on_moved(effect.oid, effect.stored)

    def _report_resident(self, effect: ev.ReportResident) -> None:
        for future in self._waiters.pop(effect.oid, ()):
            if not future.done():
                future.set_result(effect.stored)

    def _report_absent(self, effect: ev.ReportAbsent) -> None:
        waiters = self._waiters.pop(effect.oid, ())
        if effect.lost:
            self._on_lost(effect.oid, effect.reason, effect.owner)
        for future in waiters:
            if not future.done():
                future.set_exception(_absence(effect))

    def _wake(self, effect: ev.Wake) -> None:
        self._loop.call_later(effect.delay_s, self._feed, ev.Woken())

    # ---------------------------------------------------------------- pins

    def _scan(self) -> dict[tuple[int, int], list[str]]:
        start = time.monotonic()
        found: dict[tuple[int, int], list[str]] = {}
        for page, label in self._pages.values():
            for place in page.pins():
                found.setdefault(place, []).append(label)
        for place in self._sending:
            found.setdefault(place, []).append("transfers to other nodes")
        self._scan_cost_s = time.monotonic() - start
        return found

    def _scan_pins(self, effect: ev.ScanPins) -> None:
        if effect.delay_s:
            self._loop.call_later(effect.delay_s, self._scanned)
        else:
            self._events.append(ev.PinsScanned(self._scan()))

    def _scanned(self) -> None:
        if not self._closed:
            self._feed(ev.PinsScanned(self._scan()))

    def _await_grace(self, effect: ev.AwaitGrace) -> None:
        now = time.monotonic()
        join_until, blocks = self._graces.get(effect.delay_s, (0.0, []))
        if now < join_until:
            blocks.append(effect)
            return
        slack_s = max(GRACE_SLACK_S, self._scan_cost_s / SCAN_SHARE_MAX)
        batch = [effect]
        self._graces[effect.delay_s] = (now + slack_s, batch)
        self._loop.call_later(effect.delay_s + slack_s, self._grace_over, effect.delay_s, batch)

    def _grace_over(self, delay_s: float, batch: list[ev.AwaitGrace]) -> None:
        if self._closed:
            return
        if self._graces.get(delay_s, (0.0, None))[1] is batch:
            del self._graces[delay_s]
        pins = self._scan()
        checked: list[ev.BlockChecked] = []
        for block in batch:
            segment = self._segments.get(block.segment)
            if segment is None:  # its segment is closed: the table has forgotten the block
                continue
            taken = self._is_taken(block.segment, block.offset, block.generation, block.oid, block.size)
            undecided = segment.get_freed(block.offset) == ASKED
            readers = pins.get((block.segment, block.offset), [])
            checked.append(ev.BlockChecked(block.generation, readers, taken, undecided and not taken))
        self._feed(ev.GraceOver(checked))

    # ---------------------------------------------------------------- disk

    def _path(self, oid: bytes, generation: int) -> str:
        return os.path.join(self._spill_dir, f"{oid.hex()}-{generation:x}")

    def _on_disk_thread(self, work: Callable[[], ev.Event]) -> None:
        def done(future: asyncio.Future[ev.Event]) -> None:
            if not future.cancelled() and not self._closed:
                self._feed(future.result())

        self._loop.run_in_executor(self._disk, work).add_done_callback(done)

    def _write_spill(self, effect: ev.WriteSpill) -> None:
        path = self._path(effect.oid, effect.generation)
        segment = self._segments[effect.segment]
        start = effect.offset + BLOCK_HEADER_BYTES

        def work() -> ev.Event:
            try:
                _write_file(path, effect.oid, segment.view[start : start + effect.size])
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.unlink(path)
                return ev.SpillFailed(
                    effect.generation, f"cannot write a spilled object to {path}: {error.strerror or error}"
                )
            return ev.SpillWritten(effect.oid, effect.generation)

        self._on_disk_thread(work)

    def _restore_object(self, effect: ev.RestoreObject) -> None:
        path = self._path(effect.oid, effect.file_generation)
        segment = self._segments[effect.segment]
        start = effect.offset + BLOCK_HEADER_BYTES

        def work() -> ev.Event:
            try:
                if effect.fresh_bytes:
                    segment.populate(effect.fresh_start, effect.fresh_bytes)
                segment.write_header(effect.offset, effect.generation, effect.oid, effect.size, BLOCK_WRITING)
                _read_file(path, effect.oid, segment.view[start : start + effect.size])
                segment.set_state(effect.offset, SEALED)
            except (FileNotFoundError, ValueError) as error:
                return ev.RestoreFailed(effect.generation, True, f"its spilled copy cannot be used: {error}")
            except (OSError, MemoryError) as error:
                return ev.RestoreFailed(effect.generation, False, f"its spilled copy cannot be read now: {error}")
            return ev.ObjectRestored(effect.generation)

        self._on_disk_thread(work)

    def _delete_spill(self, effect: ev.DeleteSpill) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._path(effect.oid, effect.generation))

    _PERFORM: dict[type[Any], Callable[[StoreShell, Any], None]] = {
        ev.SendToWriter: _send_to_writer,
        ev.CreateSegment: _create_segment,
        ev.CloseSegment: _close_segment,
        ev.PunchRange: _punch_range,
        ev.ListEvicting: _list_evicting,
        ev.UnlistEvicting: _unlist_evicting,
        ev.MarkEvicted: _mark_evicted,
        ev.AwaitGrace: _await_grace,
        ev.ScanPins: _scan_pins,
        ev.WriteSpill: _write_spill,
        ev.DeleteSpill: _delete_spill,
        ev.RestoreObject: _restore_object,
        ev.ReceiveCopy: _receive_copy,
        ev.RefuseCopy: _refuse_copy,
        ev.ReportDropped: _report_dropped,
        ev.ReportMoved: _report_moved,
        ev.ReportResident: _report_resident,
        ev.ReportAbsent: _report_absent,
        ev.Wake: _wake,
    }


def _absence(effect: ev.ReportAbsent) -> Exception:
    if effect.lost:
        return ObjectLostError(f"the object is lost: {effect.reason}", object_id=effect.oid.hex())
    text = f"the object {effect.oid.hex()} cannot be brought back into memory: {effect.reason}"
    return full_error(text, effect.reason)


def full_error(text: str, reason: str) -> Exception:
    """The error for a store without room, by the reason that its table gave."""
    return OutOfDiskError(text) if reason.startswith(DISK_REASON) else ObjectStoreFullError(text)


def _write_file(path: str, oid: bytes, payload: memoryview) -> None:
    """Write one spilled object. Raises OSError, also when the disk would be left too full."""
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    usage = shutil.disk_usage(folder)
    if usage.free - len(payload) < DISK_RESERVE_SHARE * usage.total:
        raise OSError(
            f"the disk has {usage.free / 1e6:.0f} MB free, of which {DISK_RESERVE_SHARE * usage.total / 1e6:.0f} MB are not touched"
        )
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        checksum = 0
        os.pwrite(fd, bytes(_FILE_HEADER.size), 0)
        at = 0
        while at < len(payload):
            chunk = payload[at : at + DISK_CHUNK_BYTES]
            written = os.pwrite(fd, chunk, _FILE_HEADER.size + at)
            checksum = zlib.crc32(chunk[:written], checksum)
            at += written
        os.pwrite(fd, _FILE_HEADER.pack(_FILE_MAGIC, _FILE_VERSION, oid, len(payload), checksum), 0)
    finally:
        os.close(fd)


def _read_file(path: str, oid: bytes, target: memoryview) -> None:
    """Read one spilled object into its place. Raises ValueError when the file is not that object, whole and undamaged."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        header = os.pread(fd, _FILE_HEADER.size, 0)
        if len(header) != _FILE_HEADER.size:
            raise ValueError(f"{path} is cut short")
        magic, version, file_oid, size, expected = _FILE_HEADER.unpack(header)
        if (magic, version, file_oid, size) != (_FILE_MAGIC, _FILE_VERSION, oid, len(target)):
            raise ValueError(f"{path} is not the spilled object {oid.hex()}")
        checksum = 0
        at = 0
        while at < size:
            chunk = target[at : at + DISK_CHUNK_BYTES]
            count = os.preadv(fd, [chunk], _FILE_HEADER.size + at)
            if count == 0:
                raise ValueError(f"{path} is cut short")
            checksum = zlib.crc32(chunk[:count], checksum)
            at += count
        if checksum != expected:
            raise ValueError(f"{path} is damaged: its checksum differs")
    finally:
        os.close(fd)
