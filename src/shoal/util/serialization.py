"""Custom serializers, for users. The design is in `shoal.serialization.custom`."""

from __future__ import annotations

from shoal.serialization.custom import deregister_serializer, register_serializer

__all__ = ["deregister_serializer", "register_serializer"]
