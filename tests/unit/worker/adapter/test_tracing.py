"""The spans of pydantic-ai are without secrets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode
from pydantic_ai import Agent
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.models.instrumented import InstrumentationSettings

from axon_zmq.process.redaction import MASK, redactor
from axon_zmq.worker.adapter import tracing
from tests.support.spans import Recorder

PLANTED = "planted-12345678"


@pytest.fixture
def recorded(monkeypatch: Any) -> list[str]:
    """Everything that spans get, once `redact_traces` was called."""
    monkeypatch.setattr(InstrumentationSettings, "tracer", None, raising=False)  # restores the class at the end
    monkeypatch.setenv("PLANTED_KEY", PLANTED)
    redactor.refresh()
    tracing.redact_traces()
    return []


def test_every_part_of_a_span_is_without_secrets(recorded: list[str]):
    tracer = InstrumentationSettings(tracer_provider=Recorder(recorded.append)).tracer
    with tracer.start_as_current_span(PLANTED, attributes={"a": PLANTED}) as span:
        assert trace.get_current_span() is span
        assert span.is_recording()
        assert span.get_span_context().is_valid
        span.set_attribute("b", [PLANTED, 5])
        span.set_attributes({"c": PLANTED})
        span.add_event(PLANTED, {"d": PLANTED}, 5)
        span.add_link(span.get_span_context(), {"e": PLANTED})
        span.update_name(PLANTED)
        span.set_status(Status(StatusCode.ERROR, PLANTED))
        span.set_status(StatusCode.ERROR, PLANTED)
        span.record_exception(ValueError(PLANTED), {"f": PLANTED})
    assert PLANTED not in " ".join(recorded)
    assert len([text for text in recorded if MASK in text]) == 8
    assert any("ValueError" in text and "exception.stacktrace" in text for text in recorded)


def test_the_exception_that_ends_a_run_is_recorded_without_secrets(recorded: list[str]):
    def fail(*_: Any) -> Any:
        raise RuntimeError(PLANTED)

    agent = Agent(FunctionModel(fail))
    agent.instrument = InstrumentationSettings(tracer_provider=Recorder(recorded.append))
    with pytest.raises(RuntimeError, match=PLANTED):
        asyncio.run(agent.run("x"))
    assert PLANTED not in " ".join(recorded)
    assert any(text.startswith("exception RuntimeError") and MASK in text for text in recorded)
