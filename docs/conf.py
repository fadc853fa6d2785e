"""Sphinx: `make docs` builds docs/ into build/docs, warnings as errors."""

from sidrec import __version__

project = "sidrec"
author = "sidrec authors"
copyright = "sidrec authors"
release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["README.md"]
templates_path: list[str] = []

html_theme = "furo"
html_title = f"sidrec {release}"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_format = "short"
nitpicky = False
