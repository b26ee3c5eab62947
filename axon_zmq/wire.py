"""Frames to messages and back: the client protocol's syntax, with bounds, and no I/O.

A client sends `[kind, id, header, body]` and gets `[kind, id, body]`. The broker reads kind, id and
header here and never unpacks a body; workers and clients unpack bodies with the same `unpack`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any, Final, NamedTuple, cast

import msgpack

from axon_zmq import limits
from axon_zmq.errors import AxonError, RequestError

MODES: Final = ("run_sync", "run", "run_stream")
"""pydantic-ai's execution modes; each is a pool of workers."""
POOLS: Final[Mapping[str, str]] = {**{mode: mode for mode in MODES}, "call_tool": "run"}
"""The kinds that are runs, and the mode whose workers take each."""
RUN_KINDS: Final = frozenset(POOLS)
_PROGRAM: Final = re.compile(rf"({'|'.join(MODES)})-\d+")
CONTROL: Final = b""
"""In place of a client's identity: the message is between broker and worker."""
TERMINAL_KINDS: Final = frozenset((b"complete", b"error", b"catalog"))
"""Kinds that end an id."""

RunKey = tuple[bytes, bytes]
"""Client identity and request id."""
Check = Callable[[Any], str | None]
"""Tells what is wrong with a header's value, or None."""


def _integer(low: int, high: int) -> Check:
    def check(value: Any) -> str | None:
        if type(value) is int and low <= value <= high:
            return None
        return f"must be an integer from {low} to {high}"

    return check


def _boolean(value: Any) -> str | None:
    return None if type(value) is bool else "must be true or false"


def _text(longest: int) -> Check:
    def check(value: Any) -> str | None:
        if type(value) is str and 0 < len(value) <= longest:
            return None
        return f"must be a string of 1 to {longest} characters"

    return check


def _one_of(*choices: str) -> Check:
    def check(value: Any) -> str | None:
        return None if value in choices else "must be " + " or ".join(f"{choice!r}" for choice in choices)

    return check


_ANY_HEADER: Final[Mapping[str, Check]] = {
    "v": _integer(0, 2**31),
    "frames": _one_of("single"),
}
_RUN_HEADER: Final[Mapping[str, Check]] = {
    **_ANY_HEADER,
    "timeout_ms": _integer(1, 2**53),
    "max_attempts": _integer(1, limits.MAX_ATTEMPTS),
    "ack": _boolean,
    "credit": _integer(0, 2**53),
    "on_disconnect": _one_of("cancel", "keep"),
    "traceparent": _text(limits.MAX_TRACE),
    "tracestate": _text(limits.MAX_TRACE),
}
HEADERS: Final[Mapping[str, Mapping[str, Check]]] = {
    "run_sync": _RUN_HEADER,
    "run": _RUN_HEADER,
    "run_stream": _RUN_HEADER,
    "call_tool": _RUN_HEADER,
    "tool_result": {**_ANY_HEADER, "call_id": _text(limits.MAX_CALL_ID)},
    "steer": _ANY_HEADER,
    "credit": {**_ANY_HEADER, "upto": _integer(0, 2**53)},
    "cancel": _ANY_HEADER,
    "resume": {**_ANY_HEADER, "from": _integer(1, 2**53), "upto": _integer(0, 2**53)},
    "describe": _ANY_HEADER,
    "ping": {**_ANY_HEADER, "instance": _text(128)},
}
"""The kinds that this daemon serves, and the header keys of each."""
NEEDED: Final[Mapping[str, str]] = {"tool_result": "call_id", "credit": "upto"}
"""The header key that a kind means nothing without."""


class ClientMessage(NamedTuple):
    """One request of a client's, its frames taken apart."""

    kind: str
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
    readable = len(frames) > 1 and len(frames[1]) <= limits.MAX_ECHOED_ID
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


def _kind(frame: bytes) -> str:
    served = f"send one of {', '.join(HEADERS)}"
    if not frame.isascii() or not frame:
        raise RequestError("unknown_kind", f"the kind must be ASCII text; {served}")
    kind = frame.decode("ascii")
    if kind not in HEADERS:
        raise RequestError("unknown_kind", f"kind {kind[:64]!r} is not served; {served}")
    return kind


def _header(kind: str, frame: bytes) -> dict[str, Any]:
    header = unpack(frame, "the header")
    version = header.get("v")
    if type(version) is int and version != limits.PROTOCOL:  # first: its keys may be another version's
        raise RequestError("unsupported_version", f"v is {version}; this daemon speaks {limits.PROTOCOL}")
    checks = HEADERS[kind]
    for key, value in list(header.items()):
        check = checks.get(key)
        if check is None:
            raise RequestError(
                "invalid_request", f"header key {key[:64]!r} is unknown for {kind}; known are {', '.join(checks)}"
            )
        if value is None:
            del header[key]
        elif fault := check(value):
            raise RequestError("invalid_request", f"header key {key!r} {fault}")
    if (needed := NEEDED.get(kind)) is not None and needed not in header:
        raise RequestError("invalid_request", f"header key {needed!r} is missing")
    return header


def framed(kind: bytes, id: bytes, body: bytes) -> bytes:
    """The one frame of a `frames: "single"` client: a msgpack array of kind, id and the body as it is."""
    return b"\x93" + pack(kind.decode("ascii")) + pack(id) + (body or b"\x80")


def digest(body: bytes) -> bytes:
    """What tells a repeated request from another one under the same id; 16 bytes."""
    return digesting(body).digest()


def digesting(beginning: bytes = b"") -> blake2b:
    """The same of a body that is read bit by bit."""
    return blake2b(beginning, digest_size=16)


def shown(name: bytes) -> str:
    """An identity, id or kind for a log line or a message: printable, whatever its bytes, and not long."""
    text = name[: limits.MAX_ECHOED_ID].decode("utf-8", "backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def mode_of(program: str) -> str | None:
    """The mode of a worker program, such as `run_stream-2`; None for any other program of supervisord's."""
    found = _PROGRAM.fullmatch(program)
    return None if found is None else found[1]


def error_body(error: AxonError, **more: Any) -> bytes:
    """The packed body of an `error` message."""
    return pack({**more, **error.to_body()})


def refused_body(of: str, error: AxonError, **more: Any) -> bytes:
    """The packed body of a `refused` message; `of` is the kind that could not be taken."""
    return pack({"of": of, "error_type": error.error_type, "message": error.message, **more})


# --- bounded msgpack -------------------------------------------------------------------------------

_MAYBE_NOT_A_NUMBER = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]|\xca[\x7f\xff][\x80-\xff]")
"""Where a float that is NaN or infinite may stand: the walk that finds it is taken only then."""


class _RefusedError(Exception):
    pass


def _map(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise _RefusedError("a map has one key twice")
    for key in made:
        if type(key) is not str:
            raise _RefusedError(f"a map has a key that is no string ({type(key).__name__})")
    return made


def _extension(code: int, _data: bytes) -> Any:
    raise _RefusedError(f"extension type {code} is unknown; only timestamps (-1) are taken")


def unpack(data: bytes, what: str) -> dict[str, Any]:
    """Read one msgpack map with string keys; empty bytes are an empty map.

    Extension types other than timestamps, keys that are no strings or come twice, NaN, infinities,
    trailing bytes and nesting over msgpack's own bound of 1024 are refused.

    Args:
        data: The packed map.
        what: How to name it in the error.

    Raises:
        RequestError: `invalid_msgpack`.
    """
    if not data:
        return {}
    try:
        value = msgpack.unpackb(data, timestamp=3, object_pairs_hook=_map, ext_hook=_extension)
    except _RefusedError as refused:
        raise RequestError("invalid_msgpack", f"{what}: {refused}") from None
    except (ValueError, OverflowError, RecursionError, TypeError, msgpack.UnpackException) as fault:
        raise RequestError("invalid_msgpack", f"{what} is not valid msgpack: {_fault_text(fault)}") from None
    if not isinstance(value, dict):
        raise RequestError("invalid_msgpack", f"{what} must be a map, not {type(value).__name__}")
    if _MAYBE_NOT_A_NUMBER.search(data) and (path := _not_a_number(value)) is not None:
        raise RequestError("invalid_msgpack", f"{what} holds NaN or an infinity at {path or '/'}")
    return value


def _fault_text(fault: Exception) -> str:
    match fault:
        case msgpack.ExtraData():
            return f"{len(fault.extra)} bytes follow the map"
        case msgpack.StackError():
            return "it is nested more than 1024 deep"
        case UnicodeDecodeError():
            return "a string is not UTF-8 (send bytes as bin)"
        case _:
            return str(fault) or type(fault).__name__


def _not_a_number(value: Any, path: str = "") -> str | None:
    """The JSON pointer of the first float that is NaN or infinite."""
    pending = [(path, value)]
    while pending:
        path, value = pending.pop()
        if isinstance(value, float) and not math.isfinite(value):
            return path
        if isinstance(value, dict):
            pending += [(f"{path}/{key}", item) for key, item in value.items()]
        elif isinstance(value, list):
            pending += [(f"{path}/{index}", item) for index, item in enumerate(value)]
    return None


def packer(default: Callable[[Any], Any]) -> Callable[[Any], bytes]:
    """A reusable packing function for one thread: times as timestamps, bytes as bin.

    Half a character (a lone surrogate, as a model's delta may end with) becomes `?`.

    Args:
        default: Makes a type that msgpack does not know plainer.
    """
    made = msgpack.Packer(datetime=True, default=default, unicode_errors="replace")
    return cast("Callable[[Any], bytes]", made.pack)


def pack(value: Any) -> bytes:
    """Pack one value, from any thread."""
    return cast("bytes", msgpack.packb(value, datetime=True))
