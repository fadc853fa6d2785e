"""Text of messages: quoted input, near names, byte sizes, aligned tables."""

import reprlib
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import groupby, takewhile
from operator import gt
from pathlib import Path
from re import split
from shutil import get_terminal_size
from textwrap import wrap

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
    """Each line of `message`, printable and of at most LONGEST characters; at most LINES of them.

    A longer line is cut in its middle: it may begin with a long path, and end with what is wrong with it.
    """
    lines = message.splitlines()
    more = [f"  ... and {len(lines) - LINES:,} lines more"] if len(lines) > LINES else []
    return "\n".join([*map(_cut_inside, lines[:LINES]), *more])


def _cut_inside(line: str) -> str:
    if len(line) <= LONGEST:
        return quoted(line)
    cut = f" ... ({len(line):,} characters) ... "
    end = "".join(map(_printable, line[-LONGEST // 2 :]))[-LONGEST // 2 :]
    begin = "".join(map(_printable, line[:LONGEST]))
    return begin[: LONGEST - len(cut) - len(end)] + cut + end


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


def near_file(path: object) -> str:
    """`did_you_mean` for a file or folder that does not exist: the nearest name in the nearest folder that does."""
    if not isinstance(path, Path) or path.exists():
        return ""
    while path.parent != path and not path.parent.is_dir():
        path = path.parent
    try:
        close = get_close_matches(path.name, [found.name for found in path.parent.iterdir()], n=1)
    except OSError:
        return ""
    return f"; did you mean {path.parent / close[0]}?" if close else ""


def near_folder(path: object, marker: str) -> str:
    """Suggests folders with the file `marker` in place of `path`: "; there are A, B; did you mean A?", or "".

    Looks at most two levels below the nearest folder that exists, and below runs/ in the current folder.
    """
    if not isinstance(path, Path):
        return ""
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


COLUMNS = 100  # of a terminal, at most
NARROWEST = 40
SHORTEST = 12  # letters of a word that is shortened


def screen_width() -> int:
    """Columns to print in: the terminal's, at most COLUMNS; COLUMNS where there is no terminal."""
    return max(NARROWEST, min(COLUMNS, get_terminal_size((COLUMNS, 24)).columns))


def wrapped(text: str, width: int | None = None) -> str:
    """Lines broken between words; longer paths and names lose their middle. width: None for the screen's."""
    return "\n".join(_broken(text, width or screen_width()))


def text_table(rows: Sequence[Sequence[str]], left: int = 1, gap: int = 2, width: int | None = None) -> str:
    """Rows of cells as lines of aligned columns, `gap` blanks apart: `left` columns flush left, the others right.

    width: columns of the screen that a wider table is fitted to; None: not fitted. Cells flush left are broken between
    words, then paths and names in them are shortened in the middle, to SHORTEST letters. If that is not enough, the
    columns flush right are laid out in blocks below each other, each with the columns that tell rows apart; cells
    wider than the screen are broken there too. Numbers are never cut, and different names stay different.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    if width is None or _total(widths, gap) <= width:
        return _lines(rows, widths, left, gap)
    limits = _fitted(rows, widths, left, gap, width)
    kept = _identifying(rows, limits, gap, width)
    column, blocks = left, list[str]()
    while column < len(widths) or not blocks:
        repeated = range(kept if blocks else left)
        shown = [limits[each] for each in repeated]
        end = min(column + 1, len(widths))
        while end < len(widths) and _total([*shown, *widths[column : end + 1]], gap) <= width:
            end += 1
        of_block = [[*(row[each] for each in repeated), *row[column:end]] for row in rows]
        room = max(width - sum(shown) - gap * len(shown), SHORTEST)
        blocks.append(
            _wrapped_lines(of_block, [*shown, *(min(each, room) for each in widths[column:end])], len(shown), gap)
        )
        column = end
    return "\n\n".join(blocks)


CELL = r"(?<!\\)\|"  # between the cells of a line of Markdown


def markdown_on_screen(text: str, width: int | None = None) -> str:
    """Markdown for a terminal: tables as `text_table` fits them, other lines broken between words."""
    columns = width or screen_width()
    blocks = []
    for is_table, lines in groupby(text.splitlines(), key=lambda line: line.startswith("|")):
        if is_table:
            rows = [[cell.strip() for cell in split(CELL, line.strip()[1:-1])] for line in lines]
            body = [
                row for index, row in enumerate(rows) if index != 1 or not all(set(cell) <= set("-:") for cell in row)
            ]
            texts = takewhile(lambda cells: not any(map(_is_number, cells[1:])), zip(*body, strict=True))
            blocks.append(text_table(body, left=max(1, len(list(texts))), width=columns))
        else:
            blocks += [wrapped(line, columns) for line in lines]
    return "\n".join(blocks)


def _total(widths: Sequence[int], gap: int) -> int:
    return sum(widths) + gap * (len(widths) - 1)


def _lines(rows: Sequence[Sequence[str]], widths: Sequence[int], left: int, gap: int) -> str:
    lines = []
    for row in rows:
        cells = (
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append((" " * gap).join(cells).rstrip())
    return "\n".join(lines)


def _identifying(rows: Sequence[Sequence[str]], limits: Sequence[int], gap: int, width: int) -> int:
    """Number of first columns that tell rows apart; the first alone if they would take most of the screen."""
    enough = (each for each in range(1, len(limits) + 1) if len({tuple(row[:each]) for row in rows}) == len(rows))
    found = next(enough, 1)
    return min(len(limits), found if _total(limits[:found], gap) <= width * 3 // 4 else 1)


FLOORS = ((32, 1000), (32, 24), (16, 24), (SHORTEST, SHORTEST))
"""Stages of narrowing a column: letters that lines keep, and letters that a path or name keeps."""


def _fitted(rows: Sequence[Sequence[str]], widths: Sequence[int], left: int, gap: int, width: int) -> list[int]:
    """Widths of the columns flush left, the widest narrowed first: beside all others, or else to a third of `width`."""
    words = [[word for row in rows for word in row[each].split()] for each in range(left)]
    longest = [max(map(len, found), default=0) for found in words]
    needed = [max([_distinct(found), *(len(word) for word in found if _is_number(word))]) for found in words]
    others = widths[left:]
    beside_all = width - sum(others) - gap * len(others)
    widest = max((each for each in others if each < width * 2 // 3), default=0)
    beside_some = min(width - widest - gap, max(width // 3, SHORTEST))
    for target in (beside_all, beside_some):
        fitted = list(widths[:left])
        for line, name in FLOORS:
            floors = [
                max(min(natural, line), min(longest[each], name), needed[each])
                for each, natural in enumerate(widths[:left])
            ]
            while _total(fitted, gap) > target and any(map(gt, fitted, floors)):
                fitted[_widest(fitted, floors)] -= 1
        if _total(fitted, gap) <= target:
            break
    return fitted


def _widest(widths: Sequence[int], floors: Sequence[int]) -> int:
    """The widest column above its floor."""
    return max(range(len(widths)), key=lambda each: (widths[each] > floors[each], widths[each]))


def _distinct(words: Sequence[str]) -> int:
    """Letters that shortened names need to stay different; 0 if SHORTEST are enough, or if no number is."""
    names = {word for word in words if not _is_number(word)}
    limits = range(SHORTEST, max(map(len, names), default=0))
    enough = next((each for each in limits if len({shortened(name, each) for name in names}) == len(names)), SHORTEST)
    return 0 if enough == SHORTEST else enough


def _wrapped_lines(rows: Sequence[Sequence[str]], limits: Sequence[int], left: int, gap: int) -> str:
    """limits: letters of a column's lines; longer cells are broken."""
    lines = []
    for row in rows:
        cells = [
            _broken(cell, limit) if column < left or len(cell) > limit else [cell]
            for column, (cell, limit) in enumerate(zip(row, limits, strict=True))
        ]
        lines += [[cell[depth] if depth < len(cell) else "" for cell in cells] for depth in range(max(map(len, cells)))]
    return _lines(lines, limits, left, gap)


def _broken(cell: str, limit: int) -> list[str]:
    text = " ".join(word if _is_number(word) else shortened(word, limit) for word in cell.split())
    return wrap(text, max(1, limit), break_long_words=False, break_on_hyphens=False) or [""]


def _is_number(word: str) -> bool:
    return word.lstrip("([<>=+-~.")[:1].isdigit()  # also .71


def shortened(word: str, limit: int) -> str:
    """A path or name of at most `limit` letters: its begin and its longer end, which tells more, around an ellipsis."""
    if len(word) <= limit:
        return word
    begin = max(0, (limit - 1) // 3)
    return f"{word[:begin]}…{word[len(word) - (limit - begin - 1) :]}"
