"""Errors in the asyncio shell of a worker: those of an agent end its run, bugs of the worker end the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support import ROOT
from tests.support.daemon import WAIT_TIMEOUT_S, Dealer, running, wait_until

ODD_TOOLS = '''
import asyncio
from collections.abc import Mapping
from pydantic_ai import ModelRetry
from pydantic_ai.toolsets import FunctionToolset

class Odd(Mapping):
    """A result whose own code fails when it is read."""
    def __getitem__(self, key): raise RuntimeError("broken")
    def __iter__(self): raise RuntimeError("broken")
    def __len__(self): return 1

tools = FunctionToolset()

@tools.tool_plain
def odd() -> Odd:
    return Odd()

@tools.tool_plain
async def slow() -> str:
    await asyncio.sleep(1.0)
    return "done"

@tools.tool_plain
def refuse() -> str:
    raise ModelRetry("not today")

@tools.tool_plain
def crash() -> str:
    raise ZeroDivisionError
'''


def test_an_unreadable_result_ends_only_its_own_run(tmp_path: Path):
    (tmp_path / "odd_tools.py").write_text(ODD_TOOLS)
    environment = {"PYTHONPATH": str(tmp_path), "AXON_TOOLSETS": "odd=odd_tools:tools"}
    with running("run", **environment) as daemon, Dealer(daemon.endpoint) as dealer:
        dealer.send(b"call_tool", b"slow", None, {"tool": "slow", "args": {}})
        dealer.send(b"call_tool", b"odd", None, {"tool": "odd", "args": {}})
        ends: dict[bytes, tuple[bytes, dict[str, Any]]] = {}
        while len(ends) < 2:  # in any order, because the slow call may end first on a busy machine
            kind, id, body = dealer.recv()
            ends[id] = kind, body
        assert ends[b"odd"][0] == b"error", ends
        assert ends[b"slow"][1]["result"] == "done"
        assert len(dealer.ask(b"ping", b"p")[1]["modes"]) == 3


def test_a_bug_in_the_worker_ends_the_process_at_once(tmp_path: Path):
    """supervisord starts another process; a process without a working core would keep its slots out of service."""
    code = (
        "import sys; from axon_zmq.worker import __main__; from axon_zmq.worker.core.worker import WorkerCore\n"
        "def broken(self, message, now): raise KeyError('a fault of ours')\n"
        "WorkerCore._start = broken\n"
        "sys.exit(__main__.main(sys.argv[1:]))\n"
    )
    with running() as daemon, Dealer(daemon.endpoint) as dealer:
        command = [sys.executable, "-c", code, "--mode", "run", "--name", "run-1", "--run-dir", str(daemon.run_dir)]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as worker:
            wait_until(lambda: dealer.ask(b"ping", b"p")[1]["modes"]["run"]["workers"] == 1, "the worker")
            dealer.send(b"run", b"1", None, {"agent": "echo", "prompt": "x"})
            assert dealer.until_end(b"1")[-1][1]["error_type"] == "worker_lost"
            assert worker.wait(WAIT_TIMEOUT_S) == 1
            assert worker.stderr is not None
            assert "the worker ends after an internal error" in worker.stderr.read()
