"""Trials of one variant on one data set: the part of the space that it can use, the points proposed, the best one.

Nothing is measured here. Proposals depend on the section `tuning` and on the values of earlier trials alone, so that a
search that was interrupted goes on where it was.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from statistics import mean, median
from typing import Any, TypedDict

import numpy as np
from pydantic import TypeAdapter, ValidationError

from sidrec.config import ConfigError, Recipe
from sidrec.config.describe import explain
from sidrec.config.recipe import RECIPE
from sidrec.config.section import unused_keys_below
from sidrec.errors import InstallationError
from sidrec.study.definition import Overrides
from sidrec.study.jobs import merge
from sidrec.study.tuning import Axis, Choices, Range, Tuning
from sidrec.text import short_repr

Axes = Mapping[str, Axis]  # dotted key -> values
Point = dict[str, float]
"""Dotted key -> its number, or the place of its value among choices: a trial's parameters as optuna has them."""

DIGITS = 4  # of numbers that are proposed; more would only make reports long
EDGE = 0.05  # share of a range at either end that counts as its edge
LOWER_IS_BETTER = ("ne",)
LEAST_CHOICES = 3  # numbers among choices of which the smallest and the largest are edges
LEAST_OTHERS = 4  # trials that a trial is compared with before it is pruned


# The space of a variant.


def check_keys(tuning: Tuning) -> None:
    """Raises ConfigError for a key that no recipe has, with the nearest name, or two keys one inside the other."""
    for key in tuning.space:
        try:
            explain(key)
        except ConfigError as error:
            raise ConfigError(f"tuning.space: {error}") from None
        outer = next((other for other in tuning.space if key.startswith(f"{other}.")), None)
        if outer is not None:
            raise ConfigError(f"tuning.space: expected separate keys, got {key} inside {outer}")


def usable_axes(tuning: Tuning, raw: Overrides, recipe: Recipe) -> tuple[dict[str, Axis], dict[str, str]]:
    """The axes that a variant can use, and the keys of the others -> why not.

    raw: the merged recipe. recipe: the same, checked.
    """
    axes, left_out = {}, {}
    for key, axis in tuning.space.items():
        reasons = (_refusal(raw, recipe, key, value) for value in axis.ends())
        reason = next((reason for reason in reasons if reason), None)
        if reason is None:
            axes[key] = axis
        else:
            left_out[key] = reason
    return axes, left_out


def _refusal(raw: Overrides, recipe: Recipe, key: str, value: Any) -> str | None:
    """Why the recipe cannot have this value at this key, or has no use for it; None if it can use it."""
    try:
        changed = RECIPE.validate_python(merge(raw, overrides_of(raw, recipe, {key: value})))
    except KeyError as error:
        return f"the recipe has no {error.args[0]}"
    except ValidationError as error:
        return f"{short_repr(value)} is refused: {error.errors()[0]['msg'].removeprefix('Value error, ')}"
    unused = unused_keys_below(changed)
    found = next((name for name in unused if name == key or name.startswith(f"{key}.")), None)
    return None if found is None else f"{found}: expected {unused[found]}"


def overrides_of(raw: Overrides, recipe: Recipe, values: Mapping[str, Any]) -> Overrides:
    """Values by dotted key as a nested mapping to merge into the recipe.

    A section that the file leaves out keeps its present kind and keys. Raises KeyError naming a key that it lacks.
    """
    overrides: Overrides = {}
    for key, value in values.items():
        *outer, name = key.split(".")
        target: Overrides = overrides
        given: Any = raw
        section: Any = recipe
        for depth, step in enumerate(outer, start=1):
            section, given = getattr(section, step, None), given.get(step) if isinstance(given, Mapping) else None
            if not is_dataclass(section):
                raise KeyError(".".join(outer[:depth]))
            target = target.setdefault(step, {} if isinstance(given, Mapping) else _given_as(section))
        if not hasattr(section, name):
            raise KeyError(key)
        target[name] = value
    return overrides


def _given_as(section: Any) -> Overrides:
    """What a file must say to get this section: its kind, and the keys that differ from the kind's defaults."""
    plain = TypeAdapter(type(section)).dump_python(section, mode="json")
    changed = (field.name for field in fields(section) if getattr(section, field.name) != _default_of(field))
    return {**({"kind": section.kind} if hasattr(section, "kind") else {}), **{name: plain[name] for name in changed}}


def _default_of(field: Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


# Proposals.


@dataclass(frozen=True)
class Trial:
    """A point, and its metric after each of its runs so far, in the order of `tuning.runs`; None: training diverged."""

    number: int
    point: Point
    values: tuple[float | None, ...]

    @property
    def diverged(self) -> bool:
        return None in self.values

    def mean(self, runs: int) -> float | None:
        """The mean over the first runs; None without that many, or if one diverged."""
        values = [value for value in self.values[:runs] if value is not None]
        return mean(values) if len(values) == runs else None


def batch_of(tuning: Tuning, axes: Axes, first: int) -> range:
    """Numbers of the trials that are proposed together, from `first` on: the random ones, then `batch` at a time."""
    return range(first, min(trials_of(tuning, axes), first + tuning.batch if first else tuning.random))


def next_points(tuning: Tuning, axes: Axes, earlier: Sequence[Trial]) -> list[Point]:
    """The points of the next batch. earlier: all trials before it; each has ended.

    Random points are drawn in the whole space, so that they are the same for every variant in all keys that it can use.
    """
    numbers = batch_of(tuning, axes, len(earlier))
    if not earlier:
        return [{key: point[key] for key in axes} for point in _random_points(tuning, len(numbers))]
    sampler = load_optuna().samplers.TPESampler(
        n_startup_trials=1, multivariate=True, seed=_seed(tuning, numbers.start)
    )
    study, space = _study(sampler), {key: _distribution(axis) for key, axis in axes.items()}
    study.add_trials([_frozen(tuning, trial, space) for trial in earlier])
    return [_rounded(study.ask(space).params, axes) for _ in numbers]


def trials_of(tuning: Tuning, axes: Axes) -> int:
    """How many trials a variant gets: one if it can use no key of the space, where all trials would be the same."""
    return tuning.trials if axes else 1


def load_optuna() -> Any:
    """The module. Raises InstallationError without it."""
    try:
        import optuna
    except ImportError:
        message = "`sidrec study --tune`: expected the package optuna, got none: pip install 'sidrec[study]'"
        raise InstallationError(message) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _study(sampler: Any) -> Any:
    return load_optuna().create_study(direction="maximize", sampler=sampler)


def _random_points(tuning: Tuning, count: int) -> list[Point]:
    """The first of `tuning.random` points of a Latin hypercube: along each key one point in every part of the range."""
    generator, parts = np.random.default_rng(tuning.seed), tuning.random
    points: list[Point] = [{} for _ in range(parts)]
    for key, axis in tuning.space.items():
        shares_R = (generator.permutation(parts) + generator.random(parts)) / parts
        for point, share in zip(points, shares_R, strict=True):
            point[key] = _short(axis, _at(axis, float(share)))
    return points[:count]


def _at(axis: Axis, share: float) -> float:
    """The number at a share of the axis, from 0 to below 1."""
    if isinstance(axis, Choices):
        return int(share * len(axis.choices))
    low, high = axis.low, axis.high + axis.integer
    number = low * (high / low) ** share if axis.log else low + (high - low) * share
    return int(number) if axis.integer else number


def _seed(tuning: Tuning, first: int) -> int:
    """Another seed for each batch; the same for all variants."""
    return tuning.seed * 10_007 + first


def _distribution(axis: Axis) -> Any:
    distributions = load_optuna().distributions
    if isinstance(axis, Choices):
        return distributions.CategoricalDistribution(range(len(axis.choices)))
    if axis.integer:
        return distributions.IntDistribution(*axis.ends(), log=axis.log)
    return distributions.FloatDistribution(axis.low, axis.high, log=axis.log)


def _rounded(parameters: Mapping[str, float], axes: Axes) -> Point:
    """Numbers with few digits, inside their ranges."""
    return {key: _short(axes[key], number) for key, number in parameters.items()}


def _short(axis: Axis, number: float) -> float:
    if isinstance(axis, Range) and not axis.integer:
        return min(max(float(f"{number:.{DIGITS}g}"), axis.low), axis.high)
    return number


def _frozen(tuning: Tuning, trial: Trial, space: Mapping[str, Any]) -> Any:
    """The trial for optuna: complete, or pruned with its mean so far; a diverged one is pruned without a value."""
    create, states = load_optuna().trial.create_trial, load_optuna().trial.TrialState
    value = trial.mean(len(tuning.runs))
    if value is not None:
        return create(params=trial.point, distributions=dict(space), value=_signed(tuning, value))
    runs, reached = len(trial.values), trial.mean(len(trial.values))
    known = {} if reached is None else {runs: _signed(tuning, reached)}
    return create(params=trial.point, distributions=dict(space), state=states.PRUNED, intermediate_values=known)


def _signed(tuning: Tuning, value: float) -> float:
    """Higher is better."""
    return -value if tuning.metric in LOWER_IS_BETTER else value


# Pruning, the best trial, and edges.


def is_pruned(tuning: Tuning, trial: Trial, others: Sequence[Trial]) -> bool:
    """Whether a trial gets no run after those it has: it diverged, or is clearly worse than the others.

    Clearly: below the others' median after the same runs by more than their median absolute deviation [I]. With fewer
    than four others no trial is pruned.
    """
    if trial.diverged:
        return True
    runs = len(trial.values)
    reached = [_signed(tuning, value) for other in others if (value := other.mean(runs)) is not None]
    found = trial.mean(runs)
    if tuning.pruner == "none" or found is None or runs == len(tuning.runs) or len(reached) < LEAST_OTHERS:
        return False
    middle = median(reached)
    return _signed(tuning, found) < middle - median(abs(value - middle) for value in reached)


def best_trial(tuning: Tuning, trials: Sequence[Trial]) -> Trial | None:
    """The trial with the best mean over all runs, the first of equals; None if none has all runs."""
    runs = len(tuning.runs)
    complete = [(_signed(tuning, value), trial) for trial in trials if (value := trial.mean(runs)) is not None]
    return max(complete, key=lambda pair: pair[0])[1] if complete else None


def values_of(axes: Axes, point: Point) -> dict[str, Any]:
    """Dotted key -> the value that the recipe gets."""
    chosen: dict[str, Any] = {}
    for key, number in point.items():
        axis = axes[key]
        chosen[key] = axis.choices[int(number)] if isinstance(axis, Choices) else number
    return chosen


class Edge(TypedDict):
    """A best value at an end of its range. end: low or high. limit: the end."""

    key: str
    end: str
    value: float
    limit: float


def edges(axes: Axes, point: Point) -> list[Edge]:
    """Where a point is at the edge of the space, so that a better value may lie outside.

    Edge: the outer 5% of a range at either end; of choices the smallest and largest number, if there are three or more.
    """
    found = []
    for key, value in values_of(axes, point).items():
        axis = axes[key]
        numbers = [end for end in axis.ends() if _is_number(end)]
        if not _is_number(value) or (isinstance(axis, Choices) and len(numbers) < LEAST_CHOICES):
            continue
        low, high = min(numbers), max(numbers)
        margin = EDGE if isinstance(axis, Range) else 0.0
        share = _share(axis, value, low, high)
        if share <= margin:
            found.append(Edge(key=key, end="low", value=value, limit=low))
        elif share >= 1 - margin:
            found.append(Edge(key=key, end="high", value=value, limit=high))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _share(axis: Axis, value: float, low: float, high: float) -> float:
    """How far the value is from low to high, from 0 to 1, on the range's scale."""
    if isinstance(axis, Range) and axis.log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)
