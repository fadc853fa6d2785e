"""Tables without a model: sizes and how they are read, from a YAML file, to plan for and to measure.

```yaml
name: mine
rows_per_step: 65536       # rows of a step, over all ranks
tables:
- {name: item, rows: 40000000, width: 128, features: 2, ids_per_bag: 3.5, zipf: 1.05}
```
"""

from pathlib import Path
from typing import Annotated

import torch
from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt, TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.nn import functional
from torchrec.datasets.utils import Batch
from torchrec.models.dlrm import OverArch
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from sidrec.config import ConfigError
from sidrec.config.load import load_mapping
from sidrec.config.model import DlrmBackbone
from sidrec.config.section import section
from sidrec.model.backbones import build_dlrm
from sidrec.plans.workload import TableLoad, ZipfLaw
from sidrec.schema import LARGEST_TABLE
from sidrec.text import place, short_repr

WIDEST = 1 << 20  # columns
MOST_FEATURES = 100_000  # of a table; each has a name


@section
class TableSpec:
    """One table."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[^.\s]+$")]
    """Its name, without dots and spaces, which names of parameters give a meaning of their own."""
    rows: Annotated[int, Field(gt=0, le=LARGEST_TABLE)]
    """Ids that it has a row for."""
    width: Annotated[int, Field(gt=0, le=WIDEST, multiple_of=4)]
    """Columns; FBGEMM takes multiples of four."""
    features: Annotated[int, Field(gt=0, le=MOST_FEATURES)] = 1
    """Features that are looked up in it."""
    ids_per_bag: PositiveFloat = 1.0
    """Mean ids of a feature in one row of the log."""
    zipf: NonNegativeFloat = 1.05
    """Exponent of the popularity of its ids, the lowest ids being the most popular; 0 for ids that are alike."""

    @property
    def feature_names(self) -> list[str]:
        """As many as `features`; a single one is called as the table."""
        return [self.name] if self.features == 1 else [f"{self.name}_{number}" for number in range(self.features)]

    @property
    def law(self) -> ZipfLaw:
        """How its ids fall on its rows."""
        return ZipfLaw(self.rows, self.zipf)


def _named_once(tables: tuple[TableSpec, ...]) -> tuple[TableSpec, ...]:
    names = [table.name for table in tables]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"expected every table name once, got {', '.join(twice)} more than once")
    return tables


@section
class TablesFile:
    """A workload of tables alone."""

    name: str
    """How results call it."""
    rows_per_step: PositiveInt
    """Rows of the log in a step, over all ranks."""
    tables: Annotated[tuple[TableSpec, ...], Field(min_length=1), AfterValidator(_named_once)]
    """The tables."""

    def collection(self) -> EmbeddingBagCollection:
        """The tables on `meta`."""
        configs = [
            EmbeddingBagConfig(
                name=table.name,
                num_embeddings=table.rows,
                embedding_dim=table.width,
                feature_names=table.feature_names,
            )
            for table in self.tables
        ]
        return EmbeddingBagCollection(configs, device=torch.device("meta"))

    def loads(self, rows_per_rank: int) -> dict[str, TableLoad]:
        """How a rank with so many rows in a step reads each table."""
        return {
            table.name: TableLoad(
                bags=rows_per_rank,
                ids_per_bag=(table.ids_per_bag,) * table.features,
                popularity=table.law,
            )
            for table in self.tables
        }


_TABLES: TypeAdapter[TablesFile] = TypeAdapter(TablesFile)


def is_tables(subject: str) -> bool:
    """Whether `subject` names tables (the built-in ones, or a YAML file with the key `tables`) and not a recipe."""
    return subject == CRITEO_MLPERF or "tables" in load_mapping(Path(subject), "recipe or tables file")


def read_tables(subject: str) -> TablesFile:
    """A tables file, or the built-in `criteo-mlperf`. Raises ConfigError with one line per mistake."""
    if subject == CRITEO_MLPERF:
        return criteo_mlperf()
    raw = load_mapping(Path(subject), "tables file")
    try:
        return _TABLES.validate_python(raw)
    except ValidationError as error:
        lines = [f"{subject}: {error.error_count()} mistake(s) in the tables file"]
        for mistake in error.errors(include_url=False):
            said = mistake["msg"].removeprefix("Value error, ")
            lines.append(f"  {place(mistake['loc'])}: {said}, got {short_repr(mistake['input'])}")
        raise ConfigError("\n".join(lines)) from None


def criteo_mlperf() -> TablesFile:
    """The 26 tables of MLPerf's DLRM-DCNv2 on Criteo 1TB, multi-hot."""
    tables = tuple(
        TableSpec(name=f"cat_{number}", rows=rows, width=WIDTH, ids_per_bag=float(ids))
        for number, (rows, ids) in enumerate(zip(ROWS, IDS_PER_BAG, strict=True))
    )
    return TablesFile(name=CRITEO_MLPERF, rows_per_step=ROWS_PER_STEP, tables=tables)


# Sizes of MLPerf Training's recommendation benchmark, DLRM-DCNv2 on Criteo 1TB with synthetic multi-hot ids.
#
# As the reference's commands give them (github.com/facebookresearch/dlrm and mlcommons/training, torchrec_dlrm:
# --num_embeddings_per_feature, --multi_hot_sizes, --embedding_dim), with the reference's global batch. How popular ids
# are is not part of it: a tables file's default is taken.


CRITEO_MLPERF = "criteo-mlperf"
"""What stands in the place of a file to plan for and to measure these tables."""


ROWS = (
    *(40_000_000, 39_060, 17_295, 7_424, 20_265, 3, 7_122, 1_543, 63, 40_000_000, 3_067_956, 405_282, 10),
    *(2_209, 11_938, 155, 4, 976, 14, 40_000_000, 40_000_000, 40_000_000, 590_152, 12_973, 108, 36),
)


IDS_PER_BAG = (3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1)
WIDTH = 128
ROWS_PER_STEP = 65_536


# A model for tables that come without one: DLRM's dense arch, interaction and over arch.
#
# Shapes: B rows, F features, D width, X dense columns.


DENSE = 13
"""Dense columns X, as Criteo's logs have."""


class TablesModel(nn.Module):
    """Scores rows by one collection of tables, and by a dense part small enough to leave the tables in sight.

    With tables of one width, TorchRec's DLRM; with several, whose embeddings cannot be multiplied with one another, an
    MLP over all of them side by side.
    """

    def __init__(self, tables: EmbeddingBagCollection) -> None:
        super().__init__()
        self.tables = tables
        configs = tables.embedding_bag_configs()
        self.features = [feature for table in configs for feature in table.feature_names]
        widths = {table.embedding_dim for table in configs}
        total = sum(table.embedding_dim * len(table.feature_names) for table in configs)
        config = DlrmBackbone()
        self.dlrm = build_dlrm(config, self.features, widths.pop(), DENSE) if len(widths) == 1 else None
        self.over = None if self.dlrm else OverArch(total + DENSE, [*config.over_layers, 1])

    def forward(self, batch: Batch) -> tuple[Tensor, tuple[dict[str, Tensor], Tensor]]:
        """The loss, and what the pipelines hand on: the loss by name, and the logits [B]."""
        embedded = self.tables(batch.sparse_features).to_dict()
        if self.dlrm is not None:
            embedded_BFD = torch.stack([embedded[feature] for feature in self.features], dim=1)
            logits_B = self.dlrm(batch.dense_features, embedded_BFD).squeeze(1)
        else:
            assert self.over is not None, "one of the two is there"
            side_by_side = torch.cat([batch.dense_features, *(embedded[feature] for feature in self.features)], dim=1)
            logits_B = self.over(side_by_side).squeeze(1)
        loss = functional.binary_cross_entropy_with_logits(logits_B, batch.labels)
        return loss, ({"loss": loss.detach()}, logits_B.detach())
