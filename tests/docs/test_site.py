"""The documentation site: generated pages and pictures are up to date, and every public name is in the API reference.

Broken links, missing anchors and pages outside the navigation are found by the build itself: `scripts/docs`.
"""

from __future__ import annotations

import importlib.util
import re

import pytest

import axon_zmq
from axon_zmq import errors
from tests.support import cli_page, snippets

DIAGRAMS = snippets.DOCS / "diagrams"


def test_the_page_of_commands_is_generated_from_help():
    assert cli_page.PAGE.read_text() == cli_page.page(), "run python -m tests.support.cli_page"


def drawings():
    spec = importlib.util.spec_from_file_location("draw", DIAGRAMS / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DIAGRAMS


@pytest.mark.parametrize("name", ["processes.svg", "request.svg"])
def test_the_diagrams_are_drawn_by_their_script(name):
    assert (DIAGRAMS / name).read_text() == drawings()[name](), "run python docs/diagrams/draw.py"


def test_every_public_name_is_in_the_api_reference():
    page = (snippets.DOCS / "reference/python-api.md").read_text()
    documented = set(re.findall(r"^\.\. (?:auto|py:)\w+:: axon_zmq\.([\w.]+)", page, re.MULTILINE))
    names = {name.rpartition(".")[2] for name in documented}
    assert {*axon_zmq.__all__, *errors.__all__} <= names


def test_the_readme_stays_short_and_shows_pictures_of_the_repository():
    readme = (snippets.ROOT / "README.md").read_text()
    assert len(readme.splitlines()) < 150
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", readme)
    assert pictures
    assert all((snippets.ROOT / picture).is_file() for picture in pictures)
