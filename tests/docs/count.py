"""`python -m tests.docs.count`: the code blocks of README.md and docs/ by page: run, checked, skipped with reasons.

run: python, bash and console blocks that are executed, and yaml and csv blocks that are written to the file they name
checked: yaml blocks that name no file, validated as a part of a recipe
shown: blocks of other languages, such as diff and json
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sidrec.text import text_table
from tests.docs.pages import PAGES, ROOT

BLOCK = re.compile(
    r'(?:<!-- skip: next "(?P<reason>[^"\n]+)" -->\n\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$', re.M | re.S
)


class Block(NamedTuple):
    """reason: why it is skipped; None if it is not."""

    language: str
    code: str
    reason: str | None

    @property
    def treatment(self) -> str:
        """run, checked, skipped or shown."""
        if self.reason:
            return "skipped"
        if self.language in ("python", "bash", "console"):
            return "run"
        if self.language in ("yaml", "csv"):
            return "run" if re.match(r"# \S+\.\w+\n", self.code) else "checked"
        return "shown"


def blocks_of(page: Path) -> Iterator[Block]:
    """The page's code blocks, in order. page: relative to the checkout."""
    for found in BLOCK.finditer((ROOT / page).read_text()):
        yield Block(found["language"], found["code"], found["reason"])


def main() -> None:
    """Prints a row for each page with blocks, the sum, and each reason."""
    columns = ("run", "checked", "skipped", "shown")
    pages = {page: list(blocks_of(page)) for page in PAGES}
    rows: list[tuple[str, ...]] = [("page", *columns)]
    for page, blocks in [*pages.items(), ("all", [block for found in pages.values() for block in found])]:
        if blocks:
            treatments = [block.treatment for block in blocks]
            rows.append((str(page), *(str(treatments.count(column)) for column in columns)))
    print(text_table(rows))
    print("\nskipped:")
    for page, blocks in pages.items():
        for block in blocks:
            if block.reason:
                print(f"  {page}: {block.language}, {block.reason}")


if __name__ == "__main__":
    main()
