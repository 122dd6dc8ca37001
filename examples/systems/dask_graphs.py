"""Dask: its graphs, arrays and data frames, computed by Shoal as the scheduler.

python examples/systems/dask_graphs.py
"""

import time

import dask
import dask.array
import dask.bag
import dask.dataframe
import numpy as np
import pandas as pd

import shoal
from shoal.util.dask import enable_dask_on_shoal, shoal_dask_get


def main(size=3000):
    shoal.init(num_cpus=2, log_to_driver=False)

    # A graph by hand: a dict of tasks.
    graph = {"a": 1, "b": 2, "sum": (lambda x, y: x + y, "a", "b"), "ten": (lambda x: 10 * x, "sum")}
    print("a graph:", shoal_dask_get(graph, ["sum", ["ten"]]))

    # Arrays: chunks lie in shared memory, tasks read them there.
    x = dask.array.random.default_rng(1).random((size, size), chunks=(size // 3, size // 3))
    expression = (x @ x.T).mean(axis=0)[:5]
    expected = expression.compute(scheduler="synchronous")
    began = time.perf_counter()
    with enable_dask_on_shoal():
        print("an array:", bool(np.allclose(expression.compute(), expected)))
    ours = time.perf_counter() - began

    # Data frames: a shuffle, as rows of a key lie in several partitions.
    sales = pd.DataFrame({"town": ["Faro", "Oulu", "Pisa", "Faro"] * 500, "price": np.arange(2000.0)})
    total = dask.dataframe.from_pandas(sales, npartitions=8).groupby("town")["price"].sum()
    with enable_dask_on_shoal():
        print("a data frame:", total.compute().to_dict() == sales.groupby("town")["price"].sum().to_dict())

    # Delayed functions and bags.
    squares = [dask.delayed(pow)(number, 2) for number in range(100)]
    print("delayed:", dask.delayed(sum)(squares).compute(scheduler=shoal_dask_get))
    words = dask.bag.from_sequence(["shoal", "ray", "shoal", "dask"], npartitions=2)
    print("a bag:", dict(words.frequencies().compute(scheduler=shoal_dask_get)))

    # A failing task raises what it raised.
    try:
        dask.delayed(int)("twelve").compute(scheduler=shoal_dask_get)
    except ValueError as error:
        print("an error:", error.cause)
    print(f"seconds: {ours:.2f}")
    shoal.shutdown()


if __name__ == "__main__":
    main()
