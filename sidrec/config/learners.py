"""The section `tokenizer`: from item vectors to semantic ids.

Every default cites its source; [I] marks one of our own. Losses, the training and what else learners share are the
chapter `learner_parts`.
"""

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from sidrec.config.learner_parts import (
    AlignmentController,
    BehaviorAlignment,
    Collaborative,
    Contrast,
    Diversity,
    GradientLearner,
    HammingRepulsion,
    LearnerSection,
    OverlapRepulsion,
    Router,
    SidLossConfig,
    Training,
    WeightSchedule,
    unused_pairs,
)
from sidrec.config.section import InRecipe, Values, changed_keys, fill_preset, section

Column = Literal["text", "visual", "behavior"]


@section
class RqVaeConfig(GradientLearner):
    """RQ-VAE (TIGER, arXiv 2305.05065): encoder, residual codebooks, decoder."""

    presets: ClassVar[Mapping[str, Values]] = {"paper": {"training": {"revive_every": 0}}}
    kind: Literal["rqvae"] = "rqvae"
    preset: Annotated[Literal["paper"] | None, InRecipe] = None
    """paper: without the revival of dead codes, which no paper has. The paper's optimizer is not part of it."""
    sinkhorn: NonNegativeFloat = 0.0
    """Entropy of the optimal transport that spreads a training batch over the last level's codes; 0 is off."""
    sinkhorn_iterations: PositiveInt = 50
    """Sinkhorn iterations."""

    def unused_keys(self) -> dict[str, str]:
        found = super().unused_keys()
        return found if self.sinkhorn else found | changed_keys(self, ["sinkhorn_iterations"], "with sinkhorn 0")


OF_QUASID: Values = {
    "optimizer": "adam",
    "lr": 3e-4,
    "weight_decay": 1e-5,
    "batch_size": 512,  # 256 pairs
    "pairs": {"directed": True, "draw": "pairs"},
    "revive_every": 0,
}


@section
class AdaSidConfig(RqVaeConfig):
    """AdaSID (arXiv 2604.23522): RQ-VAE, overlap repulsion that relaxes and adapts, contrast that takes over.

    Needs item pairs.
    """

    presets: ClassVar[Mapping[str, Values]] = {"paper": {"training": OF_QUASID}}
    kind: Literal["adasid"] = "adasid"  # type: ignore[assignment]
    preset: Annotated[Literal["paper"] | None, InRecipe] = None
    """paper: trained as the paper of QuaSID trains; AdaSID, of the same authors, does not publish its settings."""
    losses: tuple[SidLossConfig, ...] = (
        OverlapRepulsion(schedule=WeightSchedule(first=1.0, last=0.1)),
        Contrast(schedule=WeightSchedule(first=0.0, last=1.0)),
    )
    """The losses of AdaSID."""


@section
class AdcSidTraining(Training):
    """How ADC-SID learns."""

    batch_size: PositiveInt = 2048
    """Items per step over all processes [I]."""


@section
class AdcSidConfig(LearnerSection):
    """ADC-SID (arXiv 2510.25622v3): experts per modality with parallel codebooks, alignment by behaviour norm, router.

    Needs `behavior` among the vector columns, not normalised; every other column is content.
    """

    presets: ClassVar[Mapping[str, Values]] = {"paper": {"unit_latents": False, "training": {"revive_every": 0}}}
    kind: Literal["adc_sid"] = "adc_sid"
    preset: Annotated[Literal["paper"] | None, InRecipe] = None
    """paper: latents and codewords as equations 10 and 11 have them, and no revival of dead codes. What the paper does
    not say, such as how codewords learn, keeps its default."""
    shared: PositiveInt = 1
    """Experts N_s on all modalities together."""
    content: PositiveInt = 1
    """Experts per content column (N_t, N_v)."""
    behavior: PositiveInt = 3
    """Behaviour experts N_b."""
    codebook_size: PositiveInt = 100
    """Codes K per expert; ADC-SID's public setting."""
    width: PositiveInt = 128
    """Width d of an expert's output and its codewords [I]."""
    hidden: PositiveInt = 256
    """Hidden width of experts, towers and decoder [I]."""
    unit_latents: bool = True
    """Scale latents and codewords to unit length before they are summed [I]; false as in the paper's equations 10 and
    11. Codes are the codewords of largest cosine either way."""
    fuse: Literal["sum", "concat"] = "sum"
    """Sum the experts before the decoder, as in the equations, or concatenate them."""
    codebook_learning: Literal["gradient", "ema"] = "gradient"
    """gradient: codebook and commitment loss [I]. ema: moving averages. In the paper's equations,
    codewords get no gradient."""
    commitment: NonNegativeFloat = 0.25
    """Weight of the commitment, relative to the codebook loss [I]."""
    reconstruction: Literal["sum", "mean"] = "sum"
    """Squared error: sum or mean over dimensions, always mean over items."""
    reconstruction_weights: Mapping[Column, PositiveFloat] = field(default_factory=dict)
    """Vector column -> weight of its squared error, 1 where none is given. Behaviour is not scaled to unit length as
    content is, so that its error can outweigh all others."""
    align_weight: NonNegativeFloat = 0.1
    """Weight of the alignment losses [I]; 0 is the ablation "w/o contrastive"."""
    temperature: PositiveFloat = 0.07
    """tau of the alignment losses."""
    controller: AlignmentController | None = AlignmentController()
    """Strength of alignment by behaviour norm; null is the ablation "w/o controller"."""
    detach_behavior: bool = False
    """Stop the alignment's gradient before the behaviour tower."""
    content_gates: bool = True
    """Softmax gates over each content column's experts, where there are several; false averages them."""
    router: Router | None = Router()
    """Weights of the behaviour tokens; null is the ablation "w/o gate"."""
    losses: tuple[SidLossConfig, ...] = ()
    """The learner's own losses."""
    further_losses: tuple[SidLossConfig, ...] = ()
    """Losses added to its own."""
    training: AdcSidTraining = AdcSidTraining()
    """Length and optimizer of the training."""

    def unordered_levels(self, vectors: tuple[str, ...]) -> int:
        return self.shared + self.content * (len(vectors) - 1) + self.behavior

    def check_use(self, vectors: tuple[str, ...], resolve_collisions: bool) -> None:
        if "behavior" not in vectors or len(vectors) < 2:
            raise ValueError(
                f"expected vectors of adc_sid to be behavior and at least one content, got {list(vectors)}"
            )
        unknown = [name for name in self.reconstruction_weights if name not in vectors]
        if unknown:
            raise ValueError(f"expected reconstruction_weights of columns among {list(vectors)}, got {unknown[0]!r}")

    def unused_keys(self) -> dict[str, str]:
        found = unused_pairs(self.training, (*self.losses, *self.further_losses))
        if self.content == 1:
            found |= changed_keys(self, ["content_gates"], "with content 1, where a column has a single expert")
        if not self.align_weight:
            found |= changed_keys(self, ["temperature", "detach_behavior"], "with align_weight 0")
            if self.controller is None or not self.controller.clip_quantile:
                found |= changed_keys(self, ["controller"], "with align_weight 0")
        return found


@section
class DasLiteConfig(RqVaeConfig):
    """The item half of DAS (arXiv 2508.10584): RQ-VAE aligned with behaviour vectors and co-occurring items.

    Without DAS's users, its debiasing and its joint recommender. Needs behaviour vectors and item pairs.
    """

    presets: ClassVar[Mapping[str, Values]] = {}
    kind: Literal["das_lite"] = "das_lite"  # type: ignore[assignment]
    preset: Annotated[None, InRecipe] = None
    """Null alone: this learner is a part of DAS, and no preset makes it the whole."""
    losses: tuple[SidLossConfig, ...] = (
        BehaviorAlignment(weight=0.5, on="quantized"),
        Contrast(weight=0.5, on="quantized"),
    )
    """The losses of DAS."""


@section
class LetterConfig(RqVaeConfig):
    """LETTER (arXiv 2405.07314): RQ-VAE with diversity of codes and collaborative signal. Needs behaviour vectors."""

    presets: ClassVar[Mapping[str, Values]] = {"released": {"training": {"revive_every": 0}}}
    kind: Literal["letter"] = "letter"  # type: ignore[assignment]
    preset: Annotated[Literal["released"] | None, InRecipe] = None  # type: ignore[assignment]
    """released: without the revival of dead codes. The other defaults are those of the released code, but for its
    20,000 epochs."""
    levels: PositiveInt = 4
    """Levels L of a SID."""
    hidden: tuple[PositiveInt, ...] = (2048, 1024, 512, 256, 128, 64)
    """Hidden widths of the encoder, as released."""
    reconstruction: Literal["sum", "mean"] = "mean"
    """Squared error summed or averaged over dimensions; the released code averages."""
    sinkhorn: NonNegativeFloat = 0.003
    """Entropy of the optimal transport over the last level's codes, as released; 0 is off."""
    losses: tuple[SidLossConfig, ...] = (Diversity(), Collaborative())
    """The losses of LETTER."""


@section
class MmRqVaeConfig(GradientLearner):
    """MM-RQ-VAE (MME-SID): one RQ-VAE per vector column, aligned by distribution or item by item.

    `levels` is the sum over all columns, each of which gets an equal number.
    """

    presets: ClassVar[Mapping[str, Values]] = {
        "released": {
            "reconstruction": "mean",
            "commitment": 0.01,
            "commitment_gradient": "first_level",
            "mmd": "one_kernel",
            "sinkhorn": 0.003,
            "training": {"lr": 2e-4, "revive_every": 0},
        }
    }
    kind: Literal["mm_rqvae"] = "mm_rqvae"
    preset: Annotated[Literal["released"] | None, InRecipe] = None
    """released: the losses of the released code, whose training loop is not public. Its sizes are not part of it:
    4 levels per column, width 4096, hidden 4096, 4096, 4096."""
    levels: PositiveInt = 6
    """Levels L of a SID, a multiple of the number of vector columns."""
    reconstruct: Literal["mmd", "squared"] = "mmd"
    """MMD between inputs and reconstructions, as released, or the squared error."""
    reconstruct_weight: NonNegativeFloat = 3.0
    """Weight of the reconstruction, as released."""
    align: Literal["mmd", "contrast"] = "mmd"
    """Loss between quantised latents of behaviour and of each other column: mmd as released, contrast (InfoNCE) as
    described in the paper."""
    align_weight: NonNegativeFloat = 0.01
    """Weight of the alignment, as released."""
    temperature: PositiveFloat = 0.07
    """tau of the InfoNCE [I]."""
    mmd: Literal["five_kernels", "one_kernel"] = "five_kernels"
    """five_kernels: Gaussian kernels of five bandwidths, biased estimator. one_kernel: as released."""
    commitment_gradient: Literal["all_levels", "first_level"] = "all_levels"
    """Levels whose commitment reaches the encoder. In the released code only the first does: deeper residuals subtract
    straight-through values, which leaves them without gradient."""
    sinkhorn: NonNegativeFloat = 0.0
    """Entropy of the optimal transport over each column's last level in training; 0.003 as released, 0 is off."""
    sinkhorn_iterations: PositiveInt = 50
    """Sinkhorn iterations, as released."""

    def unused_keys(self) -> dict[str, str]:
        found = super().unused_keys()
        aligns = self.align if self.align_weight else "nothing"
        if aligns == "nothing":
            found |= changed_keys(self, ["align", "temperature"], "with align_weight 0")
        elif aligns == "mmd":
            found |= changed_keys(self, ["temperature"], "with align mmd")
        if self.reconstruct != "mmd" and aligns != "mmd":
            found |= changed_keys(self, ["mmd"], "where no loss is an MMD")
        return found if self.sinkhorn else found | changed_keys(self, ["sinkhorn_iterations"], "with sinkhorn 0")

    def unordered_levels(self, vectors: tuple[str, ...]) -> int:
        return self.levels if len(vectors) > 1 else 0  # levels are in order within a column only

    def check_use(self, vectors: tuple[str, ...], resolve_collisions: bool) -> None:
        if self.levels % len(vectors):
            raise ValueError(f"expected levels of mm_rqvae as a multiple of {len(vectors)} vectors, got {self.levels}")


@section
class MultiVqConfig(GradientLearner):
    """A control: one encoder head and codebook per level, independent of each other; the decoder gets their sum."""

    kind: Literal["multi_vq"] = "multi_vq"

    def unordered_levels(self, vectors: tuple[str, ...]) -> int:
        return self.levels


@section
class QuaSidConfig(RqVaeConfig):
    """QuaSID (arXiv 2603.00632): RQ-VAE, contrast of co-occurring items, Hamming-guided repulsion. Needs item pairs."""

    presets: ClassVar[Mapping[str, Values]] = {"paper": {"training": OF_QUASID}}
    kind: Literal["quasid"] = "quasid"  # type: ignore[assignment]
    preset: Annotated[Literal["paper"] | None, InRecipe] = None
    """paper: Adam, 256 trigger-target pairs per step, no revival of dead codes. Epochs and tau are not published."""
    losses: tuple[SidLossConfig, ...] = (Contrast(), HammingRepulsion())
    """The losses of QuaSID."""


GradientLearnerConfig = (
    RqVaeConfig
    | MultiVqConfig
    | LetterConfig
    | DasLiteConfig
    | QuaSidConfig
    | AdaSidConfig
    | MmRqVaeConfig
    | AdcSidConfig
)


@section
class OpqConfig(LearnerSection):
    """Optimised product quantisation (RPG): PCA, a learned rotation, then k-means in each subspace. Any K."""

    kind: Literal["opq"] = "opq"
    levels: PositiveInt = 6
    """Subspaces L; codes have no order."""
    codebook_size: PositiveInt = 256
    """Codes K per subspace."""
    components: PositiveInt | None = None
    """Width after the PCA, a multiple of `levels`; null for the largest multiple up to 128 and the vectors' width."""
    iterations: PositiveInt = 25
    """Lloyd iterations per subspace."""
    points_per_code: PositiveInt = 256
    """Training vectors per code; more items than this times K are subsampled."""
    threads: PositiveInt = 1
    """Threads of the fit. The same seed gives the same codebooks only with the same number of threads."""

    def unordered_levels(self, vectors: tuple[str, ...]) -> int:
        return self.levels

    def __post_init__(self) -> None:
        if self.components is not None and self.components % self.levels:
            raise ValueError(f"expected components as a multiple of levels, got {self.components} for {self.levels}")


@section
class RandomCodesConfig(LearnerSection):
    """Codes drawn at random: a control that shows whether SIDs carry meaning. Used like codes of levels in order."""

    kind: Literal["random"] = "random"
    levels: PositiveInt = 3
    """Levels L of a SID."""
    codebook_size: PositiveInt = 256
    """Codes K per level."""

    def check_use(self, vectors: tuple[str, ...], resolve_collisions: bool) -> None:
        if resolve_collisions:
            raise ValueError("expected resolve_collisions with a learner whose codes are nearest ones, got random")


@section
class ResidualKMeansConfig(LearnerSection):
    """Residual k-means (RQ-KMeans; QARM, OneRec) with faiss: per level, the best of a growing and of plain k-means."""

    kind: Literal["residual_kmeans"] = "residual_kmeans"
    levels: PositiveInt = 3
    """Levels L of a SID."""
    codebook_size: PositiveInt = 256
    """Codes K per level."""
    dimension_steps: PositiveInt = 10
    """Rounds in which the growing k-means goes from one principal axis to all."""
    restarts: NonNegativeInt = 2
    """Searches by plain k-means from a k-means++ start, besides the growing one; the lowest squared error wins."""
    iterations: PositiveInt = 10
    """Lloyd iterations per round, and per plain k-means."""
    points_per_code: PositiveInt = 256
    """Training vectors per code; more items than this times K are subsampled."""
    beam: PositiveInt = 1
    """Beam width of the encoder: how many partial SIDs are kept per level."""
    balanced: bool = False
    """Clusters of equal size while fitting, as in OneRec; encoding still takes the nearest code."""
    threads: PositiveInt = 1
    """Threads of the fit. The same seed gives the same codebooks only with the same number of threads."""


def _fill_preset(values: Any) -> Any:
    """The mapping of a learner with its preset filled in; anything else as it is."""
    return fill_preset(values, {learner.kind: learner.presets for learner in get_args(GradientLearnerConfig)})


Learner = Annotated[
    ResidualKMeansConfig | RandomCodesConfig | OpqConfig | GradientLearnerConfig,
    Field(discriminator="kind"),
    BeforeValidator(_fill_preset),
]


@section
class TokenizerConfig:
    """What `sidrec fit` learns, and from which vectors."""

    vectors: tuple[Column, ...] = ("text",)
    """Vector columns of items.parquet, concatenated in this order."""
    normalize: bool = True
    """Scale each vector column to unit length first; not `behavior` for adc_sid, which uses its norm."""
    learner: Learner = ResidualKMeansConfig()
    """Method that turns vectors into codes."""
    seed: int = 0
    """Seed of the learner."""
    resolve_collisions: bool = False
    """Move items that share a SID to the nearest free code of the last level; others keep sharing."""

    def __post_init__(self) -> None:
        self.learner.check_use(self.vectors, self.resolve_collisions)

    @property
    def levels(self) -> int:
        """Number of levels of a SID."""
        learner = self.learner
        return learner.unordered_levels(self.vectors) if isinstance(learner, AdcSidConfig) else learner.levels

    @property
    def unordered_levels(self) -> int:
        """The number of levels if they are independent of each other, else 0."""
        return self.learner.unordered_levels(self.vectors)
