"""Tool functions in the Python client, against a scripted daemon and against a real one."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import json
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime
from enum import Enum
from typing import Any, Literal
from weakref import WeakSet

import pytest
import zmq
from pydantic import BaseModel

from axon_zmq import (
    AsyncClient,
    AxonError,
    Client,
    RequestError,
    Tool,
    ToolAnswer,
    ToolError,
    ToolRetry,
    deferred_results,
)
from axon_zmq.client.async_client import STREAM_CREDIT as CREDIT
from axon_zmq.client.core import ClientCore
from axon_zmq.client.tool_runner import ToolRunner
from axon_zmq.events import Complete, Log, Refused, ToolCall, ToolCancelled
from axon_zmq.net.loop_socket import LoopSocket
from axon_zmq.protocol import limits
from axon_zmq.protocol.kinds import MODES
from axon_zmq.protocol.msgpack import pack, unpack
from tests.support.client_tools import calls
from tests.support.daemon import AGENTS, WAIT_TIMEOUT_S, Daemon, Dealer, running

ASK = {"name": "ask", "parameters": {"type": "object"}}
"""A tool without a function."""
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


class Unit(Enum):
    CELSIUS = "C"


# --- its functions run in the client ----------------------------------------------------------------


class Peer:
    """A ROUTER on the loop of the test, which scripts the daemon message by message."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.LINGER, 0)
        port = self._router.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = f"tcp://127.0.0.1:{port}"
        self._socket = LoopSocket(self._router, self._received)
        self._heard: asyncio.Queue[tuple[str, dict[str, Any], dict[str, Any]]] = asyncio.Queue()
        self._client = self.id = b""
        self._seq = 0

    def _received(self, frames: list[bytes]) -> None:
        self._client, kind, id, *rest = frames
        if kind == b"ping":
            return
        self.id = id
        header, body = (unpack(part, "it") for part in [*rest, b"", b""][:2])
        self._heard.put_nowait((kind.decode(), header, body))

    async def hear(self, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Header and body of the next message; it must be of the given kind."""
        heard, header, body = await asyncio.wait_for(self._heard.get(), WAIT_TIMEOUT_S)
        assert heard == kind, (heard, header, body)
        return header, body

    async def answered(self, call_id: str) -> dict[str, Any]:
        header, body = await self.hear("tool_result")
        assert header == {"call_id": call_id}
        return body

    async def silent(self, client: AsyncClient) -> None:
        """Check that no further message was sent: the next message is the one that is sent now."""
        await client.cancel("something new")
        await self.hear("cancel")

    def say(self, kind: str, **body: Any) -> None:
        self._seq += 1
        self.say_plainly(kind, seq=self._seq, **body)

    def say_plainly(self, kind: str, **body: Any) -> None:
        self._socket.send([self._client, kind.encode(), self.id, pack(body)])

    def call(self, call_id: str, name: str, /, **args: Any) -> None:
        self.say("tool_call", call_id=call_id, name=name, args=args)

    def refuse(self, call_id: str, error_type: str = "invalid_request", message: str = "it does not fit") -> None:
        self.say_plainly("refused", of="tool_result", error_type=error_type, message=message, call_id=call_id)

    def close(self) -> None:
        self._socket.close()
        self._context.term()


@asynccontextmanager
async def alone() -> AsyncIterator[tuple[Peer, AsyncClient]]:
    peer = Peer()
    try:
        async with AsyncClient(peer.endpoint) as client:
            yield peer, client
    finally:
        peer.close()


def talk(test: Callable[[Peer, AsyncClient], Awaitable[None]]) -> None:
    async def run() -> None:
        async with alone() as (peer, client):
            await test(peer, client)

    asyncio.run(run())


async def settle() -> None:
    """Let the loop run all callbacks that are ready."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_calls_run_in_parallel_and_are_answered_as_they_end():
    gates = {name: asyncio.Event() for name in "ab"}

    async def wait(name: Literal["a", "b"]) -> str:
        await gates[name].wait()
        return name.upper()

    async def test(peer: Peer, client: AsyncClient) -> None:
        running = asyncio.create_task(client.run("x", "y", tools=[wait]))
        _, body = await peer.hear("run")
        assert body["tools"] == [Tool(wait).definition]
        for name in "ab":
            peer.call(name, "wait", name=name)
        gates["b"].set()
        assert await peer.answered("b") == {"result": "B"}
        gates["a"].set()
        assert await peer.answered("a") == {"result": "A"}
        peer.say("complete", result="done")
        assert (await running).result == "done"

    talk(test)


def test_blocking_functions_run_in_threads_in_parallel():
    barrier = threading.Barrier(3, timeout=WAIT_TIMEOUT_S)

    def meet() -> str:
        barrier.wait()
        return threading.current_thread().name

    async def test(peer: Peer, client: AsyncClient) -> None:
        stream = client.stream("x", "y", tools=[meet])
        await peer.hear("run_stream")
        for call_id in "abc":
            peer.call(call_id, "meet")
        for _ in range(3):
            header, body = await peer.hear("tool_result")
            assert header["call_id"] in "abc"
            assert body["result"].startswith("axon-tool")
        await stream.aclose()

    talk(test)


where = contextvars.ContextVar("where", default="nowhere")


def test_tools_run_in_the_context_that_started_the_run():
    async def in_a_task() -> str:
        return where.get()

    def in_a_thread() -> str:
        return where.get()

    async def test(peer: Peer, client: AsyncClient) -> None:
        token = where.set("here")
        stream = client.stream("x", "y", tools=[in_a_task, in_a_thread])
        where.reset(token)
        await peer.hear("run_stream")
        peer.call("a", "in_a_task")
        assert await peer.answered("a") == {"result": "here"}
        peer.call("b", "in_a_thread")
        assert await peer.answered("b") == {"result": "here"}
        await stream.aclose()

    talk(test)


def test_tools_of_the_blocking_client_run_in_the_callers_context(client: Client):
    def in_a_thread() -> str:
        return where.get()

    token = where.set("there")
    try:
        assert json.loads(client.run(TOOLS, calls("in_a_thread"), tools=[in_a_thread]).result) == ["there"]
    finally:
        where.reset(token)


class Slow:
    """Asynchronous tools that record how they ended."""

    def __init__(self) -> None:
        self.ends: list[str] = []

    async def wait(self) -> None:
        """Waits for ever."""
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.ends.append("cancelled")
            raise

    async def stubborn(self) -> str:
        """Returns a result although it was cancelled."""
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.ends.append("stubborn")
        return "late"


@pytest.fixture
def tool_runners(monkeypatch: pytest.MonkeyPatch) -> WeakSet[ToolRunner]:
    """The tool runners that clients have created since the start of the test and that are still alive."""
    alive: WeakSet[ToolRunner] = WeakSet()

    class Counted(ToolRunner):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            alive.add(self)

    monkeypatch.setattr("axon_zmq.client.async_client.ToolRunner", Counted)
    return alive


@pytest.mark.parametrize("end", ["tool_cancelled", "complete", "error", "aclose"])
def test_a_call_without_a_waiting_run_is_cancelled_and_its_late_answer_is_dropped(end, tool_runners):
    slow = Slow()

    async def test(peer: Peer, client: AsyncClient) -> None:
        stream = client.stream("x", "y", tools=[slow.wait, slow.stubborn])
        await peer.hear("run_stream")
        peer.call("a", "wait")
        peer.call("b", "stubborn")
        assert [(await anext(stream)).call_id for _ in "ab"] == ["a", "b"]
        await settle()
        match end:
            case "tool_cancelled":
                peer.say("tool_cancelled", call_id="a")
                peer.say("tool_cancelled", call_id="b")
                assert [type(await anext(stream)) for _ in "ab"] == [ToolCancelled, ToolCancelled]
            case "complete":
                peer.say("complete", result=1)
                await stream.complete()
            case "error":
                peer.say("error", **RequestError("invalid_request", "x").to_body())
                with pytest.raises(AxonError):
                    await anext(stream)
            case _:
                await stream.aclose()
                await peer.hear("cancel")
        await settle()
        assert slow.ends == ["cancelled", "stubborn"]
        await peer.silent(client)
        gc.collect()
        assert not tool_runners or end == "tool_cancelled"

    talk(test)


def test_leaving_the_client_does_not_wait_for_a_blocked_thread():
    started, gate = threading.Event(), threading.Event()

    def block() -> None:
        started.set()
        gate.wait(120)

    async def test(peer: Peer, client: AsyncClient) -> None:
        stream = client.stream("x", "y", tools=[block])
        await peer.hear("run_stream")
        peer.call("a", "block")
        await anext(stream)
        await asyncio.to_thread(started.wait, WAIT_TIMEOUT_S)

    before = time.monotonic()
    try:
        talk(test)
        assert time.monotonic() - before < 20
    finally:
        gate.set()


def test_a_call_cancelled_while_waiting_for_a_thread_is_never_made(monkeypatch):
    monkeypatch.setattr("axon_zmq.client.async_client.MAX_TOOL_THREADS", 1)
    gate = threading.Event()
    ran: list[str] = []

    def block(name: str) -> None:
        ran.append(name)
        gate.wait(120)

    async def test(peer: Peer, client: AsyncClient) -> None:
        stream = client.stream("x", "y", tools=[block])
        await peer.hear("run_stream")
        for call_id in "abc":
            peer.call(call_id, "block", name=call_id)
        peer.say("tool_cancelled", call_id="b")
        while not isinstance(await anext(stream), ToolCancelled):
            pass
        gate.set()
        for call_id in "ac":
            assert await peer.answered(call_id) == {"result": None}
        assert ran == ["a", "c"]
        await stream.aclose()

    talk(test)


def test_calls_wait_when_all_threads_are_busy_and_this_is_logged_once(monkeypatch, caplog):
    monkeypatch.setattr("axon_zmq.client.async_client.MAX_TOOL_THREADS", 2)
    gate = threading.Event()

    def block(secret: str) -> str:
        gate.wait(120)
        return secret

    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    async def test(peer: Peer, client: AsyncClient) -> None:
        stream = client.stream("x", "y", tools=[block, Tool(block, name="other")])
        await peer.hear("run_stream")
        peer.call("a", "block", secret="hidden")
        peer.call("b", "other", secret="hidden")
        for _ in "ab":
            await anext(stream)
        await settle()
        assert told() == []
        for call_id in "cde":
            peer.call(call_id, "block", secret="hidden")
            await anext(stream)
        await settle()
        full = "all 2 threads for blocking tools are busy: block (1), other (1); more calls wait"
        assert told() == [full]
        gate.set()
        assert {(await peer.hear("tool_result"))[0]["call_id"] for _ in range(5)} == set("abcde")
        gate.clear()
        for call_id in "fgh":
            peer.call(call_id, "block", secret="hidden")
            await anext(stream)
        await settle()
        assert told() == [full, "all 2 threads for blocking tools are busy: block (2); more calls wait"]
        gate.set()
        assert {(await peer.hear("tool_result"))[0]["call_id"] for _ in range(3)} == set("fgh")
        await stream.aclose()

    try:
        talk(test)
    finally:
        gate.set()


def test_a_cancelled_call_keeps_its_thread_until_it_returns(monkeypatch):
    monkeypatch.setattr("axon_zmq.client.async_client.MAX_TOOL_THREADS", 1)
    started, gate = threading.Event(), threading.Event()
    ran: list[str] = []

    def block(name: str) -> None:
        ran.append(name)
        started.set()
        gate.wait(120)

    async def test(peer: Peer, client: AsyncClient) -> None:
        stream = client.stream("x", "y", tools=[block])
        await peer.hear("run_stream")
        peer.call("a", "block", name="a")
        await asyncio.to_thread(started.wait, WAIT_TIMEOUT_S)
        peer.say("tool_cancelled", call_id="a")
        peer.call("b", "block", name="b")
        assert [type(await anext(stream)) for _ in "abc"] == [ToolCall, ToolCancelled, ToolCall]
        await settle()
        assert ran == ["a"]
        gate.set()
        assert await peer.answered("b") == {"result": None}
        await stream.aclose()

    try:
        talk(test)
    finally:
        gate.set()


def test_a_call_fails_if_the_system_gives_no_thread(monkeypatch):
    monkeypatch.setattr("axon_zmq.client.async_client.MAX_TOOL_THREADS", 1)

    def tool() -> int:
        return 1

    def exhausted(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def test(peer: Peer, client: AsyncClient) -> None:
        stream = client.stream("x", "y", tools=[tool])
        await peer.hear("run_stream")
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", exhausted)
            peer.call("a", "tool")
            error = (await peer.answered("a"))["error"]
        assert error["message"] == "RuntimeError: can't start new thread"
        peer.call("b", "tool")
        assert await peer.answered("b") == {"result": 1}
        await stream.aclose()

    talk(test)


FORGETS_TO_RETURN = """
import sys, threading
from axon_zmq import Client
from tests.support.daemon import WAIT_TIMEOUT_S

started = threading.Event()

def block() -> None:
    started.set()
    threading.Event().wait()

with Client(sys.argv[1]) as client:
    stream = client.stream({"model": "tools"}, '[{"name": "block", "args": {}}]', tools=[block])
    assert started.wait(60)
"""


def test_a_tool_that_never_returns_does_not_block_the_exit_of_the_interpreter(daemon: Daemon):
    done = subprocess.run(
        [sys.executable, "-c", FORGETS_TO_RETURN, daemon.endpoint],
        timeout=WAIT_TIMEOUT_S,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


class SpeechlessError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


RAISED = [KeyboardInterrupt("stop"), SystemExit("stop"), pytest.fail.Exception("stop"), GeneratorExit("stop")]


@pytest.mark.parametrize("raised", [*RAISED, SpeechlessError()], ids=lambda raised: type(raised).__name__)
def test_a_call_is_answered_whatever_its_tool_raises(raised):
    def in_a_thread() -> None:
        raise raised

    async def in_a_task() -> None:
        raise raised

    async def test(peer: Peer, client: AsyncClient) -> None:
        stream = client.stream("x", "y", tools=[in_a_thread, in_a_task])
        await peer.hear("run_stream")
        name = type(raised).__name__
        for tool in ("in_a_thread", "in_a_task"):
            peer.call(tool, tool)
            error = (await peer.answered(tool))["error"]
            assert error == {"message": name if name == "SpeechlessError" else f"{name}: stop", "retry": False}
        await stream.aclose()

    talk(test)


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit])
def test_no_tool_can_end_the_loop_of_the_blocking_client(client: Client, raised):
    def tool() -> None:
        raise raised("stop")

    done = client.run(TOOLS, calls("tool"), tools=[tool], timeout_ms=10_000)
    assert json.loads(done.result) == [f"{raised.__name__}: stop"]
    assert client.run("echo", "and on").result == "and on"


def test_an_answer_that_cannot_be_sent_fails_the_call(monkeypatch):
    send, failures = ClientCore.answer, [MemoryError("too deep")]

    def answer(*args: Any) -> bool:
        if failures:
            raise failures.pop()
        return send(*args)

    async def tool() -> int:
        return 1

    async def test(peer: Peer, client: AsyncClient) -> None:
        stream = client.stream("x", "y", tools=[tool])
        await peer.hear("run_stream")
        monkeypatch.setattr(ClientCore, "answer", answer)
        peer.call("a", "tool")
        assert (await peer.answered("a"))["error"]["message"] == "the result cannot be sent: too deep"
        await stream.aclose()

    talk(test)


def test_the_model_sees_the_beginning_of_a_long_refusal():
    def tool() -> int:
        return 1

    async def test(peer: Peer, client: AsyncClient) -> None:
        stream = client.stream("x", "y", tools=[tool])
        await peer.hear("run_stream")
        peer.call("a", "tool")
        assert await peer.answered("a") == {"result": 1}
        peer.refuse("a", message="x" * 5_000_000)
        assert await peer.answered("a") == {"error": {"message": "x" * 1000, "retry": False}}
        await stream.aclose()

    talk(test)


def test_a_tool_that_cancels_itself_has_failed():
    async def cancel_itself() -> None:
        raise asyncio.CancelledError

    async def test(peer: Peer, client: AsyncClient) -> None:
        stream = client.stream("x", "y", tools=[cancel_itself])
        await peer.hear("run_stream")
        peer.call("a", "cancel_itself")
        assert (await peer.answered("a"))["error"] == {
            "message": "CancelledError: the tool function raised it itself",
            "retry": False,
        }
        await stream.aclose()

    talk(test)


def test_a_result_rejected_by_the_daemon_fails_its_call_once():
    def tool() -> int:
        return "no number"  # type: ignore[return-value]

    async def test(peer: Peer, client: AsyncClient) -> None:
        stream = client.stream("x", "y", tools=[tool])
        await peer.hear("run_stream")
        peer.call("a", "tool")
        assert await peer.answered("a") == {"result": "no number"}
        peer.refuse("a")
        assert await peer.answered("a") == {"error": {"message": "it does not fit", "retry": False}}
        peer.refuse("a")
        peer.refuse("a", "unknown_request")
        peer.say("complete", result=1)
        events = [type(event) async for event in stream]
        assert events == [ToolCall, Refused, Refused, Refused, Complete]
        await peer.silent(client)

    talk(test)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("x" * (limits.BrokerLimits().max_body + 1), "too_large"),
        (2**70, "out of range"),
        ("half \ud83d", "surrogates not allowed"),
    ],
)
def test_a_result_that_cannot_be_packed_fails_its_call(result, message):
    def tool():
        return result

    async def test(peer: Peer, client: AsyncClient) -> None:
        stream = client.stream("x", "y", tools=[tool])
        await peer.hear("run_stream")
        peer.call("a", "tool")
        error = (await peer.answered("a"))["error"]
        assert re.fullmatch(f"the result cannot be sent: .*{message}.*", error["message"]), error
        await stream.aclose()

    talk(test)


def test_a_late_result_is_dropped():
    def tool() -> int:
        return 1

    async def test(peer: Peer, client: AsyncClient) -> None:
        stream = client.stream("x", "y", tools=[tool])
        await peer.hear("run_stream")
        peer.call("a", "tool")
        assert await peer.answered("a") == {"result": 1}
        peer.refuse("a", "unknown_request")
        assert [type(await anext(stream)) for _ in "ab"] == [ToolCall, Refused]
        await peer.silent(client)
        await stream.aclose()

    talk(test)


def test_an_answer_lost_with_the_broker_is_sent_again_without_running_the_tool_again():
    ran: list[int] = []

    def tool(n: int) -> int:
        ran.append(n)
        return n

    async def test(peer: Peer, client: AsyncClient) -> None:
        stream = client.stream("x", "y", tools=[tool])
        await peer.hear("run_stream")
        peer.call("a", "tool", n=5)
        assert await peer.answered("a") == {"result": 5}
        id = peer.id
        for boot in ("one", "two"):
            peer.id = b""
            peer.say_plainly("alive", boot=boot, open=1)
        header, _ = await peer.hear("resume")
        assert (header, peer.id) == ({"from": 2, "upto": CREDIT}, id)
        again = [{"seq": 1, "call_id": "a", "name": "tool", "args": {"n": 5}}]
        peer.say_plainly("resumed", **{"from": 2, "gap": False, "open_calls": again, "last": 1})
        assert await peer.answered("a") == {"result": 5}
        peer.say("complete", result=1)
        await stream.complete()
        assert ran == [5]

    talk(test)


def test_calls_of_tools_without_a_function_are_answered_by_the_application():
    async def test(peer: Peer, client: AsyncClient) -> None:
        stream = client.stream("x", "y", tools=[ASK])
        _, body = await peer.hear("run_stream")
        assert body["tools"] == [ASK]
        for call_id in "abc":
            peer.call(call_id, "ask")
            assert (await anext(stream)).call_id == call_id
        assert await stream.answer("a", Unit.CELSIUS, content="more", metadata={1: b"x"})
        assert await peer.answered("a") == {"result": "C", "content": "more", "metadata": {"1": b"x"}}
        assert await client.fail(stream.id, "b", "out of order", retry=True)
        assert await peer.answered("b") == {"error": {"message": "out of order", "retry": True}}
        assert await client.answer(stream.id.decode(), "c")
        assert await peer.answered("c") == {"result": None}
        assert await stream.steer(["hurry", {"kind": "binary", "data": b"x"}], "when_idle")
        _, said = await peer.hear("steer")
        assert said == {"content": ["hurry", {"kind": "binary", "data": b"x"}], "priority": "when_idle"}
        peer.say("complete", result=1)
        await stream.complete()
        assert not await stream.answer("a", 1)
        assert not await stream.fail("a", "x")
        assert not await stream.steer("too late")

    talk(test)


def test_run_rejects_live_tools_without_a_function():
    async def test(peer: Peer, client: AsyncClient) -> None:
        for run in (client.run, client.run_sync):
            with pytest.raises(TypeError, match="live tool 'ask' has no function"):
                await run("x", "y", tools=[ASK])
        with pytest.raises(TypeError, match="invalid tool"):
            client.stream("x", "y", tools=[5])
        await peer.silent(client)

    talk(test)


def test_logs_are_events_of_the_stream():
    async def test(peer: Peer, client: AsyncClient) -> None:
        stream = client.stream("x", "y", log="info")
        _, body = await peer.hear("run_stream")
        assert body["log"] == "info"
        peer.say("log", level="info", message="hi", logger="mine", fields={"n": 1})
        assert await anext(stream) == Log(1, "info", "hi", "mine", {"n": 1})
        await stream.aclose()

    talk(test)


def test_methods_called_outside_of_with_raise():
    async def outside() -> None:
        client = AsyncClient("tcp://127.0.0.1:1")
        for call in (
            lambda: client.answer("1", "a"),
            lambda: client.fail("1", "a", "x"),
            lambda: client.steer("1", "x"),
            lambda: client.call_tool("x"),
        ):
            with pytest.raises(RuntimeError, match="use it as"):
                await call()

    asyncio.run(outside())


# --- with the daemon --------------------------------------------------------------------------------


def temperature(place: str, day: date | None = None) -> dict[str, float]:
    """The temperature of a place."""
    if place == "?":
        raise ToolRetry("which place?")
    return {"celsius": {"Oslo": -3.0, "Rome": 13.0}[place]}


async def snapshot(n: int) -> ToolAnswer:
    """A picture."""
    return ToolAnswer({"n": n}, content=["a picture"], metadata={"raw": b"\x00"})


TOOLS = {"model": "tools", "retries": 2}


@pytest.mark.parametrize("mode", MODES)
def test_functions_answer_in_each_mode(client: Client, mode):
    made = json.dumps(
        [
            [{"name": "temperature", "args": {"place": "?"}}, {"name": "snapshot", "args": {"n": 1}}],
            [{"name": "temperature", "args": {"place": "Oslo", "day": "2026-01-01"}}],
            [{"name": "temperature", "args": {"place": "Atlantis"}}],
        ]
    )
    with client.stream(TOOLS, made, mode=mode, tools=[temperature, snapshot]) as stream:
        events = list(stream)
    assert [event.name for event in events if isinstance(event, ToolCall)] == [
        "temperature",
        "snapshot",
        "temperature",
        "temperature",
    ]
    done = events[-1]
    assert isinstance(done, Complete)
    answers = json.loads(done.result)
    assert {"n": 1} in answers
    assert {"celsius": -3.0} in answers
    assert "KeyError: 'Atlantis'" in answers
    parts = [part for message in done.messages for part in message["parts"]]
    assert [part["metadata"] for part in parts if part.get("tool_name") == "snapshot" and "metadata" in part] == [
        {"raw": b"\x00"}
    ]


@pytest.mark.parametrize("face", ["run", "run_sync"])
def test_functions_answer_calls_of_run(client: Client, face):
    done = getattr(client, face)(TOOLS, calls("temperature", place="Rome"), tools=[temperature])
    assert json.loads(done.result) == [{"celsius": 13.0}]


def test_arguments_are_validated_by_the_daemon_and_by_pydantic(client: Client):
    """An invalid date matches the JSON Schema; the client's validation rejects it and reports it to the model."""
    done = client.run(TOOLS, calls("temperature", place="Oslo", day="soon"), tools=[temperature])
    told = json.dumps([part for message in done.messages for part in message["parts"]], default=str)
    assert "invalid arguments: /day" in told


@pytest.mark.parametrize("mode", MODES)
def test_a_result_that_does_not_match_its_schema_fails_and_the_run_continues(client: Client, mode):
    def number() -> int:
        """A number."""
        return "none"  # type: ignore[return-value]

    events = list(client.stream(TOOLS, calls("number"), mode=mode, tools=[number]))
    [refused] = [event for event in events if isinstance(event, Refused)]
    assert (refused.of, refused.error_type) == ("tool_result", "invalid_request")
    assert json.loads(events[-1].result) == ["/result: 'none' is not of type 'integer'"]


def test_datetimes_and_bytes_keep_their_types(client: Client):
    class Picture(BaseModel):
        taken: datetime
        data: bytes

    def picture() -> Picture:
        return Picture(taken=NOON, data=b"\x00ab")

    picture.__annotations__["return"] = Picture
    done = client.run(TOOLS, calls("picture"), tools=[picture])
    [returned] = [part for part in done.messages[2]["parts"] if part["part_kind"] == "tool-return"]
    assert returned["content"] == {"taken": NOON, "data": b"\x00ab"}


@pytest.mark.parametrize("mode", MODES)
def test_the_application_answers_calls_of_tools_without_a_function(client: Client, mode):
    with client.stream(TOOLS, calls("ask", "ask", question="why?"), mode=mode, tools=[ASK]) as stream:
        seen = []
        for event in stream:
            if isinstance(event, ToolCall):
                seen.append(event.args)
                assert stream.answer(event.call_id, "because") if len(seen) == 1 else stream.fail(event.call_id, "no")
            if isinstance(event, Complete):
                assert json.loads(event.result) == ["because", "no"]
    assert seen == [{"question": "why?"}] * 2


def test_a_late_answer_is_refused_and_reported(client: Client):
    slow = {**ASK, "timeout_ms": 50}
    with client.stream(TOOLS, calls("ask"), tools=[slow, temperature]) as stream:
        events = []
        for event in stream:
            events.append(type(event))
            if isinstance(event, ToolCancelled):
                stream.answer(event.call_id, "too late")
    assert ToolCancelled in events


@pytest.mark.parametrize("mode", ["run", "run_sync"])
def test_deferred_calls_and_approvals_continue_in_a_later_run(client: Client, mode):
    run = getattr(client, mode)
    deferred = {**ASK, "mode": "deferred"}
    options = {"tools": [deferred, Tool(temperature, approval=True)]}
    prompt = json.dumps([{"name": "ask", "args": {}}, {"name": "temperature", "args": {"place": "Oslo"}}])
    first = run(TOOLS, prompt, **options)
    assert first.result is None
    [asked] = first.deferred["calls"]
    results = deferred_results(first, lambda call: {**call["args"], "place": "Rome"}, {asked["call_id"]: [1]})
    done = run(TOOLS, message_history=first.messages, deferred_tool_results=results, **options)
    assert sorted(json.loads(done.result), key=str) == [[1], {"celsius": 13.0}]


def test_the_model_is_told_why_a_call_was_denied(client: Client):
    first = client.run("careful", "?")
    results = deferred_results(first, "not today")
    assert client.run("careful", message_history=first.messages, deferred_tool_results=results).result == "not today"


@pytest.mark.parametrize("mode", MODES)
def test_a_run_can_be_steered(client: Client, mode):
    with client.stream(TOOLS, calls("ask"), mode=mode, tools=[ASK]) as stream:
        for event in stream:
            if isinstance(event, ToolCall):
                assert stream.steer("in Fahrenheit")
                assert client.steer(stream.id, "please", "asap")
                client.answer(stream.id, event.call_id, 1)
            if isinstance(event, Complete):
                assert json.loads(event.result) == [1, {"heard": "in Fahrenheit"}, {"heard": "please"}]


@pytest.mark.parametrize("mode", MODES)
def test_a_run_sends_its_logs(client: Client, mode):
    logs = [event for event in client.stream("logging", "Oslo", mode=mode, log="info") if isinstance(event, Log)]
    assert (logs[0].level, logs[0].message, logs[0].fields["place"]) == ("info", "asked for Oslo", "Oslo")


def test_a_python_tool_of_the_daemon_can_be_called(client: Client):
    done = client.call_tool("temperature", {"place": "Oslo"}, agent="weather")
    assert done.result == {"place": "Oslo", "celsius": -3.0}
    deps = client.call_tool("temperature", {"place": "Home"}, agent="weather", deps={"Home": 21.0})
    assert deps.result["celsius"] == 21.0
    with pytest.raises(ToolError, match="no temperature for 'Atlantis'"):
        client.call_tool("temperature", {"place": "Atlantis"}, agent="weather", timeout_ms=5000)
    with pytest.raises(RequestError) as caught:
        client.call_tool("no_such_tool")
    assert caught.value.error_type == "unknown_tool"


def test_a_broker_that_dies_during_a_call_loses_no_answer_and_runs_nothing_twice():
    ran: list[int] = []

    with running("run", AXON_AGENTS=AGENTS) as daemon, Client(daemon.endpoint) as client:

        def restart(n: int) -> int:
            """A tool that kills the broker before it answers, and once more afterwards."""
            ran.append(n)
            daemon.kill("broker")
            if n == 2:
                threading.Timer(0.5, daemon.start_broker).start()
            else:
                daemon.start_broker()
            return n

        script = json.dumps([[{"name": "restart", "args": {"n": n}}] for n in (1, 2)])
        done = client.run(TOOLS, script, tools=[restart])
        assert json.loads(done.result) == [1, 2]
    assert ran == [1, 2]


def test_a_new_process_continues_with_the_open_calls(daemon: Daemon):
    """The first process was killed after it had answered one of two calls."""
    ran: list[int] = []

    def tool(n: int) -> str:
        """Says which process it is."""
        ran.append(n)
        return f"second process, {n}"

    identity, options = f"resumed-{uuid.uuid4()}", {"id": "kept", "on_disconnect": "keep"}
    prompt = json.dumps([{"name": "tool", "args": {"n": 1}}, {"name": "tool", "args": {"n": 2}}])
    first = ClientCore()
    first.run("run_stream", TOOLS, prompt, {**options, "tools": [Tool(tool).definition]}, 0.0)
    with Dealer(daemon.endpoint, identity.encode()) as dealer:
        dealer.socket.send_multipart(first.outgoing[0])
        seen = []
        while len(seen) < 2:
            kind, _, body = dealer.recv()
            seen += [body["call_id"]] if kind == b"tool_call" else []
        dealer.send(b"tool_result", b"kept", {"call_id": seen[0]}, {"result": "first process"})
        while dealer.recv()[0] != b"chunk":
            pass  # tool_finished: the answer has arrived
    with Client(daemon.endpoint, identity=identity) as client:
        done = client.stream(TOOLS, prompt, tools=[tool], **options).complete()
    assert json.loads(done.result) == ["first process", "second process, 2"]
    assert ran == [2]


def test_another_run_with_the_same_id_is_reported_at_once(client: Client):
    id = uuid.uuid4().hex
    client.run("echo", "one", id=id)
    with pytest.raises(RequestError, match="another"):
        client.run("echo", "two", id=id)
    assert client.run("echo", "one", id=id).result == "one"


def test_a_thousand_calls_leave_nothing_behind(daemon: Daemon, tool_runners: WeakSet[ToolRunner]):
    async def double(n: int) -> int:
        return 2 * n

    async def test() -> None:
        async with AsyncClient(daemon.endpoint) as client:
            prompts = [json.dumps([{"name": "double", "args": {"n": n}}] * 20) for n in range(50)]
            ended = await asyncio.gather(*(client.run(TOOLS, prompt, tools=[double]) for prompt in prompts))
            assert [json.loads(done.result) for done in ended] == [[2 * n] * 20 for n in range(50)]
            gc.collect()
            assert not tool_runners
            assert len(asyncio.all_tasks()) == 2  # this one, and the client's timer

    asyncio.run(test())


def test_toolsets_lists_what_agents_as_data_may_name(client: Client):
    [tool] = client.toolsets()["plain"]["tools"]
    assert (tool["name"], tool["parameters"]["required"]) == ("double", ["number"])
    agent = {"model": "tools", "toolsets": ["plain"]}
    assert client.run(agent, '[{"name": "double", "args": {"number": 4}}]').result == "[8]"


def test_an_exception_of_a_tool_is_logged_with_its_traceback(client: Client, caplog):
    def boom() -> None:
        raise RuntimeError("kaputt")

    client.run({"model": "tools"}, '[{"name": "boom"}]', tools=[boom])
    [record] = [record for record in caplog.records if record.name == "axon_zmq.client.tool_functions"]
    assert record.getMessage() == "tool 'boom' raised RuntimeError"
    assert record.exc_info
