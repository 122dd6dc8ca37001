"""The systems that the paper compares with: each example runs in seconds and shows what its page in docs/systems.md says."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest
from tests.examples.example_runs import EXAMPLES, ROOT, RUN_TIMEOUT_S, check_output, run_example

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
a data frame: True
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
    assert sorted(EXPECTED) == sorted(path.stem for path in (ROOT / "docs" / "systems").glob("*.md"))
    contents = (ROOT / "docs" / "systems.md").read_text()
    for name in EXPECTED:
        assert f"examples/systems/{name}.py" in contents and f"systems/{name}.md" in contents


def without_indents(code: str) -> str:
    """Inner functions are shown without theirs."""
    return "\n".join(line.strip() for line in code.splitlines() if line.strip())


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_its_page_has_the_program_its_output_and_its_figure(name: str) -> None:
    page = (ROOT / "docs" / "systems" / f"{name}.md").read_text()
    source = (EXAMPLES / "systems" / f"{name}.py").read_text()
    blocks = {
        language: re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)
        for language in ("python", "text", "json")
    }
    assert blocks["python"] and all(without_indents(block) in without_indents(source) for block in blocks["python"])
    (printed,), (figure,) = blocks["text"], blocks["json"]
    assert re.fullmatch(EXPECTED[name].strip(), printed.strip())
    assert json.loads(figure)["benchmark"] == "systems" and "Measured, by `python benchmarks/systems.py" in page
    assert (ROOT / "docs" / "pictures" / f"system_{name}.png").stat().st_size > 3000
    assert f"](../pictures/system_{name}.png)" in page


def test_each_figure_is_measured_in_short() -> None:
    """But for Dask's, which mostly imports; its program runs below."""
    systems = ["ciel", "mapreduce", "fold", "mxnet", "bsp"]
    run = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "systems.py"), "--quick", *systems],
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert run.returncode == 0, run.stderr
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert [line["system"] for line in lines] == systems
    assert all(value > 0 for line in lines for value in line["values"].values())


@pytest.mark.timeout(RUN_TIMEOUT_S + 30)
@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_system(name: str) -> None:
    if name == "dask_graphs" and importlib.util.find_spec("dask") is None:
        pytest.skip("needs dask")
    run = run_example(f"systems/{name}.py")
    check_output(run, EXPECTED[name])
