"""Tests that pages of the documentation name as `file::name`."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

from tests.support import TESTS


def is_there(test: str) -> bool:
    """Whether there is such a test."""
    file, _, name = test.partition("::")
    return file in _files() and name in _tests_of(_files()[file])


@cache
def _files() -> dict[str, Path]:
    """Each test file by its name without the folder, so that a citation need not change when a file moves."""
    paths = list(TESTS.rglob("test_*.py"))
    files = {path.name: path for path in paths}
    assert len(files) == len(paths), "two test files have one name"
    return files


@cache
def _tests_of(path: Path) -> set[str]:
    """A file's test functions, and its hypothesis machines, without importing it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    named = {target.id for node in tree.body if isinstance(node, ast.Assign) for target in _names(node)}
    return {name for name in functions if name.startswith("test_")} | {name for name in named if name[:4] == "Test"}


def _names(node: ast.Assign) -> list[ast.Name]:
    return [target for target in node.targets if isinstance(target, ast.Name)]
