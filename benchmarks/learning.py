"""All figures of reinforcement learning, training, search and the compared systems, one after the other, in a bounded time.

    python benchmarks/learning.py [--minutes 35] [--only images,tune_1] [--short] [--ray .venv-ray/bin/python] [--write]      (make bench-learning)

Runs the commands of `PARTS` in their order, each in a process group of its own that is killed when its time is up, and keeps what they print in
`out/learning/NAME.jsonl` (lines of JSON) and `NAME.log` (all else). A part that might not end within `--minutes` is left out, and said so. Nothing
else may run on the machine: `load` in the lines tells. `--write` has docs/write_rl.py put the lines of parts that ran to their end into
docs/benchmarks.md and draw the pictures; those of `systems` and `churn` write themselves. `--short` is for a test: everything small, no figures.

How to extend: a row in `PARTS`, and a block for its name in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(slots=True)
class Part:
    """One command. `limit_s`: it is killed then; on two quiet CPUs it takes half of that at most."""

    name: str
    limit_s: float
    command: str  #: below benchmarks/
    short: str  #: the same in short


TUNE = "tune_overhead.py --ray {ray}"
PARTS = [
    Part("images", 420, "training.py --parts images --seconds 2 --turns 5", "--seconds 0.1 --turns 1"),
    Part("allreduce", 360, "training.py --parts allreduce --seconds 1 --turns 3", "--seconds 0.1 --megabytes 10"),
    Part("tune_1", 240, TUNE, "--trials 6 --epochs 3 --samples 3"),
    Part("tune_2", 240, TUNE, "--trials 6 --epochs 3 --samples 3"),
    Part("systems", 420, "systems.py --write {docs} ciel mapreduce fold mxnet bsp dask", "--quick"),
    Part("serving", 120, "rl_serving.py --seconds 8", "--seconds 0.3"),
    Part("simulation", 120, "rl_simulation.py --seconds 2", "--seconds 0.1"),
    Part("evolution", 120, "evolution.py --times {out}/humanoid.json", "--workers 1"),
    Part("elastic", 120, "elastic_training.py", ""),
    Part("churn", 120, "node_churn.py --picture {docs}/pictures/node_churn.png", "--links 20"),
    Part("learning1", 260, "rl_learning.py ppo CartPole-v1 --seeds 1,2,3,4,5 --seconds 45", "--seeds 1 --seconds 1"),
    Part("learning2", 260, "rl_learning.py ppo Pendulum-v1 --seeds 1,2,3 --seconds 75", "--seeds 1 --seconds 1"),
    Part("learning3", 260, "rl_learning.py evolution CartPole-v1 --seeds 1,2,3,4,5 --seconds 45", "--seeds 1 --seconds 1"),
    Part("learning4", 500, "rl_learning.py evolution Pendulum-v1 --seeds 1,2,3,4,5 --steps 5e6 --seconds 90", "--seeds 1 --seconds 1"),
]  # fmt: skip


def run(part: Part, options: argparse.Namespace, out: Path, docs: Path) -> str | None:
    """Run a part to its end; what went wrong, or None."""
    words = part.command.format(ray=options.ray, out=out, docs=docs).split()
    if not options.ray and "--ray" in words:
        del words[words.index("--ray") : words.index("--ray") + 2]
    command = [sys.executable, str(ROOT / "benchmarks" / words[0]), *words[1:], *(part.short.split() if options.short else [])]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}
    lines = []
    with (out / f"{part.name}.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, start_new_session=True
        )
        try:
            printed, _ = process.communicate(timeout=part.limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return f"killed after {part.limit_s:g} s"
        for line in printed.splitlines(keepends=True):
            lines.append(line) if line.startswith("{") else log.write(line)
    if process.returncode != 0:
        return f"ended with {process.returncode}; see {out / part.name}.log"
    failed = [line for line in lines if '"error":' in line]
    if failed or not lines:
        return f"measured in vain: {failed[0].strip() if failed else 'no line'}"
    (out / f"{part.name}.jsonl").write_text("".join(lines))
    return None


def main() -> None:
    """All parts that there is time for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=35.0, help="no part begins that might not end by then")
    parser.add_argument("--only", default="", help="names of parts, by commas")
    parser.add_argument("--short", action="store_true", help="everything small")
    parser.add_argument(
        "--ray", default="", help="Python of an environment with ray[tune], for the search beside Ray's"
    )
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md and the pictures")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "learning")
    options = parser.parse_args()
    chosen = [part for part in PARTS if not options.only or part.name in options.only.split(",")]
    if unknown := set(filter(None, options.only.split(","))) - {part.name for part in PARTS}:
        parser.error(f"there is no part {sorted(unknown)}; there are {', '.join(part.name for part in PARTS)}")
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    # Without --write what systems.py and node_churn.py draw lies beside the lines.
    docs = ROOT / "docs" if options.write else out
    if docs is out:
        for folder in ("systems", "pictures"):
            (out / folder).mkdir(exist_ok=True)
        for page in (ROOT / "docs" / "systems").glob("*.md"):
            (out / "systems" / page.name).write_bytes(page.read_bytes())
    begin, whole = time.monotonic(), []
    for part in chosen:
        (out / f"{part.name}.jsonl").unlink(missing_ok=True)
        spent_s = time.monotonic() - begin
        if spent_s + part.limit_s > 60 * options.minutes:
            print(f"{part.name}: left out, {spent_s / 60:.1f} of {options.minutes:g} minutes are over", flush=True)
            continue
        problem = run(part, options, out, docs)
        took_s = time.monotonic() - begin - spent_s
        print(f"{part.name}: {problem or 'whole'}, {took_s:.0f} s, load {os.getloadavg()[0]:.1f}", flush=True)
        if problem is None:
            whole.append(str(out / f"{part.name}.jsonl"))
    if whole:
        write = ["--write"] if options.write else ["--pictures", str(out / "pictures")]
        subprocess.run([sys.executable, str(ROOT / "docs" / "write_rl.py"), *whole, *write], check=True, timeout=120)
    print(f"{len(whole)} of {len(chosen)} parts, {(time.monotonic() - begin) / 60:.1f} minutes", flush=True)
    sys.exit(len(whole) < len(chosen))


if __name__ == "__main__":
    main()
