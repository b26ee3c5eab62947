"""Metadata of the Elixir package: version, packaged files, and the pages, links and groups of its documentation.

These tests read files only and need no Elixir. ExDoc reports a missing page or a broken link only as a warning, and hex
does not notice them at all.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import axon_zmq

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
PACKAGE = ROOT / "clients" / "elixir"
PROJECT = (PACKAGE / "mix.exs").read_text(encoding="utf-8")
REPOSITORY = "https://github.com/axon-zmq/axon_zmq"
LINKED = re.compile(re.escape(REPOSITORY) + r"/(?:blob|tree|commits)/main/([\w./-]+)(?:#([\w-]+))?")


def _setting(pattern: str) -> str:
    """The one value in mix.exs that a pattern with one group finds."""
    [value] = re.findall(pattern, PROJECT, re.DOTALL)
    return value


VERSION = _setting(r'@version "([^"]+)"')
EXTRAS = re.findall(r'"([^"]+)"', _setting(r"extras: \[([^\]]*)\]"))
PACKAGED = _setting(r"files: ~w\(([^)]*)\)").split()
GROUPS = _setting(r"defp groups_for_modules do\n(.*?)\n  end")
MODULES = sorted((PACKAGE / "lib").rglob("*.ex"))
PAGES = [*(PACKAGE / name for name in EXTRAS), PACKAGE / "examples" / "README.md"]


def test_the_elixir_package_has_the_version_of_the_python_package():
    assert axon_zmq.__version__ == VERSION


def test_the_readme_names_the_current_version():
    [requirement] = re.findall(r'\{:axon_core, "~> ([\d.]+)"\}', (PACKAGE / "README.md").read_text(encoding="utf-8"))
    assert VERSION.split(".")[:2] == requirement.split(".")


def test_the_package_has_the_license_of_the_project():
    assert (PACKAGE / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize("name", PACKAGED)
def test_every_packaged_file_exists(name: str):
    assert (PACKAGE / name).exists()


def test_the_pages_of_the_documentation_exist_and_are_packaged():
    assert "README.md" in EXTRAS
    assert set(EXTRAS) <= set(PACKAGED)
    assert all((PACKAGE / name).is_file() for name in EXTRAS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PACKAGE)))
def test_relative_links_lead_to_files_of_the_package(page: Path):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve()
        # A page of the documentation can link only to other pages of it.
        known = EXTRAS if page.name in EXTRAS and page.parent == PACKAGE else [*EXTRAS, *PACKAGED]
        assert str(target.relative_to(PACKAGE)) in known, link
        assert not anchor or anchor in _anchors(target), link


@pytest.mark.parametrize(
    "path", [*PAGES, *MODULES, PACKAGE / "mix.exs"], ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_links_to_the_repository_lead_to_files_and_headings_that_exist(path: Path):
    text = path.read_text(encoding="utf-8").replace("#{@source_url}", REPOSITORY)
    for name, anchor in LINKED.findall(text):
        target = ROOT / name.rstrip(".")
        assert target.exists(), name
        assert not anchor or anchor in _anchors(target), f"{name}#{anchor}"


def test_every_documented_module_is_in_one_group():
    documented = [name for path in MODULES for name in _documented(path)]
    assert sorted(re.findall(r"\bAxonCore[\w.]*", GROUPS)) == sorted(documented)


def _documented(path: Path) -> list[str]:
    """The modules of a file that have documentation."""
    source = path.read_text(encoding="utf-8")
    return re.findall(r"defmodule ([\w.]+) do\n\s*@moduledoc \"", source)


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
