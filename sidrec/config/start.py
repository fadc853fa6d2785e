"""What a new run starts from, in the place of first values."""

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from sidrec.config.section import section, without_repeats


@section
class StartConfig:
    """What a new run starts from. A run that goes on from a checkpoint of its own has no use for it any more."""

    checkpoint: Path | None = None
    """Another run's directory, or a checkpoint: start from its weights. Tables of ids may have grown since."""
    optimizer: bool = True
    """Take over the state of the optimizers too."""
    without: Annotated[tuple[str, ...], AfterValidator(without_repeats)] = ()
    """Tables that keep their first values nevertheless."""
    tables: Mapping[str, str] = field(default_factory=dict)
    """Table -> FILE or FILE:NAME with rows of it (safetensors, npy, parquet); what these lack keeps first values."""

    def __post_init__(self) -> None:
        if self.without and self.checkpoint is None:
            raise ValueError(f"expected no `without` where there is no checkpoint, got {', '.join(self.without)}")
