"""MCP servers that stay open between runs; each is started at its first use, once for each event loop.

This module needs the extra `mcp`. Importing it takes 0.8 s and 46 MB, so it is imported only if a server is configured.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import Context
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO, TypeVar

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
from axon_zmq.process.redaction import SECRET_NAME, redactor
from axon_zmq.settings import McpServer
from axon_zmq.worker.adapter import compat

if TYPE_CHECKING:
    from mcp.shared._stream_protocols import ReadStream

log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_RESTART_DELAY_S: Final = 60.0
"""Longest delay in seconds between a failed start and the next one. The first delay is 1 s, and each further delay is
twice as long."""
SERVER_CLOSE_TIMEOUT_S: Final = 5.0
"""Seconds within which a server must end. The MCP SDK closes its input, sends SIGTERM after 2 s, and kills it after 2 s
more.
"""
_START_POLL_S: Final = 0.5
_FORGOTTEN_SESSION_TEXTS: Final = ("Session not found", "Session terminated")
"""Texts of the error for a session that the server no longer knows. The first one comes from servers made with the MCP
SDKs, the second one from the MCP client after an HTTP 404 without a body."""
_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_]\w*)\}")
_MAX_FAULT_CHARS: Final = 500
_MAX_LINE_CHARS: Final = 64 * 1024
"""Maximum number of characters of a line on a server's stderr that are logged together."""

for _library in ("mcp", "fastmcp"):
    # Their records contain addresses and output of servers, which may be secret; and fastmcp's own handler writes lines
    # in another format than the daemon's.
    logging.getLogger(_library).handlers.clear()
    logging.getLogger(_library).setLevel(logging.CRITICAL)


class ServerToolset(AbstractToolset[object]):
    """The tools of one MCP server.

    Entering and leaving the toolset does nothing. The server is started when its tools are first needed, is shared by
    all runs of the event loop, and is started again at the next use if it has ended.

    Args:
        name: Name of the toolset.
        configured: Its table in `axon.toml`.
        environment: Environment variables for `${NAME}` in the table.

    Raises:
        ConfigurationError: A variable is not set, or the command or directory does not exist.
    """

    def __init__(self, name: str, configured: McpServer, environment: Mapping[str, str] = os.environ) -> None:
        self._name = name
        self._server, self._secrets = with_variables(name, configured, environment)
        _make_secrets_known(configured, self._server, environment)
        if self._server.command is not None:
            _check_command(name, configured, self._server)
        self._connection: _Connection | None = None
        self._failures = 0
        """How many starts in succession have failed."""
        self._failure = ""
        """Why the last start failed."""
        self._retry_at = 0.0
        """When the server may be started again, in seconds of the monotonic clock."""

    def __repr__(self) -> str:
        state = "closed" if self._connection is None or self._connection.is_over else "open"
        return f"<ServerToolset {self._name} {state}>"

    @property
    def id(self) -> str:
        """Name of the toolset."""
        return self._name

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop of the server's connection; None before the first use."""
        return None if self._connection is None else self._connection.loop

    async def get_tools(self, ctx: RunContext[object]) -> dict[str, ToolsetTool[object]]:
        """Return the server's tools; they are cached until the server reports that they have changed.

        Raises:
            AxonError: `tool_failed` if the server cannot be started or does not list its tools.
        """
        try:
            tools = await self._use(lambda toolset: toolset.get_tools(ctx))
        except AxonError:
            raise
        except Exception as error:
            raise self._tool_failed(f"its MCP server {self._fault(error)} while it listed its tools") from error
        return {name: replace(tool, toolset=self) for name, tool in tools.items()}

    async def call_tool(
        self, name: str, tool_args: dict[str, object], ctx: RunContext[object], tool: ToolsetTool[object]
    ) -> Any:
        """Call a tool at most once.

        Raises:
            ModelRetry: The server reports that the call failed, for example because of invalid arguments.
            AxonError: `tool_failed` if the server cannot be started, or ended during the call.
        """
        try:
            return await self._use(lambda toolset: toolset.call_tool(name, tool_args, ctx, tool))
        except AxonError:
            raise
        except Exception as error:
            if isinstance(error, ModelRetry) and not _is_lost(error):
                raise
            message = f"its MCP server {self._fault(error)} during {name!r}, which may have been executed"
            raise self._tool_failed(message) from error

    async def _use(self, use: Callable[[MCPToolset[object]], Awaitable[T]]) -> T:
        """Call `use` with the server's toolset; a second time only if the server has lost the session."""
        connection = await self._open()
        try:
            return await use(connection.toolset)
        except Exception as error:
            if not _is_forgotten(error):
                raise
        # A server that does not know the session has executed nothing, so a second call in a new session is safe.
        await connection.close()
        return await use((await self._open()).toolset)

    async def aclose(self) -> None:
        """Stop the server; must be called on the event loop of its connection."""
        if self._connection is not None:
            await self._connection.close()

    async def _open(self) -> _Connection:
        connection = self._connection
        if connection is None or connection.is_over:
            # Fail at once during the delay after a failed start. Otherwise each run would wait for another start of a
            # broken server, up to its `timeout`.
            if (delay := self._retry_at - time.monotonic()) > 0:
                delay = min(delay, MAX_RESTART_DELAY_S)
                raise self._tool_failed(f"{self._failure}; it is not started again before {delay:.1f} s have passed")
            connection = self._connection = _Connection(self._name, self._server)
        if not connection.opened.done():
            await self._await_start(connection)
        return connection

    async def _await_start(self, connection: _Connection) -> None:
        # All runs that need the server wait for this start: a cancelled run must not cancel the start.
        error = await asyncio.shield(connection.opened)
        if error is None:
            self._failures = 0
            return
        if self._connection is connection:
            await self._give_up(connection, f"its MCP server {self._start_failure(error)}")
        raise self._tool_failed(self._failure) from error

    async def _give_up(self, connection: _Connection, failure: str) -> None:
        """Close a connection whose start failed, and set the time of the next start."""
        log.error("toolset %r: %s", self._name, failure)
        self._connection = None
        self._failure = failure
        self._retry_at = math.inf  # not while the failed process may still exist
        try:
            await connection.close()
        finally:
            self._retry_at = time.monotonic() + min(2.0**self._failures, MAX_RESTART_DELAY_S)
            self._failures += 1

    def _tool_failed(self, message: str) -> AxonError:
        return AxonError.of("tool_failed", f"toolset {self._name!r}: {message}", {"toolset": self._name})

    @staticmethod
    def _fault(error: Exception) -> str:
        return "went away" if _is_lost(error) else f"failed ({type(error).__name__})"

    def _start_failure(self, error: BaseException) -> str:
        """Return why a start failed; for HTTP errors without their text, which repeats the address."""
        if isinstance(error, TimeoutError):
            return f"did not start within {self._server.timeout:g} s"
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        error = error.__cause__ or error
        if isinstance(error, MCPError):
            if error.code == CONNECTION_CLOSED:
                return "ended while it started; the worker's log has what it wrote to stderr"
            return f"refused: {self._masked(redactor.text(error.message))}"
        if (status := getattr(getattr(error, "response", None), "status_code", None)) is not None:
            return f"answered with HTTP status {status}"
        return f"could not be reached ({type(error).__name__})"

    def _masked(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return text[:_MAX_FAULT_CHARS]


class _Connection:
    """One session with a server.

    A separate task enters and leaves the session: anyio's cancel scopes must be left in the task that entered them, and
    the tasks of runs that use the session may be cancelled. The task has an empty context, so that its log records
    belong to no run.
    """

    def __init__(self, name: str, server: McpServer) -> None:
        self.loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[BaseException | None] = self.loop.create_future()
        """Done when the server has listed its tools, with None, or when its start has failed, with the exception."""
        self._name = name
        self._over = asyncio.Event()
        self._is_closing = False
        self.toolset = _mcp_toolset(name, server, self._over.set)
        self._task = self.loop.create_task(self._hold(), context=Context())
        self._limit = self.loop.create_task(self._limit_start(server.timeout), context=Context())

    @property
    def is_over(self) -> bool:
        """Whether the session can no longer be used."""
        return self._over.is_set() or (self.opened.done() and not self.toolset.client.is_connected())

    async def close(self) -> None:
        """End the session, and wait until the server has ended too, for at most `SERVER_CLOSE_TIMEOUT_S`."""
        self._is_closing = True
        self._over.set()
        if not self.opened.done():
            self._task.cancel()
        await asyncio.wait({self._task}, timeout=SERVER_CLOSE_TIMEOUT_S)
        # If the task was cancelled before its first step, `_hold` has not set the result.
        self._set_opened(asyncio.CancelledError())

    def _set_opened(self, error: BaseException | None) -> None:
        self._limit.cancel()
        if not self.opened.done():
            self.opened.set_result(error)

    async def _limit_start(self, seconds: float) -> None:
        """Cancel a start that takes longer than `seconds`.

        In mode `run_sync`, the event loop stands still between two runs. A single long sleep would be over then,
        although the server had no time to start. The time is therefore counted in short sleeps.
        """
        while seconds > 0:
            await asyncio.sleep(min(seconds, _START_POLL_S))
            seconds -= _START_POLL_S
        self._task.cancel()
        self._set_opened(TimeoutError())

    async def _hold(self) -> None:
        started = time.monotonic()
        try:
            async with self.toolset:
                await self.toolset.list_tools()
                self._set_opened(None)
                log.info("toolset %r: its MCP server started in %.1f s", self._name, time.monotonic() - started)
                await self._over.wait()
                if not self._is_closing:
                    log.warning("toolset %r: its MCP server has ended; the next use starts it again", self._name)
        except (Exception, asyncio.CancelledError) as error:
            if self.opened.done() and not self._is_closing:
                log.warning("toolset %r: its MCP server ended with %s", self._name, type(error).__name__)
            self._set_opened(error)
        finally:
            self._over.set()


def _mcp_toolset(name: str, server: McpServer, ended: Callable[[], None]) -> MCPToolset[object]:
    """Return pydantic-ai's toolset for a server; `ended` is called when the process of a local server has ended."""

    async def on_message(message: object) -> None:
        if isinstance(message, Exception):
            # Without the text, which may contain a secret.
            log.warning("toolset %r: its MCP server wrote a line that is not an MCP message", name)

    return MCPToolset(
        server.url or _Stdio(server, ended),
        id=name,
        headers=server.headers or None,
        # In mode `run_sync`, the event loop stands still between two runs, and these timeouts would expire meanwhile.
        init_timeout=None,
        read_timeout=None,
        message_handler=on_message,
    )


class _Stdio(ClientTransport):
    """A server as a child process that ends with the worker, even if the worker is killed."""

    def __init__(self, server: McpServer, ended: Callable[[], None]) -> None:
        assert server.command is not None
        command, *args = lifeline.tied_command([server.command, *server.args])
        self._parameters = StdioServerParameters(command=command, args=args, env=server.env, cwd=server.cwd)
        self._ended = ended

    @asynccontextmanager
    async def connect_session(
        self, *, transport_options: TransportOptions | None = None, **session_kwargs: Unpack[SessionKwargs]
    ) -> AsyncGenerator[ClientSession, None]:
        """Start the process, yield a session with it, and stop the process afterwards."""
        make_session = (transport_options or TransportOptions()).session_class
        with _logged_stderr() as errors:
            async with (
                stdio_client(self._parameters, errors) as (incoming, outgoing),
                make_session(_WatchedStream(incoming, self._ended), outgoing, **session_kwargs) as session,
            ):
                yield session


@contextmanager
def _logged_stderr() -> Generator[TextIO]:
    """Yield a stream for the stderr of a process; what is written to it is written to this process's own stderr.

    The process must not inherit the worker's stderr: servers print their environment and their arguments when they
    fail, and nothing would remove the secrets.
    """
    reading, writing = os.pipe()
    # A thread, because the event loop of a `run_sync` thread stands still between two runs. It ends when no process has
    # the other end any more, which may be later than the server's end if the server has child processes.
    source = open(reading, encoding="utf-8", errors="replace")  # noqa: PTH123, SIM115 -- the thread closes it
    threading.Thread(target=_copy_lines, args=(source,), name="mcp-stderr", daemon=True).start()
    with open(writing, "w") as errors:  # noqa: PTH123
        yield errors


def _copy_lines(source: TextIO) -> None:
    with source:
        while line := source.readline(_MAX_LINE_CHARS):
            sys.stderr.write(line)
            sys.stderr.flush()


class _WatchedStream(ObjectReceiveStream[SessionMessage | Exception]):
    """A stream of incoming messages that calls `ended` when it ends.

    The MCP session itself does not report that its server has ended.
    """

    def __init__(self, stream: ReadStream[SessionMessage | Exception], ended: Callable[[], None]) -> None:
        self._stream = stream
        self._ended = ended

    async def receive(self) -> SessionMessage | Exception:
        """Return the next message, or the exception for a line that is not a message."""
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
    """Whether a server no longer knows the session, for example after a restart; then it has executed nothing."""
    fault = _protocol_fault(error)
    return fault is not None and fault.message in _FORGOTTEN_SESSION_TEXTS


def _protocol_fault(error: Exception) -> MCPError | None:
    """Return the error between MCP client and server that caused an exception; None if there is none."""
    fault = compat.mcp_cause(error)
    return fault if isinstance(fault, MCPError) else None


def with_variables(name: str, server: McpServer, environment: Mapping[str, str]) -> tuple[McpServer, Sequence[str]]:
    """Replace the variables in a server's table.

    Args:
        name: Name of the toolset.
        server: The table.
        environment: The environment variables.

    Returns:
        The table with the values of its variables, and the secret texts in it, longest first, so that a secret that
        contains another one is masked completely.

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
            raise ConfigurationError(f"{place}: ${{{variable}}} is not set in the environment of the worker")
        used.add(environment[variable])
        return environment[variable]

    keys = [key for key in ("command", "args", "env", "url", "headers") if getattr(server, key) is not None]
    whole = server.model_copy(update={key: fill(getattr(server, key), f"toolsets.{name}.{key}") for key in keys})
    used.update(whole.env.values(), whole.headers.values())
    return whole, sorted(filter(None, used), key=len, reverse=True)


def _make_secrets_known(configured: McpServer, server: McpServer, environment: Mapping[str, str]) -> None:
    """Make the secrets in a server's table known to the redactor of this process.

    Args:
        configured: The table as it was configured.
        server: The table with the values of its variables.
        environment: The environment variables.
    """
    redactor.learn(server.env)
    redactor.learn(server.headers)
    # An option may be followed by its value, or contain it.
    pairs = list(zip(server.args, server.args[1:], strict=False))
    pairs += [(name, value) for name, equals, value in (each.partition("=") for each in server.args) if equals]
    redactor.learn_values(value for name, value in pairs if name.startswith("-") and SECRET_NAME.search(name))
    # A variable in an address or a header is there because it must not be in the file.
    texts = [configured.url or "", *configured.headers.values()]
    redactor.learn_values(environment[name] for text in texts for name in _VARIABLE.findall(text))


def _check_command(name: str, configured: McpServer, server: McpServer) -> None:
    if server.cwd is not None and not Path(server.cwd).is_dir():
        raise ConfigurationError(f"toolsets.{name}.cwd: {server.cwd!r} is not a directory")
    command = str(server.command)
    if os.sep in command:
        command = str(Path(server.cwd or ".") / command)
    if shutil.which(command, path=server.env.get("PATH")) is None:
        raise ConfigurationError(f"toolsets.{name}.command: program {configured.command!r} not found")
