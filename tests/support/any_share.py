"""The share of parameters annotated with `Any`, by package: `python -m tests.support.any_share` prints a table.

All annotated parameters of functions and methods of `axon_zmq` are counted, including `*args` and `**kwargs`, except
`self` and `cls`. A parameter counts as `Any` if its annotation contains that name.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support import ROOT

PACKAGE = ROOT / "axon_zmq"


class Share(NamedTuple):
    """The number of parameters, and how many of them are annotated with `Any`."""

    untyped: int
    total: int

    @property
    def ratio(self) -> float:
        """0 to 1; 0 if there are no parameters."""
        return self.untyped / self.total if self.total else 0.0


def any_share(*paths: Path) -> Share:
    """Count the parameters in modules, and in all modules below folders."""
    modules = [module for path in paths for module in ([path] if path.is_file() else path.rglob("*.py"))]
    found = [is_any for module in modules for is_any in _parameters(ast.parse(module.read_text()))]
    return Share(sum(found), len(found))


def _parameters(tree: ast.AST) -> Iterator[bool]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            optional = [each for each in (given.vararg, given.kwarg) if each is not None]
            for parameter in (*given.posonlyargs, *given.args, *given.kwonlyargs, *optional):
                if parameter.annotation is not None and parameter.arg not in ("self", "cls"):
                    yield _names_any(parameter.annotation)


def _names_any(annotation: ast.expr) -> bool:
    return any(
        (isinstance(node, ast.Name) and node.id == "Any")
        or (isinstance(node, ast.Attribute) and node.attr == "Any")
        or (isinstance(node, ast.Constant) and isinstance(node.value, str) and "Any" in node.value)
        for node in ast.walk(annotation)
    )


def table() -> list[tuple[str, Share]]:
    """Each top-level package and module of `axon_zmq`, then all together."""
    parts = sorted(path for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py")
    rows = [(path.stem, any_share(path)) for path in parts if path.stem != "__pycache__"]
    return [*rows, ("all", any_share(PACKAGE))]


if __name__ == "__main__":
    for name, share in table():
        print(f"{name:12} {share.untyped:4} of {share.total:4}  {share.ratio:6.1%}")
