"""MCP servers that stay open between runs: started at their first use, once for each event loop.

It needs the extra `mcp`, and takes 0.8 s and 46 MB to import: nothing imports it where no server is configured.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import shutil
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import Context
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from anyio.abc import ObjectReceiveStream
from fastmcp.client.transports.base import ClientTransport, SessionKwargs, TransportOptions
from mcp import ClientSession, MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.shared.message import SessionMessage
from mcp.types import CONNECTION_CLOSED
from pydantic_ai import ModelRetry, RunContext
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.toolsets import AbstractToolset, ToolsetTool
from typing_extensions import Unpack

from axon_zmq.errors import AxonError, ConfigurationError
from axon_zmq.process import lifeline
from axon_zmq.settings import McpServer
from axon_zmq.worker.adapter import compat

if TYPE_CHECKING:
    from mcp.shared._stream_protocols import ReadStream

log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_RESTART_DELAY_S: Final = 60.0
"""Seconds after a start that failed until the next; the first time one, then twice as long each time."""
SERVER_CLOSE_TIMEOUT_S: Final = 5.0
"""Seconds that a server has to end: 2 after the end of its input, 2 after SIGTERM, and then it is killed."""
_START_POLL_S: Final = 0.5
_FORGOTTEN_SESSION_TEXTS: Final = ("Session not found", "Session terminated")
"""How servers made with the SDKs say so, and how the client puts a bare HTTP 404."""
_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_]\w*)\}")
_MAX_FAULT_CHARS: Final = 500

for _chatty in ("mcp", "fastmcp"):
    # Their lines hold what servers said, and addresses; fastmcp's go past the one format of all lines.
    logging.getLogger(_chatty).handlers.clear()
    logging.getLogger(_chatty).setLevel(logging.CRITICAL)


class ServerToolset(AbstractToolset[object]):
    """The tools of one MCP server.

    Entering and leaving it does nothing: the server is started when it is first asked, is shared by all
    runs of the loop, and started again when it has gone.

    Args:
        name: The toolset's.
        configured: Its table in `axon.toml`.
        environment: Where `${NAME}` is looked up.

    Raises:
        ConfigurationError: A variable is not set, or there is no such command or directory.
    """

    def __init__(self, name: str, configured: McpServer, environment: Mapping[str, str] = os.environ) -> None:
        self._name = name
        self._server, self._secrets = filled(name, configured, environment)
        if self._server.command is not None:
            _check_command(name, configured, self._server)
        self._connection: _Connection | None = None
        self._failures = 0
        self._failure = ""
        self._rests_until = 0.0

    def __repr__(self) -> str:
        state = "closed" if self._connection is None or self._connection.over else "open"
        return f"<ServerToolset {self._name} {state}>"

    @property
    def id(self) -> str:
        """The toolset's name."""
        return self._name

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop that the server's connection belongs to, once it was used."""
        return None if self._connection is None else self._connection.loop

    async def get_tools(self, ctx: RunContext[object]) -> dict[str, ToolsetTool[object]]:
        """The server's tools; asked once, and again after it said that they changed.

        Raises:
            AxonError: `tool_failed`.
        """
        try:
            tools = await self._use(lambda toolset: toolset.get_tools(ctx))
        except AxonError:
            raise
        except Exception as error:
            raise self._tool_failed(f"its MCP server {self._fault(error)} when asked for its tools") from error
        return {name: replace(tool, toolset=self) for name, tool in tools.items()}

    async def call_tool(
        self, name: str, tool_args: dict[str, object], ctx: RunContext[object], tool: ToolsetTool[object]
    ) -> Any:
        """Call a tool once, whatever happens meanwhile.

        Raises:
            ModelRetry: The server said that the call failed, as for wrong arguments.
            AxonError: `tool_failed`: the server cannot be started, or went away.
        """
        try:
            return await self._use(lambda toolset: toolset.call_tool(name, tool_args, ctx, tool))
        except AxonError:
            raise
        except Exception as error:
            if isinstance(error, ModelRetry) and not _is_lost(error):
                raise
            message = f"its MCP server {self._fault(error)} during {name!r}, which may have been done"
            raise self._tool_failed(message) from error

    async def _use(self, use: Callable[[MCPToolset[object]], Awaitable[T]]) -> T:
        """Use the server, once; a session that it has forgotten was not used at all."""
        connection = await self._open()
        try:
            return await use(connection.toolset)
        except Exception as error:
            if not _is_forgotten(error):
                raise
        await connection.close()
        return await use((await self._open()).toolset)

    async def aclose(self) -> None:
        """Stop the server; on the loop that it was used on."""
        if self._connection is not None:
            await self._connection.close()

    async def _open(self) -> _Connection:
        connection = self._connection
        if connection is None or connection.over:
            if time.monotonic() < self._rests_until:
                raise self._tool_failed(f"{self._failure}; it is tried again in a while")
            connection = self._connection = _Connection(self._name, self._server)
        if not connection.opened.done():
            await self._await_start(connection)
        return connection

    async def _await_start(self, connection: _Connection) -> None:
        error = await asyncio.shield(connection.opened)
        if error is None:
            self._failures = 0
            return
        if self._connection is connection:
            await self._give_up(connection, f"its MCP server {self._explained(error)}")
        raise self._tool_failed(self._failure) from error

    async def _give_up(self, connection: _Connection, failure: str) -> None:
        """End what could not be started, and let a while go by before the next start."""
        log.error("toolset %r: %s", self._name, failure)
        self._connection = None
        self._failure = failure
        self._rests_until = math.inf
        try:
            await connection.close()
        finally:
            self._rests_until = time.monotonic() + min(2.0**self._failures, MAX_RESTART_DELAY_S)
            self._failures += 1

    def _tool_failed(self, message: str) -> AxonError:
        return AxonError.of("tool_failed", f"toolset {self._name!r}: {message}", {"toolset": self._name})

    @staticmethod
    def _fault(error: Exception) -> str:
        return "went away" if _is_lost(error) else f"failed ({type(error).__name__})"

    def _explained(self, error: BaseException) -> str:
        """Why a start failed; HTTP errors without their text, which repeats the address."""
        if isinstance(error, TimeoutError):
            return f"did not start within {self._server.timeout:g} s"
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        error = error.__cause__ or error
        if isinstance(error, MCPError):
            if error.code == CONNECTION_CLOSED:
                return "ended while it started; the worker's log has what it wrote to stderr"
            return f"refused: {self._masked(error.message)}"
        if (status := getattr(getattr(error, "response", None), "status_code", None)) is not None:
            return f"answered with HTTP status {status}"
        return f"could not be reached ({type(error).__name__})"

    def _masked(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return text[:_MAX_FAULT_CHARS]


class _Connection:
    """One session with a server.

    A task of its own enters and leaves it, as anyio's scopes ask for: whoever uses it may be cancelled.
    That task has an empty context, for it belongs to no run.
    """

    def __init__(self, name: str, server: McpServer) -> None:
        self.loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[BaseException | None] = self.loop.create_future()
        """Done when the server has told its tools, or when it failed to."""
        self._name = name
        self._over = asyncio.Event()
        self._is_wanted = True
        self.toolset = _mcp_toolset(name, server, self._over.set)
        self._task = self.loop.create_task(self._hold(), context=Context())
        self._limit = self.loop.create_task(self._limit_start(server.timeout), context=Context())

    @property
    def over(self) -> bool:
        """Whether it can no longer be used."""
        return self._over.is_set() or (self.opened.done() and not self.toolset.client.is_connected())

    async def close(self) -> None:
        """End it, and wait until the server has ended too, for `SERVER_CLOSE_TIMEOUT_S` seconds at most."""
        self._is_wanted = False
        self._over.set()
        if not self.opened.done():
            self._task.cancel()
        await asyncio.wait({self._task}, timeout=SERVER_CLOSE_TIMEOUT_S)
        self._opened_with(asyncio.CancelledError())  # where it was cancelled before it began

    def _opened_with(self, error: BaseException | None) -> None:
        self._limit.cancel()
        if not self.opened.done():
            self.opened.set_result(error)

    async def _limit_start(self, seconds: float) -> None:
        """Give up a start that takes too long; only while the loop moves, which may stand still between two runs."""
        while seconds > 0:
            await asyncio.sleep(min(seconds, _START_POLL_S))
            seconds -= _START_POLL_S
        self._task.cancel()
        self._opened_with(TimeoutError())

    async def _hold(self) -> None:
        started = time.monotonic()
        try:
            async with self.toolset:
                await self.toolset.list_tools()
                self._opened_with(None)
                log.info("toolset %r: its MCP server is up after %.1f s", self._name, time.monotonic() - started)
                await self._over.wait()
                if self._is_wanted:
                    log.warning("toolset %r: its MCP server has gone; it is started when it is next used", self._name)
        except (Exception, asyncio.CancelledError) as error:
            if self.opened.done() and self._is_wanted:
                log.warning("toolset %r: its MCP server ended with %s", self._name, type(error).__name__)
            self._opened_with(error)
        finally:
            self._over.set()


def _mcp_toolset(name: str, server: McpServer, ended: Callable[[], None]) -> MCPToolset[object]:
    """pydantic-ai's own toolset for a server; `ended` is called when a started one has gone."""

    async def hear(message: object) -> None:
        if isinstance(message, Exception):
            log.warning("toolset %r: its MCP server wrote something that is no message of MCP", name)

    headers = server.headers or None
    client = server.url or _Stdio(server, ended)
    # No timeouts of its own: a loop that stands still between two runs would have them pass.
    return MCPToolset(client, id=name, headers=headers, init_timeout=None, read_timeout=None, message_handler=hear)


class _Stdio(ClientTransport):
    """A server as a child process that ends with the worker, whatever ends the worker."""

    def __init__(self, server: McpServer, ended: Callable[[], None]) -> None:
        assert server.command is not None
        command, *args = lifeline.tied_command([server.command, *server.args])
        self._parameters = StdioServerParameters(command=command, args=args, env=server.env, cwd=server.cwd)
        self._ended = ended

    @asynccontextmanager
    async def connect_session(
        self, *, transport_options: TransportOptions | None = None, **session_kwargs: Unpack[SessionKwargs]
    ) -> AsyncGenerator[ClientSession, None]:
        """Start the process and yield a session with it; stop it afterwards."""
        make_session = (transport_options or TransportOptions()).session_class
        async with (
            stdio_client(self._parameters, sys.stderr) as (incoming, outgoing),
            make_session(_Watched(incoming, self._ended), outgoing, **session_kwargs) as session,
        ):
            yield session


class _Watched(ObjectReceiveStream[SessionMessage | Exception]):
    """A stream of incoming messages that tells when it has ended."""

    def __init__(self, stream: ReadStream[SessionMessage | Exception], ended: Callable[[], None]) -> None:
        self._stream = stream
        self._ended = ended

    async def receive(self) -> SessionMessage | Exception:
        """The next message, or what could not be read as one."""
        try:
            return await self._stream.receive()
        except BaseException:
            self._ended()
            raise

    async def aclose(self) -> None:
        """Close the stream."""
        await self._stream.aclose()


def _is_lost(error: Exception) -> bool:
    fault = _protocol_fault(error)
    return fault is not None and fault.code == CONNECTION_CLOSED


def _is_forgotten(error: Exception) -> bool:
    """Whether a server knows the session no more, as after a restart; it has done nothing then."""
    fault = _protocol_fault(error)
    return fault is not None and fault.message in _FORGOTTEN_SESSION_TEXTS


def _protocol_fault(error: Exception) -> MCPError | None:
    """What went wrong between client and server, if that is it; pydantic-ai makes a `ModelRetry` of it."""
    fault = compat.mcp_cause(error)
    return fault if isinstance(fault, MCPError) else None


def filled(name: str, server: McpServer, environment: Mapping[str, str]) -> tuple[McpServer, Sequence[str]]:
    """A server's table with its variables filled in, and the texts in it that are not to be shown, longest first.

    Raises:
        ConfigurationError: A variable is not set.
    """
    used: set[str] = set()

    def fill(value: Any, place: str) -> Any:
        if isinstance(value, dict):
            return {key: fill(text, f"{place}.{key}") for key, text in value.items()}
        if isinstance(value, list):
            return [fill(text, place) for text in value]
        return _VARIABLE.sub(lambda found: look_up(found[1], place), value)

    def look_up(variable: str, place: str) -> str:
        if variable not in environment:
            raise ConfigurationError(f"{place} names ${{{variable}}}, which is not set where the worker was started")
        used.add(environment[variable])
        return environment[variable]

    keys = [key for key in ("command", "args", "env", "url", "headers") if getattr(server, key) is not None]
    whole = server.model_copy(update={key: fill(getattr(server, key), f"toolsets.{name}.{key}") for key in keys})
    used.update(whole.env.values(), whole.headers.values())
    return whole, sorted(filter(None, used), key=len, reverse=True)


def _check_command(name: str, configured: McpServer, server: McpServer) -> None:
    if server.cwd is not None and not Path(server.cwd).is_dir():
        raise ConfigurationError(f"toolsets.{name}.cwd: {server.cwd!r} is no directory")
    command = str(server.command)
    if os.sep in command:
        command = str(Path(server.cwd or ".") / command)
    if shutil.which(command, path=server.env.get("PATH")) is None:
        raise ConfigurationError(f"toolsets.{name}.command: there is no program {configured.command!r}")
