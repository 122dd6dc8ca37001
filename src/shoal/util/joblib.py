"""A joblib backend: `with joblib.parallel_config("shoal"): ...` runs joblib's (and so scikit-learn's) work as tasks.

Design: a batch of calls is a task. Arrays and frames above `SHARED_BYTES_MIN` among the arguments are put into the store once for a
`Parallel` object and travel as refs; tasks see them read-only and without a copy, as with joblib's own memory maps.

What it does not do: nest. Inside a task joblib runs its work in the same process, so that two levels do not multiply.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import joblib
from joblib.parallel import AutoBatchingMixin, ParallelBackendBase, SequentialBackend

import shoal
from shoal.util.executor import Executor, TaskFuture

SHARED_BYTES_MIN = 100_000


def register_shoal() -> None:
    """Make the backend known to joblib as "shoal"."""
    joblib.register_parallel_backend("shoal", ShoalBackend)


def register_ray() -> None:
    """The same, also under the name "ray", for programs written for Ray."""
    register_shoal()
    joblib.register_parallel_backend("ray", ShoalBackend)


class _Shared:
    """Stands in a batch for an argument that lies in the store."""

    __slots__ = ("ref",)

    def __init__(self, ref: Any) -> None:
        self.ref = ref

    def __reduce__(self) -> Any:
        return _Shared, (self.ref,)


class ShoalBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """What joblib asks of a backend. `task_options` are options of the tasks (num_cpus, resources, ...)."""

    supports_retrieve_callback = True
    supports_sharedmem = False
    uses_threads = False

    def __init__(
        self, nesting_level: int | None = None, inner_max_num_threads: int | None = None, **task_options: Any
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        for alias in ("shoal_remote_args", "ray_remote_args"):
            task_options.update(task_options.pop(alias, None) or {})
        self._task_options = task_options
        self._executor: Executor | None = None
        #: arguments in the store: id -> (the argument itself, so that its id stays its own; stand-in)
        self._shared: dict[int, tuple[Any, _Shared]] = {}

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """As many as the cluster has CPUs for -1 and None, less for -2 and so on."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 has no meaning")
        if n_jobs is not None and n_jobs > 0:
            return n_jobs
        cpus = max(1, int(shoal.cluster_resources().get("CPU", 1)))
        return cpus if n_jobs is None else max(1, cpus + 1 + n_jobs)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **_: Any) -> int:
        """Begin a `Parallel` object's life."""
        jobs = self.effective_n_jobs(n_jobs)
        self.parallel = parallel
        self._executor = Executor(**self._task_options)
        return jobs

    def submit(self, func: Any, callback: Callable[[Any], None] | None = None) -> TaskFuture:
        """Run a batch; `callback` gets the future when it is done."""
        if self._executor is None:
            raise RuntimeError("the backend was not configured by joblib.Parallel")
        items = getattr(func, "items", None)
        if items is None:
            future = self._executor.submit(_run_callable, func)
        else:
            shared = [
                (call, tuple(map(self._share, args)), {key: self._share(value) for key, value in kwargs.items()})
                for call, args, kwargs in items
            ]
            future = self._executor.submit(_run_batch, shared)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def apply_async(self, func: Any, callback: Callable[[Any], None] | None = None) -> TaskFuture:
        """The name of `submit` in older versions of joblib."""
        return self.submit(func, callback)

    def retrieve_result_callback(self, out: TaskFuture) -> Any:
        """The results of a batch that is done."""
        return out.result()

    def terminate(self) -> None:
        """End of the `Parallel` object's life."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None
        self._shared.clear()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """After an error: give up what runs."""
        self.terminate()
        if ensure_ready:
            self.configure(n_jobs=self.parallel.n_jobs, parallel=self.parallel)

    def get_nested_backend(self) -> Any:
        """What joblib uses inside a task."""
        return SequentialBackend(nesting_level=(self.nesting_level or 0) + 1), None

    def _share(self, value: Any) -> Any:
        """The value, or its stand-in when it is a large array or frame."""
        known = self._shared.get(id(value))
        if known is not None:
            return known[1]
        if _size_bytes(value) < SHARED_BYTES_MIN:
            return value
        stand_in = _Shared(shoal.put(value))
        self._shared[id(value)] = (value, stand_in)
        return stand_in


def _size_bytes(value: Any) -> int:
    """Size of an array, a sparse matrix or a frame; 0 for everything else."""
    size = getattr(value, "nbytes", None)
    if isinstance(size, int):
        return size
    with contextlib.suppress(AttributeError, TypeError, ValueError):
        if hasattr(value, "memory_usage"):  # pandas
            usage = value.memory_usage()
            return int(usage.sum()) if hasattr(usage, "sum") else int(usage)
        if hasattr(value, "data") and hasattr(value.data, "nbytes") and hasattr(value, "tocsr"):  # scipy.sparse
            return int(value.data.nbytes)
    return 0


def _unshare(value: Any) -> Any:
    return shoal.get(value.ref) if type(value) is _Shared else value


def _run_callable(function: Any) -> Any:
    return function()


def _run_batch(items: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]]) -> list[Any]:
    with joblib.parallel_config(backend=SequentialBackend(nesting_level=1), n_jobs=1):
        return [
            call(*map(_unshare, args), **{key: _unshare(value) for key, value in kwargs.items()})
            for call, args, kwargs in items
        ]
