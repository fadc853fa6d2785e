"""How the embeddings of an item's granularities become one. Every default cites its source."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from sidrec.config.section import section


@section
class AdditiveFusion:
    """softmax_k(v . tanh(W e_k + b_k)): of the item alone, so that e_sid can be cached and compared by cosine."""

    kind: Literal["additive"] = "additive"
    hidden: PositiveInt = 16
    """Width of the scorer's hidden layer."""


@section
class QueryFusion:
    """softmax_k(q . W e_k / sqrt(D)) with one learned query q."""

    kind: Literal["query"] = "query"


@section
class ConcatMlpFusion:
    """softmax(MLP([e_1; ...; e_G]))."""

    kind: Literal["concat_mlp"] = "concat_mlp"
    hidden: PositiveInt = 64
    """Width of the hidden layer."""


@section
class MeanFusion:
    """The same weight for every granularity: the control that attention must beat."""

    kind: Literal["mean"] = "mean"


@section
class SumFusion:
    """The plain sum, as Meta and Google pool the parts of a SID (arXiv 2504.02137, 2306.08121)."""

    kind: Literal["sum"] = "sum"


@section
class ConcatProjectFusion:
    """W [e_1; ...; e_G]: no attention, all of every part."""

    kind: Literal["concat_project"] = "concat_project"


Fusion = Annotated[
    AdditiveFusion | QueryFusion | ConcatMlpFusion | MeanFusion | SumFusion | ConcatProjectFusion,
    Field(discriminator="kind"),
]
