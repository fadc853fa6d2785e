"""Parquet files that may be broken: what pyarrow raises for them, as a sentence that names the file."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from sidrec.errors import ContractError


@contextmanager
def readable(where: object, expected: str = "a readable parquet file") -> Iterator[None]:
    """Around calls of pyarrow that read. Raises ContractError for whatever they find wrong with the file."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ContractError(where, expected, error) from None


def column_type(schema: pa.Schema, name: str, where: object) -> pa.DataType:
    """The type of a column. Raises ContractError where it is not there exactly once."""
    places = schema.get_all_field_indices(name)
    if len(places) != 1:
        expected, got = (f"a column {name}", "") if not places else (f"one column {name}", f"{len(places)} of them, ")
        raise ContractError(where, expected, f"{got}columns {schema.names}")
    return schema.field(places[0]).type
