"""Errors for clients are without secrets."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic_ai.messages import (
    ModelRequest,
    ModelResponse,
    RetryFeedbackPart,
    RetryInfo,
    TextPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.usage import RunUsage

from axon_zmq.errors import AxonError, ToolError
from axon_zmq.process.redaction import MASK
from axon_zmq.worker.adapter import errors

PLANTED = "planted-12345678"


@pytest.fixture(autouse=True)
def planted(monkeypatch: Any) -> None:
    """A secret in the environment, which the redactor has not seen yet."""
    monkeypatch.setenv("LATE_KEY", PLANTED)


def test_message_and_details_are_redacted_and_the_class_stays():
    made = AxonError.of("tool_failed", f"raised {PLANTED}", {"errors": [{"message": PLANTED}], "n": 5})
    cleaned = errors.redact(made)
    assert type(cleaned) is ToolError
    assert str(cleaned) == f"tool_failed: raised {MASK}"
    assert cleaned.details == {"errors": [{"message": MASK}], "n": 5}
    assert PLANTED not in repr(cleaned)


def test_of_a_partial_answer_only_the_failures_are_redacted():
    messages = [
        ModelRequest([UserPromptPart(PLANTED)]),
        ModelResponse([TextPart(PLANTED)]),
        ModelRequest(
            [
                RetryFeedbackPart(f"failed {PLANTED}", retry=RetryInfo(cause="output_validation")),
                ToolReturnPart("a", f"failed {PLANTED}", "1", outcome="failed"),
                ToolReturnPart("a", f"found {PLANTED}", "2"),
            ]
        ),
    ]
    made = errors.redact(errors.explain(ValueError(), messages, RunUsage()))
    partial = made.details["partial"]
    contents = [part["content"] for message in partial["messages"] for part in message["parts"]]
    assert contents == [PLANTED, PLANTED, f"failed {MASK}", f"failed {MASK}", f"found {PLANTED}"]


def test_a_secret_is_removed_before_a_message_is_shortened():
    errors.redact(AxonError("internal", ""))  # the redactor reads the environment
    made = errors.raised_by("a", ValueError("x" * 960 + PLANTED + "y" * 100))
    assert "planted" not in made.message
    assert made.message.endswith(" …")
