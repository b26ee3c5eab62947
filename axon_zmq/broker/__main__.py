"""Entry point of the broker process, `python -m axon_zmq.broker`, which supervisord starts.

It takes all values as arguments and imports neither pydantic nor pydantic_ai: that keeps the start at 0.3 s and the
idle process at 27 MiB (docs/performance.md). `axon-zmq broker` starts the same process with values from the settings.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import resource
import secrets
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

from axon_zmq import __version__
from axon_zmq.errors import ConfigurationError
from axon_zmq.net import endpoints
from axon_zmq.process import backoff, gc, lifeline, logs, redaction
from axon_zmq.process.core_dumps import disable_core_dumps
from axon_zmq.process.locks import BROKER_LOCK_FILE, hold_lock
from axon_zmq.process.run_dir import (
    backend_endpoint,
    check_frontend_path,
    clear_handover_files,
    handover_files,
    private_directory,
)
from axon_zmq.protocol import limits

log = logging.getLogger("axon_zmq.broker")

RESERVED_FILES: Final = 512
"""File descriptors that connections of clients may not use: at most half of all."""


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m axon_zmq.broker", description="Run a broker; see axon-zmq.")
    parser.add_argument("--frontend", required=True, help="endpoint for clients, such as tcp://127.0.0.1:5570")
    parser.add_argument("--run-dir", required=True, type=Path, help="run directory, with the socket for workers")
    parser.add_argument("--workers", type=int, default=0, help="workers to wait for; 0: all that supervisord started")
    parser.add_argument("--log-level", default="info", help="level of Python's logging, such as info")
    for bound in dataclasses.fields(limits.BrokerLimits):
        parser.add_argument(f"--{bound.name.replace('_', '-')}", type=int, default=bound.default)
    return parser.parse_args(argv)


def _raise_file_limit() -> int:
    """Raise the limit of open files to the highest allowed value, because each client needs a file descriptor.

    Returns:
        The limit.
    """
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


def _within_file_limit(bounds: limits.BrokerLimits, open_files: int) -> limits.BrokerLimits:
    """Lower `max_connections` so that some descriptors stay free for workers, files, and connections to refuse.

    At the limit of open files, ZeroMQ can neither accept a connection nor refuse it, and tries again without a pause.
    """
    reserve = min(RESERVED_FILES, open_files // 2)
    if bounds.max_connections <= open_files - reserve:
        return bounds
    log.warning(
        "AXON_MAX_CONNECTIONS %d is lowered to %d: this process may open %d files (ulimit -n), and %d are reserved",
        *(bounds.max_connections, open_files - reserve, open_files, reserve),
    )
    return dataclasses.replace(bounds, max_connections=open_files - reserve)


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT.

    Returns:
        The exit code: 0 after a signal, 2 if the broker cannot start with its configuration.
    """
    options = _arguments(sys.argv[1:] if argv is None else argv)
    disable_core_dumps()
    lifeline.die_with_parent()
    lifeline.stdin_from_devnull()
    logs.configure("broker", options.log_level)
    redaction.redact_standard_streams()
    bounds = limits.BrokerLimits(
        **{bound.name: getattr(options, bound.name) for bound in dataclasses.fields(limits.BrokerLimits)}
    )
    run_dir = options.run_dir.absolute()
    try:
        frontend = endpoints.check_frontend(options.frontend)
        check_frontend_path(frontend, run_dir)
        backend = backend_endpoint(run_dir)
        private_directory(run_dir)
        backoff.pause(run_dir, "broker", backoff.BROKER)
        # Imported only now: if a package cannot be imported, the starts are counted and delayed, too.
        from axon_zmq.broker import server
        from axon_zmq.broker.core.broker import Broker
        from axon_zmq.broker.journal import JOURNAL_FILE, Journal

        bounds = _within_file_limit(bounds, _raise_file_limit())
        # The locks protect both endpoints until the process ends. They are needed because binding an ipc path that is
        # in use takes the path away from the process that uses it.
        with ExitStack() as locks:
            locks.enter_context(hold_lock(run_dir / BROKER_LOCK_FILE))
            if frontend.startswith("ipc://"):
                locks.enter_context(hold_lock(Path(frontend.removeprefix("ipc://") + ".lock")))
            delete_old_files = partial(clear_handover_files, run_dir, limits.RESUME_WINDOW)
            delete_old_files()
            os.umask(0o177)  # the sockets, too, are only for this user
            gc.tune_gc()
            journal = Journal(run_dir / JOURNAL_FILE, handover_files(run_dir), time.monotonic())
            server.serve(
                make_core=lambda now: Broker(
                    boot=secrets.token_hex(8),
                    bounds=bounds,
                    version=__version__,
                    expected_workers=options.workers,
                    now=now,
                    previous=journal.previous,
                ),
                journal=journal,
                frontend=frontend,
                backend=backend,
                delete_old_files=delete_old_files,
            )
    except ConfigurationError as error:
        log.error("%s", error)
        # supervisord restarts the broker at once, see BROKER_START_SECONDS in supervise/conf.py.
        backoff.pause_before_exit(run_dir, "broker", backoff.BROKER)
        return 2
    backoff.forget_starts(run_dir, "broker")
    return 0


if __name__ == "__main__":
    sys.exit(main())
