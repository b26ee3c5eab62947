"""Continues a client's trace: the `traceparent` of its request becomes the parent of pydantic-ai's spans."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

from opentelemetry import context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator


@contextmanager
def continue_trace(header: Mapping[str, object]) -> Generator[None]:
    """Attach the trace in a request's header; a malformed `traceparent` starts a new trace, as W3C requires."""
    carrier = {key: header[key] for key in ("traceparent", "tracestate") if key in header}
    token = context.attach(TraceContextTextMapPropagator().extract(carrier))
    try:
        yield
    finally:
        context.detach(token)
