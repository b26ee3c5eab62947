"""The blocking face of the client: the asynchronous one, on a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from typing import Any, Self, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from axon_zmq.client.aio import Agent, AsyncClient, RunStream
from axon_zmq.messages import Complete, Event

T = TypeVar("T")


class SyncRunStream:
    """One streamed run: an iterator of `Chunk`s that ends with a `Complete`; see `RunStream`."""

    def __init__(self, portal: BlockingPortal, stream: RunStream) -> None:
        self._portal = portal
        self._stream = stream

    @property
    def id(self) -> bytes:
        """The request's id, as in the daemon's logs."""
        return self._stream.id

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        try:
            return self._portal.call(self._stream.__anext__)
        except StopAsyncIteration:
            raise StopIteration from None

    def complete(self) -> Complete:
        """Read to the end; the `Complete` that ends it.

        Raises:
            AxonError: The run failed.
        """
        return self._portal.call(self._stream.complete)

    def cancel(self) -> None:
        """Ask the run to end; iterating on raises `cancelled` with what there was."""
        self._portal.call(self._stream.cancel)

    def close(self) -> None:
        """Cancel the run if it is open, and forget it."""
        self._portal.call(self._stream.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Client:
    """A connection to the daemon; usable from several threads at a time.

    Use it as `with Client() as client`. Arguments, methods and errors are those of `AsyncClient`.
    """

    def __init__(self, endpoint: str | None = None, *, identity: str | None = None) -> None:
        self._client = AsyncClient(endpoint, identity=identity)

    def __repr__(self) -> str:
        return f"<Client {self.endpoint}>"

    @property
    def endpoint(self) -> str:
        """The daemon's frontend."""
        return self._client.endpoint

    def __enter__(self) -> Self:
        self._opening: AbstractContextManager[BlockingPortal] = start_blocking_portal()
        self._portal = self._opening.__enter__()
        self._portal.call(self._client.__aenter__)
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self._portal.call(self._client.__aexit__, None, None, None)
        finally:
            self._portal.call(self._portal.stop, True)  # whoever was interrupted in a call waits there no longer
            self._opening.__exit__(None, None, None)

    def run(self, agent: Agent, prompt: Any = None, **options: Any) -> Complete:
        """Run an agent in mode `run` and wait for its answer; see `AsyncClient.run`."""
        return self._wait(lambda: self._client.run(agent, prompt, **options))

    def run_sync(self, agent: Agent, prompt: Any = None, **options: Any) -> Complete:
        """Run an agent in mode `run_sync` and wait for its answer; see `AsyncClient.run`."""
        return self._wait(lambda: self._client.run_sync(agent, prompt, **options))

    def stream(self, agent: Agent, prompt: Any = None, **options: Any) -> SyncRunStream:
        """Start an agent in mode `run_stream`; iterate over what this returns."""
        return SyncRunStream(self._portal, self._portal.call(lambda: self._client.stream(agent, prompt, **options)))

    def cancel(self, id: bytes | str) -> None:
        """Ask a run to end; whoever waits for it gets `cancelled`, with what there was."""
        self._wait(lambda: self._client.cancel(id))

    def describe(self, agent: str | None = None) -> dict[str, Any]:
        """The agents by name; see `AsyncClient.describe`."""
        return self._wait(lambda: self._client.describe(agent))

    def ping(self, timeout: float = 5.0) -> dict[str, Any]:
        """The `pong`; see `AsyncClient.ping`."""
        return self._wait(lambda: self._client.ping(timeout))

    def _wait(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        async def awaited() -> T:
            return await call()

        return self._portal.call(awaited)
