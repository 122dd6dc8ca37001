"""What its owner lost before anybody else knew it: the daemon, which counts the owner from then on, is told how it is made."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from shoal.protocol.messages import Escape, NotMade, Remake, Stored
from shoal.runtime.objects import ObjectEntry, ObjectTable
from shoal.runtime.remaking import Remaker

OID, NEED = b"t" * 16 + b"\x00\x00\x00\x01", b"n" * 16 + b"\x00\x00\x00\x01"
LOST = Remake(OID, "its file is gone", held=True)


class Owner:
    """A process whose objects are lost."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.requested: list[ObjectEntry] = []
        self.daemon: Any = SimpleNamespace(send=self.sent.append)
        reactor: Any = SimpleNamespace(
            lock=threading.RLock(), causal=self.daemon, handlers={}, has_notes=False, attend=lambda: None
        )
        self.table = ObjectTable(reactor, lambda entry: None, lambda name, value: None)
        runtime: Any = SimpleNamespace(
            objects=self.table, reactor=reactor, lineage=SimpleNamespace(records={}), role="driver"
        )
        self.remaker = Remaker(runtime)
        self.remaker.request = lambda entry, reason: self.requested.append(entry)  # type: ignore[method-assign]
        self.need = ObjectEntry(NEED)
        self.table.describe = lambda entry: (b"how", [self.need], [], b"code") if entry.oid == OID else None

    def asks_for_its_place(self) -> ObjectEntry:
        """What lay in the store, and never left this process, is not where it was."""
        entry = ObjectEntry(OID)
        entry.value = Stored(OID, 1, 0, 1000, 1, [], b"")
        self.table.resolve_again(entry)
        self.sent.clear()
        return entry


def test_the_daemon_is_told_how_it_is_made_and_what_that_needs() -> None:
    owner = Owner()
    entry = owner.asks_for_its_place()
    owner.remaker.on_remake(owner.daemon, LOST)
    assert owner.sent == [Escape([OID], b"how", [NEED], b"code"), Escape([NEED])]
    assert owner.requested == [entry]
    assert entry.shared is not None and entry.shared.escaped and entry.shared.holds == 1


def test_it_is_told_once() -> None:
    owner = Owner()
    entry = owner.asks_for_its_place()
    owner.remaker.on_remake(owner.daemon, LOST)
    owner.sent.clear()
    owner.remaker.on_remake(owner.daemon, LOST)
    assert not owner.sent and entry.shared is not None and entry.shared.holds == 1


def test_what_was_let_go_is_not_told() -> None:
    owner = Owner()
    owner.remaker.on_remake(owner.daemon, LOST)
    assert [type(each) for each in owner.sent] == [NotMade]
