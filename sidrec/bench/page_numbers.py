"""Figures as text: three digits, one unit for all that stand together."""

import math

MISSING = "–"  # noqa: RUF001  # an en dash, as tables have it
TIMES = "×"  # noqa: RUF001  # the sign, not the letter
UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def three_digits(value: float | None) -> str:
    """0.0123, 1.23, 12.3, 123, 1,230; a dash for None and for what is not finite."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    magnitude = int(f"{value:.2e}".partition("e")[2])  # of the rounded value: 9.999 is 10.0
    if magnitude < -4:
        return f"{value:.2e}"
    return f"{value:,.{max(0, 2 - magnitude)}f}"


def milliseconds(value: float | None) -> str:
    text = three_digits(value)
    return text if text == MISSING else f"{text} ms"


def percent(share: float) -> str:
    """12% for 0.12; one decimal below 10%."""
    return f"{100 * share:.1f}%" if abs(share) < 0.0995 else f"{100 * share:,.0f}%"


def byte_unit(largest: float) -> tuple[float, str]:
    """Bytes of the unit in which `largest` is at least 1, and its name."""
    power = 0 if largest < 1 else min(len(UNITS) - 1, int(math.log2(largest) // 10))
    return 1024.0**power, UNITS[power]
