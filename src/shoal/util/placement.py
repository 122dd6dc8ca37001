"""Where things are: the address of this node, the names of living actors."""

from __future__ import annotations

import socket
from typing import Any

import shoal
from shoal.runtime.core import current

#: an address that routers never forward to: asking for the way there sends no packet
_ELSEWHERE = ("192.0.2.1", 9)


def get_node_ip_address() -> str:
    """The address under which other machines would reach this one; 127.0.0.1 when it has no network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_ELSEWHERE)
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def list_named_actors(all_namespaces: bool = False) -> list[Any]:
    """The names of living named actors in this namespace; with `all_namespaces` a list of dicts with `name` and `namespace`."""
    body = {} if all_namespaces else {"namespace": shoal.get_runtime_context().namespace}
    rows = current().call("gcs.named_actors", body)["actors"]
    if all_namespaces:
        return [{"name": row["name"], "namespace": row["namespace"]} for row in rows]
    return [row["name"] for row in rows]
