"""`axon-zmq`: serve the daemon, look at it, and talk to its agents from a terminal or a pipe.

Exit codes: 0 done, 1 the run failed, 2 a wrong option, setting or request, 3 not now (no daemon,
overloaded, no worker): try again.
"""

from __future__ import annotations

from typing import Annotated

import typer

from axon_zmq import __version__
from axon_zmq.cli import checks, inspection, programs, run, serve
from axon_zmq.cli.options import ExitCode, fail
from axon_zmq.cli.output import out
from axon_zmq.errors import AxonError, ConfigurationError, UnavailableError

app = typer.Typer(
    help=__doc__,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The console script."""
    try:
        app()
    except UnavailableError as error:
        fail(str(error), ExitCode.NOT_NOW)
    except (ConfigurationError, AxonError) as error:
        fail(str(error), ExitCode.WRONG)
    except OSError as error:
        where = f"{error.filename}: {error.strerror}" if error.filename else f"{type(error).__name__}: {error}"
        fail(where, ExitCode.WRONG)
    except ValueError as error:  # ours say it all; a library's may need its name
        fail(str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}", ExitCode.WRONG)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    _version_wanted: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


# In the order of `axon-zmq --help`. Modules of commands import what costs time when a command needs it.
for _command in (
    serve.serve,
    serve.broker,
    serve.worker,
    serve.conf,
    inspection.doctor,
    inspection.status,
    programs.scale,
    programs.roll,
    checks.conformance,
    inspection.ping,
    inspection.agents,
):
    app.command()(_command)
for _command in (run.run, run.stream):
    app.command(epilog=run.ANSWERING)(_command)
for _command in (run.call, checks.loadtest):
    app.command()(_command)


if __name__ == "__main__":
    main()
