"""Nodes that are only a store and its transfers: the real shells and threads, with lines and connections that a test may slow down or break."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from tests.node.store_node import ANSWER_TIMEOUT_S, StoreNode, StoreProcess

from shoal.node.io.transfer import Transfer
from shoal.protocol.limits import FRAME_HEADER_BYTES
from shoal.protocol.messages import Answer, Pull, Stored
from shoal.protocol.node_messages import BetweenNodes, OpenTransfer

_decoder = msgspec.msgpack.Decoder(BetweenNodes)


class Lines:
    """What `Transfer` needs of NodeLinks."""

    alone = False

    def __init__(self, node: TransferNode) -> None:
        self._node = node
        self.handlers: dict[type, Callable[[bytes, Any], None]] = {}
        self.on_died: list[Callable[[bytes, str], None]] = []
        self.on_died_before: list[Callable[[bytes], None]] = []
        self.dead: dict[bytes, str] = {}
        self.sent: list[Any] = []

    def send(self, node_id: bytes, message: Any) -> bool:
        if node_id in self.dead:
            return False
        self.sent.append(message)
        other = self._node.world[node_id]
        copy = _decoder.decode(msgspec.msgpack.encode(message))
        other.loop.call_soon_threadsafe(other.hear, self._node.node_id, copy)
        return True

    def is_dead(self, node_id: bytes) -> str:
        return self.dead.get(node_id, "")

    def address_of(self, node_id: bytes) -> str:
        return "" if node_id in self.dead else node_id.hex()


class _Process:
    def __init__(self, worker_id: bytes) -> None:
        self.worker_id = worker_id


class TransferNode(StoreNode):
    """One node of a small world of them.

    Attributes:
        pump: what a connection to this node goes through: called with both ends of it; None for a direct one.
    """

    def __init__(self, world: dict[bytes, TransferNode], folder: Path, capacity_bytes: int, **options: Any) -> None:
        self.node_id = bytes([65 + len(world)]) * 16
        super().__init__(folder / self.node_id.hex()[:2], capacity_bytes, **options)
        self.world = world
        world[self.node_id] = self
        self.links = Lines(self)
        self.pump: Callable[[socket.socket, socket.socket], None] | None = None
        self.lost_abroad: list[tuple[bytes, bytes, str]] = []
        self._answers: dict[int, tuple[threading.Event, list[Answer]]] = {}
        self._requests = 0
        self.readers: list[Callable[[], None]] = []  #: what stands in sockets of local processes, unread
        self.transfer: Transfer = self.call(self._make)
        self._sends[b"reader"] = self._on_answer

    def _make(self) -> Transfer:
        transfer = Transfer(
            self.loop,
            self.node_id,
            self.links,  # type: ignore[arg-type]
            self.shell,
            lambda process, message: self._sends[process](message),
            self._read_all,
            lambda oid, node, reason: self.lost_abroad.append((oid, node, reason)),
        )
        transfer.use(self.dial)
        return transfer

    def _read_all(self, then: Callable[[], None]) -> None:
        while self.readers:
            self.readers.pop()()
        then()

    def hear(self, sender: bytes, message: Any) -> None:
        self.links.handlers[type(message)](sender, message)

    # -------- connections

    def dial(self, address: str) -> socket.socket:
        """On a thread, as the real one."""
        other = self.world[bytes.fromhex(address)]
        ours, theirs = socket.socketpair()
        if other.pump is not None:
            far, near = theirs, None
            near, theirs = socket.socketpair()
            threading.Thread(target=other.pump, args=(far, near), daemon=True).start()
        threading.Thread(target=other._accept, args=(theirs,), daemon=True).start()
        return ours

    def _accept(self, sock: socket.socket) -> None:
        head = sock.recv(FRAME_HEADER_BYTES, socket.MSG_WAITALL)
        frame = sock.recv(int.from_bytes(head, "little"), socket.MSG_WAITALL)
        message = _decoder.decode(frame)
        assert isinstance(message, OpenTransfer)
        sock.setblocking(False)
        self.loop.call_soon_threadsafe(self.transfer.accepted, sock, message)

    # -------- a process that reads

    def _on_answer(self, message: Any) -> None:
        if isinstance(message, Answer):
            arrived, answer = self._answers[message.request]
            answer.append(message)
            arrived.set()

    def begin_pull(self, stored: Stored, **more: Any) -> int:
        self._requests += 1
        number = self._requests
        self._answers[number] = (threading.Event(), [])
        self.loop.call_soon_threadsafe(self.transfer.on_pull, _Process(b"reader"), Pull(number, stored, **more))
        return number

    def end_pull(self, number: int, timeout_s: float = ANSWER_TIMEOUT_S) -> Stored | list[str]:
        arrived, answer = self._answers[number]
        assert arrived.wait(timeout_s), "the daemon did not answer Pull"
        return answer[0].error or answer[0].body["stored"]

    def pull(self, stored: Stored, timeout_s: float = ANSWER_TIMEOUT_S, **more: Any) -> Stored | list[str]:
        return self.end_pull(self.begin_pull(stored, **more), timeout_s)

    def bytes_of(self, stored: Stored) -> bytes:
        """What lies there."""
        start = stored.offset + 64
        return bytes(self.shell.mapping_of(stored.segment).view[start : start + stored.size])

    def die(self) -> None:
        """For all others this node is dead."""
        for other in list(self.world.values()):
            if other is not self:
                other.call(other._bury, self.node_id)

    def _bury(self, node_id: bytes) -> None:
        self.links.dead[node_id] = "killed"
        for died in self.links.on_died:
            died(node_id, "killed")

    def transfers(self) -> dict[str, int]:
        return self.call(self.transfer.statistics)

    def close(self) -> None:
        self.call(self.transfer.close)
        super().close()


class Slow:
    """A pump of so many bytes a second from `near` to `far`; `cut` breaks all its connections."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.moved = 0
        self._socks: list[socket.socket] = []

    def __call__(self, far: socket.socket, near: socket.socket) -> None:
        self._socks += [far, near]
        near.sendall(far.recv(65536))
        try:
            while piece := near.recv(65536):
                far.sendall(piece)
                self.moved += len(piece)
                time.sleep(len(piece) / self.rate)
        except OSError:
            pass
        finally:
            far.close()
            near.close()

    def cut(self) -> None:
        for sock in self._socks:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self._socks.clear()


def put(node: TransferNode, process: StoreProcess, value: bytes) -> Stored:
    """A sealed object of a node, as others hear of it."""
    stored = process.put(os.urandom(20), value)
    stored.node = node.node_id
    node.statistics()  # Sealed was read
    return stored
