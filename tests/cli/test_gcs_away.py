"""A GCS whose storage is away: the program goes on, is told why things wait, and gets them when it is back."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.gcs.redis_servers import running_redis

import shoal
from shoal.cli.status import facts, text_of
from shoal.exceptions import GetTimeoutError

SOON_S = 60.0


@shoal.remote(num_cpus=0)
class Actor:
    def call(self) -> int:
        return 1


def test_what_waits_for_a_storage_that_is_away(tmp_path: Path) -> None:
    shoal.shutdown()
    try:
        with running_redis(tmp_path, kept=True) as path:
            shoal.init(num_cpus=1, _system={"gcs_storage": f"unix://{path}"})
            first = Actor.remote()
            assert shoal.get(first.call.remote(), timeout=SOON_S) == 1
        waits = Actor.remote().call.remote()
        deadline = time.monotonic() + SOON_S
        told = ""
        while "cannot be reached" not in told:
            assert time.monotonic() < deadline, told
            with pytest.raises(GetTimeoutError) as late:
                shoal.get(waits, timeout=0.2)
            told = str(late.value)
        assert "Besides, the GCS has not answered for" in told
        [session] = [each for each in facts()["sessions"] if str(path) in each.get("gcs", "")]
        assert session["gcs"] in text_of({"clusters": [], "sessions": [session]})[0]
        assert shoal.get([first.call.remote(), shoal.remote(lambda: 2).remote()], timeout=SOON_S) == [1, 2]
        with running_redis(tmp_path, kept=True):
            assert shoal.get(waits, timeout=SOON_S) == 1
            shoal.shutdown()
    finally:
        shoal.shutdown()
