"""Serve pydantic-ai agents over ZeroMQ, inspect the daemon, and run its agents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Annotated, Any, Final, Protocol

import typer
from typer.core import TyperCommand, TyperGroup

from axon_zmq import __version__
from axon_zmq.cli import checks, inspection, programs, run, serve
from axon_zmq.cli.options import ExitCode, check_utf8, examples, fail
from axon_zmq.cli.output import out
from axon_zmq.errors import AxonError, ConfigurationError, UnavailableError

_SECTIONS: Final[Mapping[str, tuple[Callable[..., None], ...]]] = {
    "Start the daemon": (serve.serve, serve.broker, serve.worker, serve.conf),
    "Inspect the daemon": (inspection.status, inspection.doctor, inspection.ping, inspection.agents),
    "Change the running daemon": (programs.scale, programs.roll),
    "Run agents and tools": (run.run, run.stream, run.call),
    "Test a daemon or a client": (checks.loadtest, checks.conformance),
}
"""The commands in the order of `axon-zmq --help`. A module imports expensive libraries only when one of
its commands runs."""
_EPILOGS: Final[Mapping[Callable[..., None], str]] = {
    serve.serve: examples("axon-zmq serve", "axon-zmq serve --demo", "AXON_RUN_WORKERS=4 axon-zmq serve"),
    serve.broker: examples("axon-zmq broker", "AXON_FRONTEND=tcp://127.0.0.1:5580 axon-zmq broker"),
    serve.worker: examples("axon-zmq worker run", "axon-zmq worker run_stream --name run_stream-1"),
    serve.conf: examples("axon-zmq conf > supervisord.conf", "supervisord -c supervisord.conf"),
    inspection.status: examples("axon-zmq status", "axon-zmq status --json | jq .modes"),
    inspection.doctor: examples("axon-zmq doctor", "axon-zmq doctor --endpoint ipc:///run/axon/frontend"),
    inspection.ping: examples("axon-zmq ping", "axon-zmq ping --wait 30"),
    inspection.agents: examples("axon-zmq agents", "axon-zmq agents weather"),
    programs.scale: examples("axon-zmq scale run_stream 4", "axon-zmq scale run_sync 0"),
    programs.roll: examples(
        "axon-zmq roll                     all workers",
        "axon-zmq roll run_stream          the workers of one mode",
        "axon-zmq roll run-1 --broker      one worker, then the broker",
    ),
    run.run: examples(
        "axon-zmq run assistant 'What is ZeroMQ?'",
        """axon-zmq run '{"model": "echo"}' hello --json""",
        "git diff | axon-zmq run reviewer -",
    )
    + "\n\n"
    + run.ANSWERING,
    run.stream: examples(
        "axon-zmq stream weather 'Oslo and Rome?'",
        "axon-zmq stream assistant 'Book a table' --tools tools.json",
    )
    + "\n\n"
    + run.ANSWERING,
    run.call: examples("""axon-zmq call temperature '{"place": "Oslo"}' --agent weather"""),
    checks.loadtest: examples(
        "axon-zmq loadtest streams --rate 50 --duration 30",
        "axon-zmq loadtest mixed --streams 20 --json new.json --html new.html",
        "axon-zmq loadtest --compare old.json new.json",
    ),
    checks.conformance: examples(
        "axon-zmq conformance --server     check your client",
        "axon-zmq conformance              the Python client, from another shell",
        "axon-zmq conformance --server --only gap --only restart",
    ),
}
"""Examples at the end of each command's help. The tests check that each command has one and that it parses."""
_EXIT_CODES: Final = """\b
Exit codes:
  0    success
  1    the run, the check or the load test failed
  2    an option, a setting or the request is invalid
  3    the daemon is missing, not ready or overloaded, or a scale or roll
       is not complete
  130  interrupted by Ctrl-C

\b
Examples:
  axon-zmq serve
  axon-zmq stream weather 'Oslo and Rome?'
  axon-zmq COMMAND --help"""
_SHORT_HELP_LENGTH: Final = 200
"""Longest first sentence that click shows uncut. The tests check that each one fits into a line of 80 columns."""


class _HelpFormatter(Protocol):
    """The methods of click's formatter that are used here; typer keeps a copy of click in a private package."""

    def section(self, name: str) -> AbstractContextManager[None]: ...

    def write_dl(self, rows: Sequence[tuple[str, str]]) -> None: ...


class _Commands(TyperGroup):
    """Command group whose help lists the commands by section.

    typer's own sections (`rich_help_panel`) need its rich mode, which draws boxes and interprets `[...]` in help as
    markup.
    """

    def format_commands(self, ctx: Any, formatter: _HelpFormatter) -> None:  # noqa: ARG002
        width = max(map(len, self.commands))
        for title, functions in _SECTIONS.items():
            names = [function.__name__ for function in functions]
            with formatter.section(title):
                formatter.write_dl(
                    [(f"{name:<{width}}", self.commands[name].get_short_help_str(_SHORT_HELP_LENGTH)) for name in names]
                )


class _Command(TyperCommand):
    """Command that rejects arguments that are not valid UTF-8, and shows `AGENT PROMPT` in its usage line.

    typer 0.29 shows required arguments in braces: `{AGENT} {PROMPT}`.
    """

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        check_utf8(ctx, self.params)
        return rest


app = typer.Typer(
    cls=_Commands,
    help=__doc__,
    epilog=_EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the console script `axon-zmq`."""
    try:
        app()
    except UnavailableError as error:
        fail(str(error), ExitCode.UNAVAILABLE)
    except (ConfigurationError, AxonError) as error:
        fail(str(error), ExitCode.INVALID)
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else f"{type(error).__name__}: {error}"
        fail(message, ExitCode.INVALID)
    except ValueError as error:
        # axon_zmq raises ValueError itself, with a complete sentence. Libraries raise subclasses whose message is often
        # only a value, so the name of the class is added.
        fail(str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}", ExitCode.INVALID)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    _version_wanted: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


for _functions in _SECTIONS.values():
    for _function in _functions:
        app.command(cls=_Command, epilog=_EPILOGS[_function])(_function)


if __name__ == "__main__":
    main()
