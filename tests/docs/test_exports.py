"""The public API: the exported names are those that docs/python.md lists."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import axon_zmq
from axon_zmq import AsyncClient, Client
from axon_zmq.client.options import BODY_KEYS, CALL_KEYS, HEADER_KEYS, CallOptions, RunOptions
from tests.support import ROOT, options_table
from tests.support.any_share import any_share

PACKAGE = ROOT / "axon_zmq"
INTERNAL = "Internal: may change in any release."


def documented() -> dict[str, list[str]]:
    """The names of each public module, from the table in the section "Public API"."""
    section = (ROOT / "docs/python.md").read_text().split("\n## Public API\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `axon_zmq")]
    return {module.strip().strip("`"): [name.strip("`") for name in names.split()] for module, names in rows}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def test_the_documented_modules_are_the_public_ones():
    assert list(documented()) == ["axon_zmq", "axon_zmq.errors", "axon_zmq.events"]


@pytest.mark.parametrize("module", documented())
def test_the_documented_names_are_the_exported_names(module):
    names = documented()[module]
    exported = import_module(module).__all__
    assert sorted(names) == sorted(exported)
    assert len(set(exported)) == len(exported)


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in documented().items() for name in names]
)
def test_a_documented_name_is_importable_and_has_a_docstring(module, name):
    value = getattr(import_module(module), name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert inspect.getdoc(value)


@pytest.mark.parametrize("module", ["axon_zmq.errors", "axon_zmq.events"])
def test_all_lists_every_public_definition(module):
    defined: set[str] = set()
    for node in ast.parse(MODULES[module].read_text()).body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                defined.add(name)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                defined.add(name)
            case _:
                pass
    assert {name for name in defined if not name.startswith("_")} == set(import_module(module).__all__)


def test_every_exported_name_is_the_same_for_type_checkers_and_at_run_time():
    [block] = [node for node in ast.parse(MODULES["axon_zmq"].read_text()).body if isinstance(node, ast.If)]
    for_type_checkers = {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert {*for_type_checkers, "__version__"} == set(axon_zmq.__all__)
    for name, module in for_type_checkers.items():
        assert getattr(axon_zmq, name) is getattr(import_module(module), name)
    assert set(axon_zmq.__all__) <= set(dir(axon_zmq))
    with pytest.raises(AttributeError, match="has no attribute 'Klient'"):
        _ = axon_zmq.Klient


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_module_is_documented_as_public_or_marked_as_internal(name):
    if name in documented():
        return
    parts = name.split(".")
    enclosing = [".".join(parts[:count]) for count in range(2, len(parts) + 1)]
    docstrings = [ast.get_docstring(ast.parse(MODULES[each].read_text())) or "" for each in enclosing]
    assert any(INTERNAL in docstring for docstring in docstrings), f"{name} is neither public nor marked"


def test_all_options_are_typed_and_documented():
    assert RunOptions.__annotations__.keys() == {"id", *HEADER_KEYS, *BODY_KEYS}
    assert CallOptions.__annotations__.keys() == {"id", *HEADER_KEYS, *CALL_KEYS}
    for name, _group, _type, docstring in options_table.options():
        assert "Default: " in docstring, name
    assert options_table.table() in (ROOT / "docs/python.md").read_text(), "see `python -m tests.support.options_table`"


@pytest.mark.parametrize("client", [AsyncClient, Client])
def test_no_public_method_takes_untyped_options(client):
    methods = [each for name, each in inspect.getmembers(client, inspect.isfunction) if not name.startswith("_")]
    for method in methods:
        for parameter in inspect.signature(method).parameters.values():
            assert "Any" not in str(parameter.annotation), (method, parameter)
            if parameter.kind is parameter.VAR_KEYWORD:
                assert parameter.annotation in ("Unpack[RunOptions]", "Unpack[CallOptions]")


def test_at_most_eight_percent_of_the_public_parameters_are_untyped():
    parts = [PACKAGE / "client", PACKAGE / "events.py", PACKAGE / "errors.py", PACKAGE / "__init__.py"]
    assert any_share(*parts).ratio <= 0.08


def test_typed_usage_is_accepted_and_wrong_usage_is_reported():
    """Correct and wrong calls of the public methods, judged by pyright."""
    pyright = Path(sys.executable).parent / "pyright"
    if not pyright.exists():
        pytest.skip("pyright is not installed")
    checked = subprocess.run([pyright, "tests/support/typed_usage.py"], cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
