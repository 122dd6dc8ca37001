"""The checks of what `init` is given, before anything is started.

Every error names the option, what it was, and what it may be.

What it does not do: find out what was left open (`launch`), or the rules for amounts of resources (`protocol.resources`).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from shoal.api.mistakes import did_you_mean
from shoal.protocol.resources import to_units
from shoal.protocol.sharding import check_shards
from shoal.protocol.storage_names import check_storage
from shoal.system.machine import memory_available_bytes

OBJECT_STORE_BYTES_MIN = 1 << 20
#: what Ray's `init` takes and has no counterpart here: accepted, so that programs written for Ray run; so are names that begin with "_"
FOREIGN_OPTIONS = (
    "cgroup_path",
    "configure_logging",
    "dashboard_host",
    "dashboard_port",
    "driver_object_store_memory",
    "enable_resource_isolation",
    "job_config",
    "logging_config",
    "logging_format",
    "logging_level",
    "object_spilling_directory",
    "proxy_server_url",
    "storage",
    "system_reserved_cpu",
    "system_reserved_memory",
)
#: resources that have options of their own
_OPTION_OF = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory", "object_store_memory": "object_store_memory"}


def check_init_options(
    *,
    address: object,
    num_cpus: object,
    num_gpus: object,
    memory: object,
    resources: object,
    labels: object,
    object_store_memory: object,
    namespace: object,
    log_to_driver: object,
) -> None:
    """Raise for what makes no sense.

    Raises:
        ValueError, TypeError: an option is out of range, or of the wrong type.
    """
    for option, value in (("address", address), ("namespace", namespace)):
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{option} must be a string, got {value!r} of type {type(value).__name__}")
    if log_to_driver not in (True, False):
        raise ValueError(f"log_to_driver must be True or False, got {log_to_driver!r}")
    for resource, amount in (("CPU", num_cpus), ("GPU", num_gpus), ("memory", memory)):
        if amount is not None:
            _check_amount(_OPTION_OF[resource], resource, amount)
    for option, mapping in (("resources", resources), ("labels", labels)):
        if mapping is not None and not isinstance(mapping, Mapping):
            raise TypeError(f"{option} must be a dict, got {mapping!r} of type {type(mapping).__name__}")
    assert resources is None or isinstance(resources, Mapping), "checked above"
    for resource, amount in (resources or {}).items():
        if resource in _OPTION_OF:
            raise ValueError(f"resources={{{resource!r}: ...}}: use {_OPTION_OF[resource]}={amount!r} for it")
        _check_amount(f"resources[{resource!r}]", resource, amount)
    assert labels is None or isinstance(labels, Mapping), "checked above"
    for key, text in (labels or {}).items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise TypeError(f"labels must be strings, got {key!r}: {text!r}")
    _check_store(object_store_memory)


def check_foreign_options(given: Mapping[str, Any], own: list[str]) -> None:
    """Raise for a name that is neither ours (`own`) nor one of Ray's.

    Raises:
        TypeError: the name, and the one that was probably meant.
    """
    for option in given:
        if option not in FOREIGN_OPTIONS and not option.startswith("_"):
            raise TypeError(f"shoal.init() has no option {option!r}{did_you_mean(option, own)}")


def check_system_settings(settings: object) -> dict[str, Any]:
    """What `_system` may set of the node: {"gcs_storage": a name, "gcs_shards": how many}.

    Raises:
        ValueError, TypeError: there is no such setting, or it makes no sense.
    """
    if settings is None:
        return {}
    if not isinstance(settings, Mapping):
        raise TypeError(f"_system must be a dict, got {settings!r} of type {type(settings).__name__}")
    for name in settings:
        if name not in _SYSTEM_SETTINGS:
            raise ValueError(f"_system has no setting {name!r}; there are {', '.join(map(repr, _SYSTEM_SETTINGS))}")
    return {name: _SYSTEM_SETTINGS[name](setting) for name, setting in settings.items()}


_SYSTEM_SETTINGS: dict[str, Callable[[object], Any]] = {"gcs_storage": check_storage, "gcs_shards": check_shards}


def check_folder(folder: object) -> str:
    """The folder that `_temp_dir` names, made if it is not there; "" when it names nothing.

    Raises:
        TypeError, ValueError: that is no folder, and cannot be made one.
    """
    if folder is None or folder == "":
        return ""
    if not isinstance(folder, (str, os.PathLike)):
        raise TypeError(f"_temp_dir must be a path, got {folder!r} of type {type(folder).__name__}")
    path = os.path.abspath(os.fspath(folder))
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise ValueError(f"_temp_dir={path!r} cannot be used as a folder: {error.strerror}") from None
    return str(path)


def check_address(address: str) -> None:
    """Raise for an address of a kind that there is not.

    Raises:
        ConnectionError: it is one of Ray's client.
    """
    if "://" in address:
        raise ConnectionError(
            f"address={address!r}: there is no client that lives outside of the cluster. Run the program on a machine with a node (`shoal start "
            "--address=HOST:PORT` starts one), and give HOST:PORT as the address"
        )


def check_running_node(address: str, own: Mapping[str, Any], from_environment: bool) -> None:
    """Raise for options (`own`) of a node that is to be started when the address means one that runs; warn when it came from the environment.

    Raises:
        ValueError: says which options.
    """
    given = ", ".join(f"{name}={value!r}" for name, value in own.items() if value is not None)
    if not given:
        return
    text = f"{given}: the node at address={address!r} runs already and has what it was started with"
    if not from_environment:
        raise ValueError(
            f'{text}. Leave these options out, or pass address="local" to start a node of this program\'s own'
        )
    warnings.warn(f"{text}; the address is from SHOAL_ADDRESS or RAY_ADDRESS, so they are ignored", stacklevel=4)


def _check_amount(option: str, resource: Any, amount: Any) -> None:
    try:
        to_units({resource: amount})
    except (TypeError, ValueError) as error:
        raise type(error)(f"{option}={amount!r}: {error}") from None


def _check_store(size: object) -> None:
    if size is None:
        return
    if isinstance(size, bool) or not isinstance(size, (int, float)) or size != size // 1:
        raise TypeError(f"object_store_memory must be a whole number of bytes, got {size!r}")
    if size < OBJECT_STORE_BYTES_MIN:
        raise ValueError(f"object_store_memory is {size} bytes; at least 1 MB ({OBJECT_STORE_BYTES_MIN}) is needed")
    there_is = memory_available_bytes()
    if size > there_is:
        raise ValueError(
            f"object_store_memory is {size} bytes, but this machine (or container) has {there_is} bytes of memory; "
            "what does not fit into a smaller store is spilled to disk"
        )
