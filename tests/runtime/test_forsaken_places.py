"""Where a lost object was is told to free it, if it lies elsewhere now: it may have been out of reach only."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from shoal.protocol.messages import FreeObjects, Stored
from shoal.runtime.objects import ObjectEntry, SharedState
from shoal.runtime.remaking import Remaker

OID = b"t" * 16 + b"\x00\x00\x00\x01"
HERE, THERE, THIRD = b"h" * 16, b"t" * 16, b"d" * 16


@pytest.mark.parametrize(
    ("former", "now", "told"),
    [
        (THERE, THIRD, THERE),
        (THERE, HERE, THERE),
        (HERE, THERE, b""),
        (b"", THERE, b""),
        (THERE, THERE, None),
        (HERE, b"", None),
    ],
)
def test_the_former_place_is_freed_if_it_is_another_node(former: bytes, now: bytes, told: bytes | None) -> None:
    sent: list[Any] = []
    given: list[Any] = []
    runtime: Any = SimpleNamespace(
        node_id=HERE,
        reactor=SimpleNamespace(causal=SimpleNamespace(send=sent.append)),
        store_value=lambda entry, value: given.append(value),
    )
    remaker = Remaker.__new__(Remaker)
    remaker.runtime = runtime
    entry = ObjectEntry(OID)
    entry.shared = SharedState(owned=True)
    entry.shared.place = Stored(OID, 1, 0, 1000, 1, [], former)
    value = Stored(OID, 2, 0, 1000, 7, [], now)
    remaker.give(entry, value)
    assert given == [value] and entry.shared.place is None
    assert [(each.oids, each.node) for each in sent if isinstance(each, FreeObjects)] == (
        [([OID], told)] if told is not None else []
    )
