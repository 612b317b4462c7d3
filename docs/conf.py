"""The documentation as a site, built without the network: `sphinx-build -W docs docs/_build/html`.

TINYBITVIT_DOCS=quick leaves the tutorials unexecuted.
"""

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / "_ext"), str(Path(__file__).parents[1])]

import tinybitvit  # noqa: E402

quick = os.environ.get("TINYBITVIT_DOCS") == "quick"

project = "TinyBitViT"
author = "TinyBitViT contributors"
version = release = tinybitvit.__version__

extensions = ["sphinx.ext.autodoc", "myst_nb", "mathml", "plain_docstrings", "generate", "live_page"]
exclude_patterns = ["_build", "_ext", "figures"]

# Formulas are drawn by the browser itself (see _ext/mathml.py)
html_math_renderer = "mathml"
myst_enable_extensions = ["dollarmath", "amsmath", "attrs_inline"]
myst_heading_anchors = 3

nb_execution_mode = "off" if quick else "cache"
nb_execution_raise_on_error = True
nb_execution_in_temp = True  # what a tutorial writes is not left in docs/
nb_execution_timeout = 120
nb_output_stderr = "error"  # a tutorial writes nothing there
nb_merge_streams = True  # lines that a cell prints one after another stand together
nb_ipywidgets_js = {}  # would be fetched from the network

autodoc_default_options = {"undoc-members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 90

html_theme = "pydata_sphinx_theme"
html_title = "TinyBitViT"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["live.js"]
html_logo = html_favicon = "../tinybitvit/viz/mark.svg"
html_sidebars = {"index": []}  # the home has the whole width
html_copy_source = False
html_show_sourcelink = False
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system has it
html_theme_options = {
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "navbar_end": ["theme-switcher"],
    "logo": {"text": "TinyBitViT"},
    "secondary_sidebar_items": {"**": ["page-toc"], "index": []},
    "footer_start": [],
    "footer_end": [],
    "show_nav_level": 1,
    "navigation_with_keys": True,
}
