"""The workloads, written once against the API that Shoal and Ray share: `python workloads.py --module shoal|ray`.

The process measures the figures it is asked for and writes them to the runner's pipe. It is not started by hand: see engine.py.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import time
from collections.abc import Callable
from typing import Any

Work = Callable[[], float]
MB = 1_000_000
CPUS = 2


def init_options(module: str) -> dict[str, Any]:
    """The same machine for both: two CPUs, a store that holds three of the largest array, no dashboard."""
    options: dict[str, Any] = {
        "num_cpus": CPUS,
        "include_dashboard": False,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    if module == "ray":
        options["_temp_dir"] = "/tmp/ray-bench"
    return options


class Workloads:
    """Each public method sets one figure up and returns its work: a call that does a batch and says how much it was."""

    def __init__(self, ray: Any) -> None:
        self.ray = ray

        @ray.remote
        def empty(*_: Any) -> None:
            return None

        @ray.remote
        def increment(x: int) -> int:
            return x + 1

        @ray.remote
        class Plain:
            def ping(self) -> None:
                return None

        @ray.remote
        class Async:
            async def ping(self) -> None:
                return None

        self.empty = empty
        self.increment = increment
        self.Plain = Plain
        self.Async = Async

    # ------------------------------------------------------------ tasks and actors

    def tasks_async(self) -> Work:
        ray, empty = self.ray, self.empty

        def work() -> float:
            ray.get([empty.remote() for _ in range(1000)])
            return 1000

        return work

    def task_sync(self) -> Work:
        ray, empty = self.ray, self.empty

        def work() -> float:
            for _ in range(100):
                ray.get(empty.remote())
            return 100

        return work

    def actor_async(self) -> Work:
        ray, actor = self.ray, self.Plain.remote()

        def work() -> float:
            ray.get([actor.ping.remote() for _ in range(1000)])
            return 1000

        return work

    def actor_sync(self) -> Work:
        ray, actor = self.ray, self.Plain.remote()

        def work() -> float:
            for _ in range(100):
                ray.get(actor.ping.remote())
            return 100

        return work

    def actor_asyncio(self) -> Work:
        ray, actor = self.ray, self.Async.remote()

        def work() -> float:
            ray.get([actor.ping.remote() for _ in range(1000)])
            return 1000

        return work

    def actor_n_to_n(self) -> Work:
        ray = self.ray
        actors = [self.Plain.remote() for _ in range(CPUS)]
        ray.get([actor.ping.remote() for actor in actors])

        @ray.remote
        def call_all(actors: list[Any], calls: int) -> None:
            ray.get([actors[i % len(actors)].ping.remote() for i in range(calls)])

        def work() -> float:
            ray.get([call_all.remote(actors, 1000) for _ in range(CPUS)])
            return 1000 * CPUS

        return work

    def nested(self) -> Work:
        ray, empty = self.ray, self.empty

        @ray.remote
        def submit_all(tasks: int) -> None:
            ray.get([empty.remote() for _ in range(tasks)])

        def work() -> float:
            ray.get([submit_all.remote(1000) for _ in range(CPUS)])
            return 1000 * CPUS

        return work

    def chain_200(self) -> Work:
        ray, increment = self.ray, self.increment

        def work() -> float:
            ref = increment.remote(0)
            for _ in range(199):
                ref = increment.remote(ref)
            if ray.get(ref) != 200:
                raise RuntimeError("the chain lost a link")
            return 200

        return work

    def nested_ref(self) -> Work:
        """Two tasks each, of which one has the other's ref, pending, inside of its argument."""
        ray, empty = self.ray, self.empty

        def work() -> float:
            ray.get([empty.remote([empty.remote()]) for _ in range(500)])
            return 500

        return work

    def argument_10kb(self) -> Work:
        ray, empty = self.ray, self.empty
        argument = b"x" * 10_000

        def work() -> float:
            ray.get([empty.remote(argument) for _ in range(1000)])
            return 1000

        return work

    def wait_1000(self) -> Work:
        ray, empty = self.ray, self.empty

        def work() -> float:
            rest = [empty.remote() for _ in range(1000)]
            while rest:
                _, rest = ray.wait(rest)
            return 1000

        return work

    def actor_life(self) -> Work:
        ray, plain = self.ray, self.Plain

        def work() -> float:
            for _ in range(3):
                actor = plain.remote()
                ray.get(actor.ping.remote())
                ray.kill(actor)
            return 3

        return work

    # ------------------------------------------------------------ objects

    def put_small(self) -> Work:
        ray = self.ray

        def work() -> float:
            for number in range(1000):
                ray.put(number)
            return 1000

        return work

    def get_small(self) -> Work:
        ray, ref = self.ray, self.ray.put(1)

        def work() -> float:
            for _ in range(1000):
                ray.get(ref)
            return 1000

        return work

    def _put_array(self, size_bytes: int, times: int) -> Work:
        import numpy

        ray = self.ray
        array = numpy.ones(size_bytes, dtype=numpy.uint8)

        def work() -> float:
            for _ in range(times):
                ray.put(array)
            return times * size_bytes / 1e9

        return work

    def put_1mb(self) -> Work:
        return self._put_array(MB, 20)

    def put_100mb(self) -> Work:
        return self._put_array(100 * MB, 1)

    def put_800mb(self) -> Work:
        return self._put_array(800 * MB, 1)

    def get_100mb(self) -> Work:
        import numpy

        ray, ref = self.ray, self.ray.put(numpy.ones(100 * MB, dtype=numpy.uint8))

        def work() -> float:
            for _ in range(200):
                ray.get(ref)
            return 200

        return work

    def return_1mb(self) -> Work:
        ray = self.ray

        made: list[
            Any
        ] = []  # travels empty with the function and is kept by the worker: the array is made once a process

        @ray.remote
        def produce() -> Any:
            if not made:
                import numpy

                made.append(numpy.ones(MB, dtype=numpy.uint8))
            return made[0]

        def work() -> float:
            ray.get([produce.remote() for _ in range(100)])
            return 100 * MB / 1e9

        return work

    def refs_10000(self) -> Work:
        ray = self.ray
        container = ray.put([ray.put(number) for number in range(10_000)])

        def work() -> float:
            for _ in range(5):
                ray.get(container)
            return 5

        return work


def life(module: str, report: Any) -> None:
    """Start, idle memory and stop, in a process that has done nothing else."""
    begin = time.perf_counter()
    ray = importlib.import_module(module)
    ray.init(**init_options(module))

    @ray.remote
    def one() -> int:
        return 1

    ray.get(one.remote())
    started_s = time.perf_counter() - begin
    from measuring import idle_figures

    idle_figures(report, started_s, ray.shutdown, settle_s=3.0)


def main() -> None:
    """Measure the figures named on the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--module", required=True)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--life", action="store_true")
    parser.add_argument("keys", nargs="*")
    arguments = parser.parse_args()
    if arguments.life:
        # The pipe's module imports psutil: too late to matter for `start`, which times only the system's own import.
        from measuring import Reporter

        life(arguments.module, Reporter(arguments.fd))
        return
    from measuring import QUICK, Pace, Reporter

    ray = importlib.import_module(arguments.module)
    ray.init(**init_options(arguments.module))
    loads = Workloads(ray)
    table = {key: getattr(loads, key) for key in arguments.keys if hasattr(loads, key)}
    Reporter(arguments.fd).run(arguments.keys, table, QUICK if arguments.quick else Pace())
    ray.shutdown()


if __name__ == "__main__":
    main()
