"""What every test shares: one warm engine for the tests that only use the API, and fresh ones for those that break things.

Sessions of a run lie in a folder of their own; what they log as an internal error fails the test that runs (`session_logs`), and what is left of
them at the end fails the run.

`shoal_shared` starts a session once per test process (it costs 0.3 s) and is what most tests want. `shoal_start` is a factory for a session of
the test's own, stopped at its end, whatever happened.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator
from types import ModuleType
from typing import Any

import hypothesis
import pytest
from tests import session_logs

SESSIONS = session_logs.private_folder()
BACKGROUND_ERROR = "internal error in Shoal"  #: of this process, or of a worker whose lines come here

# The gate shows the same examples every time, on machines of any speed; `make soak` looks for new ones.
hypothesis.settings.register_profile(
    "gate", derandomize=True, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
)
hypothesis.settings.register_profile("soak", deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
hypothesis.settings.load_profile(os.environ.get("SHOAL_EXAMPLES", "gate"))

# Ctrl-C means what it means in a terminal, also when the tests were started in the background of a script, which ignores it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED_OPTIONS: dict[str, Any] = {"num_cpus": 4, "ignore_reinit_error": True}


@pytest.fixture
def shoal_shared() -> Iterator[ModuleType]:
    """The module `shoal`, initialized with 4 (logical) CPUs; left running for the next test."""
    import shoal

    if not shoal.is_initialized():
        shoal.init(**SHARED_OPTIONS)
    yield shoal


@pytest.fixture
def shoal_start() -> Iterator[Callable[..., ModuleType]]:
    """`shoal_start(**init_options)` gives the module with a session of this test's own."""
    import shoal

    shoal.shutdown()

    def start(**options: Any) -> ModuleType:
        shoal.init(**options)
        return shoal

    yield start
    shoal.shutdown()


@pytest.fixture(scope="session", autouse=True)
def _stop_at_the_end() -> Iterator[None]:
    """Stop a session that a test left running, before the interpreter's own teardown."""
    yield
    import sys

    shoal = sys.modules.get("shoal")
    if shoal is not None and hasattr(shoal, "shutdown"):
        shoal.shutdown()
    session_logs.remove_private_folder(SESSIONS)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """A test fails if a process of a session met what it did not expect (marker `internal_errors`: it may)."""
    report = yield
    found = session_logs.LOGS.new_errors()
    if not found and BACKGROUND_ERROR in report.capstderr:
        found = report.capstderr
    if found and report.passed and item.get_closest_marker("internal_errors") is None:
        report.outcome = "failed"
        report.longrepr = (
            f"A process of the session met what it did not expect, while {item.nodeid} was at {report.when}:\n{found}"
        )
    return report
