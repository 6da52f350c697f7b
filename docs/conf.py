"""Sphinx configuration. `make docs` builds the site into docs/_build/html."""

from seenn_plugin import __version__

project = "seenn_plugin"
author = "seenn_plugin developers"
copyright = "2026, seenn_plugin developers"
version = release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
html_theme = "furo"
html_title = f"seenn_plugin {version}"

# Notebooks are committed without outputs. The tests execute them.
nb_execution_mode = "off"
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
napoleon_google_docstring = True
napoleon_use_rtype = False
