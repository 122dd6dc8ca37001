"""How user values become bytes and come back.

Reading order: `format` (the bytes), `values` (the hot path), `code` (functions, and classes of `__main__`), `custom` (registered
serializers), `failures` (exceptions), `explain` (why something cannot be serialized).
"""

from shoal.serialization.code import dumps_code, loads_code
from shoal.serialization.custom import deregister_serializer, register_serializer
from shoal.serialization.explain import explain_unserializable
from shoal.serialization.failures import dumps_error, loads_error
from shoal.serialization.format import Serialized
from shoal.serialization.values import Blob, allow_out_of_band, collect, dumps, loads

__all__ = [
    "Blob",
    "Serialized",
    "allow_out_of_band",
    "collect",
    "deregister_serializer",
    "dumps",
    "dumps_code",
    "dumps_error",
    "explain_unserializable",
    "loads",
    "loads_code",
    "loads_error",
    "register_serializer",
]
