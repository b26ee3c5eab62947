"""Figures about the structure of checkouts: `python -m tests.support.structure [ROOT …]` prints a column for each.

They are read from the source of `axon_zmq` with `ast`. Nothing of it is imported, so a checkout of an earlier layout
can be measured, too. Without an argument, this checkout is measured.

An **arrow** is a pair of units of which the first imports the second, however often. A **unit** is a top-level package
or module of `axon_zmq`, except its `__init__`, the public API. An arrow is **upward** if `LAYERS` in the checkout's
`test_architecture.py` has the importing unit below the imported one; the layer of a package is the highest one of
its entries, so an entry that takes a single module out of its package changes nothing.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from axon_zmq.protocol import kinds
from tests.support import ROOT
from tests.support.any_share import any_share

KINDS = frozenset(
    value
    for name, value in vars(kinds).items()
    if name.isupper() and not name.startswith("_") and isinstance(value, bytes) and value
)
"""Every kind of message, in any direction."""


@dataclass(frozen=True)
class Checkout:
    """A checkout of this project, in any layout."""

    root: Path

    @property
    def package(self) -> Path:
        """The folder of `axon_zmq`."""
        return self.root / "axon_zmq"

    @cached_property
    def modules(self) -> dict[str, ast.Module]:
        """Each module's source by its dotted name below `axon_zmq`; a package's `__init__` has the package's name."""
        found = {}
        for path in sorted(self.package.rglob("*.py")):
            name = path.relative_to(self.package).with_suffix("").as_posix().replace("/", ".")
            found[name.removesuffix(".__init__")] = ast.parse(path.read_text(encoding="utf-8"))
        del found["__init__"]
        return found

    @property
    def packages(self) -> list[str]:
        """Top-level packages."""
        return sorted(path.parent.name for path in self.package.glob("*/__init__.py"))

    @property
    def loose_modules(self) -> list[str]:
        """Top-level modules."""
        return sorted(path.stem for path in self.package.glob("*.py") if path.stem != "__init__")

    @cached_property
    def layers(self) -> list[list[str]]:
        """`LAYERS` of the checkout's architecture test, from the bottom up."""
        tree = ast.parse(next((self.root / "tests").rglob("test_architecture.py")).read_text(encoding="utf-8"))
        [value] = [
            node.value
            for node in tree.body
            if isinstance(node, ast.Assign) and [ast.unparse(each) for each in node.targets] == ["LAYERS"]
        ]
        layers: list[list[str]] = ast.literal_eval(value)
        return layers

    def layer_of_unit(self, unit: str) -> int:
        """The highest layer of a unit's entries."""
        return max(
            number for number, entries in enumerate(self.layers) for entry in entries if entry.split(".")[0] == unit
        )

    @cached_property
    def imported(self) -> dict[str, set[str]]:
        """For each module, the modules of `axon_zmq` that it imports, at its top or inside functions."""
        return {name: self._imported_by(tree) - {name} for name, tree in self.modules.items()}

    def _imported_by(self, tree: ast.Module) -> set[str]:
        found: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "axon_zmq":
                found.update([f"{node.module}.{alias.name}" for alias in node.names], [node.module or ""])
            elif isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
        return {short for each in found if (short := each.removeprefix("axon_zmq.")) in self.modules}

    def arrows(self, depth: int = 0, within: str = "") -> set[tuple[str, str]]:
        """Pairs of units, or of a package's entries, of which the first imports the second.

        Args:
            depth: Which part of a module's dotted name is the unit.
            within: Only modules of this package.
        """
        below = [name for name in self.modules if name.startswith(f"{within}.") or not within]
        pairs = {
            (name.split(".")[depth], target.split(".")[depth])
            for name in below
            for target in self.imported[name]
            if target in below
        }
        return {(one, other) for one, other in pairs if one != other}

    def upward(self) -> set[tuple[str, str]]:
        """Arrows from a unit to one above it."""
        return {pair for pair in self.arrows() if self.layer_of_unit(pair[0]) < self.layer_of_unit(pair[1])}

    def mutual(self) -> set[tuple[str, str]]:
        """Pairs of top-level packages or modules that import each other."""
        arrows = self.arrows()
        return {(one, other) for one, other in arrows if one < other and (other, one) in arrows}

    def entries(self, package: str) -> list[str]:
        """The modules and packages directly in a package."""
        return sorted({name.split(".")[1] for name in self.modules if name.startswith(f"{package}.")})

    def kind_literals(self) -> list[str]:
        """Bytes literals that are a message kind, outside `protocol/`, as `module:line`."""
        return [
            f"{name}:{node.lineno}"
            for name, tree in self.modules.items()
            if name.split(".")[0] != "protocol"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, bytes) and node.value in KINDS
        ]

    def untyped_options(self) -> list[str]:
        """Public functions and methods of `client/` that take `**options: Any`."""
        return [
            f"{name}.{function.name}"
            for name, tree in self.modules.items()
            if name.split(".")[0] == "client"
            for function in _public_functions(tree)
            if function.args.kwarg is not None and ast.unparse(function.args.kwarg.annotation or tree) == "Any"
        ]

    def private_names(self) -> list[str]:
        """Uses of undocumented behaviour of pydantic-ai outside `worker/adapter/compat.py`, as `module: source`."""
        from tests.unit.worker.adapter.test_compat import NOT_OF_PYDANTIC_AI, Scanner

        return [
            f"{name}: {source}"
            for name, tree in self.modules.items()
            if name.split(".")[0] in ("worker", "agents") and name != "worker.adapter.compat"
            for source, _reason in Scanner(tree).found
            if source not in NOT_OF_PYDANTIC_AI
        ]


def _public_functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Functions of a module, and methods of its classes, without an underscore in front."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    for body in [tree.body, *(each.body for each in classes)]:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                yield node


def figures(checkout: Checkout) -> dict[str, str]:
    """Each figure by its name."""
    private = checkout.private_names()
    files = {place.partition(":")[0] for place in private}
    share = any_share(checkout.package)
    return {
        "top-level packages": str(len(checkout.packages)),
        "top-level modules": str(len(checkout.loose_modules)),
        "arrows between them": str(len(checkout.arrows())),
        "upward arrows": _named(f"{one} → {other}" for one, other in checkout.upward()),
        "mutual imports": _named(f"{one} ↔ {other}" for one, other in checkout.mutual()),
        "entries of `worker/`": str(len(checkout.entries("worker"))),
        "arrows between them in `worker/`": str(len(checkout.arrows(depth=1, within="worker"))),
        "bytes literals of kinds outside `protocol/`": str(len(checkout.kind_literals())),
        "public client methods with `**options: Any`": str(len(checkout.untyped_options())),
        "undocumented uses of pydantic-ai outside `compat.py`": f"{len(private)} in {len(files)} files"
        if private
        else "0",
        "parameters annotated with `Any`": f"{share.untyped} of {share.total} ({share.ratio:.1%})",
    }


def _named(names: Iterator[str]) -> str:
    found = sorted(names)
    return f"{len(found)} ({', '.join(found)})" if found else "0"


def table(roots: list[Path]) -> str:
    """The figures of checkouts, as a Markdown table with a column for each."""
    columns = [figures(Checkout(root)) for root in roots]
    rows = [["figure", *(root.resolve().name for root in roots)]]
    rows += [[name, *(column[name] for column in columns)] for name in columns[0]]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    )


if __name__ == "__main__":
    print(table([Path(each) for each in sys.argv[1:]] or [ROOT]))
