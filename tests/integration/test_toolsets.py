"""MCP servers as toolsets: they stay open between runs and never outlive their worker."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path
from typing import Any

import fastmcp
import psutil
import pytest

from axon_zmq import AxonError, Client
from axon_zmq.protocol.kinds import MODES
from axon_zmq.settings import McpServer
from axon_zmq.testing.ports import free_port
from axon_zmq.worker.registry import mcp_servers
from axon_zmq.worker.registry.agents import Registry
from tests.support.daemon import Daemon, running, wait_until
from tests.support.registries import SERVER, TOOLSETS, calls, registry, server


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def kill(pid: int) -> None:
    """Kill a server, and wait until its parent has reaped it: its pipes stay open until its last thread has ended."""
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(pid), "the server's parent to reap it")


def started(log: Path) -> list[int]:
    """The pids of the servers that appended to a log, in order."""
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def closed_after(known: Registry, work: Callable[[Registry], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine on its own loop, close the registry, and check that no child process is left."""

    async def both() -> Any:
        try:
            return await work(known)
        finally:
            await known.aclose()

    children = set(psutil.Process().children(recursive=True))
    result = asyncio.run(both())
    assert not set(psutil.Process().children(recursive=True)) - children
    return result


def test_the_catalog_has_each_toolset_with_its_tools_or_its_error():
    known = registry("sums", **TOOLSETS)
    catalog = asyncio.run(known.describe(None))
    told = catalog["toolsets"]
    assert [tool["name"] for tool in told["numbers"]["tools"]] == ["add", "negate"]
    assert [tool["name"] for tool in told["make"]["tools"]] == ["made_negate"]
    assert told["fails"] == {"error": "SystemExit: no numbers today"}
    assert set(told) == set(TOOLSETS)
    assert "tools_error" not in catalog["agents"]["sums"]
    assert asyncio.run(known.describe("sums")) == {"agents": catalog["agents"], "toolsets": {}}


# --- MCP servers --------------------------------------------------------------------------------------


def test_the_tools_of_a_server_are_listed_and_called_and_errors_go_to_the_model():
    async def work(known: Registry) -> None:
        told = (await known.describe(None))["toolsets"]["mcp"]["tools"]
        [entry] = [tool for tool in told if tool["name"] == "temperature"]
        assert entry["description"] == "Tell the temperature of a place, in degrees Celsius."
        assert entry["parameters"]["required"] == ["place"]
        assert entry["returns"]["properties"]["result"]["type"] == "number"
        assert await calls(known, "mcp", ("temperature", {"place": "Oslo"})) == [-3.0]
        [wrong] = await calls(known, "mcp", ("temperature", {"plaice": "Oslo"}))
        assert "Field required" in wrong
        assert await calls(known, "mcp", ("fail", {})) == ["Error executing tool fail"]

    closed_after(registry(mcp=server()), work)


def test_the_operator_sets_prefix_and_approval():
    async def work(known: Registry) -> None:
        told = (await known.describe(None))["toolsets"]["mcp"]["tools"]
        assert {tool["name"] for tool in told} >= {"far_pid", "far_temperature"}
        assert all(tool["approval"] for tool in told)
        with pytest.raises(Exception, match="DeferredToolRequests"):  # the answer of a run without that output type
            await calls(known, "mcp", ("far_pid", {}))

    closed_after(registry(mcp=server(prefix="far", approval=True)), work)


def test_twenty_concurrent_runs_share_one_server_process(tmp_path):
    log = tmp_path / "pids"

    async def work(known: Registry) -> list[list[Any]]:
        runs = (calls(known, "mcp", ("pid", {}), ("wait", {"seconds": 0.05}), ("pid", {})) for _ in range(20))
        return await asyncio.gather(*runs)

    results = closed_after(registry(mcp=server("--log", str(log))), work)
    [pid] = started(log)
    assert results == [[pid, "waited", pid]] * 20


def test_a_killed_server_is_started_again():
    async def work(known: Registry) -> None:
        [first] = await calls(known, "mcp", ("pid", {}))
        await asyncio.to_thread(kill, first)
        [second] = await calls(known, "mcp", ("pid", {}))
        assert second != first
        [third] = await calls(known, "mcp", ("pid", {}))
        assert third == second

    closed_after(registry(mcp=server()), work)


def test_a_call_during_which_the_server_dies_is_not_repeated(tmp_path):
    log = tmp_path / "pids"

    async def work(known: Registry) -> None:
        with pytest.raises(AxonError, match="went away during 'leave', which may have been executed") as caught:
            await calls(known, "mcp", ("leave", {}))
        assert caught.value.error_type == "tool_failed"
        assert caught.value.details == {"toolset": "mcp"}
        assert len(started(log)) == 1
        assert await calls(known, "mcp", ("temperature", {"place": "Rome"})) == [20.0]
        assert len(started(log)) == 2

    closed_after(registry(mcp=server("--log", str(log))), work)


def test_a_cancelled_run_affects_no_other_run(tmp_path):
    async def work(known: Registry) -> None:
        starting, beside = (asyncio.create_task(calls(known, "mcp", ("pid", {}))) for _ in range(2))
        await asyncio.to_thread(wait_until, lambda: started(tmp_path / "pids"))
        starting.cancel()
        assert await beside == started(tmp_path / "pids")
        waiting = [asyncio.create_task(calls(known, "mcp", ("wait", {"seconds": 0.3}))) for _ in range(4)]
        await calls(known, "mcp", ("wait", {"seconds": 0.1}))
        waiting[0].cancel()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert results[1:] == [["waited"]] * 3
        assert [await calls(known, "mcp", ("pid", {}))] == [started(tmp_path / "pids")]

    closed_after(registry(mcp=server("--log", str(tmp_path / "pids"))), work)


async def failure(known: Registry) -> str:
    with pytest.raises(AxonError) as caught:
        await calls(known, "mcp", ("pid", {}))
    return caught.value.message


def test_a_start_that_exceeds_its_timeout_fails_and_is_not_retried_at_once(tmp_path):
    log = tmp_path / "pids"

    async def work(known: Registry) -> None:
        begun = time.monotonic()
        runs = [asyncio.create_task(calls(known, "mcp", ("pid", {}))) for _ in range(3)]
        for error in await asyncio.gather(*runs, return_exceptions=True):
            assert isinstance(error, AxonError)
            assert error.error_type == "tool_failed"
            assert error.message == "toolset 'mcp': its MCP server did not start within 0.5 s"
            assert error.details == {"toolset": "mcp"}
        assert time.monotonic() - begun < 0.5 + mcp_servers.SERVER_CLOSE_TIMEOUT_S + 20
        assert "is not started again before" in await failure(known)
        [pid] = started(log)
        assert gone(pid)
        while "is not started again before" in (error := await failure(known)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        assert error.endswith("did not start within 0.5 s")
        assert len(started(log)) == 2

    closed_after(registry(mcp=server("--slow", "60", "--log", str(log), timeout=0.5)), work)


def test_a_hanging_start_is_abandoned_even_without_a_waiting_run(tmp_path):
    log = tmp_path / "pids"

    async def work(known: Registry) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(calls(known, "mcp", ("pid", {})), 0.3)
        await asyncio.to_thread(wait_until, lambda: started(log) and gone(started(log)[0]))

    closed_after(registry(mcp=server("--slow", "60", "--log", str(log), timeout=0.5)), work)


def test_a_program_that_is_not_a_server_is_reported_at_once():
    ends = McpServer(command=sys.executable, args=["-c", "raise SystemExit(3)"])
    told = closed_after(registry(mcp=ends), lambda known: known.describe(None))["toolsets"]
    assert told["mcp"]["error"].endswith("ended while it started; the worker's log has what it wrote to stderr")


class SkippingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock a test can advance, as if the loop had been stopped for that time."""

    skipped = 0.0

    def time(self) -> float:
        return super().time() + self.skipped


def test_a_loop_that_is_stopped_between_runs_loses_nothing(tmp_path):
    """The loop of a run_sync slot runs only while a run executes."""
    log = tmp_path / "pids"
    known = registry(mcp=server("--log", str(log), timeout=30.0))
    loop = SkippingLoop()
    starting = loop.create_task(calls(known, "mcp", ("pid", {})))
    loop.run_until_complete(asyncio.to_thread(wait_until, lambda: started(log)))
    starting.cancel()  # the start of the server continues
    loop.run_until_complete(asyncio.wait({starting}))
    loop.skipped = 31.0  # longer than the start timeout
    [first] = loop.run_until_complete(calls(known, "mcp", ("pid", {})))
    assert started(log) == [first]
    kill(first)
    [second] = loop.run_until_complete(calls(known, "mcp", ("pid", {})))
    assert started(log) == [first, second]
    asyncio.run(known.aclose())  # from another loop, as the worker does
    assert gone(second)
    loop.close()


def test_other_output_of_a_server_is_logged_without_its_content(caplog):
    async def work(known: Registry) -> None:
        assert await calls(known, "mcp", ("temperature", {"place": "Oslo"})) == [-3.0]

    closed_after(registry(mcp=server("--noisy")), work)
    assert "wrote a line that is not an MCP message" in caplog.text
    assert "s3cret" not in caplog.text


def test_variables_are_substituted_and_the_server_sees_no_others(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "s3cret")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none-of-its-business")
    monkeypatch.setenv("PYTHON", sys.executable)
    configured = McpServer(command="${PYTHON}", args=[SERVER], env={"TOKEN": "Bearer ${MY_TOKEN}"})

    async def work(known: Registry) -> None:
        names = ("TOKEN", "OPENAI_API_KEY", "MY_TOKEN")
        values = await calls(known, "mcp", *(("variable", {"name": name}) for name in names))
        assert values == ["Bearer s3cret", None, None]

    closed_after(registry(mcp=configured), work)


@contextmanager
def http_server(port: int) -> Iterator[int]:
    process = subprocess.Popen([sys.executable, SERVER, "--port", str(port)], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: psutil.Process(process.pid).net_connections(), "the server's port")
        yield process.pid
    finally:
        process.kill()
        process.wait()


def test_a_server_over_http_is_connected_again_and_its_secrets_are_not_logged(caplog):
    port = free_port()
    configured = McpServer(url=f"http://127.0.0.1:{port}/mcp?key=s3cret", headers={"X-Key": "s3cret"}, timeout=30)

    async def work(known: Registry) -> None:
        with http_server(port) as pid:
            assert await calls(known, "mcp", ("pid", {})) == [pid]
        with http_server(port) as pid:
            assert await calls(known, "mcp", ("pid", {})) == [pid]
            calling = asyncio.create_task(calls(known, "mcp", ("wait", {"seconds": 60})))
            await calls(known, "mcp", ("wait", {"seconds": 0.1}))
        for failing in (calling, calls(known, "mcp", ("pid", {}))):
            with pytest.raises(AxonError) as caught:
                await failing
            assert caught.value.error_type == "tool_failed"
            assert "s3cret" not in str(caught.value)

    known = registry(mcp=configured)
    closed_after(known, work)
    assert "s3cret" not in caplog.text + repr(known.toolsets) + repr(known.toolsets.loaded["mcp"]) + repr(configured)


def test_a_session_forgotten_by_a_restarted_server_is_opened_again(monkeypatch):
    make = fastmcp.Client.__init__
    monkeypatch.setattr(fastmcp.Client, "__init__", partialmethod(make, mode="legacy"))
    port = free_port()

    async def work(known: Registry) -> None:
        with http_server(port) as pid:
            assert await calls(known, "mcp", ("pid", {})) == [pid]
        with http_server(port) as pid:
            assert await calls(known, "mcp", ("pid", {}), ("pid", {})) == [pid, pid]

    closed_after(registry(mcp=McpServer(url=f"http://127.0.0.1:{port}/mcp", timeout=30)), work)


# --- in workers ---------------------------------------------------------------------------------------


CONFIG = """
[toolsets]
numbers = "sample_toolsets:numbers"
broken = "sample_toolsets:no_such"

[toolsets.mcp]
command = {python}
args = [{server}, "--deaf", "--log", {log}]

[toolsets.guarded]
command = {python}
args = [{server}]
prefix = "guarded"
approval = true
"""


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A configuration file, and the log with the pids of its server, which ignores SIGTERM."""
    folder = tmp_path_factory.mktemp("toolsets")
    log = folder / "pids"
    shown = {"python": sys.executable, "server": SERVER, "log": str(log)}
    (folder / "axon.toml").write_text(CONFIG.format(**{key: json.dumps(text) for key, text in shown.items()}))
    return folder / "axon.toml", log


@pytest.fixture(scope="module")
def own(configured) -> Iterator[Daemon]:
    with running(*MODES, AXON_CONFIG=str(configured[0]), AXON_RUN_SYNC_SLOTS="2") as daemon:
        yield daemon


def call(client: Client, mode: str, toolset: str, name: str, **args: Any) -> Any:
    agent = {"model": "tools", "toolsets": [toolset]}
    prompt = json.dumps([{"name": name, "args": args}])
    if mode == "run_stream":
        return client.stream(agent, prompt).complete()
    return getattr(client, mode)(agent, prompt)


@pytest.mark.parametrize("mode", MODES)
def test_in_each_mode_an_agent_as_data_calls_named_toolsets(own: Daemon, mode):
    with Client(own.endpoint) as client:
        assert json.loads(call(client, mode, "numbers", "add", a=2, b=3).result) == [5]
        assert json.loads(call(client, mode, "mcp", "temperature", place="Oslo").result) == [-3.0]
        [first] = json.loads(call(client, mode, "mcp", "pid").result)
        kill(first)
        assert json.loads(call(client, mode, "mcp", "temperature", place="Oslo").result) == [-3.0]
        for name, says in (("numbrs", "did you mean 'numbers'"), ("broken", "could not be loaded: AttributeError")):
            with pytest.raises(AxonError, match=says) as caught:
                call(client, mode, name, "add", a=2, b=3)
            assert caught.value.error_type == "invalid_request"
        asked = call(client, mode, "guarded", "guarded_pid")
        assert [each["name"] for each in asked.deferred["approvals"]] == ["guarded_pid"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_servers_end_with_their_worker_even_if_they_ignore_sigterm(configured, how):
    others = started(configured[1])
    with running(*MODES, AXON_CONFIG=str(configured[0])) as daemon, Client(daemon.endpoint) as client:
        pids = {mode: json.loads(call(client, mode, "mcp", "pid").result)[0] for mode in MODES}
        client.describe()  # starts another server if the running one belongs to a slot
        everyone = started(configured[1])[len(others) :]
        assert set(pids.values()) <= set(everyone)
        for name in set(daemon.processes) - {"broker"}:
            daemon.processes[name].send_signal(how)
        wait_until(lambda: all(gone(pid) for pid in everyone), "the servers to be gone")


@pytest.mark.parametrize("mode", MODES)
def test_a_worker_that_stops_lets_its_servers_exit(tmp_path, mode):
    log = tmp_path / "pids"
    table = {"command": sys.executable, "args": [SERVER, "--log", str(log)]}
    lines = (f"{key} = {json.dumps(value)}\n" for key, value in table.items())
    (tmp_path / "axon.toml").write_text(f"[toolsets.mcp]\n{''.join(lines)}")
    with running(mode, AXON_CONFIG=str(tmp_path / "axon.toml")) as daemon, Client(daemon.endpoint) as client:
        [pid] = json.loads(call(client, mode, "mcp", "pid").result)
        assert daemon.kill(f"{mode}-1", signal.SIGTERM) == 0
        assert started(log.with_suffix(".ended")) == [pid]
