"""Relays the log records of a run to its client, if the client requested them.

Records are bounded in number and size. A record is dropped and counted rather than delaying the run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from reprlib import Repr
from typing import Any, Final

from axon_zmq.process.redaction import redactor
from axon_zmq.protocol import kinds
from axon_zmq.protocol.plain import describe_value, plain
from axon_zmq.worker.run import Run

executing_run: ContextVar[Run | None] = ContextVar("executing_run", default=None)
"""The run for which the current task or thread executes code."""
MAX_RECORDS_PER_SECOND: Final = 200
"""Maximum number of records of one run that are relayed in a second; further ones are dropped and counted."""
MAX_MESSAGE_CHARS: Final = 4096
"""Maximum number of characters of a record's message that are relayed."""
MAX_FIELD_CHARS: Final = 512
"""Maximum number of characters of each extra field that are relayed."""
MAX_FIELDS: Final = 20
"""Maximum number of extra fields of one record that are relayed."""
_DAEMON_LOGGERS: Final = ("axon_zmq.worker", "axon_zmq.broker")
"""Loggers of the daemon itself, whose records are for the operator."""
_STANDARD_ATTRIBUTES: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "run"}
"""Attributes of a record that are not extra fields. `taskName` exists since Python 3.12; `run` is our own."""


@dataclass(slots=True, kw_only=True)
class _Listener:
    """The lowest level that one run's client requested, and counters of the run's records."""

    level: int
    """The lowest level that is relayed."""
    since: float = 0.0
    """When the current second began, in seconds of the monotonic clock."""
    relayed: int = 0
    """Records in the current second."""
    dropped: int = 0
    """Records that were dropped and not yet reported to the client."""

    def admits(self, now: float) -> bool:
        """Count a record, and return whether it is within the limit of the current second."""
        if now - self.since >= 1.0:
            self.since, self.relayed = now, 0
        self.relayed += 1
        return self.relayed <= MAX_RECORDS_PER_SECOND


class RunLogs(logging.Handler):
    """Log handler that relays records to the clients of runs; a process has one, on the root logger.

    Below WARNING, only loggers that the operator named are relayed, because libraries log requests with their
    credentials at these levels. While a run requests a lower level than the operator's, the root logger has that level.
    """

    def __init__(self) -> None:
        super().__init__()
        self._names: tuple[str, ...] = ()
        self._listeners: dict[Run, _Listener] = {}
        self._operator_level = logging.WARNING

    @property
    def listening_runs(self) -> int:
        """Runs whose records are relayed."""
        return len(self._listeners)

    def install(self, names: Iterable[str]) -> None:
        """Add this handler to the root logger, whose current level is the one that the operator set.

        Args:
            names: Loggers that may be relayed below WARNING, including their children.
        """
        root = logging.getLogger()
        self._names = tuple(names)
        self._operator_level = root.level
        for handler in root.handlers:
            # The root logger's level is lowered for runs; the daemon's log must keep the level that the operator set.
            handler.setLevel(max(handler.level, root.level))
        root.addHandler(self)

    def listen(self, run: Run, level: str) -> None:
        """Relay a run's records of this level and above, until `forget`."""
        if level != "off":
            with self._guard():
                self._listeners[run] = _Listener(level=logging.getLevelNamesMapping()[level.upper()])
                self._set_root_level()

    def forget(self, run: Run) -> None:
        """Stop relaying the records of a run, which is about to end."""
        if run not in self._listeners:
            return
        with self._guard():
            listener = self._listeners.pop(run)
            self._set_root_level()
        if listener.dropped:
            run.send(kinds.LOG, _dropped_records(listener.dropped))

    def emit(self, record: logging.LogRecord) -> None:
        """Relay a record if the client of its run requested it; called in the thread that logs the record."""
        run = executing_run.get()
        listener = None if run is None else self._listeners.get(run)
        if run is None or listener is None or record.levelno < listener.level or not self._is_relayed(record):
            return
        # Dropped, because waiting here would stop the code that logs, and in most modes the event loop of all runs.
        if run.congested() or not listener.admits(time.monotonic()):
            listener.dropped += 1
            return
        body = _body(record, run)
        if listener.dropped:
            run.post(run.send, kinds.LOG, _dropped_records(listener.dropped))
            listener.dropped = 0
        run.post(run.send, kinds.LOG, body)

    def _is_relayed(self, record: logging.LogRecord) -> bool:
        if _is_under(record.name, _DAEMON_LOGGERS):
            return False
        return record.levelno >= logging.WARNING or _is_under(record.name, self._names)

    def _guard(self) -> Any:
        # The handler's own lock, which `logging` holds while it calls `emit` in any thread.
        assert self.lock is not None
        return self.lock

    def _set_root_level(self) -> None:
        levels = (listener.level for listener in self._listeners.values())
        logging.getLogger().setLevel(min((self._operator_level, *levels)))


handler: Final = RunLogs()
"""The handler of this process."""


def _is_under(name: str, names: Iterable[str]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in names)


def _dropped_records(count: int) -> dict[str, Any]:
    message = f"{count} records were dropped: more than {MAX_RECORDS_PER_SECOND} in a second, or the broker was busy"
    return {"level": "warning", "message": message, "logger": "axon_zmq", "fields": {"left_out": count}}


def _body(record: logging.LogRecord, run: Run) -> dict[str, Any]:
    """Return the body of a `log` message. Secrets are removed before texts are cut: a part of one is not recognized."""
    if record.levelno >= logging.WARNING:
        redactor.refresh()
    extra = [(name, value) for name, value in vars(record).items() if name not in _STANDARD_ATTRIBUTES]
    fields = {"run": run.name, **{name: _plain(value) for name, value in extra[:MAX_FIELDS]}}
    if record.exc_info and record.exc_info[1] is not None:
        text = f"{type(record.exc_info[1]).__name__}: {describe_value(record.exc_info[1])}"
        fields["exception"] = redactor.text(text)[:MAX_FIELD_CHARS]
    return {
        "level": record.levelname.lower(),
        "message": redactor.text(_message(record))[:MAX_MESSAGE_CHARS],
        "logger": record.name,
        "fields": fields,
    }


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # arguments that do not fit the format, or an object whose `__str__` raises
        return describe_value(record.msg)


def _plain(value: Any) -> Any:
    """Return the value of a field unchanged if it is small, and the beginning of its text otherwise."""
    if isinstance(value, str):
        return redactor.text(value)[:MAX_FIELD_CHARS]
    if isinstance(value, bytes):
        return value[:MAX_FIELD_CHARS]
    if isinstance(value, int | float | None):
        return plain(value)
    text = _SHORT.repr(value)
    is_cut = len(text) >= MAX_FIELD_CHARS or "..." in text
    return redactor.text(text)[:MAX_FIELD_CHARS] if is_cut else redactor.value(plain(value))


_SHORT: Final = Repr()
"""Makes texts of bounded size, however large the value is."""
_SHORT.maxdict = _SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = _SHORT.maxfrozenset = 20
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = MAX_FIELD_CHARS
