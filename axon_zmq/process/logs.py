"""Logging of broker and workers: one format, with the request id in every line about a run."""

from __future__ import annotations

import logging
import os
from contextvars import ContextVar

from axon_zmq.process.redaction import redactor

current_run: ContextVar[str] = ContextVar("current_run", default="-")
"""Request id of the run that the current task or thread executes; "-" if none."""


class _RunFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "run"):
            record.run = current_run.get()
        return True


class _RedactingFormatter(logging.Formatter):
    """Formats a record, with its traceback, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        if record.levelno >= logging.WARNING:
            # The record is often about an exception of code that has just set variables, such as an agent's module.
            redactor.refresh()
        return redactor.text(super().format(record))


def configure(process: str, level: str) -> None:
    """Write log records, without secrets, to stderr, which supervisord captures and rotates.

    Args:
        process: Name of the program, as in `supervisorctl status`.
        level: Name of a level of Python's `logging`; it applies to the loggers of this package and of agents.
    """
    handler = logging.StreamHandler()
    handler.addFilter(_RunFilter())
    handler.setFormatter(
        _RedactingFormatter(
            f"%(asctime)s.%(msecs)03d %(levelname)-7s {process}[{os.getpid()}] id=%(run)s %(name)s: %(message)s",
            datefmt="%Y-%m-%d %H:%M:%S",
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for chatty in ("httpx", "httpx2", "httpcore", "httpcore2", "openai", "asyncio"):
        # Below WARNING, these libraries log prompts (openai at DEBUG) and the addresses of providers.
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLogger().level))
