"""Continues a client's trace, and removes secrets from the spans of pydantic-ai.

The `traceparent` of a request becomes the parent of pydantic-ai's spans.
"""

from __future__ import annotations

import traceback
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from opentelemetry import context, trace
from opentelemetry.trace import Span, SpanContext, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import Attributes, AttributeValue

from axon_zmq.process.redaction import redactor
from axon_zmq.worker.adapter import compat


@contextmanager
def continue_trace(header: Mapping[str, object]) -> Generator[None]:
    """Attach the trace in a request's header; a malformed `traceparent` starts a new trace, as W3C requires."""
    carrier = {key: header[key] for key in ("traceparent", "tracestate") if key in header}
    token = context.attach(TraceContextTextMapPropagator().extract(carrier))
    try:
        yield
    finally:
        context.detach(token)


def redact_traces() -> None:
    """Remove secrets from all spans that pydantic-ai makes in this process from now on.

    Spans that an agent's own code makes with its own tracer do not pass the redactor.
    """
    compat.wrap_tracers(_RedactingTracer)


class _RedactingTracer(Tracer):
    """A tracer whose spans are without secrets."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def start_span(self, name: str, *arguments: Any, attributes: Attributes = None, **options: Any) -> Span:
        span = self._tracer.start_span(redactor.text(name), *arguments, attributes=_clean(attributes), **options)
        return _RedactingSpan(span)

    def start_as_current_span(
        self,
        name: str,
        *arguments: Any,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        end_on_exit: bool = True,
        **options: Any,
    ) -> Any:
        return trace.use_span(
            self.start_span(name, *arguments, **options),
            end_on_exit=end_on_exit,
            record_exception=record_exception,
            set_status_on_exception=set_status_on_exception,
        )


class _RedactingSpan(Span):
    """A span to which only texts without secrets are added."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def __getattr__(self, name: str) -> Any:
        # Attributes that only the span of a tracing library has, such as `attributes`.
        return getattr(self._span, name)

    def end(self, end_time: int | None = None) -> None:
        self._span.end(end_time)

    def get_span_context(self) -> SpanContext:
        return self._span.get_span_context()

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        self._span.set_attributes(redactor.value(attributes))

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        self._span.set_attribute(key, redactor.value(value))

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        self._span.add_event(redactor.text(name), _clean(attributes), timestamp)

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        self._span.add_link(context, _clean(attributes))

    def update_name(self, name: str) -> None:
        self._span.update_name(redactor.text(name))

    def is_recording(self) -> bool:
        return self._span.is_recording()

    def set_status(self, status: Any, description: str | None = None) -> None:
        if isinstance(status, trace.Status):
            status = trace.Status(status.status_code, _clean(status.description))
        self._span.set_status(status, _clean(description))

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        redactor.refresh()
        # Tracing libraries prefer given attributes to those that they make from the exception.
        described = {
            "exception.message": str(exception),
            "exception.stacktrace": "".join(traceback.format_exception(exception)),
            **(attributes or {}),
        }
        self._span.record_exception(exception, redactor.value(described), timestamp, escaped)


def _clean(value: Any) -> Any:
    return None if value is None else redactor.value(value)
