"""Sphinx configuration of the documentation site.

`scripts/docs` builds the site. All warnings are errors, so a broken link, a missing anchor or a page outside the
navigation fails the build. The built pages load nothing from other hosts: Furo uses the fonts of the system, and
diagrams are committed SVG files.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import axon_zmq  # noqa: E402

REPOSITORY = "https://github.com/axon-zmq/axon_zmq"
log = logging.getLogger(__name__)

project = "axon_zmq"
author = "the axon_zmq authors"
version = release = axon_zmq.__version__
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
# Pygments' lexer does not know all of Elixir's syntax; such a block is highlighted in its relaxed mode.
suppress_warnings = ["misc.highlighting_failure"]

myst_enable_extensions = ["colon_fence"]
# Headings get the same anchors as on GitHub, so that a link works on GitHub and on the site.
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "axon_zmq"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
pygments_dark_style = "github-dark"
html_show_sphinx = False
html_theme_options = {
    "source_repository": REPOSITORY,
    "source_branch": "main",
    "source_directory": "docs/",
    "light_css_variables": {"color-brand-primary": "#3730a3", "color-brand-content": "#4338ca"},
    "dark_css_variables": {"color-brand-primary": "#a5b4fc", "color-brand-content": "#a5b4fc"},
}
# Copy the commands of a console block, without prompts and without the output shown.
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
copybutton_exclude = ".linenos, .gp, .go"


class NamedAnchors(SphinxTransform):
    """Makes `<a id="name"></a>`, which GitHub needs for an anchor inside a line, a target for MyST's links."""

    default_priority = 100

    def apply(self, **_kwargs: Any) -> None:
        """Replace the raw HTML by a target node before MyST resolves links (priority 879)."""
        for raw in list(self.document.findall(nodes.raw)):
            if found := re.fullmatch(r'<a id="([\w-]+)">', raw.astext().strip()):
                target = nodes.target("", "", ids=[found[1]], names=[found[1]])
                self.document.note_explicit_target(target, target)
                raw.replace_self(target)


class LongNames(SphinxTransform):
    """Marks names of tests, such as `test_x.py::test_y`, so that the style sheet may wrap them."""

    default_priority = 880

    def apply(self, **_kwargs: Any) -> None:
        """Add a class to the inline code."""
        for literal in self.document.findall(nodes.literal):
            if "::" in literal.astext():
                literal["classes"].append("long-name")


def link_to_the_repository(_app: Sphinx, docname: str, source: list[str]) -> None:
    """Turn links to files outside `docs/`, which work on GitHub, into links to the repository."""
    folder = posixpath.dirname(f"docs/{docname}")

    def linked(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, found["path"]))
        if path.startswith("docs/"):
            return found[0]
        if not (ROOT / path).exists():
            log.warning("link to a file that does not exist: %s", path, location=docname)
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"]({REPOSITORY}/{kind}/main/{path}{found['anchor'] or ''})"

    source[0] = re.sub(r"\]\((?P<path>\.\./[^)#\s]*)(?P<anchor>#[^)\s]*)?\)", linked, source[0])


_attributes: dict[str, list[str]] = {}


def _code(found: re.Match[str]) -> str:
    """One piece of code as reStructuredText; names of classes and of their methods become links."""
    name = re.fullmatch(r"[A-Z]\w+(\.\w+)?", found[1])
    # The escaped blank separates code from a letter that follows, as in "`Tool`s".
    return (f":py:obj:`{found[1]}`" if name else f"``{found[1]}``") + "\\ " * bool(found[2])


def code_in_docstrings(_app: Sphinx, what: str, name: str, _obj: object, _options: Any, lines: list[str]) -> None:
    """Docstrings mark code with single backquotes, as Markdown does; reStructuredText needs two."""
    for number, line in enumerate(lines):
        lines[number] = re.sub(r"(?<![`:])`([^`]+)`(?!`)(?=(\w)?)", _code, line)
    if what in ("attribute", "data"):
        _attributes[name] = list(lines)


def whole_docstrings_of_attributes(
    _app: Sphinx, _what: str, name: str, _obj: object, _options: Any, lines: list[str]
) -> None:
    """Undo napoleon for attributes: it takes "Seconds to wait. Default: 5." for a type, a colon and a description."""
    if name in _attributes:
        lines[:] = _attributes[name]


def setup(app: Sphinx) -> None:
    """Register the hooks."""
    app.connect("source-read", link_to_the_repository)
    app.connect("autodoc-process-docstring", code_in_docstrings, priority=400)  # napoleon has 500
    app.connect("autodoc-process-docstring", whole_docstrings_of_attributes, priority=600)
    app.add_transform(NamedAnchors)
    app.add_transform(LongNames)
