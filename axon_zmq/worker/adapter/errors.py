"""Maps exceptions of pydantic-ai to the error codes of the protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_ai import exceptions as ai
from pydantic_ai.messages import ModelMessage
from pydantic_ai.usage import RunUsage

from axon_zmq.errors import AxonError, ToolError
from axon_zmq.process.redaction import redactor
from axon_zmq.protocol.requests import invalid, located
from axon_zmq.worker.adapter import compat
from axon_zmq.worker.adapter import messages as wire_messages
from axon_zmq.worker.adapter.client_tools import ClientRetry
from axon_zmq.worker.adapter.output import SCHEMA_ERROR

# Subclasses come before their base classes, because the first match counts.
_ERROR_TYPES: tuple[tuple[type[Exception], str], ...] = (
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
_MAX_MESSAGE_CHARS = 1000
"""Maximum number of characters in an error message; a provider may answer with a whole web page."""
_MAX_RETRY_AFTER_S = 86400.0
"""Upper bound in seconds for `retry_after_ms`: one day. A larger value from a provider is taken to be a mistake."""


class ReportedByToolError(ToolError):
    """A failure that a Python tool reported itself, with `ModelRetry` or `ToolFailed`: an ordinary answer, not a bug.

    It occurs only in a `call_tool`: in the run of an agent, these exceptions become messages to the model.
    """


def explain(error: Exception, messages: Sequence[ModelMessage], usage: RunUsage) -> AxonError:
    """Return the error of the protocol for an exception of a run, with the partial answer in `details.partial`.

    Args:
        error: The exception that `Agent.run` or the code around it raised.
        messages: The run's messages so far, without its history.
        usage: The run's usage so far.
    """
    made = error if isinstance(error, AxonError) else _classify(error)
    if messages and made.error_type != "out_of_memory":  # dumping them would need even more memory
        made.details.setdefault(
            "partial",
            {
                "text": wire_messages.last_text(messages),
                "messages": wire_messages.dump(list(messages)),
                "usage": wire_messages.usage(usage),
            },
        )
    return made


def _classify(error: Exception) -> AxonError:
    if (last := compat.last_attempt(error)) is not None:
        return _classify(last)
    if (tool := compat.raising_tool(error)) is not None:
        return raised_by(tool, error)
    for family, code in _ERROR_TYPES:
        if isinstance(error, family):
            return AxonError.of(_refined(code, error), _message(error), _details(error))
    if (other := _other_code(error)) is not None:
        return other
    return internal(error)


def raised_by(tool: str, error: Exception) -> AxonError:
    """Return the error for an exception of a Python tool."""
    return AxonError.of("tool_failed", _text(f"tool {tool!r} raised {type(error).__name__}: {error}"), {"tool": tool})


def internal(error: BaseException) -> AxonError:
    """Return the error for an unexpected exception.

    It names only the type: the text of the exception may contain prompts or keys.
    """
    if isinstance(error, MemoryError):
        message = "the run needed more memory than the worker may use; see AXON_WORKER_MEMORY"
        made = AxonError.of("out_of_memory", message)
        made.__cause__ = error
        return made
    made = AxonError.of("internal", f"{type(error).__name__} in the worker; its log has the traceback")
    made.__cause__ = error
    return made


def redact(error: AxonError) -> AxonError:
    """Remove secrets from the message and details of an error that a client will receive; return the error.

    Of the partial answer, only texts of failures are changed. The rest is a result, which is never changed, and may
    have many megabytes, which the event loop should not search.
    """
    # The exception may come from code that has just set variables.
    redactor.refresh()
    error.message = redactor.text(error.message)
    partial = error.details.pop("partial", None)
    error.details = redactor.value(error.details)
    if partial is not None:
        _redact_failures(partial)
        error.details["partial"] = partial
    error.args = (error.error_type, error.message)
    return error


def _redact_failures(partial: Mapping[str, Any]) -> None:
    """Remove secrets from the texts with which tools and validators failed, in a partial answer."""
    for message in partial["messages"]:
        for part in message["parts"]:
            # `retry-feedback`, and `retry-prompt` in older versions of pydantic-ai.
            is_retry = str(part.get("part_kind")).startswith("retry-")
            if is_retry or part.get("outcome", "success") != "success":
                part.update(redactor.value(part))


def _refined(code: str, error: Exception) -> str:
    if compat.are_output_retries_exhausted(error):
        return "invalid_output"
    if code == "model_behavior" and compat.is_tool_timeout(compat.last_retry(error)):
        return "tool_timeout"
    if code == "model_behavior" and isinstance(retry := compat.last_retry(error), ClientRetry):
        return retry.error_type
    if compat.is_unreadable_response(error):
        return "model_behavior"  # the provider reported no error, but its response could not be read
    return code


def _message(error: Exception) -> str:
    if isinstance(error, ai.ModelAuthenticationError):
        return "the provider refused this daemon's credentials"  # the provider's own text may repeat the key
    if isinstance(error, ai.ModelHTTPError):
        return _provider_message(error)
    if isinstance(error, ai.ModelConnectionError) and error.phase:
        return f"{error.message.rstrip('.')} ({error.phase})"
    if not isinstance(error, ai.UnexpectedModelBehavior):
        return _text(str(error))
    message = compat.without_model_output(error)
    retry = compat.last_retry(error)
    faults = "; ".join(f"{fault['pointer'] or '/'}: {fault['message']}" for fault in _faults(retry))
    return _text(f"{message}: {faults or retry}" if retry else message)


def _provider_message(error: ai.ModelHTTPError) -> str:
    text: Any = error.body
    while isinstance(text, dict) and (inner := text.get("error") or text.get("message")):
        text = inner
    message = f"the provider answered {error.status_code}"
    if text:
        message += f": {text}"
    if error.suggested_model_id is not None:
        message += f" Did you mean {error.suggested_model_id!r}?"
    return _text(message)


def _text(text: str) -> str:
    """Shorten a text to `_MAX_MESSAGE_CHARS` and replace lone surrogates, which JSON allows but msgpack does not.

    Secrets are removed first: the part of a secret that is left by shortening could no longer be found.
    """
    whole = redactor.text(text).encode("utf-8", "replace").decode()
    return whole if len(whole) <= _MAX_MESSAGE_CHARS else whole[:_MAX_MESSAGE_CHARS] + " …"


def _faults(cause: BaseException | None) -> list[dict[str, str]]:
    """Return the validation errors of an output or of a tool's arguments, without the values themselves."""
    if isinstance(cause, ValidationError):
        errors = cause.errors(include_url=False, include_input=False)
    else:
        errors = compat.retry_faults(cause)
    return [{"pointer": pointer, "message": message} for fault in errors for pointer, message in _each(fault)]


def _each(fault: Mapping[str, Any]) -> list[tuple[str, str]]:
    if fault["type"] == SCHEMA_ERROR:
        return [(pointer, reason) for pointer, reason in fault["ctx"]["faults"]]
    return [(located(fault["loc"]), fault["msg"])]


def _details(error: Exception) -> dict[str, Any]:
    details: dict[str, Any] = {}
    if isinstance(error, ai.ModelAPIError):
        details["model"] = error.model_name
        if error.retry_after is not None:
            details["retry_after_ms"] = int(min(error.retry_after, _MAX_RETRY_AFTER_S) * 1000)
        if error.provider_error_code:
            details["provider_code"] = _text(error.provider_error_code)
    if isinstance(error, ai.ModelHTTPError):
        details["status_code"] = error.status_code
    retry = compat.last_retry(error)
    if faults := _faults(retry):
        details["errors"] = faults
    if isinstance(retry, ClientRetry):
        details["tool"] = retry.tool
    return details


def invalid_value(error: ValidationError, place: str) -> AxonError:
    """Return an `invalid_request` for a value at the JSON pointer `place` that its schema refuses."""
    return invalid([(place + fault["pointer"], fault["message"]) for fault in _faults(error)])


def _other_code(error: Exception) -> AxonError | None:
    """Return the error for an exception of a general class that pydantic-ai is known to raise; None for any other.

    pydantic-ai raises exceptions such as `ValueError` and `KeyError` if it cannot fetch a URL in the prompt for a model
    that cannot do so itself, if a model does not support a kind of content, and if a provider's response does not have
    the documented form.
    """
    if compat.is_external_tool_approved(error):
        fault = "one of these calls waits for a result: move the entry to calls"
        return invalid([("/deferred_tool_results/approvals", fault)])
    if (reason := compat.download_failure(error)) is not None:
        return AxonError.of("invalid_request", _text(f"a URL in the prompt could not be fetched: {reason}"))
    if not compat.is_raised_by_model_code(error):
        return None
    if isinstance(error, NotImplementedError):
        return AxonError.of("model_rejected", _text(str(error)))
    if isinstance(error, AttributeError | LookupError | TypeError):
        return AxonError.of("model_behavior", _text(f"the provider's response has an unexpected form: {error}"))
    return None
