"""asyncio and threads: waiting for tasks in a coroutine, actors that do many things at once."""

import asyncio
import threading
import time

import shoal

shoal.init(num_cpus=2)


@shoal.remote
def slow_square(x):
    time.sleep(0.05)
    return x * x


# A ref can be awaited, gathered, and given a time limit like any other awaitable.
async def main():
    print("awaited:", await slow_square.remote(3))
    print("gathered:", await asyncio.gather(*[slow_square.remote(x) for x in range(4)]))
    try:
        await asyncio.wait_for(slow_square.remote(10), timeout=0.001)
    except TimeoutError:
        print("wait_for: too slow")


asyncio.run(main())


# An actor with an async method runs on an event loop: calls interleave at every await. Here one waits for what another brings.
@shoal.remote
class Mailbox:
    def __init__(self):
        self.queue = asyncio.Queue()

    async def get(self):
        return await self.queue.get()

    async def put(self, letter):
        await self.queue.put(letter)


mailbox = Mailbox.remote()
waiting = [mailbox.get.remote() for _ in range(3)]  # all three wait inside of the actor
for letter in ("a", "b", "c"):
    mailbox.put.remote(letter)
print("letters:", sorted(shoal.get(waiting)))


# Plain methods can run in threads: `max_concurrency`. As with any threads, shared state needs a lock.
@shoal.remote(max_concurrency=8)
class Pages:
    def __init__(self):
        self.lock = threading.Lock()
        self.fetched = 0

    def fetch(self, url):
        time.sleep(0.1)  # a slow server
        with self.lock:
            self.fetched += 1
        return len(url)

    def count(self):
        return self.fetched


pages = Pages.remote()
start = time.perf_counter()
shoal.get([pages.fetch.remote(f"https://example.org/{number}") for number in range(8)])
at_a_time = time.perf_counter() - start < 0.5
print("8 pages of 0.1 s in less than 0.5 s:", at_a_time, "- fetched:", shoal.get(pages.count.remote()))


# Concurrency groups keep kinds of calls apart: the slow ones cannot take all threads.
@shoal.remote(concurrency_groups={"slow": 1, "quick": 1})
class Server:
    @shoal.method(concurrency_group="slow")
    def compute(self):
        time.sleep(0.5)
        return "computed"

    @shoal.method(concurrency_group="quick")
    def ping(self):
        return "pong"


server = Server.remote()
computing = server.compute.remote()
print(shoal.get(server.ping.remote()), "while computing:", not shoal.wait([computing], timeout=0)[0])
print(shoal.get(computing))

# Threads of the driver may use everything as well; `ref.future()` gives a concurrent.futures.Future.
results = []
threads = [threading.Thread(target=lambda x=x: results.append(shoal.get(slow_square.remote(x)))) for x in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("from 4 threads:", sorted(results), "- by a future:", slow_square.remote(7).future().result(timeout=10))

shoal.shutdown()
