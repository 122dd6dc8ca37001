"""Where things are: the address of this node, the names of living actors."""

from __future__ import annotations

from typing import Any

import shoal
from shoal.runtime.core import current


def get_node_ip_address() -> str:
    """The address of this node, as in `nodes()` and in its resource "node:<address>": nodes are reached on their machine only."""
    return "127.0.0.1"


def list_named_actors(all_namespaces: bool = False) -> list[Any]:
    """The names of living named actors in this namespace; with `all_namespaces` a list of dicts with `name` and `namespace`."""
    body = {} if all_namespaces else {"namespace": shoal.get_runtime_context().namespace}
    rows = current().call("gcs.named_actors", body)["actors"]
    if all_namespaces:
        return [{"name": row["name"], "namespace": row["namespace"]} for row in rows]
    return [row["name"] for row in rows]
