"""Log lines of broker and workers: one format, and the request's id in every line about a run."""

from __future__ import annotations

import logging
import os
from contextvars import ContextVar

current_run: ContextVar[str] = ContextVar("current_run", default="-")
"""The id of the request that this task or thread works for."""


class _RunFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "run"):
            record.run = current_run.get()
        return True


def configure(process: str, level: str) -> None:
    """Write to stderr, which supervisord keeps and rotates.

    Args:
        process: The program's name in `supervisorctl status`.
        level: A level of Python's `logging`, of the axon_zmq loggers and of agents' own.
    """
    handler = logging.StreamHandler()
    handler.addFilter(_RunFilter())
    handler.setFormatter(
        logging.Formatter(
            f"%(asctime)s.%(msecs)03d %(levelname)-7s {process}[{os.getpid()}] id=%(run)s %(name)s: %(message)s",
            datefmt="%Y-%m-%d %H:%M:%S",
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for chatty in ("httpx", "httpx2", "httpcore", "httpcore2", "openai", "asyncio"):
        # Their lines hold prompts (openai at debug) and addresses.
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLogger().level))
