"""The commands `scale` and `roll`: change the worker programs of a running daemon."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from axon_zmq.cli.options import ExitCode, Mode, fail, number_argument, run_dir
from axon_zmq.cli.output import out, print_line
from axon_zmq.protocol.kinds import MODES, mode_of
from axon_zmq.suggestions import suggestion

if TYPE_CHECKING:
    from axon_zmq.supervise.programs import Step

ConfFile = Annotated[
    Path | None,
    typer.Option(
        "--conf", help="supervisord's configuration file, if the command cannot find it.", exists=True, dir_okay=False
    ),
]


def scale(
    mode: Mode,
    processes: Annotated[int, number_argument("Number of workers until the next start.", 0, 256, "PROCESSES")],
    conf_file: ConfFile = None,
) -> None:
    """Set the number of workers of one mode.

    Other workers continue. Workers with the highest numbers are removed first, after they have finished their runs. The
    next start of the daemon uses the settings again. The exit code is 3 if no daemon answers, another scale or roll is
    running, or a worker does not start or stop in time.
    """
    from axon_zmq.supervise import programs

    _show(programs.scale(programs.WorkerPrograms(run_dir(), conf_file), mode, processes))


def roll(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Modes or workers, such as run or run_stream-2. [default: all workers]", metavar="NAMES"),
    ] = None,
    with_broker: Annotated[bool, typer.Option("--broker", help="Restart the broker too, after the workers.")] = False,
    conf_file: ConfFile = None,
) -> None:
    """Restart workers one by one, without failing any request.

    A spare worker registers before the first one stops, and is removed at the end. Each worker finishes its runs before
    it stops.

    The exit code is 3 if the roll is not complete: no daemon answers, another scale or roll is running, the new code of
    an agent cannot be loaded, a worker or the broker does not restart in time, or Ctrl-C ended the roll after the
    current worker.
    """
    from axon_zmq.supervise import programs

    running = programs.WorkerPrograms(run_dir(), conf_file)
    all_names = running.names()
    chosen = [name for name in all_names if not names or name in names or mode_of(name) in names]
    for name in names or ():
        if name not in (*all_names, *MODES):
            fail(
                f"unknown mode or worker {name!r}; {suggestion(name, (*MODES, *all_names), 'known names')}",
                ExitCode.INVALID,
            )
    for empty in sorted({*(names or ())} & {*MODES} - {mode_of(name) for name in all_names}):
        _print_step(f"{empty} has no workers: nothing to restart")
    _show(programs.roll(running, chosen, with_broker))


def _show(steps: Iterable[Step]) -> None:
    """Print each step as soon as it is complete."""
    for step in steps:
        _print_step(describe_step(step))


def describe_step(step: Step) -> str:
    """Return a short sentence about one complete step."""
    from axon_zmq.supervise import programs

    match step:
        case programs.SpareAdded(name):
            return f"{name} added as a spare"
        case programs.WorkerAdded(name, broken):
            return f"{name} added" + (f", but could not load {', '.join(sorted(broken))}" if broken else "")
        case programs.WorkerRestarted(name):
            return f"{name} restarted"
        case programs.WorkerRemoved(name):
            return f"{name} removed"
        case programs.BrokerRestarted():
            return "broker restarted"
        case programs.AgentsUnchecked():
            return "agents not checked: the broker is too old to report agents that could not be loaded"


def _print_step(sentence: str) -> None:
    if out.is_terminal:
        out.print(sentence, markup=False)
    else:
        print_line({"done": sentence})
