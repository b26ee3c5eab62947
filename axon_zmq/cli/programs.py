"""The commands `scale` and `roll`: change the worker programs of a running daemon."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from axon_zmq.cli.options import ExitCode, fail, run_dir
from axon_zmq.cli.output import out, print_line
from axon_zmq.protocol.kinds import MODES, Mode, mode_of

if TYPE_CHECKING:
    from axon_zmq.supervise.programs import Step

ConfFile = Annotated[
    Path | None,
    typer.Option("--conf", help="supervisord's configuration, where it is not found.", exists=True, dir_okay=False),
]


def scale(
    mode: Annotated[Mode, typer.Argument(help="Whose processes.")],
    processes: Annotated[int, typer.Argument(help="How many there shall be, until the next start.", min=0, max=256)],
    conf_file: ConfFile = None,
) -> None:
    """Add or remove processes of a mode, without touching the others; those removed finish what they have."""
    from axon_zmq.supervise import programs

    _show(programs.scale(programs.WorkerPrograms(run_dir(), conf_file), mode, processes))


def roll(
    names: Annotated[
        list[str] | None, typer.Argument(help="Modes or processes, such as run or run_stream-2; all where left out.")
    ] = None,
    with_broker: Annotated[bool, typer.Option("--broker", help="The broker too, at the end.")] = False,
    conf_file: ConfFile = None,
) -> None:
    """Restart processes one after the other; no request fails: a new one is there before an old one stops."""
    from axon_zmq.supervise import programs

    running = programs.WorkerPrograms(run_dir(), conf_file)
    all_names = running.names()
    chosen = [name for name in all_names if not names or name in names or mode_of(name) in names]
    if unknown := {*(names or ())} - {*all_names, *MODES}:
        there = ", ".join(all_names)
        fail(f"no mode and no process is called {min(unknown)!r}; there are {there}", ExitCode.WRONG)
    for empty in sorted({*(names or ())} & {*MODES} - {mode_of(name) for name in all_names}):
        _say(f"{empty} has no worker: there is nothing to restart")
    _show(programs.roll(running, chosen, with_broker))


def _show(steps: Iterable[Step]) -> None:
    """Print each step as soon as it is complete."""
    for step in steps:
        _say(describe_step(step))


def describe_step(step: Step) -> str:
    """One complete step, as a sentence."""
    from axon_zmq.supervise import programs

    match step:
        case programs.SpareAdded(name):
            return f"{name} is there as a spare"
        case programs.WorkerAdded(name, broken):
            return f"{name} is there" + (f", but could not load {', '.join(sorted(broken))}" if broken else "")
        case programs.WorkerRestarted(name):
            return f"{name} is there again"
        case programs.WorkerRemoved(name):
            return f"{name} has gone"
        case programs.BrokerRestarted():
            return "the broker is there again"
        case programs.AgentsUnchecked():
            return "the broker does not tell which agents could be loaded: that was not checked"


def _say(sentence: str) -> None:
    if out.is_terminal:
        out.print(sentence, markup=False)
    else:
        print_line({"done": sentence})
