"""Docstrings as reStructuredText: sidrec writes them as plain text, for those who read the source.

A paragraph of lines such as `name: what it is` becomes a list, `code` becomes literal text, and an indented block stays
code. "Raises" and "Returns" begin a paragraph.
"""

import re
import textwrap

NAMED = re.compile(r"([A-Za-z_*][\w*]*(?:, [A-Za-z_*][\w*]*)*): (.*)")


def docstring_to_rst(app: object, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Called by autodoc; rewrites `lines` in place."""
    text = re.sub(r"\n(?=(?:Raises|Returns)\b)", "\n\n", textwrap.dedent("\n".join(lines)).strip("\n"))
    paragraphs = re.split(r"\n\s*\n", text)
    lines[:] = [*"\n\n".join(map(_paragraph, paragraphs)).split("\n"), ""]


def short_signature(
    app: object, what: str, name: str, thing: object, options: object, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Called by autodoc; names the union of item kinds instead of spelling it."""
    return signature and re.sub(r"(?:~?typing\.)?Annotated\[(?:[^\[\]]|\[[^\[\]]*\])*\]", "Item", signature), returned


def _paragraph(text: str) -> str:
    lines = text.split("\n")
    if text.startswith((" ", ">>>", "```", "..", ":")):
        return text
    text = re.sub(r"(?<![`:])`([^`]+)`(?!`)", r"``\1``", text)
    if lines[-1].endswith("::"):
        return text
    lines = text.split("\n")
    parts: list[str] = []
    for line in lines:
        named = NAMED.fullmatch(line)
        if named:
            parts.append(f"* ``{named[1]}``: {named[2]}")
        elif parts:
            parts[-1] += f" {line.strip()}"
        else:
            parts.append(line.strip())
    listed = [part for part in parts if part.startswith("* ")]
    head = [part for part in parts if not part.startswith("* ")]
    return "\n\n".join([*head, *(["\n".join(listed)] if listed else [])])
