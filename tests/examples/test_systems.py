"""The systems that the paper compares with: each example runs in seconds and shows what its page in docs/systems.md says."""

from __future__ import annotations

import importlib.util
import re

import pytest
from tests.examples.example_runs import EXAMPLES, ROOT, RUN_TIMEOUT_S, run_example

#: what each prints, line by line; the last line is its figure
EXPECTED = {
    "ciel": r"""
the root of 2 is 1\.414213562, found in 6 steps
27 needs 111 steps of Collatz
100,000 steps deep on one worker: done
microseconds a step: [\d.]+
""",
    "mapreduce": r"""
word count is right: True - skipped records: 2
a straggler was overtaken: True - a worker was killed: True
4,000,000 numbers are sorted: True
million numbers a second: [\d.]+
""",
    "dask_graphs": r"""
a graph: \[3, \[30\]\]
an array: True
delayed: 328350
a bag: \{'shoal': 2, 'ray': 1, 'dask': 1\}
an error: invalid literal for int\(\) with base 10: 'twelve'
seconds: [\d.]+
""",
    "fold": r"""
the same as one by one: True
873 nodes in 64 trees, 9 deep: few calls of the network
calls: \d+, ms: \d+
""",
    "mxnet": r"""
learned: True - version: 120
no reader saw half a write: True
reads and writes a second: \d+
""",
    "bsp": r"""
supersteps give the plain program's ranks: True - ran: 20
after a kill too: True - ran: 21
asynchronous, the same limit: True
supersteps a second: \d+
""",
}


def test_every_program_is_here_and_has_its_page() -> None:
    assert sorted(EXPECTED) == sorted(path.stem for path in (EXAMPLES / "systems").glob("*.py"))
    page = (ROOT / "docs" / "systems.md").read_text()
    for name in EXPECTED:
        assert f"examples/systems/{name}.py" in page


@pytest.mark.timeout(RUN_TIMEOUT_S + 30)
@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_system(name: str) -> None:
    if name == "dask_graphs" and importlib.util.find_spec("dask") is None:
        pytest.skip("needs dask")
    run = run_example(f"systems/{name}.py")
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
    expected = EXPECTED[name].strip().splitlines()
    printed = run.stdout.strip().splitlines()
    assert len(printed) == len(expected), run.stdout
    for line, pattern in zip(printed, expected, strict=True):
        assert re.fullmatch(pattern, line), f"{line!r} is not {pattern!r}"
