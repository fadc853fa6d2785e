"""Text of messages: quoted input, near names, byte sizes, aligned tables."""

import reprlib
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

LONGEST = 1000  # characters quoted
LONGEST_KEY = 60  # characters of a key
LINES = 40  # of a list of mistakes
LISTED = 5  # folders that a suggestion lists

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 6
_SHORT.maxlevel = 3


def quoted(found: object) -> str:
    """`found` as one printable line of at most LONGEST characters; control characters are escaped."""
    text = " ".join(str(found).splitlines())
    line = "".join(map(_printable, text[: LONGEST + 1]))
    if len(line) <= LONGEST:
        return line
    end = f" ... ({len(text):,} characters)"
    return line[: LONGEST - len(end)] + end


def quoted_lines(message: str) -> str:
    """Each line of `message` as `quoted` makes it; at most LINES of them."""
    lines = message.splitlines()
    more = [f"  ... and {len(lines) - LINES:,} lines more"] if len(lines) > LINES else []
    return "\n".join([*map(quoted, lines[:LINES]), *more])


def short_repr(value: object) -> str:
    """`repr(value)`; large or deep values are cut. YAML aliases can repeat a value until memory is full."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # an integer of more digits than Python converts
        return f"a {type(value).__name__} of too many digits"


def place(steps: Iterable[object]) -> str:
    """The dotted path to a value, from pydantic's `loc`; long keys are cut."""
    return ".".join(name if len(name) <= LONGEST_KEY else f"{name[:LONGEST_KEY]}..." for name in map(str, steps))


def _printable(sign: str) -> str:
    return sign if sign.isprintable() else ascii(sign)[1:-1]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """ "; did you mean NAME?" with the nearest of `names`, or "" where none is near. Appended to an error message."""
    close = get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def near_file(path: Path) -> str:
    """`did_you_mean` for a file or folder that does not exist: the nearest name in the nearest folder that does."""
    if path.exists():
        return ""
    while path.parent != path and not path.parent.is_dir():
        path = path.parent
    try:
        close = get_close_matches(path.name, [found.name for found in path.parent.iterdir()], n=1)
    except OSError:
        return ""
    return f"; did you mean {path.parent / close[0]}?" if close else ""


def near_folder(path: Path, marker: str) -> str:
    """Suggests folders with the file `marker` in place of `path`: "; there are A, B; did you mean A?", or "".

    Looks at most two levels below the nearest folder that exists, and below runs/ in the current folder.
    """
    root = path
    while root != root.parent and not root.is_dir():
        root = root.parent
    patterns = (f"*/{marker}", f"*/*/{marker}", f"runs/*/*/{marker}")
    try:
        found = sorted({str(file.parent) for pattern in patterns for file in root.glob(pattern)} - {str(path)})
    except OSError:
        return near_file(path)
    if not found:
        return near_file(path)
    others = f" and {len(found) - LISTED} others" if len(found) > LISTED else ""
    return f"; there are {', '.join(found[:LISTED])}{others}{did_you_mean(str(path), found)}"


def byte_size(count: float) -> str:
    """A number of bytes in decimal units and three significant digits: "812 B", "3.4 kB", "1.25 GB", "12,300 TB"."""
    rounded = float(f"{count:.3g}")  # before the unit is chosen: 999.6 MB is 1 GB
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(rounded) >= unit:
            value = rounded / unit
            return f"{value:,.0f} {name}" if abs(value) >= 1000 else f"{value:.3g} {name}"
    return f"{count:,.0f} B"


def text_table(rows: Sequence[Sequence[str]], left: int = 1, gap: int = 2) -> str:
    """Rows of cells as lines of aligned columns, `gap` blanks apart: `left` columns flush left, the others right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = (
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append((" " * gap).join(cells).rstrip())
    return "\n".join(lines)
