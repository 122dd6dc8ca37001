"""Collectives between actors, and the parameter server, with real processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from shoal import train  # noqa: E402
from shoal.train import collective  # noqa: E402


class Member:
    """Calls what it is told to, with its own data."""

    def run(self, function: Any) -> Any:
        return function(collective.rank(), collective.size())


@pytest.fixture
def members(shoal_shared: ModuleType) -> Iterator[list[Any]]:
    actors = [shoal_shared.remote(num_cpus=0)(Member).remote() for _ in range(3)]
    collective.create_group(actors, timeout_s=60)
    yield actors
    for actor in actors:
        shoal_shared.kill(actor)


def on_all(shoal: ModuleType, members: list[Any], function: Any) -> list[Any]:
    return shoal.get([member.run.remote(function) for member in members], timeout=60)


def test_every_collective_with_arrays_and_tensors(shoal_shared: ModuleType, members: list[Any]) -> None:
    def everything(rank: int, size: int) -> dict[str, Any]:
        own = np.full((2, 3), rank + 1.0)
        same = collective.allreduce(own)
        tensor = torch.full((4,), float(rank))
        collective.allreduce(tensor, op="max")
        spread = np.array([rank])
        collective.broadcast(spread, source=2)
        gathered = collective.allgather(np.array([rank, 10 * rank]))
        part = collective.reducescatter([np.array([rank + number]) for number in range(size)])
        collective.barrier()
        return {
            "in place": same is own,
            "sum": own[0, 0],
            "mean": collective.allreduce(np.array([float(rank)]), op="mean")[0],
            "max": tensor[0].item(),
            "spread": int(spread[0]),
            "gathered": [one.tolist() for one in gathered],
            "part": int(part[0]),
        }

    for rank, found in enumerate(on_all(shoal_shared, members, everything)):
        assert found == {
            "in place": True,
            "sum": 6.0,
            "mean": 1.0,
            "max": 2.0,
            "spread": 2,
            "gathered": [[0, 0], [1, 10], [2, 20]],
            "part": 3 + 3 * rank,
        }


def test_an_array_from_the_store_is_read_only_and_stays_so(shoal_shared: ModuleType, members: list[Any]) -> None:
    ref = shoal_shared.put(np.ones(100_000))

    def reduce(rank: int, size: int) -> tuple[float, float]:
        import shoal

        mine = shoal.get(refs[0])
        return float(collective.allreduce(mine)[0]), float(mine[0])

    refs = [ref]
    assert on_all(shoal_shared, members, reduce) == [(3.0, 1.0)] * 3


def test_what_is_asked_wrongly_says_so(shoal_shared: ModuleType, members: list[Any]) -> None:
    with pytest.raises(ValueError, match="each only once"):
        collective.create_group([members[0], members[0]], "twice")
    new = shoal_shared.remote(num_cpus=0)(Member).remote()
    with pytest.raises(ValueError, match="in a group 'default' already"):
        collective.create_group([members[0], new])
    collective.create_group([new])  # what was refused has left nothing behind
    shoal_shared.kill(new)
    with pytest.raises(ValueError, match="backend"):
        collective.create_group(members, "other", backend="mpi")
    with pytest.raises(ValueError, match="no group 'default'"):
        collective.rank()

    def mistakes(rank: int, size: int) -> list[str]:
        texts = []
        for wrong in (
            lambda: collective.allreduce([1, 2]),
            lambda: collective.allreduce(np.ones(2), op="median"),
            lambda: collective.allreduce(np.ones((4, 4)).T),
            lambda: collective.allreduce(np.ones(2, np.int64), op="mean"),
            lambda: collective.reducescatter([np.ones(1)]),
            lambda: collective.broadcast(np.ones(1), source=3),
            lambda: collective.allgather(np.ones(1, np.uint16)),
        ):
            try:
                wrong()
            except (TypeError, ValueError) as error:
                texts.append(str(error))
        return texts

    (texts, *_) = on_all(shoal_shared, members, mistakes)
    for text, part in zip(
        texts,
        ["not list", "median", "contiguous", "mean of torch.int64", "3 members", "from 0 to 2", "does not send"],
        strict=True,
    ):
        assert part in text


def test_members_that_do_not_do_the_same_hear_it_at_once(shoal_shared: ModuleType, members: list[Any]) -> None:
    def differ(rank: int, size: int) -> list[str]:
        texts = []
        shared = collective.group().shared
        for collective.group().shared in (shared, None):  # the same through gloo
            for call in (
                lambda: collective.allreduce(np.ones(2 + rank // 2)),
                lambda: collective.allreduce(np.ones(2, [np.float32, np.float64][rank // 2])),
                lambda: [collective.barrier, collective.barrier, lambda: collective.allgather(np.ones(1))][rank](),
            ):
                try:
                    call()
                except ValueError as error:
                    texts.append(str(error))
        collective.group().shared = shared
        assert collective.allreduce(np.ones(300_000))[-1] == size, "the group is whole"
        return texts

    for texts in on_all(shoal_shared, members, differ):
        assert len(texts) == 6 and texts[:3] == texts[3:]
        assert "member 1: allreduce (sum) of float64 (2,); member 2: allreduce (sum) of float64 (3,)" in texts[0]
        assert "float32" in texts[1] and "member 1: barrier; member 2: allgather" in texts[2]


def test_a_process_that_may_not_join_keeps_no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(collective._stores, "twice", object())
    monkeypatch.setitem(collective._groups, "twice", collective.Group("twice", 0, 1, None, None))
    with pytest.raises(ValueError, match="in a group 'twice' already"):
        collective.join("twice", "127.0.0.1", 1, 0, 1, "gloo", 60)
    assert "twice" not in collective._stores


def test_the_death_of_a_member_is_an_error_of_the_others(shoal_shared: ModuleType, members: list[Any]) -> None:
    def reduce(rank: int, size: int) -> None:
        from shoal.train import one_node

        if rank == 2:  # in the middle of it
            one_node.UFUNCS["sum"] = lambda *values, out: os._exit(1)
        collective.allreduce(np.ones(300_000))

    refs = [member.run.remote(reduce) for member in members]
    with pytest.raises(shoal_shared.exceptions.ActorError):
        shoal_shared.get(refs[2], timeout=70)
    refs += [member.run.remote(lambda rank, size: collective.barrier()) for member in members[:2]]
    for ref in refs[:2] + refs[3:]:
        with pytest.raises(train.CollectiveError, match="a new group"):
            shoal_shared.get(ref, timeout=70)
    # Those that live make a new one.
    collective.destroy_group(members[:2])
    collective.create_group(members[:2], timeout_s=60)
    found = on_all(shoal_shared, members[:2], lambda rank, size: float(collective.allreduce(np.ones(1))[0]))
    assert found == [2.0, 2.0]


def test_parameter_server_steps_are_those_of_one_process(shoal_shared: ModuleType) -> None:
    rng = np.random.default_rng(1)
    weights = rng.normal(size=20_001).astype(np.float32)
    server = train.ParameterServer(weights, shards=3, rule=lambda: train.Momentum(0.1, 0.9))
    plain, rule = weights.copy(), train.Momentum(0.1, 0.9)
    for _ in range(3):
        gradients = rng.normal(size=(2, weights.size)).astype(np.float32)
        rows = [[shoal_shared.put(part) for part in server.split(gradient)] for gradient in gradients]
        new = np.concatenate(shoal_shared.get(server.step(rows)))
        rule.step(plain, gradients.sum(axis=0) / np.float32(2))
        np.testing.assert_allclose(new, plain, rtol=1e-5)
    state = server.state()
    other = train.ParameterServer(np.zeros_like(weights), shards=3, rule=lambda: train.Momentum(0.1, 0.9))
    other.load(state)
    gradient = rng.normal(size=weights.size).astype(np.float32)
    np.testing.assert_array_equal(other.push(gradient), server.push(gradient))
    np.testing.assert_array_equal(other.pull(), server.pull())
    with pytest.raises(ValueError, match="has blocks of"):
        train.ParameterServer(weights, shards=3, sizes=[1, 20_000 - 3, 3]).load(state)
    with pytest.raises(ValueError, match="do not cut"):
        train.ParameterServer(weights, shards=1, sizes=[7, 8])
    with pytest.raises(ValueError, match="cannot share"):
        train.ParameterServer(np.zeros(2, np.float32), shards=3)
    with pytest.raises(ValueError, match="of 3 shards"):
        train.ParameterServer(weights, shards=2).load(state)
