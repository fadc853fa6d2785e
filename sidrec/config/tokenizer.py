"""The tokenizer section: from item vectors to semantic ids."""

from typing import Literal

from sidrec.config.learners import Learner, ResidualKMeansConfig
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
