"""The door of the GCS: how a node daemon (or a command-line tool) talks to it.

Purpose: one asyncio connection with calls, messages and pushes.

Design: calls are matched to answers by number; a lost connection fails every waiting call at once and is told to `on_lost` once. Frames written
within one turn of the loop leave in one send (the transport gathers them).

What it does not do: reconnect (`node.io.gcs_link` dials again), or block.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from shoal.protocol.gcs_messages import (
    Acknowledged,
    FromGcs,
    GcsAnswer,
    GcsCall,
    GcsPush,
    NodeRegistered,
    RegisterNode,
    ToGcs,
)
from shoal.protocol.limits import CALL_TIMEOUT_S, CONNECT_TIMEOUT_S, PROTOCOL_VERSION
from shoal.protocol.messages import Hello
from shoal.wire.framing import FrameDecoder, ProtocolError, encode_frame
from shoal.wire.tcp import connect_authenticated

#: between attempts to connect: a server that is started again listens after 0.1 s
PAUSE_MAX_S = 0.01
TCP_PAUSE_MAX_S = 0.3
SILENT_HEAD_S = 10.0


class GcsCallError(Exception):
    """The GCS refused a call. `kind` is a word programs may test (ActorAlreadyExists, ActorNotFound, BadRequest, ...)."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind
        self.text = text


class GcsLostError(Exception):
    """The connection to the GCS is gone, or it did not answer in time."""


async def find_head(storage: str) -> str:
    """Where the cluster's head listens, "tcp:HOST:PORT", as it has noted in its storage; "" if that cannot be told."""
    from shoal.gcs.storage.backend import HEAD_KEY, SESSION_TABLE, StorageError, open_backend

    try:
        backend = open_backend(storage)
        try:
            return (await backend.get(SESSION_TABLE, HEAD_KEY) or b"").decode()
        finally:
            await backend.close()
    except StorageError:
        return ""


def _close_unwanted(dialling: asyncio.Future[socket.socket]) -> None:
    """Who dialled has been cancelled; the thread that did it could not be."""
    if dialling.exception() is None:
        dialling.result().close()


class GcsClient(asyncio.BufferedProtocol):
    """One connection to the GCS. Make it with `connect`."""

    def __init__(
        self,
        on_push: Callable[[GcsPush], None] | None = None,
        on_lost: Callable[[str], None] | None = None,
        on_acknowledged: Callable[[int], None] | None = None,
    ) -> None:
        self._on_push = on_push
        self._on_lost = on_lost
        self._on_acknowledged = on_acknowledged
        #: uvloop may return from connecting before it says connection_made
        self._transport: asyncio.Transport | None = None
        self._decoder: FrameDecoder[Any] = FrameDecoder(FromGcs)
        self._last_request = 0
        #: calls sent and not answered, by number
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        #: waits for NodeRegistered
        self._registration: asyncio.Future[NodeRegistered] | None = None
        #: why the connection ended; empty while it lives
        self.lost = ""

    @classmethod
    async def connect(
        cls,
        address: str,
        speaker_id: bytes,
        on_push: Callable[[GcsPush], None] | None = None,
        on_lost: Callable[[str], None] | None = None,
        timeout_s: float = CONNECT_TIMEOUT_S,
        on_acknowledged: Callable[[int], None] | None = None,
        token: bytes = b"",
        gateway: str = "",
    ) -> GcsClient:
        """Connect to the socket at `address`, which need not exist yet.

        Args:
            address: a path, or "tcp:HOST:PORT".
            speaker_id: the NodeID of a daemon, or any id of 16 bytes.
            on_push: called with what the GCS sends unasked.
            on_lost: called once with the reason when the connection ends, unless `close` ended it.
            on_acknowledged: called with the number of this connection's reports that are stored.
            token: the cluster's, for TCP.
            gateway: this node's TLS gateway, as for `wire.tcp.connect_authenticated`.

        Raises:
            GcsLostError: nobody answered at `address` within `timeout_s`, or not this cluster.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        pause_s = 0.001
        while True:
            try:
                if address.startswith("tcp:"):
                    # A machine that is gone answers nothing, and must be known to be gone although there is always something on its way to it.
                    dial = partial(
                        connect_authenticated, address, token, timeout_s, gateway=gateway, silent_s=SILENT_HEAD_S
                    )
                    dialling = loop.run_in_executor(None, dial)
                    try:
                        sock = await asyncio.shield(dialling)
                    except asyncio.CancelledError:
                        dialling.add_done_callback(_close_unwanted)
                        raise
                    sock.setblocking(False)
                    _, client = await loop.create_connection(lambda: cls(on_push, on_lost, on_acknowledged), sock=sock)
                else:
                    _, client = await loop.create_unix_connection(
                        lambda: cls(on_push, on_lost, on_acknowledged), address
                    )
                break
            except OSError as error:
                if loop.time() >= deadline:
                    raise GcsLostError(f"no GCS server at {address} within {timeout_s:g} s: {error}") from None
                await asyncio.sleep(pause_s)
                pause_s = min(TCP_PAUSE_MAX_S if address.startswith("tcp:") else PAUSE_MAX_S, pause_s * 1.5)
        client.send(Hello(PROTOCOL_VERSION, speaker_id, b"", os.getpid()))
        return client

    async def register(self, node: RegisterNode, timeout_s: float = CALL_TIMEOUT_S) -> NodeRegistered:
        """Present a node and wait for the answer.

        Raises:
            GcsLostError: the connection ended, or no answer came within `timeout_s`.
        """
        self._registration = asyncio.get_running_loop().create_future()
        self.send(node)
        answer: NodeRegistered = await self._within(self._registration, timeout_s, "RegisterNode")
        return answer

    async def call(self, method: str, body: dict[str, Any] | None = None, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """Call a method of the GCS (listed in `gcs_messages`) and return the answer's body.

        Raises:
            GcsCallError: the GCS refused.
            GcsLostError: the connection ended, or no answer came within `timeout_s`.
        """
        return await self._within(self.call_nowait(method, body), timeout_s, method)

    def call_nowait(
        self, method: str, body: dict[str, Any] | None = None, request: int = 0, settled: int = 0
    ) -> asyncio.Future[Any]:
        """Like `call`, but the request is written before this returns: calls are served in the order written.

        Args:
            request: the caller's own number for it, as in GcsCall; 0 for the next one. On one connection use one or the other.
            settled: as in GcsCall.
        """
        if not request:
            self._last_request += 1
            request = self._last_request
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[request] = future
        try:
            self.send(GcsCall(request, method, body or {}, settled))
        except GcsLostError as error:
            del self._waiting[request]
            future.set_exception(error)
        return future

    def send(self, message: ToGcs) -> None:
        """Write a message that has no answer.

        Raises:
            GcsLostError: the connection has ended.
        """
        if self._transport is None or self.lost:
            raise GcsLostError(f"the GCS cannot be told {type(message).__name__}: {self.lost or 'not connected'}")
        self._transport.write(encode_frame(message))

    def close(self) -> None:
        """End the connection; waiting calls fail. `on_lost` is not called."""
        self._on_lost = None
        if self._transport is not None:
            self._transport.close()
        self._end("closed by this side")

    async def _within(self, future: asyncio.Future[Any], timeout_s: float, what: str) -> Any:
        try:
            return await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            raise GcsLostError(f"the GCS did not answer {what} within {timeout_s:g} s") from None

    # ------------------------------------------------------------ asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._decoder.writable()

    def buffer_updated(self, count: int) -> None:
        try:
            for message in self._decoder.received(count):
                self._take(message)
        except ProtocolError as error:
            assert self._transport is not None
            self._transport.abort()
            self._end(f"the GCS sent garbage: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        self._end(f"the connection to the GCS ended{f': {error}' if error else ''}")

    def _take(self, message: FromGcs) -> None:
        if isinstance(message, GcsAnswer):
            if message.request == 0:
                self._end(f"the GCS closed the connection: {' '.join(message.error)}")
                return
            future = self._waiting.pop(message.request, None)
            if future is None or future.done():
                return  # timed out meanwhile
            if message.error:
                future.set_exception(GcsCallError(message.error[0], message.error[-1]))
            else:
                future.set_result(message.body)
        elif isinstance(message, NodeRegistered):
            if self._registration is not None and not self._registration.done():
                self._registration.set_result(message)
        elif isinstance(message, Acknowledged):
            if self._on_acknowledged is not None:
                self._on_acknowledged(message.count)
        elif self._on_push is not None:
            self._on_push(message)

    def _end(self, reason: str) -> None:
        if self.lost:
            return
        self.lost = reason
        waiting = list(self._waiting.values())
        self._waiting.clear()
        if self._registration is not None:
            waiting.append(self._registration)
        for future in waiting:
            if not future.done():
                future.set_exception(GcsLostError(reason))
        if self._on_lost is not None:
            self._on_lost(reason)


def try_storage(storage: str) -> None:
    """Open the storage of this name as a GCS server would, read from it and close it again.

    Raises:
        ConnectionError: it cannot be used; the text says why.
    """
    from shoal.gcs.storage.backend import StorageError, try_backend

    try:
        try_backend(storage)
    except StorageError as error:
        raise ConnectionError(str(error)) from None
