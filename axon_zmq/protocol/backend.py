"""Typed messages between broker, workers and supervisord's event listener. No I/O.

A control message is `["", kind, body]` towards the broker and `["", kind, "", body]` towards a worker, where `body` is
a msgpack map. Each class below is one kind of body: `pack` encodes it, `unpack` decodes and validates it. A message is
decoded once, on receipt. Malformed input raises only `MalformedMessageError`; any other exception is a bug in this
package and is not caught. Unknown keys are ignored, and a key with a default may be missing, because during a rolling
restart broker and workers may have different versions.

`python -m tests.support.snippets` generates the tables of `docs/backend.md` from these classes. The docstring of a
class states when the message is sent and how the receiver reacts; it begins with the frames of the message if these
differ from the form above. The docstring of a field describes its value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, ClassVar, Final, NamedTuple, Self, Union, get_args, get_origin, get_type_hints

from axon_zmq.errors import RequestError
from axon_zmq.protocol import kinds
from axon_zmq.protocol.frames import HEADERS, REQUIRED_KEYS, printable
from axon_zmq.protocol.msgpack import pack, unpack

VERSION: Final = 1
"""Version of this protocol, sent as `v` in `ready`."""


class MalformedMessageError(ValueError):
    """A message between broker and worker does not have the form of its kind.

    Args:
        kind: Kind of the message.
        fault: Description of the error, with the name of the key.
    """

    def __init__(self, kind: bytes, fault: str) -> None:
        super().__init__(f"malformed `{printable(kind)}` message: {fault}")
        self.kind = kind


class EndReason(Enum):
    """Reason why a worker must end a run, which determines the run's error.

    The docstring of each reason names the process that asks for the end, and the condition.
    """

    CANCELLED = "cancelled"
    """The broker, because the client sent `cancel`."""
    CLIENT_GONE = "client_gone"
    """The broker, because the client was gone for the grace period and `on_disconnect` is not `keep`."""
    KEPT_TOO_LONG = "kept_too_long"
    """The broker, because the run has only waited for tools of a gone client for `max_keep_ms`."""
    SLOW_CONSUMER = "slow_consumer"
    """The broker, because the client's send queue is full."""
    SUPERSEDED = "superseded"
    """The broker, because the run continued on another worker; it drops further messages of this worker about the
    run."""
    DEADLINE = "deadline"
    """The worker itself, at the deadline of the run's lease."""
    SHUTTING_DOWN = "shutting_down"
    """The worker itself, at the end of its drain time."""
    MEMORY = "memory"
    """The worker itself, because it uses too much memory and this run is the largest."""


class Body:
    """Base class of msgpack maps with typed keys; each subclass is a dataclass."""

    __slots__ = ()

    def to_wire(self) -> dict[str, Any]:
        """Return the map in types that msgpack can pack."""
        return {name: _plain(getattr(self, name)) for name in _names(type(self))}

    @classmethod
    def from_wire(cls, value: object) -> Self:
        """Build the body from an unpacked map, which is validated; unknown keys are ignored.

        Raises:
            _FieldError: A key is missing, or its value has the wrong type.
        """
        if not isinstance(value, dict):
            raise _FieldError("", f"must be a map, not {type(value).__name__}")
        found: dict[str, Any] = value
        taken: dict[str, Any] = {}
        for name, (read, is_required) in _readers(cls).items():
            if name in found:
                try:
                    taken[name] = read(found[name])
                except _FieldError as fault:
                    raise fault.within(name) from None
            elif is_required:
                raise _FieldError(f"/{name}", "is missing")
        return cls(**taken)


class Message(Body):
    """Base class of control messages; each subclass is the body of one kind."""

    __slots__ = ()
    kind: ClassVar[bytes]

    def pack(self) -> bytes:
        """Return the packed body."""
        return pack(self.to_wire())

    def has_fields(self) -> bool:
        """Whether messages of this kind have a body; a message without fields is sent without a body frame."""
        return bool(_names(type(self)))

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Unpack and validate a body; empty bytes count as an empty map.

        Raises:
            MalformedMessageError: The body is not valid msgpack, or does not have the form of this message.
        """
        try:
            return cls.from_wire(unpack(body, "the body"))
        except RequestError as fault:
            raise MalformedMessageError(cls.kind, fault.message) from None
        except _FieldError as fault:
            raise MalformedMessageError(cls.kind, str(fault)) from None


# --- parts of messages ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lease(Body):
    """Last frame of the message that starts a run on a worker."""

    deadline: float
    """Deadline of the run, in seconds of the machine's monotonic clock. Broker and worker share this clock."""
    attempt: int
    """Number of the attempt: 1 for the first start."""
    digest: bytes = b""
    """BLAKE2b of the body, 16 bytes, as in a held run. Older brokers do not send it."""

    def pack(self) -> bytes:
        """Return the packed lease."""
        return pack_lease(self.deadline, self.attempt, self.digest)


def pack_lease(deadline: float, attempt: int, digest: bytes) -> bytes:
    """Return a packed `Lease` without creating the object, because the broker needs one for each run."""
    return pack({"deadline": deadline, "attempt": attempt, "digest": digest})


@dataclass(frozen=True, slots=True, kw_only=True)
class Held(Body):
    """A run in the replay store of a worker, as reported to the broker."""

    client: bytes
    """Routing id of the run's client."""
    id: bytes
    """Request id."""
    kind: str
    """Kind of the request: `run_sync`, `run`, `run_stream` or `call_tool`."""
    digest: bytes
    """BLAKE2b of the body, 16 bytes. With it, the broker refuses a repeated id with another body."""
    deadline: float
    """Deadline of the run, as in the lease."""
    keep: bool
    """Whether `on_disconnect` was `keep`."""
    seq: int
    """`seq` of the run's last message so far."""
    ended: bool
    """Whether the run's terminal message was sent."""
    waiting: bool = False
    """Whether the run only waits for tools of its client, as `waiting` reports."""
    size: int = 0
    """Bytes of the bodies that the worker has received for the run, if it has not ended."""

    def to_wire(self) -> dict[str, Any]:
        """Return the map in types that msgpack can pack."""
        # Spelled out, because it is faster than the generic conversion: a worker that registers again may hold tens of
        # thousands of runs.
        return {
            "client": self.client,
            "id": self.id,
            "kind": self.kind,
            "digest": self.digest,
            "deadline": self.deadline,
            "keep": self.keep,
            "seq": self.seq,
            "ended": self.ended,
            "waiting": self.waiting,
            "size": self.size,
        }


@dataclass(frozen=True, slots=True)
class Program(Body):
    """State of a supervisord program."""

    state: str
    """State in supervisord, such as `RUNNING`."""
    pid: int = 0
    """Process id; 0 if the program has no process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeStatus(Body):
    """State of one mode, in `status`."""

    workers: int
    """Number of registered workers."""
    free: int
    """Number of runs that these workers could start now."""
    queued: int
    """Number of queued runs."""
    degraded: bool
    """Whether the mode has fewer working workers than it should have."""
    reasons: tuple[str, ...] = ()
    """Why the mode is degraded, as sentences for operators."""

    def for_clients(self) -> dict[str, Any]:
        """Return the entry of the mode in a `pong`, without the reasons, which are only for operators."""
        return {key: value for key, value in self.to_wire().items() if key != "reasons"}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus(Body):
    """State of one worker, in `status`."""

    name: str
    """Name of its supervisord program."""
    identity: bytes
    """Routing id."""
    mode: str
    """Mode: `run_sync`, `run` or `run_stream`."""
    pid: int
    """Process id; 0 if the worker does not report one."""
    state: str
    """State in the broker, as in [the life cycle of a worker](states.md#a-worker)."""
    broken: tuple[str, ...] | None
    """Names of the agents that the worker could not load; `nil` if it does not report them."""
    slots: int
    """Concurrency: how many runs the worker executes at a time."""
    busy: int
    """Number of runs that occupy a slot of the worker now."""
    silent_ms: int
    """Milliseconds since its last `progress`."""
    crashes: int
    """How many processes of this program crashed within the last minute."""
    waiting: int = 0
    """Number of runs that only wait for tools of their clients."""


# --- from a worker to the broker -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready(Message):
    """Sent after each connect and reconnect, as soon as all messages that an earlier broker had sent were read.

    It registers the worker.
    """

    kind: ClassVar[bytes] = kinds.READY
    v: int
    """Version of this protocol: 1."""
    mode: str
    """Mode of the worker: `run_sync`, `run` or `run_stream`."""
    slots: int
    """Concurrency: how many runs the worker executes at a time. It is lower than configured while the worker has stuck
    runs."""
    name: str
    """Name of its supervisord program, for logs and for comparison with the reports of the event listener."""
    holds: tuple[Held, ...]
    """Runs in the worker's replay store, open and ended: [held runs](#a-held-run)."""
    pid: int = 0
    """Process id. The broker never kills a worker that does not report it."""
    broken: tuple[str, ...] | None = None
    """Names of the agents that the worker could not load. `nil`: the worker does not report them."""
    forgot_at: float = 0.0
    """The last time at which the worker forgot an ended run before the end of its resume window, because memory was
    short or a handover file could not be read. In seconds of the machine's monotonic clock."""

    @classmethod
    def from_wire(cls, value: object) -> Self:
        """Build the body from an unpacked map, which is validated; see `Body.from_wire`."""
        # The version is checked first, because keys may have another meaning in another version.
        version = value.get("v") if isinstance(value, dict) else VERSION
        if type(version) is int and version != VERSION:
            raise _FieldError("/v", f"is {version}, but this broker supports {VERSION}: the worker gets no runs")
        return super(Ready, cls).from_wire(value)


@dataclass(frozen=True, slots=True)
class Slots(Message):
    """Sent when a stuck run reduces the worker's concurrency, and again when the code of that run has returned."""

    kind: ClassVar[bytes] = kinds.SLOTS
    slots: int
    """Concurrency from now on."""


@dataclass(frozen=True, slots=True)
class Waiting(Message):
    """Sent when a run only waits for tools of its client: the broker may give its slot to another run."""

    kind: ClassVar[bytes] = kinds.WAITING
    client: bytes
    """Routing id of the run's client."""
    id: bytes
    """Request id."""


@dataclass(frozen=True, slots=True)
class Continuing(Message):
    """Sent when the client has answered a waiting run, which needs a slot again: at once, or as soon as one is free.

    A waiting run that ends sends only its terminal message.
    """

    kind: ClassVar[bytes] = kinds.CONTINUING
    client: bytes
    """Routing id of the run's client."""
    id: bytes
    """Request id."""


@dataclass(frozen=True, slots=True)
class Progress(Message):
    """Sent every second by the event loop that executes the runs, so it shows that the loop is not blocked."""

    kind: ClassVar[bytes] = kinds.PROGRESS
    open: int = 0
    """Number of runs that have not ended."""


@dataclass(frozen=True, slots=True)
class Replayed(Message):
    """Sent after each part of the worker's replays, about 256 KiB. The broker answers `more` when it has relayed it.

    Without this, the messages of other runs would wait behind megabytes of replays.
    """

    kind: ClassVar[bytes] = kinds.REPLAYED


@dataclass(frozen=True, slots=True)
class Leaving(Message):
    """Sent when the worker must stop (SIGTERM): it accepts no new runs and finishes its open ones.

    The broker answers `left`. Messages to one worker keep their order, so no new run arrives after `left`.
    """

    kind: ClassVar[bytes] = kinds.LEAVING


@dataclass(frozen=True, slots=True)
class Handover(Message):
    """Sent by a leaving worker when all its runs have ended and their messages are in a handover file.

    The broker chooses a successor, sends it `take`, and answers `handed`.
    """

    kind: ClassVar[bytes] = kinds.HANDOVER
    file: str
    """Name of the file in the folder `handover` of the run directory."""
    forgot_at: float = 0.0
    """As in `ready`."""


@dataclass(frozen=True, slots=True)
class Holds(Message):
    """Sent by a successor when it has read a handover file.

    The broker adopts the runs in the file that it does not know, and sends each `resume` for them to this worker.
    """

    kind: ClassVar[bytes] = kinds.HOLDS
    holds: tuple[Held, ...]
    """Runs in the file, as in `ready`."""
    forgot_at: float = 0.0
    """As in `ready`."""


# --- from supervisord's side to the broker ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Processes(Message):
    """Sent by the event listener after each event of supervisord, and to each new broker."""

    kind: ClassVar[bytes] = kinds.PROCESSES
    programs: Mapping[str, Program]
    """All programs of this daemon by name, each a map with `state` and `pid`."""


@dataclass(frozen=True, slots=True)
class Exited(Message):
    """Sent by the event listener when the kernel reports that the process of a worker has ended.

    The worker gets no more runs. It is lost as soon as its link is down and its last messages were read.
    """

    kind: ClassVar[bytes] = kinds.EXITED
    name: str
    """Name of the worker's supervisord program."""
    pid: int
    """Process id."""


@dataclass(frozen=True, slots=True)
class StatusRequest(Message):
    """Sent by tools such as `axon-zmq status`; the broker answers with `status`."""

    kind: ClassVar[bytes] = kinds.STATUS


# --- from the broker -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class End(Message):
    """Body of a `RunEnd`, which is sent to the worker of a run that must end."""

    kind: ClassVar[bytes] = kinds.END
    reason: EndReason
    """`cancelled`, `client_gone`, `kept_too_long`, `slow_consumer` or `superseded`."""


@dataclass(frozen=True, slots=True)
class Left(Message):
    """Sent in answer to `leaving`: the broker will send no more runs to this worker."""

    kind: ClassVar[bytes] = kinds.LEFT


@dataclass(frozen=True, slots=True)
class Handed(Message):
    """Sent in answer to `handover`: the broker has recorded that the worker's ended runs are in the file."""

    kind: ClassVar[bytes] = kinds.HANDED


@dataclass(frozen=True, slots=True)
class Take(Message):
    """Sent to the successor of a leaving worker, which must read the handover file and delete it.

    The successor adds the runs in the file to its replay store and answers `holds`.
    """

    kind: ClassVar[bytes] = kinds.TAKE
    file: str
    """Name of the file in the folder `handover` of the run directory."""


@dataclass(frozen=True, slots=True)
class More(Message):
    """Sent in answer to `replayed`: the worker may send the next part of its replays."""

    kind: ClassVar[bytes] = kinds.MORE


@dataclass(frozen=True, slots=True)
class There(Message):
    """`["", "there"]`: sent to find out whether the worker's link is up; the worker ignores it."""

    kind: ClassVar[bytes] = kinds.THERE


@dataclass(frozen=True, slots=True, kw_only=True)
class Status(Message):
    """Sent in answer to `status`."""

    kind: ClassVar[bytes] = kinds.STATUS
    boot: str
    """Random name of this broker process, as in `pong`."""
    settling: bool
    """Whether the broker is in recovery, as in `pong`."""
    draining: bool
    """Whether all registered workers are leaving, as in `pong`; false if there are none."""
    modes: Mapping[str, ModeStatus]
    """Modes by name."""
    workers: tuple[WorkerStatus, ...]
    """All registered workers."""
    quarantined: int
    """Number of requests in quarantine, where requests with the same digest count once."""
    takeovers: int = 0
    """Number of times, since the broker started, that a connection took over a routing id from another one."""


TO_BROKER: Final[Mapping[bytes, type[Message]]] = {
    each.kind: each
    for each in (
        Ready,
        Slots,
        Waiting,
        Continuing,
        Progress,
        Replayed,
        Leaving,
        Handover,
        Holds,
        Processes,
        Exited,
        StatusRequest,
    )
}
"""Control messages to the broker, by kind."""
TO_WORKER: Final[Mapping[bytes, type[Message]]] = {each.kind: each for each in (Left, Handed, Take, More, There)}
"""Control messages to a worker, by kind."""


def decode(known: Mapping[bytes, type[Message]], kind: bytes, body: bytes) -> Message | None:
    """Decode a control message.

    Args:
        known: `TO_BROKER` or `TO_WORKER`.
        kind: Kind of the message.
        body: Packed body.

    Returns:
        The message; None if this version does not know the kind.

    Raises:
        MalformedMessageError: The body does not have the form of its kind.
    """
    message_type = known.get(kind)
    return None if message_type is None else message_type.unpack(body)


# --- about a run, from the broker to its worker ----------------------------------------------------------


class RunStart(NamedTuple):
    """`[client, kind, id, header, body, lease]`: sent to start a run on the worker.

    Header and body are as the client sent them.
    """

    client: bytes
    kind: bytes
    id: bytes
    header: Mapping[str, Any]
    body: bytes
    lease: Lease


class Describe(NamedTuple):
    """`[client, "describe", id, header, body, lease]`: sent to one of the workers when a client requests the catalog.

    The worker answers at once; the request does not count against its concurrency.
    """

    client: bytes
    id: bytes
    body: bytes


class ToRun(NamedTuple):
    """`[client, kind, id, header, body]`: sent when the client sends `tool_result`, `steer` or `credit` for its run.

    Header and body are as the client sent them. While the run is queued, the broker keeps `steer` and `credit` messages
    for it.
    """

    client: bytes
    kind: bytes
    id: bytes
    header: Mapping[str, Any]
    body: bytes


class RunEnd(NamedTuple):
    """`[client, "end", id, {reason}]`: sent when the run must end: see [Ending a run](#ending-a-run)."""

    client: bytes
    id: bytes
    reason: EndReason


class RunResume(NamedTuple):
    """`[client, "resume", id, header, ""]`: sent when the client requests a replay; the header is the client's.

    The worker answers `resumed`, and then sends the kept messages, starting with the `seq` in `from` of the header.
    """

    client: bytes
    id: bytes
    header: Mapping[str, Any]


class RunClient(NamedTuple):
    """`[client, "gone" or "back", id]`: sent when the run's client has disconnected, and when it has reconnected.

    While the client is gone, the timers of the run's tool calls (`timeout_ms`) are paused.
    """

    client: bytes
    id: bytes
    is_gone: bool


FromBroker = RunStart | Describe | ToRun | RunEnd | RunResume | RunClient | Message
"""Any message that a worker receives."""


def decode_at_worker(frames: Sequence[bytes]) -> FromBroker | None:
    """Decode a message that a worker received.

    Args:
        frames: Frames as a DEALER receives them, without the worker's routing id: client, kind, id and others.

    Returns:
        The message; None if this version does not know the kind.

    Raises:
        MalformedMessageError: The message does not have the form of its kind.
    """
    if len(frames) < 2:
        raise MalformedMessageError(b"", f"expected at least 2 frames, got {len(frames)}")
    client, kind, *rest = frames
    if client == kinds.CONTROL:
        return decode(TO_WORKER, kind, rest[1] if len(rest) > 1 else b"")
    try:
        return _about_a_run(client, kind, rest)
    except RequestError as fault:
        raise MalformedMessageError(kind, fault.message) from None


def _about_a_run(client: bytes, kind: bytes, rest: list[bytes]) -> FromBroker | None:
    match kind:
        case kinds.DESCRIBE:
            id, _header, body, _lease = _exactly(4, kind, rest)
            return Describe(client, id, body)
        case kinds.TOOL_RESULT | kinds.STEER | kinds.CREDIT:
            id, header, body = _exactly(3, kind, rest)
            return ToRun(client, kind, id, _read_header(kind, header), body)
        case kinds.END:
            id, body = _exactly(2, kind, rest)
            return RunEnd(client, id, End.unpack(body).reason)
        case kinds.RESUME:
            id, header, _body = _exactly(3, kind, rest)
            return RunResume(client, id, _read_header(kind, header))
        case kinds.GONE | kinds.BACK:
            [id] = _exactly(1, kind, rest)
            return RunClient(client, id, kind == kinds.GONE)
        case _ if kind in kinds.RUN_KINDS:
            id, header, body, lease = _exactly(4, kind, rest)
            return RunStart(client, kind, id, _read_header(kind, header), body, _read_lease(kind, lease))
        case _:
            return None


def _read_header(kind: bytes, packed: bytes) -> Mapping[str, Any]:
    """Unpack and validate a client's header, which the broker passes on as it was received.

    As in the broker, a key with nil counts as absent: `upto: nil` must not reach code that expects a number. Unknown
    keys are kept, because the broker may have a later version.
    """
    header = unpack(packed, "the header")
    checks = HEADERS[kind]
    for key, value in list(header.items()):
        if value is None:
            del header[key]
        elif (check := checks.get(key)) is not None and (expectation := check(value)):
            raise MalformedMessageError(kind, f"header key {key!r} {expectation}")
    if (needed := REQUIRED_KEYS.get(kind)) is not None and needed not in header:
        raise MalformedMessageError(kind, f"header key {needed!r} is missing")
    return header


def _read_lease(kind: bytes, packed: bytes) -> Lease:
    try:
        return Lease.from_wire(unpack(packed, "the lease"))
    except _FieldError as fault:
        raise MalformedMessageError(kind, f"the lease: {fault}") from None


def _exactly(count: int, kind: bytes, frames: list[bytes]) -> list[bytes]:
    if len(frames) != count:
        raise MalformedMessageError(kind, f"expected {count + 2} frames, got {len(frames) + 2}")
    return frames


# --- reading and writing fields --------------------------------------------------------------------------

Reader = Callable[[Any], Any]
"""Converts an unpacked value to the value of a field, or raises `_FieldError`."""
_NAMES: Final = {bytes: "binary", str: "a string", int: "an integer", float: "a number", bool: "true or false"}


class _FieldError(Exception):
    """The value of a field is invalid.

    Args:
        pointer: JSON pointer of the value in the body.
        fault: Description of the error, which follows the pointer in the message.
    """

    def __init__(self, pointer: str, fault: str) -> None:
        super().__init__(f"{pointer or '/'} {fault}")
        self._pointer, self._fault = pointer, fault

    def within(self, name: str) -> _FieldError:
        """Return the same error with the JSON pointer extended by the containing key or index."""
        return _FieldError(f"/{name}{self._pointer}", self._fault)


def _plain(value: Any) -> Any:
    if isinstance(value, Body):
        return value.to_wire()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return value


@cache
def _names(body: type[Body]) -> tuple[str, ...]:
    return tuple(each.name for each in fields(body)) if is_dataclass(body) else ()


@cache
def _readers(body: type[Body]) -> Mapping[str, tuple[Reader, bool]]:
    """Return the reader of each field, and whether the key is required."""
    if not is_dataclass(body):
        return {}
    hints = get_type_hints(body)
    return {each.name: (_reader(hints[each.name]), each.default is MISSING) for each in fields(body)}


def _reader(hint: Any) -> Reader:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType) and NoneType in arguments:
        [other] = [each for each in arguments if each is not NoneType]
        read = _reader(other)
        return lambda value: None if value is None else read(value)
    if origin is tuple:
        return _list_reader(_reader(arguments[0]))
    if origin is not None:
        return _map_reader(_reader(arguments[1]))
    if issubclass(hint, Body):
        return hint.from_wire
    return _choice_reader(hint) if issubclass(hint, Enum) else _scalar_reader(hint)


def _scalar_reader(kind: type) -> Reader:
    def read(value: Any) -> Any:
        if type(value) is kind or (kind is float and type(value) is int):
            return value
        raise _FieldError("", f"must be {_NAMES[kind]}, not {type(value).__name__}")

    return read


def _choice_reader(choices: type[Enum]) -> Reader:
    def read(value: Any) -> Any:
        try:
            return choices(value)
        except ValueError:
            known = ", ".join(each.value for each in choices)
            raise _FieldError("", f"is {value!r:.64}; known values: {known}") from None

    return read


def _list_reader(read_item: Reader) -> Reader:
    def read(value: Any) -> Any:
        if not isinstance(value, list):
            raise _FieldError("", f"must be a list, not {type(value).__name__}")
        return tuple(_within(index, read_item, each) for index, each in enumerate(value))

    return read


def _map_reader(read_item: Reader) -> Reader:
    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _FieldError("", f"must be a map, not {type(value).__name__}")
        return {key: _within(key, read_item, each) for key, each in value.items()}

    return read


def _within(name: object, read: Reader, value: Any) -> Any:
    try:
        return read(value)
    except _FieldError as fault:
        raise fault.within(str(name)) from None
