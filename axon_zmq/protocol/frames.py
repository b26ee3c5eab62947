"""Frames to messages and back: the client protocol's syntax, with bounds, and no I/O.

A client sends `[kind, id, header, body]` and gets `[kind, id, body]`. The broker reads kind, id and
header here and never unpacks a body; workers and clients unpack bodies with the same `unpack`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from axon_zmq.errors import AxonError, RequestError
from axon_zmq.protocol import kinds, limits
from axon_zmq.protocol.msgpack import pack, unpack

MAX_ECHOED_ID: Final = 256
"""Bytes up to which an id that is too long is still echoed in the error that says so."""
MAX_TRACE: Final = 1024
"""Characters of `traceparent` and `tracestate`; W3C asks to carry at least 512."""
MAX_ATTEMPTS: Final = 10
"""Most times that a run may be started, whatever its header asks for."""
RunKey = tuple[bytes, bytes]
"""Client identity and request id."""
Check = Callable[[object], str | None]
"""Tells what is wrong with a header's value, or None."""


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
"""The kinds that this daemon serves, and the header keys of each."""
NEEDED: Final[Mapping[bytes, str]] = {kinds.TOOL_RESULT: "call_id", kinds.CREDIT: "upto"}
"""The header key that a kind means nothing without."""


class ClientMessage(NamedTuple):
    """One request of a client's, its frames taken apart."""

    kind: bytes
    id: bytes
    header: dict[str, Any]
    header_frame: bytes
    """The header as it came; workers get it untouched."""
    body: bytes


class Envelope(NamedTuple):
    """What can be read of any message, however malformed the rest."""

    frames: list[bytes]
    """Without the empty delimiter of a REQ-style client."""
    delimiter: bool
    """Whether there was one."""
    id: bytes
    """The request id, or empty where none is readable."""


def open_envelope(frames: list[bytes]) -> Envelope:
    """Find the id, so that even a malformed message can be answered to the right request."""
    delimiter = len(frames) > 1 and not frames[0]
    if delimiter:
        frames = frames[1:]
    readable = len(frames) > 1 and len(frames[1]) <= MAX_ECHOED_ID
    return Envelope(frames, delimiter, frames[1] if readable else b"")


def parse(frames: list[bytes], max_body: int) -> ClientMessage:
    """Check the frames of one client message, without their delimiter, and its header.

    Raises:
        RequestError: `malformed_frames`, `unknown_kind`, `too_large`, `invalid_msgpack`,
            `invalid_request` or `unsupported_version`, naming what is wrong and the mend.
    """
    if not 2 <= len(frames) <= 4:
        raise RequestError("malformed_frames", f"got {len(frames)} frames; send [kind, id, header, body]")
    kind_frame, id, *rest = frames
    header_frame, body = (*rest, b"", b"")[:2]
    if not 1 <= len(id) <= limits.MAX_ID:
        raise RequestError("malformed_frames", f"the id has {len(id)} bytes; it must have 1 to {limits.MAX_ID}")
    kind = _kind(kind_frame)
    if len(header_frame) > limits.MAX_HEADER:
        raise RequestError("too_large", f"the header has {len(header_frame)} bytes; at most {limits.MAX_HEADER}")
    header = _header(kind, header_frame)
    if len(body) > max_body:
        message = f"the body has {len(body)} bytes; at most {max_body} (pong.limits.max_body)"
        which = {"call_id": header["call_id"]} if "call_id" in header else {}
        raise RequestError("too_large", message, which)
    return ClientMessage(kind, id, header, header_frame, body)


def _kind(kind: bytes) -> bytes:
    if kind not in HEADERS:
        served = f"send one of {', '.join(map(printable, HEADERS))}"
        if not kind or not kind.isascii():
            raise RequestError("unknown_kind", f"the kind must be ASCII text; {served}")
        raise RequestError("unknown_kind", f"kind {kind[:64].decode()!r} is not served; {served}")
    return kind


def _header(kind: bytes, frame: bytes) -> dict[str, Any]:
    header = unpack(frame, "the header")
    version = header.get("v")
    if type(version) is int and version != limits.PROTOCOL:  # first: its keys may be another version's
        raise RequestError("unsupported_version", f"v is {version}; this daemon speaks {limits.PROTOCOL}")
    checks = HEADERS[kind]
    for key, value in list(header.items()):
        check = checks.get(key)
        if check is None:
            raise RequestError(
                "invalid_request",
                f"header key {key[:64]!r} is unknown for {printable(kind)}; known are {', '.join(checks)}",
            )
        if value is None:
            del header[key]
        elif fault := check(value):
            raise RequestError("invalid_request", f"header key {key!r} {fault}")
    if (needed := NEEDED.get(kind)) is not None and needed not in header:
        raise RequestError("invalid_request", f"header key {needed!r} is missing")
    return header


def single_frame(kind: bytes, id: bytes, body: bytes) -> bytes:
    """The one frame of a `frames: "single"` client: a msgpack array of kind, id and the body as it is."""
    return b"\x93" + pack(kind.decode("ascii")) + pack(id) + (body or b"\x80")


def body_digest(body: bytes) -> bytes:
    """What tells a repeated request from another one under the same id; 16 bytes."""
    return new_digest(body).digest()


def new_digest(beginning: bytes = b"") -> blake2b:
    """The same of a body that is read bit by bit."""
    return blake2b(beginning, digest_size=16)


def printable(name: bytes) -> str:
    """An identity, id or kind for a log line or a message: printable, whatever its bytes, and not long."""
    text = name[:MAX_ECHOED_ID].decode("utf-8", "backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def error_body(error: AxonError, **more: object) -> bytes:
    """The packed body of an `error` message."""
    return pack({**more, **error.to_body()})


def refused_body(of: bytes, error: AxonError, **more: object) -> bytes:
    """The packed body of a `refused` message; `of` is the kind that could not be taken."""
    return pack({"of": printable(of), "error_type": error.error_type, "message": error.message, **more})
