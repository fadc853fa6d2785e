"""How ids become rows of embedding tables."""

from typing import Annotated, Literal

from pydantic import Field

from sidrec.config.section import section


@section
class ExactIndex:
    """Every id that occurs has a row of its own, and every SID granularity a table of its own."""

    kind: Literal["exact"] = "exact"


@section
class ModuloIndex:
    """Ids are hashed to the rows of one table and share them where they collide: the hashing trick, and of SIDs the
    table that all granularities share in Meta's prefix n-gram (arXiv 2504.02137), each hashed in a way of its own."""

    kind: Literal["modulo"] = "modulo"
    rows: Annotated[int, Field(ge=2)]
    """Rows of the table; row 0 is kept for what is not known."""


Index = Annotated[ExactIndex | ModuloIndex, Field(discriminator="kind")]
