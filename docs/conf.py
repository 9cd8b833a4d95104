"""How the documentation is built: ``make docs``. Warnings are errors."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

project = "Compression Workbench"
author = "The Compression Workbench authors"
copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc", "generated"]
exclude_patterns = ["build"]

html_theme = "furo"
html_title = project
html_copy_source = False
html_show_sphinx = False
html_static_path = ["static"]
html_css_files = ["workbench.css"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# Signatures are read as they are written; a default is shown by its name, not by its value.
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
python_display_short_literal_types = True
python_maximum_signature_line_length = 88
add_module_names = False
# In docstrings, one back-tick is a name.
default_role = "literal"
nitpicky = False
