"""The TLS gateway of a node: a process that carries bytes between TLS outside and Unix sockets inside.

Purpose: see `wire.tls`. One process a node, so that neither the daemon nor workers pay for encryption, and sockets stay what they are.

Design: asyncio. What comes in over a listening TCP socket, with a certificate of the cluster's authority, is connected to the Unix socket that
belongs to it; what a process of this node wants to reach is dialled. Each connection is two pumps, with the kernel's and asyncio's buffers between;
when either end is over, both are closed, after what was on its way. Everything here is other people's bytes: nothing is decoded.

What it does not do: prove tokens; live longer than its daemon.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import ssl
import sys
from functools import partial
from typing import Any, NoReturn

import uvloop

from shoal.protocol.limits import CONNECT_TIMEOUT_S
from shoal.system.process import set_parent_death_signal, set_process_title
from shoal.wire.tcp import ACCEPT_BACKLOG, parse_address, set_options
from shoal.wire.tls import DIALLED, NO_TLS, client_context, server_context

log = logging.getLogger("shoal.tls")

HANDSHAKE_WITHIN_S = 5.0
ADDRESS_BYTES_MAX = 300
PIECE_BYTES = 256 << 10


def main(plan: dict[str, Any]) -> NoReturn:
    """Entry of the process; `plan` is what `tls_gateway` wrote."""
    code = 1
    try:
        set_process_title("shoal:tls")
        set_parent_death_signal(signal.SIGKILL)
        if os.getppid() != plan["daemon_pid"]:
            os._exit(0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        logging.basicConfig(
            stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
        )
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(plan))
        code = 0
    except BaseException:
        log.exception("the TLS gateway ends")
    finally:
        os._exit(code)


async def _serve(plan: dict[str, Any]) -> None:
    inside, outside = server_context(plan["tls_folder"]), client_context(plan["tls_folder"])
    servers = []
    for number, path in enumerate(plan["inner_paths"]):
        sock = socket.socket(fileno=plan[f"public_{number}"])
        sock.setblocking(False)
        servers.append(
            await asyncio.start_server(
                _Inward(path).accepted,
                sock=sock,
                backlog=ACCEPT_BACKLOG,
                ssl=inside,
                ssl_handshake_timeout=HANDSHAKE_WITHIN_S,
            )
        )
    door = socket.socket(fileno=plan["door_fd"])
    door.setblocking(False)
    servers.append(await asyncio.start_unix_server(_Outward(outside).accepted, sock=door, backlog=ACCEPT_BACKLOG))
    await asyncio.gather(*(server.serve_forever() for server in servers))


class _Inward:
    """Connections from other nodes to one listener of this one."""

    def __init__(self, path: str) -> None:
        self._path = path

    async def accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A node has proved that it belongs to the authority."""
        set_options(writer.get_extra_info("socket"))
        try:
            inner_reader, inner_writer = await asyncio.open_unix_connection(self._path)
        except OSError as error:
            log.warning("nobody listens at %s: %s", self._path, error)
            writer.close()
            return
        await _join(reader, writer, inner_reader, inner_writer)


class _Outward:
    """Connections of this node's processes to others."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context

    async def accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A process here wants to reach somebody."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                line = await reader.readuntil(b"\n")
                address, _, silent_s = line[:ADDRESS_BYTES_MAX].decode().strip().partition(" ")
                host, port = parse_address(address)
                options = partial(set_options, silent_s=float(silent_s))
                far_reader, far_writer = await asyncio.open_connection(
                    host, port, ssl=self._context, server_hostname="", ssl_handshake_timeout=HANDSHAKE_WITHIN_S
                )
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            writer.write(f"-{_reason(error)}\n".encode())
            writer.close()
            return
        options(far_writer.get_extra_info("socket"))
        writer.write(DIALLED)
        await _join(reader, writer, far_reader, far_writer)


def _reason(error: BaseException) -> str:
    if isinstance(error, ssl.SSLError):
        return f"{NO_TLS}: {error.reason or error}"
    if isinstance(error, ConnectionResetError):
        return f"{NO_TLS}: it closed the connection"
    return str(getattr(error, "strerror", "") or error or "no answer in time").replace("\n", " ")


async def _join(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    other_reader: asyncio.StreamReader,
    other_writer: asyncio.StreamWriter,
) -> None:
    """Carry bytes both ways until one side is over."""
    pumps = [
        asyncio.ensure_future(_pump(reader, other_writer)),
        asyncio.ensure_future(_pump(other_reader, writer)),
    ]
    await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
    for end in (writer, other_writer):
        end.close()  # after what it has still to write
    for pump in pumps:
        pump.cancel()
    await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await reader.read(PIECE_BYTES):
            writer.write(piece)
            await writer.drain()
    except OSError:
        pass  # the end of the connection; its other side is told by the end of its own
