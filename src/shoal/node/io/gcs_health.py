"""Why the GCS does not answer, for those who wait for it.

Purpose: a GCS that keeps dying, or cannot go on (its disk is full, its Redis is away), looks like a hang to who creates an actor. Its last words
stand in the node's log, where nobody looks: here they are put where people do.

    GcsLink: how long it has said nothing   `-- trouble() --> `shoal status`, time-outs of get, of calls, refused calls (`node.gcs`)
    GcsProcess: how it died, what it said    `- a sentence to this node's drivers, once for each time that it is away
    HeadWatch: whether its node is lost      `- on nodes that joined; another sentence when that is so

Design: a death costs some tenths of a second, which is worth no sentence; NOTICED_S is, and so are many deaths in a row. There is no timer
while all is well.

A head's daemon tells the other nodes (`GcsTrouble`), also when it gives the GCS up and ends: its log and folder go with it.

What it does not do: start another one (`gcs_process`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shoal.node.io.gcs_link import GcsLink
from shoal.node.io.processes import ProcessTable
from shoal.protocol.limits import GCS_DEATHS_WITHIN_S
from shoal.protocol.messages import Notice
from shoal.protocol.node_messages import GcsTrouble

if TYPE_CHECKING:
    import socket

    from shoal.node.io.gcs_process import GcsElsewhere, GcsProcess
    from shoal.node.io.gcs_shards import GcsShards
    from shoal.node.io.head_watch import HeadWatch
    from shoal.node.io.node_links import NodeLinks

NOTICED_S = 1.0  #: shorter silence is none
LAST_WORDS_S = 0.3  #: a head that ends leaves them so long to reach the other nodes
#: so many deaths within GCS_DEATHS_WITHIN_S are worth a sentence although it answers in between
KEEPS_DYING = 3


class GcsHealth:
    """One node's knowledge of what ails its GCS. `shards` returns those beyond the first, None while there is one."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        table: ProcessTable,
        link: GcsLink,
        server: GcsProcess | GcsElsewhere,
        shards: Callable[[], GcsShards | None],
    ) -> None:
        self._loop = loop
        self._table = table
        self._link = link
        self._server = server
        self._shards = shards
        #: of a node that joined a cluster
        self._head: HeadWatch | None = None
        #: of a head: to the nodes that are told
        self._links: NodeLinks | None = None
        #: what a joined node's head has said last
        self._said = ""
        #: when the drivers were told last
        self._told_at = float("-inf")
        #: they know that it is away
        self._told_away = False
        link.why = self.trouble
        link.on_trouble = self._look
        link.on_back = self._back

    def trouble(self) -> str:
        """Why the GCS does not answer; "" when it does."""
        silent_s = self._link.silent_s()
        if silent_s >= NOTICED_S:
            why = f"its head says: {self._said}" if self._said else self._server.explain()
            of_head = self._head.explain() if self._head is not None else ""
            return f"the GCS has not answered for {silent_s:.0f} s: {why}{'. Besides, ' if of_head else ''}{of_head}"
        return next((text for text in self._of_shards() if text), "")

    def join_cluster(
        self,
        links: NodeLinks,
        is_head: bool,
        dial: Callable[[str], socket.socket],
        timeout_s: float | None,
        give_up: Callable[[str], None],
    ) -> None:
        """The other nodes hear from a head what ails the GCS; the others look after it while the GCS is away, see `HeadWatch`."""
        if is_head:
            self._links = links
            return
        from shoal.node.io.head_watch import HeadWatch

        def end(reason: str) -> None:
            give_up(f"{reason}. It had said: {self._said}" if self._said else reason)

        self._head = HeadWatch(self._loop, links, self._link, dial, timeout_s, self._look, end)
        links.handlers[GcsTrouble] = lambda node, message: self._on_said(message.text)

    def _on_said(self, text: str) -> None:
        self._said = text

    def given_up(self, reason: str) -> float:
        """There is no GCS and will be none, so this node ends; returns the seconds that the others of a head need to hear it."""
        self._say(reason)
        return LAST_WORDS_S if self._links is not None and self._links.nodes else 0.0

    def _say(self, text: str) -> None:
        if self._links is not None:
            for node_id in list(self._links.nodes):
                self._links.send(node_id, GcsTrouble(text))

    def stuck(self, reason: str) -> None:
        """The GCS cannot be reached, or owes an answer for too long."""
        self._server.end(reason)
        if self._head is not None:
            self._head.away()

    def _of_shards(self) -> list[str]:
        shards = self._shards()
        if shards is None:
            return []
        return [
            f"shard {process.shard} of the GCS has not answered for {silent_s:.0f} s: {process.explain()}"
            for process, silent_s in zip(shards.processes, shards.silent_s(), strict=False)
            if silent_s >= NOTICED_S
        ]

    def _look(self) -> None:
        """It was lost some time ago: is that worth a sentence?"""
        if self._head is not None:
            self._head.away()
        trouble = self.trouble()
        deaths = self._server.recent_deaths()
        if trouble:
            self._told_away = True
            self._say(trouble)
        elif deaths < KEEPS_DYING or self._loop.time() - self._told_at < GCS_DEATHS_WITHIN_S:
            return
        else:
            trouble = f"the GCS server died {deaths} times within {GCS_DEATHS_WITHIN_S:g} s: {self._server.explain()}"
        self._tell(f"what runs goes on, but new actors, names and listings wait: {trouble}")

    def _back(self) -> None:
        self._said = ""
        if self._head is not None:
            self._head.answers()
        if self._told_away:
            self._told_away = False
            self._say("")
            self._tell("the GCS answers again")

    def _tell(self, text: str) -> None:
        self._told_at = self._loop.time()
        for driver in self._table.drivers():
            if driver.log_to_driver:
                driver.send(Notice("warning", text))

    def statistics(self) -> dict[str, Any]:
        """How the GCS is, and the lines to it."""
        shards = self._shards()
        return {
            **self._link.statistics(),
            "pid": self._server.pid,
            "restarts": self._server.restarts,
            "shards": [] if shards is None else shards.statistics(),
            "trouble": self.trouble(),
        }
