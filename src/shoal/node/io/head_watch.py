"""Looks whether the head's daemon lives while the GCS does not answer, and gives the head up when it has not for long.

Purpose: the shell of `node/head_patience.py` on a node that joined a cluster.

Design: a question is a connection to the head's daemon on which both prove the token, made on a thread of its own, so that neither a daemon that
stands still nor a full pool of threads delays anything or is delayed. The answer is given by the daemon's loop: a kernel that accepts for a frozen
process is no sign of life. Nothing is asked and no timer runs while the GCS answers.

What it does not do: connect to the GCS (`gcs_link`); say what ails it (`gcs_health`).
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable

from shoal.node.head_patience import (
    Effect,
    Event,
    GcsAnswers,
    GcsAway,
    GiveUp,
    HeadPatience,
    HeadProbed,
    ProbeHead,
    TimePassed,
    WakeAt,
)
from shoal.node.io.gcs_link import GcsLink
from shoal.node.io.node_links import NodeLinks
from shoal.protocol.gcs_messages import NodeEntry
from shoal.protocol.limits import GCS_RECONNECT_TIMEOUT_S, GCS_RETURN_TIMEOUT_S

SILENT_S = 1.0  #: a GCS that owes something for less answers


class HeadWatch:
    """One node's watch over its cluster's head.

    Args:
        dial: connects to a daemon and proves the token; blocking, raises ConnectionError.
        timeout_s: how long nothing may be heard of the head; 0: for ever; None: GCS_RECONNECT_TIMEOUT_S, GCS_RETURN_TIMEOUT_S when its tables are
            kept, for ever when a head elsewhere may take its place.
        on_lost: called when the head's daemon does not answer either.
        give_up: ends the node, with the reason.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        links: NodeLinks,
        gcs: GcsLink,
        dial: Callable[[str], socket.socket],
        timeout_s: float | None,
        on_lost: Callable[[], None],
        give_up: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._links = links
        self._gcs = gcs
        self._dial = dial
        self._timeout_s = timeout_s
        self._on_lost = on_lost
        self._give_up = give_up
        self._patience = HeadPatience(float("inf"))
        self._timer: asyncio.TimerHandle | None = None

    def away(self) -> None:
        """The GCS does not answer, it seems."""
        silent_s = self._gcs.silent_s()
        if silent_s < SILENT_S:
            return
        timeout_s = self._timeout_s
        if timeout_s is None:
            timeout_s = GCS_RETURN_TIMEOUT_S if self._gcs.may_return else GCS_RECONNECT_TIMEOUT_S
            timeout_s = 0.0 if self._gcs.may_move else timeout_s
        self._patience.patience_s = timeout_s or float("inf")
        self._take(GcsAway(self._loop.time() - silent_s))

    def answers(self) -> None:
        """The GCS answers again."""
        self._take(GcsAnswers())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def explain(self) -> str:
        """What is to be said of the head while the GCS is away; "" when it lives, as far as is known."""
        patience = self._patience
        if not (patience.is_away and patience.is_lost):
            return ""
        left_s = patience.heard_at + patience.patience_s - self._loop.time()
        text = f"the head node {self._shown()} does not answer either, so what ran there is out of reach"
        if left_s == float("inf"):
            return f"{text}; another head may take its place: this node waits for it"
        if self._gcs.may_return:
            text = f"{text}. Its tables are kept: start it again with the same --storage and --port"
        return f"{text}; if that is so for {max(0.0, left_s):.0f} s more, this node ends (--gcs-reconnect-timeout)"

    def _take(self, event: Event) -> None:
        was_lost = self._patience.is_lost
        for effect in self._patience.handle(event, self._loop.time()):
            self._perform(effect)
        if self._patience.is_lost and not was_lost:
            self._on_lost()

    def _look(self) -> None:
        self._timer = None
        if self._gcs.silent_s() >= SILENT_S:
            self._take(TimePassed())
        else:
            self.answers()  # on the connection that there was

    def _perform(self, effect: Effect) -> None:
        if type(effect) is ProbeHead:
            head = self._head()
            threading.Thread(
                target=self._probe, args=(head.address if head is not None else "",), name="head-probe", daemon=True
            ).start()
        elif type(effect) is GiveUp:
            self._give_up(self._reason(effect.since))
        elif type(effect) is WakeAt:
            self._timer = self._loop.call_at(effect.at, self._look)

    def _probe(self, address: str) -> None:
        """On a thread."""
        lives = False
        try:
            if address:
                self._dial(address).close()
                lives = True
        except (OSError, ValueError):
            pass
        try:
            self._loop.call_soon_threadsafe(self._take, HeadProbed(lives))
        except RuntimeError:
            pass  # the node has ended meanwhile

    def _head(self) -> NodeEntry | None:
        return next((entry for entry in self._links.nodes.values() if entry.is_head), None)

    def _shown(self) -> str:
        head = self._head()
        if head is None:
            return "(which is dead)"
        address = head.address.removeprefix("tcp:")
        name = head.name if head.name not in ("", address) else head.node_id.hex()[:8]
        return f"{name} at {address} ({head.hostname})"

    def _reason(self, since: float) -> str:
        silent_s = self._loop.time() - since
        at = time.strftime("%H:%M:%S", time.localtime(time.time() - silent_s))
        return (
            f"the head node {self._shown()} is lost: neither its daemon nor the GCS has answered since {at}, for {silent_s:.0f} s "
            "(--gcs-reconnect-timeout). Begin the cluster anew: `shoal start --head` there, then the other nodes. A head with "
            "--storage=sqlite:PATH that is started again in time goes on with its cluster, with --storage=redis://... one on another machine too"
        )
