"""TensorFlow Fold (ICLR'17): dynamic batching. Calls over random trees coalesce into about as many as the trees are deep.

    python examples/systems/fold.py

A sentence is a tree of words; each inner node joins two vectors by the same small network. Trees differ in shape, so no batch can be planned. Calls
of a `@shoal.remote(batch=...)` function that wait at the same time become one call with lists, level by level.
"""

import random
import time

import numpy as np

import shoal

SIZE = 128
WEIGHTS = np.random.default_rng(0).normal(size=(2 * SIZE, SIZE)).astype(np.float32) / SIZE**0.5
WORDS = np.random.default_rng(1).normal(size=(1000, SIZE)).astype(np.float32)


def join(lefts, rights):
    """The network, for many pairs at once."""
    return list(np.tanh(np.concatenate([np.stack(lefts), np.stack(rights)], axis=1) @ WEIGHTS))


joined = shoal.remote(batch=4096)(join)


def random_tree(dice, leaves):
    if leaves == 1:
        return dice.randrange(1000)
    left = dice.randrange(1, leaves)
    return random_tree(dice, left), random_tree(dice, leaves - left)


def submit(tree):
    """A ref to the tree's vector; words are plain arguments."""
    if isinstance(tree, int):
        return WORDS[tree]
    return joined.remote(submit(tree[0]), submit(tree[1]))


def compute(tree):
    """The same, one by one."""
    if isinstance(tree, int):
        return WORDS[tree]
    return join([compute(tree[0])], [compute(tree[1])])[0]


def depth(tree):
    return 0 if isinstance(tree, int) else 1 + max(map(depth, tree))


def main(trees=64):
    shoal.init(num_cpus=2, log_to_driver=False)
    dice = random.Random(3)
    forest = [random_tree(dice, dice.randrange(5, 25)) for _ in range(trees)]
    nodes, deepest = sum(str(tree).count("(") for tree in forest), max(map(depth, forest))
    shoal.get(joined.remote(WORDS[0], WORDS[1]))
    began = time.perf_counter()
    vectors = shoal.get([submit(tree) for tree in forest])
    elapsed = time.perf_counter() - began
    calls = shoal.get(joined.calls()) - 1
    print(
        "the same as one by one:",
        all(np.allclose(vector, compute(tree), atol=1e-4) for vector, tree in zip(vectors, forest, strict=True)),
    )
    print(
        f"{nodes} nodes in {trees} trees, {deepest} deep: {'few' if calls <= 4 * deepest else 'too many'} calls of the network"
    )
    print(f"calls: {calls}, ms: {elapsed * 1e3:.0f}")
    shoal.shutdown()


if __name__ == "__main__":
    main()
