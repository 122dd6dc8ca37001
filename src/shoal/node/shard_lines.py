"""What of the GCS belongs to which shard, and who is asked: one line to each shard, and the routing between them.

Purpose: whoever calls the GCS speaks as if there were one server.

Design: `protocol.sharding` says which shards know what; here calls and reports go to their lines, and what all were asked is one answer. Who
follows which replica of the global scheduler is `scheduling.replicas`.

What it does not do: connect, repeat, run processes (`node.io.gcs_shards`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from shoal.protocol.gcs_messages import TaskEventBatch
from shoal.protocol.sharding import merge_answers, shard_of, shards_of_call

Then = Callable[[Any, list[str]], None]  #: (body, error): error is empty or [kind, text]


class Line(Protocol):
    """To one shard (`node.io.gcs_link.GcsLink`)."""

    def call(self, method: str, body: dict[str, Any], then: Then | None = None) -> None:
        """Ask."""

    def call_here(self, method: str, body: dict[str, Any], then: Then | None = None) -> None:
        """Ask this shard, whichever the call belongs to."""

    def report(self, message: Any) -> None:
        """Tell what must be heard."""

    def tell(self, message: Any) -> None:
        """Tell what is told anew at every connection."""

    def is_connected(self) -> bool:
        """Whether what is told now arrives."""


AnyLine = TypeVar("AnyLine", bound=Line)


class ShardLines(Generic[AnyLine]):
    """The lines of one node, by number, shard 0 too; empty until it is known how many there are."""

    def __init__(self) -> None:
        self._links: list[AnyLine] = []

    # ---------------------------------------------------------------- what belongs to whom

    def take_call(self, method: str, body: dict[str, Any], then: Then | None) -> bool:
        """Ask the shards that know, unless that is shard 0 alone."""
        numbers = shards_of_call(method, body, len(self._links))
        if len(numbers) == 1:
            if numbers[0] == 0:
                return False
            self._links[numbers[0]].call(method, body, then)
            return True
        answers: dict[int, Any] = {}
        failed: list[str] = []

        def answered(number: int, answer: Any, error: list[str]) -> None:
            if failed:
                return
            if error:
                failed.extend(error)
                if then is not None:
                    then(None, error)
                return
            answers[number] = answer
            if len(answers) == len(numbers) and then is not None:
                then(merge_answers(method, body, [answers[each] for each in numbers]), [])

        for number in numbers:
            self._links[number].call_here(method, body, partial(answered, number))
        return True

    def take_events(self, message: TaskEventBatch) -> bool:
        """Report trace events to the shard of their process, unless that is shard 0."""
        number = shard_of(message.sender, len(self._links))
        if number:
            self._links[number].report(message)
        return number != 0

    # ---------------------------------------------------------------- replicas of the global scheduler

    def replica_of(self, process: bytes) -> int:
        """The shard whose global scheduler places for a process: 0 if that one is away."""
        number = shard_of(process, len(self._links))
        return number if self._links[number].is_connected() else 0

    def tell(self, number: int, message: Any) -> None:
        """Tell a shard what is told anew at every connection."""
        self._links[number].tell(message)

    def tell_replicas(self, message: Any) -> None:
        """Tell all shards but 0."""
        for link in self._links[1:]:
            link.tell(message)
