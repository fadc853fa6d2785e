"""A workload of tables without a model: sizes and popularity from a YAML file, to plan for and to measure.

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
    """Name, without dots and spaces, which separate the parts of parameter names."""
    rows: Annotated[int, Field(gt=0, le=LARGEST_TABLE)]
    """Number of rows."""
    width: Annotated[int, Field(gt=0, le=WIDEST, multiple_of=4)]
    """Number of columns, a multiple of four for FBGEMM."""
    features: Annotated[int, Field(gt=0, le=MOST_FEATURES)] = 1
    """Number of features that are looked up in the table."""
    ids_per_bag: PositiveFloat = 1.0
    """Mean number of ids of a feature in one row of the log."""
    zipf: NonNegativeFloat = 1.05
    """Exponent of the popularity of ids; the lowest ids are the most popular. 0: uniform."""

    @property
    def feature_names(self) -> list[str]:
        """`features` names; a single feature has the table's name."""
        return [self.name] if self.features == 1 else [f"{self.name}_{number}" for number in range(self.features)]

    @property
    def law(self) -> ZipfLaw:
        """Popularity of the rows."""
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
    """Name in results."""
    rows_per_step: PositiveInt
    """Rows of the log in a step, over all ranks."""
    tables: Annotated[tuple[TableSpec, ...], Field(min_length=1), AfterValidator(_named_once)]
    """The tables."""

    def collection(self) -> EmbeddingBagCollection:
        """One collection of all tables, on `meta`."""
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
        """Table name -> how a rank reads it in a step of `rows_per_rank` rows."""
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
    """Whether `subject` is `criteo-mlperf` or a YAML file with the key `tables`, and not a recipe."""
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
            message = mistake["msg"].removeprefix("Value error, ")
            lines.append(f"  {place(mistake['loc'])}: {message}, got {short_repr(mistake['input'])}")
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
# From the commands of the reference (github.com/facebookresearch/dlrm and mlcommons/training, torchrec_dlrm:
# --num_embeddings_per_feature, --multi_hot_sizes, --embedding_dim), with its global batch size. The benchmark does not
# define the popularity of ids: TableSpec's default is used.

CRITEO_MLPERF = "criteo-mlperf"
"""Names these tables wherever a tables file is expected."""
ROWS = (
    *(40_000_000, 39_060, 17_295, 7_424, 20_265, 3, 7_122, 1_543, 63, 40_000_000, 3_067_956, 405_282, 10),
    *(2_209, 11_938, 155, 4, 976, 14, 40_000_000, 40_000_000, 40_000_000, 590_152, 12_973, 108, 36),
)
IDS_PER_BAG = (3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1)
WIDTH = 128
ROWS_PER_STEP = 65_536


# A model around the tables: DLRM's dense arch, interaction and over arch.
#
# Shapes: B rows, F features, D width, X dense columns.


DENSE = 13
"""Dense columns X, as in Criteo's logs."""


class TablesModel(nn.Module):
    """One collection of tables and a dense part so small that the tables dominate a step.

    Tables of one width get TorchRec's DLRM. Embeddings of several widths cannot interact by products: they get an MLP
    over their concatenation.
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
        """Returns (loss, ({"loss": detached loss}, logits [B])), as TorchRec's pipelines expect."""
        embedded = self.tables(batch.sparse_features).to_dict()
        if self.dlrm is not None:
            embedded_BFD = torch.stack([embedded[feature] for feature in self.features], dim=1)
            logits_B = self.dlrm(batch.dense_features, embedded_BFD).squeeze(1)
        else:
            assert self.over is not None, "one of the two exists"
            side_by_side = torch.cat([batch.dense_features, *(embedded[feature] for feature in self.features)], dim=1)
            logits_B = self.over(side_by_side).squeeze(1)
        loss = functional.binary_cross_entropy_with_logits(logits_B, batch.labels)
        return loss, ({"loss": loss.detach()}, logits_B.detach())
