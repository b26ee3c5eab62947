"""Every way in which a request can fail: the error codes of the protocol as one table, and their exceptions.

`ERROR_TYPES` is the protocol's list of `error_type`, with who can fix each and whether sending the
same request again may help. `AxonError` and its five subclasses are what Python code raises and catches;
the subclass tells who can fix the error, so that an application can catch a whole family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

__all__ = [
    "ERROR_TYPES",
    "FAMILIES",
    "AxonError",
    "ConfigurationError",
    "ErrorType",
    "Mender",
    "ModelError",
    "RequestError",
    "RunEndedError",
    "ToolError",
    "UnavailableError",
]

Mender = Literal["caller", "later", "run", "model", "tool"]
"""Who can fix an error, or what it is about: the key of its exception in `FAMILIES`."""


class ErrorType(NamedTuple):
    """One `error_type` of the protocol."""

    mender: Mender
    """The family of exceptions that it belongs to."""
    retryable: bool
    """Whether the same request, sent again under a new id, may succeed."""
    meaning: str
    """What happened and how to fix it, in one line."""


ERROR_TYPES: Mapping[str, ErrorType] = {
    # The request cannot be taken as it is: whoever wrote it mends it.
    "malformed_frames": ErrorType("caller", False, "Not [kind, id, header, body]: send two to four frames."),
    "invalid_msgpack": ErrorType("caller", False, "Header or body is not one plain msgpack map."),
    "invalid_request": ErrorType(
        "caller", False, "A key is unknown, missing or of the wrong type; the message names it."
    ),
    "unsupported_version": ErrorType("caller", False, "The header's `v` is not a protocol version of this daemon."),
    "unknown_kind": ErrorType("caller", False, "The first frame names no kind that this daemon serves."),
    "unknown_agent": ErrorType("caller", False, "No agent of that name is registered; `describe` lists them."),
    "unknown_model": ErrorType("caller", False, "The model's name, or its provider, is not known here."),
    "unknown_tool": ErrorType("caller", False, "No tool of that name is registered."),
    "unknown_request": ErrorType(
        "caller", False, "No such run, or no such open tool call; `details.may_have_run` says what may have been."
    ),
    "too_large": ErrorType("caller", False, "A frame is over the limit named in the message (`pong.limits`)."),
    "unauthorized": ErrorType("caller", False, "The client's key may not do this."),
    # The daemon cannot take it now.
    "overloaded": ErrorType("later", True, "A queue is full: wait `details.retry_after_ms` and send it again."),
    "no_worker": ErrorType(
        "later", True, "No worker process serves this mode: an operator looks at `axon-zmq status`."
    ),
    "shutting_down": ErrorType("later", True, "The daemon or the worker is going down: send it again."),
    # The run was ended before it was done.
    "deadline_exceeded": ErrorType("run", True, "`timeout_ms` passed, in the queue or during the run."),
    "cancelled": ErrorType("run", False, "The client asked for it."),
    "worker_lost": ErrorType("run", True, "The worker process died; what it had done is not undone."),
    "quarantined": ErrorType("run", False, "This request has killed its workers: it is not tried for a while."),
    "slow_consumer": ErrorType("run", True, "The client read too slowly and its send queue was full."),
    "usage_limit_exceeded": ErrorType("run", False, "`usage_limits` were reached."),
    "internal": ErrorType(
        "run", False, "A fault of the daemon's or of an agent's own code: the worker's log has the trace."
    ),
    # The model or its provider said no.
    "invalid_output": ErrorType("model", True, "The answer does not fit the schema, after all retries."),
    "content_filtered": ErrorType("model", False, "The provider's content filter stopped it."),
    "model_auth": ErrorType("model", False, "The provider refused the credentials: an operator checks the API key."),
    "model_rate_limited": ErrorType(
        "model", True, "The provider's rate limit; `details.retry_after_ms` where it gave one."
    ),
    "model_unavailable": ErrorType("model", True, "The provider failed or is overloaded."),
    "model_rejected": ErrorType("model", False, "The provider refused the request itself, or its quota is spent."),
    "model_context_exceeded": ErrorType("model", False, "Prompt and history are longer than the model's context."),
    "model_connection": ErrorType("model", True, "The provider could not be reached, or the connection broke."),
    "model_behavior": ErrorType("model", True, "The model answered with something that the agent cannot use."),
    # A tool.
    "tool_timeout": ErrorType("tool", True, "A tool did not answer within its own time."),
    "tool_failed": ErrorType("tool", False, "A tool raised; its message is for the caller."),
}


class AxonError(Exception):
    """Base class of all errors that the protocol names.

    Attributes:
        error_type: A key of `ERROR_TYPES`, or one of a newer daemon that this version does not know.
        message: What is wrong and how to fix it.
        details: More for programs, such as `retry_after_ms`, `partial`, `by`; never None.
        retryable: Whether sending the request again, under a new id, may help.
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
        """The exception for an `error_type`, of the family that `ERROR_TYPES` names."""
        known = ERROR_TYPES.get(error_type)
        family = FAMILIES[known.mender] if known else AxonError
        return family(error_type, message, details, retryable=retryable)

    def to_body(self) -> dict[str, Any]:
        """The body of an `error` message."""
        return {
            "status": "error",
            "error_type": self.error_type,
            "message": self.message,
            "details": self.details,
            "retryable": self.retryable,
        }


class RequestError(AxonError):
    """The request is invalid; the caller must change it."""


class UnavailableError(AxonError):
    """The daemon cannot accept the request now; try again later."""


class RunEndedError(AxonError):
    """The run was ended before it was done; `details["partial"]` has the partial answer."""


class ModelError(AxonError):
    """The model or its provider failed or refused."""


class ToolError(AxonError):
    """A tool failed, and therefore the run."""


class ConfigurationError(Exception):
    """A setting, endpoint or file of the operator is invalid; the message names it and says how to fix it."""


FAMILIES: Mapping[Mender, type[AxonError]] = {
    "caller": RequestError,
    "later": UnavailableError,
    "run": RunEndedError,
    "model": ModelError,
    "tool": ToolError,
}
