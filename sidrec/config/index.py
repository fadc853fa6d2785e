"""How ids become rows of embedding tables."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

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


@section
class ManagedCollisionIndex:
    """Ids get rows of their own as training meets them and lose them to others: TorchRec's managed collision, also
    called zero-collision hashing (ZCH). An id without a row reads one that all such ids share.

    Every rank deals out its share of the rows: results depend on the number of ranks, which must divide `rows`.
    """

    kind: Literal["managed_collision"] = "managed_collision"
    rows: Annotated[int, Field(ge=2)]
    """Rows of the table; the last of each rank is that of ids without one of their own."""
    eviction: Literal["lru", "lfu", "distance_lfu"] = "distance_lfu"
    """Who loses rows: the id not met for longest (lru), the one met least often (lfu), or the one with the fewest
    meetings for each step since the last (distance_lfu). An id is met once per rank and step. With lfu, a new id takes
    a row by more meetings in one interval than another id had in all."""
    eviction_interval: PositiveInt = 100
    """Steps after which ids met in them get rows, and others lose theirs; each time costs a sort of a rank's rows."""


HidIndex = Annotated[ExactIndex | ModuloIndex | ManagedCollisionIndex, Field(discriminator="kind")]
