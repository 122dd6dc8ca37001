"""Functions and classes that this process sends to others: serialized once, forgotten everywhere when nobody can call them any more.

Purpose: a function travels once a worker, by the hash of its code; refs that it captured live exactly as long as it can be called.

Design: `ExportedCode` is kept by the function (through `Exports`, which refers to that weakly) and by every template made for it, and pending
tasks keep their template. Its finalizer puts it into `forgotten`; at the next tick the captured refs are let go, and the workers that were sent
the function are told to drop it (`ForgetFunction`), with whatever its copies there refer to. Classes, and callables without weak references, are
kept for the session: an actor may restart at any time.

What it does not do: serialize (`serialization.code`), or send code to workers (`submitter`).
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from shoal import serialization
from shoal.protocol import ids
from shoal.protocol.limits import CODE_BYTES_MAX
from shoal.runtime import objects
from shoal.runtime.objects import ObjectEntry

if TYPE_CHECKING:
    from shoal.runtime.core import Runtime

#: exported code that nobody can call any more; filled by finalizers
forgotten: deque[tuple[bytes, list[ObjectEntry]]] = deque()


class ExportedCode:
    """One function or class in its serialized form."""

    __slots__ = ("__weakref__", "blob", "function_id", "held")

    def __init__(self, function_id: bytes, blob: bytes, held: list[ObjectEntry]) -> None:
        self.function_id = function_id
        self.blob = blob
        self.held = held  #: what it captured

    def __del__(self) -> None:
        if forgotten is None:  # the interpreter ends and has emptied this module
            return
        forgotten.append((self.function_id, self.held))
        attend: Any = objects.attend_to_dropped
        if attend is not None:
            attend()


class Exports:
    """The code that this process has exported, or was sent."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        #: by identity of the function; the first part gives the function, or None when it is gone
        self._of: dict[int, tuple[Any, ExportedCode]] = {}
        self._by_id: weakref.WeakValueDictionary[bytes, ExportedCode] = weakref.WeakValueDictionary()
        forgotten.clear()

    def export(self, code: Any) -> ExportedCode:
        """Serialize a function or class, once.

        Raises:
            TypeError: it captures something that cannot be serialized.
            ValueError: it captures too much.
        """
        known = self._of.get(id(code))
        if known is not None and known[0]() is code:
            return known[1]
        blob, refs = serialization.dumps_code(code)
        if len(blob) > CODE_BYTES_MAX:
            raise ValueError(
                f"{getattr(code, '__qualname__', code)!s} captures too much: with it the code takes {len(blob) >> 20} MiB, and at most "
                f"{CODE_BYTES_MAX >> 20} MiB can be sent to workers. Put large arrays with shoal.put, and pass or capture the ref."
            )
        runtime = self._runtime
        with runtime.reactor.lock:
            held = runtime.objects.escape(refs) if refs else []
            return self._keep(code, ids.function_id_of(blob), blob, held)

    def register(self, code: Any, function_id: bytes, blob: bytes) -> None:
        """A function that was sent to this process: exported from here it keeps its id."""
        with self._runtime.reactor.lock:
            self._keep(code, function_id, blob, [])

    def _keep(self, code: Any, function_id: bytes, blob: bytes, held: list[ObjectEntry]) -> ExportedCode:
        exported = self._by_id.get(function_id)
        if exported is None:
            exported = self._by_id[function_id] = ExportedCode(function_id, blob, held)
        else:
            exported.held.extend(held)
        key, table = id(code), self._of
        alive: Any = None
        if not isinstance(code, type):
            try:
                alive = weakref.ref(code, lambda gone: table.pop(key, None))
            except TypeError:
                alive = None
        table[key] = (alive if alive is not None else lambda: code, exported)
        return exported

    def keep_code(self, function_id: bytes, blob: bytes) -> ExportedCode:
        """The code of a function that another process has exported; workers may drop it with its last use here."""
        exported = self._by_id.get(function_id)
        if exported is None:
            exported = self._by_id[function_id] = ExportedCode(function_id, blob, [])
        return exported

    def code_of(self, function_id: bytes) -> ExportedCode | None:
        """What was exported under an id, while anybody can call it."""
        return self._by_id.get(function_id)

    def forget(self) -> None:
        """Let go what nobody can call any more. Caller holds the lock."""
        while forgotten:
            function_id, held = forgotten.popleft()
            self._runtime.objects.unuse(held)
            if function_id not in self._by_id:
                self._runtime.submitter.forget_function(function_id)
