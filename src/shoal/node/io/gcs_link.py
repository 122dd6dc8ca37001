"""The daemon's line to the GCS, usable before it is connected and while the GCS server is away.

Purpose: whoever has something to say to the GCS says it once; that it arrives is this part's business.

Design: what was said is kept, in order and under a number, until it is confirmed: calls by their answer, reports (news of actors, trace events) by
`Acknowledged`. When the connection ends, another one is made, and all that is kept is said again with the same numbers, so that the GCS knows
what it has done already; then `on_connected` tells what the GCS must know anew (lives of actors, subscriptions).

    call, report -> kept -> sent -> answered or acknowledged: forgotten
                      ^       `- the connection ends: connect, register, send all that is kept
                      `--------------------'

Calls are answered by a callback, with the error as [kind, text], so no handler of the daemon ever waits. While the GCS is away at most
GCS_QUEUE_MAX things are kept: then calls are refused, and trace events dropped and counted.

A server that cannot be reached, or owes an answer and is silent for GCS_SILENT_S, is reported by `on_stuck`, again and again: whoever owns
the process ends it, or the node.

What it does not do: start a GCS server (`gcs_process`), know what it is told.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shoal.gcs.client import GcsCallError, GcsClient, GcsLostError, find_head
from shoal.protocol.gcs_messages import GcsPush, HeartbeatAcknowledged, NodeLoad, RegisterNode, TaskEventBatch
from shoal.protocol.limits import CONNECT_TIMEOUT_S, GCS_QUEUE_MAX, GCS_SILENT_S

if TYPE_CHECKING:
    from shoal.node.io.gcs_shards import GcsShards
    from shoal.node.shard_lines import Then

log = logging.getLogger("shoal.node")

#: after a connection ended it is looked whether there is another
TROUBLE_AFTER_S = 2.0
#: with other addresses to try, one has so long to answer
ADDRESS_WAIT_S = 1.0
#: after a connection that did not come to a registration
REFUSED_PAUSE_S = 0.005
REFUSALS_MAX = 100
CLOCK_SKEW_WARNED_S = 1.0


@dataclass(slots=True)
class _Call:
    """A call that is not answered."""

    method: str
    body: dict[str, Any]
    then: Then | None


class GcsLink:
    """One node's line to its GCS.

    Args:
        on_push: what the GCS sends unasked.
        on_connected: called after each registration, when all that was kept has been said again: now `tell` reaches the GCS.
        on_stuck: called with the reason when the server does not answer.
        on_refused: called with the reason, once, when this node may not belong to the cluster: it is not asked again.
    """

    def __init__(
        self,
        on_push: Callable[[GcsPush], None],
        on_connected: Callable[[], None],
        on_stuck: Callable[[str], None],
        on_refused: Callable[[str], None],
    ) -> None:
        self._on_push = on_push
        self._on_connected = on_connected
        self._on_stuck = on_stuck
        self._on_refused = on_refused
        self._loop: asyncio.AbstractEventLoop | None = None
        #: where it may be: the first is tried first
        self._addresses: list[str] = [""]
        #: where the address of a head that took over is noted; "" if nowhere
        self._storage = ""
        #: whether a head that is lost may come back where it was
        self.may_return = False
        #: called with the address when the GCS answers at another one than before
        self.on_moved: Callable[[str], None] = lambda address: None
        self._token = b""
        self._gateway = ""
        self._node: RegisterNode | None = None
        #: takes what belongs to other shards of the GCS; None while this is the only one
        self.elsewhere: GcsShards | None = None
        #: called with the addresses of the other shards, if there are any, before the first registration is told
        self.on_shards: Callable[[list[str]], None] = lambda addresses: None
        #: called when a registered connection ends
        self.on_lost: Callable[[], None] = lambda: None
        #: called TROUBLE_AFTER_S after a registered connection ended, and when there is one again
        self.on_trouble: Callable[[], None] = lambda: None
        self.on_back: Callable[[], None] = lambda: None
        #: what is known of why the GCS is away; "" for nothing
        self.why: Callable[[], str] = lambda: ""
        #: None while there is no registered connection
        self._client: GcsClient | None = None
        #: since when
        self._away_at = 0.0
        self._closed = False
        #: what was said and is not confirmed, by number, in order: a call or a report
        self._kept: dict[int, Any] = {}
        self._last_number = 0
        #: numbers of the reports sent on this connection and not acknowledged, in order
        self._unacknowledged: deque[int] = deque()
        #: how many reports of this connection are acknowledged
        self._acknowledged = 0
        self._connecting: asyncio.Task[None] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._heard_s = 0.0
        #: a heartbeat was sent and not acknowledged
        self._beat_owed = False
        #: what the GCS calls this node; 0 for the head, and before the first registration
        self.node_no = 0
        #: when the RegisterNode that the GCS accepted last was sent, by `monotonic_ns`
        self.registered_ns = 0
        #: connections after the first one
        self.reconnects = 0
        self.dropped = 0
        #: how far this machine's clock is ahead of the GCS's, as far as that is certain
        self.clock_skew_s = 0.0

    def start(
        self,
        loop: asyncio.AbstractEventLoop,
        address: str,
        node: RegisterNode,
        token: bytes = b"",
        gateway: str = "",
        others: Sequence[str] = (),
    ) -> None:
        """Connect and register in the background.

        Args:
            address: the path of a socket, or "tcp:HOST:PORT".
            others: where it may be too, one day.
            token: the cluster's; for TCP.
            gateway: of a node whose cluster uses TLS.
        """
        self._loop, self._node = loop, node
        self._away_at = loop.time()
        self._addresses = [address, *(other for other in others if other != address)]
        self._token, self._gateway = token, gateway
        self._dial()

    def redirect(self, address: str) -> None:
        """It is somewhere else now."""
        if address == self._addresses[0]:
            return
        self._addresses[0] = address
        if self._client is not None:
            self._client.close()
            self._lost("it has moved")
        elif self._connecting is not None and not self._closed:
            self._connecting.cancel()  # at the old address it might try for long
            self._dial()

    def _dial(self) -> None:
        assert self._loop is not None, "started"
        self._connecting = self._loop.create_task(self._connect())
        self._connecting.add_done_callback(self._dialled)

    def _dialled(self, task: asyncio.Task[None]) -> None:
        """An error of ours must not leave the node without a GCS and without a word."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("internal error while connecting to the GCS; please report it", exc_info=error)
            self._on_stuck(repr(error))
            if self._client is None and self._loop is not None:
                self._loop.call_later(1.0, self._dial)

    # ---------------------------------------------------------------- the connection

    async def _connect(self) -> None:
        assert self._node is not None, "started"
        refusals = 0
        home = self._addresses[0]
        while not self._closed:
            client = None
            address = self._addresses[0]
            elsewhere = self.may_move
            try:
                client = await GcsClient.connect(
                    address,
                    self._node.node_id,
                    self._push,
                    self._lost,
                    on_acknowledged=self._on_acknowledged,
                    token=self._token,
                    gateway=self._gateway,
                    timeout_s=ADDRESS_WAIT_S if elsewhere else CONNECT_TIMEOUT_S,
                )
                self._node.time_s = time.time()
                sent_ns = time.monotonic_ns()
                registered = await client.register(self._node, GCS_SILENT_S)
                if registered.refused:
                    self.close()
                    client.close()
                    self._on_refused(registered.refused)
                    return
                self.may_return = registered.is_kept
                self._storage = registered.storage if address.startswith("tcp:") else ""
                if registered.shards:
                    self.on_shards(registered.shards)
                if address != home:
                    self.on_moved(address)
                self.registered_ns = sent_ns
                self._note_skew(registered.time_s)
                self.node_no = self._node.node_no = registered.node_no
            except asyncio.CancelledError:
                if client is not None:
                    client.close()
                raise
            except GcsLostError as error:
                refusals += 1
                # It did not come; or it came and says nothing; or it ends every connection (one may be that of a server just killed).
                if client is None or not client.lost or refusals % REFUSALS_MAX == 0:
                    self._on_stuck(str(error))
                if client is not None:
                    client.close()
                if client is None and elsewhere:
                    await self._look_elsewhere()
                await asyncio.sleep(REFUSED_PAUSE_S)
                continue
            if not client.lost:
                self._begin(client)
                return

    async def _look_elsewhere(self) -> None:
        """Nobody answers where the GCS was: it may have another head, whose address its storage tells."""
        self._addresses.append(self._addresses.pop(0))
        found = await find_head(self._storage) if self._storage else ""
        if found:
            self._addresses = [found, *(address for address in self._addresses if address != found)]

    def _note_skew(self, gcs_time_s: float) -> None:
        """Times of events of different nodes are compared by people."""
        assert self._node is not None, "started"
        if not gcs_time_s:
            return
        # The GCS wrote its time between the request and the answer.
        early_s, late_s = self._node.time_s - gcs_time_s, time.time() - gcs_time_s
        self.clock_skew_s = early_s if early_s > 0 else late_s if late_s < 0 else 0.0
        warning = self.skew_warning()
        if warning:
            log.warning("%s", warning)

    def skew_warning(self) -> str:
        """What is to be said of this machine's clock; "" when it is right."""
        if abs(self.clock_skew_s) <= CLOCK_SKEW_WARNED_S:
            return ""
        return (
            f"this machine's clock is {abs(self.clock_skew_s):.1f} s {'ahead of' if self.clock_skew_s > 0 else 'behind'} the head node's: times in "
            "the timeline and in logs will not fit together. Let both machines keep time by NTP (`timedatectl set-ntp true`)"
        )

    def _begin(self, client: GcsClient) -> None:
        """A new connection is registered: say again what is not confirmed."""
        self._client = client
        self._beat_owed = False
        self._acknowledged = 0
        self._unacknowledged.clear()
        self._hear()
        for number, said in list(self._kept.items()):
            self._transmit(client, number, said)
        self._on_connected()
        self.on_back()

    def _lost(self, _reason: str) -> None:
        if self._closed or self._client is None:
            return  # while it connects, `_connect` sees to it
        self._client = None
        self.on_lost()
        self.reconnects += 1
        assert self._loop is not None, "started"
        self._away_at = self._heard_s if self._is_owed else self._loop.time()  # it had said nothing before
        self._loop.call_later(TROUBLE_AFTER_S, self.on_trouble)
        self._dial()

    def _hear(self) -> None:
        """The server has said something, or was asked while nothing was owed: its time begins anew."""
        assert self._loop is not None, "started"
        self._heard_s = self._loop.time()
        if self._watch is None and not self._closed:
            self._watch = self._loop.call_later(GCS_SILENT_S, self._look)

    def _look(self) -> None:
        """Is an answer owed for too long?"""
        self._watch = None
        if self._closed or self._client is None or not self._is_owed:
            return
        assert self._loop is not None, "started"
        silent_s = self._loop.time() - self._heard_s
        pause_s = GCS_SILENT_S - silent_s if silent_s < GCS_SILENT_S else GCS_SILENT_S
        self._watch = self._loop.call_later(max(0.1, pause_s), self._look)
        if silent_s >= GCS_SILENT_S:
            self._on_stuck(f"it has not answered for {silent_s:.0f} s")

    @property
    def _is_owed(self) -> bool:
        """Whether the server is to say something."""
        return bool(self._kept) or self._beat_owed

    def _push(self, message: GcsPush) -> None:
        self._hear()
        if type(message) is HeartbeatAcknowledged:
            self._beat_owed = False
        try:
            self._on_push(message)
        except Exception:
            log.exception("internal error while handling %s of the GCS; please report it", type(message).__name__)

    def _on_acknowledged(self, count: int) -> None:
        self._hear()
        while self._acknowledged < count and self._unacknowledged:
            self._acknowledged += 1
            self._kept.pop(self._unacknowledged.popleft(), None)

    # ---------------------------------------------------------------- saying

    def report(self, message: Any) -> None:
        """Tell the GCS what it must hear, sooner or later: news of actors and trace events."""
        if self.elsewhere is not None and type(message) is TaskEventBatch and self.elsewhere.take_events(message):
            return
        if len(self._kept) >= GCS_QUEUE_MAX and type(message) is TaskEventBatch:
            if not self.dropped:
                log.warning(
                    "the GCS server is away and %d things wait for it: trace events are dropped", len(self._kept)
                )
            self.dropped += message.count
            return
        self._keep(message)

    def silent_s(self) -> float:
        """For how long there has been no connection, or on it nothing of what is owed."""
        if self._loop is None or self._closed:
            return 0.0
        if self._client is None:
            return self._loop.time() - self._away_at
        return self._loop.time() - self._heard_s if self._is_owed else 0.0

    @property
    def may_move(self) -> bool:
        """Whether another head may take the place of one that is lost."""
        return bool(self._storage) or len(self._addresses) > 1

    def is_connected(self) -> bool:
        """Whether what is told now reaches the GCS."""
        return self._client is not None

    def tell(self, message: Any) -> None:
        """Tell the GCS what `on_connected` tells anew at every connection; without a connection it is not said."""
        if self._client is not None:
            self._send(self._client, message)

    def beat(self, load: NodeLoad) -> None:
        """As `tell`, of what the GCS acknowledges at once: one that stands still is found although nobody asks it anything."""
        if self._client is not None:
            if not self._is_owed:
                self._hear()
            self._beat_owed = True
            self._send(self._client, load)

    def call(self, method: str, body: dict[str, Any], then: Then | None = None) -> None:
        """Ask the GCS; `then` gets the answer or the error, some time later."""
        if self.elsewhere is None or not self.elsewhere.take_call(method, body, then):
            self.call_here(method, body, then)

    def call_here(self, method: str, body: dict[str, Any], then: Then | None = None) -> None:
        """Ask this shard, whichever the call belongs to."""
        if len(self._kept) >= GCS_QUEUE_MAX:
            text = f"{method} was not asked: {len(self._kept)} things wait for the GCS server, which is away or slow; try again later"
            if why := self.why():
                text = f"{text}: {why}"
            if then is not None:
                then(None, ["GcsUnavailable", text])
            else:
                log.error("%s", text)
            return
        self._keep(_Call(method, body, then))

    def _keep(self, said: Any) -> None:
        if not self._is_owed and self._client is not None:
            self._hear()
        self._last_number += 1
        self._kept[self._last_number] = said
        if self._client is not None:
            self._transmit(self._client, self._last_number, said)

    def _transmit(self, client: GcsClient, number: int, said: Any) -> None:
        if type(said) is not _Call:
            self._unacknowledged.append(number)
            self._send(client, said)
            return
        # All before the oldest that is kept is confirmed.
        future = client.call_nowait(said.method, said.body, number, next(iter(self._kept)) - 1)
        future.add_done_callback(lambda answer: self._answered(number, answer))

    def _send(self, client: GcsClient, message: Any) -> None:
        try:
            client.send(message)
        except GcsLostError:
            pass  # the connection has just ended: it is said on the next one

    def _answered(self, number: int, answer: asyncio.Future[Any]) -> None:
        if answer.cancelled():
            return
        error = answer.exception()
        if isinstance(error, GcsLostError):
            return  # asked again on the next connection
        said: _Call | None = self._kept.pop(number, None)
        if said is None:
            return
        self._hear()
        if error is None:
            if said.then is not None:
                said.then(answer.result(), [])
            return
        kind, text = (error.kind, error.text) if isinstance(error, GcsCallError) else ("InternalError", repr(error))
        if said.then is not None:
            said.then(None, [kind, text])
        else:
            log.warning("the GCS refused %s: %s: %s", said.method, kind, text)

    def statistics(self) -> dict[str, int]:
        """How the line is."""
        return {
            "connected": int(self._client is not None),
            "kept": len(self._kept),
            "reconnects": self.reconnects,
            "task_events_dropped": self.dropped,
        }

    def close(self) -> None:
        """The node ends."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._watch is not None:
            self._watch.cancel()
        if self._client is not None:
            self._client.close()
