"""Search spaces: what a hyperparameter may be, and how a configuration is drawn.

Purpose: `{"lr": loguniform(1e-4, 1e-1), "units": choice([32, 64]), "seed": grid_search([0, 1])}` describes many configurations.

Design: domains are small plain objects; a draw takes its dice (`random.Random`) as an argument, so the same seed gives the same
configuration anywhere. Dicts and lists nest. A grid is the dict `{"grid_search": [...]}` that Ray's users know.

How to extend: a `Domain` needs `sample(dice)`; `optuna_search.distribution_of` says what it is for Optuna.
"""

from __future__ import annotations

import difflib
import math
import numbers
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

GRID_KEY = "grid_search"


class Domain:
    """A set of values to draw from."""

    def sample(self, dice: random.Random) -> Any:
        """One value."""
        raise NotImplementedError


def _check_range(name: str, low: float, high: float, log: bool, step: float | None) -> None:
    """Bounds that make sense, or a ValueError that says why not."""
    for bound in (low, high):
        if isinstance(bound, bool) or not isinstance(bound, numbers.Real):
            raise TypeError(f"tune.{name}: a bound is a number, not {bound!r}")
    if not low < high:
        raise ValueError(f"tune.{name}({low}, {high}): the lower bound must be below the upper one")
    if log and low <= 0:
        raise ValueError(f"tune.{name}({low}, {high}): a logarithmic scale begins above 0")
    if step is not None and step <= 0:
        raise ValueError(f"tune.{name}: the step {step} must be above 0")


@dataclass(slots=True)
class Float(Domain):
    """Floats in [low, high], on a linear or logarithmic scale, in multiples of `step` if given."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def sample(self, dice: random.Random) -> float:
        """One value."""
        if self.log:
            value = math.exp(dice.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = dice.uniform(self.low, self.high)
        if self.step is not None:
            value = round(value / self.step) * self.step
        return min(max(value, self.low), self.high)


@dataclass(slots=True)
class Integer(Domain):
    """Integers in [low, high], both included, on a linear or logarithmic scale, in multiples of `step`."""

    low: int
    high: int
    log: bool = False
    step: int = 1

    def sample(self, dice: random.Random) -> int:
        """One value."""
        if self.log:
            value = math.floor(math.exp(dice.uniform(math.log(self.low), math.log(self.high + 1))))
        else:
            value = dice.randint(self.low, self.high)
        if self.step != 1:
            value = round(value / self.step) * self.step
        return min(max(value, self.low), self.high)


@dataclass(slots=True)
class Normal(Domain):
    """Normally distributed floats."""

    mean: float = 0.0
    deviation: float = 1.0
    step: float | None = None

    def sample(self, dice: random.Random) -> float:
        """One value."""
        value = dice.gauss(self.mean, self.deviation)
        return value if self.step is None else round(value / self.step) * self.step


@dataclass(slots=True)
class Categorical(Domain):
    """One of the given values."""

    categories: list[Any]

    def sample(self, dice: random.Random) -> Any:
        """One value."""
        return dice.choice(self.categories)


@dataclass(slots=True)
class Function(Domain):
    """What a function of the configuration so far returns; functions are called last."""

    function: Callable[..., Any]

    def sample(self, dice: random.Random) -> Any:
        """Not without a configuration: see `draw`."""
        raise TypeError("sample_from is drawn with its configuration")


def uniform(lower: float, upper: float) -> Float:
    """Floats between `lower` and `upper`."""
    _check_range("uniform", lower, upper, False, None)
    return Float(lower, upper)


def quniform(lower: float, upper: float, q: float) -> Float:
    """Floats between `lower` and `upper` in multiples of `q`."""
    _check_range("quniform", lower, upper, False, q)
    return Float(lower, upper, step=q)


def loguniform(lower: float, upper: float, base: float = 10) -> Float:
    """Floats whose logarithm is uniform. `base` changes nothing; it is there for programs that give it."""
    _check_range("loguniform", lower, upper, True, None)
    return Float(lower, upper, log=True)


def qloguniform(lower: float, upper: float, q: float, base: float = 10) -> Float:
    """As `loguniform`, in multiples of `q`."""
    _check_range("qloguniform", lower, upper, True, q)
    return Float(lower, upper, log=True, step=q)


def randn(mean: float = 0.0, sd: float = 1.0) -> Normal:
    """Normally distributed floats."""
    return Normal(mean, sd)


def qrandn(mean: float, sd: float, q: float) -> Normal:
    """Normally distributed floats in multiples of `q`."""
    return Normal(mean, sd, q)


def randint(lower: int, upper: int) -> Integer:
    """Integers from `lower` up to, not including, `upper`."""
    _check_range("randint", lower, upper, False, None)
    return Integer(lower, upper - 1)


def qrandint(lower: int, upper: int, q: int = 1) -> Integer:
    """Integers from `lower` to `upper`, both included, in multiples of `q`."""
    _check_range("qrandint", lower, upper, False, q)
    return Integer(lower, upper, step=q)


def lograndint(lower: int, upper: int, base: float = 10) -> Integer:
    """Integers from `lower` up to, not including, `upper`, on a logarithmic scale."""
    _check_range("lograndint", lower, upper, True, None)
    return Integer(lower, upper - 1, log=True)


def qlograndint(lower: int, upper: int, q: int, base: float = 10) -> Integer:
    """As `lograndint`, both bounds included, in multiples of `q`."""
    _check_range("qlograndint", lower, upper, True, q)
    return Integer(lower, upper, log=True, step=q)


def choice(categories: Sequence[Any]) -> Categorical:
    """One of `categories`."""
    if not list(categories):
        raise ValueError("tune.choice needs at least one value")
    return Categorical(list(categories))


def sample_from(function: Callable[..., Any]) -> Function:
    """`function(config)`, called when everything else of the configuration is known."""
    return Function(function)


def grid_search(values: Sequence[Any]) -> dict[str, list[Any]]:
    """Every one of `values`; several grids multiply, and the whole grid is tried `num_samples` times."""
    if not list(values):
        raise ValueError("tune.grid_search needs at least one value")
    return {GRID_KEY: list(values)}


Path = tuple[Any, ...]


def is_grid(node: Any) -> bool:
    """Whether this is what `grid_search` makes."""
    return isinstance(node, dict) and list(node) == [GRID_KEY]


def leaves(node: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Domains and grids of a space with the way to them, in the order written."""
    if isinstance(node, Domain) or is_grid(node):
        yield path, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, (*path, key))
    elif isinstance(node, (list, tuple)):
        for position, value in enumerate(node):
            yield from leaves(value, (*path, position))


#: functions that make domains, to be recognized where they were not called
_MAKERS = (
    uniform, quniform, loguniform, qloguniform, randn, qrandn, randint, qrandint, lograndint, qlograndint, choice, sample_from, grid_search
)  # fmt: skip
_LOOKS_LIKE_A_DOMAIN = re.compile(rf"\s*(tune\.)?({'|'.join(one.__name__ for one in _MAKERS)})\s*\(")
_FOREIGN = ("ray.tune", "optuna.distributions", "scipy.stats", "hyperopt")


def check(space: Any, path: Path = ()) -> None:
    """ValueError, with the parameter's name, for what was meant as a domain and is none: a trial would get it as a value."""
    where = "/".join(map(str, path)) or "param_space"
    if isinstance(space, Domain):
        return
    if space in _MAKERS if callable(space) else False:
        raise ValueError(f"{where}: tune.{space.__name__} was not called: write tune.{space.__name__}(...)")
    if isinstance(space, str) and _LOOKS_LIKE_A_DOMAIN.match(space):
        raise ValueError(f"{where}: {space!r} is text; without the quotes it would be something to search over")
    if type(space).__module__.startswith(_FOREIGN):
        raise ValueError(
            f"{where}: {space!r} is of {type(space).__module__}, which shoal.tune does not know; use tune.uniform and its relatives"
        )
    if is_grid(space):
        if not isinstance(space[GRID_KEY], list) or not space[GRID_KEY]:
            raise ValueError(f"{where}: a grid is a list of values, {{'grid_search': [1, 2]}}, not {space[GRID_KEY]!r}")
    elif isinstance(space, dict):
        typo = difflib.get_close_matches(GRID_KEY, [key for key in space if isinstance(key, str)], 1, 0.75)
        if typo:
            reason = "stands alone in its dict" if typo == [GRID_KEY] else f"is spelt 'grid_search', not {typo[0]!r}"
            raise ValueError(f"{where}: a grid {reason}: tune.grid_search([...])")
        for key, value in space.items():
            check(value, (*path, key))
    elif isinstance(space, (list, tuple)):
        for position, value in enumerate(space):
            check(value, (*path, position))


def merged(config: dict[str, Any], point: dict[str, Any], path: Path = ()) -> dict[str, Any]:
    """`config` with the values of a (partial, nested) `point`; ValueError for a name that it does not have."""
    result = dict(config)
    for key, value in point.items():
        if key not in config:
            close = difflib.get_close_matches(str(key), list(map(str, config)), 1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(map(str, config)) or 'none'}"
            raise ValueError(f"points_to_evaluate: no parameter {'/'.join(map(str, (*path, key)))!r}{hint}")
        inner = isinstance(value, dict) and isinstance(config[key], dict)
        result[key] = merged(config[key], value, (*path, key)) if inner else value
    return result


def grid_size(space: Any) -> int:
    """How many combinations the grids of a space have (1 without grids)."""
    return math.prod(len(node[GRID_KEY]) for _, node in leaves(space) if is_grid(node))


def _copied(node: Any, values: dict[Path, Any], path: Path = ()) -> Any:
    """The space with its leaves replaced by values; containers are new ones."""
    if path in values:
        return values[path]
    if isinstance(node, dict) and not is_grid(node):
        return {key: _copied(value, values, (*path, key)) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return type(node)([_copied(value, values, (*path, i)) for i, value in enumerate(node)])
    return node


def place(space: Any, values: dict[Path, Any]) -> dict[str, Any]:
    """The configuration in which each leaf has its value of `values`; functions of the rest are called here."""
    functions = [(path, node) for path, node in leaves(space) if isinstance(node, Function) and path not in values]
    config = _copied(space, {**values, **{path: None for path, _ in functions}})
    for path, node in functions:
        try:
            values = {**values, path: node.function(config)}
        except Exception as error:
            name = "/".join(map(str, path))
            raise ValueError(
                f"{name}: its sample_from raised {type(error).__name__}: {error}; it was given {config}"
            ) from error
        config = _copied(space, {**{p: None for p, _ in functions}, **values})
    assert isinstance(config, dict)
    return config


def draw(space: dict[str, Any], combination: int, dice: random.Random) -> dict[str, Any]:
    """A configuration: combination number `combination` of the grids, everything else by `dice`."""
    values: dict[Path, Any] = {}
    for path, node in leaves(space):
        if is_grid(node):
            combination, position = divmod(combination, len(node[GRID_KEY]))
            values[path] = node[GRID_KEY][position]
        elif not isinstance(node, Function):
            assert isinstance(node, Domain)
            values[path] = node.sample(dice)
    return place(space, values)


def flattened(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with keys like `model/units`."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            flat.update(flattened(value, f"{name}/"))
        else:
            flat[name] = value
    return flat
