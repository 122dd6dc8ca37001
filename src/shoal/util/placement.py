"""Where things are: the address of this node, the names of living actors."""

from __future__ import annotations

from typing import Any

import shoal
from shoal.runtime.core import current, current_or_none

LOOPBACK = "127.0.0.1"


def get_node_ip_address() -> str:
    """The address at which other nodes reach this one, as in `nodes()`; 127.0.0.1 for a node that is alone, or without a session."""
    runtime = current_or_none()
    return str(runtime.config.get("node_host", LOOPBACK)) if runtime is not None else LOOPBACK


def list_named_actors(all_namespaces: bool = False) -> list[Any]:
    """The names of living named actors in this namespace; with `all_namespaces` a list of dicts with `name` and `namespace`."""
    body = {} if all_namespaces else {"namespace": shoal.get_runtime_context().namespace}
    rows = current().call("gcs.named_actors", body)["actors"]
    if all_namespaces:
        return [{"name": row["name"], "namespace": row["namespace"]} for row in rows]
    return [row["name"] for row in rows]
