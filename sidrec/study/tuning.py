"""The section `tuning` of a study: how the best values of each variant are searched, on an equal budget.

tuning:
  trials: 12
  space:
    optimizer.tables.lr: {low: 0.01, high: 0.3, log: true}
    model.hid_init: {choices: [null, 0.0]}

It needs optuna, which the extra `sidrec[study]` installs.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, NonNegativeInt, PositiveInt, Tag

from sidrec.config.section import section


@section
class Range:
    """Numbers between two ends, both included."""

    low: float
    """Lowest value."""
    high: float
    """Highest value."""
    log: bool = False
    """Draw the logarithm of the number evenly, as for learning rates."""
    integer: bool = False
    """Whole numbers only."""

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise ValueError(f"expected low below high, got {self.low:g} and {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"expected low above 0 with log, got {self.low:g}")
        if self.integer and not (float(self.low).is_integer() and float(self.high).is_integer()):
            raise ValueError(f"expected whole numbers with integer, got {self.low:g} and {self.high:g}")

    def ends(self) -> tuple[Any, ...]:
        """Both ends, as a recipe has them."""
        return (int(self.low), int(self.high)) if self.integer else (self.low, self.high)


@section
class Choices:
    """A list of values. A value may be a section: {kind: mean}."""

    choices: Annotated[tuple[Any, ...], Field(min_length=2)]
    """The values, as the recipe takes them."""

    def __post_init__(self) -> None:
        texts = [json.dumps(choice, sort_keys=True, default=str) for choice in self.choices]
        twice = [text for place, text in enumerate(texts) if text in texts[:place]]
        if twice:
            raise ValueError(f"expected every choice once, got {twice[0]} twice")

    def ends(self) -> tuple[Any, ...]:
        """All choices, as a recipe has them."""
        return self.choices


def _form_of(value: Any) -> str:
    return "choices" if isinstance(value, Choices) or (isinstance(value, dict) and "choices" in value) else "range"


Axis = Annotated[Annotated[Range, Tag("range")] | Annotated[Choices, Tag("choices")], Discriminator(_form_of)]


@section
class Tuning:
    """Search of the best values of each variant on each data set. Every variant gets the same budget.

    The first `random` trials are the same points for all variants. The later ones are proposed by optuna's TPE
    (Bergstra et al., NeurIPS 2011) from the variant's earlier trials on that data set.
    """

    space: Annotated[dict[str, Axis], Field(min_length=1)]
    """Dotted key of the recipe -> its values: {low, high, log, integer} or {choices}. A key that a variant has no use
    for, such as `model.hid_init` without HIDs, is left out for that variant, and listed."""
    trials: PositiveInt = 12
    """Trials of each variant on each data set."""
    random: PositiveInt = 4
    """The first trials: random points that are spread evenly along each key (Latin hypercube)."""
    batch: PositiveInt = 2
    """Trials of a variant that are proposed at a time, before any of them is measured. Results depend on it, unlike
    on `jobs`."""
    seed: NonNegativeInt = 0
    """Seed of the proposals."""
    runs: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0,)
    """Run numbers (training seed and catalog fit) that each trial is measured with; the mean counts."""
    split: str = "validation"
    """The split that is measured; trials train on the split `train` alone."""
    metric: Literal["auc", "gauc", "uauc", "ne"] = "gauc"
    """The metric on all items. Lower is better for ne, higher for the others."""
    pruner: Literal["median", "none"] = "median"
    """median: a trial that is clearly worse than the median of the others after the same runs gets no further run.
    With a single run there is nothing to prune."""

    def __post_init__(self) -> None:
        if self.split == "test":
            raise ValueError("tuning.split: expected a split other than test, on which nothing may be chosen, got test")
        if len(set(self.runs)) < len(self.runs):
            raise ValueError(f"tuning.runs: expected every run number once, got {list(self.runs)}")
        if self.split == "train":
            raise ValueError("tuning.split: expected a split that is not trained on, got train")
