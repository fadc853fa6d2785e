"""Losses that plug into any gradient-trained learner: `losses:` in its section lists them.

A loss's weight is a constant, or follows the training's progress through a schedule.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from sidrec.config.section import changed_keys, section

Share = Annotated[float, Field(ge=0, le=1)]


def at_depth(values: tuple[float, ...], depth: int) -> float:
    """The value for an overlap depth, counted from 1; the last one is used for deeper overlaps."""
    return values[min(depth, len(values)) - 1]


@section
class WeightSchedule:
    """A factor of the weight: `first` until the share `begin` of the training, `last` from `end` on, linear between.

    AdaSID's progress-adaptive rebalancing (arXiv 2604.23522) consists of two of these.
    """

    first: NonNegativeFloat
    """Factor at the start."""
    last: NonNegativeFloat
    """Factor at the end."""
    begin: Share = 0.0
    """Share of all steps at which the change begins."""
    end: Share = 0.6
    """Share of all steps at which it is complete."""

    def __post_init__(self) -> None:
        if self.end < self.begin:
            raise ValueError(f"expected end of at least begin {self.begin}, got {self.end}")


class LossKind:
    """What the rest of sidrec asks a loss."""

    needs_pairs: ClassVar[bool] = False


@section
class Contrast(LossKind):
    """InfoNCE from an item to its partner: items that belong together get near latents (QuaSID, arXiv 2603.00632).

    Needs item pairs.
    """

    kind: Literal["contrast"] = "contrast"
    needs_pairs: ClassVar[bool] = True
    weight: NonNegativeFloat = 0.1
    """Weight lambda_cl of the term."""
    schedule: WeightSchedule | None = None
    """How the weight changes in training."""
    temperature: PositiveFloat = 0.07
    """Temperature tau; not published."""
    on: Literal["latent", "quantized"] = "latent"
    """latent: the encoder's output z. quantized: the quantised latent, with a straight-through gradient."""
    mask_targets: bool = False
    """Also ignore negatives whose target is the anchor's target."""


@section
class HammingRepulsion(LossKind):
    """Margin repulsion of items that share all codes, or nearly all (QuaSID's HaMR, arXiv 2603.00632)."""

    kind: Literal["hamming_repulsion"] = "hamming_repulsion"
    weight_full: NonNegativeFloat = 0.2
    """Weight lambda_full of pairs with the same SID."""
    weight_part: NonNegativeFloat = 0.1
    """Weight lambda_part of pairs that differ in 1 to `radius` levels."""
    margin_full: NonNegativeFloat = 0.8
    """Cosine distance up to which pairs with the same SID are repelled; at least margin_part."""
    margin_part: NonNegativeFloat = 0.5
    """Cosine distance up to which pairs with a partial conflict are repelled."""
    radius: NonNegativeInt = 1
    """Radius R: most levels in which a partial conflict may differ."""
    mask_valid: bool = True
    """Ignore an item and its partner, and the same item twice (CVPM); false is the ablation "w/o masking"."""
    schedule: WeightSchedule | None = None
    """How both weights change in training."""

    def __post_init__(self) -> None:
        if self.margin_full < self.margin_part:
            raise ValueError(f"expected margin_full of at least margin_part {self.margin_part}, got {self.margin_full}")

    def unused_keys(self) -> dict[str, str]:
        if not self.radius:
            return changed_keys(self, ["weight_part", "margin_part"], "with radius 0, where no conflict is partial")
        return {} if self.weight_part else changed_keys(self, ["margin_part", "radius"], "with weight_part 0")


@section
class OverlapRepulsion(LossKind):
    """Repulsion of items that share codes though they are dissimilar (AdaSID's SeAR and LAS, arXiv 2604.23522)."""

    kind: Literal["overlap_repulsion"] = "overlap_repulsion"
    weight: NonNegativeFloat = 1.0
    """Weight of the whole term."""
    schedule: WeightSchedule | None = None
    """Schedule lambda_col of the weight."""
    relax: bool = True
    """Stage one (SeAR): pairs with a cosine of at least the threshold are exempt; false is the ablation."""
    thresholds: tuple[float, ...] = (0.18, 0.24, 0.30)
    """eta by overlap depth 1, 2, ..; must not fall. The last one is used for deeper overlaps."""
    margins: tuple[float, ...] = (1.0,)
    """Margins m by overlap depth; not published. Each must exceed 1 - eta of its depth, or the loss vanishes."""
    space: Literal["latent", "input"] = "latent"
    """Vectors whose cosine stage one compares with the threshold."""
    load: Literal["pattern", "bucket", "none"] = "pattern"
    """Stage two (LAS): the strength grows with the number of pairs of the batch that agree in the same levels
    (pattern), with the number of items on the longest common prefix (bucket), or not at all (none, the ablation)."""
    load_min: PositiveFloat = 1.0
    """Strength f_min of a rare pattern."""
    load_max: PositiveFloat = 2.0
    """f_max, the strength of the most loaded pattern; the paper observes 1 to 3."""
    load_power: PositiveFloat = 1.0
    """Exponent alpha of the ramp f_min + (f_max - f_min) (min(c, d) / d)^alpha; the function is not published."""
    load_saturation: PositiveInt | None = None
    """d; null for the 95th percentile of c, averaged over the first hundred steps."""
    reduction: Literal["mean", "sum"] = "mean"
    """Mean over repelled pairs, or the sum as published, which grows with the square of the batch."""
    mask_valid: bool = True
    """Ignore an item and its partner, and the same item twice (QuaSID's CVPM)."""

    def __post_init__(self) -> None:
        if not self.thresholds or list(self.thresholds) != sorted(self.thresholds):
            raise ValueError(f"expected thresholds that do not fall with the depth, got {self.thresholds}")
        if not self.margins:
            raise ValueError("expected at least one margin, got none")
        if self.load_max < self.load_min:
            raise ValueError(f"expected load_max of at least load_min {self.load_min}, got {self.load_max}")
        depths = max(len(self.thresholds), len(self.margins)) if self.relax else 0
        for depth in range(1, depths + 1):
            threshold, margin = at_depth(self.thresholds, depth), at_depth(self.margins, depth)
            if margin <= 1 - threshold:
                bound = f"a margin above 1 - {threshold} at overlap depth {depth}, or no pair is ever repelled"
                raise ValueError(f"expected {bound}, got {margin}")

    def unused_keys(self) -> dict[str, str]:
        found = {} if self.relax else changed_keys(self, ["thresholds", "space"], "with relax false")
        if self.load == "none":
            of_load = ["load_min", "load_max", "load_power", "load_saturation"]
            found |= changed_keys(self, of_load, "with load none")
        return found


@section
class Diversity(LossKind):
    """Each code is drawn to others of its group, so that codes of a level are used evenly (LETTER, 2405.07314)."""

    kind: Literal["diversity"] = "diversity"
    weight: NonNegativeFloat = 1e-4
    """Weight beta of the term; the paper tries 1e-5 to 1e-2."""
    schedule: WeightSchedule | None = None
    """How the weight changes in training."""
    groups: PositiveInt = 10
    """Groups of equal size into which a level's codewords are clustered at each epoch."""


@section
class Collaborative(LossKind):
    """Cross-entropy of inner products between quantised latents and behaviour vectors of a batch (LETTER).

    Needs behaviour vectors.
    """

    kind: Literal["collaborative"] = "collaborative"
    weight: NonNegativeFloat = 0.01
    """Weight alpha of the term; the paper tries .001 to .1."""
    schedule: WeightSchedule | None = None
    """How the weight changes in training."""


@section
class AlignmentController:
    """Per-item strength of the alignment from the norm of the behaviour vector (ADC-SID, arXiv 2510.25622, eq. 17).

    w = sigmoid(alpha n - beta) / sigmoid(alpha - beta), n the norm scaled to [0, 1] over all items.
    """

    alpha: PositiveFloat = 10.0
    """Steepness alpha of the sigmoid."""
    beta: float = 9.0
    """Offset: a larger beta limits the alignment to items with a larger norm."""
    clip_quantile: Share = 0.0
    """Clip norms to the quantiles clip_quantile and 1 - clip_quantile; 0 takes minimum and maximum as published."""


@section
class BehaviorAlignment(LossKind):
    """InfoNCE between latents and behaviour vectors (ADC-SID, DAS).

    Needs behaviour vectors; items without one take no part.
    """

    kind: Literal["behavior_alignment"] = "behavior_alignment"
    weight: NonNegativeFloat = 0.1
    """Weight of the term; not published."""
    schedule: WeightSchedule | None = None
    """How the weight changes in training."""
    on: Literal["latent", "quantized"] = "latent"
    """The anchor: the encoder's output, or the quantised latent."""
    temperature: PositiveFloat = 0.07
    """Temperature tau."""
    controller: AlignmentController | None = None
    """Strength by the norm of each item's behaviour vector; null for the same strength for all."""


SidLossConfig = Annotated[
    Contrast | HammingRepulsion | OverlapRepulsion | Diversity | Collaborative | BehaviorAlignment,
    Field(discriminator="kind"),
]
