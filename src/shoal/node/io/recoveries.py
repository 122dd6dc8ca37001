"""Checkpoints and records of the actors that live here: messages go into the logs, and what the logs keep is held.

Purpose: an actor's next life finds what its former one wrote to this daemon; in a cluster, also on another node.

Design: the log of an actor (`node.actor_logs`) is there from the first life on this node until the actor is dead or lives elsewhere. In the eyes of
the object directory it is a process named by the ActorID: it holds the refs in states, answers and recorded arguments, and owns the checkpoint when
that lies in the store. So what an actor has kept outlives its workers, and goes when the log goes.

On a node that is alone a worker writes its records into a page (`store.page.RecordPage`) that outlives it: no system call, and this daemon need not
wake for each call. They are taken into the log when the worker is dead. What does not fit, or holds refs, is sent, after what the page has.

In a cluster the GCS has the log too: one call at a time for each actor brings what is new, so that what comes meanwhile travels together. The
worker's answers wait for that as they wait for holds on other nodes (`Promised`, `PromiseKept`): an answered call is in the GCS. A node that begins a
life of an actor which lived elsewhere claims the log there, and from then on what the former node says is refused, and never confirmed.

What is too large for the GCS lies in the store, with a copy on another node (`io.log_keeping`). The GCS is told where, and nothing before that is
known: so answers wait for the copy, too. What a checkpoint replaces is let go elsewhere when the GCS has the new one.

What a log refers to is held on other nodes, too (`io.log_holding`): the GCS is told of a record when it is.

What it does not do: decide anything (`node.actor_logs`, `gcs.actor_logs`), or read a record.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from shoal.node import object_events as events
from shoal.node.actor_logs import ActorLog, ActorLogs, Kept
from shoal.node.io.gcs_link import GcsLink
from shoal.node.io.log_holding import LogHolding
from shoal.node.io.log_keeping import LogKeeping, Places
from shoal.node.io.objects import Fetch, Objects
from shoal.node.io.processes import Process
from shoal.node.log_holds import position_of
from shoal.protocol.limits import CLUSTER_LOG_BYTES_MAX
from shoal.protocol.messages import RecordCall, Recovery, StoreCheckpoint, Stored
from shoal.store.page import RecordPage

if TYPE_CHECKING:
    from shoal.node.io.node_links import NodeLinks
    from shoal.node.io.store_shell import StoreShell

log = logging.getLogger("shoal.node")

AGAIN_S = 0.5  #: after a refusal of the GCS that has nothing to do with the actor


@dataclass(slots=True)
class Mirror:
    """What the GCS has of a log."""

    #: index of the last call that was sent
    sent: int = 0
    #: the checkpoint was not sent
    lacks_checkpoint: bool = True
    #: nor where objects are that lie in stores
    lacks_places: bool = False
    #: where those are that a former life on another node had kept, until the next checkpoint
    inherited: Places | None = None
    #: objects that the checkpoint has replaced which was not sent
    replaced: list[bytes] = field(default_factory=list)
    #: the life that found the log of former ones elsewhere, and up to which call: these may have kept objects and holds on other nodes, which may go
    #: when a checkpoint covers all of that; 0 if there is nothing to go
    claimed_by: int = 0
    claimed: int = 0
    #: a checkpoint was written here
    has_own: bool = False
    #: numbers of what was written since the last call to the GCS
    promises: list[int] = field(default_factory=list)
    #: a call is on its way
    asking: bool = False


@dataclass(slots=True)
class Told:
    """What a call to the GCS says."""

    promises: list[int]
    #: the life that said it
    incarnation: int
    #: of a checkpoint: the last call that it covers, and what objects it has replaced; -1 for none
    covers: int = -1
    replaced: list[bytes] = field(default_factory=list)
    #: what lives before this one have written is not needed when the GCS has this; 0 if it is, or there are none
    former: int = 0


class Recoveries:
    """The logs of this node.

    Args:
        free: lets objects in the store go.
        gcs: of a node in a cluster; None for one that is alone, with which the session ends.
    """

    def __init__(
        self,
        objects: Objects,
        free: Callable[[list[bytes]], None],
        gcs: GcsLink | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._objects = objects
        self._free = free
        self._gcs = gcs
        self._loop = loop
        self._logs = ActorLogs()
        self._mirrors: dict[bytes, Mirror] = {}
        #: what living workers write their records into, by ActorID
        self._pages: dict[bytes, RecordPage] = {}
        self._promises = 0  #: made so far, as a negative number
        #: both None on a node that is alone
        self._keeping: LogKeeping | None = None
        self._holding: LogHolding | None = None

    def join_cluster(
        self, node_id: bytes, links: NodeLinks, store: StoreShell, fetch: Fetch, follow: Callable[[bytes], None]
    ) -> None:
        """The node is one of many."""
        self._keeping = LogKeeping(node_id, links, store, fetch, follow, self._on_settled, self._on_former)
        self._holding = LogHolding(node_id, links, self._objects, follow, self._tell_soon, self._loop)

    # ---------------------------------------------------------------- lives

    def begin(self, actor_id: bytes, incarnation: int, then: Callable[[], None]) -> None:
        """A life of an actor is to begin here; `then` when its log is there."""
        if self._logs.is_outdated(actor_id, incarnation):
            self._drop(actor_id)
        if not self._logs.begin(actor_id, incarnation):
            then()
            return
        self._objects.handle(events.ProcessJoined(actor_id, runs=False))
        if self._gcs is None:
            then()
            return
        self._mirrors[actor_id] = Mirror()
        if incarnation == 1:
            then()
        else:
            self._claim(actor_id, incarnation, then)

    def _claim(self, actor_id: bytes, incarnation: int, then: Callable[[], None]) -> None:
        """It lived elsewhere: the GCS has the log."""

        def answered(body: Any, error: list[str]) -> None:
            if self._incarnation(actor_id) != incarnation:
                return
            if error:
                log.warning("the GCS did not give the log of actor %s: %s", actor_id.hex(), error[1])
                self._loop.call_later(AGAIN_S, self._claim, actor_id, incarnation, then)
            elif body["accepted"]:
                places = msgspec.msgpack.decode(body["places"], type=Places) if body["places"] else None
                take_over = partial(self._take_over, actor_id, incarnation, body, then)
                if places is None or self._keeping is None:
                    take_over(places, [], "")
                elif body["checkpoint"] == b"" and not places.checkpoint:
                    take_over(places, [], "nobody knows where it is")
                else:
                    self._keeping.bring(actor_id, places, partial(take_over, places))

        assert self._gcs is not None, "of a node in a cluster"
        self._gcs.call("gcs.actor_log_claim", {"actor_id": actor_id, "incarnation": incarnation}, answered)

    def _take_over(
        self,
        actor_id: bytes,
        incarnation: int,
        body: dict[str, Any],
        then: Callable[[], None],
        places: Places | None,
        here: list[Stored],
        lost: str,
    ) -> None:
        """The log is here, and the objects of it that could be had."""
        if self._incarnation(actor_id) != incarnation:
            if self._logs.get(actor_id) is None:
                self._free([place.oid for place in here])
            return
        index, checkpoint, records = body["index"], body["checkpoint"], body["records"]
        mirror = self._mirrors[actor_id] = Mirror(index + len(records), lacks_checkpoint=False)
        mirror.inherited, mirror.claimed_by, mirror.claimed = places, incarnation, index + len(records)
        if checkpoint == b"" and here and not lost:
            checkpoint, here = here[0], here[1:]
        if lost:
            lost = (
                f"its checkpoint after call {index}, or an argument since, was larger than {CLUSTER_LOG_BYTES_MAX >> 20} MB, and "
                f"the stores where it lay are lost: {lost}"
            )
        self._logs.put(actor_id, incarnation, index, checkpoint, records, here, lost, body.get("vain", 0))
        then()

    def _incarnation(self, actor_id: bytes) -> int:
        known = self._logs.get(actor_id)
        return known.incarnation if known is not None else 0

    def recovery(self, actor_id: bytes) -> Recovery | None:
        """What the life that begins is to start from; None for nothing."""
        return self._logs.recovery(actor_id) if self._logs.get(actor_id) is not None else None

    def record_page(self, actor_id: bytes) -> int:
        """A page for the records of the life that begins: its descriptor. -1 for none: in a cluster the GCS must have them, so they are sent."""
        if self._gcs is not None or self._logs.get(actor_id) is None:
            return -1
        self.absorb(actor_id)
        page = self._pages[actor_id] = RecordPage.create()
        return page.fd

    def absorb(self, actor_id: bytes) -> None:
        """An actor's worker is dead, and its socket was read to the end: what it had only written into its page."""
        page = self._pages.pop(actor_id, None)
        known = self._logs.get(actor_id)
        if page is None:
            return
        for index, record in page.entries() if known is not None else ():
            if known is not None and index == known.last + 1:
                self._logs.record(RecordCall(actor_id, known.incarnation, index, record))
        page.close()

    def moved(self, actor_id: bytes) -> None:
        """The actor lives, or is to live, elsewhere, or nowhere: the GCS has its log, if there is one. Objects stay until it has others."""
        known = self._logs.get(actor_id)
        if self._gcs is not None and known is not None and not known.stored():
            self._drop(actor_id)

    def _on_former(self, actor_id: bytes, incarnation: int) -> None:
        """This life of an actor has a checkpoint of its own: what former ones have left here is of no use."""
        if 0 < self._incarnation(actor_id) < incarnation:
            self._drop(actor_id)

    def drop(self, actor_id: bytes) -> None:
        """The actor is dead."""
        if self._keeping is not None:
            mirror, known = self._mirrors.get(actor_id), self._logs.get(actor_id)
            self._keeping.unwanted([*(known.stored() if known else ()), *(mirror.replaced if mirror else ())])
            self._keeping.actor_dead(actor_id)
        if self._holding is not None:
            self._holding.actor_dead(actor_id)
        self._drop(actor_id)

    def _drop(self, actor_id: bytes) -> None:
        """Its log is of no use here any more."""
        mirror = self._mirrors.pop(actor_id, None)
        page = self._pages.pop(actor_id, None)
        if page is not None:
            page.close()
        known = self._logs.drop(actor_id)
        if known is None:
            return
        stored = known.stored()
        if self._holding is not None:
            self._holding.forget(actor_id)
        if self._keeping is not None:
            self._keeping.forget([*stored, *(mirror.replaced if mirror is not None else ())])
        self._objects.handle(events.ProcessDied(actor_id, "its actor is dead"))
        self._objects.owner_gone(actor_id)
        if stored:
            self._free(stored)

    # ---------------------------------------------------------------- what an actor writes

    def on_record(self, process: Process, message: RecordCall) -> None:
        """A call begins."""
        noted = self._logs.record(message)
        if not noted:
            self._let_go(process.worker_id, message.actor_id, Kept(message.refs, message.stored))
        else:
            if message.stored:
                self._keep(message.actor_id, message.incarnation, message.stored)
            if message.refs and self._holding is not None:
                self._holding.want(
                    message.actor_id, position_of(message.index, False), message.refs, message.incarnation
                )
        self._promise(process, message.actor_id, noted)

    def on_checkpoint(self, process: Process, message: StoreCheckpoint) -> None:
        """A state is to be kept."""
        noted = self._incarnation(message.actor_id) == message.incarnation
        gone = self._logs.checkpointed(message)
        self._let_go(process.worker_id, message.actor_id, gone)
        mirror = self._mirrors.get(message.actor_id)
        if noted and mirror is not None:
            mirror.lacks_checkpoint = True
            mirror.lacks_places |= bool(gone.stored)
            mirror.inherited, mirror.has_own = None, True
            mirror.replaced += gone.stored
            if type(message.state) is Stored:
                self._keep(message.actor_id, message.incarnation, [message.state.oid])
            if message.refs and self._holding is not None:
                self._holding.want(
                    message.actor_id, position_of(message.index, True), message.refs, message.incarnation
                )
        self._promise(process, message.actor_id, noted)

    def _let_go(self, sender: bytes, actor_id: bytes, gone: Kept) -> None:
        if gone.refs:
            self._objects.handle(events.Released(sender, gone.refs, actor_id))
        if gone.stored:
            self._free(gone.stored)

    def _keep(self, actor_id: bytes, incarnation: int, oids: list[bytes]) -> None:
        """Objects in the store belong to a log: another node is to have them, too."""
        mirror = self._mirrors.get(actor_id)
        if self._keeping is not None and mirror is not None:
            mirror.lacks_places = True
            self._keeping.want(actor_id, incarnation, oids)

    def _on_settled(self, actor_id: bytes) -> None:
        """It has become clear where an object of a log is."""
        mirror = self._mirrors.get(actor_id)
        if mirror is not None:
            mirror.lacks_places = True
            self._tell_soon(actor_id)

    # ---------------------------------------------------------------- the GCS

    def _promise(self, process: Process, actor_id: bytes, noted: bool) -> None:
        """What was written waits for the GCS; what is of a former life waits for ever."""
        if self._gcs is None:
            return
        self._promises -= 1
        self._objects.handle(events.Promised(process.worker_id, self._promises))
        mirror = self._mirrors.get(actor_id)
        if noted and mirror is not None:
            mirror.promises.append(self._promises)
            self._tell_soon(actor_id)

    def _tell_soon(self, actor_id: bytes) -> None:
        """Tell the GCS; what else stands in the worker's socket is read first."""
        self._loop.call_soon(self._tell, actor_id)

    def _tell(self, actor_id: bytes) -> None:
        """Bring to the GCS what it does not have."""
        mirror, known = self._mirrors.get(actor_id), self._logs.get(actor_id)
        if mirror is None or known is None or self._gcs is None or mirror.asking:
            return
        if not (mirror.promises or mirror.lacks_places) or not self._is_settled(actor_id, known):
            return
        checkpoint = None
        if mirror.lacks_checkpoint:
            checkpoint = known.checkpoint if type(known.checkpoint) is bytes else b""
        first = max(mirror.sent, known.index) + 1
        body = {
            "actor_id": actor_id,
            "incarnation": known.incarnation,
            "index": known.index,
            "checkpoint": checkpoint,
            "first": first,
            "records": [record for record, _, _ in known.records[first - known.index - 1 :]],
            "places": self._places(mirror, known) if mirror.lacks_places else None,
        }
        mirror.asking = True
        told = Told(mirror.promises, known.incarnation)
        if mirror.lacks_checkpoint:
            told.covers, told.replaced, mirror.replaced = known.index, mirror.replaced, []
            told.former = mirror.claimed_by if mirror.has_own and known.index >= mirror.claimed else 0
        mirror.lacks_checkpoint = mirror.lacks_places = False
        mirror.sent, mirror.promises = known.last, []

        def answered(body: Any, error: list[str]) -> None:
            self._on_told(actor_id, mirror, told, body, error)

        self._gcs.call("gcs.actor_log_append", body, answered)

    def _is_settled(self, actor_id: bytes, known: ActorLog) -> bool:
        """Whether what is new is safe on other nodes, too, as far as it can be."""
        if self._holding is not None and not self._holding.is_settled(actor_id):
            return False
        return self._keeping is None or self._keeping.is_settled(known.stored())

    def _places(self, mirror: Mirror, known: ActorLog) -> bytes:
        """Where the objects of a log are, for its next life."""
        assert self._keeping is not None, "of a node in a cluster"
        checkpoint = known.checkpoint.oid if type(known.checkpoint) is Stored else b""
        arguments = [oid for _, _, stored in known.records for oid in stored]
        places = self._keeping.places(checkpoint, arguments)
        if mirror.inherited is not None:
            places.checkpoint = mirror.inherited.checkpoint
            places.arguments[:0] = mirror.inherited.arguments
        return msgspec.msgpack.encode(places)

    def _on_told(self, actor_id: bytes, mirror: Mirror, told: Told, body: Any, error: list[str]) -> None:
        """The answer of the GCS."""
        mirror.asking = False
        if self._mirrors.get(actor_id) is not mirror:
            return
        if error or (body["accepted"] and body["last"] < mirror.sent):
            mirror.promises[:0] = told.promises
            mirror.replaced[:0] = told.replaced
            mirror.sent, mirror.lacks_checkpoint, mirror.lacks_places = 0, True, self._keeping is not None
            self._loop.call_later(AGAIN_S if error else 0.0, self._tell, actor_id)
        elif body["accepted"]:
            for number in told.promises:
                self._objects.handle(events.PromiseKept(number))
            if told.covers >= 0:
                self._let_go_elsewhere(actor_id, mirror, told)
            self._tell(actor_id)
        else:
            log.warning("actor %s lives on another node by now: what it says here is refused", actor_id.hex())

    def _let_go_elsewhere(self, actor_id: bytes, mirror: Mirror, told: Told) -> None:
        """The GCS has a new checkpoint."""
        if self._keeping is None or self._holding is None:
            return
        if told.replaced:
            self._keeping.unwanted(told.replaced)
        self._holding.covered(actor_id, position_of(told.covers, True), told.former)
        if told.former:
            mirror.claimed_by = 0
            self._keeping.free_former(actor_id, told.former)

    def statistics(self) -> dict[str, int]:
        """Sizes of the tables."""
        keeping = self._keeping.statistics() if self._keeping is not None else {}
        holding = self._holding.statistics() if self._holding is not None else {}
        return {**self._logs.statistics(), **keeping, **holding}
