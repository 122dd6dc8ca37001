"""The same figures for systems with another API: Dask distributed (processes), concurrent.futures, multiprocessing.Pool.

A system has only the figures whose notion it knows. Written as each one's users write it (`pure=False` and `map` in Dask, `chunksize=1`
in the pools, since a chunk is no task).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from measuring import QUICK, Pace, Reporter, idle_figures

Work = Callable[[], float]
MB = 1_000_000
CPUS = 2
_array: Any = None


def empty(*_: Any) -> None:
    """The task of most figures."""
    return


def increment(x: int) -> int:
    """A link of the chain."""
    return x + 1


def produce(*_: Any) -> Any:
    """A megabyte, made once a process."""
    global _array
    if _array is None:
        import numpy

        _array = numpy.ones(MB, dtype=numpy.uint8)
    return _array


def produce_fresh(_: Any) -> Any:
    """The same under a name that no cache has seen."""
    return produce()


class Plain:
    """The actor of the figures."""

    def ping(self) -> None:
        """Nothing."""
        return


class Dask:
    """Dask distributed with two processes of one thread."""

    def __init__(self) -> None:
        from distributed import Client, LocalCluster

        self.cluster = LocalCluster(
            n_workers=CPUS, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
        )
        self.client = Client(self.cluster)

    def stop(self) -> None:
        """End all processes."""
        self.client.close()
        self.cluster.close()

    def first(self) -> None:
        """One result."""
        self.client.submit(empty, pure=False).result()

    def tasks_async(self) -> Work:
        def work() -> float:
            self.client.gather(self.client.map(empty, range(1000), pure=False))
            return 1000

        return work

    def task_sync(self) -> Work:
        def work() -> float:
            for _ in range(20):
                self.client.submit(empty, pure=False).result()
            return 20

        return work

    def actor_async(self) -> Work:
        actor = self.client.submit(Plain, actor=True).result()

        def work() -> float:
            for call in [actor.ping() for _ in range(500)]:
                call.result()
            return 500

        return work

    def actor_sync(self) -> Work:
        actor = self.client.submit(Plain, actor=True).result()

        def work() -> float:
            for _ in range(20):
                actor.ping().result()
            return 20

        return work

    def chain_200(self) -> Work:
        def work() -> float:
            future = self.client.submit(increment, 0, pure=False)
            for _ in range(199):
                future = self.client.submit(increment, future, pure=False)
            future.result()
            return 200

        return work

    def argument_10kb(self) -> Work:
        argument = b"x" * 10_000

        def work() -> float:
            self.client.gather([self.client.submit(empty, argument, pure=False) for _ in range(500)])
            return 500

        return work

    def put_small(self) -> Work:
        def work() -> float:
            for number in range(20):
                self.client.scatter(number, hash=False)
            return 20

        return work

    def put_1mb(self) -> Work:
        import numpy

        array = numpy.ones(MB, dtype=numpy.uint8)

        def work() -> float:
            for _ in range(10):
                self.client.scatter(array, hash=False)
            return 10 * MB / 1e9

        return work

    def put_100mb(self) -> Work:
        import numpy

        array = numpy.ones(100 * MB, dtype=numpy.uint8)

        def work() -> float:
            self.client.scatter(array, hash=False)
            return 0.1

        return work

    def get_100mb(self) -> Work:
        import numpy

        future = self.client.scatter(numpy.ones(100 * MB, dtype=numpy.uint8))

        def work() -> float:
            future.result()
            return 1

        return work

    def return_1mb(self) -> Work:
        def work() -> float:
            self.client.gather(self.client.map(produce_fresh, range(100), pure=False))
            return 100 * MB / 1e9

        return work

    def wait_1000(self) -> Work:
        from distributed import as_completed

        def work() -> float:
            for _ in as_completed(self.client.map(empty, range(1000), pure=False)):
                pass
            return 1000

        return work


class Futures:
    """concurrent.futures.ProcessPoolExecutor with two processes."""

    def __init__(self) -> None:
        from concurrent.futures import ProcessPoolExecutor

        self.pool = ProcessPoolExecutor(CPUS)

    def stop(self) -> None:
        """End all processes."""
        self.pool.shutdown()

    def first(self) -> None:
        """One result."""
        self.pool.submit(empty).result()

    def tasks_async(self) -> Work:
        return self._batch(empty, 1000, 1000)

    def argument_10kb(self) -> Work:
        return self._batch(empty, 1000, 1000, b"x" * 10_000)

    def return_1mb(self) -> Work:
        return self._batch(produce, 50, 50 * MB / 1e9)

    def _batch(self, function: Callable[..., Any], count: int, worth: float, *arguments: Any) -> Work:
        def work() -> float:
            for future in [self.pool.submit(function, *arguments) for _ in range(count)]:
                future.result()
            return worth

        return work

    def task_sync(self) -> Work:
        def work() -> float:
            for _ in range(100):
                self.pool.submit(empty).result()
            return 100

        return work

    def wait_1000(self) -> Work:
        from concurrent.futures import as_completed

        def work() -> float:
            for _ in as_completed([self.pool.submit(empty) for _ in range(1000)]):
                pass
            return 1000

        return work


class Pool:
    """multiprocessing.Pool with two processes."""

    def __init__(self) -> None:
        import multiprocessing

        self.pool = multiprocessing.Pool(CPUS)

    def stop(self) -> None:
        """End all processes."""
        self.pool.terminate()
        self.pool.join()

    def first(self) -> None:
        """One result."""
        self.pool.apply(empty)

    def tasks_async(self) -> Work:
        return self._map(empty, list(range(1000)), 1000)

    def argument_10kb(self) -> Work:
        return self._map(empty, [b"x" * 10_000] * 1000, 1000)

    def return_1mb(self) -> Work:
        return self._map(produce, list(range(50)), 50 * MB / 1e9)

    def _map(self, function: Callable[..., Any], items: list[Any], worth: float) -> Work:
        def work() -> float:
            self.pool.map(function, items, chunksize=1)
            return worth

        return work

    def task_sync(self) -> Work:
        def work() -> float:
            for _ in range(100):
                self.pool.apply(empty)
            return 100

        return work

    def wait_1000(self) -> Work:
        def work() -> float:
            for _ in self.pool.imap_unordered(empty, range(1000)):
                pass
            return 1000

        return work


SYSTEMS: dict[str, type[Any]] = {"dask": Dask, "futures": Futures, "pool": Pool}
LIBRARY = {"dask": "distributed", "futures": "concurrent.futures", "pool": "multiprocessing"}


def main() -> None:
    """Measure the figures named on the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--module", required=True, choices=sorted(SYSTEMS))
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--life", action="store_true")
    parser.add_argument("keys", nargs="*")
    arguments = parser.parse_args()
    report = Reporter(arguments.fd)
    begin = time.perf_counter()
    system = SYSTEMS[arguments.module]()
    if arguments.life:
        system.first()
        idle_figures(report, time.perf_counter() - begin, system.stop, settle_s=2.0)
        return
    table = {key: getattr(system, key) for key in arguments.keys if hasattr(system, key)}
    report.run(arguments.keys, table, QUICK if arguments.quick else Pace())
    system.stop()


if __name__ == "__main__":
    main()
