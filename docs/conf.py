"""How Sphinx builds these pages: ``sphinx-build -W docs docs/_build/html``."""

import sys
from pathlib import Path

from underlay import __version__

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "Underlay"
author = "the Underlay authors"
project_copyright = "the Underlay authors, Apache License 2.0"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "from_the_code",
]
exclude_patterns = ["_build"]
smartquotes = False  # "--json" is no dash

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

default_role = "py:obj"  # in docstrings, `name` is a name
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
napoleon_use_ivar = True
python_use_unqualified_type_names = True
add_module_names = False

html_theme = "alabaster"
html_title = "Underlay"
html_static_path = ["_static"]
html_show_sourcelink = False
html_theme_options = {
    "description": "A disk-image cache for hypervisors and provisioners",
    "fixed_sidebar": True,
    "page_width": "75rem",
    "sidebar_width": "16rem",
    "body_max_width": "52rem",
    "font_family": "system-ui, sans-serif",
    "head_font_family": "system-ui, sans-serif",
    "show_powered_by": False,
}
html_sidebars = {"**": ["about.html", "searchfield.html", "navigation.html"]}
