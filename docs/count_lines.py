"""`python docs/count_lines.py`: counts anew the lines in architecture.md's table of questions."""

import re
from pathlib import Path

PAGE = Path(__file__).with_name("architecture.md")
ROOT = PAGE.parents[1]
ROW = re.compile(r"^\| (?P<question>[^|]+) \| (?P<files>`[^|]+?) \|\s*(?P<lines>\d*)\s*\|$", re.MULTILINE)


def questions(page: str) -> list[tuple[str, list[Path], int]]:
    """Question, files, and their lines in all as the page says."""
    rows = [(row["question"], re.findall(r"`([^`]+)`", row["files"]), row["lines"]) for row in ROW.finditer(page)]
    return [(question, [ROOT / file for file in files], int(lines or 0)) for question, files, lines in rows]


def lines_of(files: list[Path]) -> int:
    """Lines of all files, rounded to tens."""
    return round(sum(len(file.read_text().splitlines()) for file in files), -1)


def recounted(page: str) -> str:
    """The page with the lines as they are."""

    def count(row: re.Match[str]) -> str:
        files = [ROOT / file for file in re.findall(r"`([^`]+)`", row["files"])]
        return f"| {row['question']} | {row['files']} | {lines_of(files)} |"

    return ROW.sub(count, page)


if __name__ == "__main__":
    PAGE.write_text(recounted(PAGE.read_text()))
