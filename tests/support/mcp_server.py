"""An MCP server for the tests, made with the package that the extra brings; its tools misbehave on request.

`--deaf` ignores the end of its input and SIGTERM; `--slow` waits so many seconds before it speaks; `--log` appends
its pid to a file when it starts, and to FILE.ended when it has ended by itself; `--noisy` writes to stdout what is
no message; `--port` serves HTTP instead of stdio.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import time
from pathlib import Path

options = argparse.ArgumentParser()
options.add_argument("--deaf", action="store_true")
options.add_argument("--slow", type=float, default=0.0)
options.add_argument("--log", type=Path)
options.add_argument("--noisy", action="store_true")
options.add_argument("--port", type=int)
given = options.parse_args()


def note(path: Path) -> None:
    with path.open("a") as log:
        log.write(f"{os.getpid()}\n")


if given.log:
    note(given.log)
if given.noisy:
    print("my key is s3cret", flush=True)
if given.deaf:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(given.slow)

from mcp.server import MCPServer  # noqa: E402

server = MCPServer("for tests", log_level="CRITICAL")


@server.tool()
def temperature(place: str) -> float:
    """Tell the temperature of a place, in degrees Celsius."""
    return {"Oslo": -3.0}.get(place, 20.0)


@server.tool()
def pid() -> int:
    """Tell the process."""
    return os.getpid()


@server.tool()
def fail() -> str:
    """Fail, as tools do."""
    raise ValueError("no luck")


@server.tool()
def variable(name: str) -> str | None:
    """Tell a variable of the environment."""
    return os.environ.get(name)


@server.tool()
async def wait(seconds: float) -> str:
    """Take some time."""
    await asyncio.sleep(seconds)
    return "waited"


@server.tool()
def leave() -> str:
    """End the process in the middle of a call."""
    os._exit(3)


if __name__ == "__main__":
    if given.port:
        server.run("streamable-http", port=given.port)
    else:
        server.run("stdio")
    while given.deaf:
        time.sleep(60)
    if given.log:
        note(given.log.with_suffix(".ended"))
