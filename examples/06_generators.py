"""Generators: results one by one, while the task still makes them. Ends with a pipeline that does not run ahead of its consumer."""

import time

import shoal

shoal.init(num_cpus=4)


# A remote generator function returns an iterator of refs. The first one is there long before the last.
@shoal.remote
def countdown(n):
    while n > 0:
        yield n
        n -= 1


print("countdown:", [shoal.get(ref) for ref in countdown.remote(5)])


# An exception stands in the ref at which it was raised; what came before is kept.
@shoal.remote
def breaks():
    yield "first"
    yield "second"
    raise RuntimeError("no third")


for ref in breaks.remote():
    try:
        print("item:", shoal.get(ref))
    except RuntimeError as error:
        print("error:", error.cause)


# A pipeline: records are made by one task, parsed by others, and summed up here. No list of them is ever held.
@shoal.remote
def records(count):
    for number in range(count):
        yield f"{number},{number * number}"


@shoal.remote
def parse(record):
    return int(record.split(",")[1])


print("sum of squares:", sum(shoal.get([parse.remote(ref) for ref in records.remote(100)])))


# Backpressure: a producer that is faster than its consumer waits once so many items lie there that nobody has taken.
@shoal.remote(_generator_backpressure_num_objects=3)
def timestamps(count):
    for _ in range(count):
        yield time.monotonic()


taken, made = [], []
for ref in timestamps.remote(20):
    time.sleep(0.02)  # a slow consumer
    taken.append(time.monotonic())
    made.append(shoal.get(ref))
ahead = max(sum(moment < taken[index] for moment in made) - index for index in range(20))
print("the producer was never more than 5 items ahead:", ahead <= 5)


# Methods of actors can be generators too.
@shoal.remote
class Log:
    def __init__(self):
        self.lines = [f"line {number}" for number in range(4)]

    def tail(self, start):
        yield from self.lines[start:]


log = Log.remote()
print("tail:", [shoal.get(ref) for ref in log.tail.remote(2)])

shoal.shutdown()
