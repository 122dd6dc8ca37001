"""What is said on a new connection to a worker of another node, before it is one like any other.

Purpose: `RouteHello` is the dialling side's part of it, as a byte machine.

    this process -> its TLS gateway      "HOST:PORT", answered "+" (only in clusters with TLS)
                 -> the other daemon     both prove that they know the token; RouteToWorker names the worker
                 <- the worker           one byte: the socket was handed to it, and from now on both ends are the two processes

Design: it never wants bytes of what follows: whoever reads gives it one byte at a time, until `done`.

What it does not do: sockets and time (`dialling`); what follows (`submitter`, `actor_calls`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.protocol.limits import ALL_STARTED, LEASE_NUMBER_BITS

if TYPE_CHECKING:
    from shoal.protocol.messages import WorkerDied
    from shoal.runtime.submitter import Submitter
    from shoal.wire.handshake import ClientHandshake

GATEWAY_ANSWER_BYTES_MAX = 1000
TAKEN = b"1"


def is_abroad(address: str) -> bool:
    """Whether an address is that of a worker of another node: "tcp:HOST:PORT/WORKER", the other node's daemon and the worker's id."""
    return address.startswith("tcp:")


def shun_dead_node(submitter: Submitter, death: WorkerDied) -> None:
    """With a node all its workers die, and each is told of. What one of them loses must not go to the next, or it costs a retry each time.
    Caller holds the lock."""
    if death.started_seq != ALL_STARTED:
        return
    node_no = death.lease_id >> LEASE_NUMBER_BITS
    for connection in submitter._peers.values():
        for lease in connection.attachment.leases.values():
            if lease.klass is not None and lease.lease_id >> LEASE_NUMBER_BITS == node_no:
                lease.ending = True
                submitter._close_to_pushes(lease)


class RouteHello:
    """Send `first` once connected, then feed what comes and send what `receive` returns, until `done`.

    Args:
        token: the cluster's.
        route: the frame that names the worker.
        through: what a gateway is asked for, if the connection is to one: "HOST:PORT".
        nonce: random bytes, for tests.
    """

    __slots__ = ("_answer", "_proof", "_route", "_through", "done", "first")

    def __init__(self, token: bytes, route: bytes, through: str = "", nonce: bytes | None = None) -> None:
        from shoal.wire.handshake import ClientHandshake  # brings hashlib: several ms, and few dial other nodes

        self._proof: ClientHandshake = ClientHandshake(token, nonce)
        self._route = route
        self._through = bool(through)  #: the gateway has not answered yet
        self._answer = b""
        self.first = f"{through} 0\n".encode() if through else self._proof.hello
        self.done = False

    def receive(self, data: bytes) -> bytes:
        """Take in bytes; returns bytes to send.

        Raises:
            ConnectionError: the other node is not of this cluster, cannot be reached by the gateway, or has no such worker.
        """
        if self._through:
            return self._gateway_said(data)
        if not self._proof.done:
            answer = self._proof.receive(data)
            return answer + self._route if self._proof.done else answer
        if data != TAKEN:
            raise ConnectionError("that node has no such worker")
        self.done = True
        return b""

    def _gateway_said(self, data: bytes) -> bytes:
        from shoal.wire.tls import DIALLED

        self._answer += data
        if not self._answer.endswith(b"\n"):
            if len(self._answer) > GATEWAY_ANSWER_BYTES_MAX:
                raise ConnectionError("this node's TLS gateway says what makes no sense")
            return b""
        if self._answer != DIALLED:
            raise ConnectionError(self._answer[1:].decode(errors="replace").strip())
        self._through = False
        return self._proof.hello
