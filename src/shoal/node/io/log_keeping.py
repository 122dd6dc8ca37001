"""What logs of actors keep in stores, over nodes: copies of this node's own, copies kept for others, and those of former lives brought here.

Purpose: a checkpoint of any size, and large arguments of recorded calls, are there for a life on another node.

    node of the actor          another node                   node of the next life
       |---KeepLogCopy------------>|                                |
       |<==FetchChunk, bytes=======|  an original of its own        |
       |<--LogCopyKept-------------|                                |
       |  the GCS is told both places                               |
       x killed                    |<=======FetchChunk, bytes=======|  claims the log from the GCS: an original of its own
                                   |<--FreeLogCopies----------------|  when the GCS has its first checkpoint; to all nodes

Design: `node.log_copies` decides for the logs here. Who keeps a copy follows the actor, and lets go when it is dead, when its node says so, or when a
later life has a checkpoint of its own: the last is said to all, since a node that died may have left something anywhere. The first node may live,
and keeps its objects until then, too.

What it does not do: decide, tell the GCS (`recoveries`), or notice that a copy on disk is damaged before it is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from shoal.node import log_copies as lc
from shoal.node.log_copies import LogCopies
from shoal.protocol.messages import Stored
from shoal.protocol.node_messages import FreeLogCopies, KeepLogCopy, LogCopyKept

if TYPE_CHECKING:
    from shoal.node.io.node_links import NodeLinks
    from shoal.node.io.objects import Fetch
    from shoal.node.io.store_shell import StoreShell


class Places(msgspec.Struct, array_like=True):
    """Where the objects of a log are: each at the node of its actor, and where its copy is."""

    checkpoint: list[Stored]
    arguments: list[list[Stored]]


class LogKeeping:
    """Both sides of a node.

    Args:
        fetch: brings a value of another node here.
        follow: has the GCS tell of an actor's death (`actor_dead`), also if it is dead already.
        on_settled: called with an actor, for an object of whose log it has become clear where it is.
        on_former: called with an actor and the life of it that has a checkpoint of its own.
    """

    def __init__(
        self,
        node_id: bytes,
        links: NodeLinks,
        store: StoreShell,
        fetch: Fetch,
        follow: Callable[[bytes], None],
        on_settled: Callable[[bytes], None],
        on_former: Callable[[bytes, int], None],
    ) -> None:
        self._node_id = node_id
        self._links = links
        self._store = store
        self._fetch = fetch
        self._follow = follow
        self._on_settled = on_settled
        self._on_former = on_former
        self._copies = LogCopies()
        #: copies here for logs of other nodes, also those that are on their way: the actor, and its life
        self._kept: dict[bytes, tuple[bytes, int]] = {}
        links.on_joined.append(lambda entry: self._handle(lc.NodeSeen(entry.node_id, entry.draining)))
        links.on_drains.append(lambda entry: self._handle(lc.NodeSeen(entry.node_id, True)))
        links.on_died.append(lambda node, cause: self._handle(lc.NodeGone(node)))
        links.handlers[KeepLogCopy] = self._on_keep
        links.handlers[LogCopyKept] = self._on_kept
        links.handlers[FreeLogCopies] = self._on_free

    # ---------------------------------------------------------------- the logs here

    def _handle(self, event: lc.Event) -> None:
        for effect in self._copies.handle(event):
            if isinstance(effect, lc.AskCopy):
                self._links.send(effect.node, KeepLogCopy(effect.actor_id, effect.incarnation, effect.stored))
            elif isinstance(effect, lc.FreeCopy):
                self._links.send(effect.node, FreeLogCopies(b"", 0, [effect.oid]))
            else:
                self._on_settled(effect.actor_id)

    def want(self, actor_id: bytes, incarnation: int, oids: list[bytes]) -> None:
        """Objects of the store here belong to the log of an actor."""
        for oid in oids:
            row = self._store.row_of(oid)
            if row is not None:
                place = Stored(oid, row.segment, row.offset, row.size, row.generation, node=self._node_id)
                self._handle(lc.CopyWanted(actor_id, incarnation, place))

    def unwanted(self, oids: list[bytes]) -> None:
        """The GCS knows that a log needs these no more, or its actor is dead."""
        self._handle(lc.CopyUnwanted(oids))

    def forget(self, oids: list[bytes]) -> None:
        """The log goes on elsewhere, with its copies."""
        self._handle(lc.CopyForgotten(oids))

    def is_settled(self, oids: list[bytes]) -> bool:
        """Whether it is clear where all of these are."""
        return all(map(self._copies.is_settled, oids))

    def places(self, checkpoint: bytes, arguments: list[bytes]) -> Places:
        """Where objects of a log are; `checkpoint` is empty when it is none."""
        return Places(self._copies.places(checkpoint), [self._copies.places(oid) for oid in arguments])

    # ---------------------------------------------------------------- logs of former lives

    def bring(self, actor_id: bytes, places: Places, then: Callable[[list[Stored], str], None]) -> None:
        """Make what a log of another node keeps originals of this one, owned by the actor; `then` gets where they are, the checkpoint first, and
        why one of them cannot be had."""
        wanted = [each for each in (places.checkpoint, *places.arguments) if each]
        brought: list[Stored] = []

        def step(why: str, untried: list[Stored]) -> None:
            if not untried:
                then(brought, why or "nobody knows where it is")
                return
            stored = untried[0]

            def fetched(place: Stored | None, reason: str) -> None:
                kept = self._store.keep_copy(stored.oid, actor_id) if place is not None else None
                if kept is None:
                    step(why + ("; " if why else "") + (reason or "this node has no room for it"), untried[1:])
                    return
                self._kept.pop(stored.oid, None)  # it is this log's now
                brought.append(
                    Stored(stored.oid, kept.segment, kept.offset, kept.size, kept.generation, [], self._node_id)
                )
                following()

            self._fetch(stored, fetched)

        def following() -> None:
            if len(brought) == len(wanted):
                then(brought, "")
            else:  # what is here already first
                step("", sorted(wanted[len(brought)], key=lambda each: each.node != self._node_id))

        following()

    def free_former(self, actor_id: bytes, incarnation: int) -> None:
        """This life of an actor needs nothing any more that others had."""
        message = FreeLogCopies(actor_id, incarnation)
        for node in self._links.nodes:
            self._links.send(node, message)
        self._on_free(self._node_id, message)

    # ---------------------------------------------------------------- copies for others

    def _on_keep(self, node: bytes, message: KeepLogCopy) -> None:
        oid = message.stored.oid
        self._kept[oid] = (message.actor_id, message.incarnation)
        self._follow(message.actor_id)

        def fetched(place: Stored | None, reason: str) -> None:
            told = None
            if oid in self._kept:  # else it was let go meanwhile
                kept = self._store.keep_copy(oid, b"") if place is not None else None
                if kept is None:
                    del self._kept[oid]
                else:
                    told = Stored(oid, kept.segment, kept.offset, kept.size, kept.generation, [], self._node_id)
            self._links.send(node, LogCopyKept(oid, told))

        self._fetch(message.stored, fetched)

    def _on_kept(self, node: bytes, message: LogCopyKept) -> None:
        self._handle(lc.CopyTold(node, message.oid, message.stored))

    def _on_free(self, node: bytes, message: FreeLogCopies) -> None:
        if message.oids:
            self._free([oid for oid in message.oids if oid in self._kept])
            return
        mine = (message.actor_id, message.incarnation)
        self._free([oid for oid, (actor, life) in self._kept.items() if actor == mine[0] and life < mine[1]])
        self._on_former(*mine)

    def actor_dead(self, actor_id: bytes) -> None:
        """Its copies are of no use to anybody."""
        self._free([oid for oid, (actor, _) in self._kept.items() if actor == actor_id])

    def _free(self, oids: list[bytes]) -> None:
        for oid in oids:
            del self._kept[oid]
        if oids:
            self._store.free(oids)

    def statistics(self) -> dict[str, int]:
        """Sizes of the tables."""
        return {**self._copies.statistics(), "log_copies_kept": len(self._kept)}
