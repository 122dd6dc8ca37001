"""The GCS server process: a Unix socket, and for a cluster a TCP one, in front of one shard.

Purpose: carry bytes to `GcsShard` and perform its effects.

Design: one uvloop thread. What needs no write is sent at once. Writes are gathered while a commit runs and committed together, and sends wait
for the writes before them (group commit), so the order of answers is the order of requests. The process ends, and removes the session's
folder, when the node daemon (its parent) has died; SIGTERM ends it in order.

A bad frame closes its connection and nothing else. A storage that fails ends the process: what it promised could not be kept. Whoever started
it starts another one, which reads the tables and goes on; rows that tell of another session (`sqlite:PATH` may be used again) are dropped.

What it does not do: decide anything (`shard`); prove tokens (`wire.tcp_listener` hands on only connections that have).
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Coroutine
from typing import Any, cast

import uvloop

from shoal.gcs.shard import GcsShard
from shoal.gcs.shard_events import (
    CloseConnection,
    ConnectionLost,
    Effect,
    MessageReceived,
    NodeAnswers,
    NodeRefuses,
    ProbeNode,
    Send,
    TimePassed,
)
from shoal.gcs.storage.backend import (
    SESSION_TABLE,
    Backend,
    ClaimRefusedError,
    StorageAwayError,
    StorageError,
    Write,
    open_backend,
)
from shoal.protocol.gcs_messages import GcsAnswer, GcsCall, ToGcs
from shoal.protocol.limits import FRAME_BYTES_MAX, GCS_REFUSED_EXIT, GCS_STORAGE_AWAY_EXIT
from shoal.protocol.storage_names import outlives_machine
from shoal.system.janitor import remove_session
from shoal.system.process import open_pidfd, set_process_title, wait_readable
from shoal.system.token_file import cluster_token
from shoal.wire.framing import FrameDecoder, ProtocolError, encode_frame
from shoal.wire.handshake import ClientHandshake
from shoal.wire.tcp import parse_address
from shoal.wire.tcp_listener import TcpListener

LISTEN_BACKLOG = 128
TIMER_MIN_S = 0.01
#: asking whether a node whose connection ended still listens
PROBE_TIMEOUT_S = 1.0
PROBE_PAUSES_S = (0.02, 0.1, 0.1, 0.2, 0.4, 0.8, 1.6)
PROBE_REFUSALS = 2  #: in a row
PROBE_AGAIN_S = 0.5  #: between questions to a node that looks for this server
PROBES_AT_ONCE_MAX = 64  #: of those
#: of SESSION_TABLE, one row: which shard of how many
SHARDS_KEY = b"shards"


class _Peer(asyncio.BufferedProtocol):
    """The socket of one connection."""

    def __init__(self, server: GcsServer, leftover: bytes = b"") -> None:
        self._server = server
        #: what was read of the connection already
        self._leftover = leftover
        self._decoder: FrameDecoder[Any] = FrameDecoder(ToGcs)
        self.number = 0
        self.transport: asyncio.Transport | None = None
        #: why this side closed it
        self.closing = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._server.add_peer(self)
        if self._leftover:
            self._decoder.writable()[: len(self._leftover)] = self._leftover
            self.buffer_updated(len(self._leftover))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._decoder.writable()

    def buffer_updated(self, count: int) -> None:
        try:
            for message in self._decoder.received(count):
                if self.closing:
                    return
                self._server.take(self.number, message)
        except ProtocolError as error:
            self.close(str(error))

    def connection_lost(self, error: Exception | None) -> None:
        self._server.remove_peer(self, self.closing or (str(error) if error else "the connection was closed"))

    def send(self, frame: bytearray) -> None:
        """Write a frame, unless the other side has stopped reading for too long."""
        transport = self.transport
        if transport is None or self.closing:
            return
        transport.write(frame)
        if transport.get_write_buffer_size() > FRAME_BYTES_MAX:
            self.closing = "it does not read what it is sent"
            transport.abort()

    def close(self, reason: str) -> None:
        """Say why and close."""
        if not self.closing and self.transport is not None:
            self.send(encode_frame(GcsAnswer(0, None, ["ConnectionRefused", reason])))
            self.closing = reason
            self.transport.close()


class GcsServer:
    """The shell around one shard. Use: `await start()`, then `await stop()`; `failed` is set when the storage failed.

    Args:
        session: a name; what is stored of the lives of another session is dropped.
        shard, shards: which shard this is, of how many.
        fresh: the session begins with this server: where the storage is shared it takes over from one whose server is gone.
        storage: told to nodes, if a head elsewhere can go on with it.
    """

    def __init__(
        self,
        socket_path: str,
        backend: Backend,
        session: str = "",
        shard: int = 0,
        shards: int = 1,
        fresh: bool = True,
        storage: str = "",
    ) -> None:
        self._fresh = fresh
        self._renewing: asyncio.Task[None] | None = None
        self._stop_renewing = asyncio.Event()
        self._socket_path = socket_path
        self._backend = backend
        self._session = session.encode()
        self._timer: asyncio.TimerHandle | None = None
        #: when it is due; infinite without one
        self._timer_at = math.inf
        self._clock_offset_s = time.time() - time.monotonic()
        self.shard = GcsShard(os.getpid(), shard=shard, shards=shards, storage=storage, is_kept=backend.is_kept)
        self._shards = b"%d/%d" % (shard, shards)
        self._peers: dict[int, _Peer] = {}
        self._last_number = 0
        self._listener: asyncio.Server | None = None
        self._tcp: TcpListener | None = None
        #: asks nodes that look for this server; b"" when they would not answer it (TLS)
        self._token = b""
        #: nodes to be asked whether they live, when this server can be found
        self._searching: list[ProbeNode] = []
        #: proved connections that are not peers yet
        self._arriving: set[asyncio.Task[Any]] = set()
        #: gathered while a commit runs
        self._writes: list[Write] = []
        self._after_writes: list[Send | CloseConnection | ProbeNode] = []
        self._stopping = False
        self._probes: set[asyncio.Task[None]] = set()
        self._commit: asyncio.Task[None] | None = None
        self.failed = asyncio.Event()
        #: what the process ends with then
        self.exit_code = 1

    async def start(self) -> None:
        """Read the tables and listen.

        Raises:
            StorageError: the tables cannot be read.
            OSError: the socket cannot be bound.
        """
        await self._restore()
        listening = _bind(self._socket_path)
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_unix_server(lambda: _Peer(self), sock=listening, backlog=LISTEN_BACKLOG)

    def listen_for_nodes(self, sock: socket.socket, token: bytes) -> None:
        """Accept other nodes on `sock`, which listens already; after `start`."""
        loop = asyncio.get_running_loop()

        def accepted(proved: socket.socket, leftover: bytes) -> None:
            task = loop.create_task(self._arrive(proved, leftover))
            self._arriving.add(task)
            task.add_done_callback(self._arriving.discard)

        self._tcp = TcpListener("", 0, token, loop, accepted, sock)
        self._token = token if sock.family != socket.AF_UNIX else b""
        slots = asyncio.Semaphore(PROBES_AT_ONCE_MAX)
        for effect in self._searching:
            self._keep_probe(self._probe_again(effect, slots))
        self._searching.clear()

    async def _arrive(self, sock: socket.socket, leftover: bytes) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: _Peer(self, leftover), sock)
        except OSError as error:
            print(f"shoal:gcs: a connection of another node ended at once: {error}", file=sys.stderr)
            sock.close()

    async def _restore(self) -> None:
        backend = self._backend
        await backend.claim(self._session, self._fresh)
        if backend.renew_s:
            self._renewing = asyncio.get_running_loop().create_task(self._renew())
        former = await backend.get(SESSION_TABLE, b"") or b""
        taken_over = bool(former) and former != self._session and backend.is_kept
        writes = [] if former == self._session else [Write(SESSION_TABLE, b"", self._session)]
        if writes and not taken_over:
            for table in GcsShard.SESSION_TABLES:
                writes += [Write(table, key, None) for key, _ in await backend.scan(table)]
            await backend.commit(writes)
        await self._check_shards()
        for table in GcsShard.STORED_TABLES:
            for key, value in await backend.scan(table):
                self.shard.restore(table, key, value)
        if taken_over:
            print(f"shoal:gcs: takes over the cluster whose head was {former.decode()}", file=sys.stderr, flush=True)
            effects = self.shard.take_over(self._now())
            # In one step with the session's name: a server that dies here and is started again takes over once more.
            await backend.commit([*writes, *(effect for effect in effects if type(effect) is Write)])
            self._searching = [effect for effect in effects if type(effect) is ProbeNode]
        else:
            self.shard.begin(self._now())
        self._set_timer()

    async def _renew(self) -> None:
        """Say again and again that this server lives, for as long as no other has taken its place."""
        while not self._stopping:
            try:
                async with asyncio.timeout(self._backend.renew_s):
                    await self._stop_renewing.wait()
                return
            except TimeoutError:
                pass
            try:
                await self._backend.renew()
            except ClaimRefusedError as error:
                print(f"shoal:gcs: the GCS ends: {error}", file=sys.stderr, flush=True)
                self.failed.set()
                return
            except StorageError as error:  # whether it can go on without is for the next commit to find out
                print(f"shoal:gcs: {error}", file=sys.stderr, flush=True)

    async def _release(self) -> None:
        """The session ends in order: nobody shall go on with its tables."""
        try:
            await self._backend.release(GcsShard.SESSION_TABLES)
        except StorageError as error:
            print(f"shoal:gcs: its tables stay: {error}", file=sys.stderr, flush=True)

    async def _check_shards(self) -> None:
        """Rows are hashed over the shards: another number of them would look for them elsewhere."""
        known = await self._backend.get(SESSION_TABLE, SHARDS_KEY)
        if known is None:
            await self._backend.commit([Write(SESSION_TABLE, SHARDS_KEY, self._shards)])
        elif known != self._shards:
            number, _, count = known.decode().partition("/")
            raise StorageError(
                f"they were written by shard {number} of {count}, this is shard {self._shards.decode().replace('/', ' of ')}: start with "
                f"gcs_shards={count}, or with another storage"
            )

    def _set_timer(self) -> None:
        """See that the shard hears in time that time has passed."""
        deadline = self.shard.next_deadline()
        if deadline is None or deadline >= self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = asyncio.get_running_loop().call_later(max(TIMER_MIN_S, deadline - self._now()), self._time_passed)

    def _now(self) -> float:
        """Seconds since the epoch, as this process began to count them: a clock that is set kills no node."""
        return self._clock_offset_s + time.monotonic()

    def _time_passed(self) -> None:
        self._timer = None
        self._timer_at = math.inf
        self._perform(self.shard.handle(TimePassed(), self._now()))
        self._set_timer()

    async def stop(self, for_good: bool = False) -> None:
        """Stop listening, finish what is being committed, close everything; `for_good`: the session ends in order."""
        self._stopping = True
        if self._timer is not None:
            self._timer.cancel()
        if self._listener is not None:
            self._listener.close()
        if self._tcp is not None:
            self._tcp.close()
        if self._commit is not None:
            await asyncio.wait([self._commit])
        if self._renewing is not None:
            # One that is on its way would come after the release, or look like life.
            self._stop_renewing.set()
            await asyncio.wait([self._renewing], timeout=self._backend.renew_s)
            self._renewing.cancel()
        if for_good:
            await self._release()
        for probe in self._probes:
            probe.cancel()
        for peer in list(self._peers.values()):
            if peer.transport is not None:
                peer.transport.abort()
        await self._backend.close()
        try:
            os.unlink(self._socket_path)
        except OSError:
            pass

    # ------------------------------------------------------------ connections

    def add_peer(self, peer: _Peer) -> None:
        """A connection came."""
        self._last_number += 1
        peer.number = self._last_number
        self._peers[peer.number] = peer

    def remove_peer(self, peer: _Peer, cause: str) -> None:
        """A connection ended."""
        del self._peers[peer.number]
        self._perform(self.shard.handle(ConnectionLost(peer.number, cause), self._now()))
        self._set_timer()

    def take(self, number: int, message: ToGcs) -> None:
        """A connection sent a message."""
        try:
            effects = self.shard.handle(MessageReceived(number, message), self._now())
        except Exception as error:  # a bug of ours: it must not take the other connections with it
            what = message.method if isinstance(message, GcsCall) else type(message).__name__
            print(f"shoal:gcs: internal error in {what}; please report it", file=sys.stderr)
            traceback.print_exc()
            if isinstance(message, GcsCall):
                text = f"internal error of the GCS, please report it: {type(error).__name__}: {error}"
                self._perform([Send(number, GcsAnswer(message.request, None, ["InternalError", text]))])
            return
        self._perform(effects)
        self._set_timer()

    # ------------------------------------------------------------ effects

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            if type(effect) is Write:
                self._writes.append(effect)
        for effect in effects:
            if type(effect) is not Write:
                if self._writes or self._commit is not None:
                    self._after_writes.append(effect)  # type: ignore[arg-type]
                else:
                    self._emit(effect)  # type: ignore[arg-type]
        if self._writes and self._commit is None:
            self._commit = asyncio.get_running_loop().create_task(self._commit_all())

    async def _commit_all(self) -> None:
        try:
            while self._writes or self._after_writes:
                writes, self._writes = self._writes, []
                sends, self._after_writes = self._after_writes, []
                if writes:
                    await self._backend.commit(writes)
                for effect in sends:
                    self._emit(effect)
        except Exception as error:  # `_commit` stays set: nothing is sent any more
            if not isinstance(
                error, StorageError
            ):  # a bug of ours, or of a library: nobody may wait for a server that says nothing
                traceback.print_exc()
            why = error if isinstance(error, StorageError) else f"internal error, please report it: {error!r}"
            print(f"shoal:gcs: the storage failed, so the GCS ends: {why}", file=sys.stderr, flush=True)
            self.exit_code = _exit_code(error)
            self.failed.set()
            return
        self._commit = None

    async def _probe(self, effect: ProbeNode) -> None:
        """Does anybody listen there? A process that dies closes its sockets one after the other, so the answer may be yes at first."""
        refusals = 0
        for pause_s in PROBE_PAUSES_S:
            await asyncio.sleep(pause_s)
            try:
                await self._ask(effect.address, b"")
                refusals = 0
            except ConnectionRefusedError:
                refusals += 1
                if refusals == PROBE_REFUSALS:
                    self._perform(self.shard.handle(NodeRefuses(effect.node_id), self._now()))
                    return
            except (OSError, ValueError):  # no answer, no route: that says nothing of the node
                return

    async def _probe_again(self, effect: ProbeNode, slots: asyncio.Semaphore) -> None:
        """Does a node that is to find this server live? Its loop must answer: a kernel also accepts for a frozen process."""
        refusals = 0
        while self.shard.nodes.why_away(effect.node_id):
            answer: NodeRefuses | NodeAnswers | None = None
            async with slots:
                try:
                    await self._ask(effect.address, self._token)
                    refusals, answer = 0, NodeAnswers(effect.node_id)
                except ConnectionRefusedError:
                    refusals += 1
                    if refusals >= PROBE_REFUSALS:
                        answer = NodeRefuses(effect.node_id)
                except (OSError, ValueError):
                    refusals = 0
            if answer is not None:
                self._perform(self.shard.handle(answer, self._now()))
            await asyncio.sleep(PROBE_PAUSES_S[refusals] if refusals else PROBE_AGAIN_S)

    async def _ask(self, address: str, token: bytes) -> None:
        """Connect, and have the other end prove the token, if it is told.

        Raises:
            OSError: it does not; ConnectionRefusedError: nobody listens.
        """
        host, port = parse_address(address)
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                if token:
                    handshake = ClientHandshake(token)
                    writer.write(handshake.hello)
                    while not handshake.done:
                        data = await reader.read(1)
                        if not data:
                            raise ConnectionResetError("it closed the connection")
                        writer.write(handshake.receive(data))
            finally:
                writer.close()

    def _start_probe(self, effect: ProbeNode) -> None:
        if not self._stopping:
            self._keep_probe(self._probe(effect))

    def _keep_probe(self, asking: Coroutine[Any, Any, None]) -> None:
        probe = asyncio.get_running_loop().create_task(asking)
        self._probes.add(probe)
        probe.add_done_callback(self._probes.discard)

    def _emit(self, effect: Send | CloseConnection | ProbeNode) -> None:
        if isinstance(effect, ProbeNode):
            self._start_probe(effect)
            return
        peer = self._peers.get(effect.connection)
        if peer is None:
            return
        if type(effect) is Send:
            peer.send(encode_frame(effect.message))
        else:
            assert type(effect) is CloseConnection
            peer.close(effect.reason)


def _bind(path: str) -> socket.socket:
    """A listening socket that only this user can reach. A socket left by a server that died is replaced."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    former_mask = os.umask(0o177)
    try:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        listening.bind(path)
        listening.listen(LISTEN_BACKLOG)
    except BaseException:
        listening.close()
        raise
    finally:
        os.umask(former_mask)
    return listening


async def _serve(
    socket_path: str,
    storage: str,
    parent_pid: int,
    listen_fd: int,
    token_path: str,
    shard: int,
    shards: int,
    fresh: bool,
) -> int:
    ended, told = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def end_in_order() -> None:
        told.set()
        ended.set()

    loop.add_signal_handler(signal.SIGTERM, end_in_order)
    parent_fd = open_pidfd(parent_pid) if parent_pid else -1
    if parent_fd >= 0:
        loop.add_reader(parent_fd, ended.set)
    elif parent_pid:
        ended.set()
    folder = os.path.dirname(os.path.abspath(socket_path))
    try:
        shared = storage if outlives_machine(storage) else ""
        server = GcsServer(socket_path, open_backend(storage, folder, shard), folder, shard, shards, fresh, shared)
        await server.start()
        if listen_fd >= 0:
            server.listen_for_nodes(socket.socket(fileno=listen_fd), cluster_token(token_path))
    except ClaimRefusedError as error:
        print(f"shoal:gcs: {error}", file=sys.stderr)
        return GCS_REFUSED_EXIT
    except StorageError as error:
        print(f"shoal:gcs: the tables cannot be read: {error}", file=sys.stderr)
        return _exit_code(error)
    waits = [asyncio.ensure_future(ended.wait()), asyncio.ensure_future(server.failed.wait())]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    await server.stop(for_good=told.is_set() and not server.failed.is_set())
    if parent_pid and (parent_fd < 0 or wait_readable(parent_fd, 0.0)):
        remove_session(folder)
    return server.exit_code if server.failed.is_set() else 0


def _exit_code(error: Exception) -> int:
    return GCS_STORAGE_AWAY_EXIT if isinstance(error, StorageAwayError) else 1


def main(
    socket_path: str,
    storage: str = "memory",
    parent_pid: int = 0,
    listen_fd: int = -1,
    token_path: str = "",
    shard: int = 0,
    shards: int = 1,
    fresh: bool = True,
) -> int:
    """Serve until SIGTERM or the death of the daemon.

    Args:
        socket_path: where to listen; its folder is the session's, removed when the daemon has died.
        storage: the name of a storage backend.
        parent_pid: the node daemon: its end is the end of this process too; 0 for none.
        listen_fd: a TCP socket that listens for other nodes; -1 for none.
        token_path: the cluster's token, which they must know.
        shard, shards: which shard this is, of how many.
        fresh: the node has not had a server of this shard yet that answered.

    Returns:
        The exit code: 0 after SIGTERM, 1 when the storage failed, GCS_STORAGE_AWAY_EXIT when it does not answer, GCS_REFUSED_EXIT when it belongs
        to another head (the last line on stderr says why).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which ends us through the daemon
    set_process_title("shoal:gcs")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(socket_path, storage, parent_pid, listen_fd, token_path, shard, shards, fresh))
