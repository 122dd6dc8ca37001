"""Every example runs to its end, quickly, prints what it promises, and complains of nothing."""

from __future__ import annotations

import importlib.util

import pytest
from tests.examples.example_runs import EXAMPLES, RUN_TIMEOUT_S, check_output, run_example

NAMES = sorted(path.name for path in EXAMPLES.glob("[0-9][0-9]_*.py"))

#: the whole output of each, line by line, as regular expressions
EXPECTED: dict[str, str] = {
    "01_tasks.py": r"""
squares: \[0, 1, 4, 9, 16\]
sum of squares, as a tree of tasks: 140
17 = 5 \* 3 \+ 2
fibonacci\(8\): 21
pi is about 3\.144 \(40 tasks, 1,000,000 darts\)
""",
    "02_objects.py": r"""
sums of 3 columns: \[3998000000\.0, 3998002000\.0, 3998004000\.0\]
read-only: assignment destination is read-only
a column of the scaled matrix: 7996000000\.0
the first of the refs: one
first to finish: 0\.0 - still running: 1
\d+ files, [\d,]{7,} words; 'return' and 'self' among the top 3: True
""",
    "03_actors.py": r"""
three calls, in order: \[11, 12, 13\]
after 4 tasks with 20 calls each: 93
found by name: 6
most common divisors below 200: \[\(1, 199\), \(2, 99\), \(3, 66\)\]
learned weights: \[ 3\.  -1\.   0\.5\]
after kill: ActorDiedError
""",
    "04_errors.py": r"""
caught as ValueError: invalid literal for int\(\) with base 10: 'twelve'
and as TaskError: True
through two tasks: invalid literal for int\(\) with base 10: 'thirteen'
flaky: done after 3 attempts
crashed: True
not ready after 0\.2 s
cancelled
notebook: survived \['hello', 'crashed'\]
""",
    "05_resources.py": r"""
in total: \{'CPU': 4\.0, 'licence': 2\.0\}
1 CPU each: [1-4] at a time
2 CPUs each: [12] at a time
half a CPU each: [1-8] at a time
a licence each: [12] at a time
64 CPUs: work asks for 64 CPU
assigned, MODE, OMP_NUM_THREADS: \(\{'CPU': 2\.0\}, 'fast', '2'\)
children of waiting parents: 18
beside an actor with 3 of the 4 CPUs: 1 at a time
""",
    "06_generators.py": r"""
countdown: \[5, 4, 3, 2, 1\]
item: first
item: second
error: no third
sum of squares: 328350
the producer was never more than 5 items ahead: True
tail: \['line 2', 'line 3'\]
""",
    "07_async.py": r"""
awaited: 9
gathered: \[0, 1, 4, 9\]
wait_for: too slow
letters: \['a', 'b', 'c'\]
8 pages of 0\.1 s in less than 0\.5 s: (True|False) - fetched: 8
pong while computing: True
computed
from 4 threads: \[0, 1, 4, 9\] - by a future: 49
""",
    "08_utilities.py": r"""
ActorPool: \[0, 1, 4, 9, 16, 25\]
Queue: \[0, 1, 2, 3, 4\]
Pool: \[1, 2, 3\] \[3, 7\]
Executor: \[1, 2, 4, 8, 16\]
GridSearchCV: \{'C': 10, 'gamma': 0\.0005\}
the best gamma of 9 is 0\.0010, with an accuracy of 0\.92
""",
    "09_from_ray.py": r"""
3 ready, 7 others; all: \[1, 2, 3, 4, 5, 6, 7, 8, 9, 10\]
added 42 - total 42 - by name: True
RayTaskError, and TypeError: True
total of a pool: 6
ids are hex strings: 8 32
""",
    "10_tune.py": r"""
best of the grid: \{'x': 3, 'offset': 0\.5\} of 4
16 trials, 0 errors; above 0\.85: True
some ended early: True
epochs of the best: 9 - its units: True
as a table: 16 rows with \['config/units', 'config/rate'\]
what mattered most: rate
TensorBoard: 16 event files
can be restored: True
nothing is done twice: True
Optuna is closer than 0\.5: True
steps by pace: \{1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 7: 3, 8: 3, 9: 9\}
who stood still took over: True
failed: raises - TaskError\(KeyError\)
failed: dies - ActorDiedError
failed: typo - ValueError
3 errors; the best: \{'case': 'works'\}
x: tune\.uniform was not called: write tune\.uniform\(\.\.\.\)
""",
    "11_cluster.py": r"""
nodes: \['lab', 'office'\] with 3\.0 CPUs
by default: office
with the gripper: lab
\['CUP', 'PEN'\] \['gripped cup', 'gripped pen'\]
nobody has a gripper now: None
careful ran on a new node
left: \['office'\]
""",
    "12_placement.py": r"""
bundles on: \['left', 'right'\]
tasks on: \['left', 'right'\]
trainers on: \['left', 'left', 'right', 'right'\]
children go along: True
or do not: True
placed: False
PENDING - its 3 bundles \(6 CPU\) do not fit on 3 different nodes into the nodes there are
a trainer: its placement group was removed
placed: True
by its id: right
by labels: left
shorter: left
""",
    "13_fault_tolerance.py": r"""
done at the second attempt
planned by the dead: \[1, 2\]
every call counted once: True
balances: \[-200, 200\]
step 42
checkpoint_interval is for actors with plain methods that run one at a time, .*; Waiter has async methods
""",
    "14_rl.py": r"""
evolution balances the pole: True
resumed at the same generation: True
PPO learns: True
True True
100 100
""",
    "15_train.py": r"""
epochs: 20 - loss below 0\.1: True
allreduce: \[3\.0, 3\.0, 3\.0\]
learned: \[3, -1\]
learned by each: \[\[3, -1\], \[3, -1\]\]
""",
}

NEEDS = {
    "02_objects.py": ["numpy"],
    "03_actors.py": ["numpy"],
    "08_utilities.py": ["joblib", "numpy", "sklearn"],
    "10_tune.py": ["sklearn", "optuna", "pandas", "torch", "tensorboardX", "matplotlib"],
    "14_rl.py": ["gymnasium", "torch"],
    "15_train.py": ["torch"],
}


def test_every_example_has_an_expectation() -> None:
    assert list(EXPECTED) == NAMES


@pytest.mark.timeout(RUN_TIMEOUT_S + 30)
@pytest.mark.parametrize("name", NAMES)
def test_example(name: str) -> None:
    for module in NEEDS.get(name, []):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}")
    run = run_example(name)
    check_output(run, EXPECTED[name])
    assert run.stderr == "", run.stderr
