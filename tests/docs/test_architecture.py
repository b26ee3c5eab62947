"""Rules of the architecture: imports between layers, and names on the documentation pages."""

from __future__ import annotations

import ast
import dataclasses
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from axon_zmq.errors import AxonError, RequestError
from axon_zmq.protocol.kinds import MODES
from axon_zmq.protocol.limits import BrokerLimits
from tests.support import ROOT
from tests.support.any_share import any_share
from tests.support.structure import Checkout, figures

PACKAGE = ROOT / "axon_zmq"
LAYERS = [
    ["errors"],
    ["suggestions"],
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
"""Layers from the bottom up: a module imports only from its own layer and from earlier ones."""
CORES = [
    "broker.core",
    "protocol",
    "worker.core",
    "worker.delivery.credit",
    "worker.delivery.replay_buffer",
    "worker.delivery.replay_store",
    "client.core",
    "client.messages",
    "client.options",
    "client.tool_calls",
    "events",
    "errors",
]
"""Packages and modules without I/O: they neither read a clock nor use a socket."""


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(path: Path, top_level: bool = False) -> set[str]:
    tree = parsed(path)
    found: set[str] = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@cache
def modules() -> dict[str, Path]:
    return {
        path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): path for path in PACKAGE.rglob("*.py")
    }


def is_below(name: str, package: str) -> bool:
    """Whether a module is the given package or one of its modules."""
    return name == package or name.startswith(f"{package}.")


def layer(name: str) -> int:
    """The layer of the most specific entry for a module."""
    matches = [
        (len(entry), number) for number, entries in enumerate(LAYERS) for entry in entries if is_below(name, entry)
    ]
    return max(matches)[1]


@pytest.mark.parametrize("name", [name for name in modules() if not name.endswith("__init__")])
def test_imports_point_downwards(name):
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


def test_only_the_command_line_imports_the_command_line():
    users = {name for name, path in modules().items() if any(is_below(i, "axon_zmq.cli") for i in imports(path))}
    assert {name.split(".")[0] for name in users} == {"cli"}


def test_only_the_command_line_writes_to_a_terminal():
    """Reports, including those of the load tester, are data that the command line prints.

    `loadtest.html` writes a file for a browser and prints nothing. Processes write log lines.
    """
    for name, path in modules().items():
        if is_below(name, "cli"):
            continue
        assert not {i.split(".")[0] for i in imports(path)} & {"rich", "typer", "click"}, name
        calls = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)]
        assert not [each for each in calls if isinstance(each.func, ast.Name) and each.func.id == "print"], name


@pytest.mark.parametrize(("one", "other"), [("supervise", "worker"), ("worker", "supervise")])
def test_the_worker_and_supervise_do_not_import_each_other(one, other):
    for name, path in modules().items():
        if is_below(name, one):
            assert not [target for target in imports(path) if is_below(target, f"axon_zmq.{other}")], name


@pytest.mark.parametrize("name", modules())
def test_a_constructor_takes_at_most_three_positional_arguments(name):
    """Further arguments are keyword-only, so that calls name them. Events and effects are also used as patterns."""
    if name == "events" or name.endswith((".events", ".effects")):
        pytest.skip("events and effects")
    for node in ast.walk(parsed(modules()[name])):
        if isinstance(node, ast.ClassDef):
            assert positional_arguments(node) <= 3, f"{name}.{node.name}"


def positional_arguments(node: ast.ClassDef) -> int:
    """The number of positional arguments of a class: those of `__init__`, or the fields of a dataclass."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return len(item.args.posonlyargs) + len(item.args.args) - 1
    decorators = [ast.unparse(each) for each in node.decorator_list]
    if not any(each.startswith("dataclass") and "kw_only=True" not in each for each in decorators):
        return 0
    fields = [item for item in node.body if isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.unparse(item)]
    return sum("init=False" not in ast.unparse(field.value or ast.Constant(None)) for field in fields)


def test_the_three_modes_are_listed_once():
    """`kinds.Mode` is the only list of them."""
    expected = {*MODES}
    for folder in ("axon_zmq", "bench", "chaos", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            if path == PACKAGE / "protocol/kinds.py":
                continue
            tree = parsed(path)
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


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
REFERENCE = re.compile(r"`((?:\w+/)*\w+\.py)(?::(\w+(?:\.\w+)*))?`")
"""A file name in backquotes, relative to the root or to `axon_zmq`, and a class or function in that file."""


def is_defined(path: Path, name: str) -> bool:
    """Whether a module defines a class or function, such as `Server._send`."""
    trees: list[ast.AST] = [parsed(path)]
    for step in name.split(".") if name else []:
        trees = [
            node
            for tree in trees
            for node in ast.iter_child_nodes(tree)
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name == step
        ]
    return len(trees) == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_functions_named_on_a_page_exist(page):
    for found in REFERENCE.finditer(page.read_text()):
        path, name = found.groups("")
        if "/" not in path:
            continue  # an example, or a test file in a table that another test checks
        file = next((each for each in (ROOT / path, PACKAGE / path) if each.is_file()), None)
        assert file is not None, f"{page.name}: {path} does not exist"
        assert is_defined(file, name), f"{page.name}: {path} does not define {name}"


def test_the_tables_of_a_runs_path_name_functions_in_each_step():
    for page, heading, steps in (
        ("docs/explanation/life-of-a-request.md", "## In the code", 10),
        ("docs/architecture.md", "## The data path of a run", 15),
    ):
        section = (ROOT / page).read_text().split(f"\n{heading}\n")[1].split("\n## ")[0]
        rows = re.findall(r"^\| \d+ \|.*$", section, re.MULTILINE)
        assert len(rows) == steps, page
        assert all(any(name for _, name in REFERENCE.findall(row)) for row in rows), page


def tree_in_the_architecture_page() -> list[str]:
    """The lines of the tree as dotted names, in order; the name of a package ends with a dot."""
    page = (ROOT / "docs/architecture.md").read_text()
    first, *lines = page.split("```text\n")[1].split("```")[0].splitlines()
    assert first == "axon_zmq/"
    names: list[str] = []
    above: list[str] = []
    for line in lines:
        indentation, entry, description = re.fullmatch(r"((?:  )+)(\w+/?) +(\S.*)", line).groups()
        del above[len(indentation) // 2 - 1 :], description
        names.append(".".join([*above, entry.replace("/", ".")]))
        if entry.endswith("/"):
            above.append(entry.removesuffix("/"))
    return names


def test_the_tree_on_the_architecture_page_names_exactly_the_modules():
    named = tree_in_the_architecture_page()
    assert len(named) == len(set(named))
    packages = {name.removesuffix("__init__") for name in modules() if name.endswith(".__init__")}
    there = {name for name in modules() if name.rpartition(".")[2] != "__init__"} | packages
    assert set(named) == there


def test_a_module_imports_only_modules_above_it_in_the_tree():
    known = modules()
    place = {name: number for number, name in enumerate(tree_in_the_architecture_page()) if name in known}
    for name in place:
        targets = {target.removeprefix("axon_zmq.") for target in imports(known[name]) if is_below(target, "axon_zmq")}
        below = [target for target in targets if place.get(target, 0) > place[name]]
        assert not below, f"{name} imports {below}: move it below them in docs/architecture.md"


def test_the_tree_on_the_architecture_page_is_in_the_order_of_the_layers():
    top = [name.removesuffix(".") for name in tree_in_the_architecture_page() if "." not in name.removesuffix(".")]
    assert top == list(dict.fromkeys(entry.split(".")[0] for entries in LAYERS for entry in entries))


@pytest.fixture(scope="module")
def current_figures() -> dict[str, str]:
    return figures(Checkout(ROOT))


def test_the_structural_figures_that_must_be_zero_are_zero(current_figures):
    assert Checkout(ROOT).layers == LAYERS
    for name in (
        "upward arrows",
        "mutual imports",
        "bytes literals of kinds outside `protocol/`",
        "public client methods with `**options: Any`",
        "undocumented uses of pydantic-ai outside `compat.py`",
    ):
        assert current_figures[name] == "0", name
    assert any_share(PACKAGE).ratio <= 0.08


def test_the_structural_figures_count_what_they_name(tmp_path):
    files = {
        "axon_zmq/__init__.py": "",
        "axon_zmq/low.py": "def f():\n    from axon_zmq.client import core",
        "axon_zmq/client/__init__.py": "",
        "axon_zmq/client/core.py": "import axon_zmq.low\nclass C:\n    def run(self, **options: Any): send(b'chunk')",
        "axon_zmq/worker/__init__.py": "",
        "axon_zmq/worker/host.py": "from axon_zmq.worker import run\nagent._output_schema",
        "axon_zmq/worker/run.py": "",
        "tests/docs/test_architecture.py": "LAYERS = [['low'], ['client.core'], ['client', 'worker']]",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = figures(Checkout(tmp_path))
    assert found["top-level packages"] == "2"
    assert found["top-level modules"] == "1"
    assert found["upward arrows"] == "1 (low → client)"
    assert found["mutual imports"] == "1 (client ↔ low)"
    assert found["arrows between them in `worker/`"] == "1"
    assert found["bytes literals of kinds outside `protocol/`"] == "1"
    assert found["public client methods with `**options: Any`"] == "1"
    assert found["undocumented uses of pydantic-ai outside `compat.py`"] == "1 in 1 files"
    assert found["parameters annotated with `Any`"] == "1 of 1 (100.0%)"


def test_the_figures_on_the_architecture_page_are_current(current_figures):
    """Compare the names of all rows, and the values of the figures that must not grow; the others change often."""
    page = (ROOT / "docs/architecture.md").read_text().split("\n## Structure in figures\n")[1]
    shown = {row[0]: row[2] for line in page.splitlines() if len(row := line.strip("| ").split(" | ")) == 3}
    assert shown.keys() - {"figure"} == current_figures.keys()
    assert {name for name, value in shown.items() if value == "0"} == {
        name for name, value in current_figures.items() if value == "0"
    }


def test_the_settings_page_lists_every_setting_with_its_default():
    from axon_zmq.settings import Settings

    page = (ROOT / "docs/reference/settings.md").read_text()
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


def test_the_security_page_names_existing_settings_and_every_limit():
    from axon_zmq.settings import Settings

    page = (ROOT / "docs/security.md").read_text()
    assert {name.lower() for name in re.findall(r"\bAXON_([A-Z_]+)", page)} <= set(Settings.model_fields)
    [table] = re.findall(r"^\| setting \| protects from \|\n(.*?)\n\n", page, re.MULTILINE | re.DOTALL)
    listed = {name.lower() for name in re.findall(r"`AXON_([A-Z_]+)`", table)}
    assert {field.name for field in dataclasses.fields(BrokerLimits)} <= listed


def test_no_host_of_a_package_registry_is_committed():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    hosts = ["pypi" + ".org", "python" + "hosted", "registry.npm" + "js", "deb.deb" + "ian.org"]
    for name in listed.stdout.split():
        if (ROOT / name).suffix in (".msgpack", ".png"):
            continue
        text = (ROOT / name).read_text()
        assert not [host for host in hosts if host in text], name


def test_unauthorized_is_reserved_and_not_sent_yet():
    """It is part of the protocol, so that clients can handle it before the daemon has keys."""
    error = AxonError.of("unauthorized", "no key")
    assert isinstance(error, RequestError)
    assert not error.retryable
    users = [name for name, path in modules().items() if '"unauthorized"' in path.read_text()]
    assert sorted(users) == ["errors", "testing.provider"]
    assert "| `unauthorized` |" in (ROOT / "docs/errors.md").read_text()
