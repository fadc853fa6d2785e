"""Parts of the section `tokenizer.learner`: presets, losses, the router of token weights, the training, common keys.

Every default cites its source; [I] marks one of our own. Losses plug into any gradient-trained learner: `losses:` in
its section lists them. A loss's weight is a constant, or follows the training's progress through a schedule.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from sidrec.config.section import Values, changed_keys, section


class LearnerSection:
    """The section of a learner. `sidrec.sid.learners.registry` says what to add for a new one.

    presets: name -> the values that a preset of that name gives to keys that the recipe leaves out.
    """

    presets: ClassVar[Mapping[str, Values]] = {}

    def check_use(self, vectors: tuple[str, ...], resolve_collisions: bool) -> None:
        """Raises ValueError when the learner cannot use the tokenizer's vector columns or resolve collisions."""

    def unordered_levels(self, vectors: tuple[str, ...]) -> int:
        """The number of levels, if they are independent of each other; 0 if each refines the one before.

        A pair of independent codes, such as s12, says no more than both codes do. vectors: the tokenizer's columns.
        """
        return 0

    def unused_keys(self) -> dict[str, str]:
        """Keys with values that other keys make ineffective -> what is expected instead."""
        return {}


# Losses.


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


# Router and training.


@section
class Router:
    """Token weights R(x) = relu(MLP(x) + b), kept sparse by ReMoE's controller (ADC-SID, eq. 22 and 23).

    The loss is lambda (1/B) sum_t sum_j f_j R_tj with f_j = sum_t 1[R_tj > 0] / ((1 - sparsity) B); after every step
    lambda grows by `rate` while too few weights are zero, and shrinks otherwise.
    """

    sparsity: Annotated[float, Field(gt=0, lt=1)] = 1 / 3
    """Share of weights that should be zero; not published for ADC-SID."""
    target: Literal["global", "item_norm"] = "global"
    """global: the same sparsity for all items. item_norm: sparsity * (1 - scaled behaviour norm) of each item."""
    balance: Literal["per_expert", "scalar"] = "per_expert"
    """per_expert: f_j of ReMoE. scalar: one f for all experts, as in ADC-SID's first version; it cannot balance."""
    first_strength: PositiveFloat = 1e-8
    """Initial lambda."""
    rate: Annotated[float, Field(gt=1)] = 1.2
    """Factor of lambda per step of the controller, above 1."""
    regularize: bool = True
    """Add the sparsity loss; false is the ablation "w/o sparse training"."""
    hidden: PositiveInt = 64
    """Width of the hidden layer."""

    def unused_keys(self) -> dict[str, str]:
        of_loss = ["sparsity", "target", "balance", "first_strength", "rate"]
        return {} if self.regularize else changed_keys(self, of_loss, "with regularize false")


@section
class Pairs:
    """How a training draws item pairs, for losses that need some.

    The papers draw trigger-target pairs: `{directed: true, draw: pairs}`. The defaults train on every item [I].
    """

    directed: bool = False
    """true: only the second item of a pair is a partner, of the first. false: each is a partner of the other."""
    draw: Literal["items", "pairs"] = "items"
    """items: every item is an anchor once per epoch, with one of its partners. pairs: as many pairs as there are items
    are drawn per epoch, each pair equally likely each time; items in no pair are never seen."""


@section
class Training:
    """How a gradient-trained learner learns."""

    epochs: PositiveInt = 100
    """Passes over all items, or over as many pairs."""
    batch_size: PositiveInt = 1024
    """Items per step over all processes; with pairs, half of them are partners of the other half."""
    optimizer: Literal["adamw", "adam"] = "adamw"
    """torch.optim's optimizer of that name; adam adds the weight decay to the gradient."""
    lr: PositiveFloat = 1e-3
    """Learning rate."""
    weight_decay: NonNegativeFloat = 1e-4
    """Weight decay; codebooks have none."""
    pairs: Pairs = Pairs()
    """How pairs are drawn, where a loss needs some."""
    revive_every: NonNegativeInt = 1
    """Epochs between two revivals, which move codes that no item took to random residuals; 0 is never."""
    revive_until: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Share of the training after which revivals end, so that the codebooks settle."""
    least_utilisation: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The fit fails when a smaller share of a codebook is in use after the training: the codebook collapsed."""
    save_every: PositiveInt = 10
    """Epochs between checkpoints, from which a killed fit resumes."""

    def unused_keys(self) -> dict[str, str]:
        return {} if self.revive_every else changed_keys(self, ["revive_until"], "with revive_every 0")


@section
class GradientLearner(LearnerSection):
    """Keys that all gradient-trained learners have."""

    levels: PositiveInt = 3
    """Levels L of a SID."""
    codebook_size: PositiveInt = 256
    """Codes K per level."""
    width: PositiveInt = 32
    """Width d of latents and codewords."""
    hidden: tuple[PositiveInt, ...] = (512, 256, 128)
    """Hidden widths of the encoder; the decoder has them reversed."""
    commitment: NonNegativeFloat = 0.25
    """beta: weight of the commitment, relative to the codebook loss."""
    reconstruction: Literal["sum", "mean"] = "sum"
    """Squared error: sum or mean over dimensions, always mean over items. Codebook loss and commitment are reduced in
    the same way; their mean is over levels too."""
    router: Router | None = None
    """Token weights of every level, exported with the codes; null for none."""
    losses: tuple[SidLossConfig, ...] = ()
    """The learner's own losses."""
    further_losses: tuple[SidLossConfig, ...] = ()
    """Losses added to its own."""
    training: Training = Training()
    """Length and optimizer of the training."""

    def unused_keys(self) -> dict[str, str]:
        return unused_pairs(self.training, (*self.losses, *self.further_losses))


def unused_pairs(training: Training, losses: tuple[SidLossConfig, ...]) -> dict[str, str]:
    """The key `training.pairs` where no loss needs pairs, with what is expected instead."""
    if any(loss.needs_pairs for loss in losses) or training.pairs == Pairs():
        return {}
    return {"training.pairs": "none without a loss that needs pairs, such as contrast, got other values"}
