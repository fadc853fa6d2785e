"""The tokenizer section: from item vectors to semantic ids."""

from typing import Literal

from sidrec.config.learners import AdcSidConfig, Learner, MmRqVaeConfig, RandomCodesConfig, ResidualKMeansConfig
from sidrec.config.section import section


@section
class TokenizerConfig:
    """What `sidrec fit` learns and from which vectors."""

    vectors: tuple[Literal["text", "visual", "behavior"], ...] = ("text",)
    """Vector columns of items.parquet, concatenated in this order."""
    normalize: bool = True
    """Scale each vector column to unit length first; adc_sid uses the norm of `behavior` and gets that one as it is."""
    learner: Learner = ResidualKMeansConfig()
    seed: int = 0
    """Seed of the learner."""
    resolve_collisions: bool = False
    """Move items that share a SID to the nearest free code of the last level; those that find none keep sharing."""

    def __post_init__(self) -> None:
        learner, columns = self.learner, list(self.vectors)
        if isinstance(learner, AdcSidConfig) and ("behavior" not in columns or len(columns) < 2):
            raise ValueError(f"expected vectors of adc_sid to be behavior and at least one content, got {columns}")
        if isinstance(learner, MmRqVaeConfig) and learner.levels % len(columns):
            raise ValueError(
                f"expected levels of mm_rqvae as a multiple of {len(columns)} vectors, got {learner.levels}"
            )
        if isinstance(learner, RandomCodesConfig) and self.resolve_collisions:
            raise ValueError("expected resolve_collisions with a learner whose codes are nearest ones, got random")
