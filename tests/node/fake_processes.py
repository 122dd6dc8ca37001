"""Processes that speak with a node daemon by plain sockets, one frame at a time: a driver for tests, and a worker entry that obeys it.

The worker runs no tasks: it registers, then does what the lines of its "peer" socket say, and tells the daemon what it is told to.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from typing import Any

from shoal.protocol.limits import PROTOCOL_VERSION
from shoal.protocol.messages import (
    ActorStarted,
    BecomeActor,
    FromDaemon,
    Hello,
    LeaseFinished,
    LeaseStarted,
    Register,
    Registered,
    RevokeLease,
    Shutdown,
    TerminateActor,
    WorkerExiting,
)
from shoal.store.page import ProcessPage
from shoal.system.start_plan import WorkerStart
from shoal.wire.framing import FrameDecoder, encode_frame

TIMEOUT_S = 60.0


class Speaker:
    """One end of a connection to the daemon."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(path)
        self.decoder: FrameDecoder[Any] = FrameDecoder(FromDaemon)
        self.inbox: list[Any] = []
        self.page: ProcessPage | None = None

    def send(self, *messages: Any) -> None:
        self.sock.sendall(b"".join(bytes(encode_frame(message)) for message in messages))

    def receive(self, timeout_s: float = TIMEOUT_S) -> Any:
        """The next message; EOFError at the end."""
        self.sock.settimeout(timeout_s)
        while not self.inbox:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError("the daemon closed the connection")
            self.inbox.extend(self.decoder.receive_data(data))
        return self.inbox.pop(0)

    def expect(self, kind: type, timeout_s: float = TIMEOUT_S) -> Any:
        """The next message of a kind; others are dropped."""
        deadline = time.monotonic() + timeout_s
        seen = []
        while time.monotonic() < deadline:
            message = self.receive(max(0.001, deadline - time.monotonic()))
            if type(message) is kind:
                return message
            seen.append(message)
        raise TimeoutError(f"no {kind.__name__}, but {seen}")

    def nothing(self, for_s: float = 0.05) -> None:
        """Assert that nothing comes."""
        try:
            raise AssertionError(f"unexpected: {self.receive(for_s)}")
        except TimeoutError:
            pass

    def register(self, role: str = "driver", **fields: Any) -> Registered:
        """Say Hello and Register."""
        pid = fields.pop("pid", os.getpid())
        self.worker_id = fields.pop("worker_id", os.urandom(16))
        self.send(
            Hello(PROTOCOL_VERSION, self.worker_id, b"", pid),
            Register(role, self.worker_id, pid, fields.pop("address", ""), **fields),
        )
        registered = self.expect(Registered)
        self.page = ProcessPage.open(registered.daemon_pid, registered.page_fd)
        return registered


def run_worker(start: WorkerStart) -> int:
    """A worker entry: obeys words sent as text to its socket (`ask`)."""
    address = os.path.join(start.session_dir, "w", start.worker_id.hex()[:16] + ".sock")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    listener.settimeout(0.002)
    if start.environment.get("env_vars", {}).get("CRASH_AT_START"):
        print("cannot start like this", file=sys.stderr, flush=True)
        os._exit(3)
    speaker = Speaker(start.node_socket)
    speaker.register("worker", worker_id=start.worker_id, address=address, startup_token=start.startup_token)
    state: dict[str, Any] = {}
    while True:
        try:
            _from_daemon(speaker, state)
        except EOFError:
            return 0
        try:
            asking, _ = listener.accept()
        except TimeoutError:
            continue
        with asking:
            asking.settimeout(TIMEOUT_S)
            answer = _obey(speaker, state, asking.recv(65536).decode())
            asking.sendall(answer.encode())


def _from_daemon(speaker: Speaker, state: dict[str, Any]) -> None:
    try:
        message = speaker.receive(0.0005)
    except (TimeoutError, BlockingIOError):
        return
    kind = type(message)
    if kind is LeaseStarted:
        state["lease"] = message.lease_id
    elif kind is RevokeLease:
        state["lease"] = 0
        speaker.send(LeaseFinished(message.lease_id))
    elif kind is BecomeActor:
        error = b"failed" if message.spec.class_name == "Failing" else b""
        speaker.send(ActorStarted(message.spec.actor_id, message.incarnation, error))
    elif kind is TerminateActor:
        speaker.send(WorkerExiting(message.reason))
        os._exit(0)
    elif kind is Shutdown:
        os._exit(0)


def _obey(speaker: Speaker, state: dict[str, Any], words: str) -> str:
    command, _, rest = words.partition(" ")
    _from_daemon(speaker, state)  # what was granted is here by now
    if command == "lease?":
        return str(state.get("lease", 0))
    if command == "begin":
        assert speaker.page is not None
        speaker.page.set_started(state["lease"], int(rest))
    elif command == "print":
        print(rest, flush=True)
    elif command == "complain":
        print(rest, file=sys.stderr, flush=True)
    elif command == "die":
        os._exit(int(rest))
    elif command == "finish":
        speaker.send(LeaseFinished(int(rest)))
        state["lease"] = 0
    return "ok"


def ask(address: str, words: str) -> str:
    """Have the worker at `address` do something; its answer ("" when it died of it)."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(TIMEOUT_S)
        sock.connect(address)
        sock.sendall(words.encode())
        try:
            return sock.recv(65536).decode()
        except ConnectionResetError:
            return ""
