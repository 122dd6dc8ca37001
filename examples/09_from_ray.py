"""A program written for Ray, with one line changed."""

import shoal as ray  # was: import ray

ray.init(num_cpus=4, include_dashboard=False)


@ray.remote
def f(x):
    return x + 1


@ray.remote(num_cpus=1, max_restarts=-1)
class Accumulator:
    def __init__(self):
        self.total = 0

    @ray.method(num_returns=2)
    def add(self, x):
        self.total += x
        return x, self.total


refs = [f.remote(i) for i in range(10)]
ready, rest = ray.wait(refs, num_returns=3, timeout=10)
print(len(ready), "ready,", len(rest), "others; all:", sorted(ray.get(ready + rest)))

accumulator = Accumulator.options(name="acc", lifetime="detached", get_if_exists=True).remote()
added, total = accumulator.add.remote(f.remote(41))
print("added", ray.get(added), "- total", ray.get(total), "- by name:", ray.get_actor("acc") == accumulator)

try:
    ray.get(f.remote("text"))
except ray.exceptions.RayTaskError as error:
    print("RayTaskError, and TypeError:", isinstance(error, TypeError))

pool = ray.util.ActorPool([Accumulator.remote() for _ in range(2)])
results = pool.map_unordered(lambda actor, x: actor.__ray_call__.remote(lambda self, y: y, x), range(4))
print("total of a pool:", sum(results))

context = ray.get_runtime_context()
print("ids are hex strings:", len(context.get_job_id()), len(context.get_node_id()))

ray.kill(accumulator)
ray.shutdown()
