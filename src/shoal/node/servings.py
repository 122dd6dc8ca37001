"""Who gets which part of which object from this node, and who is sent to somebody else.

Purpose: one pure machine, `handle(event, now) -> list[Effect]`, for the sending side of transfers: of this node's own objects, and of copies that it
has, or is still receiving.

Design: a broadcast is a pipeline. The first node that pulls an object gets it from its origin; each that comes while others still pull is referred
to the one that came last before it, and to that one's forerunner in case it fails. Nobody tells anybody which chunks it has: a part that this node
is about to receive itself is sent when it comes.

    origin --> first --> second --> third ...      each sends every byte once; the last one is behind by a chunk for each before it

So n nodes cost the origin one upload, and the time of one transfer plus n times that of a chunk. Whoever was referred and gets nothing asks the
origin again (`pulls`), which then sends.

The origin remembers who has, or pulls, a copy of an object: these are told when it is freed.

How to extend: an event gets a row in `_HANDLERS`.

What it does not do: move bytes or pin memory (`io.transfer`), or pull (`pulls`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from shoal.node import pull_events as ev

SERVES_PER_NODE_MAX = 1024  #: chunks that one node may wait for; more are refused for the time being
REFERRED_TO_MAX = 2
BUSY_NODES = 2  #: an origin that sends to so many refers newcomers to whole copies, where there are any


class _Shared:
    """One object of this node that others pull or have."""

    __slots__ = ("copies", "pulling")

    def __init__(self) -> None:
        #: who pulls it, in the order of coming -> whom it was referred to; () for those that the origin sends to
        self.pulling: dict[bytes, tuple[bytes, ...]] = {}
        self.copies: dict[bytes, None] = {}


class Servings:
    """The sending side of one node."""

    #: `_shared` by oid, without empty ones; `_waiting` oid -> (node, number) -> chunks that this node is about to receive itself;
    #: `_serving` (node, number) of what is being sent, and `_load` counts it and what waits by node.
    def __init__(self) -> None:
        self._shared: dict[bytes, _Shared] = {}
        self._waiting: dict[bytes, dict[tuple[bytes, int], ev.ChunkWanted]] = {}
        self._serving: dict[tuple[bytes, int], bytes] = {}
        self._load: Counter[bytes] = Counter()
        self._served = 0
        self._referred = 0
        self._effects: list[ev.ServeEffect] = []

    def handle(self, event: ev.ServeEvent, now: float) -> list[ev.ServeEffect]:
        """What follows from an event, in this order. `now` is unused: nothing here depends on time."""
        effects: list[ev.ServeEffect] = []
        self._effects = effects
        _HANDLERS[type(event)](self, event)
        self._effects = []
        return effects

    def statistics(self) -> dict[str, int]:
        """Sizes of the tables."""
        return {
            "shared": len(self._shared),
            "serving": len(self._serving),
            "deferred": sum(len(waiting) for waiting in self._waiting.values()),
            "served": self._served,
            "referred": self._referred,
        }

    def holders_of(self, oid: bytes) -> list[bytes]:
        """The nodes that have whole copies of an object of this node."""
        shared = self._shared.get(oid)
        return [] if shared is None else list(shared.copies)

    # ---------------------------------------------------------------- who asks

    def _on_wanted(self, event: ev.ChunkWanted) -> None:
        if event.state == ev.NOTHING:
            self._refuse_absent(event)
        elif event.version and event.version_here and event.version != event.version_here:
            self._refuse(event, ev.REFUSED_CHANGED, "it was made anew")
        elif self._load[event.node] >= SERVES_PER_NODE_MAX:
            self._refuse(event, ev.REFUSED_BUSY, f"node asked for more than {SERVES_PER_NODE_MAX} chunks at one time")
        elif event.fresh and event.original:
            self._meet(event)
        elif event.state == ev.COMING:
            self._waiting.setdefault(event.oid, {})[event.node, event.number] = event
            self._load[event.node] += 1
        else:
            self._serve(event)

    def _refuse_absent(self, event: ev.ChunkWanted) -> None:
        others = [node for node in self.holders_of(event.oid) if node != event.node]
        if others and event.fresh:
            self._refer(event, tuple(others[:REFERRED_TO_MAX]))
        else:
            self._refuse(event, ev.REFUSED_ABSENT, "it is not in the object store there")

    def _meet(self, event: ev.ChunkWanted) -> None:
        """A node that has nothing of an object of this one yet: one more link of the chain."""
        shared = self._shared.get(event.oid)
        if shared is None:
            shared = self._shared[event.oid] = _Shared()
        shared.copies.pop(event.node, None)
        sources = shared.pulling.get(event.node)
        if sources is None:
            sources = tuple(reversed(list(shared.pulling)[-REFERRED_TO_MAX:]))
            if not sources and shared.copies and len({node for node, _ in self._serving}) >= BUSY_NODES:
                sources = tuple(list(shared.copies)[:REFERRED_TO_MAX])
                # The next one gets another: they take turns.
                first = sources[0]
                del shared.copies[first]
                shared.copies[first] = None
            shared.pulling[event.node] = sources
        if sources:
            self._refer(event, sources)
        else:
            self._serve(event)

    def _refer(self, event: ev.ChunkWanted, sources: tuple[bytes, ...]) -> None:
        self._referred += 1
        self._effects.append(ev.Refer(event.node, event.number, event.version_here, list(sources)))

    def _refuse(self, event: ev.ChunkWanted, kind: str, reason: str) -> None:
        self._effects.append(ev.Refuse(event.node, event.number, kind, reason))

    def _serve(self, event: ev.ChunkWanted) -> None:
        self._serving[event.node, event.number] = event.oid
        self._load[event.node] += 1
        self._effects.append(ev.Serve(event))

    def _on_serve_ended(self, event: ev.ServeEnded) -> None:
        if self._serving.pop((event.node, event.number), None) is not None:
            self._served += 1
            self._unload(event.node)

    def _unload(self, node: bytes) -> None:
        self._load[node] -= 1
        if not self._load[node]:
            del self._load[node]

    def _on_forgotten(self, event: ev.ChunksForgotten) -> None:
        for number in event.numbers:
            key = (event.node, number)
            if key in self._serving:
                self._effects.append(ev.DropServe(*key))
                continue
            for oid, waiting in self._waiting.items():
                if waiting.pop(key, None) is not None:
                    self._unload(event.node)
                    if not waiting:
                        del self._waiting[oid]
                    break

    # ---------------------------------------------------------------- what this node pulls itself

    def _on_part_came(self, event: ev.PartCame) -> None:
        waiting = self._waiting.get(event.oid)
        if not waiting:
            return
        end = event.offset + event.length
        for key, wanted in list(waiting.items()):
            if event.offset <= wanted.offset and wanted.offset + wanted.length <= end:
                del waiting[key]
                self._unload(wanted.node)
                self._serve(wanted)
        if not waiting:
            del self._waiting[event.oid]

    def _on_copy_ended(self, event: ev.CopyEnded) -> None:
        for wanted in self._waiting.pop(event.oid, {}).values():
            self._unload(wanted.node)
            if event.whole:
                self._serve(wanted)
            else:
                self._refuse(wanted, ev.REFUSED_ABSENT, "it could not get it itself")

    # ---------------------------------------------------------------- what others have

    def _on_pull_ended(self, event: ev.PullEndedThere) -> None:
        shared = self._shared.get(event.oid)
        if shared is None:
            return
        pulled = shared.pulling.pop(event.node, None) is not None
        if pulled and event.whole:
            shared.copies[event.node] = None
        self._drop_if_empty(event.oid, shared)

    def _on_copies_dropped(self, event: ev.CopiesDroppedThere) -> None:
        for oid in event.oids:
            shared = self._shared.get(oid)
            if shared is not None:
                shared.copies.pop(event.node, None)
                self._drop_if_empty(oid, shared)

    def _drop_if_empty(self, oid: bytes, shared: _Shared) -> None:
        if not shared.pulling and not shared.copies:
            del self._shared[oid]

    def _on_freed(self, event: ev.ObjectsFreed) -> None:
        by_node: dict[bytes, list[bytes]] = {}
        for oid in event.oids:
            shared = self._shared.pop(oid, None)
            if shared is not None:
                for node in {**shared.pulling, **shared.copies}:
                    by_node.setdefault(node, []).append(oid)
        self._effects.extend(ev.FreeCopiesAt(node, oids) for node, oids in by_node.items())

    def _on_node_gone(self, event: ev.NodeGone) -> None:
        node = event.node
        for oid, shared in list(self._shared.items()):
            shared.pulling.pop(node, None)
            shared.copies.pop(node, None)
            self._drop_if_empty(oid, shared)
        for oid, waiting in list(self._waiting.items()):
            for key in [key for key in waiting if key[0] == node]:
                del waiting[key]
                self._unload(node)
            if not waiting:
                del self._waiting[oid]


_HANDLERS: dict[type, Callable[[Servings, Any], None]] = {
    ev.ChunkWanted: Servings._on_wanted,
    ev.ServeEnded: Servings._on_serve_ended,
    ev.PartCame: Servings._on_part_came,
    ev.CopyEnded: Servings._on_copy_ended,
    ev.PullEndedThere: Servings._on_pull_ended,
    ev.CopiesDroppedThere: Servings._on_copies_dropped,
    ev.ChunksForgotten: Servings._on_forgotten,
    ev.ObjectsFreed: Servings._on_freed,
    ev.NodeGone: Servings._on_node_gone,
}
