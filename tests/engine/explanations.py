"""What a `get` says when its time is over: what it says at last, as what is to be said must first be known."""

from __future__ import annotations

import re
import time
from typing import Any

import shoal


def comes_to_say(what: Any, pattern: str, within_s: float = 60.0) -> shoal.exceptions.GetTimeoutError:
    """The error of a `get` whose text has the pattern; fails when none says so in time, or when there is a value."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            value = shoal.get(what, timeout=0.1)
        except shoal.exceptions.GetTimeoutError as error:
            if re.search(pattern, str(error), re.DOTALL):
                return error
            assert time.monotonic() < deadline, f"{error} says nothing of {pattern}"
        else:
            raise AssertionError(f"there is a value: {value!r}")
