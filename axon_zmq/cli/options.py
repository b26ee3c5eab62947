"""Options, exit codes and error handling that several commands share."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, TypeVar, cast

import typer
from pydantic_core import from_json

from axon_zmq.cli.conversation import UnansweredError
from axon_zmq.cli.output import err, out, print_line
from axon_zmq.errors import AxonError, RequestError, UnavailableError
from axon_zmq.process.redaction import redactor
from axon_zmq.protocol.kinds import MODES
from axon_zmq.suggestions import suggestion

Result = TypeVar("Result")
OptionalName = TypeVar("OptionalName", bound="str | None")
OptionalNumber = TypeVar("OptionalNumber", bound="float | None")

PING_TIMEOUT_S: Final = 2.0
"""Seconds to wait for the first `pong`; a running daemon answers within milliseconds."""

MAX_SECONDS: Final = 31_536_000
"""Longest time that an option accepts, in seconds: one year. The daemon has its own, lower limits."""

MAX_SHOWN_LENGTH: Final = 60
"""Longest part of an invalid argument that an error message repeats, in characters."""


class ExitCode(IntEnum):
    """Exit codes of `axon-zmq`; 0 is success."""

    FAILED = 1
    """The run, the check or the load test failed."""
    INVALID = 2
    """An option, a setting or the request is invalid."""
    UNAVAILABLE = 3
    """The daemon is missing, not ready or overloaded, or a `scale` or `roll` is not complete."""
    INTERRUPTED = 130
    """Interrupted by Ctrl-C: 128 + SIGINT, as shells report it."""


def one_of(known: Sequence[str]) -> Callable[[OptionalName], OptionalName]:
    """Return a callback that rejects an option or argument whose value is not a known name.

    typer checks `Literal` and `Enum` types itself, but through pydantic: its messages then begin with "Value error,"
    (typer 0.29) and suggest nothing.
    """

    def check(value: OptionalName) -> OptionalName:
        if value is not None and value not in known:
            raise typer.BadParameter(f"{value!r} is unknown; {suggestion(value, known, 'known values')}")
        return value

    return check


def within(lowest: float, highest: float) -> Callable[[OptionalNumber], OptionalNumber]:
    """Return a callback that rejects a number outside of a range, infinity and NaN.

    typer checks `min` and `max` itself, but its messages (typer 0.29) do not contain the value, and it accepts NaN if
    only one of them is given.
    """

    def check(value: OptionalNumber) -> OptionalNumber:
        if value is not None and not lowest <= value <= highest:
            raise typer.BadParameter(f"{value} is not in the range {lowest:.10g} to {highest:.10g}")
        return value

    return check


def number_option(text: str, lowest: float, highest: float) -> Any:
    """Return an option whose value must be a number within a range; its help states the range."""
    return typer.Option(help=_with_range(text, lowest, highest), callback=within(lowest, highest))


def number_argument(text: str, lowest: float, highest: float, metavar: str) -> Any:
    """Return an argument whose value must be a number within a range; its help states the range."""
    return typer.Argument(help=_with_range(text, lowest, highest), callback=within(lowest, highest), metavar=metavar)


def _with_range(text: str, lowest: float, highest: float) -> str:
    return f"{text.removesuffix('.')}, {lowest:.10g} to {highest:.10g}."


def complete(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Return a function that completes known names in the shell."""

    def matching(incomplete: str) -> list[str]:
        return [name for name in known if name.startswith(incomplete)]

    return matching


Endpoint = Annotated[
    str | None, typer.Option(help="Frontend of the daemon: tcp://HOST:PORT or ipc://PATH.", envvar="AXON_FRONTEND")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON lines, as in a pipe.")]
Mode = Annotated[
    str,
    typer.Argument(
        help=f"Execution mode: {', '.join(MODES)}.",
        metavar="MODE",
        callback=one_of(MODES),
        autocompletion=complete(MODES),
    ),
]
Timeout = Annotated[float, number_option("Seconds after which the run is ended.", 0.001, MAX_SECONDS)]


def fail(message: str, code: ExitCode) -> NoReturn:
    """Print an error message, without secrets, to stderr and exit with `code`."""
    err.print(f"error: {redactor.text(message)}", style="red", markup=False)
    raise SystemExit(int(code))


def prints_json(as_json: bool) -> bool:
    """Return whether to print JSON lines: with `--json`, or if standard output is not a terminal."""
    return as_json or not out.is_terminal


def run_dir() -> Path:
    """Return the absolute run directory from the settings.

    Raises:
        ConfigurationError: A setting is invalid, or the directory exists and another user can write to it. The commands
            believe what answers at the sockets in it.
    """
    from axon_zmq import settings
    from axon_zmq.process.run_dir import check_private

    directory = settings.load().run_dir.absolute()
    if directory.exists():
        check_private(directory)
    return directory


def frontend(endpoint: str | None) -> str:
    """Return the endpoint to connect to: the option if given, otherwise the setting."""
    from axon_zmq import settings

    return endpoint or settings.load().frontend


def run_or_exit(coroutine: Coroutine[Any, Any, Result], as_json: bool = False) -> Result:
    """Run a coroutine that talks to the daemon, and return its result.

    If it fails, the error is printed and the process exits with the matching exit code. With `as_json`, or in a pipe,
    the error is also printed as a JSON line.
    """
    try:
        return asyncio.run(coroutine)
    except KeyboardInterrupt:
        raise SystemExit(int(ExitCode.INTERRUPTED)) from None
    except UnansweredError as error:
        fail(str(error), ExitCode.FAILED)
    except AxonError as error:
        if prints_json(as_json):
            print_line(redactor.value({"kind": "error", **error.to_body()}))
        hint = "; start a daemon with `axon-zmq serve`" if error.error_type == "unreachable" else ""
        fail(f"{error}{hint}", _exit_code(error))


def _exit_code(error: AxonError) -> ExitCode:
    if isinstance(error, RequestError):
        return ExitCode.INVALID
    return ExitCode.UNAVAILABLE if isinstance(error, UnavailableError) else ExitCode.FAILED


def parse_agent(text: str) -> str | Mapping[str, Any]:
    """Return the name of a registered agent, or the agent given as a JSON object."""
    # Names of agents contain neither brackets nor braces.
    expected = 'the name of a registered agent, or a JSON object such as {"model": "echo"}'
    return json_object(text, "agent", expected) if text.lstrip().startswith(("{", "[")) else text


def json_object(text: str, what: str, expected: str = "a JSON object {…}") -> dict[str, Any]:
    """Parse an argument as a JSON object; exit with an error message if it is something else.

    Args:
        text: The argument.
        what: Name of the argument in the error message, such as `agent`.
        expected: The values that the error message names as valid.
    """
    try:
        # Unlike json.loads, it rejects unpaired surrogates such as "\\ud800", which cannot be encoded in UTF-8.
        value: object = from_json(text)
    except ValueError as error:
        fail(f"invalid {what} {_shortened(text)!r}: not valid JSON: {error}", ExitCode.INVALID)
    if not isinstance(value, dict):
        fail(f"invalid {what} {_shortened(text)!r}: expected {expected}", ExitCode.INVALID)
    return cast("dict[str, Any]", value)


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_LENGTH else f"{text[:MAX_SHOWN_LENGTH]}…"


def check_utf8(context: typer.Context, params: Sequence[Any]) -> None:
    """Check that all texts of a command line are valid UTF-8; file names may contain any bytes.

    Python decodes each invalid byte of an argument to a surrogate, which JSON and MessagePack cannot encode.

    Raises:
        typer.BadParameter: An argument, an option or its environment variable is not valid UTF-8.
    """
    for param in params:
        value: object = context.params.get(param.name or "")
        for text in cast("list[object]", value) if isinstance(value, list) else [value]:
            if isinstance(text, str) and not _is_utf8(text):
                shown = os.fsencode(_shortened(text))
                raise typer.BadParameter(f"not valid UTF-8: {shown!r}", ctx=context, param=param)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_exclusive(context: typer.Context, option: str, *compatible: str) -> None:
    """Exit with an error if `option` is combined with an option that is not in `compatible`."""
    for param in context.command.params:
        source = context.get_parameter_source(param.name or "")
        if source and source.name == "COMMANDLINE" and param.opts[0] not in (option, *compatible):
            fail(f"{option} cannot be combined with {param.opts[0]}: remove {param.opts[0]}", ExitCode.INVALID)


def examples(*commands: str) -> str:
    """Return example commands as a paragraph of a command's help; `\\b` keeps click from joining the lines."""
    return "\n".join(("\b", "Examples:", *(f"  {command}" for command in commands)))
