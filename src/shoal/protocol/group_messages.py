"""Messages between a process and its node daemon about placement groups; tags 78 and 79.

Purpose: whoever waits for a group, or has to know where it is, follows it.

How to extend: as `messages`, whose unions list these.

What it does not do: create or remove groups: those are calls (`gcs_messages`).
"""

from __future__ import annotations

from shoal.protocol.values import Message


class FollowGroup(Message, tag=78):
    """Send me the state of a placement group, now and whenever it changes."""

    group_id: bytes


class GroupState(Message, tag=79):
    """The state of a placement group: pending, placed, rescheduling, removed. `nodes` says where each bundle is, empty for one without a place;
    `reason` why it waits, or what ended it."""

    group_id: bytes
    state: str
    nodes: list[bytes]
    bundles: list[dict[str, int]]
    reason: str = ""
    job_id: bytes = b""
    name: str = ""
