"""What a lease assigns, as environment variables: visible accelerators, threads of numeric libraries.

User code and the libraries it calls read these, so they are set when a lease begins and taken back when another one does.
"""

from __future__ import annotations

import os

from shoal.protocol.limits import RESOURCE_UNIT
from shoal.protocol.messages import LeaseStarted
from shoal.protocol.resources import visible_variables

_assigned_variables: set[str] = set()  #: variables that `apply_assignment` has set
_environment_at_start: dict[str, str] = {}


def apply_assignment(started: LeaseStarted) -> None:
    """Put the accelerators and the thread count of a lease into the environment, in the place of those of the lease before."""
    variables = visible_variables(started.assigned, _environment_at_start) if started.assigned else {}
    for variable in _assigned_variables - variables.keys():
        _assigned_variables.discard(variable)
        before = _environment_at_start.get(variable)
        if before is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = before
    for variable, text in variables.items():
        os.environ[variable] = text
        _assigned_variables.add(variable)
    if "OMP_NUM_THREADS" not in _environment_at_start:
        os.environ["OMP_NUM_THREADS"] = str(max(1, started.demand.get("CPU", 0) // RESOURCE_UNIT))


def remember_environment() -> None:
    """Call once in a new worker, before its first lease."""
    _environment_at_start.update(os.environ)
