"""A run's log records, relayed to the client that asked for them: bounded, and never in the run's way."""

from __future__ import annotations

import logging
import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from pydantic_core import to_jsonable_python

from axon_zmq.errors import AxonError
from axon_zmq.worker.jobs import Job

current_job: ContextVar[Job | None] = ContextVar("current_job", default=None)
"""The run that this task or thread works for."""
PER_SECOND: Final = 200
"""Records of one run that are relayed in a second; more are counted."""
LONGEST: Final = 8192
"""Characters of a record's message, and of each of its fields."""
MOST_FIELDS: Final = 50
"""Extra fields of one record."""
_OUR_OWN: Final = ("axon_zmq.worker", "axon_zmq.broker")
"""The daemon's loggers, which speak to the operator."""
_NO_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "run"}


@dataclass(slots=True)
class _Listener:
    """What one run has asked for, and had in this second."""

    level: int
    since: float = 0.0
    relayed: int = 0
    left_out: int = 0

    def admits(self, now: float) -> bool:
        if now - self.since >= 1.0:
            self.since, self.relayed = now, 0
        self.relayed += 1
        return self.relayed <= PER_SECOND


class RunLogs(logging.Handler):
    """Relays the records of the runs that asked for them; one for a process, on the root logger.

    While a run asks for a finer level than the operator's, the root logger lets it through.
    """

    def __init__(self) -> None:
        super().__init__()
        self._listeners: dict[Job, _Listener] = {}
        self._operators_level = logging.WARNING

    def install(self) -> None:
        """Listen to the root logger, whose level is the operator's."""
        root = logging.getLogger()
        self._operators_level = root.level
        for handler in root.handlers:
            handler.setLevel(max(handler.level, root.level))
        root.addHandler(self)

    def listen(self, job: Job, level: str) -> None:
        """Relay a run's records from this level on, until `forget`."""
        if level != "off":
            with self._guard():
                self._listeners[job] = _Listener(logging.getLevelNamesMapping()[level.upper()])
                self._let_through()

    def forget(self, job: Job) -> None:
        """The run is about to end."""
        if job not in self._listeners:
            return
        with self._guard():
            listener = self._listeners.pop(job)
            self._let_through()
        if listener.left_out:
            _relay(job, _about_left_out(listener.left_out))

    def emit(self, record: logging.LogRecord) -> None:
        """Relay a record, if its run asked for it. Called in whatever thread has logged."""
        job = current_job.get()
        listener = None if job is None else self._listeners.get(job)
        if job is None or listener is None or record.levelno < listener.level or record.name.startswith(_OUR_OWN):
            return
        if job.congested() or not listener.admits(time.monotonic()):
            listener.left_out += 1
            return
        try:
            body = _body(record, job)
        except Exception:  # arguments that do not fit the format, or an object without a text
            self.handleError(record)
            return
        if listener.left_out:
            job.post(_relay, job, _about_left_out(listener.left_out))
            listener.left_out = 0
        job.post(_relay, job, body)

    def _guard(self) -> Any:
        assert self.lock is not None
        return self.lock

    def _let_through(self) -> None:
        levels = (listener.level for listener in self._listeners.values())
        logging.getLogger().setLevel(min((self._operators_level, *levels)))


handler: Final = RunLogs()
"""The process's own."""


def _relay(job: Job, body: dict[str, Any]) -> None:
    try:
        job.send(b"log", body)
    except AxonError:  # a field that msgpack cannot hold
        job.send(b"log", {**body, "fields": {}})


def _about_left_out(count: int) -> dict[str, Any]:
    message = f"{count} records were left out: more than {PER_SECOND} in a second, or the broker was busy"
    return {"level": "warning", "message": message, "logger": "axon_zmq", "fields": {"left_out": count}}


def _body(record: logging.LogRecord, job: Job) -> dict[str, Any]:
    extra = [(name, value) for name, value in vars(record).items() if name not in _NO_FIELDS]
    fields = {"run": job.name, **{name: _plain(value) for name, value in extra[:MOST_FIELDS]}}
    if record.exc_info and record.exc_info[1] is not None:
        fields["exception"] = f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}"[:LONGEST]
    return {
        "level": record.levelname.lower(),
        "message": record.getMessage()[:LONGEST],
        "logger": record.name,
        "fields": fields,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return str(value)[:LONGEST]
    if isinstance(value, int | float | None):
        return value
    if isinstance(value, str | bytes):
        return value[:LONGEST]
    made = to_jsonable_python(value, fallback=repr)
    return made if len(repr(made)) <= LONGEST else repr(made)[:LONGEST]
