"""What several commands share: options, exit codes, and how a failure becomes a message and an exit code."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, TypeVar, cast

import typer

from axon_zmq.cli.conversation import UnansweredError
from axon_zmq.cli.output import err, out, print_line
from axon_zmq.errors import AxonError, RequestError, UnavailableError

Result = TypeVar("Result")

PING_TIMEOUT_S: Final = 2.0
"""Seconds to wait for the first `pong`; a running daemon answers within milliseconds."""


class ExitCode(IntEnum):
    """Exit codes of the command; 0 is success."""

    FAILED = 1
    """The run, a check or a load test failed."""
    WRONG = 2
    """An option, a setting or a request is invalid."""
    NOT_NOW = 3
    """No daemon, no worker or an overload: the same command may succeed later."""
    INTERRUPTED = 130
    """Ctrl-C."""


Endpoint = Annotated[str | None, typer.Option(help="The daemon's frontend.", envvar="AXON_FRONTEND")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON lines, as in a pipe.")]
Timeout = Annotated[float, typer.Option(help="Seconds that the run may take.", min=0.001)]


def fail(message: str, code: ExitCode) -> NoReturn:
    """Print an error and exit."""
    err.print(f"error: {message}", style="red", markup=False)
    raise SystemExit(int(code))


def in_lines(as_json: bool) -> bool:
    """Whether output is JSON lines: on request, and in a pipe."""
    return as_json or not out.is_terminal


def run_dir() -> Path:
    """The absolute run directory of the settings."""
    from axon_zmq import settings

    return settings.load().run_dir.absolute()


def frontend(endpoint: str | None) -> str:
    """The endpoint to connect to: the option, or that of the settings."""
    from axon_zmq import settings

    return endpoint or settings.load().frontend


def talk(conversation: Coroutine[Any, Any, Result], as_json: bool = False) -> Result:
    """Run a conversation with the daemon to its end.

    A failure becomes a message and an exit code; with `as_json`, or in a pipe, it is a JSON line too.
    """
    try:
        return asyncio.run(conversation)
    except KeyboardInterrupt:
        raise SystemExit(int(ExitCode.INTERRUPTED)) from None
    except UnansweredError as error:
        fail(str(error), ExitCode.FAILED)
    except AxonError as error:
        if in_lines(as_json):
            print_line({"kind": "error", **error.to_body()})
        hint = "; start one with `axon-zmq serve`" if error.error_type == "unreachable" else ""
        fail(f"{error}{hint}", _exit_code(error))


def _exit_code(error: AxonError) -> ExitCode:
    if isinstance(error, RequestError):
        return ExitCode.WRONG
    return ExitCode.NOT_NOW if isinstance(error, UnavailableError) else ExitCode.FAILED


def parse_agent(text: str) -> str | Mapping[str, Any]:
    """A registered name, or an agent as a JSON object."""
    return json_object(text, "the agent is") if text.startswith("{") else text


def json_object(text: str, what: str) -> dict[str, Any]:
    """Parse an argument that must be a JSON object; exits if it is something else.

    Args:
        text: The argument.
        what: Subject and verb of the error message, such as `the agent is`.
    """
    try:
        value: object = json.loads(text)
    except ValueError as error:
        fail(f"{what} not valid JSON: {error}", ExitCode.WRONG)
    if not isinstance(value, dict):
        fail(f"{what} no JSON object: write {{…}}", ExitCode.WRONG)
    return cast("dict[str, Any]", value)


def check_alone(context: typer.Context, option: str, *beside: str) -> None:
    """Exit if the command line has other options than the given one and those that may accompany it."""
    for param in context.command.params:
        source = context.get_parameter_source(param.name or "")
        if source and source.name == "COMMANDLINE" and param.opts[0] not in (option, *beside):
            fail(f"{option} puts no load on: leave {param.opts[0]} out", ExitCode.WRONG)
