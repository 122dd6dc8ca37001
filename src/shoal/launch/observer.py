"""A look at a running session from outside: questions to its node daemon, no registration, nothing started.

Design: a blocking Unix socket with a time-out on every step; a daemon that is stuck makes the command fail, not hang.
"""

from __future__ import annotations

import os
import socket
import struct
from time import monotonic
from types import TracebackType
from typing import Any

from shoal.protocol.limits import PROTOCOL_VERSION
from shoal.protocol.messages import Answer, Call, Hello, Shutdown
from shoal.wire.framing import FrameDecoder, ProtocolError, encode_frame

ANSWER_TIMEOUT_S = 5.0


class SessionUnreachableError(Exception):
    """The session's daemon does not answer."""


class Observer:
    """A connection to the daemon of the session in `session_dir`. Use it in a `with` statement."""

    def __init__(self, session_dir: str, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self.session_dir = session_dir
        self._timeout_s = timeout_s
        self._decoder: FrameDecoder[Any] = FrameDecoder(Answer | Hello | Shutdown)
        self._requests = 0
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(os.path.join(session_dir, "node.sock"))
            self._socket.sendall(encode_frame(Hello(PROTOCOL_VERSION, os.urandom(16), b"", os.getpid())))
        except OSError as error:
            self._socket.close()
            raise SessionUnreachableError(f"the daemon of {session_dir} does not answer: {error}") from None

    def __enter__(self) -> Observer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def daemon_pid(self) -> int:
        """The process at the other end, as the kernel knows it."""
        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[0])

    def call(self, method: str, body: dict[str, Any] | None = None) -> Any:
        """The answer to a rare request ("node.x", "gcs.x").

        Raises:
            SessionUnreachableError: no answer in time, or the daemon went away.
            RuntimeError: the daemon refused; the text says why.
        """
        self._requests += 1
        try:
            self._socket.sendall(encode_frame(Call(self._requests, method, body or {})))
            answer = self._next_answer()
        except (OSError, ProtocolError) as error:
            raise SessionUnreachableError(f"the daemon of {self.session_dir} stopped answering: {error}") from None
        if answer.error:
            raise RuntimeError(answer.error[-1])
        return answer.body

    def _next_answer(self) -> Answer:
        deadline = monotonic() + self._timeout_s
        while True:
            left_s = deadline - monotonic()
            if left_s <= 0:
                raise TimeoutError(f"no answer within {self._timeout_s} s")
            self._socket.settimeout(left_s)
            room = self._decoder.writable()
            count = self._socket.recv_into(room)
            if not count:
                raise ConnectionResetError("it closed the connection")
            for message in self._decoder.received(count):
                if isinstance(message, Answer) and message.request == self._requests:
                    return message
                if isinstance(message, Shutdown):
                    raise ConnectionResetError(message.reason)
