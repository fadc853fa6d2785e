"""Sphinx: `make docs` builds docs/ into build/docs, warnings as errors."""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
logging.getLogger().setLevel(logging.WARNING)  # FBGEMM tells of every library that it loads

from docstrings import docstring_to_rst, short_signature  # noqa: E402
from pygments.lexers.special import TextLexer  # noqa: E402
from recipe_pages import write_recipe_reference  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402

from sidrec import __version__  # noqa: E402

write_recipe_reference()


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", docstring_to_rst)
    app.connect("autodoc-process-signature", short_signature)
    app.add_lexer("csv", TextLexer)  # blocks of csv are files that the tests write; Pygments does not know the name


project = "sidrec"
author = "sidrec authors"
copyright = "sidrec authors"
release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["README.md"]
templates_path: list[str] = []

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_title = f"sidrec {release}"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
nitpicky = False
