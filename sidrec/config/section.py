"""What every section of the recipe is: a frozen dataclass that pydantic checks and that refuses unknown keys, and
numbers that are none."""

from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

from pydantic import ConfigDict

T = TypeVar("T")


def without_repeats(values: tuple[T, ...]) -> tuple[T, ...]:
    """For lists of names in which a second time would mean nothing. Raises ValueError naming what is there twice."""
    twice = [value for place, value in enumerate(values) if value in values[:place]]
    if twice:
        raise ValueError(f"expected every name once, got {twice[0]!r} twice")
    return values


@dataclass_transform(kw_only_default=True, frozen_default=True)
def section(cls: type[T]) -> type[T]:
    """Marks a class as a section of the recipe."""
    frozen = dataclass(frozen=True, kw_only=True)(cls)
    frozen.__pydantic_config__ = ConfigDict(extra="forbid", strict=False, allow_inf_nan=False)  # type: ignore[attr-defined]
    return frozen
