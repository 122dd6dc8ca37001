"""The daemon's line to the GCS, usable before it is connected.

Purpose: whoever has something to say to the GCS says it at once; the GCS server starts at the same time as the daemon and may come later.

Design: messages and calls said before the node is registered wait in order. Calls are answered by a callback, with the error as
[kind, text], so no handler of the daemon ever waits.

What it does not do: reconnect. A node whose GCS is lost ends (`on_lost`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from shoal.gcs.client import GcsCallError, GcsClient, GcsLostError
from shoal.protocol.gcs_messages import GcsPush, RegisterNode

log = logging.getLogger("shoal.node")

Then = Callable[[Any, list[str]], None]  #: (body, error): error is empty or [kind, text]


class GcsLink:
    """One node's line to its GCS.

    Args:
        on_push: what the GCS sends unasked.
        on_lost: called once with the reason when the GCS cannot be reached (any more).
    """

    def __init__(self, on_push: Callable[[GcsPush], None], on_lost: Callable[[str], None]) -> None:
        self._on_push = on_push
        self._on_lost = on_lost
        self._client: GcsClient | None = None
        self._closed = False
        #: said before the line was up, in order
        self._early: list[Callable[[GcsClient], None]] = []
        self._connecting: asyncio.Task[None] | None = None

    def start(self, loop: asyncio.AbstractEventLoop, path: str, node: RegisterNode) -> None:
        """Connect and register in the background."""
        self._connecting = loop.create_task(self._connect(path, node))

    async def _connect(self, path: str, node: RegisterNode) -> None:
        try:
            client = await GcsClient.connect(path, node.node_id, self._push, self._lost)
            await client.register(node)
        except GcsLostError as error:
            self._lost(str(error))
            return
        except Exception as error:
            log.exception("internal error while connecting to the GCS; please report it")
            self._lost(repr(error))
            return
        self._client = client
        early, self._early = self._early, []
        for say in early:
            say(client)

    def _push(self, message: GcsPush) -> None:
        try:
            self._on_push(message)
        except Exception:
            log.exception("internal error while handling %s of the GCS; please report it", type(message).__name__)

    def _lost(self, reason: str) -> None:
        if not self._closed:
            self._closed = True
            self._on_lost(reason)

    def send(self, message: Any) -> None:
        """Tell the GCS something that has no answer."""
        if self._client is None:
            self._early.append(lambda client: self._send(client, message))
        else:
            self._send(self._client, message)

    def _send(self, client: GcsClient, message: Any) -> None:
        try:
            client.send(message)
        except GcsLostError as error:
            self._lost(str(error))

    def call(self, method: str, body: dict[str, Any], then: Then | None = None) -> None:
        """Ask the GCS; `then` gets the answer or the error, some time later."""
        if self._client is None:
            self._early.append(lambda client: self._call(client, method, body, then))
        else:
            self._call(self._client, method, body, then)

    def _call(self, client: GcsClient, method: str, body: dict[str, Any], then: Then | None) -> None:
        def answered(future: asyncio.Future[Any]) -> None:
            if future.cancelled():
                return
            error = future.exception()
            if error is None:
                if then is not None:
                    then(future.result(), [])
                return
            kind, text = (error.kind, error.text) if isinstance(error, GcsCallError) else ("GcsLostError", str(error))
            if then is not None:
                then(None, [kind, text])
            else:
                log.warning("the GCS refused %s: %s: %s", method, kind, text)

        client.call_nowait(method, body).add_done_callback(answered)

    def close(self) -> None:
        """The node ends."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._client is not None:
            self._client.close()
