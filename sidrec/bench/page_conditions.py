"""Under which conditions a bench measured: whatever its result says of them, in readable units."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any
from xml.etree.ElementTree import Element

from sidrec.bench.page_element import element
from sidrec.bench.page_numbers import MISSING, byte_unit, three_digits
from sidrec.bench.result import BenchResult

LONG = 400  # letters from which a condition is folded away
LINE = 80  # letters of it that stay in sight
DEPTH = 2  # of mappings within mappings that are laid out; deeper ones become one line


def conditions(result: BenchResult) -> Element:
    done = max((len(plan.rounds) for plan in result.plans), default=0)
    rounds = {"rounds": f"{done} of {result.rounds_wanted}"}
    parts = {
        "Hardware": _in_units(result.hardware),
        "Workload": result.workload,
        "Conditions": {**rounds, **result.conditions},
    }
    return element("div", *(_card(title, values) for title, values in parts.items()), class_="cards")


def _in_units(hardware: Mapping[str, Any]) -> dict[str, Any]:
    """Bytes and bytes per second of `sidrec.plans.hardware.Hardware` as people say them."""
    return {key: UNITS[key](value) if key in UNITS and _is_number(value) else value for key, value in hardware.items()}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _bytes(value: float) -> str:
    size, unit = byte_unit(value)
    return f"{three_digits(value / size)} {unit}"


def _rate(value: float) -> str:
    return f"{three_digits(value / 1e9)} GB/s"


UNITS: dict[str, Callable[[float], str]] = {
    "hbm": _bytes,
    "ddr": _bytes,
    **dict.fromkeys(("hbm_bandwidth", "ddr_bandwidth", "host_link", "intra_bandwidth", "inter_bandwidth"), _rate),
}


def _card(title: str, values: Mapping[str, Any]) -> Element:
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
