"""The house's own rules: who may import what, and that the docs name things that are there."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from axon_zmq.protocol.kinds import MODES
from tests.conftest import ROOT

PACKAGE = ROOT / "axon_zmq"
LAYERS = [
    ["errors"],
    ["protocol"],
    ["events"],
    ["net"],
    ["settings"],
    ["process"],
    ["jsonschema"],
    ["broker.core"],
    ["broker"],
    ["worker"],
    ["client"],
    ["supervise"],
    ["loadtest"],
    ["conformance"],
    ["testing"],
    ["agents"],
    ["cli"],
]
"""From the bottom up; a module imports only from its own layer and those before it."""
CORES = [
    "broker.core",
    "protocol",
    "client.core",
    "client.messages",
    "client.options",
    "client.tool_calls",
    "events",
    "errors",
]
"""Packages and modules without I/O: they neither read a clock nor touch a socket."""


def imports(path: Path, top_level: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def modules() -> dict[str, Path]:
    return {
        path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): path for path in PACKAGE.rglob("*.py")
    }


def is_below(name: str, package: str) -> bool:
    """Whether a module is a package's, or is it."""
    return name == package or name.startswith(f"{package}.")


def layer(name: str) -> int:
    """The most specific entry's."""
    matches = [
        (len(entry), number) for number, entries in enumerate(LAYERS) for entry in entries if is_below(name, entry)
    ]
    return max(matches)[1]


@pytest.mark.parametrize("name", [name for name in modules() if not name.endswith("__init__")])
def test_dependencies_point_down(name):
    known = modules()
    for target in imports(known[name]):
        short = target.removeprefix("axon_zmq.")
        if target.startswith("axon_zmq.") and short in known:
            assert layer(short) <= layer(name), f"{name} imports {short}"


@pytest.mark.parametrize("name", [name for name in modules() if any(is_below(name, core) for core in CORES)])
def test_cores_do_no_io(name):
    roots = {target.split(".")[0] for target in imports(modules()[name])}
    assert not roots & {"zmq", "asyncio", "time", "pydantic_ai", "socket", "threading", "os"}


def test_only_workers_and_agents_import_pydantic_ai():
    users = {name for name, path in modules().items() if any(i.split(".")[0] == "pydantic_ai" for i in imports(path))}
    assert {name.split(".")[0] for name in users} == {"worker", "agents"}


def test_nothing_but_the_command_line_imports_the_command_line():
    users = {name for name, path in modules().items() if any(is_below(i, "axon_zmq.cli") for i in imports(path))}
    assert {name.split(".")[0] for name in users} == {"cli"}


def test_only_the_command_line_writes_to_a_terminal():
    """Reports, also those of the load tester, are data: rows and lines that the command line prints.

    `loadtest.html` writes a file for a browser and prints nothing. Processes write log lines.
    """
    for name, path in modules().items():
        if is_below(name, "cli"):
            continue
        assert not {i.split(".")[0] for i in imports(path)} & {"rich", "typer", "click"}, name
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not [each for each in calls if isinstance(each.func, ast.Name) and each.func.id == "print"], name


@pytest.mark.parametrize(("one", "other"), [("supervise", "worker"), ("worker", "supervise")])
def test_the_worker_and_what_supervises_it_do_not_import_each_other(one, other):
    for name, path in modules().items():
        if is_below(name, one):
            assert not [target for target in imports(path) if is_below(target, f"axon_zmq.{other}")], name


def test_the_list_of_commands_loads_neither_settings_nor_what_commands_need():
    code = "import sys, axon_zmq.cli.app; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pydantic", "pydantic_ai", "pydantic_settings", "zmq", "hdrh", "plotly", "xmlrpc"} & set(loaded)


@pytest.mark.parametrize("name", modules())
def test_a_constructor_takes_at_most_three_positional_arguments(name):
    """More are keyword-only: in a call of four, nobody knows which is which. Events and effects are patterns too."""
    if name == "events" or name.endswith((".events", ".effects")):
        pytest.skip("events and effects")
    for node in ast.walk(ast.parse(modules()[name].read_text())):
        if isinstance(node, ast.ClassDef):
            assert positional_arguments(node) <= 3, f"{name}.{node.name}"


def positional_arguments(node: ast.ClassDef) -> int:
    """How many positional arguments a class takes: those of `__init__`, or the fields of a dataclass."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return len(item.args.posonlyargs) + len(item.args.args) - 1
    decorators = [ast.unparse(each) for each in node.decorator_list]
    if not any(each.startswith("dataclass") and "kw_only=True" not in each for each in decorators):
        return 0
    fields = [item for item in node.body if isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.unparse(item)]
    return sum("init=False" not in ast.unparse(field.value or ast.Constant(None)) for field in fields)


def test_the_broker_process_loads_neither_pydantic_nor_asyncio_nor_the_rest():
    code = "import sys, axon_zmq.broker.__main__; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pydantic", "pydantic_ai", "pydantic_settings", "typer", "rich", "openai"} & set(loaded)


def test_the_three_modes_are_listed_once():
    """`kinds.Mode` is the only list of them."""
    expected = {*MODES}
    for folder in ("axon_zmq", "bench", "chaos", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            if path == PACKAGE / "protocol/kinds.py":
                continue
            tree = ast.parse(path.read_text())
            types = {id(node.slice) for node in ast.walk(tree) if isinstance(node, ast.Subscript)}
            for node in ast.walk(tree):
                if isinstance(node, ast.List | ast.Tuple | ast.Set) and id(node) not in types:
                    values = [each.value for each in node.elts if isinstance(each, ast.Constant)]
                    words = {value.decode("latin-1") if isinstance(value, bytes) else value for value in values}
                    assert not expected <= words, f"{path.relative_to(ROOT)}:{node.lineno}: use MODES"


def test_each_mode_has_its_settings():
    from axon_zmq.settings import Settings

    fields = {
        name for name in Settings.model_fields if name.startswith("run_") and name.endswith(("_workers", "_slots"))
    }
    assert fields == {f"{mode}_{what}" for mode in MODES for what in ("workers", "slots")}


def test_the_life_of_a_request_in_the_readme_names_functions_that_are_there():
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| ") and ".py:" in line]
    assert len(rows) == 10
    for row in rows:
        path, _, name = row.split("|")[-2].strip().strip("`").partition(":")
        tree: ast.AST = ast.parse((ROOT / path).read_text())
        for step in name.split("."):
            [tree] = [
                node
                for node in ast.iter_child_nodes(tree)
                if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name == step
            ]


def test_the_tree_in_the_architecture_page_names_every_module():
    page = (ROOT / "docs/architecture.md").read_text()
    tree = page.split("```text")[1].split("```")[0]
    named = set(tree.replace(",", " ").split())
    for name in modules():
        last = name.rsplit(".", 1)[-1]
        if last != "__init__" and not name.startswith(("agents.", "testing.", "supervise.")):
            assert {last, f"{last}.py"} & named, name


def test_every_setting_is_in_the_operations_page_with_its_default():
    from axon_zmq.settings import Settings

    page = (ROOT / "docs/operations.md").read_text()
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = (
            "\N{EN DASH}"
            if default in (None, [])
            else "the examples"
            if name == "agents"
            else str(default).removesuffix(".0")
        )
        [row] = [line for line in page.splitlines() if line.startswith(f"| `AXON_{name.upper()}` |")]
        assert row.split("|")[2].strip().strip("`") == shown, row


def test_no_registry_and_no_path_of_a_machine_is_committed():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    hosts = ["pypi" + ".org", "python" + "hosted", "registry.npm" + "js", "deb.deb" + "ian.org"]
    for name in listed.stdout.split():
        if (ROOT / name).suffix in (".msgpack", ".png"):
            continue
        text = (ROOT / name).read_text()
        assert not [host for host in hosts if host in text], name
