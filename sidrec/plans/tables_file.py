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
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from sidrec.config import ConfigError
from sidrec.config.load import load_mapping
from sidrec.config.section import section
from sidrec.plans.criteo_mlperf import CRITEO_MLPERF, IDS_PER_BAG, ROWS, ROWS_PER_STEP, WIDTH
from sidrec.plans.workload import TableLoad
from sidrec.plans.zipf_law import ZipfLaw
from sidrec.schema import LARGEST_TABLE
from sidrec.sentence import place, short_repr

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
