"""Importing a package loads no large package that it does not need; each is checked in a new interpreter."""

from __future__ import annotations

import subprocess
import sys


def loaded_by(statements: str) -> set[str]:
    """The names of all modules, and of their top-level packages, that an interpreter has loaded afterwards."""
    code = f"import sys; {statements}; print(*sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return {name for module in printed.split() for name in (module, module.partition(".")[0])}


def test_jsonschema_loads_neither_pydantic_nor_zmq():
    loaded = loaded_by("import axon_zmq.jsonschema")
    assert not {"pydantic", "pydantic_ai", "zmq", "asyncio", "jsonschema", "referencing"} & loaded


def test_the_list_of_commands_loads_neither_settings_nor_the_commands_dependencies():
    statements = "import axon_zmq.cli.app"
    assert not {"pydantic", "pydantic_ai", "pydantic_settings", "zmq", "hdrh", "plotly", "xmlrpc"} & loaded_by(
        statements
    )


def test_the_broker_process_loads_neither_pydantic_nor_the_cli():
    loaded = loaded_by("import axon_zmq.broker.__main__")
    assert not {"pydantic", "pydantic_ai", "pydantic_settings", "typer", "rich", "openai"} & loaded


def test_the_package_loads_neither_zmq_nor_pydantic():
    loaded = loaded_by("import axon_zmq; from axon_zmq import Chunk, AxonError; dir(axon_zmq)")
    assert not {"zmq", "pydantic", "pydantic_core", "msgpack", "asyncio", "typing_extensions"} & loaded


def test_the_event_listener_loads_neither_pydantic_nor_asyncio():
    loaded = loaded_by("import axon_zmq.supervise.listener")
    assert not {"pydantic", "pydantic_ai", "pydantic_settings", "typer", "rich", "asyncio"} & loaded
