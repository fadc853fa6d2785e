"""How a history becomes one vector of the backbone. Every default cites its source."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from sidrec.config.section import section


@section
class MeanPooling:
    """The mean over the history, whatever the target."""

    kind: Literal["mean"] = "mean"


@section
class TargetAttentionPooling:
    """DIN's local activation (arXiv 1706.06978): sum_t a_t h_t, a_t = MLP([h_t; e; h_t - e; h_t * e]) with target e.

    PReLU and no softmax as in the paper; the inputs are those of the authors' code.
    """

    kind: Literal["target_attention"] = "target_attention"
    hidden: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (36,)
    """Hidden widths of the MLP; a last layer of width 1 is added. 36 is the paper's Figure 2."""
    softmax: bool = False
    """Make the weights of a history sum to one. The paper does not, to keep how strong the interest is."""


Pooling = Annotated[MeanPooling | TargetAttentionPooling, Field(discriminator="kind")]
