"""Docstrings as reStructuredText: sidrec writes them as plain text, for those who read the source.

A paragraph of lines such as `name: what it is` becomes a list; an indented block stays code.
"""

import re
import textwrap

NAMED = re.compile(r"([A-Za-z_*][\w*]*(?:, [A-Za-z_*][\w*]*)*): (.*)")


def docstring_to_rst(app: object, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Called by autodoc; rewrites `lines` in place."""
    paragraphs = re.split(r"\n\s*\n", textwrap.dedent("\n".join(lines)).strip("\n"))
    lines[:] = [*"\n\n".join(map(_paragraph, paragraphs)).split("\n"), ""]


def _paragraph(text: str) -> str:
    lines = text.split("\n")
    if text.startswith((" ", ">>>", "```", "..", ":")):
        return text
    if lines[-1].endswith("::"):
        return text
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
