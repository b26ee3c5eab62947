"""Error codes of the protocol, and the exceptions that carry them.

`ERROR_TYPES` lists every `error_type` of the protocol, with the class of its exception and whether a retry may succeed.
Python code raises and catches `AxonError` and its five subclasses. The subclass shows who can fix the error, so an
application can handle all errors of one family in one `except` clause.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

__all__ = [
    "ERROR_TYPES",
    "FAMILIES",
    "AxonError",
    "ConfigurationError",
    "ErrorFamily",
    "ErrorType",
    "ModelError",
    "RequestError",
    "RunEndedError",
    "ToolError",
    "UnavailableError",
]

ErrorFamily = Literal["caller", "later", "run", "model", "tool"]
"""Family of an error; `FAMILIES` has the exception class of each.

- `caller`: the request is invalid, and its sender must change it.
- `later`: the daemon cannot accept the request now; the same request may succeed later.
- `run`: the daemon accepted the request, but ended the run before it was complete.
- `model`: the model or its provider failed or rejected the request.
- `tool`: a tool failed.
"""


class ErrorType(NamedTuple):
    """Properties of one `error_type` of the protocol."""

    family: ErrorFamily
    """Family of the error: a key of `FAMILIES`."""
    retryable: bool
    """Whether the same request may succeed if it is sent again under a new id."""
    meaning: str
    """One line that describes the failure and, if possible, how to fix it."""


ERROR_TYPES: Mapping[str, ErrorType] = {
    "malformed_frames": ErrorType(
        "caller", False, "The message is not `[kind, id, header, body]`: send two to four frames."
    ),
    "invalid_msgpack": ErrorType(
        "caller", False, "The header or body is not a single valid msgpack map; the message gives the reason."
    ),
    "invalid_request": ErrorType(
        "caller", False, "A key is unknown or missing, or its value is invalid: change the key that the message names."
    ),
    "unsupported_version": ErrorType(
        "caller", False, "This daemon does not support the protocol version `v` in the header."
    ),
    "unknown_kind": ErrorType(
        "caller", False, "The first frame is not a kind that this daemon serves; the message lists the kinds."
    ),
    "unknown_agent": ErrorType(
        "caller", False, "No agent with this name is registered: `describe` lists the registered agents."
    ),
    "unknown_model": ErrorType("caller", False, "The daemon does not know the model or its provider."),
    "unknown_tool": ErrorType("caller", False, "No tool with this name is registered."),
    "unknown_request": ErrorType(
        "caller",
        False,
        "The daemon has no run, or no open tool call, with this id; "
        "`details.may_have_run` shows whether the run may have been started.",
    ),
    "too_large": ErrorType(
        "caller", False, "A message exceeds the limit that the error names (see `pong.limits`): in bytes, or in items."
    ),
    "unauthorized": ErrorType("caller", False, "The client's key does not permit this request."),
    "overloaded": ErrorType(
        "later",
        True,
        "A queue or the memory of a worker is full: wait `details.retry_after_ms` milliseconds and send the request "
        "again.",
    ),
    "no_worker": ErrorType(
        "later", True, "No worker process serves this mode: send the request later, or check `axon-zmq status`."
    ),
    "shutting_down": ErrorType("later", True, "The daemon or the worker is shutting down: send the request again."),
    "deadline_exceeded": ErrorType("run", True, "`timeout_ms` passed while the run was queued or executed."),
    "cancelled": ErrorType("run", False, "The client cancelled the run, or stayed disconnected for too long."),
    "worker_lost": ErrorType(
        "run", True, "The worker process died: check which effects the run already had before you repeat it."
    ),
    "quarantined": ErrorType(
        "run",
        False,
        "Workers died while they executed this request; it is refused for `details.retry_after_ms` milliseconds.",
    ),
    "slow_consumer": ErrorType("run", True, "The client read too slowly, and its send queue was full."),
    "usage_limit_exceeded": ErrorType("run", False, "The run reached one of its `usage_limits`."),
    "out_of_memory": ErrorType(
        "run",
        False,
        "The run needed more memory than its worker may use (`AXON_WORKER_MEMORY`): send less, or raise the limit.",
    ),
    "internal": ErrorType(
        "run", False, "The daemon or the agent's own code failed: the worker's log has the traceback."
    ),
    "invalid_output": ErrorType(
        "model", True, "After all retries, the output does not fit the schema, or cannot be sent as msgpack."
    ),
    "content_filtered": ErrorType("model", False, "The provider's content filter stopped the response."),
    "model_auth": ErrorType(
        "model", False, "The provider rejected the credentials, or none are configured: check the daemon's API key."
    ),
    "model_rate_limited": ErrorType(
        "model",
        True,
        "The provider's rate limit is reached; `details.retry_after_ms` has the delay if the provider gave one.",
    ),
    "model_unavailable": ErrorType("model", True, "The provider failed or is overloaded."),
    "model_rejected": ErrorType("model", False, "The provider rejected the request, or its quota is used up."),
    "model_context_exceeded": ErrorType(
        "model", False, "The prompt and history do not fit into the model's context window: shorten them."
    ),
    "model_connection": ErrorType("model", True, "The provider could not be reached, or the connection was lost."),
    "model_behavior": ErrorType("model", True, "The model sent a response that the agent cannot process."),
    "tool_timeout": ErrorType("tool", True, "A tool did not finish within its time limit."),
    "tool_failed": ErrorType(
        "tool", False, "A tool raised an exception, or its toolset could not be used; the message has the reason."
    ),
}
"""Every `error_type` of the protocol, with its family, whether a retry may succeed, and its meaning."""


class AxonError(Exception):
    """Base class of all errors that the protocol names.

    Each argument is also an attribute. `str(error)` is `error_type: message`.

    Args:
        error_type: Code of the error: a key of `ERROR_TYPES`, or a code of a newer daemon that this version does not
            know.
        message: Description of the problem and, if possible, how to fix it. It is for people and logs; programs
            should use `error_type` and `details`.
        details: Machine-readable details, such as `retry_after_ms` (milliseconds to wait), `partial` (the partial
            answer) or `by` (`broker` or `client`, if one of these and not the worker ended the run). The attribute is a
            dictionary and never None. Default: empty.
        retryable: Whether the same request may succeed if it is sent again under a new id. Default: as in
            `ERROR_TYPES`; False for an unknown `error_type`.
    """

    def __init__(
        self,
        error_type: str,
        message: str,
        details: Mapping[str, object] | None = None,
        *,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(error_type, message)
        self.error_type = error_type
        self.message = message
        self.details: dict[str, Any] = dict(details or {})
        known = ERROR_TYPES.get(error_type)
        self.retryable = retryable if retryable is not None else (known is not None and known.retryable)

    def __str__(self) -> str:
        return f"{self.error_type}: {self.message}"

    @staticmethod
    def of(
        error_type: str, message: str, details: Mapping[str, object] | None = None, *, retryable: bool | None = None
    ) -> AxonError:
        """Return the exception for an `error_type`, in the class of its family.

        Args:
            error_type: See `AxonError`.
            message: See `AxonError`.
            details: See `AxonError`.
            retryable: See `AxonError`.

        Returns:
            An instance of the class that `FAMILIES` has for this code; a plain `AxonError` for an unknown code.
        """
        known = ERROR_TYPES.get(error_type)
        family = FAMILIES[known.family] if known else AxonError
        return family(error_type, message, details, retryable=retryable)

    def to_body(self) -> dict[str, Any]:
        """Return the body of the protocol's `error` message for this exception."""
        return {
            "status": "error",
            "error_type": self.error_type,
            "message": self.message,
            "details": self.details,
            "retryable": self.retryable,
        }


class RequestError(AxonError):
    """The request is invalid, and the caller must change it."""


class UnavailableError(AxonError):
    """The daemon cannot be reached or cannot accept the request now; the same request may succeed later."""


class RunEndedError(AxonError):
    """The run ended before it was complete, for example because it was cancelled or its deadline passed.

    `details["partial"]` has the partial answer, if the run had begun: a dictionary with `text`, `messages` and `usage`.
    """


class ModelError(AxonError):
    """The model or its provider failed, or rejected the request."""


class ToolError(AxonError):
    """A tool failed, and the run failed with it."""


class ConfigurationError(Exception):
    """A setting, an endpoint or a configuration file is invalid; the message names it and shows how to fix it."""


FAMILIES: Mapping[ErrorFamily, type[AxonError]] = {
    "caller": RequestError,
    "later": UnavailableError,
    "run": RunEndedError,
    "model": ModelError,
    "tool": ToolError,
}
"""Exception class of each family of errors."""
