"""Decodes and validates the messages that a client receives. No I/O.

Only `decode` can reject a malformed message. Its result is validated, so the code that handles messages needs no
`except` for bad input, and a `TypeError` in that code is a bug in this package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar, cast

from axon_zmq.errors import AxonError, RequestError
from axon_zmq.events import Accepted, Chunk, Complete, Event, Log, Refused, ToolCall, ToolCancelled
from axon_zmq.protocol import kinds
from axon_zmq.protocol.msgpack import unpack

T = TypeVar("T")
Fields = Mapping[str, object]
"""An unpacked body, or a map inside it."""


@dataclass(frozen=True, slots=True)
class Failed:
    """An `error` message: the run failed."""

    error: AxonError
    never_ran: bool
    """Whether the daemon knows that the run was never started."""
    never_ran_within_ms: int
    """Age in milliseconds: a run that was sent less than this long ago was never started. 0: unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """The reply to `resume`; the run's messages from `start` on follow it."""

    start: int
    """`seq` of the first message that follows."""
    gap: bool
    """Whether requested messages are missing because the replay buffer had dropped them."""
    open_calls: tuple[str, ...]
    """Ids of the tool calls that wait for an answer."""
    last: int | None
    """`seq` of the last message that the worker had sent before it received `resume`. Messages up to this `seq` are
    replayed, later ones are new. None if the daemon does not report it."""


@dataclass(frozen=True, slots=True)
class Catalog:
    """The reply to `describe`: agents and toolsets of the daemon by name."""

    agents: dict[str, Any]
    toolsets: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pong:
    """The reply to `ping`."""

    boot: str | None
    """Random name of the broker process."""
    max_body: int | None
    """Size of the largest body that the daemon accepts, in bytes."""
    shared: bool
    """Whether another process or connection recently used the same routing id."""
    body: dict[str, Any]
    """Whole body, for the application."""


@dataclass(frozen=True, slots=True)
class Alive:
    """A message that the broker sends regularly without a request, to show that it is alive."""

    boot: str
    """Random name of the broker process."""
    open: int
    """Number of unfinished requests of this client that the broker knows."""


Message = Event | Failed | Resumed | Catalog | Pong | Alive


class Received(NamedTuple):
    """One decoded message."""

    seq: int | None
    """Number of the message in its run, from 1; None if it is not numbered."""
    message: Message | None
    """The message; None if this version does not know its kind."""


def decode(kind: bytes, packed: bytes) -> Received:
    """Unpack and validate one message.

    Unknown keys and unknown kinds are ignored, so that a newer daemon can add some.

    Args:
        kind: Kind frame of the message.
        packed: Body frame: one msgpack map.

    Raises:
        RequestError: `invalid_msgpack`; or `invalid_request`: a key is missing or its value has the wrong type.
    """
    body = unpack(packed, "the body")
    seq = _optional(body, "seq", int)
    if seq is not None and seq < 1:
        raise RequestError("invalid_request", f"`seq` must be at least 1, not {seq}")
    reader = _READERS.get(kind)
    return Received(seq, None if reader is None else reader(body))


# --- one reader for each kind ------------------------------------------------------------------------


def _accepted(body: Fields) -> Accepted:
    return Accepted(_optional(body, "duplicate", bool) or False)


def _chunk(body: Fields) -> Chunk:
    return Chunk(
        _required(body, "seq", int),
        _required(body, "type", str),
        body.get("data"),
        _optional(body, "step", int) or 0,
        _optional(body, "part", int) or 0,
    )


def _complete(body: Fields) -> Complete:
    return Complete(
        seq=_optional(body, "seq", int) or 0,
        result=body.get("result"),
        usage=_map(body, "usage") or {},
        messages=_list(body, "messages"),
        finish_reason=_optional(body, "finish_reason", str),
        model=_optional(body, "model", str),
        run_id=_optional(body, "run_id", str),
        deferred=_deferred(_map(body, "deferred")),
        content=body.get("content"),
        metadata=body.get("metadata"),
    )


def _deferred(deferred: Fields | None) -> Fields | None:
    # `deferred_results` relies on these keys.
    for key in ("calls", "approvals") if deferred else ():
        for call in _maps(deferred or {}, key):
            _required(call, "call_id", str)
            _required(call, "name", str)
    return deferred


def _tool_call(body: Fields) -> ToolCall:
    call_id, name = _required(body, "call_id", str), _required(body, "name", str)
    return ToolCall(_required(body, "seq", int), call_id, name, _map(body, "args") or {})


def _tool_cancelled(body: Fields) -> ToolCancelled:
    return ToolCancelled(_required(body, "seq", int), _required(body, "call_id", str))


def _log(body: Fields) -> Log:
    level, message = _required(body, "level", str), _required(body, "message", str)
    logger = _optional(body, "logger", str) or ""
    return Log(_required(body, "seq", int), level, message, logger, _map(body, "fields") or {})


def _refused(body: Fields) -> Refused:
    error_type, message = _required(body, "error_type", str), _required(body, "message", str)
    return Refused(_required(body, "of", str), error_type, message, _optional(body, "call_id", str))


def _failed(body: Fields) -> Failed:
    details = _map(body, "details") or {}
    error_type, message = _required(body, "error_type", str), _required(body, "message", str)
    return Failed(
        AxonError.of(error_type, message, details, retryable=_optional(body, "retryable", bool)),
        _optional(details, "may_have_run", bool) is False,
        _optional(details, "never_ran_within_ms", int) or 0,
    )


def _resumed(body: Fields) -> Resumed:
    calls = tuple(_required(call, "call_id", str) for call in _maps(body, "open_calls"))
    gap = _optional(body, "gap", bool) or False
    return Resumed(start=_required(body, "from", int), gap=gap, open_calls=calls, last=_optional(body, "last", int))


def _catalog(body: Fields) -> Catalog:
    return Catalog(_required(body, "agents", dict), _map(body, "toolsets") or {})


def _pong(body: Fields) -> Pong:
    limits = _map(body, "limits") or {}
    return Pong(
        boot=_optional(body, "boot", str),
        max_body=_optional(limits, "max_body", int),
        shared=_optional(body, "shared", bool) or False,
        body=dict(body),
    )


def _alive(body: Fields) -> Alive:
    return Alive(_required(body, "boot", str), _required(body, "open", int))


_READERS: Final[Mapping[bytes, Callable[[Fields], Message]]] = {
    kinds.ACCEPTED: _accepted,
    kinds.CHUNK: _chunk,
    kinds.COMPLETE: _complete,
    kinds.TOOL_CALL: _tool_call,
    kinds.TOOL_CANCELLED: _tool_cancelled,
    kinds.LOG: _log,
    kinds.REFUSED: _refused,
    kinds.ERROR: _failed,
    kinds.RESUMED: _resumed,
    kinds.CATALOG: _catalog,
    kinds.PONG: _pong,
    kinds.ALIVE: _alive,
}

# --- one key of a body -------------------------------------------------------------------------------

_NAMES: Final[Mapping[type, str]] = {
    bool: "true or false",
    dict: "a map",
    int: "an integer",
    list: "a list",
    str: "text",
}


def _required(body: Fields, key: str, kind: type[T]) -> T:
    value = body.get(key)
    if type(value) is not kind:  # not isinstance: a bool is not an integer here
        raise _wrong_type(key, kind, value)
    return value


def _optional(body: Fields, key: str, kind: type[T]) -> T | None:
    """Return the value of a key, or None if the key is missing or nil."""
    value = body.get(key)
    if value is not None and type(value) is not kind:
        raise _wrong_type(key, kind, value)
    return value


def _map(body: Fields, key: str) -> dict[str, Any] | None:
    return cast("dict[str, Any] | None", _optional(body, key, dict))


def _list(body: Fields, key: str) -> list[Any]:
    return cast("list[Any]", _optional(body, key, list) or [])


def _maps(body: Fields, key: str) -> list[dict[str, Any]]:
    """Return the value of a key that must be a list of maps; an empty list if the key is missing or nil."""
    items = _list(body, key)
    for item in items:
        if type(item) is not dict:
            raise _wrong_type(f"{key}[]", dict, item)
    return items


def _wrong_type(key: str, kind: type, value: object) -> RequestError:
    found = "missing or nil" if value is None else f"a value of type {type(value).__name__}"
    return RequestError("invalid_request", f"`{key}` must be {_NAMES[kind]}, but is {found}")
