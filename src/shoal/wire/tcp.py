"""TCP between the nodes of a cluster: dialling and listening, with the token proved before anything else.

Purpose: `connect_authenticated` gives a connected socket whose other end belongs to the cluster; `listening_socket` one to accept on, or an error
that says what to do.

Design: blocking, with one deadline for all of it. Small frames are not delayed (TCP_NODELAY), and a machine that is gone without a word is found by
keepalive.

What it does not do: encrypt (`tls`); accept (`tcp_listener`).
"""

from __future__ import annotations

import errno
import socket
import time

from shoal.wire.handshake import ClientHandshake, HandshakeError

ACCEPT_BACKLOG = 1024
KEEPALIVE_IDLE_S = 5
KEEPALIVE_INTERVAL_S = 2
KEEPALIVE_PROBES = 3


def _dial(host: str, port: int, timeout_s: float, gateway: str, tls_folder: str, silent_s: float) -> socket.socket:
    if gateway:
        from shoal.wire.tls import dial_through

        return dial_through(gateway, host, port, timeout_s, silent_s)
    sock = socket.create_connection((host, port), timeout_s)
    if not tls_folder:
        return sock
    import ssl

    from shoal.wire.tls import NO_TLS, client_context

    try:
        return client_context(tls_folder).wrap_socket(sock)
    except (ssl.SSLError, ConnectionResetError) as error:
        sock.close()
        raise HandshakeError(f"{NO_TLS}: {error.strerror or error}") from None
    except BaseException:
        sock.close()
        raise


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of "tcp:HOST:PORT" or "HOST:PORT"; an IPv6 host stands in brackets.

    Raises:
        ValueError: it is not of that form.
    """
    host, _, port = address.removeprefix("tcp:").rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdigit() or not 0 <= int(port) < 65536:
        raise ValueError(f"an address is written HOST:PORT, got {address!r}")
    return host, int(port)


def format_address(host: str, port: int) -> str:
    """The inverse of `parse_address`, with "tcp:" in front."""
    return f"tcp:{f'[{host}]' if ':' in host else host}:{port}"


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that listens at `host` (its own address, never a name of several) and `port` (0: any that is free).

    Raises:
        OSError: it cannot; says what to do.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Without it a port is taken for a minute after its last connections ended; it does not let two listen at once.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(ACCEPT_BACKLOG)
    except (OSError, OverflowError) as error:
        sock.close()
        raise _cannot_listen(host, port, error) from None
    return sock


def _cannot_listen(host: str, port: int, error: OSError | OverflowError) -> OSError:
    number = error.errno if isinstance(error, OSError) and error.errno else errno.EINVAL
    advice = {
        errno.EADDRINUSE: f"; another program listens there (`ss -ltnp sport = :{port}` shows it): end it, or choose another port",
        errno.EADDRNOTAVAIL: "; that is no address of this machine (`ip addr` lists them)",
        errno.EACCES: "; ports below 1024 are for root: choose a higher one",
    }.get(number, "")
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return OSError(number, f"cannot listen on {host}:{port}: {text}{advice}")


def set_options(sock: socket.socket, silent_s: float = 0.0) -> None:
    """What every connection between nodes has; `silent_s` as for `connect_authenticated`."""
    if silent_s:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(silent_s * 1000))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)


def connect_authenticated(
    address: str,
    token: bytes,
    timeout_s: float,
    *,
    gateway: str = "",
    tls_folder: str = "",
    silent_s: float = 0.0,
) -> socket.socket:
    """Connect to a node or GCS server at "tcp:HOST:PORT" and let both ends prove that they know the token.

    Args:
        gateway: the path of this node's TLS gateway, if the cluster uses TLS (`wire.tls`).
        tls_folder: the certificates, for one who has no gateway; then what comes back cannot be handed to another process.
        silent_s: the connection ends when what was sent is not acknowledged for so long; 0: when the kernel gives up. Not for a peer that may be
            slow to read.

    Returns:
        A blocking socket without a timeout, on which nothing else was read.

    Raises:
        ConnectionError: nobody answers, in time; or it is not a node of this cluster, or of another version.
        ValueError: the address makes no sense.
    """
    host, port = parse_address(address)
    deadline = time.monotonic() + timeout_s
    try:
        sock = _dial(host, port, timeout_s, gateway, tls_folder, silent_s)
    except HandshakeError as error:
        raise ConnectionError(f"{host}:{port} does not belong to this cluster: {error}") from None
    except OSError as error:
        if isinstance(error, (PermissionError, FileNotFoundError)) and error.errno is None:
            raise  # ours, about the files that TLS needs
        raise ConnectionError(
            f"nobody answers at {host}:{port}: {error.strerror or error}. Is the node running, and is this the address that it was started with?"
        ) from None
    try:
        if sock.family != socket.AF_UNIX:
            set_options(sock, silent_s)
        handshake = ClientHandshake(token)
        sock.sendall(handshake.hello)
        while not handshake.done:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            data = sock.recv(1)  # never more than the handshake: what follows is another's to read
            if not data:
                raise HandshakeError(
                    "it closed the connection: the tokens differ, it is no node of Shoal, or one of the two uses TLS (--tls) and the other does not"
                )
            answer = handshake.receive(data)
            if answer:
                sock.sendall(answer)
        sock.settimeout(None)
        return sock
    except TimeoutError:
        sock.close()
        raise ConnectionError(
            f"{host}:{port} did not prove within {timeout_s:g} s that it belongs to this cluster"
        ) from None
    except HandshakeError as error:
        sock.close()
        raise ConnectionError(
            f"{host}:{port} does not belong to this cluster: {error}. All nodes and drivers need the same token "
            "(SHOAL_TOKEN_FILE, or ~/.shoal/token) and versions"
        ) from None
    except OSError as error:
        sock.close()
        raise ConnectionError(f"the connection to {host}:{port} broke: {error.strerror or error}") from None
