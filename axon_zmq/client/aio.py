"""The asynchronous face of the client."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Final, Literal, Self

import zmq

from axon_zmq.client.core import ClientCore, Run
from axon_zmq.client.runner import ToolRunner
from axon_zmq.client.threads import THREADS, ToolThreads
from axon_zmq.client.tools import Body, Toolbox, answer, fault, to_plain, toolbox
from axon_zmq.errors import AxonError, ConfigurationError, RunEndedError, UnavailableError
from axon_zmq.events import Complete, Event
from axon_zmq.net import endpoints
from axon_zmq.net.loop_socket import LoopSocket
from axon_zmq.protocol import limits

DEFAULT_ENDPOINT: Final = "tcp://127.0.0.1:5570"
MAX_IDENTITY: Final = 200
"""Bytes of a client's identity; ZeroMQ takes 255."""
USAGE: Final = "use it as `async with AsyncClient() as client`"
CREDIT: Final = 1024
"""Messages of a stream that may be on their way to who iterates over it."""
CONNECT_TIMEOUT: Final = 3.0
"""Seconds until an attempt to connect is given up for the next: of itself TCP asks less and less often."""
TICK: Final = 0.5
"""Seconds between two looks at what is overdue."""
Agent = str | Mapping[str, Any]
"""A registered agent's name, or an agent as data: `{"model": …, "instructions": …}`."""
Mode = Literal["run_sync", "run", "run_stream"]
Priority = Literal["asap", "when_idle"]
"""When a run hears what is said to it: before its next request to the model, or when it would end."""


class RunStream:
    """One run: an asynchronous iterator of events that ends with a `Complete`.

    Before it come `Chunk`s, `ToolCall`s, `ToolCancelled`s, `Log`s and `Refused`s. A `ToolCall` of a tool
    with a function is being answered already; others are answered with `answer` or `fail`. Leaving it
    early (`async with`, or `aclose`) cancels the run. A failed run raises its `AxonError`.
    """

    def __init__(self, client: AsyncClient, request: Run) -> None:
        self._client = client
        self._request = request

    @property
    def id(self) -> bytes:
        """The request's id, as in the daemon's logs."""
        return self._request.id

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        item = await self._client._next(self._request)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        if isinstance(item, AxonError):
            raise item
        assert not isinstance(item, dict)
        return item

    async def complete(self) -> Complete:
        """Read to the end; the `Complete` that ends it.

        Raises:
            AxonError: The run failed.
        """
        async for event in self:
            if isinstance(event, Complete):
                return event
        raise RunEndedError("cancelled", "the stream was read to its end before")

    async def answer(self, call_id: str, result: Any = None, *, content: Any = None, metadata: Any = None) -> bool:
        """Answer a `ToolCall`; see `AsyncClient.answer`."""
        return await self._client.answer(self.id, call_id, result, content=content, metadata=metadata)

    async def fail(self, call_id: str, message: str, *, retry: bool = False) -> bool:
        """Say why a `ToolCall` has no result; see `AsyncClient.fail`."""
        return await self._client.fail(self.id, call_id, message, retry=retry)

    async def steer(self, content: Any, priority: Priority = "asap") -> bool:
        """Say more to the run; see `AsyncClient.steer`."""
        return await self._client.steer(self.id, content, priority)

    async def cancel(self) -> None:
        """Ask the run to end; iterating on raises `cancelled` with what there was."""
        await self._client.cancel(self.id)

    async def aclose(self) -> None:
        """Cancel the run if it is open, and forget it; whoever reads it meanwhile gets `cancelled`."""
        self._client._abandon(self._request)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


def _endpoint(given: str | None) -> str:
    try:
        return endpoints.check(given or os.environ.get("AXON_FRONTEND") or DEFAULT_ENDPOINT)
    except ConfigurationError as error:
        raise ValueError(str(error)) from None


def _bytes(id: bytes | str) -> bytes:
    return id.encode() if isinstance(id, str) else id


def _box(options: Mapping[str, Any]) -> Toolbox | None:
    tools = options.get("tools")
    return None if tools is None else toolbox(tools)


def _identity(given: str | None) -> bytes:
    identity = f"py-{secrets.token_hex(8)}" if given is None else given
    if not identity.isascii() or not 1 <= len(identity) <= MAX_IDENTITY:
        raise ValueError(f"{identity!r} is no identity: write 1 to {MAX_IDENTITY} ASCII characters, or leave it out")
    return identity.encode("ascii")


class _Link:
    """A connected DEALER and its monitor on the running loop; where it cannot be made, nothing of it stays."""

    def __init__(
        self,
        endpoint: str,
        identity: bytes,
        received: Callable[[list[bytes]], None],
        connected: Callable[[list[bytes]], None],
    ) -> None:
        self._context = zmq.Context()
        try:
            dealer = self._dealer = self._context.socket(zmq.DEALER)
            # Its own, so that after a reconnect it is the same client to the broker.
            dealer.setsockopt(zmq.IDENTITY, identity)
            dealer.setsockopt(zmq.LINGER, 500)
            _notice_dead_hosts(dealer)
            monitor = dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
            dealer.connect(endpoint)
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self._monitor = LoopSocket(monitor, connected)
        self._socket = LoopSocket(dealer, received)
        self.send = self._socket.send

    async def close(self) -> None:
        self._dealer.disable_monitor()
        self._monitor.close()
        self._socket.close()
        await asyncio.get_running_loop().run_in_executor(None, self._context.term)


def _notice_dead_hosts(dealer: zmq.Socket[bytes]) -> None:
    """Connect anew where a daemon's host leaves everything unanswered: after a cut, TCP alone may wait as long again.

    While requests are open there is something to answer at the latest after `CLIENT_SILENCE`: a `ping`.
    """
    dealer.setsockopt(zmq.TCP_MAXRT, int(limits.DEAD_HOST * 1000))
    dealer.setsockopt(zmq.CONNECT_TIMEOUT, int(CONNECT_TIMEOUT * 1000))
    dealer.setsockopt(zmq.TCP_KEEPALIVE, 1)
    dealer.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 15)
    dealer.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 5)
    dealer.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)


class AsyncClient:
    """A connection to the daemon, for asyncio.

    Use it as `async with AsyncClient() as client`. One client serves any number of requests at a time.

    Args:
        endpoint: The daemon's frontend; `AXON_FRONTEND` or tcp://127.0.0.1:5570 where left out.
        identity: The DEALER's own name, ASCII, at most 200 bytes, unique among processes; a random one
            where left out. With a stable one, runs started with `on_disconnect="keep"` can be resumed.

    Raises:
        ValueError: The endpoint or the identity is none.
    """

    def __init__(self, endpoint: str | None = None, *, identity: str | None = None) -> None:
        self.endpoint = _endpoint(endpoint)
        self._identity = _identity(identity)
        self._core = ClientCore()
        self._link: _Link | None = None
        self._news: dict[Run, asyncio.Event] = {}
        self._runners: dict[Run, ToolRunner] = {}

    def __repr__(self) -> str:
        return f"<AsyncClient {self.endpoint} {self._core!r}>"

    async def __aenter__(self) -> Self:
        if self._link is not None:
            raise RuntimeError(f"this client is entered already: {USAGE}, once")
        self._link = _Link(self.endpoint, self._identity, self._received, self._connected)
        self._threads = ToolThreads(THREADS)
        self._ticking = asyncio.create_task(self._tick())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        link = self._opened()
        for request in self._core.close():
            self._tell(request)
        self._flush()
        self._ticking.cancel()
        self._link = None
        await link.close()

    # --- what a program calls ----------------------------------------------------------------------

    async def run(self, agent: Agent, prompt: Any = None, **options: Any) -> Complete:
        """Run an agent in mode `run` (`await Agent.run`) and wait for its answer.

        Args:
            agent: A registered name, or an agent as data.
            prompt: Text, a list of parts, or None to go on from `message_history`.
            options: `timeout_ms`, `max_attempts`, `on_disconnect`, `id`, and what pydantic-ai's `run` takes:
                `message_history`, `tools` (functions of this process, `Tool`s, or maps of deferred tools),
                `deferred_tool_results`, `output_schema`, `output_mode`, `deps`, `model`, `model_settings`,
                `usage_limits`, `retries`, `metadata`.

        Raises:
            AxonError: The run failed; `error_type` says how.
            TypeError: An option is unknown, or a tool is none that `run` can answer.
        """
        return await self._whole("run", agent, prompt, options)

    async def run_sync(self, agent: Agent, prompt: Any = None, **options: Any) -> Complete:
        """Run an agent in mode `run_sync` (`Agent.run_sync`, a thread of its own); see `run`."""
        return await self._whole("run_sync", agent, prompt, options)

    def stream(self, agent: Agent, prompt: Any = None, *, mode: Mode = "run_stream", **options: Any) -> RunStream:
        """Start an agent; iterate over what this returns.

        Args:
            agent: See `run`.
            prompt: See `run`.
            mode: `run` and `run_sync` bring no chunks, but calls of tools and logs.
            options: See `run`; also `events` (`text` or `all`), and `log`, the least level of the
                agent's log records that come as `Log`. A live tool may be a map without a function.
                `credit` is how many messages may be on their way to who iterates: past it text is merged,
                and then the model is not read any more until he goes on. None: any number.
        """
        options.setdefault("credit", CREDIT)
        return RunStream(self, self._start(mode, agent, prompt, options, _box(options)))

    async def call_tool(self, tool: str, args: Mapping[str, Any] | None = None, **options: Any) -> Complete:
        """Call one Python tool of the daemon's, without a model; `result` of what this returns is the tool's.

        Args:
            tool: Its name.
            args: Its arguments by name.
            options: `agent`, a registered name, where it is an agent's; `deps`; and `timeout_ms`,
                `max_attempts`, `on_disconnect`, `id`.

        Raises:
            AxonError: `unknown_tool`, `tool_failed` or another.
        """
        self._opened()
        return await self._read(self._core.call_tool(tool, args or {}, options, time.monotonic()))

    async def answer(
        self, id: bytes | str, call_id: str, result: Any = None, *, content: Any = None, metadata: Any = None
    ) -> bool:
        """Answer a `ToolCall` of a run that is being read here.

        Args:
            id: Of the run.
            call_id: Of the call.
            result: Of any type that pydantic can dump.
            content: More for the model, beside the result: text, or a list of parts as in a prompt.
            metadata: For the application alone: it comes back in the run's messages.

        Returns:
            Whether the run was still open; an answer that comes too late is dropped. One that the daemon
            does not take comes back as `Refused`.

        Raises:
            RequestError: `too_large`.
        """
        return self._reply(_bytes(id), call_id, answer(result, content, metadata))

    async def fail(self, id: bytes | str, call_id: str, message: str, *, retry: bool = False) -> bool:
        """Say why a `ToolCall` has no result; with `retry` the model may try again. See `answer`."""
        return self._reply(_bytes(id), call_id, fault(message, retry))

    async def steer(self, id: bytes | str, content: Any, priority: Priority = "asap") -> bool:
        """Say more to a run under way: text, or a list of parts as in a prompt.

        Returns:
            Whether the run was still open here. Where it comes too late in the daemon, `Refused` follows.
        """
        self._opened()
        sent = self._core.steer(_bytes(id), to_plain(content), priority)
        self._flush()
        return sent

    async def cancel(self, id: bytes | str) -> None:
        """Ask a run to end; whoever waits for it gets `cancelled`, with what there was."""
        self._opened()
        self._core.cancel(_bytes(id))
        self._flush()

    async def describe(self, agent: str | None = None) -> dict[str, Any]:
        """The agents by name: description, modes, tools, schemas; `error` for one that is broken.

        Raises:
            AxonError: `unknown_agent`, `no_worker`.
        """
        return (await self._catalog(agent))["agents"]

    async def toolsets(self) -> dict[str, Any]:
        """The toolsets that agents as data may name: the tools of each, or `error` for one that is broken.

        Raises:
            AxonError: `no_worker`.
        """
        return (await self._catalog(None))["toolsets"]

    async def _catalog(self, agent: str | None) -> dict[str, Any]:
        self._opened()
        return await self._answer(self._core.describe(agent, time.monotonic()))

    async def ping(self, timeout: float = 5.0) -> dict[str, Any]:  # noqa: ASYNC109 -- what is said when it passes is ours
        """The `pong`: version, limits, workers and queue of each mode.

        Raises:
            UnavailableError: Nobody answered within `timeout` seconds.
        """
        self._opened()
        request = self._core.ping(time.monotonic(), timeout)
        try:
            return await asyncio.wait_for(self._answer(request), timeout)
        except (TimeoutError, RunEndedError) as fault:
            if isinstance(fault, RunEndedError) and fault.error_type != "deadline_exceeded":
                raise
            raise UnavailableError(
                "unreachable", f"no daemon answers at {self.endpoint} within {timeout:g} s", retryable=True
            ) from None

    # --- inside ------------------------------------------------------------------------------------

    def _opened(self) -> _Link:
        if self._link is None:
            raise RuntimeError(f"this client is not connected: {USAGE}")
        return self._link

    def _start(self, kind: str, agent: Agent, prompt: Any, options: Mapping[str, Any], box: Toolbox | None) -> Run:
        self._opened()
        if box is not None:
            options = {**options, "tools": box.definitions}
        request = self._core.run(kind, agent, prompt, options, time.monotonic())
        if box is not None and box.functions:
            self._runners[request] = ToolRunner(box.functions, partial(self._reply, request.id), self._threads)
        self._flush()
        return request

    async def _whole(self, kind: str, agent: Agent, prompt: Any, options: Mapping[str, Any]) -> Complete:
        box = _box(options)
        if box is not None and (names := box.unanswered):
            raise TypeError(
                f"tool {names[0]!r} is live and has no function: nobody would answer it. "
                'Give a function, or "mode": "deferred", or use stream() and answer()'
            )
        return await self._read(self._start(kind, agent, prompt, options, box))

    async def _read(self, request: Run) -> Complete:
        self._flush()
        async with RunStream(self, request) as stream:
            return await stream.complete()

    def _reply(self, id: bytes, call_id: str, body: Body) -> bool:
        self._opened()
        sent = self._core.answer(id, call_id, body)
        self._flush()
        return sent

    async def _answer(self, request: Run) -> dict[str, Any]:
        self._flush()
        try:
            item = await self._next(request)
        finally:
            self._abandon(request)
        if isinstance(item, AxonError):
            raise item
        assert isinstance(item, dict)
        return item

    async def _next(self, request: Run) -> Event | AxonError | dict[str, Any]:
        while not request.inbox:
            if request.ended:
                raise StopAsyncIteration
            news = self._news.setdefault(request, asyncio.Event())
            news.clear()
            await news.wait()
        if request.ended:
            self._news.pop(request, None)
        item = request.inbox.popleft()
        if not isinstance(item, AxonError | dict):
            self._core.took(request, item)
            self._flush()
        return item

    def _abandon(self, request: Run) -> None:
        self._core.abandon(request)
        self._tell(request)
        self._news.pop(request, None)
        self._flush()

    def _received(self, frames: list[bytes]) -> None:
        if (request := self._core.receive(frames, time.monotonic())) is not None:
            self._tell(request)
        self._flush()

    def _connected(self, _frames: list[bytes]) -> None:
        self._core.connected(time.monotonic())
        self._flush()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            for request in self._core.tick(time.monotonic()):
                self._tell(request)
            self._flush()

    def _tell(self, request: Run) -> None:
        if (news := self._news.get(request)) is not None:
            news.set()
        if request.ended and (runner := self._runners.pop(request, None)) is not None:
            runner.close()

    def _flush(self) -> None:
        while self._core.tool_events:
            request, event = self._core.tool_events.popleft()
            if (runner := self._runners.get(request)) is not None:
                runner.take(event)
        while self._core.outgoing:
            self._opened().send(self._core.outgoing.popleft())
