"""Importing a package loads nothing heavy that it does not need."""

from __future__ import annotations

import subprocess
import sys


def test_jsonschema_loads_neither_pydantic_nor_zmq():
    code = "import sys, axon_zmq.jsonschema; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pydantic", "pydantic_ai", "zmq", "asyncio", "jsonschema", "referencing"} & set(loaded)


def test_the_list_of_commands_loads_neither_settings_nor_the_commands_dependencies():
    code = "import sys, axon_zmq.cli.app; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pydantic", "pydantic_ai", "pydantic_settings", "zmq", "hdrh", "plotly", "xmlrpc"} & set(loaded)


def test_the_broker_process_loads_neither_pydantic_nor_the_cli():
    code = "import sys, axon_zmq.broker.__main__; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pydantic", "pydantic_ai", "pydantic_settings", "typer", "rich", "openai"} & set(loaded)


def test_the_package_loads_neither_zmq_nor_pydantic():
    code = "import sys, axon_zmq; from axon_zmq import Chunk, AxonError; dir(axon_zmq); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"zmq", "pydantic", "pydantic_core", "msgpack", "asyncio", "typing_extensions"} & set(loaded)


def test_the_event_listener_loads_neither_pydantic_nor_asyncio():
    code = "import sys, axon_zmq.supervise.listener; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pydantic", "pydantic_ai", "pydantic_settings", "typer", "rich", "asyncio"} & set(loaded)
