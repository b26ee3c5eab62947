"""The asynchronous face of the client."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self

import zmq

from axon_zmq.client.core import ClientCore, Request
from axon_zmq.errors import AxonError, RunEndedError, UnavailableError
from axon_zmq.loopsocket import LoopSocket
from axon_zmq.messages import Complete, Event

DEFAULT_ENDPOINT: Final = "tcp://127.0.0.1:5570"
MAX_IDENTITY: Final = 200
"""Bytes of a client's identity; ZeroMQ takes 255."""
USAGE: Final = "use it as `async with AsyncClient() as client`"
TICK: Final = 0.5
"""Seconds between two looks at what is overdue."""
Agent = str | Mapping[str, Any]
"""A registered agent's name, or an agent as data: `{"model": …, "instructions": …}`."""


class RunStream:
    """One streamed run: an asynchronous iterator of `Chunk`s that ends with a `Complete`.

    Leaving it early (`async with`, or `aclose`) cancels the run. A failed run raises its `AxonError`.
    """

    def __init__(self, client: AsyncClient, request: Request) -> None:
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
    endpoint = given or os.environ.get("AXON_FRONTEND") or DEFAULT_ENDPOINT
    if "://" not in endpoint:
        raise ValueError(f"{endpoint!r} is no endpoint: write {DEFAULT_ENDPOINT} or ipc://path")
    return endpoint


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
        self._news: dict[Request, asyncio.Event] = {}

    def __repr__(self) -> str:
        return f"<AsyncClient {self.endpoint} {self._core!r}>"

    async def __aenter__(self) -> Self:
        if self._link is not None:
            raise RuntimeError(f"this client is entered already: {USAGE}, once")
        self._link = _Link(self.endpoint, self._identity, self._received, self._connected)
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
                `message_history`, `output_schema`, `output_mode`, `deps`, `model`, `model_settings`,
                `usage_limits`, `retries`, `metadata`.

        Raises:
            AxonError: The run failed; `error_type` says how.
        """
        return await self._whole("run", agent, prompt, options)

    async def run_sync(self, agent: Agent, prompt: Any = None, **options: Any) -> Complete:
        """Run an agent in mode `run_sync` (`Agent.run_sync`, a thread of its own); see `run`."""
        return await self._whole("run_sync", agent, prompt, options)

    def stream(self, agent: Agent, prompt: Any = None, **options: Any) -> RunStream:
        """Start an agent in mode `run_stream`; iterate over what this returns. See `run`; also `events`."""
        return RunStream(self, self._start("run_stream", agent, prompt, options))

    async def cancel(self, id: bytes | str) -> None:
        """Ask a run to end; whoever waits for it gets `cancelled`, with what there was."""
        self._opened()
        self._core.cancel(id.encode() if isinstance(id, str) else id)
        self._flush()

    async def describe(self, agent: str | None = None) -> dict[str, Any]:
        """The agents by name: description, modes, tools, schemas; `error` for one that is broken.

        Raises:
            AxonError: `unknown_agent`, `no_worker`.
        """
        self._opened()
        request = self._core.describe(agent, time.monotonic())
        return (await self._answer(request))["agents"]

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

    def _start(self, kind: str, agent: Agent, prompt: Any, options: Mapping[str, Any]) -> Request:
        self._opened()
        request = self._core.run(kind, agent, prompt, options, time.monotonic())
        self._flush()
        return request

    async def _whole(self, kind: str, agent: Agent, prompt: Any, options: Mapping[str, Any]) -> Complete:
        async with RunStream(self, self._start(kind, agent, prompt, options)) as stream:
            return await stream.complete()

    async def _answer(self, request: Request) -> dict[str, Any]:
        self._flush()
        try:
            item = await self._next(request)
        finally:
            self._abandon(request)
        if isinstance(item, AxonError):
            raise item
        assert isinstance(item, dict)
        return item

    async def _next(self, request: Request) -> Event | AxonError | dict[str, Any]:
        while not request.inbox:
            if request.ended:
                raise StopAsyncIteration
            news = self._news.setdefault(request, asyncio.Event())
            news.clear()
            await news.wait()
        if request.ended:
            self._news.pop(request, None)
        return request.inbox.popleft()

    def _abandon(self, request: Request) -> None:
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

    def _tell(self, request: Request) -> None:
        if (news := self._news.get(request)) is not None:
            news.set()

    def _flush(self) -> None:
        while self._core.outgoing:
            self._opened().send(self._core.outgoing.popleft())
