"""The parameter server: its parts without processes, and models that train with it."""

from __future__ import annotations

import asyncio
import copy
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from shoal import train  # noqa: E402
from shoal.train.memory import keep_freed_memory  # noqa: E402
from shoal.train.parameter_server import Shard, _spread  # noqa: E402
from shoal.train.served_model import ServedModel, block_sizes, pieces_of  # noqa: E402


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(1, 5))
def test_blocks_and_pieces_are_all_of_the_tensors_in_order(tensors: list[int], shards: int) -> None:
    blocks = block_sizes(tensors, shards)
    share = -(-sum(tensors) // shards)
    assert sum(blocks) == sum(tensors) and all(0 < size <= share for size in blocks)
    pieces = pieces_of(tensors, blocks)
    flat = [(tensor, at) for part in pieces for tensor, begin, end in part for at in range(begin, end)]
    assert flat == [(tensor, at) for tensor, size in enumerate(tensors) for at in range(size)]
    assert [sum(end - begin for _, begin, end in part) for part in pieces] == blocks


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(1, 5))
def test_no_shard_has_much_more_than_another(sizes: list[int], shards: int) -> None:
    loads = [0] * shards
    for block, shard in enumerate(_spread(sizes, shards)):
        loads[shard] += sizes[block]
    assert max(loads) - min(loads) <= max(sizes)


def plain_shard(rate: float = 0.5) -> Shard:
    return Shard({0: np.zeros(4, np.float32)}, lambda: train.Momentum(rate, 0.0))


def test_a_round_answers_all_with_the_mean_applied() -> None:
    async def play() -> None:
        shard, ones = plain_shard(), np.ones(4, np.float32)
        waiting = asyncio.ensure_future(shard.exchange(0, 1, 3, [ones[:1], ones[1:]], 60))
        again = asyncio.ensure_future(shard.exchange(0, 1, 3, [ones[:1], ones[1:]], 60))  # the same one asks twice
        other = asyncio.ensure_future(shard.exchange(0, 0, 3, [2 * ones[:1], 2 * ones[1:]], 60))
        await asyncio.sleep(0)
        assert not waiting.done()
        last = await shard.exchange(0, 2, 3, [3 * ones[:1], 3 * ones[1:]], 60)
        for found in (last, *await asyncio.gather(waiting, again, other)):
            np.testing.assert_allclose(found, -ones)

    asyncio.run(play())


def test_a_round_that_lacks_somebody_is_given_up_for_all_and_the_next_one_works() -> None:
    async def play() -> None:
        shard, ones = plain_shard(), np.ones(4, np.float32)
        late = [asyncio.ensure_future(shard.exchange(0, worker, 3, ones, limit)) for worker, limit in ((0, 60), (2, 0))]
        for one in late:
            with pytest.raises(train.RoundIncomplete, match=r"workers \[1\] \(of 3\)"):
                await one
        np.testing.assert_allclose(await shard.exchange(0, 0, 1, ones, 0), -ones / 2)

    asyncio.run(play())


def test_a_gradient_of_another_size_fails_its_round() -> None:
    async def play() -> None:
        shard = plain_shard()
        first = asyncio.ensure_future(shard.exchange(0, 0, 2, np.ones(4, np.float32), 60))
        await asyncio.sleep(0)
        with pytest.raises(ValueError, match=r"pieces of \[4, 5\] numbers"):
            await shard.exchange(0, 1, 2, np.ones(5, np.float32), 60)
        with pytest.raises(ValueError):
            await first

    asyncio.run(play())


@pytest.mark.parametrize("numbers", [1, 3, 5])
def test_gradients_of_another_size_than_the_weights_are_refused(numbers: int) -> None:
    with pytest.raises(ValueError, match=f"has {numbers} numbers, the block of weights 4"):
        plain_shard().step(0, np.ones(numbers, np.float32))
    server = object.__new__(train.ParameterServer)
    server._bounds = [0, 2, 4]
    assert [part.size for part in server.split(np.ones(4, np.float32))] == [2, 2]
    with pytest.raises(ValueError, match=rf"4 numbers is wanted, not one of shape \({numbers},\)"):
        server.push(np.ones(numbers, np.float32))


def make_model() -> Any:
    torch.manual_seed(3)
    return torch.nn.Sequential(
        torch.nn.Linear(3, 64), torch.nn.Tanh(), torch.nn.Linear(64, 100), torch.nn.Linear(100, 1)
    )


def batch(worker: int) -> tuple[Any, Any]:
    x = torch.linspace(-1, 1, 24).reshape(8, 3) + worker
    return x, x.sum(dim=1, keepdim=True)


def loss_of(model: Any, worker: int) -> Any:
    x, y = batch(worker)
    return (model(x) - y).square().mean()


class Worker:
    """Trains with the others."""

    def __init__(self, server: Any, worker: int, workers: int | None, lag: int = 0) -> None:
        self.worker = worker
        self.served = ServedModel(make_model(), server, worker, workers, lag=lag, timeout_s=50)

    def steps(self, count: int) -> list[float]:
        losses = []
        for _ in range(count):
            loss = loss_of(self.served.model, self.worker)
            loss.backward()
            self.served.step()
            losses.append(loss.item())
        return losses

    def twice(self) -> None:
        loss_of(self.served.model, self.worker).backward()
        loss_of(self.served.model, self.worker).backward()


def test_served_models_learn_what_one_model_learns_of_both_batches(shoal_shared: ModuleType) -> None:
    server = train.serve_model(make_model(), 2, lambda: train.Momentum(0.02, 0.5))
    assert len(server.sizes) > 2
    other = shoal_shared.remote(num_cpus=0)(Worker).remote(server, 1, 2)
    begun = other.steps.remote(6)
    me = Worker(server, 0, 2)  # the driver is a worker like others
    me.steps(6)
    shoal_shared.get(begun)
    plain = make_model()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.02, momentum=0.5)
    for _ in range(6):
        optimizer.zero_grad()
        ((loss_of(plain, 0) + loss_of(plain, 1)) / 2).backward()
        optimizer.step()
    wanted = torch.nn.utils.parameters_to_vector(plain.parameters()).detach().numpy()
    np.testing.assert_allclose(server.pull(), wanted, rtol=1e-4, atol=1e-6)
    with pytest.raises(RuntimeError, match="a second backward pass"):
        me.twice()
    for actor in [other, *server.shards]:
        shoal_shared.kill(actor)


def test_a_model_trains_alone_and_with_a_lag_and_gradients_that_are_missing_are_zero(shoal_shared: ModuleType) -> None:
    server = train.serve_model(make_model(), 2, lambda: train.Momentum(0.02, 0.0))
    served = ServedModel(make_model(), server, lag=1)
    losses = []
    for _ in range(30):
        loss = loss_of(served.model, 0)
        loss.backward()
        served.step()
        losses.append(loss.item())
    assert losses[0] == losses[1], "the weights of a step are there a step later"
    assert losses[-1] < losses[0] / 4
    before = server.pull()
    half = copy.deepcopy(make_model())
    half[0].requires_grad_(False)
    frozen = ServedModel(half, server)
    loss_of(frozen.model, 0).backward()
    frozen.step()
    after = server.pull()
    first = sum(each.numel() for each in half[0].parameters())
    np.testing.assert_array_equal(after[:first], before[:first])
    assert not np.array_equal(after[first:], before[first:])
    with pytest.raises(ValueError, match=r"the model has \d+ weights"):
        ServedModel(torch.nn.Linear(1, 1), server)
    for shard in server.shards:
        shoal_shared.kill(shard)


def test_whoever_set_glibc_up_himself_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    assert not keep_freed_memory()


def test_workers_that_do_not_fit_are_told(shoal_shared: ModuleType) -> None:
    server = train.ParameterServer(np.zeros(4, np.float32), shards=2)
    with pytest.raises(ValueError, match="worker 5 of 2"):
        server.exchange(np.ones(4, np.float32), 5, 2)
    waits = server.exchange_block(0, 0, 2, np.ones(2, np.float32), 60.0)
    with pytest.raises(ValueError, match="a step of 2 workers"):
        shoal_shared.get(server.exchange_block(0, 1, 3, np.ones(2, np.float32), 60.0))
    shoal_shared.get(server.exchange_block(0, 1, 2, np.ones(2, np.float32), 60.0))
    assert shoal_shared.get(waits).shape == (2,), "the others' step is whole"
    torch = pytest.importorskip("torch")
    served = train.serve_model(torch.nn.Linear(2, 3))
    with pytest.raises(ValueError, match=r"tensors of \[\(1, 9\)\], the server's of \[\(3, 2\), \(3,\)\]"):
        train.ServedModel(torch.nn.Linear(9, 1, bias=False), served)
