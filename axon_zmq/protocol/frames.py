"""Parses and builds the frames of the client protocol. No I/O.

A client sends `[kind, id, header, body]` and receives `[kind, id, body]`. The broker parses kind, id and header with
this module and never unpacks a body. Workers and clients unpack bodies with the same `unpack`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from axon_zmq.errors import AxonError, RequestError
from axon_zmq.protocol import kinds, limits
from axon_zmq.protocol.msgpack import pack, unpack

MAX_ECHOED_ID: Final = 256
"""Maximum length in bytes of an invalid request id that is repeated in the error about it. Valid ids have at most
64."""
MAX_TRACE: Final = 1024
"""Maximum length of `traceparent` and `tracestate` in characters; W3C Trace Context requires at least 512 for
`tracestate`."""
MAX_ATTEMPTS: Final = 10
"""Maximum of `max_attempts` in a header."""
RunKey = tuple[bytes, bytes]
"""Routing id of the client, and request id."""
Check = Callable[[object], str | None]
"""Validates the value of a header key: returns None if it is valid, otherwise the requirement that it violates."""


def _integer(low: int, high: int) -> Check:
    def check(value: object) -> str | None:
        if type(value) is int and low <= value <= high:
            return None
        return f"must be an integer from {low} to {high}"

    return check


def _boolean(value: object) -> str | None:
    return None if type(value) is bool else "must be true or false"


def _text(longest: int) -> Check:
    def check(value: object) -> str | None:
        if type(value) is str and 0 < len(value) <= longest:
            return None
        return f"must be a string of 1 to {longest} characters"

    return check


def _one_of(*choices: str) -> Check:
    def check(value: object) -> str | None:
        return None if value in choices else "must be " + " or ".join(f"{choice!r}" for choice in choices)

    return check


_ANY_HEADER: Final[Mapping[str, Check]] = {
    "v": _integer(0, 2**31),
    "frames": _one_of("single"),
}
_RUN_HEADER: Final[Mapping[str, Check]] = {
    **_ANY_HEADER,
    "timeout_ms": _integer(1, 2**53),
    "max_attempts": _integer(1, MAX_ATTEMPTS),
    "ack": _boolean,
    "credit": _integer(0, 2**53),
    "on_disconnect": _one_of("cancel", "keep"),
    "traceparent": _text(MAX_TRACE),
    "tracestate": _text(MAX_TRACE),
}
HEADERS: Final[Mapping[bytes, Mapping[str, Check]]] = {
    kinds.RUN_SYNC: _RUN_HEADER,
    kinds.RUN: _RUN_HEADER,
    kinds.RUN_STREAM: _RUN_HEADER,
    kinds.CALL_TOOL: _RUN_HEADER,
    kinds.TOOL_RESULT: {**_ANY_HEADER, "call_id": _text(limits.MAX_CALL_ID)},
    kinds.STEER: _ANY_HEADER,
    kinds.CREDIT: {**_ANY_HEADER, "upto": _integer(0, 2**53)},
    kinds.CANCEL: _ANY_HEADER,
    kinds.RESUME: {**_ANY_HEADER, "from": _integer(1, 2**53), "upto": _integer(0, 2**53)},
    kinds.DESCRIBE: _ANY_HEADER,
    kinds.PING: {**_ANY_HEADER, "instance": _text(128)},
}
"""Kinds that this daemon serves, with the header keys of each."""
REQUIRED_KEYS: Final[Mapping[bytes, str]] = {kinds.TOOL_RESULT: "call_id", kinds.CREDIT: "upto"}
"""Required header key of a kind."""


class ClientMessage(NamedTuple):
    """A parsed message of a client."""

    kind: bytes
    id: bytes
    header: dict[str, Any]
    header_frame: bytes
    """Header as it was received; the broker passes it to workers unchanged."""
    body: bytes
    """Body as it was received, still packed."""


class Envelope(NamedTuple):
    """The parts of a message that can be determined even if it is malformed."""

    frames: list[bytes]
    """Frames without the empty delimiter frame."""
    delimiter: bool
    """Whether the message had a delimiter, which REQ sockets add."""
    id: bytes
    """Request id; empty if the message has no id, or if the id is too long to be repeated in an error."""


def open_envelope(frames: list[bytes]) -> Envelope:
    """Remove the delimiter and find the request id, so that an error about a malformed message can carry this id."""
    delimiter = len(frames) > 1 and not frames[0]
    if delimiter:
        frames = frames[1:]
    readable = len(frames) > 1 and len(frames[1]) <= MAX_ECHOED_ID
    return Envelope(frames, delimiter, frames[1] if readable else b"")


def parse(frames: list[bytes], max_body: int) -> ClientMessage:
    """Parse and validate the frames and the header of a client's message; the body stays packed.

    Args:
        frames: Frames of the message, without a delimiter.
        max_body: Maximum size of the body in bytes.

    Raises:
        RequestError: `malformed_frames`, `unknown_kind`, `too_large`, `invalid_msgpack`, `invalid_request` or
            `unsupported_version`; the message names the invalid part and what is expected.
    """
    if not 2 <= len(frames) <= 4:
        raise RequestError("malformed_frames", f"invalid number of frames {len(frames)}: send [kind, id, header, body]")
    kind_frame, id, *rest = frames
    header_frame, body = (*rest, b"", b"")[:2]
    if not 1 <= len(id) <= limits.MAX_ID:
        raise RequestError(
            "malformed_frames", f"invalid request id of {len(id)} bytes: expected 1 to {limits.MAX_ID} bytes"
        )
    kind = _kind(kind_frame)
    if len(header_frame) > limits.MAX_HEADER:
        raise RequestError(
            "too_large",
            f"header too large: {len(header_frame)} bytes, at most {limits.MAX_HEADER} (pong.limits.max_header)",
        )
    header = _header(kind, header_frame)
    if len(body) > max_body:
        message = f"body too large: {len(body)} bytes, at most {max_body} (pong.limits.max_body)"
        which = {"call_id": header["call_id"]} if "call_id" in header else {}
        raise RequestError("too_large", message, which)
    return ClientMessage(kind, id, header, header_frame, body)


def _kind(kind: bytes) -> bytes:
    if kind not in HEADERS:
        served = f"expected one of {', '.join(map(printable, HEADERS))}"
        if not kind or not kind.isascii():
            raise RequestError("unknown_kind", f"invalid kind, which is not ASCII text: {served}")
        raise RequestError("unknown_kind", f"unknown kind {kind[:64].decode()!r}: {served}")
    return kind


def _header(kind: bytes, frame: bytes) -> dict[str, Any]:
    header = unpack(frame, "the header")
    version = header.get("v")
    if type(version) is int and version != limits.PROTOCOL:  # checked first: another version may have other keys
        raise RequestError(
            "unsupported_version", f"unsupported version v={version}: this daemon supports version {limits.PROTOCOL}"
        )
    checks = HEADERS[kind]
    for key, value in list(header.items()):
        check = checks.get(key)
        if check is None:
            raise RequestError(
                "invalid_request",
                f"unknown header key {key[:64]!r} for {printable(kind)}; known keys: {', '.join(checks)}",
            )
        if value is None:
            del header[key]
        elif expectation := check(value):
            raise RequestError("invalid_request", f"header key {key!r} {expectation}, not {value!r:.100}")
    if (needed := REQUIRED_KEYS.get(kind)) is not None and needed not in header:
        raise RequestError("invalid_request", f"header key {needed!r} is missing")
    return header


def single_frame(kind: bytes, id: bytes, body: bytes) -> bytes:
    """Build the frame for a client with `frames: "single"`: a msgpack array of kind, id and body."""
    # 0x93 begins an array of three items, 0x80 is an empty map. The body is already packed and is not packed again.
    # "replace": a worker's kind is relayed unchecked, and a faulty one must not end the broker.
    return b"\x93" + pack(kind.decode("ascii", "replace")) + pack(id) + (body or b"\x80")


def body_digest(body: bytes) -> bytes:
    """Return the digest of a request body: BLAKE2b, 16 bytes.

    It distinguishes a repeated request from a different one under the same id.
    """
    return new_digest(body).digest()


def new_digest(beginning: bytes = b"") -> blake2b:
    """Return a hash object for the digest of a body that is processed in parts."""
    return blake2b(beginning, digest_size=16)


def printable(name: bytes) -> str:
    """Return a routing id, request id or kind as printable text of limited length, for logs and error messages."""
    text = name[:MAX_ECHOED_ID].decode("utf-8", "backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def error_body(error: AxonError, **more: object) -> bytes:
    """Return the packed body of an `error` message, with further keys."""
    return pack({**more, **error.to_body()})


def refused_body(of: bytes, error: AxonError, **more: object) -> bytes:
    """Return the packed body of a `refused` message, with further keys; `of` is the kind of the refused message."""
    return pack({"of": printable(of), "error_type": error.error_type, "message": error.message, **more})
