"""The broker process: `python -m axon_zmq.broker`, as supervisord starts it.

It takes plain values and imports neither pydantic nor pydantic_ai, so that it starts at once and stays
small; `axon-zmq broker` is the same with the values from the settings.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import secrets
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from axon_zmq import __version__
from axon_zmq.broker import server
from axon_zmq.broker.core.broker import Broker
from axon_zmq.broker.journal import JOURNAL_FILE, Journal
from axon_zmq.errors import ConfigurationError
from axon_zmq.net import endpoints
from axon_zmq.process import backoff, gc, lifeline, logs
from axon_zmq.process.locks import BROKER_LOCK_FILE, hold_lock
from axon_zmq.process.run_dir import backend_endpoint, handover_files, private_directory
from axon_zmq.protocol import limits


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m axon_zmq.broker", description="Serve clients; see axon-zmq.")
    parser.add_argument("--frontend", required=True, help="where clients connect, such as tcp://127.0.0.1:5570")
    parser.add_argument("--run-dir", required=True, type=Path, help="for the socket to the workers")
    parser.add_argument("--workers", type=int, default=0, help="how many to wait for; 0: those of supervisord's")
    parser.add_argument("--log-level", default="info")
    for bound in dataclasses.fields(limits.BrokerLimits):
        parser.add_argument(f"--{bound.name.replace('_', '-')}", type=int, default=bound.default)
    return parser.parse_args(argv)


def _raise_file_limit() -> None:
    """A descriptor for each client: use what the system grants."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main(argv: list[str] | None = None) -> int:
    """Serve until a signal; 0 when stopped, 2 when it cannot be started as configured."""
    options = _arguments(sys.argv[1:] if argv is None else argv)
    lifeline.die_with_parent()
    lifeline.stdin_from_devnull()
    logs.configure("broker", options.log_level)
    bounds = limits.BrokerLimits(
        **{bound.name: getattr(options, bound.name) for bound in dataclasses.fields(limits.BrokerLimits)}
    )
    try:
        frontend = endpoints.check_frontend(options.frontend)
        endpoints.check_folder(frontend)
        run_dir = private_directory(options.run_dir.absolute())
        backend = backend_endpoint(run_dir)
        backoff.pause(run_dir, "broker")
        _raise_file_limit()
        with ExitStack() as locks:
            locks.enter_context(hold_lock(run_dir / BROKER_LOCK_FILE))
            if frontend.startswith("ipc://"):
                locks.enter_context(hold_lock(Path(frontend.removeprefix("ipc://") + ".lock")))
            gc.tune_gc()
            journal = Journal(run_dir / JOURNAL_FILE, handover_files(run_dir), time.monotonic())
            server.serve(
                lambda now: Broker(
                    boot=secrets.token_hex(8),
                    bounds=bounds,
                    version=__version__,
                    expected_workers=options.workers,
                    now=now,
                    previous=journal.previous,
                ),
                journal,
                frontend,
                backend,
                bounds.max_body,
            )
    except ConfigurationError as error:
        server.log.error("%s", error)
        return 2
    backoff.forget_starts(run_dir, "broker")
    return 0


if __name__ == "__main__":
    sys.exit(main())
