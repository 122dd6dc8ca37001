"""Campaigns of the worlds that live beside the tests: so many seeds of one, and the command that shows a failed one again.

    python -m tests.campaigns refs --seeds 1000        python -m tests.campaigns refs --seed 17
    python -m tests.campaigns nodes --seeds 100        the same with deaths of nodes
    python -m tests.campaigns keepers --seeds 1000     with exact actors, and deaths of these and of nodes

`python -m shoal.simulator campaign` is the one for whole clusters in virtual time. docs/simulation.md says what each covers.

How to extend: a world that plays one seed and raises AssertionError, in `WORLDS`.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable

from tests.node import test_keepers as keepers
from tests.node.test_refs_that_are_remade import play

from shoal.runtime.objects import dropped

WORLDS: dict[str, Callable[[int], Counter[str]]] = {
    "refs": play,
    "nodes": lambda seed: play(seed, node_deaths=2),
    "keepers": keepers.play,
}


def main() -> int:
    """Play seeds; 1 when one has failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns")
    parser.add_argument("world", choices=sorted(WORLDS))
    parser.add_argument("--seed", type=int, help="this one only")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    seeds = range(given.first, given.first + given.seeds) if given.seed is None else [given.seed]
    began, failed, counts = time.perf_counter(), 0, Counter[str]()
    for seed in seeds:
        try:
            counts.update(WORLDS[given.world](seed))
            continue
        except Exception:
            failed += 1
            traceback.print_exc(limit=-4)
            print(f"shown again by: python -m tests.campaigns {given.world} --seed {seed}", file=sys.stderr)
        # Refs of the failed world end now, with the frames that the exception kept, not in the middle of the next one.
        gc.collect()
        dropped.clear()
    told = ", ".join(f"{count} x {name}" for name, count in sorted(counts.items()))
    print(f"{given.world}: {len(seeds)} seeds, {failed} failed, {time.perf_counter() - began:.1f} s; {told}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
