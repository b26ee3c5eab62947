"""The commands `serve`, `broker`, `worker` and `conf`: start the daemon or one of its processes."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from axon_zmq.cli.options import run_dir
from axon_zmq.cli.output import err, out
from axon_zmq.errors import RunEndedError, UnavailableError
from axon_zmq.protocol.kinds import Mode


def serve(
    demo: Annotated[bool, typer.Option(help="Send one request through each mode, show it, and stop.")] = False,
) -> None:
    """Serve the supervised daemon in the foreground, until Ctrl-C or SIGTERM."""
    from axon_zmq import settings
    from axon_zmq.cli.welcome import greet, show_next_steps, wait_for_workers
    from axon_zmq.supervise.daemon import Daemon

    daemon = Daemon(settings.load(), Path.cwd())
    configured = daemon.settings
    daemon.start()
    try:
        out.print(f"starting: broker and {sum(configured.workers().values())} workers, logs in {configured.run_dir}")
        if wait_for_workers(daemon, out):
            try:
                asyncio.run(greet(daemon, out))
            except (UnavailableError, RunEndedError) as error:  # a worker that died just now is started again
                if demo:
                    raise
                err.print(f"the greeting failed: {error}", style="red", markup=False)
            if demo:
                daemon.stop()
            elif not daemon.stopping:
                show_next_steps(configured, daemon.conf, out)
        ending = f"stopping: what runs has {configured.drain_seconds:g} s to end; Ctrl-C again ends it at once"
        code = daemon.wait(lambda: out.print(ending))
    except BaseException:
        daemon.stop()
        raise
    out.print("stopped: no process is left" if code == 0 else f"ended: see the logs in {configured.run_dir}")
    raise typer.Exit(code)


def broker() -> None:
    """Run the broker alone, in the foreground; supervisord starts the same."""
    from axon_zmq import settings
    from axon_zmq.supervise.conf import broker_arguments

    configured = settings.load()
    os.execv(sys.executable, [sys.executable, *broker_arguments(configured, str(configured.run_dir.absolute()))])  # noqa: S606


def worker(
    mode: Annotated[Mode, typer.Argument(help="What it executes.")],
    name: Annotated[str | None, typer.Option(help="Its name in logs; run-4711 and the like where left out.")] = None,
) -> None:
    """Run one worker alone, in the foreground, for the broker of the same run directory."""
    from axon_zmq.supervise.conf import worker_arguments

    arguments = worker_arguments(mode, name or f"{mode}-{os.getpid()}", str(run_dir()))
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606


def conf() -> None:
    """Print the supervisord configuration for the settings."""
    from axon_zmq import settings
    from axon_zmq.supervise.conf import render

    sys.stdout.write(render(settings.load()))
