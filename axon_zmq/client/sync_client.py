"""The blocking client: an `AsyncClient` on an event loop in its own thread."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from contextlib import ExitStack
from typing import Any, Final, Self, TypeVar, Unpack

from anyio.from_thread import BlockingPortal, start_blocking_portal

from axon_zmq.client.async_client import AsyncClient, RunStream
from axon_zmq.client.options import Agent, CallOptions, Priority, Prompt, RunOptions
from axon_zmq.events import Complete, Event
from axon_zmq.protocol.kinds import Mode

T = TypeVar("T")
USAGE: Final = "use it as `with Client() as client`"


class _Bridge:
    """Runs an `AsyncClient` on an event loop in its own thread, and calls it from any thread.

    Args:
        client: The client, not connected yet.
    """

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._portal: BlockingPortal | None = None

    def __repr__(self) -> str:
        return f"<_Bridge to {self._client!r}, {'connected' if self.connected else 'not connected'}>"

    @property
    def connected(self) -> bool:
        return self._portal is not None

    def connect(self) -> None:
        if self._portal is not None:
            raise RuntimeError(f"this client is already connected: {USAGE}, and only once at a time")
        with ExitStack() as opening:  # it stops the portal's thread again if connecting fails
            portal = opening.enter_context(start_blocking_portal())
            portal.call(self._client.__aenter__)
            self._opening = opening.pop_all()
        self._portal = portal

    def close(self) -> None:
        portal = self._opened()
        try:
            portal.call(self._client.__aexit__, None, None, None)
        finally:
            self._portal = None
            # Tasks that remain are cancelled: a thread that was interrupted in a call (Ctrl-C) has left its coroutine
            # running, and the portal would wait for it.
            portal.call(portal.stop, True)
            self._opening.close()

    def call(self, call: Callable[[], Coroutine[object, None, T]]) -> T:
        return self._opened().call(call)

    def _opened(self) -> BlockingPortal:
        if self._portal is None:
            raise RuntimeError(f"this client is not connected: {USAGE}")
        return self._portal


class SyncRunStream:
    """Iterator over the events of one run; `Client.stream` returns it.

    It is the blocking counterpart of `RunStream`. Use it as a context manager: leaving it before the end, or calling
    `close`, cancels the run. Leaving a bare `for` loop does not.
    """

    def __init__(self, bridge: _Bridge, stream: RunStream) -> None:
        self._bridge = bridge
        self._stream = stream

    def __repr__(self) -> str:
        return f"<Sync{repr(self._stream)[1:]}"

    @property
    def id(self) -> bytes:
        """Request id, which the daemon's log lines also show."""
        return self._stream.id

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        try:
            return self._bridge.call(self._stream.__anext__)
        except StopAsyncIteration:
            raise StopIteration from None

    def complete(self) -> Complete:
        """Read the stream to its end and return the last event.

        Returns:
            The `Complete` of the run.

        Raises:
            AxonError: The run failed, or the stream has already been read to its end.
        """
        return self._bridge.call(self._stream.complete)

    def answer(self, call_id: str, result: object = None, *, content: object = None, metadata: object = None) -> bool:
        """Answer a `ToolCall` of this run with a result; see `AsyncClient.answer`."""
        return self._bridge.call(lambda: self._stream.answer(call_id, result, content=content, metadata=metadata))

    def fail(self, call_id: str, message: str, *, retry: bool = False) -> bool:
        """Answer a `ToolCall` of this run with an error; see `AsyncClient.fail`."""
        return self._bridge.call(lambda: self._stream.fail(call_id, message, retry=retry))

    def steer(self, content: object, priority: Priority = "asap") -> bool:
        """Send a user message to this run; see `AsyncClient.steer`."""
        return self._bridge.call(lambda: self._stream.steer(content, priority))

    def cancel(self) -> None:
        """Ask the daemon to end the run; see `AsyncClient.cancel`.

        Iteration then ends with a `RunEndedError` (`cancelled`) that has the partial answer, or with a `Complete` if
        the run completed first.
        """
        self._bridge.call(self._stream.cancel)

    def close(self) -> None:
        """Cancel the run if it has not ended, and drop its unread events.

        A thread that is waiting for an event gets a `RunEndedError` (`cancelled`).
        """
        if self._bridge.connected:  # otherwise the client was closed, which has cancelled the run
            self._bridge.call(self._stream.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Client:
    """Connection to a daemon, for blocking code; several threads may use it at a time.

    Use it as `with Client() as client`. Leaving the `with` block cancels the client's open runs. It has the same
    methods, options and errors as `AsyncClient`.

    Args:
        endpoint: Endpoint of the daemon's frontend. Default: the environment variable `AXON_FRONTEND`, or
            `tcp://127.0.0.1:5570`.
        identity: Routing id of the ZeroMQ socket; see `AsyncClient`. Default: random.

    Raises:
        ValueError: The endpoint or the identity is invalid.
    """

    def __init__(self, endpoint: str | None = None, *, identity: str | None = None) -> None:
        self._client = AsyncClient(endpoint, identity=identity)
        self._bridge = _Bridge(self._client)

    def __repr__(self) -> str:
        return f"<Client {self.endpoint}>"

    @property
    def endpoint(self) -> str:
        """Endpoint of the daemon's frontend."""
        return self._client.endpoint

    def __enter__(self) -> Self:
        self._bridge.connect()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bridge.close()

    def run(self, agent: Agent, prompt: Prompt | None = None, **options: Unpack[RunOptions]) -> Complete:
        """Run an agent in mode `run` and wait for its answer; see `AsyncClient.run`."""
        return self._bridge.call(lambda: self._client.run(agent, prompt, **options))

    def run_sync(self, agent: Agent, prompt: Prompt | None = None, **options: Unpack[RunOptions]) -> Complete:
        """Run an agent in mode `run_sync` and wait for its answer; see `AsyncClient.run`."""
        return self._bridge.call(lambda: self._client.run_sync(agent, prompt, **options))

    def stream(
        self,
        agent: Agent,
        prompt: Prompt | None = None,
        *,
        mode: Mode = "run_stream",
        **options: Unpack[RunOptions],
    ) -> SyncRunStream:
        """Start a run and return a stream of its events; see `AsyncClient.stream`."""

        async def start() -> RunStream:  # a coroutine, because the client must only be used on its own event loop
            return self._client.stream(agent, prompt, mode=mode, **options)

        return SyncRunStream(self._bridge, self._bridge.call(start))

    def call_tool(
        self, tool: str, args: Mapping[str, object] | None = None, **options: Unpack[CallOptions]
    ) -> Complete:
        """Call one Python tool of the daemon without a model, and wait for its result; see `AsyncClient.call_tool`."""
        return self._bridge.call(lambda: self._client.call_tool(tool, args, **options))

    def answer(
        self, id: bytes | str, call_id: str, result: object = None, *, content: object = None, metadata: object = None
    ) -> bool:
        """Answer a `ToolCall` with a result; see `AsyncClient.answer`."""
        return self._bridge.call(lambda: self._client.answer(id, call_id, result, content=content, metadata=metadata))

    def fail(self, id: bytes | str, call_id: str, message: str, *, retry: bool = False) -> bool:
        """Answer a `ToolCall` with an error; see `AsyncClient.fail`."""
        return self._bridge.call(lambda: self._client.fail(id, call_id, message, retry=retry))

    def steer(self, id: bytes | str, content: object, priority: Priority = "asap") -> bool:
        """Send a user message to a running agent; see `AsyncClient.steer`."""
        return self._bridge.call(lambda: self._client.steer(id, content, priority))

    def cancel(self, id: bytes | str) -> None:
        """Ask the daemon to end a run; see `AsyncClient.cancel`."""
        self._bridge.call(lambda: self._client.cancel(id))

    def describe(self, agent: str | None = None) -> dict[str, Any]:
        """Return a description of the registered agents; see `AsyncClient.describe`."""
        return self._bridge.call(lambda: self._client.describe(agent))

    def toolsets(self) -> dict[str, Any]:
        """Return a description of the registered toolsets; see `AsyncClient.toolsets`."""
        return self._bridge.call(self._client.toolsets)

    def ping(self, timeout: float = 5.0) -> dict[str, Any]:
        """Ask the broker for its version, limits and load; see `AsyncClient.ping`."""
        return self._bridge.call(lambda: self._client.ping(timeout))
