"""Why a run failed: pydantic-ai's exceptions to the contract's codes, the most specific first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_ai import exceptions as ai
from pydantic_ai.messages import ModelMessage
from pydantic_ai.toolsets import FunctionToolset
from pydantic_ai.usage import RunUsage

from axon_zmq.errors import AxonError
from axon_zmq.worker import history

_CODES: tuple[tuple[type[Exception], str], ...] = (
    (ai.RunCancelled, "cancelled"),
    (ai.UsageLimitExceeded, "usage_limit_exceeded"),
    (ai.ConcurrencyLimitExceeded, "overloaded"),
    (ai.ContentFilterError, "content_filtered"),
    (ai.UnexpectedModelBehavior, "model_behavior"),
    (ai.ModelRateLimitError, "model_rate_limited"),
    (ai.ModelQuotaExceededError, "model_rejected"),
    (ai.ModelContextWindowExceededError, "model_context_exceeded"),
    (ai.ModelAuthenticationError, "model_auth"),
    (ai.ModelNotFoundError, "unknown_model"),
    (ai.ModelRequestRejectedError, "model_rejected"),
    (ai.ModelConnectionError, "model_connection"),
    (ai.ModelRequestTimeout, "model_connection"),
    (ai.ModelAPIError, "model_unavailable"),
    (ai.UserError, "invalid_request"),
)
_OUTPUT_RETRIES = "Exceeded maximum output retries"
"""How pydantic-ai says that the answer did not fit the schema, each time it was asked."""


def explain(error: Exception, messages: Sequence[ModelMessage], usage: RunUsage) -> AxonError:
    """The contract's error for what a run raised.

    Args:
        error: What `Agent.run` raised, or the code around it.
        messages: The run's own messages as far as they came; kept in `details.partial`.
        usage: What it cost so far.
    """
    made = error if isinstance(error, AxonError) else _classify(error)
    if messages:
        made.details.setdefault(
            "partial",
            {
                "text": history.last_text(messages),
                "messages": history.dump(list(messages)),
                "usage": history.usage(usage),
            },
        )
    return made


def _classify(error: Exception) -> AxonError:
    if isinstance(error, ai.FallbackExceptionGroup) and isinstance(error.exceptions[-1], Exception):
        return _classify(error.exceptions[-1])
    if (tool := _raising_tool(error)) is not None:
        return AxonError.of("tool_failed", f"tool {tool!r} raised {type(error).__name__}: {error}", {"tool": tool})
    for family, code in _CODES:
        if isinstance(error, family):
            return AxonError.of(_refined(code, error), _message(error), _details(error))
    return AxonError.of("internal", f"{type(error).__name__} in the worker; its log has the trace")


def _refined(code: str, error: Exception) -> str:
    return "invalid_output" if code == "model_behavior" and _OUTPUT_RETRIES in str(error) else code


def _message(error: Exception) -> str:
    if not isinstance(error, ai.UnexpectedModelBehavior):
        return str(error)
    faults = "; ".join(f"{fault['pointer'] or '/'}: {fault['message']}" for fault in _faults(error.__cause__))
    return f"{error.message}: {faults or error.__cause__}" if error.__cause__ else str(error)


def _faults(cause: BaseException | None) -> list[dict[str, str]]:
    """What was wrong with an answer or a tool call, without the answer itself."""
    if isinstance(cause, ValidationError):
        errors = cause.errors()
    else:
        content = getattr(getattr(cause, "tool_retry", None), "content", None)
        errors = content if isinstance(content, list) else []
    return [{"pointer": _pointer(fault["loc"]), "message": fault["msg"]} for fault in errors]


def _pointer(loc: tuple[int | str, ...]) -> str:
    return "".join(f"/{step}" for step in loc if not str(step).startswith("function-"))


def _details(error: Exception) -> dict[str, Any]:
    details: dict[str, Any] = {}
    if isinstance(error, ai.ModelAPIError):
        details["model"] = error.model_name
        if error.retry_after is not None:
            details["retry_after_ms"] = int(error.retry_after * 1000)
        if error.provider_error_code:
            details["provider_code"] = error.provider_error_code
    if isinstance(error, ai.ModelHTTPError):
        details["status_code"] = error.status_code
    if faults := _faults(error.__cause__):
        details["errors"] = faults
    return details


def _raising_tool(error: Exception) -> str | None:
    """The name of the Python tool out of which an exception came."""
    if isinstance(error, ai.AgentRunError | ai.UserError):
        return None
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code is FunctionToolset.call_tool.__code__:
            return str(frame.f_locals.get("name", "?"))
        trace = trace.tb_next
    return None
