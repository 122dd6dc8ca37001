"""The shards of the GCS beyond the first, as a node sees them: one more line each, and on the head one more process.

Purpose: whoever calls the GCS speaks with `GcsLink`, as if there were one server; what belongs to another shard (`protocol.sharding`) is taken here.

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
from typing import Any

import msgspec

from shoal.node.io.gcs_link import GcsLink, Then
from shoal.node.io.gcs_process import GcsProcess
from shoal.node.io.processes import WatchTable
from shoal.protocol.gcs_messages import GcsPush, RegisterNode, TaskEventBatch
from shoal.protocol.sharding import merge_answers, shard_of, shards_of_call
from shoal.system.gcs_process import shard_socket
from shoal.system.start_plan import DaemonStart

log = logging.getLogger("shoal.node")


class GcsShards:
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
        self._loop = loop
        self._first = first
        self._on_push = on_push
        self._on_failed = on_failed
        #: called with the number of a shard when its line is there (again), or ends
        self.on_connected: Callable[[int], None] = lambda number: None
        self.on_lost: Callable[[int], None] = lambda number: None
        #: by number, shard 0 too; empty until it is known how many there are
        self._links: list[GcsLink] = []
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

    # ---------------------------------------------------------------- what belongs to whom

    def take_call(self, method: str, body: dict[str, Any], then: Then | None) -> bool:
        """Ask the shards that know, unless that is shard 0 alone."""
        numbers = shards_of_call(method, body, len(self._links))
        if len(numbers) == 1:
            if numbers[0] == 0:
                return False
            self._links[numbers[0]].call(method, body, then)
            return True
        answers: dict[int, Any] = {}
        failed: list[str] = []

        def answered(number: int, answer: Any, error: list[str]) -> None:
            if failed:
                return
            if error:
                failed.extend(error)
                if then is not None:
                    then(None, error)
                return
            answers[number] = answer
            if len(answers) == len(numbers) and then is not None:
                then(merge_answers(method, body, [answers[each] for each in numbers]), [])

        for number in numbers:
            self._links[number].call_here(method, body, partial(answered, number))
        return True

    def take_events(self, message: TaskEventBatch) -> bool:
        """Report trace events to the shard of their process, unless that is shard 0."""
        number = shard_of(message.sender, len(self._links))
        if number:
            self._links[number].report(message)
        return number != 0

    # ---------------------------------------------------------------- replicas of the global scheduler

    def replica_of(self, process: bytes) -> int:
        """The shard whose global scheduler places for a process: 0 if that one is away."""
        number = shard_of(process, len(self._links))
        return number if self._links[number].is_connected() else 0

    def tell(self, number: int, message: Any) -> None:
        """Tell a shard what is told anew at every connection."""
        self._links[number].tell(message)

    def tell_replicas(self, message: Any) -> None:
        """Tell all shards but 0."""
        for link in self._links[1:]:
            link.tell(message)

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
