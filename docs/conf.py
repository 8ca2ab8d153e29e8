"""Settings of Sphinx: ``sphinx-build -W --keep-going -n docs docs/_build/html``."""

from __future__ import annotations

import sys
from pathlib import Path

from hyps_bids import __version__

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "HyPS-BIDS"
author = copyright = "The HyPS-BIDS developers"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc", "messages", "parsers", "tables"]
exclude_patterns = ["_build", "extensions"]
language = "en"
smartquotes = False
nitpicky = True
# Docstrings also name what is not in the reference.
nitpick_ignore_regex = [("py:.*", ".*")]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "none"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

html_theme = "furo"
html_title = f"HyPS-BIDS {__version__}"
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["tables.css"]
# The pages are read without a network.
html_theme_options = {"footer_icons": []}
