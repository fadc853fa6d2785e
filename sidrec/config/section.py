"""The decorator of every recipe section, types that sections share, and keys without effect.

A section is a frozen dataclass that pydantic checks: unknown keys, NaN and infinity are refused.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar, dataclass_transform

import tyro
from pydantic import AfterValidator, ConfigDict, PlainValidator, WithJsonSchema

from sidrec.command_line import PlaceArgument
from sidrec.io.places import StorePath, is_uri, place, refusal_of_uri

T = TypeVar("T")


def without_repeats(values: tuple[T, ...]) -> tuple[T, ...]:
    """Validator for lists of names. Raises ValueError naming the first repeated one."""
    twice = [value for place, value in enumerate(values) if value in values[:place]]
    if twice:
        raise ValueError(f"expected every name once, got {twice[0]!r} twice")
    return values


@dataclass_transform(kw_only_default=True, frozen_default=True)
def section(cls: type[T]) -> type[T]:
    """Class decorator: makes the class a section of the recipe."""
    frozen = dataclass(frozen=True, kw_only=True)(cls)
    frozen.__pydantic_config__ = ConfigDict(extra="forbid", strict=False, allow_inf_nan=False)  # type: ignore[attr-defined]
    return frozen


# Keys that are paths. One of type Path is local.


def _place(value: object) -> Path | StorePath:
    if not isinstance(value, str | Path | StorePath):
        raise ValueError(f"expected a path or URI, got {type(value).__name__}")
    return place(value)


PlaceKey: TypeAlias = Annotated[
    PlaceArgument, PlainValidator(_place), WithJsonSchema({"type": "string", "format": "path"})
]
"""Type of a key that takes a local path or a URI."""


def uris_below(value: Any, texts: bool = True, path: str = "") -> Iterator[str]:
    """A sentence for each URI in a section and all sections in it, where only a local path will do.

    texts: look into keys of text too, which may name files.
    """
    if isinstance(value, Path) or (texts and isinstance(value, str)):
        if is_uri(value):
            yield refusal_of_uri(path, value)
    elif isinstance(value, tuple | list):
        for number, entry in enumerate(value):
            yield from uris_below(entry, texts, f"{path}.{number}")
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from uris_below(entry, texts, f"{path}.{key}")
    elif is_dataclass(value):
        for field in fields(value):
            yield from uris_below(getattr(value, field.name), texts, f"{path}.{field.name}".lstrip("."))


# Keys without effect. A section names its own by a method `unused_keys`.


def unused_keys_below(value: Any, path: str = "") -> dict[str, str]:
    """Dotted keys of a section and of all sections in it whose values have no effect -> what is expected instead."""
    found: dict[str, str] = {}
    if isinstance(value, tuple):
        for place, entry in enumerate(value):
            found |= unused_keys_below(entry, f"{path}{place}.")
    elif is_dataclass(value):
        for field in fields(value):
            found |= unused_keys_below(getattr(value, field.name), f"{path}{field.name}.")
        if hasattr(value, "unused_keys"):
            found |= {f"{path}{key}": expected for key, expected in value.unused_keys().items()}
    return found


def changed_keys(section: Any, names: Iterable[str], where: str) -> dict[str, str]:
    """Of the keys `names`, which have no effect `where`, those with another value than the default.

    Returns: key -> what is expected instead, as `unused_keys` returns it.
    """
    return dict(_changed_keys(section, names, where))


def _changed_keys(section: Any, names: Iterable[str], where: str) -> Iterator[tuple[str, str]]:
    for name in names:
        value = getattr(section, name)
        if value != default_of(section, name):
            got = getattr(value, "kind", value)
            yield name, f"none {where}, got {str(got).lower() if isinstance(got, bool) else got}"


def default_of(section: Any, name: str) -> Any:
    """The default of a key. Raises ValueError for a required key."""
    field: Field[Any] = section.__dataclass_fields__[name]
    if field.default_factory is not MISSING:
        return field.default_factory()
    if field.default is MISSING:
        raise ValueError(f"expected a key with a default, got {name}")
    return field.default


# Presets. A section with a key `preset` has a class attribute `presets`: name -> the values for keys left out.


Values = Mapping[str, Any]  # of a recipe's section
InRecipe = tyro.conf.Suppress  # a preset fills in keys of the recipe file; a flag would come too late


def fill_preset(values: Any, presets_of_kinds: Mapping[str, Mapping[str, Values]]) -> Any:
    """A section's mapping from a recipe, with the values of its preset for keys that it leaves out.

    Sections in it are filled key by key, but not one of another kind; lists are replaced. Unknown names are left to the
    check of the key, and anything but a mapping is returned as it is. presets_of_kinds: kind -> `presets`.
    """
    if not isinstance(values, Mapping):
        return values
    kind, name = values.get("kind"), values.get("preset")
    presets = presets_of_kinds.get(kind, {}) if isinstance(kind, str) else {}
    preset = presets.get(name) if isinstance(name, str) else None
    return values if preset is None else _filled(values, preset)


def _filled(values: Values, preset: Values) -> dict[str, Any]:
    filled = {**preset, **values}
    for key, inner in preset.items():
        own = values.get(key)
        if isinstance(inner, Mapping) and isinstance(own, Mapping) and own.get("kind") == inner.get("kind"):
            filled[key] = _filled(own, inner)
    return filled


# Names of granularities: s1 is level 1 alone, s12 the pair of levels 1 and 2, s123 the first three levels together.


MOST_LEVELS = 4  # four levels of radix 10,000 make ids up to 1e16, which int64 holds


def granularity_levels(name: str) -> tuple[int, ...]:
    """The levels (counted from 1) that a granularity joins, as in s23 -> (2, 3).

    Raises ValueError for a name that is not `s` and one to four adjacent, ascending level digits. Non-adjacent levels
    such as s13 are refused because their composed ids are too sparse (SID-Coord, arXiv 2604.10471).
    """
    digits = name[1:]
    levels = tuple(int(digit) for digit in digits if digit in "123456789")
    if not name.startswith("s") or len(levels) != len(digits) or not 1 <= len(levels) <= MOST_LEVELS:
        raise ValueError(f"expected a granularity such as s1, s12 or s123, got {name!r}")
    if levels != tuple(range(levels[0], levels[0] + len(levels))):
        raise ValueError(f"expected adjacent, ascending levels in a granularity, such as s12, got {name!r}")
    return levels


def _check_granularity(name: str) -> str:
    granularity_levels(name)
    return name


Granularity = Annotated[str, AfterValidator(_check_granularity)]


def _check_not_empty(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise ValueError("expected at least one granularity, got none")
    return names


Granularities = Annotated[tuple[Granularity, ...], AfterValidator(_check_not_empty), AfterValidator(without_repeats)]
