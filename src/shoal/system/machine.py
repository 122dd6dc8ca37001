"""What this machine offers to a node: CPUs, memory, GPUs, as far as this process may use them.

Purpose: a container with two CPUs of a 64-CPU host is a node of two CPUs.

Design: CPUs are the smaller of the affinity mask and the cgroup's quota; memory is the smallest of the host's and every enclosing cgroup's
limit; GPUs are counted from the visible-devices variable, else from the driver's files, without importing any GPU library.

What it does not do: measure load, or count GPUs of other makers (give them as `num_gpus` or `resources`).
"""

from __future__ import annotations

import os

_CGROUP_ROOT = "/sys/fs/cgroup"
_UNLIMITED_BYTES = 1 << 60  #: cgroup v1 writes "no limit" as a number near 2**63


def cpus_available() -> float:
    """CPUs that this process may use: whole ones of the affinity mask, or the cgroup's quota (at least 1) if that is smaller."""
    try:
        count = float(len(os.sched_getaffinity(0)))
    except (AttributeError, OSError):
        count = float(os.cpu_count() or 1)
    quota = _cgroup_cpu_quota()
    if quota is not None:
        count = min(count, max(1.0, float(int(quota))))
    return count


def memory_available_bytes() -> int:
    """Memory that this process and its children may use in all: the machine's, or the cgroup's limit if that is smaller."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [
        value for value in _cgroup_values("memory", "memory.max", "memory.limit_in_bytes") if value < _UNLIMITED_BYTES
    ]
    return min([total, *limits])


def gpus_available() -> int:
    """GPUs that this process may use: those of CUDA_VISIBLE_DEVICES if it is set, else those of the NVIDIA driver, else 0."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len(visible_devices(visible))
    try:
        return len(os.listdir("/proc/driver/nvidia/gpus"))
    except OSError:
        return 0


def visible_devices(text: str) -> list[str]:
    """The devices listed in a visible-devices variable. As in CUDA, the list ends at the first invalid entry ("-1", "none")."""
    devices: list[str] = []
    for entry in text.split(","):
        name = entry.strip()
        if not name or name.startswith("-") or name.lower() in ("none", "nodevfiles"):
            break
        devices.append(name)
    return devices


def _cgroup_cpu_quota() -> float | None:
    quotas: list[float] = []
    for folder in _cgroup_folders(""):
        words = _read(os.path.join(folder, "cpu.max")).split()
        if len(words) == 2 and words[0].isdigit() and int(words[1]) > 0:
            quotas.append(int(words[0]) / int(words[1]))
    for folder in _cgroup_folders("cpu"):
        quota, period = (
            _read(os.path.join(folder, "cpu.cfs_quota_us")),
            _read(os.path.join(folder, "cpu.cfs_period_us")),
        )
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _cgroup_values(controller: str, v2_file: str, v1_file: str) -> list[int]:
    texts = [_read(os.path.join(folder, v2_file)) for folder in _cgroup_folders("")]
    texts += [_read(os.path.join(folder, v1_file)) for folder in _cgroup_folders(controller)]
    return [int(text) for text in texts if text.isdigit()]


def _cgroup_folders(controller: str) -> list[str]:
    """The folders of this process's cgroup and of those around it. An empty `controller` means cgroup v2."""
    root = os.path.join(_CGROUP_ROOT, controller)
    path = "/"
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, found = line.split(":", 2)
        if controller in controllers.split(","):
            path = found
    # Inside a container the path may be the host's, which is not mounted: the mounted root is then our own cgroup.
    folders = [root]
    for part in path.strip("/").split("/"):
        if part and part != "..":
            folders.append(os.path.join(folders[-1], part))
    return folders


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def private_bytes(pid: int) -> int:
    """What the death of a process would give back: its anonymous memory and its swap."""
    fields = numbers_of(f"/proc/{pid}/status")
    return (fields.get("RssAnon:", 0) + fields.get("VmSwap:", 0)) << 10


def numbers_of(path: str) -> dict[str, int]:
    """The lines of a file of "name number" as a dict; empty when it cannot be read."""
    found: dict[str, int] = {}
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                words = line.split()
                if len(words) > 1 and words[1].isdigit():
                    found[words[0]] = int(words[1])
    except OSError:
        pass
    return found
