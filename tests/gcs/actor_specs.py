"""Actors as programs ask for them, for the tests of the GCS."""

from __future__ import annotations

from typing import Any

from shoal.protocol.messages import ActorSpec


def actor_spec(number: int = 1, **changes: Any) -> ActorSpec:
    """Actor `number` of the first job: a Counter that asks for nothing while it lives, and for a CPU to be placed."""
    fields: dict[str, Any] = {
        "actor_id": number.to_bytes(16, "big"),
        "class_id": b"c" * 16,
        "class_name": "Counter",
        "job_id": b"\0\0\0\1",
        "name": "",
        "namespace": "space",
        "demand": {},
        "placement": {"CPU": 10_000},
        "arguments": b"args",
        "dependencies": None,
    }
    return ActorSpec(**{**fields, **changes})
