"""Secrets reach no log, no other file and no client, whatever code of the operator does with them."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

from axon_zmq import Client
from axon_zmq.protocol.kinds import MODES
from axon_zmq.testing import FakeProvider
from axon_zmq.testing.ports import free_port
from tests.support import ROOT
from tests.support.daemon import WAIT_TIMEOUT_S, Dealer, wait_until
from tests.support.served import family

PLANTED = {
    "OPENAI_API_KEY": "sk-planted-openai-1234567890",
    "LEAKY_API_KEY": "sk-planted-key+with/odd=chars",
    "LEAKY_TOKEN": "planted-\"quoted\"-'token'-1234",
    "LEAKY_SECRET": "planted secret with spaces & é",
    "MY_PASSWORD_2": "planted\\password",
    "ECHOED_KEY": "planted-and-echoed",
    "DATABASE_URL": "postgres://planted-user:planted-db-password@db.test/app",
}
"""Environment variables of the daemon. Each encoding changes some of them."""
IN_TOML = {
    "MCP_TOKEN": "planted-mcp-token",
    "X-Api-Key": "planted-mcp-header",
    "--api-key": "planted-mcp-argument",
}
"""Secrets in axon.toml."""
SECRETS = (
    *(value for name, value in PLANTED.items() if name not in ("DATABASE_URL", "ECHOED_KEY")),
    "planted-db-password",
    "late-token-123456",
    "hard-coded-pw",
    "hard-coded-key",
    *IN_TOML.values(),
)
AGENTS = ("tool_raises", "validator_raises", "model_raises", "takes_deps", "undescribed", "late")
SERVER = "import os, sys; print(dict(os.environ), sys.argv, file=sys.stderr); sys.exit(1)"
"""An MCP server that prints its environment and arguments, and ends."""


def forms(secret: str) -> set[bytes]:
    """A secret in the encodings in which it must not occur."""
    texts = (secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], quote(secret), quote(secret, safe=""))
    return {*(text.encode() for text in texts), base64.b64encode(secret.encode()).rstrip(b"=")[:-1]}


@contextmanager
def daemon(folder: Path, base_url: str) -> Generator[str]:
    """A whole daemon with all planted secrets; its output goes to files in the folder. Yields its endpoint."""
    (folder / "axon.toml").write_text(
        f"""
        [toolsets]
        broken = "leaky_agents:no_toolset"
        [toolsets.local]
        command = {json.dumps(sys.executable)}
        args = ["-c", {json.dumps(SERVER)}, "--api-key", {json.dumps(IN_TOML["--api-key"])}]
        env = {{ MCP_TOKEN = {json.dumps(IN_TOML["MCP_TOKEN"])}, OTHER = "${{LEAKY_SECRET}}" }}
        [toolsets.remote]
        url = "http://127.0.0.1:9/x?token=hard-coded-key"
        headers = {{ X-Api-Key = {json.dumps(IN_TOML["X-Api-Key"])} }}
        """
    )
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    env = {
        **os.environ,
        **PLANTED,
        "OPENAI_BASE_URL": base_url,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests/support"), *sys.path]),
        "LEAKY_SPANS": str(folder / "spans"),
        "AXON_FRONTEND": endpoint,
        "AXON_RUN_DIR": str(folder / "run"),
        "AXON_AGENTS": ",".join(["echo=axon_zmq.agents.echo:agent", *(f"{n}=leaky_agents:{n}" for n in AGENTS)]),
        "AXON_RUN_LOGGERS": "leaky_agents",
        "AXON_LOG_LEVEL": "debug",
        **{f"AXON_{mode.upper()}_WORKERS": "1" for mode in MODES},
    }
    with (folder / "stdout").open("wb") as out:
        command = [sys.executable, "-m", "axon_zmq.cli"]
        process = subprocess.Popen([*command, "serve"], env=env, cwd=folder, stdout=out, stderr=out)
        try:
            with Client(endpoint) as client:
                serving = lambda: all(pool["workers"] for pool in client.ping(WAIT_TIMEOUT_S)["modes"].values())  # noqa: E731
                wait_until(serving, "a worker of each mode")
            yield endpoint
            for name in ("doctor", "status"):
                with (folder / name).open("wb") as shown:
                    subprocess.run([*command, name], env=env, cwd=folder, stdout=shown, stderr=shown, check=False)
            process.send_signal(signal.SIGTERM)
            process.wait(WAIT_TIMEOUT_S)
        finally:
            for each in family(folder).values():
                with suppress(psutil.NoSuchProcess):
                    each.kill()
            process.kill()
            process.wait(WAIT_TIMEOUT_S)


def scenes() -> Iterator[tuple[str, dict[str, Any]]]:
    """Requests whose answers would contain secrets, by kind."""
    yield "describe", {}
    yield "describe", {"agent": "late"}
    yield "call_tool", {"tool": "leak", "agent": "tool_raises"}
    yield "call_tool", {"tool": "leak", "agent": "undescribed"}
    yield "call_tool", {"tool": "unheard_of"}
    for mode in MODES:
        for agent in AGENTS if mode == "run_stream" else AGENTS[:1]:
            deps = {"deps": {"place": "Oslo"}} if agent == "takes_deps" else {}
            yield mode, {"agent": agent, "prompt": "x", "log": "debug", **deps}
    for toolset in ("local", "remote", "broken"):
        yield "run", {"agent": {"model": "echo", "toolsets": [toolset]}, "prompt": "x", "log": "debug"}
    for name in ("unauthorized", "rejected-with-key", "broken-with-key"):
        once = {"max_retries": 0}
        yield "run_sync", {"agent": {"model": f"openai-chat:{name}"}, "prompt": "x", "model_settings": once}


def collect(endpoint: str) -> list[tuple[str, dict[str, Any], bytes]]:
    """All frames that a client receives in the scenes, with their requests."""
    frames = []
    with Dealer(endpoint) as client:
        for number, (kind, body) in enumerate(scenes()):
            client.send(kind.encode(), str(number).encode(), None, body)
            while True:
                assert client.socket.poll(int(WAIT_TIMEOUT_S * 1000)), (kind, body)
                parts = client.socket.recv_multipart()
                frames += [(kind, body, part) for part in parts]
                if parts[-2] == str(number).encode() and parts[-3] in (b"complete", b"error", b"catalog"):
                    break
    return frames


def test_secrets_are_found_in_nothing_that_is_written_or_sent():
    with tempfile.TemporaryDirectory(prefix="axon-") as name, FakeProvider() as provider:
        folder = Path(name)
        with daemon(folder, provider.base_url) as endpoint:
            frames = collect(endpoint)
            with Dealer(endpoint) as client:
                # Results and chunks are never changed, even if they contain a secret of the operator.
                for mode in MODES:
                    prompt = PLANTED["ECHOED_KEY"]
                    _, body = client.ask(mode.encode(), mode.encode(), None, {"agent": "echo", "prompt": prompt})
                    assert body["result"] == prompt
                _, status = client.ask(b"ping", b"p")
            frames.append(("ping", {}, json.dumps(status).encode()))
            logs = lambda: b"".join(path.read_bytes() for path in (folder / "run").glob("*.log"))  # noqa: E731
            wait_until(lambda: logs().count(b"MCP_TOKEN") >= 1, "the output of the MCP server")
        files = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    del files["axon.toml"]
    places = [*files.items(), *((f"{kind} {body}", frame) for kind, body, frame in frames)]
    found = {  # with 60 bytes before each occurrence
        f"{secret} in {place}: …{text[max(0, text.index(form) - 60) :][:100]!r}"
        for place, text in places
        for secret in SECRETS
        for form in forms(secret)
        if form in text
    }
    assert not found, "\n".join(sorted(found))
    # The texts themselves arrived, so the scenes tested something.
    for place in ("run-1.log", "run_sync-1.log", "run_stream-1.log", "spans", "doctor"):
        assert b"***" in files[place], place
    sent = [frame for _, _, frame in frames]
    assert sum(b"no connection with ***" in frame for frame in sent) >= 2
    assert any(b"tool 'leak' raised RuntimeError: ***" in frame for frame in sent)
    assert any(b"the provider answered 400: Invalid value for key ***" in frame for frame in sent)
    assert any(b"logged in detail: ***" in frame for frame in sent)
