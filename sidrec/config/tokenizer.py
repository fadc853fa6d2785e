"""The tokenizer section: from item vectors to semantic ids."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from sidrec.config.section import section


@section
class ResidualKMeansConfig:
    """Residual k-means (RQ-KMeans; QARM, OneRec) with faiss: per level, the best of a growing and of plain k-means."""

    kind: Literal["residual_kmeans"] = "residual_kmeans"
    levels: PositiveInt = 3
    """Levels L of a SID."""
    codebook_size: PositiveInt = 256
    """Codes K per level."""
    dimension_steps: PositiveInt = 10
    """Rounds in which the growing k-means goes from one principal axis to all."""
    restarts: NonNegativeInt = 2
    """Plain k-means beside the growing one, each from a k-means++ start; the lowest squared error is kept."""
    iterations: PositiveInt = 10
    """Lloyd iterations per round, and per plain k-means."""
    points_per_code: PositiveInt = 256
    """Training vectors per code; more items than this times K are subsampled."""
    beam: PositiveInt = 1
    """Beam width of the encoder: how many partial SIDs are kept per level."""
    threads: PositiveInt = 1
    """Threads of the fit. The same seed gives the same codebooks only with the same number of threads."""


@section
class RandomCodesConfig:
    """Codes drawn at random: the control that shows whether SIDs carry meaning at all."""

    kind: Literal["random"] = "random"
    levels: PositiveInt = 3
    """Levels L of a SID."""
    codebook_size: PositiveInt = 256
    """Codes K per level."""


Learner = Annotated[ResidualKMeansConfig | RandomCodesConfig, Field(discriminator="kind")]


@section
class TokenizerConfig:
    """What `sidrec fit` learns and from which vectors."""

    vectors: tuple[Literal["text", "visual", "behavior"], ...] = ("text",)
    """Vector columns of items.parquet, concatenated in this order."""
    normalize: bool = True
    """Scale each vector column to unit length first."""
    learner: Learner = ResidualKMeansConfig()
    seed: int = 0
    """Seed of the learner."""
