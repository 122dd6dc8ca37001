"""TLS between nodes: who is trusted, and how a process reaches another node through its own node's gateway.

Purpose: everything between machines can be encrypted without any part above knowing: they have plain sockets, whose other end is the gateway of
their node (`node/io/tls_process.py`).

    worker, daemon, GCS line --unix--> gateway ==TLS==> gateway --unix--> listener of the other node (token, then frames)

Design: both ends show a certificate of the cluster's authority (mutual TLS, 1.3 only); names are not looked at. A process that dials writes
"HOST:PORT SILENT_S\\n" to its gateway's socket and reads "+\\n", or "-" and a reason. Sockets can be handed on to other processes
(`node/io/routes.py`) and read in threads (`node/io/movers.py`) as ever, which a TLS socket could not.

What it does not do: make certificates (`system.tls_files`); replace the token's proof, which follows inside.
"""

from __future__ import annotations

import socket
import ssl

from shoal.system.tls_files import find_tls_files
from shoal.wire.handshake import HandshakeError

DIALLED = b"+\n"
NO_TLS = "it does not speak TLS (--tls) with certificates of this cluster's authority"
ANSWER_BYTES_MAX = 1000


def server_context(folder: str) -> ssl.SSLContext:
    """For the accepting side.

    Raises:
        OSError: files are missing, or not as they should be (`find_tls_files`).
    """
    return _context(ssl.PROTOCOL_TLS_SERVER, folder)


def client_context(folder: str) -> ssl.SSLContext:
    """For the dialling side; raises as `server_context`."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, folder)


def _context(protocol: int, folder: str) -> ssl.SSLContext:
    files = find_tls_files(folder)
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(files.ca)
    context.load_cert_chain(files.certificate, files.key)
    return context


def dial_through(gateway: str, host: str, port: int, timeout_s: float, silent_s: float = 0.0) -> socket.socket:
    """A socket whose other end is HOST:PORT, reached through the gateway that listens at the path `gateway`.

    Args:
        silent_s: as for `wire.tcp.connect_authenticated`.

    Raises:
        OSError: the gateway or the other node does not answer.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        sock.connect(gateway)
        sock.sendall(f"{host}:{port} {silent_s:g}\n".encode())
        answer = b""
        while not answer.endswith(b"\n") and len(answer) < ANSWER_BYTES_MAX:
            piece = sock.recv(1)  # what follows the answer is another's to read
            if not piece:
                raise ConnectionError("this node's TLS gateway closed the connection")
            answer += piece
        if answer != DIALLED:
            reason = answer[1:].decode(errors="replace").strip()
            raise HandshakeError(reason) if reason.startswith(NO_TLS) else ConnectionError(reason)
        return sock
    except BaseException:
        sock.close()
        raise
