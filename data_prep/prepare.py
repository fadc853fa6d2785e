"""The whole way of a public log: build, add item vectors, publish, and say what came out."""

import json
from pathlib import Path

from data_prep.build import build
from data_prep.events import Source
from data_prep.item_vectors import NONE, TEXT_SOURCES, add_vectors, check_vector_source
from data_prep.settings import LogSettings
from sidrec import schema


def prepare(
    source: Source, out: Path, settings: LogSettings, implicit: bool, vectors: str, inputs: tuple[Path, ...] = ()
) -> None:
    """Writes the data folder `out`. vectors: "none" or what `add_vectors` takes. inputs: see `build`.

    Raises ContractError for bad input.
    """
    if vectors != NONE:
        check_vector_source(vectors)
    read = () if vectors == NONE or vectors in TEXT_SOURCES else (Path(vectors),)
    work = build(source, out, settings, implicit, (*inputs, *read))
    if vectors != NONE:
        print(add_vectors(work.data / schema.ITEMS, vectors))
    work.publish()
    manifest = schema.load_manifest(out / schema.LOG)
    print(json.dumps(dict(manifest.protocol), indent=1))
