"""A run's log records, relayed to the client that asked for them: bounded, and never in the run's way."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from reprlib import Repr
from typing import Any, Final

from axon_zmq.protocol import kinds
from axon_zmq.protocol.plain import describe_value, plain
from axon_zmq.worker.run import Run

executing_run: ContextVar[Run | None] = ContextVar("executing_run", default=None)
"""The run that this task or thread works for."""
PER_SECOND: Final = 200
"""Records of one run that are relayed in a second; more are counted."""
MAX_MESSAGE_CHARS: Final = 4096
"""Characters of a record's message."""
MAX_FIELD_CHARS: Final = 512
"""Characters of each of its fields."""
MOST_FIELDS: Final = 20
"""Extra fields of one record."""
_OUR_OWN: Final = ("axon_zmq.worker", "axon_zmq.broker")
"""The daemon's loggers, which speak to the operator."""
_NO_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "run"}


@dataclass(slots=True, kw_only=True)
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

    Below WARNING only the loggers that the operator named are relayed: libraries log requests with their
    credentials. While a run asks for a finer level than the operator's, the root logger lets it through.
    """

    def __init__(self) -> None:
        super().__init__()
        self._names: tuple[str, ...] = ()
        self._listeners: dict[Run, _Listener] = {}
        self._operators_level = logging.WARNING

    @property
    def listening_runs(self) -> int:
        """Runs whose records are relayed."""
        return len(self._listeners)

    def install(self, names: Iterable[str]) -> None:
        """Listen to the root logger, whose level is the operator's.

        Args:
            names: Loggers that runs may relay, with those below them.
        """
        root = logging.getLogger()
        self._names = tuple(names)
        self._operators_level = root.level
        for handler in root.handlers:
            handler.setLevel(max(handler.level, root.level))
        root.addHandler(self)

    def listen(self, run: Run, level: str) -> None:
        """Relay a run's records from this level on, until `forget`."""
        if level != "off":
            with self._guard():
                self._listeners[run] = _Listener(level=logging.getLevelNamesMapping()[level.upper()])
                self._let_through()

    def forget(self, run: Run) -> None:
        """The run is about to end."""
        if run not in self._listeners:
            return
        with self._guard():
            listener = self._listeners.pop(run)
            self._let_through()
        if listener.left_out:
            run.send(kinds.LOG, _about_left_out(listener.left_out))

    def emit(self, record: logging.LogRecord) -> None:
        """Relay a record, if its run asked for it. Called in whatever thread has logged."""
        run = executing_run.get()
        listener = None if run is None else self._listeners.get(run)
        if run is None or listener is None or record.levelno < listener.level or not self._may_leave(record):
            return
        if run.congested() or not listener.admits(time.monotonic()):
            listener.left_out += 1
            return
        body = _body(record, run)
        if listener.left_out:
            run.post(run.send, kinds.LOG, _about_left_out(listener.left_out))
            listener.left_out = 0
        run.post(run.send, kinds.LOG, body)

    def _may_leave(self, record: logging.LogRecord) -> bool:
        if _is_under(record.name, _OUR_OWN):
            return False
        return record.levelno >= logging.WARNING or _is_under(record.name, self._names)

    def _guard(self) -> Any:
        assert self.lock is not None
        return self.lock

    def _let_through(self) -> None:
        levels = (listener.level for listener in self._listeners.values())
        logging.getLogger().setLevel(min((self._operators_level, *levels)))


handler: Final = RunLogs()
"""The process's own."""


def _is_under(name: str, names: Iterable[str]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in names)


def _about_left_out(count: int) -> dict[str, Any]:
    message = f"{count} records were left out: more than {PER_SECOND} in a second, or the broker was busy"
    return {"level": "warning", "message": message, "logger": "axon_zmq", "fields": {"left_out": count}}


def _body(record: logging.LogRecord, run: Run) -> dict[str, Any]:
    extra = [(name, value) for name, value in vars(record).items() if name not in _NO_FIELDS]
    fields = {"run": run.name, **{name: _plain(value) for name, value in extra[:MOST_FIELDS]}}
    if record.exc_info and record.exc_info[1] is not None:
        fields["exception"] = f"{type(record.exc_info[1]).__name__}: {describe_value(record.exc_info[1])}"[
            :MAX_FIELD_CHARS
        ]
    return {
        "level": record.levelname.lower(),
        "message": _message(record)[:MAX_MESSAGE_CHARS],
        "logger": record.name,
        "fields": fields,
    }


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # arguments that do not fit the format, or an object without a text
        return describe_value(record.msg)


def _plain(value: Any) -> Any:
    """A field: as it is where it is small, and else the beginning of its text."""
    if isinstance(value, str | bytes):
        return value[:MAX_FIELD_CHARS]
    if isinstance(value, int | float | None):
        return plain(value)
    text = _SHORT.repr(value)
    return text[:MAX_FIELD_CHARS] if len(text) >= MAX_FIELD_CHARS or "..." in text else plain(value)


_SHORT: Final = Repr()
"""Texts of bounded size, whatever they are of."""
_SHORT.maxdict = _SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = _SHORT.maxfrozenset = 20
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = MAX_FIELD_CHARS
