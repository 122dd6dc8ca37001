"""Resources: what a task needs, what there is, and what waits for what."""

import os
import time

import shoal

# Resources are counts, not measurements: 4 CPUs here means "up to 4 tasks of 1 CPU at a time", on whatever machine.
shoal.init(num_cpus=4, resources={"licence": 2})
print("in total:", {name: amount for name, amount in shoal.cluster_resources().items() if name in ("CPU", "licence")})


@shoal.remote
def work():
    start = time.monotonic()
    time.sleep(0.1)
    return start, time.monotonic()


def most_at_a_time(spans):
    return max(sum(start <= moment < end for start, end in spans) for moment, _ in spans)


for title, options in {
    "1 CPU each": {"num_cpus": 1},
    "2 CPUs each": {"num_cpus": 2},
    "half a CPU each": {"num_cpus": 0.5},
    "a licence each": {"num_cpus": 0, "resources": {"licence": 1}},
}.items():
    spans = shoal.get([work.options(**options).remote() for _ in range(12)])
    print(f"{title}: {most_at_a_time(spans)} at a time")

# What nobody can ever provide is an error, not an endless wait.
try:
    shoal.get(work.options(num_cpus=64).remote())
except shoal.exceptions.TaskUnschedulableError as error:
    print("64 CPUs:", str(error).split(",")[0])


# Inside a task: what it was given. Environment variables can be set for a task or an actor.
@shoal.remote(num_cpus=2, runtime_env={"env_vars": {"MODE": "fast"}})
def look():
    return shoal.get_runtime_context().get_assigned_resources(), os.environ["MODE"], os.environ["OMP_NUM_THREADS"]


print("assigned, MODE, OMP_NUM_THREADS:", shoal.get(look.remote()))


# A task that waits in `get` lends its CPUs to others meanwhile: with 4 CPUs, 6 parents can wait for their children.
@shoal.remote
def parent(children):
    return sum(shoal.get([child.remote() for _ in range(children)]))


@shoal.remote
def child():
    return 1


print("children of waiting parents:", sum(shoal.get([parent.remote(3) for _ in range(6)])))


# An actor needs a CPU to be placed, and none while it lives. What it asks for explicitly is its own until it ends.
@shoal.remote(num_cpus=3)
class Big:
    def ready(self):
        return True


big = Big.remote()
shoal.get(big.ready.remote())
spans = shoal.get([work.remote() for _ in range(3)])
print(f"beside an actor with 3 of the 4 CPUs: {most_at_a_time(spans)} at a time")

shoal.shutdown()
