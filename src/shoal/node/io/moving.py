"""Objects leave a node that drains: their owners' nodes take them over.

Purpose: what a node has made is not made again because the node goes.

Design: the node that drains names what lies in its store and belongs to processes of other nodes (MoveStored, to the node of each owner). That one
fetches it after everything else that is wanted, keeps it as an original, and tells the owner (Relocated), which takes the new place for the value,
tells its home, and frees the old one: so the store of the node that leaves becomes empty by itself. What is not gone after AGAIN_S is named again:
an owner may not have read that the object is made.

    draining                    owner's node                owner
       |---MoveStored------------->|                          |
       |<==FetchChunk, bytes=======|  an original here        |
       |                           |---Relocated------------->|  value = new place; Publish, if others know it
       |<--FreeStored--------------|<--FreeObjects------------|

Whoever still has the old place in hand does not find it, and asks the home.

What it does not do: move what processes of the node itself own, or objects whose owner is dead; choose another node than the owner's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from shoal.protocol.messages import Relocated, Stored
from shoal.protocol.node_messages import MoveStored

if TYPE_CHECKING:
    import asyncio

    from shoal.node.io.node_links import NodeLinks
    from shoal.node.io.processes import ProcessTable
    from shoal.node.io.store_shell import StoreShell
    from shoal.node.io.transfer import Transfer

AGAIN_S = 1.0


class Moving:
    """Both sides of a node.

    Args:
        node_of: the node of a process that is not of this one; None when it is not known.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        node_id: bytes,
        links: NodeLinks,
        table: ProcessTable,
        store: StoreShell,
        transfer: Transfer,
        node_of: Callable[[bytes], bytes | None],
    ) -> None:
        self._loop = loop
        self._node_id = node_id
        self._links = links
        self._table = table
        self._store = store
        self._transfer = transfer
        self._node_of = node_of
        self._told: dict[bytes, float] = {}  #: object -> when it is named again
        links.handlers[MoveStored] = self._on_move

    def empty(self) -> None:
        """This node drains: have the owners of what lies here take it over. Called again and again."""
        now = self._loop.time()
        items: dict[bytes, list[tuple[bytes, Stored]]] = {}
        for row in self._store.kept_for_others(self._table.by_id):
            node = self._node_of(row.owner)
            if node is not None and self._told.get(row.oid, 0.0) <= now:
                self._told[row.oid] = now + AGAIN_S
                place = Stored(row.oid, row.segment, row.offset, row.size, row.generation, node=self._node_id)
                items.setdefault(node, []).append((row.owner, place))
        for node, moved in items.items():
            self._links.send(node, MoveStored(moved))

    def _on_move(self, node: bytes, message: MoveStored) -> None:
        """A node drains, and has objects that processes of this one own."""
        for owner, stored in message.items:
            if stored.node == node and owner in self._table.by_id:
                self._take(owner, stored)

    def _take(self, owner: bytes, stored: Stored) -> None:
        def fetched(place: Stored | None, reason: str) -> None:
            kept = self._store.keep_copy(stored.oid, owner) if place is not None else None
            process = self._table.by_id.get(owner)
            if kept is not None and process is None:
                self._store.free([stored.oid])
            elif kept is not None and process is not None:
                process.send(Relocated(kept, stored.node))

        self._transfer.fetch(stored, fetched)
