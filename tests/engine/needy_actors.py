"""Actors that need what their constructor was given at each restart."""

from __future__ import annotations

from typing import Any

import shoal

LARGE = bytes(200_000)


@shoal.remote(num_cpus=0)
def value_of(number: int) -> list[Any]:
    return [number, LARGE]


@shoal.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Needy:
    """Keeps what its constructor got."""

    def __init__(self, direct: list[Any], inside: list[Any], by_value: bytes) -> None:
        self.direct, self.inside, self.by_value = direct, inside, by_value

    def all(self) -> list[int]:
        return [self.direct[0], *(value[0] for value in shoal.get(self.inside)), len(self.by_value)]
