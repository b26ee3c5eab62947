"""The asyncio client: the ZeroMQ socket, timers and tasks around `ClientCore`."""

from __future__ import annotations

import asyncio
import logging
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

log = logging.getLogger("axon_zmq.client")

DEFAULT_ENDPOINT: Final = "tcp://127.0.0.1:5570"
MAX_IDENTITY_BYTES: Final = 200
"""Maximum length of a client's routing id in bytes; ZeroMQ accepts 255."""
USAGE: Final = "use it as `async with AsyncClient() as client`"
STREAM_CREDIT: Final = 1024
"""Default of the option `credit` for streams, in messages."""
CONNECT_TIMEOUT_S: Final = 3.0
"""Seconds after which a connection attempt is given up and the next one starts; the kernel alone would retry at growing
intervals."""
LINGER_MS: Final = 500
"""Maximum number of milliseconds that `close` waits for the last messages, such as `cancel`, to be sent."""
TICK_S: Final = 0.5
"""Seconds between two checks of the core's timers."""


class RunStream:
    """Asynchronous iterator over the events of one run; `AsyncClient.stream` returns it.

    The last event is a `Complete`. Events before it are `Accepted`, `Chunk`, `ToolCall`, `ToolCancelled`, `Log` and
    `Refused`. If the run fails, the iterator raises its `AxonError`.

    The client itself answers a `ToolCall` if the tool has a function; the application must answer any other with
    `answer` or `fail`.

    Use the stream as an asynchronous context manager: leaving it before the end, or calling `aclose`, cancels the run.
    Leaving a bare `async for` loop does not.
    """

    def __init__(self, client: AsyncClient, run: Run) -> None:
        self._client = client
        self._run = run

    def __repr__(self) -> str:
        return f"<RunStream {self._run!r}>"

    @property
    def id(self) -> bytes:
        """Request id, which the daemon's log lines also show."""
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
        """Read the stream to its end and return the last event.

        Returns:
            The `Complete` of the run.

        Raises:
            AxonError: The run failed, or the stream has already been read to its end.
        """
        async for event in self:
            if isinstance(event, Complete):
                return event
        raise RunEndedError("cancelled", "no more events: the stream has already been read to its end")

    async def answer(
        self, call_id: str, result: object = None, *, content: object = None, metadata: object = None
    ) -> bool:
        """Answer a `ToolCall` of this run with a result; see `AsyncClient.answer`."""
        return await self._client.answer(self.id, call_id, result, content=content, metadata=metadata)

    async def fail(self, call_id: str, message: str, *, retry: bool = False) -> bool:
        """Answer a `ToolCall` of this run with an error; see `AsyncClient.fail`."""
        return await self._client.fail(self.id, call_id, message, retry=retry)

    async def steer(self, content: object, priority: Priority = "asap") -> bool:
        """Send a user message to this run; see `AsyncClient.steer`."""
        return await self._client.steer(self.id, content, priority)

    async def cancel(self) -> None:
        """Ask the daemon to end the run; see `AsyncClient.cancel`.

        Iteration then ends with a `RunEndedError` (`cancelled`) that has the partial answer, or with a `Complete` if
        the run completed first.
        """
        await self._client.cancel(self.id)

    async def aclose(self) -> None:
        """Cancel the run if it has not ended, and drop its unread events.

        A task that is waiting for an event gets a `RunEndedError` (`cancelled`).
        """
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
        raise ValueError(f"invalid identity {identity!r}: expected 1 to {MAX_IDENTITY_BYTES} ASCII characters")
    return identity.encode("ascii")


class _Link:
    """Connected DEALER socket and its monitor socket, registered with the running event loop.

    If the constructor fails, it leaves no socket open.

    Args:
        endpoint: Endpoint of the daemon's frontend.
        identity: Routing id of the socket.
        received: Called with the frames of each message.
        connected: Called after each ZMTP handshake, so also after each reconnect.
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
            # A routing id that the ROUTER assigns would change with each reconnect, and the broker would not find the
            # client's runs.
            dealer.setsockopt(zmq.IDENTITY, identity)
            dealer.setsockopt(zmq.LINGER, LINGER_MS)
            _detect_dead_peer(dealer)
            # The monitor must exist before `connect`, or the first handshake could be missed.
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
        # `term` blocks for up to LINGER_MS, so it must not run on the event loop.
        await asyncio.get_running_loop().run_in_executor(None, self._context.term)


def _detect_dead_peer(dealer: zmq.Socket[bytes]) -> None:
    """Set the socket options that end a connection if the daemon's host no longer answers; ZeroMQ then reconnects.

    Without these options, TCP would retransmit at growing intervals for up to 15 minutes.
    """
    # TCP_MAXRT (TCP_USER_TIMEOUT on Linux) only counts while sent data is unacknowledged. While requests are open, that
    # is the case after SILENCE_TIMEOUT_S at the latest, because the core then sends a `ping`. The broker does not use
    # this option for its clients: it would also close connections of clients that are alive but read nothing.
    dealer.setsockopt(zmq.TCP_MAXRT, int(limits.DEAD_HOST * 1000))
    dealer.setsockopt(zmq.CONNECT_TIMEOUT, int(CONNECT_TIMEOUT_S * 1000))
    # An idle connection has no unacknowledged data; keepalive probes it: 15 s + 3 * 5 s = 30 s.
    dealer.setsockopt(zmq.TCP_KEEPALIVE, 1)
    dealer.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 15)
    dealer.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 5)
    dealer.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)


class AsyncClient:
    """Connection to a daemon, for asyncio.

    Use it as `async with AsyncClient() as client`. A client can have any number of open requests at a time. It
    reconnects by itself, resumes its runs, and executes the functions that it was given as tools.

    A client belongs to the event loop in which it was entered. Leaving the `async with` block cancels its open runs.

    Args:
        endpoint: Endpoint of the daemon's frontend. Default: the environment variable `AXON_FRONTEND`, or
            `tcp://127.0.0.1:5570`.
        identity: Routing id of the ZeroMQ socket: 1 to 200 ASCII characters. No two connected clients may have the same
            identity. A client with the identity of an earlier process can continue runs which that process started with
            `on_disconnect="keep"`: repeat the request with the same option `id`. Default: random.

    Raises:
        ValueError: The endpoint or the identity is invalid.
    """

    def __init__(self, endpoint: str | None = None, *, identity: str | None = None) -> None:
        self.endpoint = _endpoint(endpoint)
        """Endpoint of the daemon's frontend."""
        self._identity = _identity(identity)
        self._core = ClientCore()
        self._link: _Link | None = None
        self._news: dict[Run, asyncio.Event] = {}
        """Events that are set when a run has a new item, by run; only for runs whose reader has waited."""
        self._runners: dict[Run, ToolRunner] = {}
        """Executors of tool functions, by run."""

    def __repr__(self) -> str:
        return f"<AsyncClient {self.endpoint} {self._core!r}>"

    async def __aenter__(self) -> Self:
        if self._link is not None:
            raise RuntimeError(f"this client is already connected: {USAGE}, and only once at a time")
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
        self._flush()  # sends a `cancel` for each open run
        self._ticking.cancel()
        self._link = None
        await link.close()

    # --- public methods ----------------------------------------------------------------------------

    async def run(self, agent: Agent, prompt: Prompt | None = None, **options: Unpack[RunOptions]) -> Complete:
        """Run an agent in mode `run` and wait for its answer.

        A worker of this mode executes many runs on one event loop (`await Agent.run`).

        Args:
            agent: Name of a registered agent, or an agent as data, such as `{"model": …, "instructions": …}`.
            prompt: Text, a list of parts, or None to continue from the option `message_history`. Default: None.
            options: See `RunOptions`. Every live tool must have a function.

        Returns:
            The `Complete` of the run.

        Raises:
            AxonError: The run failed; `error_type` is the reason.
            TypeError: An option is unknown, an entry of the option `tools` is not a valid tool, or a live tool has no
                function.
            ValueError: The option `credit` is less than 1.
        """
        return await self._complete("run", agent, prompt, options)

    async def run_sync(self, agent: Agent, prompt: Prompt | None = None, **options: Unpack[RunOptions]) -> Complete:
        """Run an agent in mode `run_sync` and wait for its answer.

        A worker of this mode executes each run in its own thread (`Agent.run_sync`), for agents with blocking code.
        It has the same arguments, result and errors as `run`.
        """
        return await self._complete("run_sync", agent, prompt, options)

    def stream(
        self,
        agent: Agent,
        prompt: Prompt | None = None,
        *,
        mode: Mode = "run_stream",
        **options: Unpack[RunOptions],
    ) -> RunStream:
        """Start a run and return a stream of its events. This method is not a coroutine.

        Args:
            agent: See `run`.
            prompt: See `run`.
            mode: Execution mode: `run_stream`, `run` or `run_sync`. In the latter two, the stream has no `Chunk`, but
                all other events. Default: `run_stream`.
            options: See `RunOptions`. A live tool may also be a map without a function; the application then answers
                its calls with `answer` or `fail`.

        Returns:
            An asynchronous iterator of events.

        Raises:
            RequestError: `too_large`: the request exceeds the daemon's limit; or `invalid_request`: the option `id` is
                invalid or belongs to an open request.
            TypeError: An option is unknown, or an entry of the option `tools` is not a valid tool.
            ValueError: The option `credit` is less than 1.
        """
        options.setdefault("credit", STREAM_CREDIT)
        return RunStream(self, self._start(mode, agent, prompt, options, _box(options)))

    async def call_tool(
        self, tool: str, args: Mapping[str, object] | None = None, **options: Unpack[CallOptions]
    ) -> Complete:
        """Call one Python tool of the daemon without a model, and wait for its result.

        Args:
            tool: Name of the tool.
            args: Arguments of the tool by name. Default: none.
            options: See `CallOptions`.

        Returns:
            A `Complete`, whose `result` is the tool's return value.

        Raises:
            AxonError: The call failed, for example with `unknown_tool` or `tool_failed`.
            TypeError: An option is unknown.
        """
        self._opened()
        return await self._read(self._core.call_tool(tool, args or {}, options, time.monotonic()))

    async def answer(
        self, id: bytes | str, call_id: str, result: object = None, *, content: object = None, metadata: object = None
    ) -> bool:
        """Answer a `ToolCall` with a result.

        If the daemon refuses the answer, for example because it does not fit the tool's schema, the run's stream yields
        a `Refused`, and the call stays open.

        Args:
            id: Request id of the run.
            call_id: Id of the call.
            result: Result for the model: a value of any type that pydantic can serialize. Default: None.
            content: Further content for the model: text, or a list of parts as in a prompt. Default: none.
            metadata: Data that only the application sees, in the messages of the run. Default: none.

        Returns:
            True if the answer was sent; False if the run has ended, and the answer was dropped.

        Raises:
            RequestError: `too_large`: the answer exceeds the daemon's limit.
            ValueError: A value cannot be sent as msgpack.
        """
        return self._send_answer(_bytes(id), call_id, answer(result, content, metadata))

    async def fail(self, id: bytes | str, call_id: str, message: str, *, retry: bool = False) -> bool:
        """Answer a `ToolCall` with an error.

        Args:
            id: Request id of the run.
            call_id: Id of the call.
            message: Description of the error, for the model.
            retry: Whether the model may call the tool again with other arguments; otherwise the call counts as failed.
                Default: False.

        Returns:
            True if the answer was sent; False if the run has ended, and the answer was dropped.

        Raises:
            RequestError: `too_large`: the answer exceeds the daemon's limit.
        """
        return self._send_answer(_bytes(id), call_id, fault(message, retry))

    async def steer(self, id: bytes | str, content: object, priority: Priority = "asap") -> bool:
        """Send a user message to a running agent.

        If the message reaches the daemon too late, the run's stream yields a `Refused`.

        Args:
            id: Request id of the run.
            content: Text, or a list of parts as in a prompt.
            priority: `asap`: the model gets the message with its next request. `when_idle`: the model gets it only when
                the run would otherwise end. Default: `asap`.

        Returns:
            True if the message was sent; False if the run has ended, and the message was dropped.

        Raises:
            RequestError: `too_large`: the message exceeds the daemon's limit.
            ValueError: The content cannot be sent as msgpack.
        """
        self._opened()
        sent = self._core.steer(_bytes(id), to_plain(content), priority)
        self._flush()
        return sent

    async def cancel(self, id: bytes | str) -> None:
        """Ask the daemon to end a run.

        The run's reader gets a `RunEndedError` (`cancelled`) whose `details["partial"]` is the partial answer, or a
        `Complete` if the run completed first. A run that has ended is not affected.

        Args:
            id: Request id of the run.
        """
        self._opened()
        self._core.cancel(_bytes(id))
        self._flush()

    async def describe(self, agent: str | None = None) -> dict[str, Any]:
        """Return a description of the registered agents.

        Args:
            agent: Name of one agent. Default: all agents.

        Returns:
            A map from the name of each agent to its `description`, `modes`, `tools`, `output_schema` and `deps_schema`,
            or to its `error` if it could not be loaded.

        Raises:
            AxonError: `unknown_agent`: no such agent is registered; or `no_worker`: no worker is available.
        """
        return (await self._catalog(agent)).agents

    async def toolsets(self) -> dict[str, Any]:
        """Return a description of the registered toolsets, which agents as data may use.

        Returns:
            A map from the name of each toolset to its `tools`, or to its `error` if it could not be loaded.

        Raises:
            AxonError: `no_worker`: no worker is available.
        """
        return (await self._catalog(None)).toolsets

    async def _catalog(self, agent: str | None) -> Catalog:
        self._opened()
        item = await self._reply(self._core.describe(agent, time.monotonic()))
        assert isinstance(item, Catalog)
        return item

    async def ping(self, timeout: float = 5.0) -> dict[str, Any]:  # noqa: ASYNC109 -- a timeout raises our own error
        """Ask the broker for its version, its limits, and the workers and queue of each mode.

        Args:
            timeout: Seconds to wait for the answer. Default: 5.

        Returns:
            The body of the protocol's `pong` message.

        Raises:
            UnavailableError: `unreachable`: no daemon answered within `timeout` seconds.
        """
        self._opened()
        run = self._core.ping(time.monotonic(), timeout)
        try:
            item = await asyncio.wait_for(self._reply(run), timeout)
        except (TimeoutError, RunEndedError) as fault:
            if isinstance(fault, RunEndedError) and fault.error_type != "deadline_exceeded":
                raise
            raise UnavailableError(
                "unreachable", f"no daemon answered at {self.endpoint} within {timeout:g} s", retryable=True
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
                f"live tool {names[0]!r} has no function, so its calls would stay unanswered: "
                'pass a function, set "mode": "deferred", or use stream() and answer()'
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
        """Return the reply to a `describe` or `ping`.

        Raises:
            AxonError: The request failed.
        """
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
        was_shared = self._core.shared
        if (run := self._core.receive(frames, time.monotonic())) is not None:
            self._notify(run)
        if self._core.shared and not was_shared:
            log.warning(
                "another process uses the identity %s, and only one of the two receives messages; "
                "give each process its own random identity",
                self._identity.decode("ascii"),
            )
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
        """Pass the core's tool events to the runners, and send its messages."""
        while self._core.tool_events:
            run, event = self._core.tool_events.popleft()
            if (runner := self._runners.get(run)) is not None:
                runner.take(event)
        while self._core.outgoing:
            self._opened().send(self._core.outgoing.popleft())
