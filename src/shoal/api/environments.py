"""Runtime environments: what a task or actor inherits, and what is its own.

Design: a program's environment (`init(runtime_env=...)`) holds for all of its tasks and actors; those that a task starts inherit the task's. What is
given for one task or actor is merged into that, variable by variable, and wins. A program that joins a node which it has not started adds what the
workers there lack to import its modules (`add_import_path`): folders, which must be there on every node.

What it does not do: check what users write (`options`), or start processes (a worker's variables are set by the zygote).
"""

from __future__ import annotations

from typing import Any

from shoal.runtime import core

JOB_ENVIRONMENT = "environment"  #: where a driver's runtime keeps it: `runtime.config[JOB_ENVIRONMENT]`


def inherited_environment(runtime: core.Runtime) -> dict[str, Any]:
    """The environment of the running task, or of the program."""
    task = core.running_task.get()
    if task is not None and task.lease is not None:
        environment: dict[str, Any] = task.lease.started.environment
    else:
        environment = runtime.config.get(JOB_ENVIRONMENT, {})
    return environment


def merged_environment(runtime: core.Runtime, own: dict[str, Any]) -> dict[str, Any]:
    """`own` on top of what is inherited."""
    inherited = inherited_environment(runtime)
    if not inherited:
        return own
    merged = {**inherited, **own}
    if "env_vars" in merged:
        merged["env_vars"] = {**inherited.get("env_vars", {}), **own.get("env_vars", {})}
    return merged


def add_import_path(environment: dict[str, Any], own: list[str], nodes: list[str]) -> dict[str, Any]:
    """`environment` with what a program imports from (`own`) and workers of the node do not (`nodes`)."""
    lacking = [path for path in dict.fromkeys(own) if path not in nodes]
    return {**environment, "import_path": lacking} if lacking else environment
