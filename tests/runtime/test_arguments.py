"""A task that finds the store full waits for those who hold it, unless its arguments could never fit, or nobody lets go."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from shoal.protocol.errors import ObjectStoreFullError
from shoal.protocol.memory_messages import ROOM_LEFT
from shoal.protocol.messages import Stored, UseRoom
from shoal.runtime import arguments
from shoal.runtime.arguments import Arguments

VALUES = [Stored(bytes([number]) * 20, 1, 0, 1000, 1, [], b"") for number in (1, 2)]


class Reader:
    """A worker whose store is full so often."""

    def __init__(self, full: int, capacity: int = 2000) -> None:
        self.full = full
        self.asked = 0
        self.told: list[UseRoom] = []
        daemon = SimpleNamespace(send_now=self.told.append)
        self.runtime: Any = SimpleNamespace(
            reactor=SimpleNamespace(lock=threading.RLock(), causal=daemon),
            pulling=SimpleNamespace(is_abroad=lambda value: False),
            store=None,
            request=self.request,
            config={"object_store_memory": capacity},
        )

    def request(self, make: Any, timeout: None) -> None:
        self.asked += 1
        make(self.asked)

    def load_value(self, value: Any) -> Any:
        if value is VALUES[1] and self.full:
            self.full -= 1
            raise ObjectStoreFullError("no room")
        return value.oid

    def load(self) -> list[Any]:
        context: Any = SimpleNamespace(room=None, lease=None, loads_arguments=False)
        return Arguments(self.runtime, self.load_value).load(context, VALUES)


def test_it_asks_again_until_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "FULL_PAUSE_S", 0.0)
    reader = Reader(full=20)
    assert reader.load() == [value.oid for value in VALUES]
    assert reader.told == [UseRoom(number, ROOM_LEFT) for number in range(1, 21)], "with empty hands each time"


def test_what_never_fits_fails_at_once() -> None:
    reader = Reader(full=1, capacity=1999)
    with pytest.raises(ObjectStoreFullError):
        reader.load()
    assert reader.asked == 1


def test_it_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "FULL_WAIT_S", 0.0)
    reader = Reader(full=2)
    with pytest.raises(ObjectStoreFullError):
        reader.load()
    assert reader.asked == 1
