"""The asyncio client: sockets and tasks around `ClientCore`."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, Unpack

import zmq

from axon_zmq.client.core import ClientCore, Item, Run
from axon_zmq.client.messages import Catalog, Pong
from axon_zmq.client.options import Agent, CallOptions, Priority, Prompt, RunOptions
from axon_zmq.client.tool_functions import Toolbox, ToolResultBody, answer, fault, to_plain, toolbox
from axon_zmq.client.tool_runner import MAX_TOOL_THREADS, ToolRunner, ToolThreads
from axon_zmq.errors import AxonError, ConfigurationError, RunEndedError, UnavailableError
from axon_zmq.events import Complete, Event
from axon_zmq.net import endpoints
from axon_zmq.net.loop_socket import LoopSocket
from axon_zmq.protocol import limits
from axon_zmq.protocol.kinds import Mode

DEFAULT_ENDPOINT: Final = "tcp://127.0.0.1:5570"
MAX_IDENTITY_BYTES: Final = 200
"""Bytes of a client's routing id; ZeroMQ accepts 255."""
USAGE: Final = "use it as `async with AsyncClient() as client`"
STREAM_CREDIT: Final = 1024
"""Default of `credit` for streams: messages that may be in flight to the reader."""
CONNECT_TIMEOUT_S: Final = 3.0
"""Seconds after which a connection attempt is replaced by the next; TCP alone retries at growing intervals."""
LINGER_MS: Final = 500
"""Milliseconds for which closing waits until the last messages have been sent."""
TICK_S: Final = 0.5
"""Seconds between two checks for overdue requests."""


class RunStream:
    """One run: an asynchronous iterator of events that ends with a `Complete`.

    Before the `Complete` it yields `Chunk`s, `ToolCall`s, `ToolCancelled`s, `Log`s and `Refused`s. A `ToolCall`
    of a tool with a function is answered by the client; the application answers others with `answer` or `fail`.
    Leaving the stream early (`async with`, or `aclose`) cancels the run. A failed run raises its `AxonError`.
    """

    def __init__(self, client: AsyncClient, run: Run) -> None:
        self._client = client
        self._run = run

    def __repr__(self) -> str:
        return f"<RunStream {self._run!r}>"

    @property
    def id(self) -> bytes:
        """The request's id, as in the daemon's logs."""
        return self._run.id

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        item = await self._client._next(self._run)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        if isinstance(item, AxonError):
            raise item
        assert not isinstance(item, Catalog | Pong)  # only `describe` and `ping` are answered with these
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

    async def answer(
        self, call_id: str, result: object = None, *, content: object = None, metadata: object = None
    ) -> bool:
        """Answer a `ToolCall`; see `AsyncClient.answer`."""
        return await self._client.answer(self.id, call_id, result, content=content, metadata=metadata)

    async def fail(self, call_id: str, message: str, *, retry: bool = False) -> bool:
        """Answer a `ToolCall` with an error; see `AsyncClient.fail`."""
        return await self._client.fail(self.id, call_id, message, retry=retry)

    async def steer(self, content: object, priority: Priority = "asap") -> bool:
        """Send a user message to the run; see `AsyncClient.steer`."""
        return await self._client.steer(self.id, content, priority)

    async def cancel(self) -> None:
        """Ask the run to end; further iteration raises `cancelled` with the partial answer."""
        await self._client.cancel(self.id)

    async def aclose(self) -> None:
        """Cancel the run if it is open, and forget it; a task that is reading it gets `cancelled`."""
        self._client._abandon(self._run)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]

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


def _box(options: RunOptions) -> Toolbox | None:
    tools = options.get("tools")
    return None if tools is None else toolbox(tools)


def _identity(given: str | None) -> bytes:
    identity = f"py-{secrets.token_hex(8)}" if given is None else given
    if not identity.isascii() or not 1 <= len(identity) <= MAX_IDENTITY_BYTES:
        raise ValueError(f"invalid identity {identity!r}: write 1 to {MAX_IDENTITY_BYTES} ASCII characters, or omit it")
    return identity.encode("ascii")


class _Link:
    """A connected DEALER and its monitor on the running loop; a failed constructor leaves no socket behind.

    Args:
        endpoint: The daemon's frontend.
        identity: The routing id.
        received: Called with the frames of each message.
        connected: Called after each handshake.
    """

    def __init__(
        self,
        *,
        endpoint: str,
        identity: bytes,
        received: Callable[[list[bytes]], None],
        connected: Callable[[list[bytes]], None],
    ) -> None:
        self._endpoint = endpoint
        self._context = zmq.Context()
        try:
            dealer = self._dealer = self._context.socket(zmq.DEALER)
            # Set explicitly, so that the broker recognises the client after a reconnect.
            dealer.setsockopt(zmq.IDENTITY, identity)
            dealer.setsockopt(zmq.LINGER, LINGER_MS)
            _detect_dead_peer(dealer)
            monitor = dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
            dealer.connect(endpoint)
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self._monitor = LoopSocket(monitor, connected)
        self._socket = LoopSocket(dealer, received)
        self.send = self._socket.send

    def __repr__(self) -> str:
        return f"<_Link to {self._endpoint}>"

    async def close(self) -> None:
        self._dealer.disable_monitor()
        self._monitor.close()
        self._socket.close()
        await asyncio.get_running_loop().run_in_executor(None, self._context.term)


def _detect_dead_peer(dealer: zmq.Socket[bytes]) -> None:
    """Reconnect if the daemon's host stops answering: TCP alone may wait as long again after a network cut.

    While requests are open there is unanswered data after `SILENCE_TIMEOUT_S` at the latest: a `ping`.
    """
    dealer.setsockopt(zmq.TCP_MAXRT, int(limits.DEAD_HOST * 1000))
    dealer.setsockopt(zmq.CONNECT_TIMEOUT, int(CONNECT_TIMEOUT_S * 1000))
    dealer.setsockopt(zmq.TCP_KEEPALIVE, 1)
    dealer.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 15)
    dealer.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 5)
    dealer.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)


class AsyncClient:
    """A connection to the daemon, for asyncio.

    Use it as `async with AsyncClient() as client`. One client serves any number of requests at a time.

    Args:
        endpoint: The daemon's frontend. Default: `AXON_FRONTEND`, or tcp://127.0.0.1:5570.
        identity: The routing id of the DEALER socket: ASCII, at most 200 bytes, unique among processes. Default:
            random. With a stable one, runs started with `on_disconnect="keep"` can be resumed.

    Raises:
        ValueError: The endpoint or the identity is invalid.
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
        self._link = _Link(
            endpoint=self.endpoint, identity=self._identity, received=self._received, connected=self._connected
        )
        self._threads = ToolThreads(MAX_TOOL_THREADS)
        self._ticking = asyncio.create_task(self._tick())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        link = self._opened()
        for run in self._core.close():
            self._notify(run)
        self._flush()
        self._ticking.cancel()
        self._link = None
        await link.close()

    # --- public methods ----------------------------------------------------------------------------

    async def run(self, agent: Agent, prompt: Prompt | None = None, **options: Unpack[RunOptions]) -> Complete:
        """Run an agent in mode `run` (`await Agent.run`) and wait for its answer.

        Args:
            agent: A registered name, or an agent as data.
            prompt: Text, a list of parts, or None to continue from `message_history`.
            options: See `RunOptions`. A live tool must have a function.

        Raises:
            AxonError: The run failed; `error_type` says how.
            TypeError: An option is unknown, or a live tool has no function.
        """
        return await self._complete("run", agent, prompt, options)

    async def run_sync(self, agent: Agent, prompt: Prompt | None = None, **options: Unpack[RunOptions]) -> Complete:
        """Run an agent in mode `run_sync` (`Agent.run_sync` in its own thread); see `run`."""
        return await self._complete("run_sync", agent, prompt, options)

    def stream(
        self,
        agent: Agent,
        prompt: Prompt | None = None,
        *,
        mode: Mode = "run_stream",
        **options: Unpack[RunOptions],
    ) -> RunStream:
        """Start an agent and return its stream of events.

        Args:
            agent: See `run`.
            prompt: See `run`.
            mode: `run` and `run_sync` yield no chunks, but tool calls and logs.
            options: See `RunOptions`. A live tool may be a map without a function: answer its calls yourself.

        Raises:
            TypeError: An option is unknown.
        """
        options.setdefault("credit", STREAM_CREDIT)
        return RunStream(self, self._start(mode, agent, prompt, options, _box(options)))

    async def call_tool(
        self, tool: str, args: Mapping[str, object] | None = None, **options: Unpack[CallOptions]
    ) -> Complete:
        """Call one Python tool of the daemon, without a model; the `result` is the tool's.

        Args:
            tool: Its name.
            args: Its arguments by name.
            options: See `CallOptions`.

        Raises:
            AxonError: `unknown_tool`, `tool_failed` or another.
            TypeError: An option is unknown.
        """
        self._opened()
        return await self._read(self._core.call_tool(tool, args or {}, options, time.monotonic()))

    async def answer(
        self, id: bytes | str, call_id: str, result: object = None, *, content: object = None, metadata: object = None
    ) -> bool:
        """Answer a `ToolCall` of a run that this client reads.

        Args:
            id: Id of the run.
            call_id: Id of the call.
            result: A value of any type that pydantic can dump.
            content: More for the model, in addition to the result: text, or a list of parts as in a prompt.
            metadata: For the application only: it is returned in the run's messages.

        Returns:
            Whether the run was still open; a late answer is dropped. If the daemon refuses an answer, the run
            yields a `Refused`.

        Raises:
            RequestError: `too_large`.
        """
        return self._send_answer(_bytes(id), call_id, answer(result, content, metadata))

    async def fail(self, id: bytes | str, call_id: str, message: str, *, retry: bool = False) -> bool:
        """Answer a `ToolCall` with an error; with `retry` the model may try again. See `answer`."""
        return self._send_answer(_bytes(id), call_id, fault(message, retry))

    async def steer(self, id: bytes | str, content: object, priority: Priority = "asap") -> bool:
        """Send a user message to a run under way: text, or a list of parts as in a prompt.

        Returns:
            Whether the run was still open here. If it arrives too late at the daemon, the run yields a `Refused`.
        """
        self._opened()
        sent = self._core.steer(_bytes(id), to_plain(content), priority)
        self._flush()
        return sent

    async def cancel(self, id: bytes | str) -> None:
        """Ask a run to end; its reader gets `cancelled`, with the partial answer."""
        self._opened()
        self._core.cancel(_bytes(id))
        self._flush()

    async def describe(self, agent: str | None = None) -> dict[str, Any]:
        """The agents by name: description, modes, tools and schemas, or `error` for an agent that could not be loaded.

        Raises:
            AxonError: `unknown_agent`, `no_worker`.
        """
        return (await self._catalog(agent)).agents

    async def toolsets(self) -> dict[str, Any]:
        """The toolsets that agents as data may name: the tools of each, or `error` for one that could not be loaded.

        Raises:
            AxonError: `no_worker`.
        """
        return (await self._catalog(None)).toolsets

    async def _catalog(self, agent: str | None) -> Catalog:
        self._opened()
        item = await self._reply(self._core.describe(agent, time.monotonic()))
        assert isinstance(item, Catalog)
        return item

    async def ping(self, timeout: float = 5.0) -> dict[str, Any]:  # noqa: ASYNC109 -- the error that follows is ours
        """The `pong`: version, limits, workers and queue of each mode.

        Raises:
            UnavailableError: Nobody answered within `timeout` seconds.
        """
        self._opened()
        run = self._core.ping(time.monotonic(), timeout)
        try:
            item = await asyncio.wait_for(self._reply(run), timeout)
        except (TimeoutError, RunEndedError) as fault:
            if isinstance(fault, RunEndedError) and fault.error_type != "deadline_exceeded":
                raise
            raise UnavailableError(
                "unreachable", f"no daemon answers at {self.endpoint} within {timeout:g} s", retryable=True
            ) from None
        assert isinstance(item, Pong)
        return item.body

    # --- internals ---------------------------------------------------------------------------------

    def _opened(self) -> _Link:
        if self._link is None:
            raise RuntimeError(f"this client is not connected: {USAGE}")
        return self._link

    def _start(self, mode: Mode, agent: Agent, prompt: Prompt | None, options: RunOptions, box: Toolbox | None) -> Run:
        self._opened()
        if box is not None:
            options = {**options, "tools": box.definitions}
        run = self._core.run(mode, agent, prompt, options, time.monotonic())
        if box is not None and box.functions:
            self._runners[run] = ToolRunner(box.functions, partial(self._send_answer, run.id), self._threads)
        self._flush()
        return run

    async def _complete(self, mode: Mode, agent: Agent, prompt: Prompt | None, options: RunOptions) -> Complete:
        box = _box(options)
        if box is not None and (names := box.unanswered):
            raise TypeError(
                f"tool {names[0]!r} is live and has no function: nobody would answer it. "
                'Give a function, or "mode": "deferred", or use stream() and answer()'
            )
        return await self._read(self._start(mode, agent, prompt, options, box))

    async def _read(self, run: Run) -> Complete:
        self._flush()
        async with RunStream(self, run) as stream:
            return await stream.complete()

    def _send_answer(self, id: bytes, call_id: str, body: ToolResultBody) -> bool:
        self._opened()
        sent = self._core.answer(id, call_id, body)
        self._flush()
        return sent

    async def _reply(self, run: Run) -> Item:
        """The only item of a `describe` or `ping`."""
        self._flush()
        try:
            item = await self._next(run)
        finally:
            self._abandon(run)
        if isinstance(item, AxonError):
            raise item
        return item

    async def _next(self, run: Run) -> Item:
        while not run.inbox:
            if run.ended:
                raise StopAsyncIteration
            news = self._news.setdefault(run, asyncio.Event())
            news.clear()
            await news.wait()
        if run.ended:
            self._news.pop(run, None)
        item = run.inbox.popleft()
        if not isinstance(item, AxonError | Catalog | Pong):
            self._core.acknowledge(run, item)
            self._flush()
        return item

    def _abandon(self, run: Run) -> None:
        self._core.abandon(run)
        self._notify(run)
        self._news.pop(run, None)
        self._flush()

    def _received(self, frames: list[bytes]) -> None:
        if (run := self._core.receive(frames, time.monotonic())) is not None:
            self._notify(run)
        self._flush()

    def _connected(self, _frames: list[bytes]) -> None:
        self._core.connected(time.monotonic())
        self._flush()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            for run in self._core.tick(time.monotonic()):
                self._notify(run)
            self._flush()

    def _notify(self, run: Run) -> None:
        if (news := self._news.get(run)) is not None:
            news.set()
        if run.ended and (runner := self._runners.pop(run, None)) is not None:
            runner.close()

    def _flush(self) -> None:
        while self._core.tool_events:
            run, event = self._core.tool_events.popleft()
            if (runner := self._runners.get(run)) is not None:
                runner.take(event)
        while self._core.outgoing:
            self._opened().send(self._core.outgoing.popleft())
