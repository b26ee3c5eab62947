"""Toolsets by name: Python's own, and MCP servers that live between runs and never outlive their worker."""

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
from pydantic_ai.exceptions import UserError

from axon_zmq import AxonError, Client
from axon_zmq.process import lifeline
from axon_zmq.protocol.kinds import MODES
from axon_zmq.protocol.requests import AgentData
from axon_zmq.settings import McpServer
from axon_zmq.worker.adapter import errors
from axon_zmq.worker.registry import mcp_servers, toolsets
from axon_zmq.worker.registry.agents import Registry
from axon_zmq.worker.registry.models import Models
from tests.conftest import ROOT, Daemon, free_port, running, wait_until

SERVER = str(ROOT / "tests/mcp_server.py")
AGENTS = {name: f"tests.sample_toolsets:{name}" for name in ("sums", "also_sums", "rich")}
TOOLSETS: dict[str, str | McpServer] = {
    name: f"tests.sample_toolsets:{name}"
    for name in ("functions", "numbers", "more_numbers", "make", "fails", "interrupts", "nothing", "no_such")
}


def server(*arguments: str, **more: Any) -> McpServer:
    return McpServer(command=sys.executable, args=[SERVER, *arguments], **more)


def registry(*agents: str, **named: str | McpServer) -> Registry:
    return Registry(targets={name: AGENTS[name] for name in agents}, models=Models(None), named_toolsets=named)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def kill(pid: int) -> None:
    """End a server whose parent lives, and wait for all its threads: its pipes stay open until the last has gone."""
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(pid), "the server's parent to reap it")


def started(log: Path) -> list[int]:
    """The pids of the servers that wrote into a log, in order."""
    return [int(line) for line in log.read_text().split()] if log.exists() else []


async def calls(known: Registry, toolset: str, *steps: tuple[str, dict[str, Any]]) -> list[Any]:
    """What tools of one toolset give back, called one after the other in one run."""
    agent = known.from_data(AgentData(model="tools", toolsets=[toolset]), None)
    prompt = json.dumps([[{"name": name, "args": args}] for name, args in steps])
    return json.loads((await agent.run(prompt)).output)


def closed_after(known: Registry, work: Callable[[Registry], Coroutine[Any, Any, Any]]) -> Any:
    """Run something on a loop of its own, close the registry, and see that it took everything with it."""

    async def both() -> Any:
        try:
            return await work(known)
        finally:
            await known.aclose()

    children = set(psutil.Process().children(recursive=True))
    result = asyncio.run(both())
    assert not set(psutil.Process().children(recursive=True)) - children
    return result


# --- by name ------------------------------------------------------------------------------------------


def test_a_toolset_is_an_object_a_list_of_functions_or_a_function_that_makes_one():
    async def work(known: Registry) -> None:
        assert await calls(known, "numbers", ("add", {"a": 1, "b": 2})) == [3]
        assert await calls(known, "functions", ("add", {"a": 1, "b": 2}), ("negate", {"a": 5})) == [3, -5]
        assert await calls(known, "make", ("made_negate", {"a": 5})) == [-5]

    asyncio.run(work(registry(**TOOLSETS)))


@pytest.mark.parametrize(
    ("names", "pointer", "says"),
    [
        (["numers"], "/agent/toolsets/0", "no toolset 'numers' is registered; did you mean 'numbers'?"),
        (["numbers", "xyz"], "/agent/toolsets/1", "registered names: functions, numbers, more_numbers, make"),
        (["numbers", "make", "numbers"], "/agent/toolsets/2", "'numbers' is listed twice"),
        (["fails"], "/agent/toolsets/0", "toolset 'fails' could not be loaded: SystemExit: no numbers today"),
        (["interrupts"], "/agent/toolsets/0", "could not be loaded: KeyboardInterrupt"),
        (
            ["nothing"],
            "/agent/toolsets/0",
            "is list: expected a pydantic_ai toolset, a list of functions, or a",
        ),
        (["no_such"], "/agent/toolsets/0", "could not be loaded: AttributeError"),
    ],
)
def test_a_name_that_cannot_be_had_is_told_by_its_place(names, pointer, says):
    with pytest.raises(AxonError) as caught:
        registry(**TOOLSETS).from_data(AgentData(model="echo", toolsets=names), None)
    assert caught.value.error_type == "invalid_request"
    assert caught.value.details["errors"][0]["pointer"] == pointer
    assert says in caught.value.message


def test_two_toolsets_with_one_tool_name_are_both_named():
    agent = registry(**TOOLSETS).from_data(AgentData(model="echo", toolsets=["numbers", "more_numbers"]), None)
    with pytest.raises(UserError) as caught:
        asyncio.run(agent.run("hi"))
    error = errors.explain(caught.value, [], None)
    assert error.error_type == "invalid_request"
    for said in ("toolset 'numbers'", "oolset 'more_numbers'", "'add'", "set a prefix"):
        assert said in error.message


# --- what tools there are -----------------------------------------------------------------------------


def test_describe_tells_the_tools_of_every_kind_of_toolset_and_who_could_not_tell(monkeypatch):
    monkeypatch.setattr(toolsets, "LISTING_TIMEOUT_S", 0.2)
    entry = asyncio.run(registry("rich").describe("rich"))["agents"]["rich"]
    tools = {tool["name"]: tool for tool in entry["tools"]}
    assert tools.keys() == {"made_negate", "add", "negate", "erase", "multiply"}
    assert tools["add"]["description"] == "Add two numbers."
    assert tools["add"]["parameters"]["required"] == ["a", "b"]
    assert tools["add"]["returns"] == {"type": "integer"}
    assert {name for name, tool in tools.items() if tool.get("approval")} == {"add", "negate", "erase"}
    assert {name for name, tool in tools.items() if tool.get("sequential")} == {"erase"}
    assert entry["tools_error"] == "Hanging 'hanging': did not answer within 0.2 s"


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


def test_a_tool_is_found_with_its_agent_or_by_its_name_alone(monkeypatch):
    monkeypatch.setattr(toolsets, "LISTING_TIMEOUT_S", 0.2)
    known = registry(*AGENTS, make="tests.sample_toolsets:make")
    found = asyncio.run(known.find_tool("add", "sums"))
    assert found.registered is known.named("sums")
    found = asyncio.run(known.find_tool("erase", None))
    assert found.registered is known.named("rich")
    found = asyncio.run(known.find_tool("made_negate", None))  # of a toolset and of an agent: agents can be named
    assert (found.registered, found.toolset) == (None, known.toolsets.loaded["make"])


@pytest.mark.parametrize(
    ("tool", "agent", "error_type", "says"),
    [
        (
            "add",
            None,
            "invalid_request",
            "is a tool of agent 'sums' and of agent 'also_sums' and of agent 'rich'",
        ),
        ("multipy", None, "unknown_tool", "could not list their tools: agent 'rich': Hanging 'hanging'"),
        ("ad", "sums", "unknown_tool", "did you mean 'add'?"),
        ("add", "sum", "unknown_agent", "did you mean 'sums'?"),
    ],
)
def test_a_tool_that_is_not_found_is_told_with_those_that_there_are(monkeypatch, tool, agent, error_type, says):
    monkeypatch.setattr(toolsets, "LISTING_TIMEOUT_S", 0.2)
    with pytest.raises(AxonError) as caught:
        asyncio.run(registry(*AGENTS).find_tool(tool, agent))
    assert caught.value.error_type == error_type
    assert says in caught.value.message


# --- MCP servers --------------------------------------------------------------------------------------


def test_a_servers_tools_are_listed_and_called_and_its_errors_go_to_the_model():
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


def test_prefix_and_approval_are_the_operators():
    async def work(known: Registry) -> None:
        told = (await known.describe(None))["toolsets"]["mcp"]["tools"]
        assert {tool["name"] for tool in told} >= {"far_pid", "far_temperature"}
        assert all(tool["approval"] for tool in told)
        with pytest.raises(Exception, match="DeferredToolRequests"):  # what a run without that output type says
            await calls(known, "mcp", ("far_pid", {}))

    closed_after(registry(mcp=server(prefix="far", approval=True)), work)


def test_twenty_runs_at_a_time_share_one_process(tmp_path):
    log = tmp_path / "pids"

    async def work(known: Registry) -> list[list[Any]]:
        runs = (calls(known, "mcp", ("pid", {}), ("wait", {"seconds": 0.05}), ("pid", {})) for _ in range(20))
        return await asyncio.gather(*runs)

    results = closed_after(registry(mcp=server("--log", str(log))), work)
    [pid] = started(log)
    assert results == [[pid, "waited", pid]] * 20


def test_a_server_that_was_killed_in_between_is_started_again():
    async def work(known: Registry) -> None:
        [first] = await calls(known, "mcp", ("pid", {}))
        await asyncio.to_thread(kill, first)
        [second] = await calls(known, "mcp", ("pid", {}))
        assert second != first
        [third] = await calls(known, "mcp", ("pid", {}))
        assert third == second

    closed_after(registry(mcp=server()), work)


def test_a_call_in_which_the_server_dies_is_not_made_twice(tmp_path):
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


def test_a_cancelled_run_harms_no_other(tmp_path):
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


def test_a_start_that_takes_too_long_ends_in_an_error_and_is_not_tried_in_a_spin(tmp_path):
    log = tmp_path / "pids"

    async def work(known: Registry) -> None:
        begun = time.monotonic()
        runs = [asyncio.create_task(calls(known, "mcp", ("pid", {}))) for _ in range(3)]
        for error in await asyncio.gather(*runs, return_exceptions=True):
            assert isinstance(error, AxonError)
            assert error.error_type == "tool_failed"
            assert error.message == "toolset 'mcp': its MCP server did not start within 0.5 s"
            assert error.details == {"toolset": "mcp"}
        assert time.monotonic() - begun < 0.5 + mcp_servers.SERVER_CLOSE_TIMEOUT_S
        with pytest.raises(AxonError, match="is not started again before"):
            await calls(known, "mcp", ("pid", {}))
        [pid] = started(log)
        assert gone(pid)
        rest = known.toolsets.loaded["mcp"].wrapped  # type: ignore[attr-defined]
        rest._rests_until = 0.0
        with pytest.raises(AxonError, match="did not start"):
            await calls(known, "mcp", ("pid", {}))
        assert len(started(log)) == 2

    closed_after(registry(mcp=server("--slow", "60", "--log", str(log), timeout=0.5)), work)


def test_a_start_that_hangs_is_given_up_also_when_nobody_waits_for_it_any_more(tmp_path):
    log = tmp_path / "pids"

    async def work(known: Registry) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(calls(known, "mcp", ("pid", {})), 0.3)
        await asyncio.to_thread(wait_until, lambda: started(log) and gone(started(log)[0]))

    closed_after(registry(mcp=server("--slow", "60", "--log", str(log), timeout=0.5)), work)


def test_a_program_that_is_no_server_is_told_at_once():
    ends = McpServer(command=sys.executable, args=["-c", "raise SystemExit(3)"])
    told = closed_after(registry(mcp=ends), lambda known: known.describe(None))["toolsets"]
    assert told["mcp"]["error"].endswith("ended while it started; the worker's log has what it wrote to stderr")


def test_a_loop_that_stands_still_between_runs_loses_nothing(tmp_path):
    """As a slot of run_sync does: only its runs move it."""
    log = tmp_path / "pids"
    known = registry(mcp=server("--log", str(log), timeout=8.0))
    loop = asyncio.new_event_loop()
    starting = loop.create_task(calls(known, "mcp", ("pid", {})))
    loop.run_until_complete(asyncio.to_thread(wait_until, lambda: started(log)))
    starting.cancel()  # which the server's start outlives
    loop.run_until_complete(asyncio.wait({starting}))
    time.sleep(8.5)  # longer than a start may take
    [first] = loop.run_until_complete(calls(known, "mcp", ("pid", {})))
    assert started(log) == [first]
    kill(first)
    [second] = loop.run_until_complete(calls(known, "mcp", ("pid", {})))
    assert started(log) == [first, second]
    asyncio.run(known.aclose())  # from another loop, as the worker does
    assert gone(second)
    loop.close()


def test_what_a_server_writes_beside_its_messages_is_told_and_not_repeated(caplog):
    async def work(known: Registry) -> None:
        assert await calls(known, "mcp", ("temperature", {"place": "Oslo"})) == [-3.0]

    closed_after(registry(mcp=server("--noisy")), work)
    assert "wrote a line that is not an MCP message" in caplog.text
    assert "s3cret" not in caplog.text


def test_variables_are_filled_in_and_the_server_sees_no_others(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "s3cret")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none-of-its-business")
    monkeypatch.setenv("PYTHON", sys.executable)
    configured = McpServer(command="${PYTHON}", args=[SERVER], env={"TOKEN": "Bearer ${MY_TOKEN}"})

    async def work(known: Registry) -> None:
        names = ("TOKEN", "OPENAI_API_KEY", "MY_TOKEN")
        values = await calls(known, "mcp", *(("variable", {"name": name}) for name in names))
        assert values == ["Bearer s3cret", None, None]

    closed_after(registry(mcp=configured), work)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"command": "echo", "args": ["${NO_SUCH}"]}, "toolsets.mcp.args: ${NO_SUCH} is not set"),
        ({"command": "echo", "env": {"KEY": "${NO_SUCH}"}}, "toolsets.mcp.env.KEY: ${NO_SUCH} is not set"),
        ({"url": "https://${NO_SUCH}/mcp"}, "toolsets.mcp.url: ${NO_SUCH} is not set"),
        ({"url": "https://x/", "headers": {"A": "${NO_SUCH}"}}, "toolsets.mcp.headers.A: ${NO_SUCH} is not set"),
        ({"command": "no-such-program"}, "toolsets.mcp.command: program 'no-such-program' not found"),
        ({"command": "echo", "cwd": "/no/such"}, "toolsets.mcp.cwd: '/no/such' is not a directory"),
    ],
)
def test_a_server_that_cannot_be_configured_is_broken_and_nothing_else(more, says):
    known = registry(mcp=McpServer(**more), numbers="tests.sample_toolsets:numbers")
    told = asyncio.run(known.describe(None))["toolsets"]
    assert says in told["mcp"]["error"]
    assert told["numbers"]["tools"]


def test_without_the_extra_a_server_is_broken_with_the_mend(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastmcp", None)
    monkeypatch.setitem(sys.modules, "fastmcp.client.transports.base", None)
    monkeypatch.delitem(sys.modules, "axon_zmq.worker.registry.mcp_servers")
    assert "pip install 'axon-zmq[mcp]'" in registry(mcp=server()).toolsets.broken["mcp"]


@contextmanager
def http_server(port: int) -> Iterator[int]:
    process = subprocess.Popen([sys.executable, SERVER, "--port", str(port)], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: psutil.Process(process.pid).net_connections(), "the server's port")
        yield process.pid
    finally:
        process.kill()
        process.wait()


def test_a_server_over_http_is_connected_again_and_its_address_and_headers_are_not_told(caplog):
    port = free_port()
    configured = McpServer(url=f"http://127.0.0.1:{port}/mcp?key=s3cret", headers={"X-Key": "s3cret"}, timeout=5)

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


def test_a_session_that_a_restarted_server_has_forgotten_is_made_anew(monkeypatch):
    make = fastmcp.Client.__init__
    monkeypatch.setattr(fastmcp.Client, "__init__", partialmethod(make, mode="legacy"))
    port = free_port()

    async def work(known: Registry) -> None:
        with http_server(port) as pid:
            assert await calls(known, "mcp", ("pid", {})) == [pid]
        with http_server(port) as pid:
            assert await calls(known, "mcp", ("pid", {}), ("pid", {})) == [pid, pid]

    closed_after(registry(mcp=McpServer(url=f"http://127.0.0.1:{port}/mcp", timeout=5)), work)


# --- no orphan ----------------------------------------------------------------------------------------


def test_what_a_tied_command_has_started_ends_with_the_parent_too(tmp_path):
    """A shell that starts a deaf program, as npx and uvx do."""
    pids = tmp_path / "pids"
    deaf = f"trap '' TERM HUP; {sys.executable} {SERVER} --deaf --log {pids} & echo $$ >> {pids}; wait"
    code = (
        f"import subprocess, time; from axon_zmq.process import lifeline;"
        f"subprocess.Popen(lifeline.tied(['sh', '-c', {deaf!r}]), start_new_session=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    wait_until(lambda: len(started(pids)) == 2)
    parent.kill()
    parent.wait()
    wait_until(lambda: all(gone(pid) for pid in started(pids)), "the orphans to be gone")


def test_a_tied_command_keeps_its_arguments_its_pipes_and_its_exit_code():
    shown = subprocess.run(lifeline.tied(["printf", "%s|", "a b", "$c"]), capture_output=True, start_new_session=True)
    assert (shown.stdout, shown.returncode) == (b"a b|$c|", 0)
    ended = subprocess.run(lifeline.tied(["sh", "-c", "exit 7"]), capture_output=True, start_new_session=True)
    assert ended.returncode == 7
    missing = subprocess.run(lifeline.tied(["no-such"]), capture_output=True, start_new_session=True)
    assert (missing.returncode, missing.stderr) == (127, b"no-such: No such file or directory\n")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the parent is looked at each second")
def test_a_command_whose_parent_is_gone_already_is_not_started(tmp_path):
    interpreter, *options, _, touch, file = lifeline.tied(["touch", str(tmp_path / "file")])
    done = subprocess.run([interpreter, *options, "1", touch, file], start_new_session=True)
    assert done.returncode == 1
    assert not (tmp_path / "file").exists()


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
    """A configuration file, and the log of its deaf server's pids."""
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
def test_when_a_worker_ends_its_servers_end_with_it_even_deaf_ones(configured, how):
    others = started(configured[1])
    with running(*MODES, AXON_CONFIG=str(configured[0])) as daemon, Client(daemon.endpoint) as client:
        pids = {mode: json.loads(call(client, mode, "mcp", "pid").result)[0] for mode in MODES}
        client.describe()  # starts another where the one that runs belongs to a slot
        everyone = started(configured[1])[len(others) :]
        assert set(pids.values()) <= set(everyone)
        for name in set(daemon.processes) - {"broker"}:
            daemon.processes[name].send_signal(how)
        wait_until(lambda: all(gone(pid) for pid in everyone), "the servers to be gone")


@pytest.mark.parametrize("mode", MODES)
def test_a_worker_that_stops_lets_its_servers_end_by_themselves(tmp_path, mode):
    log = tmp_path / "pids"
    table = {"command": sys.executable, "args": [SERVER, "--log", str(log)]}
    lines = (f"{key} = {json.dumps(value)}\n" for key, value in table.items())
    (tmp_path / "axon.toml").write_text(f"[toolsets.mcp]\n{''.join(lines)}")
    with running(mode, AXON_CONFIG=str(tmp_path / "axon.toml")) as daemon, Client(daemon.endpoint) as client:
        [pid] = json.loads(call(client, mode, "mcp", "pid").result)
        assert daemon.kill(f"{mode}-1", signal.SIGTERM) == 0
        assert started(log.with_suffix(".ended")) == [pid]
