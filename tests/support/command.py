"""The command `axon-zmq`, in a pipe and on a terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

from tests.support.daemon import WAIT_TIMEOUT_S, Daemon

AXON = Path(sys.executable).parent / "axon-zmq"


def axon(daemon: Daemon | None, *arguments: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    endpoint = {"AXON_FRONTEND": daemon.endpoint} if daemon else {}
    return subprocess.run(
        [AXON, *arguments],
        env={**os.environ, **endpoint, **env},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=240,
    )


def lines(done: subprocess.CompletedProcess[str]) -> list[dict]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def on_a_terminal(daemon: Daemon, *arguments: str) -> str:
    """The output that a person sees."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [AXON, *arguments],
        env={**os.environ, "AXON_FRONTEND": daemon.endpoint, "TERM": "xterm", "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    seen = b""
    while True:
        try:
            piece = os.read(master, 4096)
        except OSError:  # Linux reports EIO if the other end is closed
            break
        if not piece:
            break
        seen += piece
    os.close(master)
    process.wait(WAIT_TIMEOUT_S)
    return seen.decode().replace("\r\n", "\n")
