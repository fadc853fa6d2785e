"""Flags of a command, checked as a recipe's values are."""

from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from sidrec.config.load import ConfigError

T = TypeVar("T")


def checked_flags(options: TypeAdapter[T], parsed: Any) -> T:
    """The options as their section checks them. Raises ConfigError that names the first mistaken flag."""
    try:
        return options.validate_python(vars(parsed))
    except ValidationError as error:
        first = error.errors()[0]
        flag = "--" + str(first["loc"][0]).replace("_", "-")
        raise ConfigError(f"{flag}: {first['msg']}, got {first['input']!r}") from None
