"""Every way a request can fail: the wire's codes as one table, and the exceptions that carry them.

`ERROR_TYPES` is the contract's list of `error_type`, with who can mend each and whether sending the
same request again may help. `AxonError` and its five children are what Python code raises and catches;
the child is chosen by who can mend the fault, so that an application can catch a whole family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

Mender = Literal["caller", "later", "run", "model", "tool"]


class ErrorType(NamedTuple):
    """One `error_type` of the contract."""

    mender: Mender
    """Which family it belongs to: see the exceptions below."""
    retryable: bool
    """Whether the same request, sent again under a new id, may succeed."""
    meaning: str
    """What happened and what mends it, in one line."""


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
    "slow_consumer": ErrorType("run", True, "The client read too slowly and its outbox was full."),
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
    """Base of all failures that the contract names.

    Attributes:
        error_type: A key of `ERROR_TYPES`, or a newer daemon's that this version does not know.
        message: What is wrong and how to mend it.
        details: More for programs, such as `retry_after_ms`, `partial`, `by`; never None.
        retryable: Whether sending the request again, under a new id, may help.
    """

    def __init__(
        self,
        error_type: str,
        message: str,
        details: Mapping[str, Any] | None = None,
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
        error_type: str, message: str, details: Mapping[str, Any] | None = None, *, retryable: bool | None = None
    ) -> AxonError:
        """The exception for a code, of the family that the table gives it."""
        known = ERROR_TYPES.get(error_type)
        family = FAMILIES[known.mender] if known else AxonError
        return family(error_type, message, details, retryable=retryable)

    @staticmethod
    def from_body(body: Mapping[str, Any]) -> AxonError:
        """The exception for an unpacked `error` or `refused` body."""
        details = body.get("details")
        return AxonError.of(
            str(body.get("error_type", "internal")),
            str(body.get("message", "")),
            details if isinstance(details, Mapping) else None,
            retryable=body.get("retryable"),
        )

    def to_body(self) -> dict[str, Any]:
        """The body of an `error` message: the seed's ErrorResponse, and whether a retry may help."""
        return {
            "status": "error",
            "error_type": self.error_type,
            "message": self.message,
            "details": self.details,
            "retryable": self.retryable,
        }


class RequestError(AxonError):
    """The request cannot be taken as it is; the caller mends it."""


class UnavailableError(AxonError):
    """The daemon cannot take the request now; try again later."""


class RunEndedError(AxonError):
    """The run was ended before it was done; `details["partial"]` keeps what there was."""


class ModelError(AxonError):
    """The model or its provider failed or refused."""


class ToolError(AxonError):
    """A tool failed, and the run with it."""


class ConfigurationError(Exception):
    """A setting, an endpoint or a file of the operator's is wrong; the message names it and the mend."""


FAMILIES: Mapping[Mender, type[AxonError]] = {
    "caller": RequestError,
    "later": UnavailableError,
    "run": RunEndedError,
    "model": ModelError,
    "tool": ToolError,
}
