"""Tests that documentation pages cite as `file::name`."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

from tests.support import TESTS


def is_there(test: str) -> bool:
    """Whether a cited test exists."""
    file, _, name = test.partition("::")
    return any(name in _tests_of(path) for path in _files(file))


@cache
def _files(name: str) -> list[Path]:
    """The test files with this name, in any folder, so that a citation need not change when a file moves."""
    return list(TESTS.rglob(name)) if name.startswith("test_") else []


@cache
def _tests_of(path: Path) -> set[str]:
    """The test functions and hypothesis machines of a file, found without importing it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    named = {target.id for node in tree.body if isinstance(node, ast.Assign) for target in _names(node)}
    return {name for name in functions if name.startswith("test_")} | {name for name in named if name[:4] == "Test"}


def _names(node: ast.Assign) -> list[ast.Name]:
    return [target for target in node.targets if isinstance(target, ast.Name)]
