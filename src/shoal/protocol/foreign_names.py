"""Names of Ray that are not part of this release, so that whoever looks for one is told so.

How to extend: remove a name when its counterpart is there.
"""

from __future__ import annotations

_TOP = """air autoscaler cluster_utils cpp_function cross_language dag dashboard data experimental java_actor_class java_function
    job_submission LoggingConfig rllib runtime_env serve widgets workflow"""
_UTIL = """accelerators annotations client client_connect collective debug debugpy disconnect horovod iter lightgbm log_once metrics
    pdb rpdb spark state tracing xgboost"""
_NAMES = {"shoal": frozenset(_TOP.split()), "shoal.util": frozenset(_UTIL.split())}


def missing_attribute(module: str, name: str) -> AttributeError:
    """The error for `module.name`, in the modules of the table."""
    if name in _NAMES[module]:
        return AttributeError(
            f"{module}.{name} is not part of this release (docs/guide/09_from_ray.md lists what is there instead)"
        )
    return AttributeError(f"module {module!r} has no attribute {name!r}")
