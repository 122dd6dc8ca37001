"""Mutual proof that both ends of a TCP connection know the cluster's token, before anything else is read.

Purpose: a peer without the token learns nothing and is read no further than a record of fixed length.

Design: a byte machine for each side, without I/O. Records have fixed lengths, so nothing of what follows is taken for part of the proof.

    client -> "SHOAL1\\n", versions, its nonce                      (magic is compared byte by byte: HTTP is closed at its first letter)
    server -> "SHOAL1\\n", versions, its nonce, HMAC("server", both hellos)
    client -> HMAC("client", both hellos)
    server -> one byte: welcome

The key is derived from the token; both hellos are under both proofs, so neither a recorded conversation nor an answer sent back to its author proves
anything: the nonces are fresh, and the roles are named. Who lies about versions fails the proof; honest ends that differ are told so.

What it does not do: encrypt. Whoever can read the network can read what follows; whoever can change it can take a connection over. On networks
that are not trusted, use TLS (`wire.tls`; this proof is then made inside of it) or put the cluster inside a VPN.
"""

from __future__ import annotations

import hmac
import os
import sys

from shoal.protocol.limits import PROTOCOL_VERSION

MAGIC = b"SHOAL1\n"
NONCE_BYTES = 32
PROOF_BYTES = 32
WELCOME = b"\x01"
_VERSIONS = bytes([PROTOCOL_VERSION, sys.version_info[0], sys.version_info[1]])
HELLO_BYTES = len(MAGIC) + len(_VERSIONS) + NONCE_BYTES


class HandshakeError(ConnectionError):
    """The other end did not prove that it belongs to the cluster; the text says what is known."""


def _key(token: bytes) -> bytes:
    return hmac.digest(token, b"shoal cluster connection", "sha256")


def _proof(key: bytes, role: bytes, client_hello: bytes, server_hello: bytes) -> bytes:
    return hmac.digest(key, role + client_hello + server_hello, "sha256")


def _check_hello(got: bytes) -> None:
    """Refuse what cannot become a hello, as soon as that is seen."""
    if got[: len(MAGIC)] != MAGIC[: len(got)]:
        raise HandshakeError("it does not speak Shoal's protocol")


def _check_versions(hello: bytes) -> None:
    theirs = hello[len(MAGIC) : len(MAGIC) + len(_VERSIONS)]
    if theirs != _VERSIONS:
        raise HandshakeError(
            f"it runs protocol {theirs[0]} on Python {theirs[1]}.{theirs[2]}, this end protocol {_VERSIONS[0]} on Python "
            f"{_VERSIONS[1]}.{_VERSIONS[2]}: run the same versions of shoal and Python on all nodes"
        )


class ServerHandshake:
    """The accepting side. Feed it what comes, send what it returns, until `done`."""

    __slots__ = ("_client_hello", "_got", "_hello", "_key", "done", "leftover")

    def __init__(self, token: bytes, nonce: bytes | None = None) -> None:
        self._key = _key(token)
        self._hello = MAGIC + _VERSIONS + (nonce or os.urandom(NONCE_BYTES))
        self._got = b""
        self._client_hello = b""
        self.done = False
        #: what came after the proof
        self.leftover = b""

    def receive(self, data: bytes) -> bytes:
        """Take in bytes; returns bytes to send.

        Raises:
            HandshakeError: the peer does not prove itself; close the connection without a word.
        """
        got = self._got + data
        answer = b""
        if not self._client_hello:
            _check_hello(got)
            if len(got) < HELLO_BYTES:
                self._got = got
                return b""
            self._client_hello, got = got[:HELLO_BYTES], got[HELLO_BYTES:]
            # Our hello comes first also when versions differ: the other end says to its user what differs.
            answer = self._hello + _proof(self._key, b"server", self._client_hello, self._hello)
        if len(got) >= PROOF_BYTES:
            expected = _proof(self._key, b"client", self._client_hello, self._hello)
            if not hmac.compare_digest(got[:PROOF_BYTES], expected):
                raise HandshakeError("it does not know this cluster's token")
            _check_versions(self._client_hello)
            self.done = True
            self.leftover, got = got[PROOF_BYTES:], b""
            answer += WELCOME
        self._got = got
        return answer


class ClientHandshake:
    """The dialling side. Send `hello` first, then feed it what comes and send what it returns, until `done`."""

    __slots__ = ("_got", "_key", "_proved", "done", "hello", "leftover")

    def __init__(self, token: bytes, nonce: bytes | None = None) -> None:
        self._key = _key(token)
        self.hello = MAGIC + _VERSIONS + (nonce or os.urandom(NONCE_BYTES))
        self._got = b""
        self._proved = False
        self.done = False
        self.leftover = b""

    def receive(self, data: bytes) -> bytes:
        """Take in bytes; returns bytes to send.

        Raises:
            HandshakeError: the peer does not prove itself, or runs other versions.
        """
        got = self._got + data
        answer = b""
        if not self._proved:
            _check_hello(got)
            if len(got) < HELLO_BYTES + PROOF_BYTES:
                self._got = got
                return b""
            server_hello, proof = got[:HELLO_BYTES], got[HELLO_BYTES : HELLO_BYTES + PROOF_BYTES]
            got = got[HELLO_BYTES + PROOF_BYTES :]
            if not hmac.compare_digest(proof, _proof(self._key, b"server", self.hello, server_hello)):
                raise HandshakeError("it has another cluster's token")
            _check_versions(server_hello)
            self._proved = True
            answer = _proof(self._key, b"client", self.hello, server_hello)
        if got:
            if got[:1] != WELCOME:
                raise HandshakeError("it refused this end's proof")
            self.done = True
            self.leftover, got = got[1:], b""
        self._got = got
        return answer
