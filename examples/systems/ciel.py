"""CIEL (NSDI'11): a loop that depends on its data, 100,000 steps deep, on one worker, by tail delegation.

    python examples/systems/ciel.py

CIEL's tasks may spawn others and delegate their output to one of them. `return f.delegate(...)` is that: no step waits for the next one, and
neither the stack nor the number of tasks grows. The loop here looks for a fixed point: who knows how many steps it takes?
"""

import time

import shoal


@shoal.remote
def newton(x, target, steps):
    better = (x + target / x) / 2
    if abs(better - x) < 1e-12:
        return better, steps
    return newton.delegate(better, target, steps + 1)


@shoal.remote
def collatz(number, steps=0):
    if number == 1:
        return steps
    return collatz.delegate(number // 2 if number % 2 == 0 else 3 * number + 1, steps + 1)


@shoal.remote
def count_down(left):
    return count_down.delegate(left - 1) if left else "done"


def main(depth=100_000):
    shoal.init(num_cpus=1, log_to_driver=False)
    root, steps = shoal.get(newton.remote(1.0, 2.0, 1))
    print(f"the root of 2 is {root:.9f}, found in {steps} steps")
    print("27 needs", shoal.get(collatz.remote(27)), "steps of Collatz")
    began = time.perf_counter()
    print(f"{depth:,} steps deep on one worker:", shoal.get(count_down.remote(depth)))
    print(f"microseconds a step: {(time.perf_counter() - began) / depth * 1e6:.1f}")
    shoal.shutdown()


if __name__ == "__main__":
    main()
