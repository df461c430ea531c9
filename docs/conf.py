"""Sphinx configuration of the site: `make docs` builds it, without a network."""

import sys
from pathlib import Path

import mathjax

import nlcg_optax

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))

project = "nlcg_optax"
author = "The nlcg_optax developers"
copyright = f"2026, {author}"
version = release = nlcg_optax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "links",
    "public_names",
    "signatures",
]
exclude_patterns = ["extensions"]
templates_path = ["_templates"]
default_role = "py:obj"  # `name` in a docstring links to that name
add_module_names = False
toc_object_entries = False

# API pages
autosummary_generate = True
autosummary_imported_members = True
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
maximum_signature_line_length = 72
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # the signature has them

# Markdown, and the gallery, which every build executes
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = False
nb_execution_mode = "auto"
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_timeout = 180
nb_merge_streams = True
suppress_warnings = ["myst-nb.lexer"]  # of cells that were not executed
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# All of MathJax in one file with its fonts, out of a package.
MATHJAX = Path(mathjax.__file__).parent / "static" / "mathjax" / "es5" / "tex-svg.js"
mathjax_path = MATHJAX.name
myst_update_mathjax = False

html_theme = "sphinx_book_theme"
html_title = f"nlcg_optax {release}"
html_static_path = ["_static", str(MATHJAX)]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_use_index = False
html_copy_source = False
html_theme_options = {
    "home_page_in_toc": True,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}
