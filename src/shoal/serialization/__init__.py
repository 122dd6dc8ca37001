"""How user values become bytes and come back.

Reading order: `format` (the bytes), `values` (the hot path), `code` (functions, and classes of `__main__`), `custom` (registered
serializers), `failures` (exceptions), `explain` (why something cannot be serialized).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shoal.serialization.custom import deregister_serializer, register_serializer
from shoal.serialization.failures import dumps_error, loads_error
from shoal.serialization.format import Serialized
from shoal.serialization.values import Blob, allow_out_of_band, collect, dumps, dumps_inline, dumps_whole, loads

if TYPE_CHECKING:
    from shoal.serialization.code import dumps_code, loads_code
    from shoal.serialization.explain import explain_unserializable

__all__ = [
    "Blob",
    "Serialized",
    "allow_out_of_band",
    "collect",
    "deregister_serializer",
    "dumps",
    "dumps_code",
    "dumps_error",
    "dumps_inline",
    "dumps_whole",
    "explain_unserializable",
    "loads",
    "loads_code",
    "loads_error",
    "register_serializer",
]


def __getattr__(name: str) -> Any:
    """What needs cloudpickle (9 ms) is imported at its first use: the node daemon never does, the driver while its node starts."""
    if name in ("dumps_code", "loads_code"):
        from shoal.serialization import code as module
    elif name == "explain_unserializable":
        from shoal.serialization import explain as module  # type: ignore[no-redef]
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(module, name)
    return found
