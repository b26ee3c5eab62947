"""The commands `serve`, `broker`, `worker` and `conf`: start the daemon or one of its processes."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from axon_zmq.cli.options import Mode, run_dir
from axon_zmq.cli.output import counted, err, out
from axon_zmq.errors import RunEndedError, UnavailableError


def serve(
    demo: Annotated[bool, typer.Option(help="Send one request to each mode, print the answers, and stop.")] = False,
) -> None:
    """Run the whole daemon in the foreground, until Ctrl-C.

    It consists of supervisord, the broker and the workers, and is configured by AXON_* variables and axon.toml.

    On Ctrl-C or SIGTERM, workers finish their runs for up to AXON_DRAIN_SECONDS (60), and the exit code is 0. A second
    Ctrl-C kills all processes at once.
    """
    from axon_zmq import settings
    from axon_zmq.cli.welcome import greet, show_next_steps, wait_for_workers
    from axon_zmq.supervise.daemon import Daemon

    daemon = Daemon(settings.load(), Path.cwd())
    configured = daemon.settings
    daemon.start()
    try:
        workers = counted(sum(configured.workers().values()), "worker")
        out.print(f"starting: broker and {workers}, logs in {configured.run_dir}")
        if wait_for_workers(daemon, out):
            try:
                asyncio.run(greet(daemon, out))
            except (UnavailableError, RunEndedError) as error:
                # A worker that died during the greeting is restarted by supervisord, so the daemon still serves.
                if demo:
                    raise
                err.print(f"the example request failed: {error}", style="red", markup=False)
            if demo:
                daemon.stop()
            elif not daemon.stopping:
                show_next_steps(configured, daemon.conf, out)
        stopping = (
            f"stopping: waiting up to {configured.drain_seconds:g} s for running requests; "
            "press Ctrl-C again to kill them"
        )
        code = daemon.wait(lambda: out.print(stopping))
    except BaseException:
        daemon.stop()
        raise
    if code == 0:
        out.print("stopped: all processes have ended")
    else:
        out.print(f"the daemon ended unexpectedly: see the logs in {configured.run_dir}")
    raise typer.Exit(code)


def broker() -> None:
    """Run only the broker, in the foreground.

    This is the process that supervisord starts as `broker`. Use it if something other than supervisord starts the
    processes.
    """
    from axon_zmq import settings
    from axon_zmq.supervise.conf import broker_arguments

    configured = settings.load()
    os.execv(sys.executable, [sys.executable, *broker_arguments(configured, str(configured.run_dir.absolute()))])  # noqa: S606


def worker(
    mode: Mode,
    name: Annotated[str | None, typer.Option(help="Name in logs and status. [default: MODE-PID]")] = None,
) -> None:
    """Run only one worker, in the foreground.

    It registers with the broker that uses the same run directory (AXON_RUN_DIR), even if that broker belongs to a
    running daemon.
    """
    from axon_zmq.supervise.conf import worker_arguments

    arguments = worker_arguments(mode, name or f"{mode}-{os.getpid()}", str(run_dir()))
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606


def conf() -> None:
    """Print the supervisord configuration for the current settings."""
    from axon_zmq import settings
    from axon_zmq.supervise.conf import render

    sys.stdout.write(render(settings.load()))
