"""Start a fresh Python interpreter that sees the modules this one sees.

Purpose: the node process must not inherit the state of the user's program (threads, open files, imported packages), so it is exec'ed, and
fast: `-S` on the real binary with `sys.path` handed over takes 15 ms where a venv's interpreter with `site` takes 30-60.

Design: `posix_spawn` (no copy of the user's page tables, safe beside threads) into a new session with default signal handlers. The plan
travels in a memfd, written with `marshal`, which needs no import; file descriptors to be kept are named in the plan and get the numbers
from 4 up; everything else that was inheritable is closed before the entry function runs. PYTHON* variables hold as everywhere (no `-E`), and
PYTHONHASHSEED is chosen once a session, so that `hash` of a string is the same in all workers: users partition by it.

The package is entered without running its `__init__` (see `complete_package`): only workers need the public interface.

What it does not do: wait for the process or speak with it.
"""

from __future__ import annotations

import fcntl
import marshal
import os
import signal
import sys
from typing import Any

from shoal.system.start_plan import SESSION_VARIABLE, InterpreterPlan

PLAN_FD = 3
PACKAGE = __name__.partition(".")[0]
#: Long enough, with its arguments, that every process title fits into the memory of argv (`process.set_process_title`).
BOOT_CODE = """
import sys, os, gc, marshal
gc.disable()
plan = marshal.loads(os.pread(3, os.fstat(3).st_size, 0))
seen = plan["interpreter"]
sys.path[:] = seen["import_path"]
sys.executable, sys.prefix, sys.exec_prefix = seen["shown_executable"], seen["prefix"], seen["exec_prefix"]
os.closerange(plan["first_free_fd"], 1 << 20)
for name in seen["finders"]:
    try:
        __import__(name)
        sys.modules[name].install()
    except Exception as error:
        print(f"shoal: the import hook {name} could not be installed: {error!r}", file=sys.stderr)
from importlib.util import find_spec, module_from_spec
sys.modules[plan["package"]] = module_from_spec(find_spec(plan["package"]))
from shoal.system.interpreter import boot
boot(plan)
"""


def this_interpreter() -> InterpreterPlan:
    """A plan for interpreters that import what this process can import.

    Raises:
        RuntimeError: Python is embedded in another program, so there is no interpreter to start.
    """
    executable = getattr(sys, "_base_executable", None) or sys.executable
    if not executable or not os.access(executable, os.X_OK):
        raise RuntimeError(
            f"the Python interpreter cannot be started anew: sys.executable is {sys.executable!r}. If Python is embedded in "
            "another program, set sys.executable to a python binary of the same version before shoal.init()."
        )
    finders = [
        name
        for name, module in list(sys.modules.items())
        if name.startswith("__editable__") and hasattr(module, "install")
    ]
    return InterpreterPlan(
        executable=executable,
        import_path=import_path(),
        shown_executable=sys.executable or executable,
        prefix=sys.prefix,
        exec_prefix=sys.exec_prefix,
        flags=_flags(),
        finders=sorted(finders),
    )


def import_path() -> list[str]:
    """Where this process imports from: `sys.path`, absolute and without repeats."""
    try:
        here = os.getcwd()
    except OSError:  # the current folder was deleted
        here = "/"
    return list(dict.fromkeys(os.path.join(here, entry) for entry in sys.path if isinstance(entry, str)))


def spawn_interpreter(
    interpreter: InterpreterPlan, entry: str, plan: dict[str, Any], *, log_path: str, kept_fds: dict[str, int]
) -> int:
    """Start `interpreter` and let it call `entry(plan)`, where `plan` has in addition an fd under every name of `kept_fds`.

    The child leads a new session; its stdin is /dev/null; stdout and stderr are appended to `log_path`.

    Args:
        interpreter: what to run, from `this_interpreter`.
        entry: "module:function".
        plan: plain values (what `marshal` writes).
        kept_fds: name in the plan -> fd here; -1 means none, and stays -1.

    Returns:
        The pid of the child.

    Raises:
        OSError: it cannot be started.
        ValueError: the plan holds something other than plain values.
    """
    kept = {name: fd for name, fd in kept_fds.items() if fd >= 0}
    numbers = {name: PLAN_FD + 1 + i for i, name in enumerate(kept)}
    full = {**plan, **dict.fromkeys(kept_fds, -1), **numbers}
    full |= {
        "interpreter": _plain(interpreter),
        "entry": entry,
        "package": PACKAGE,
        "first_free_fd": PLAN_FD + 1 + len(kept),
    }
    plan_fd = os.memfd_create("shoal-plan", os.MFD_CLOEXEC)
    # Targets are 3, 4, ...: sources must lie above all of them, or one dup2 would overwrite the source of the next.
    sources: list[int] = []
    try:
        os.write(plan_fd, marshal.dumps(full))
        for fd in (plan_fd, *kept.values()):
            sources.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64))
        actions: list[tuple[Any, ...]] = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
            *((os.POSIX_SPAWN_DUP2, source, PLAN_FD + i) for i, source in enumerate(sources)),
        ]
        return os.posix_spawn(
            interpreter.executable,
            [interpreter.executable, "-s", "-P", "-S", *interpreter.flags, "-c", BOOT_CODE],
            _environment(plan),
            file_actions=actions,
            setsid=True,
            setsigmask=[],
            setsigdef=[s for s in signal.valid_signals() if s not in (signal.SIGKILL, signal.SIGSTOP)],
        )
    finally:
        for fd in (plan_fd, *sources):
            os.close(fd)


def _environment(plan: dict[str, Any]) -> dict[str, str]:
    environment = {"PYTHONHASHSEED": str(int.from_bytes(os.urandom(4), "little")), **os.environ}
    if "session_dir" in plan:
        environment[SESSION_VARIABLE] = plan["session_dir"]
    return environment


def boot(plan: dict[str, Any]) -> None:
    """First function of the new interpreter: call the entry. The garbage collector is off: it is the entry's to turn on."""
    from shoal.system.start_plan import entry_function

    os.close(PLAN_FD)
    for fd in range(PLAN_FD + 1, plan["first_free_fd"]):
        os.set_inheritable(fd, False)  # what user code executes must not keep them open
    entry_function(plan["entry"])(plan)


def complete_package() -> None:
    """Run the package's `__init__`, which `BOOT_CODE` left out: it imports the whole public interface (0.1 s), which only workers need.

    Raises:
        Exception: whatever the import raises.
    """
    package = sys.modules[PACKAGE]
    loader = package.__spec__.loader if package.__spec__ else None
    if loader is not None and not getattr(package, "__version__", ""):
        loader.exec_module(package)


def _flags() -> list[str]:
    flags = ["-O"] * min(2, sys.flags.optimize)
    if sys.dont_write_bytecode:
        flags.append("-B")
    if sys.flags.utf8_mode:
        flags += ["-X", "utf8"]
    return flags + [f"-W{option}" for option in sys.warnoptions]


def _plain(interpreter: InterpreterPlan) -> dict[str, Any]:
    from shoal.system.start_plan import to_plain

    plain: dict[str, Any] = to_plain(interpreter)
    return plain
