"""A tracer provider that records everything that its spans get, as text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, TraceFlags

Write = Callable[[str], object]


class _Span(NonRecordingSpan):
    def __init__(self, write: Write) -> None:
        super().__init__(SpanContext(1, 1, False, TraceFlags(1)))
        self._write = write

    def is_recording(self) -> bool:
        return True

    def set_attributes(self, attributes: Any) -> None:
        self._write(f"attributes {attributes}")

    def set_attribute(self, key: str, value: Any) -> None:
        self._write(f"attribute {key} {value}")

    def add_event(self, name: str, attributes: Any = None, timestamp: Any = None) -> None:
        self._write(f"event {name} {attributes} {timestamp}")

    def update_name(self, name: str) -> None:
        self._write(f"name {name}")

    def set_status(self, status: Any, description: str | None = None) -> None:
        self._write(f"status {getattr(status, 'description', '')} {description}")

    def record_exception(self, exception: Any, attributes: Any = None, *_: Any, **__: Any) -> None:
        # As in OpenTelemetry's SDK, given attributes replace those of the exception.
        described = {"exception.message": str(exception), **(attributes or {})}
        self._write(f"exception {type(exception).__name__} {described}")


class _Tracer(trace.NoOpTracer):
    def __init__(self, write: Write) -> None:
        self._write = write

    def start_span(self, name: str, *_: Any, attributes: Any = None, **__: Any) -> Span:
        self._write(f"start {name} {attributes}")
        return _Span(self._write)

    def start_as_current_span(self, name: str, *arguments: Any, **options: Any) -> Any:
        kept = {key: options.pop(key) for key in ("record_exception", "set_status_on_exception") if key in options}
        return trace.use_span(self.start_span(name, *arguments, **options), **kept)


class Recorder(trace.TracerProvider):
    """A tracer provider for `InstrumentationSettings`.

    Args:
        write: Is called with each text that a span gets.
    """

    def __init__(self, write: Write) -> None:
        self._write = write

    def get_tracer(self, *_: Any, **__: Any) -> trace.Tracer:
        return _Tracer(self._write)
