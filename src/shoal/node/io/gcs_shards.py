"""The shards of the GCS beyond the first, as a node sees them: one more line each, and on the head one more process.

Purpose: whoever calls the GCS speaks with `GcsLink`, as if there were one server; what belongs to another shard is taken by `node.shard_lines`.

Design: each shard has a `GcsLink` of its own, with its own reconnects and repeats. The head starts the processes (after it listens: they are not
in the path of its start), keeps their TCP sockets, so that they have the same ports when they are started again, and tells shard 0 their addresses
when it registers; the other nodes hear them from shard 0 in `NodeRegistered`.

Every shard also has a replica of the global scheduler: heartbeats go to all of them, and a process's requests to the one that its id is hashed to
(`foreign_leases`), as long as that one is there.

What it does not do: decide anything; exist at all with one shard.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from functools import partial

import msgspec

from shoal.node.io.gcs_link import GcsLink
from shoal.node.io.gcs_process import GcsProcess
from shoal.node.io.processes import WatchTable
from shoal.node.shard_lines import ShardLines
from shoal.protocol.gcs_messages import GcsPush, RegisterNode
from shoal.system.gcs_process import shard_socket
from shoal.system.start_plan import DaemonStart

log = logging.getLogger("shoal.node")


class GcsShards(ShardLines[GcsLink]):
    """Shards 1 to N - 1.

    Args:
        first: the line to shard 0.
        on_push: what a shard sends unasked.
        on_failed: called with the reason when a shard's process is gone for good.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        first: GcsLink,
        on_push: Callable[[GcsPush], None],
        on_failed: Callable[[str], None],
    ) -> None:
        super().__init__()
        self._loop = loop
        self._first = first
        self._on_push = on_push
        self._on_failed = on_failed
        #: called with the number of a shard when its line is there (again), or ends
        self.on_connected: Callable[[int], None] = lambda number: None
        self.on_lost: Callable[[int], None] = lambda number: None
        #: of shards 1 to N - 1; empty but on the head
        self.processes: list[GcsProcess] = []

    # ---------------------------------------------------------------- begin

    def start_processes(
        self, start: DaemonStart, watches: WatchTable, listen: Callable[[str], tuple[socket.socket, str]]
    ) -> list[str]:
        """Start the shards of a head; returns their TCP addresses (none if the head is alone).

        Args:
            listen: makes a socket on which other nodes arrive, and the address that these are given.

        Raises:
            OSError: a process or a socket cannot be made.
        """
        addresses = []
        for number in range(1, int(start.options.get("gcs_shards", 1))):
            listen_fd = -1
            if start.options.get("gcs_listen"):
                sock, address = listen(start.options["gcs_listen"][0])
                addresses.append(address)
                listen_fd = sock.detach()
            process = GcsProcess(start, watches, self._on_failed, number, listen_fd)
            self.processes.append(process)
            process.begin()
        return addresses

    def connect(self, addresses: list[str], node: RegisterNode, token: bytes, gateway: str = "") -> None:
        """Dial the shards 1 to N - 1."""
        if self._links:  # they have moved, with the head
            for link, address in zip(self._links[1:], addresses, strict=False):
                link.redirect(address)
            return
        self._links.append(self._first)
        for number, address in enumerate(addresses, 1):
            link = GcsLink(self._on_push, partial(self._answered, number), self._stuck(number), self._on_failed)
            link.on_lost = partial(self._lost, number)
            link.start(self._loop, address, msgspec.structs.replace(node), token, gateway)
            self._links.append(link)
        self._first.elsewhere = self

    def connect_own(self, start: DaemonStart, node: RegisterNode) -> None:
        """Dial the shards of this node."""
        paths = [shard_socket(start.gcs_socket, process.shard) for process in self.processes]
        if paths:
            self.connect(paths, node, b"")

    def _answered(self, number: int) -> None:
        if self.processes:
            self.processes[number - 1].answered()
        self.on_connected(number)

    def _lost(self, number: int) -> None:
        self.on_lost(number)

    def _stuck(self, number: int) -> Callable[[str], None]:
        if self.processes:
            return self.processes[number - 1].end
        return lambda reason: log.warning("shard %d of the GCS is away: %s; trying again", number, reason)

    # ---------------------------------------------------------------- a look from outside

    def statistics(self) -> list[dict[str, int]]:
        """How the lines to shards 1 to N - 1 are."""
        return [link.statistics() for link in self._links[1:]]

    def silent_s(self) -> list[float]:
        """For how long shards 1 to N - 1 have said nothing that they owe."""
        return [link.silent_s() for link in self._links[1:]]

    def close(self) -> None:
        """The node ends."""
        for link in self._links[1:]:
            link.close()
        for process in self.processes:
            process.close()
            if process.listen_fd >= 0:
                os.close(process.listen_fd)
