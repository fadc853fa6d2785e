"""Cards of pages: nested values as pairs of names and text; long ones folded."""

from collections.abc import Iterable, Mapping
from typing import Any
from xml.etree.ElementTree import Element

from sidrec.page.elements import element

LONG = 400  # letters from which a value is folded
LINE = 80  # letters of a folded value that stay visible
DEPTH = 2  # levels of nested mappings that are laid out; deeper ones become one line
MISSING = "\N{EN DASH}"  # where there is no value


def card(title: str, values: Mapping[str, Any]) -> Element:
    """A card with a heading."""
    return element("section", element("h2", title), _pairs(values.items(), DEPTH), class_="card")


def _pairs(values: Iterable[tuple[str, Any]], depth: int) -> Element:
    lines = [
        part for key, value in values for part in (element("dt", _words(key)), element("dd", _value(value, depth)))
    ]
    return element("dl", *lines)


def _value(value: Any, depth: int) -> Element | str:
    text = _text(value)
    if isinstance(value, Mapping) and depth > 1:
        inner = _pairs(value.items(), depth - 1)
        return inner if len(text) <= LONG else _folded(f"{len(value)} entries", inner)
    return text if len(text) <= LONG else _folded(f"{text[:LINE]}…", text)


def _folded(title: str, content: Element | str) -> Element:
    return element("details", element("summary", title), content)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(key)} {_text(each)}" for key, each in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return MISSING if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _words(key: str) -> str:
    return key.replace("_", " ")
