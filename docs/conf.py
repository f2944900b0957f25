"""Sphinx configuration: `sphinx-build -W --keep-going docs docs/_build`."""

import importlib.metadata

project = "maskcl_jax"
author = "The maskcl_jax authors"
copyright = f"2026, {author}"
release = importlib.metadata.version("maskcl_jax")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_external_toc",  # the table of contents is _toc.yml, so that pages stay plain Markdown
]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}

default_role = "code"  # what stands between single backticks in docstrings
highlight_language = "text"
smartquotes = False  # they turn --flag into a dash
myst_heading_anchors = 4  # links to headings, as GitHub makes them
suppress_warnings = ["myst.header"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"  # Encoder, not maskcl_jax.api.encoder.Encoder
python_maximum_signature_line_length = 100  # longer ones have one argument a line
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "sphinx_book_theme"
html_title = "maskcl_jax"
html_theme_options = {
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "navbar_persistent": [],  # one field to search is enough
}
html_copy_source = False
