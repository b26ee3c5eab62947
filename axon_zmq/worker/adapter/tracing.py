"""A client's trace goes on through the run: its `traceparent` becomes the parent of pydantic-ai's spans."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

from opentelemetry import context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator


@contextmanager
def continued(header: Mapping[str, object]) -> Generator[None]:
    """Attach the trace of a request's header; one that is malformed starts a new trace, as W3C asks."""
    carrier = {key: header[key] for key in ("traceparent", "tracestate") if key in header}
    token = context.attach(TraceContextTextMapPropagator().extract(carrier))
    try:
        yield
    finally:
        context.detach(token)
