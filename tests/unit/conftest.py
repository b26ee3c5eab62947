"""Keeps the unit tests free of processes and sockets: a unit test that starts one fails."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import zmq

FORBIDDEN = frozenset({"socket.bind", "socket.connect", "subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn"})
"""Audit events of CPython. `asyncio` wakes its loop with a socket pair, which none of them reports."""
_state = {"active": False}


def _audit(event: str, _arguments: tuple[object, ...]) -> None:
    if _state["active"] and event in FORBIDDEN:
        raise RuntimeError(f"{event} in a unit test: move the test to tests/integration or tests/system")


sys.addaudithook(_audit)


@pytest.fixture(autouse=True)
def no_process_and_no_socket(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def socket(*_: object, **__: object) -> None:
        raise RuntimeError("a ZeroMQ socket in a unit test: move the test to tests/integration or tests/system")

    monkeypatch.setattr(zmq.Context, "socket", socket)
    _state["active"] = True
    yield
    _state["active"] = False
