"""What a process knows of objects: entries, counts, refs.

Purpose: local reference counting that costs a submitter almost nothing, and that tells the node daemon only of objects that cross processes.

Design: an `ObjectRef` is the user's handle; behind it stands an `ObjectEntry`, which the runtime shares between tables. An entry counts
the handles of this process and its uses by the runtime (a task that depends on it, a value that contains it). A finalizer never locks and never
sends: it appends the entry to a deque that is drained at the next submission, get or tick.

    never left this process      `shared` is None; not in `table`; nobody else is told anything
    escaped (owned)              in `table`; the daemon got Escape, gets Publish and, at the end, Release
    borrowed (not owned)         in `table`; the daemon got Hold, is asked by Resolve, gets Release

An escaped object has a *home*, the node where it escaped; a pickled ref says which. Holds on objects of another home are confirmed by the
daemon (`HoldsConfirmed`), and what this process answers to others waits for that (`Connection.withholds`). What a container brings in is of unknown
home until it is deserialized; as long as the container is held that is enough.

One live ObjectRef per object and process (`shared.handle`), so refs hash and compare by identity.

What it does not do: get and wait (`core`), or the counts of other processes (`node.object_directory`).
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from shoal import serialization
from shoal.protocol.messages import (
    Containing,
    Escape,
    Failed,
    FreeObjects,
    Hold,
    HoldsConfirmed,
    NeedLineage,
    Publish,
    Release,
    Resolve,
    Stored,
    Value,
)
from shoal.runtime import unread_errors

if TYPE_CHECKING:
    from shoal.runtime.closures import Pattern
    from shoal.runtime.reactor import Connection, Reactor, Waiter

GATHERED_MAX = 32  #: objects told of in one message; the last of them that is needed keeps the arguments of all

#: entries whose handle was dropped, not yet counted down
dropped: deque[ObjectEntry] = deque()
#: handles of objects inside known containers: made when a container is first deserialized, kept while this process refers to it, so that
#: deserializing it again costs a look-up for each ref (0.2 us) instead of a handle, a count and a finalizer (2 us)
_kept: dict[bytes, ObjectRef] = {}


def _ignore() -> None:
    pass


#: wakes the background of the current runtime; set by `ObjectTable`
_attend: Callable[[], None] = _ignore


#: the id of this process's node; empty before it is registered, and in local mode
_here = b""


def become_inert() -> None:
    """In a forked child: finalizers must not touch the parent's runtime."""
    global _attend
    _attend = _ignore
    _kept.clear()
    dropped.clear()


def attend_to_dropped() -> None:
    """Something was given up that must not wait for the next submission or get; safe in finalizers."""
    _attend()


class SharedState:
    """The part of an entry that only objects known to other processes, or containing refs, need."""

    __slots__ = (
        "being_remade",
        "contained",
        "escaped",
        "handle",
        "holds",
        "home",
        "nested",
        "owned",
        "place",
        "refusal",
        "resolving",
        "shown",
    )

    def __init__(self, owned: bool) -> None:
        self.owned = owned
        self.escaped = False
        self.home = b""  #: of a borrowed object, once it is known
        #: holds that the daemon counts for this process; a borrowed object in a container that it holds needs none of its own
        self.holds = 0
        self.contained = 0  #: how many `nested` lists it is in
        self.handle: weakref.ref[ObjectRef] | None = None
        self.nested: list[ObjectEntry] | None = None
        self.resolving = False
        self.shown = False  #: its place in the store was told to another process, which may have it pinned
        #: where it lay last, while nobody here knows where it is now
        self.place: Stored | None = None
        self.being_remade = False  #: it was lost, says the daemon
        self.refusal: Failed | None = None  #: why it could not be read when it was asked for last, though it is there


class ObjectEntry:
    """One object as this process knows it."""

    __slots__ = ("count", "oid", "shared", "task", "value", "waiters")

    def __init__(self, oid: bytes, task: Any = None) -> None:
        self.oid = oid
        self.value: Value | None = None
        self.count = 1
        #: the task that makes it, while it is pending
        self.task = task
        #: waiters (or callables) to tell when the value is known
        self.waiters: list[Waiter | Callable[[ObjectEntry], None]] | None = None
        self.shared: SharedState | None = None


class ObjectRef:
    """A reference to a value that is, or will be, somewhere in the cluster.

    Hashable and equal by identity of the object. Passed at top level to a remote call it is replaced by its value; anywhere else it travels as
    a ref and keeps the object alive. `await ref` gives the value in asyncio code.
    """

    __slots__ = ("__weakref__", "_entry")

    def __init__(self, entry: ObjectEntry) -> None:
        self._entry = entry

    def __del__(self) -> None:
        entry = self._entry
        try:
            dropped.append(entry)
            if entry.shared is not None or type(entry.value) is Stored:
                _attend()
        except (AttributeError, TypeError):
            if dropped is not None and _attend is not None:
                raise
            # the interpreter ends and has emptied this module

    def binary(self) -> bytes:
        """The ObjectID's 20 bytes."""
        return self._entry.oid

    def hex(self) -> str:
        """The ObjectID in hexadecimal."""
        return self._entry.oid.hex()

    def is_nil(self) -> bool:
        """Always False: a ref refers to something."""
        return False

    @classmethod
    def size(cls) -> int:
        """Length of an ObjectID in bytes."""
        return 20

    def task_id(self) -> Any:
        """The TaskID of the task that makes (or put) this object."""
        from shoal.protocol.ids import TaskID

        return TaskID(self._entry.oid[:16])

    def job_id(self) -> Any:
        """The JobID of the program that this process works for."""
        from shoal.protocol.ids import JobID
        from shoal.runtime.core import current

        return JobID(current().job_id)

    def future(self) -> Any:
        """A concurrent.futures.Future of the value."""
        from shoal.runtime.waiting import session_of_refs

        return session_of_refs().future(self)

    as_future = future

    def __await__(self) -> Any:
        from shoal.runtime.waiting import session_of_refs

        return session_of_refs().await_ref(self).__await__()

    def _on_completed(self, callback: Callable[[Any], None]) -> None:
        self.future().add_done_callback(lambda future: callback(future.exception() or future.result()))

    def __repr__(self) -> str:
        return f"ObjectRef({self.hex()})"

    def __reduce__(self) -> tuple[Any, ...]:
        serialization.collect(self)
        return restore_ref, (self._entry.oid, home_of(self))

    def __class_getitem__(cls, item: Any) -> Any:
        return cls


def home_of(ref: ObjectRef) -> bytes:
    """The node that counts who holds the object, if it escapes or has done so."""
    return home_of_entry(ref._entry)


def home_of_entry(entry: ObjectEntry) -> bytes:
    """As `home_of`."""
    shared = entry.shared
    return shared.home or _here if shared is not None else _here


def restore_ref(oid: bytes, home: bytes) -> ObjectRef:
    """Unpickle a ref: the counterpart of `ObjectRef.__reduce__`."""
    ref = _kept.get(oid)
    if ref is not None:
        return ref
    from shoal.runtime.core import current

    return current().objects.borrow(oid, home)


class ObjectTable:
    """All objects of this process that other processes know, and what is to be told about them. Guarded by the reactor's lock."""

    def __init__(
        self,
        reactor: Reactor,
        free_stored: Callable[[ObjectEntry], None],
        on_unread: Callable[[str, Failed], None],
        forget_lineage: Callable[[bytes], None] = lambda oid: None,
    ) -> None:
        global _attend, _here
        self.reactor = reactor
        self.lock = reactor.lock
        self.table: dict[bytes, ObjectEntry] = {}
        self._free_stored = free_stored
        self._on_unread = on_unread
        self._forget_lineage = forget_lineage
        self._holds: list[bytes] = []
        self._releases: list[bytes] = []
        #: inside of calls that are being sent: (actor's worker, its node; empty for this one) -> refs
        self._handed: dict[tuple[bytes, bytes], list[bytes]] = {}
        self._frees: list[bytes] = []
        #: by the node that is the objects' home, or has them in its store
        self._foreign_holds: dict[bytes, list[bytes]] = {}
        self._foreign_frees: dict[bytes, list[bytes]] = {}
        #: borrowed objects that something was made from here; written by `lineage`
        self.needed: dict[bytes, int] = {}
        #: those of them that were freed here, as the daemon knows; as it is to be told; and what it is to be told to be needed no more
        self._needs: dict[bytes, None] = {}
        self._fresh_needs: dict[bytes, None] = {}
        self._past_needs: dict[bytes, None] = {}
        self.node_id = _here = b""
        #: how an entry is made: (lineage, what it needs, ids that it needs besides, function id); None: it cannot be lost, or not be made again
        self.describe: Callable[[ObjectEntry], tuple[bytes, list[ObjectEntry], list[bytes], bytes] | None] = (
            lambda entry: None
        )
        #: what the lineage of an entry's task shares with that of others, if it is a plain one
        self.pattern_of: Callable[[ObjectEntry], Pattern | None] = lambda entry: None
        self._gathered: Escape | None = None  #: the last that was made of a pattern
        reactor.write_notes = self._write_notes
        reactor.handlers[HoldsConfirmed] = lambda connection, message: reactor.on_holds_confirmed(message.count)
        _kept.clear()
        dropped.clear()
        _attend = reactor.attend

    @property
    def daemon(self) -> Connection | None:
        return self.reactor.causal

    def live_on(self, node_id: bytes) -> None:
        """This process is registered at a node."""
        global _here
        self.node_id = _here = node_id

    # ------------------------------------------------------------ counting

    def drain_dropped(self) -> None:
        """Count down what finalizers dropped. Caller holds the lock."""
        while dropped:
            entry = dropped.popleft()
            entry.count -= 1
            if entry.count <= 0:
                self.free(entry)

    def close(self) -> None:
        """The session ends, and with it all that is counted in it: a ref dropped in the next one says nothing. Caller holds the lock."""
        for entry in self.table.values():
            assert entry.shared is not None, "entries in the table are shared"
            entry.shared.holds = 0
        self.table.clear()

    def unuse(self, entries: Iterable[ObjectEntry]) -> None:
        """The runtime's use of these entries ends. Caller holds the lock."""
        for entry in entries:
            entry.count -= 1
            if entry.count <= 0:
                self.free(entry)

    def free(self, entry: ObjectEntry) -> None:
        """Nobody here refers to the object any more. Caller holds the lock."""
        stack = [entry]
        while stack:
            entry = stack.pop()
            shared = entry.shared
            value: Any = entry.value
            if shared is not None:
                if value is None and shared.place is not None:
                    value, shared.place, shared.shown = shared.place, None, True
                if self.table.get(entry.oid) is entry:
                    del self.table[entry.oid]
                if entry.oid in self.needed and not shared.owned:
                    self._note_need(entry.oid)
                if shared.holds:
                    self._releases.extend([entry.oid] * shared.holds)
                    shared.holds = 0
                    self.reactor.has_notes = True
                if shared.nested is not None:
                    nested, shared.nested = shared.nested, None
                    self._uncontain(nested, stack)
            if type(value) is Stored:
                if shared is None or (shared.owned and not shared.escaped):
                    if value.node and value.node != self.node_id:
                        self._foreign_frees.setdefault(value.node, []).append(entry.oid)
                    else:
                        if shared is None or not shared.shown:
                            self._free_stored(entry)
                        self._frees.append(entry.oid)
                    self.reactor.has_notes = True
                if shared is None or shared.owned:
                    self._forget_lineage(entry.oid)
                entry.value = None
            elif type(value) is Failed:
                name = unread_errors.take(entry.oid)
                if name is not None and (shared is None or not shared.escaped):
                    self._on_unread(name, value)

    def contain(self, entry: ObjectEntry, nested: list[ObjectEntry]) -> None:
        """`entry` has these inside, each counted once for it already. Caller holds the lock (or nobody else knows the entry)."""
        shared = entry.shared
        if shared is None:
            shared = entry.shared = SharedState(owned=True)
        shared.nested = nested
        for inner in nested:
            inner.shared.contained += 1  # type: ignore[union-attr]

    def contain_borrowed(self, entry: ObjectEntry, oids: list[bytes]) -> None:
        """A borrowed container's value is known: what is inside is held by the container, as long as we hold that. Caller holds the lock."""
        nested = []
        for oid in oids:
            inner = self.table.get(oid)
            if inner is None:
                inner = self._new_borrowed(oid, 0)
            else:
                inner.count += 1
            nested.append(inner)
        self.contain(entry, nested)

    def _uncontain(self, nested: list[ObjectEntry], stack: list[ObjectEntry]) -> None:
        """A container goes: what outlives it is held on its own, the rest is added to `stack`."""
        for inner in nested:
            shared = inner.shared
            assert shared is not None, "contained objects are shared"
            shared.contained -= 1
            if not shared.contained:
                _kept.pop(inner.oid, None)
        while dropped:  # handles that only `_kept` had
            entry = dropped.popleft()
            entry.count -= 1
            if entry.count <= 0:
                stack.append(entry)
        for inner in nested:
            inner.count -= 1
            if inner.count <= 0:
                stack.append(inner)
            else:
                shared = inner.shared
                assert shared is not None, "contained objects are shared"
                # What was never deserialized is referred to by another container only, which is held.
                if not shared.holds and not shared.owned and (shared.home or not shared.contained):
                    shared.holds = 1
                    self._note_hold(inner.oid, shared.home)

    def _note_need(self, oid: bytes) -> None:
        """The last ref here to what something was made from goes: that may have to be made again."""
        if self._past_needs.pop(oid, self) is None:
            self._needs[oid] = None
        elif oid not in self._needs:
            self._fresh_needs[oid] = None
            self.reactor.has_notes = True

    def unneed(self, oid: bytes) -> None:
        """Nothing that is left here was made from it. Caller holds the lock."""
        if self._fresh_needs.pop(oid, self) is not None and self._needs.pop(oid, self) is None:
            self._past_needs[oid] = None
            self.reactor.has_notes = True

    def _note_hold(self, oid: bytes, home: bytes) -> None:
        """A hold is to be written to the daemon."""
        if not home or home == self.node_id:
            self._holds.append(oid)
        else:
            self._foreign_holds.setdefault(home, []).append(oid)
        self.reactor.has_notes = True

    def _write_notes(self) -> None:
        """Turn gathered holds, releases and frees into messages; holds first. Called by the flush of the daemon's connection."""
        reactor = self.reactor
        reactor.has_notes = False
        daemon = reactor.causal
        assert daemon is not None, "notes are written by the daemon's connection"
        if self._holds:
            holds, self._holds = self._holds, []
            daemon.send(Hold(holds))
        if self._foreign_holds:
            foreign, self._foreign_holds = self._foreign_holds, {}
            for home, holds in foreign.items():
                self._send_foreign_hold(daemon, holds, b"", home)
        if self._handed:
            handed, self._handed = self._handed, {}
            for (worker_id, node), oids in handed.items():
                self._send_handed(daemon, oids, worker_id, node)
        if self._fresh_needs:
            fresh, self._fresh_needs = self._fresh_needs, {}
            self._needs.update(fresh)
            daemon.send(NeedLineage(list(fresh)))
        if self._past_needs:
            past, self._past_needs = self._past_needs, {}
            daemon.send(NeedLineage(list(past), True))
        if self._releases:
            releases, self._releases = self._releases, []
            daemon.send(Release(releases))
        if self._frees:
            frees, self._frees = self._frees, []
            daemon.send(FreeObjects(frees))
        if self._foreign_frees:
            gone, self._foreign_frees = self._foreign_frees, {}
            for node, frees in gone.items():
                daemon.send(FreeObjects(frees, node))

    def _send_foreign_hold(self, daemon: Connection, oids: list[bytes], holder: bytes, home: bytes) -> None:
        daemon.send(Hold(oids, holder, home))
        self.reactor.await_confirmation()

    def _send_handed(self, daemon: Connection, oids: list[bytes], worker_id: bytes, node: bytes) -> None:
        by_home: dict[bytes, list[bytes]] = {}
        for oid in oids:
            entry = self.table.get(oid)
            home = entry.shared.home if entry is not None and entry.shared is not None else b""
            if not home or home == self.node_id:
                home = self.node_id if node else b""
            by_home.setdefault(home, []).append(oid)
        for home, inside in by_home.items():
            daemon.send(Hold(inside, worker_id, home, True, node))
            if home:
                self.reactor.await_confirmation()

    # ------------------------------------------------------------ crossing processes

    def escape(self, refs: list[ObjectRef]) -> list[ObjectEntry]:
        """Refs are about to leave this process inside a value: tell the daemon of those it does not know, and count a use of each.

        Returns:
            Their entries; the caller ends the use with `unuse` when the receiver holds them or the container is freed.
        """
        entries = []
        fresh = []
        with self.lock:
            for ref in refs:
                entry = ref._entry
                entry.count += 1
                entries.append(entry)
                shared = entry.shared
                if shared is None:
                    shared = entry.shared = SharedState(owned=True)
                elif shared.handle is None or shared.handle() is None:
                    shared.handle = weakref.ref(ref)
                if shared.owned and not shared.escaped:
                    shared.escaped = True
                    shared.holds = 1
                    shared.handle = weakref.ref(ref)
                    self.table[entry.oid] = entry
                    fresh.append(entry)
                elif shared.home and not shared.holds and shared.home != self.node_id:
                    # A container of its holds it, which may be of yet another home and end first: the daemon must know where it is at home.
                    shared.holds = 1
                    self._note_hold(entry.oid, shared.home)
            if fresh:
                self._tell_escaped(fresh)
        return entries

    def _tell_escaped(self, fresh: list[ObjectEntry]) -> None:
        """Tell the daemon of objects that others will know, with what makes those that could be lost, and with what that needs, and so on."""
        daemon = self.daemon
        if daemon is None:
            return
        plain: list[bytes] = []
        told = 0
        while told < len(fresh):
            entry = fresh[told]
            told += 1
            pattern = self.pattern_of(entry) if entry.count > 0 else None
            if pattern is not None and not pattern.needs:
                self._gather(daemon, entry, pattern)
                continue
            made = self.describe(entry)
            if made is None:
                if entry.count > 0:
                    plain.append(entry.oid)
                continue
            lineage, needs, more, function_id = made
            for need in needs:
                shared = need.shared
                if shared is None:
                    shared = need.shared = SharedState(owned=True)
                if shared.owned and not shared.escaped:
                    shared.escaped = True
                    if need.count > 0:
                        shared.holds = 1
                        self.table[need.oid] = need
                    fresh.append(need)
            if needs:
                more = [*[need.oid for need in needs], *more]
            daemon.send(Escape([entry.oid], lineage, more, function_id, entry.count <= 0))
        if plain:
            daemon.send(Escape(plain))
        for entry in fresh:
            if entry.value is not None and entry.count > 0:
                daemon.send(Publish(entry.oid, sendable(entry)))

    def _gather(self, daemon: Connection, entry: ObjectEntry, pattern: Pattern) -> None:
        """Tell of a plain task's result, in one message with those before it of the same kind."""
        last = self._gathered
        if (
            last is not None
            and last is daemon.growing
            and last.lineage is pattern.text
            and len(last.oids) < GATHERED_MAX
        ):
            last.oids.append(entry.oid)
            last.arguments.append(entry.task.args)
        else:
            made = Escape([entry.oid], pattern.text, [], pattern.function_id, False, [entry.task.args], pattern.cuts)
            self._gathered = made
            daemon.grow(made)

    def unescape(self, entry: ObjectEntry) -> None:
        """A freed entry will escape once more. The daemon must have counted the end of its hold before: it takes what it counts for escaped, and
        counts it once. Caller holds the lock."""
        if entry.shared is not None and entry.shared.escaped:
            entry.shared.escaped = False
            if entry.oid in self._releases and self.daemon is not None:
                self._write_notes()

    def escape_held(self, entry: ObjectEntry) -> None:
        """The daemon knows of an object that had not left this process, and counts it as held by us: it was lost. Others will hear of it from
        there on without another word of ours, so now is the time to say how it is made. Caller holds the lock."""
        shared = entry.shared
        assert shared is not None, "made by whoever heard of it"
        if not shared.escaped:
            shared.escaped = True
            shared.holds += 1
            self.table[entry.oid] = entry
            self._tell_escaped([entry])

    def publish(self, entry: ObjectEntry) -> None:
        """The value of an escaped object became known. Caller holds the lock."""
        daemon = self.daemon
        if daemon is not None:
            daemon.send(Publish(entry.oid, sendable(entry)))

    def borrow(self, oid: bytes, home: bytes = b"") -> ObjectRef:
        """A ref to an object that another process may own, and that `home` counts."""
        with self.lock:
            entry = self.table.get(oid)
            if entry is not None:
                shared = entry.shared
                assert shared is not None, "entries in the table are shared"
                if not shared.home and not shared.owned:
                    shared.home = home
                elif home and home != shared.home and not shared.owned and type(entry.value) is Failed:
                    # It was lost with its home, perhaps, and made anew elsewhere: the daemon is told of that home, and asked again.
                    shared.home, entry.value, shared.resolving = home, None, False
                    shared.holds += 1
                    self._note_hold(oid, home)
                handle = shared.handle
                ref = handle() if handle is not None else None
                if ref is None:
                    entry.count += 1
                    ref = ObjectRef(entry)
                    shared.handle = weakref.ref(ref)
                if shared.contained:
                    _kept[oid] = ref
                elif not shared.holds and not shared.owned:  # known only as an argument, held by whoever sent that
                    shared.holds = 1
                    self._note_hold(oid, shared.home)
                return ref
            entry = self._new_borrowed(oid, 1, home)
            self._note_hold(oid, home)
            ref = ObjectRef(entry)
            entry.shared.handle = weakref.ref(ref)  # type: ignore[union-attr]
            return ref

    def adopt_held(self, oids: list[bytes]) -> list[ObjectEntry]:
        """Entries, counted once, for refs that the sender holds at the daemon in our name already. Caller holds the lock."""
        entries = []
        for oid in oids:
            entry = self.table.get(oid)
            if entry is None:
                entry = self._new_borrowed(oid, 1)
            else:
                entry.count += 1
                assert entry.shared is not None, "entries in the table are shared"
                entry.shared.holds += 1
            entries.append(entry)
        return entries

    def hand_over(self, oids: list[bytes], worker_id: bytes, node: bytes) -> None:
        """Refs leave in a call to an actor, which may read it when this process is dead: from now on the actor's worker holds them, too. `node` is
        where it lives if that is another. Caller holds the lock."""
        self._handed.setdefault((worker_id, node), []).extend(oids)
        self.reactor.has_notes = True

    def let_go_of(self, entries: list[ObjectEntry]) -> None:
        """Calls are answered. An actor that keeps a ref may be called with it a million times: one hold is enough. Caller holds the lock."""
        self.unuse(entries)
        for entry in entries:
            shared = entry.shared
            assert shared is not None, "entries in the table are shared"
            if shared.holds > 1:
                self._releases.extend([entry.oid] * (shared.holds - 1))
                shared.holds = 1
                self.reactor.has_notes = True

    def hold_again(self, entry: ObjectEntry) -> None:
        """A borrowed entry that was freed is used again. Caller holds the lock."""
        shared = entry.shared
        assert shared is not None and not shared.owned, "a borrowed object"
        self.table[entry.oid] = entry
        shared.resolving = False
        if not shared.holds:
            shared.holds = 1
            self._note_hold(entry.oid, shared.home)

    def let_go(self, value: Value) -> None:
        """A value that nobody here wants: end the holds that came with it. Caller holds the lock."""
        if (type(value) is Containing or type(value) is Stored) and value.nested:
            self.unuse(self.adopt_held(value.nested))

    def _new_borrowed(self, oid: bytes, holds: int, home: bytes = b"") -> ObjectEntry:
        entry = ObjectEntry(oid)
        shared = entry.shared = SharedState(owned=False)
        shared.holds = holds
        shared.home = home
        self.table[oid] = entry
        return entry

    def hold_for(self, entries: list[ObjectEntry], holder: bytes, abroad: bool = False) -> None:
        """Hold objects at the daemon in the name of the process that a reply goes to, before the reply is written. If that is on another node, the
        reply waits until its node knows the refs, and how to make them again. Caller holds the lock."""
        daemon = self.daemon
        if daemon is None:
            return
        by_home: dict[bytes, list[bytes]] = {}
        for entry in entries:
            home = entry.shared.home if entry.shared is not None else b""
            if not home or home == self.node_id:
                home = self.node_id if abroad else b""
            by_home.setdefault(home, []).append(entry.oid)
        for home, oids in by_home.items():
            if home:
                self._send_foreign_hold(daemon, oids, holder, home)
            else:
                daemon.send(Hold(oids, holder))

    def resolve(self, entries: list[ObjectEntry]) -> None:
        """Ask the daemon for the values of borrowed objects, once. Caller holds the lock."""
        asked: dict[bytes, list[bytes]] = {}
        for entry in entries:
            shared = entry.shared
            if shared is not None and not shared.owned and not shared.resolving:
                shared.resolving = True
                asked.setdefault(shared.home, []).append(entry.oid)
        daemon = self.daemon
        if asked and daemon is not None:
            for home, oids in asked.items():
                daemon.send(Resolve(oids, 0, home))

    def resolve_again(self, entry: ObjectEntry) -> None:
        """A place in the store was stale (spilled, moved): ask where the object is now. Caller holds the lock."""
        stored = entry.value
        assert type(stored) is Stored, "only stored values become stale"
        self.displace(entry)
        assert entry.shared is not None, "made by `displace`"
        entry.shared.resolving = True
        entry.shared.refusal = None
        daemon = self.daemon
        if daemon is not None:
            daemon.send(Resolve([entry.oid], stored.generation))

    def resolve_lost(self, entry: ObjectEntry, place: Stored) -> None:
        """A displaced entry could not be had from another node: ask its home where it is now. Caller holds the lock."""
        shared = entry.shared
        assert shared is not None, "displaced entries are shared"
        shared.resolving = True
        daemon = self.daemon
        if daemon is not None:
            daemon.send(Resolve([entry.oid], place.generation, shared.home, place.node))

    def displace(self, entry: ObjectEntry) -> None:
        """A stored value is not where it was: the entry has no value until its new place is known. Caller holds the lock."""
        shared = entry.shared
        if shared is None:
            shared = entry.shared = SharedState(owned=True)
        if type(entry.value) is Stored:
            shared.place = entry.value
        entry.value = None
        self.table[entry.oid] = entry

    def replace_nested(self, entry: ObjectEntry, nested: list[ObjectEntry]) -> None:
        """As `contain`, for a container that may have been made anew: what it had inside before is let go. Caller holds the lock."""
        former = entry.shared.nested if entry.shared is not None else None
        self.contain(entry, nested)
        if former is not None:
            gone: list[ObjectEntry] = []
            self._uncontain(former, gone)
            for inner in gone:
                self.free(inner)


def sendable(entry: ObjectEntry) -> Value:
    """The entry's value as it is written in a message: with the list of refs inside."""
    value: Value | None = entry.value
    shared = entry.shared
    if value is None and shared is not None:
        value = shared.place  # stale: the receiver asks the daemon, and waits there
    assert value is not None, "only known values are sent"
    if type(value) is Stored:
        if shared is None:
            shared = entry.shared = SharedState(owned=True)
        shared.shown = True
    elif type(value) is Failed:
        unread_errors.read(entry.oid)
    elif shared is not None and shared.nested and type(value) is bytes:
        return Containing(value, [inner.oid for inner in shared.nested])
    return value
