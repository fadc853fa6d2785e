"""What an item's SID is cut into: the features that are looked up."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from sidrec.config.section import section


@section
class GranularityTokens:
    """The granularities that the item section names."""

    kind: Literal["granularities"] = "granularities"


@section
class SpmTokens:
    """Subwords of SIDs that SentencePiece learns (Google, arXiv 2306.08121): frequent runs of codes get a row of their
    own, rare SIDs fall apart into what they share with others. Trained on the SIDs of the train split's impressions."""

    kind: Literal["spm"] = "spm"
    vocabulary: PositiveInt
    """Rows of the table at most: one per subword, and row 0 for items without a SID."""


Tokens = Annotated[GranularityTokens | SpmTokens, Field(discriminator="kind")]
