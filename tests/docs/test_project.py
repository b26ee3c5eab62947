"""Project metadata: versions, the release script, workflows, and the links of the pages for contributors."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tomllib
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

import axon_zmq
from tests.support import ROOT

PAGES = ["CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "CHANGELOG.md"]


@pytest.fixture(scope="module")
def release() -> ModuleType:
    loader = SourceFileLoader("release", str(ROOT / "scripts/release"))
    spec = importlib.util.spec_from_loader("release", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that state a version, with version 0.3.0 released."""
    files = {
        "axon_zmq/__init__.py": '__all__ = []\n__version__ = "0.3.0"\n',
        "clients/elixir/mix.exs": 'defmodule X do\n  @version "0.3.0"\nend\n',
        "CHANGELOG.md": "## [Unreleased]\n\n## [0.3.0] - 2027-01-02\n\n### Added\n\n- A thing.\n\n## [0.2.0] - x\n",
        "clients/elixir/CHANGELOG.md": "## [0.3.0] - 2027-01-02\n\n- Another.\n\n[0.3.0]: https://example.org\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_tag_that_names_the_stated_version_may_be_released(release: ModuleType, checkout: Path):
    assert release.problems("v0.3.0", checkout) == []
    assert release.section((checkout / "CHANGELOG.md").read_text(), "0.3.0") == "### Added\n\n- A thing."


def test_every_file_that_states_another_version_is_reported(release: ModuleType, checkout: Path):
    assert release.problems("v0.4.0", checkout) == [
        "axon_zmq/__init__.py has version 0.3.0, but the tag names 0.4.0",
        "clients/elixir/mix.exs has version 0.3.0, but the tag names 0.4.0",
        "CHANGELOG.md has no section '## [0.4.0] - YYYY-MM-DD'",
        "clients/elixir/CHANGELOG.md has no section '## [0.4.0] - YYYY-MM-DD'",
    ]
    assert release.problems("0.3.0", checkout) == ["invalid tag '0.3.0': expected v0.3.0"]


def test_one_command_sets_the_version_everywhere(release: ModuleType, checkout: Path):
    release.set_version("0.4.0", checkout)
    assert not [problem for problem in release.problems("v0.4.0", checkout) if "version" in problem]


def test_the_release_script_explains_wrong_usage():
    done = subprocess.run([ROOT / "scripts/release", "publish"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "Usage: scripts/release set VERSION" in done.stderr


def test_the_package_takes_its_version_from_the_code():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dynamic"] == ["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+(-rc\.\d+)?", axon_zmq.__version__)


def test_supported_python_versions_are_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stated = set(re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"])))
    workflow = (ROOT / ".github/workflows/tests.yml").read_text()
    matrix = re.search(r"python: \[(.*)\]", workflow)
    assert matrix is not None
    assert set(re.findall(r"3\.\d+", matrix[1])) == stated


@pytest.mark.parametrize("page", PAGES)
def test_files_that_contributors_are_pointed_to_exist(page: str):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", text):
        assert (ROOT / target).exists(), target
    for target in re.findall(r"`(?:\./)?((?:axon_zmq|tests|docs|scripts|clients)/[\w./-]+)`", text):
        assert (ROOT / target).exists(), target
