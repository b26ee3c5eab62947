"""Typed messages between broker, workers and supervisord's event listener. No I/O.

A control message is `["", kind, body]` towards the broker and `["", kind, "", body]` towards a worker, where `body` is
a msgpack map. Each class below is one kind of body: `pack` writes it, `unpack` reads and checks it. It is decoded
once, on receipt, and `MalformedMessageError` is the only thing that malformed input can cause; whatever else is raised
later is a fault of ours and is not caught. Unknown keys are ignored, since a rolling restart joins two versions, and
a key with a default may be missing.

The tables of `docs/backend.md` are generated from these classes (`python -m tests.support.snippets`): a docstring says
when the message is sent, then what follows; a docstring that begins with frames in backquotes shows those; the
docstrings of the fields say what they hold.
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
from axon_zmq.protocol.frames import printable
from axon_zmq.protocol.msgpack import pack, unpack

VERSION: Final = 1
"""Version of this protocol: `v` of `ready`."""


class MalformedMessageError(ValueError):
    """A message between broker and worker that does not have the form of its kind.

    Args:
        kind: The message's kind.
        fault: What is wrong with it, naming the key.
    """

    def __init__(self, kind: bytes, fault: str) -> None:
        super().__init__(f"malformed `{printable(kind)}` message: {fault}")
        self.kind = kind


class EndReason(Enum):
    """Why a run is asked to end, and the error that it ends with."""

    CANCELLED = "cancelled"
    """The broker asks, because the client sent `cancel`."""
    CLIENT_GONE = "client_gone"
    """The broker asks, because the client was gone for the grace period and `on_disconnect` is not `keep`."""
    SLOW_CONSUMER = "slow_consumer"
    """The broker asks, because the client's send queue is full."""
    SUPERSEDED = "superseded"
    """The broker asks, because the run went on elsewhere; what this worker still sends about it is dropped."""
    DEADLINE = "deadline"
    """The worker itself ends the run at the deadline of its lease."""
    SHUTTING_DOWN = "shutting_down"
    """The worker itself ends the run when its drain time is over."""


class Body:
    """A msgpack map with typed keys; each subclass is a dataclass."""

    __slots__ = ()

    def to_wire(self) -> dict[str, Any]:
        """The map, as msgpack takes it."""
        return {name: _plain(getattr(self, name)) for name in _names(type(self))}

    @classmethod
    def from_wire(cls, value: object) -> Self:
        """Check a map and take its known keys.

        Raises:
            _FieldError: A key is missing or has a value of another type.
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
    """The body of one kind of control message."""

    __slots__ = ()
    kind: ClassVar[bytes]

    def pack(self) -> bytes:
        """The packed body."""
        return pack(self.to_wire())

    def has_fields(self) -> bool:
        """Whether there is a body; kinds without one are sent without its frame."""
        return bool(_names(type(self)))

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Decode a body; empty bytes are an empty map.

        Raises:
            MalformedMessageError: It is not msgpack, or not this message.
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
    """What a worker is given with a run, as its last frame."""

    deadline: float
    """Seconds of the machine's monotonic clock at which the run is ended: broker and worker share one clock."""
    attempt: int
    """1 for the first start, 2 for the next one."""
    digest: bytes = b""
    """BLAKE2b of the body, 16 bytes, as in a held run; older brokers leave it out."""

    def pack(self) -> bytes:
        """The packed body."""
        return pack_lease(self.deadline, self.attempt, self.digest)


def pack_lease(deadline: float, attempt: int, digest: bytes) -> bytes:
    """A packed `Lease`, without the object: the broker makes one for each run."""
    return pack({"deadline": deadline, "attempt": attempt, "digest": digest})


@dataclass(frozen=True, slots=True, kw_only=True)
class Held(Body):
    """A run whose messages a worker keeps."""

    client: bytes
    """Routing id of the run's client."""
    id: bytes
    """Request id."""
    kind: str
    """`run_sync`, `run`, `run_stream` or `call_tool`."""
    digest: bytes
    """BLAKE2b of the body, 16 bytes: a repeated id with another body is refused."""
    deadline: float
    """As in `lease`."""
    keep: bool
    """Whether `on_disconnect` was `keep`."""
    seq: int
    """`seq` of the run's last message so far."""
    ended: bool
    """Whether the run's terminal message was sent."""

    def to_wire(self) -> dict[str, Any]:
        """The map; written out, because a worker that registers again may hold tens of thousands of runs."""
        return {
            "client": self.client,
            "id": self.id,
            "kind": self.kind,
            "digest": self.digest,
            "deadline": self.deadline,
            "keep": self.keep,
            "seq": self.seq,
            "ended": self.ended,
        }


@dataclass(frozen=True, slots=True)
class Program(Body):
    """A supervisord program, as supervisord describes it."""

    state: str
    """supervisord's state, such as `RUNNING`."""
    pid: int = 0
    """Process id; 0 if there is no process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeStatus(Body):
    """One mode, in `status`."""

    workers: int
    """How many workers are registered."""
    free: int
    """How many runs they can take now."""
    queued: int
    """How many runs are queued."""
    degraded: bool
    """Whether the mode serves with fewer workers than it should."""
    reasons: tuple[str, ...] = ()
    """Why the mode is degraded, in sentences."""

    def for_clients(self) -> dict[str, Any]:
        """The mode's entry in a `pong`: without the reasons, which are for operators."""
        return {key: value for key, value in self.to_wire().items() if key != "reasons"}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus(Body):
    """One worker, in `status`."""

    name: str
    """The name of its supervisord program."""
    identity: bytes
    """Its routing id."""
    mode: str
    """`run_sync`, `run` or `run_stream`."""
    pid: int
    """Process id; 0 if the worker does not report one."""
    state: str
    """Its state in the broker: one of [the life cycle of a worker](states.md#a-worker)."""
    broken: tuple[str, ...] | None
    """Agents that it could not load; `nil` if the worker does not report them."""
    slots: int
    """Its concurrency: how many runs it takes at a time."""
    busy: int
    """How many runs it executes now."""
    silent_ms: int
    """Milliseconds since its last sign of progress."""
    crashes: int
    """How many processes of this name have crashed within the last minute."""


# --- from a worker to the broker -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready(Message):
    """Sent once connected, and after each reconnect, when every message of an earlier broker has been read."""

    kind: ClassVar[bytes] = kinds.READY
    v: int
    """Version of this protocol: 1."""
    mode: str
    """`run_sync`, `run` or `run_stream`."""
    slots: int
    """How many runs the worker takes at a time; fewer than configured while a stuck run occupies it."""
    name: str
    """The name of its supervisord program, for logs and messages, and to match what the event listener reports."""
    holds: tuple[Held, ...]
    """The runs whose messages it keeps, open and ended: [held runs](#a-held-run)."""
    pid: int = 0
    """Its process id; a worker that does not report it is never killed."""
    broken: tuple[str, ...] | None = None
    """The agents that it could not load, for `status`; `nil` there if the worker does not report them."""
    forgot_at: float = 0.0
    """Seconds of the machine's monotonic clock at which an ended run was last forgotten before its time: for lack of
    room, or because a handover file could not be read."""

    @classmethod
    def from_wire(cls, value: object) -> Self:
        """As `Body.from_wire`; the version comes first, since another version's keys may mean something else."""
        version = value.get("v") if isinstance(value, dict) else VERSION
        if type(version) is int and version != VERSION:
            raise _FieldError("/v", f"is {version}: this version speaks {VERSION}, and the worker gets no runs")
        return super(Ready, cls).from_wire(value)


@dataclass(frozen=True, slots=True)
class Slots(Message):
    """Sent when a stuck run occupies the worker, and again when its code has returned."""

    kind: ClassVar[bytes] = kinds.SLOTS
    slots: int
    """How many runs the worker takes at a time now."""


@dataclass(frozen=True, slots=True)
class Progress(Message):
    """Sent every second, by the event loop that does the work."""

    kind: ClassVar[bytes] = kinds.PROGRESS
    open: int = 0
    """How many runs have not ended."""


@dataclass(frozen=True, slots=True)
class Leaving(Message):
    """Sent when the worker was told to stop: it takes no new runs and finishes its open ones.

    The broker answers `left`; everything that it had sent before arrives before that answer.
    """

    kind: ClassVar[bytes] = kinds.LEAVING


@dataclass(frozen=True, slots=True)
class Handover(Message):
    """Sent when all runs of a leaving worker have ended and their messages are in a handover file.

    The broker chooses a successor, which it tells to `take` the file, and answers `handed`.
    """

    kind: ClassVar[bytes] = kinds.HANDOVER
    file: str
    """Name of the file in `handover/` of the run directory."""
    forgot_at: float = 0.0
    """As in `ready`."""


@dataclass(frozen=True, slots=True)
class Holds(Message):
    """Sent after the worker has read a handover file: these runs were in it.

    The broker adopts them: it sends their `resume`s to this worker from now on.
    """

    kind: ClassVar[bytes] = kinds.HOLDS
    holds: tuple[Held, ...]
    """As in `ready`."""
    forgot_at: float = 0.0
    """As in `ready`."""


# --- from supervisord's side to the broker ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Processes(Message):
    """Sent by the event listener at each of supervisord's events, and to each new broker.

    It lists all programs of this daemon.
    """

    kind: ClassVar[bytes] = kinds.PROCESSES
    programs: Mapping[str, Program]
    """Each program by its name: a map with `state` and `pid`, as supervisord reports them."""


@dataclass(frozen=True, slots=True)
class Exited(Message):
    """Sent by the event listener when the kernel reports that a worker's process has ended.

    The worker gets no more runs; it is lost when its link is down and its last messages were read.
    """

    kind: ClassVar[bytes] = kinds.EXITED
    name: str
    """The name of its supervisord program."""
    pid: int
    """Its process id."""


@dataclass(frozen=True, slots=True)
class StatusRequest(Message):
    """Sent by tools such as `axon-zmq status`; the broker answers with `status`."""

    kind: ClassVar[bytes] = kinds.STATUS


# --- from the broker -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class End(Message):
    """Sent to the worker of a run that must end."""

    kind: ClassVar[bytes] = kinds.END
    reason: EndReason
    """`cancelled`, `client_gone`, `slow_consumer` or `superseded`."""


@dataclass(frozen=True, slots=True)
class Left(Message):
    """Sent in answer to `leaving`: no more runs will come."""

    kind: ClassVar[bytes] = kinds.LEFT


@dataclass(frozen=True, slots=True)
class Handed(Message):
    """Sent in answer to `handover`: the broker knows that the worker's ended runs are in the file."""

    kind: ClassVar[bytes] = kinds.HANDED


@dataclass(frozen=True, slots=True)
class Take(Message):
    """Sent to the successor of a leaving worker: it reads the handover file and deletes it.

    The runs in the file are this worker's from now on. It answers `holds`.
    """

    kind: ClassVar[bytes] = kinds.TAKE
    file: str
    """Name of the file in `handover/` of the run directory."""


@dataclass(frozen=True, slots=True)
class There(Message):
    """`["", "there"]`: sent to find out whether the worker's link is up; the worker does nothing."""

    kind: ClassVar[bytes] = kinds.THERE


@dataclass(frozen=True, slots=True, kw_only=True)
class Status(Message):
    """Sent in answer to `status`."""

    kind: ClassVar[bytes] = kinds.STATUS
    boot: str
    """The random name of this broker process, as in `pong`."""
    settling: bool
    """Whether the broker is in recovery, as in `pong`."""
    draining: bool
    """Whether there are workers and all of them are leaving, as in `pong`."""
    modes: Mapping[str, ModeStatus]
    """Each mode by its name."""
    workers: tuple[WorkerStatus, ...]
    """All registered workers."""
    quarantined: int
    """How many requests, told apart by their digest, are in quarantine now."""


TO_BROKER: Final[Mapping[bytes, type[Message]]] = {
    each.kind: each for each in (Ready, Slots, Progress, Leaving, Handover, Holds, Processes, Exited, StatusRequest)
}
"""The control messages that a broker takes, by kind."""
TO_WORKER: Final[Mapping[bytes, type[Message]]] = {each.kind: each for each in (Left, Handed, Take, There)}
"""The control messages that a worker takes, by kind."""


def decode(known: Mapping[bytes, type[Message]], kind: bytes, body: bytes) -> Message | None:
    """The typed message of a kind; None for kinds that this version does not know.

    Args:
        known: `TO_BROKER` or `TO_WORKER`.
        kind: The kind frame.
        body: The packed body.

    Raises:
        MalformedMessageError: The body does not have the form of its kind.
    """
    message_type = known.get(kind)
    return None if message_type is None else message_type.unpack(body)


# --- about a run, from the broker to its worker ----------------------------------------------------------


class RunStart(NamedTuple):
    """`[client, kind, id, header, body, lease]`: sent to have a run executed.

    Header and body are as the client sent them.
    """

    client: bytes
    kind: bytes
    id: bytes
    header: Mapping[str, Any]
    body: bytes
    lease: Lease


class Describe(NamedTuple):
    """`[client, "describe", id, header, body, lease]`: sent to any worker when a client asks for the catalog.

    It does not count against the worker's concurrency, and is answered at once.
    """

    client: bytes
    id: bytes
    body: bytes


class ToRun(NamedTuple):
    """`[client, kind, id, header, body]`: sent when the client sends `tool_result`, `steer` or `credit` for its run.

    Header and body are as the client sent them. While the run is queued, the broker holds its `steer`s and `credit`.
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
    """`[client, "resume", id, header, ""]`: sent when the client asks for a replay; the header is the client's own.

    The worker answers `resumed`, then the kept messages from the header's `from`.
    """

    client: bytes
    id: bytes
    header: Mapping[str, Any]


class RunClient(NamedTuple):
    """`[client, "gone" or "back", id]`: sent when the run's client is gone, and when it is back.

    While the client is gone, the `timeout_ms` of the run's tool calls stands still.
    """

    client: bytes
    id: bytes
    is_gone: bool


FromBroker = RunStart | Describe | ToRun | RunEnd | RunResume | RunClient | Message
"""What a worker receives."""


def decode_at_worker(frames: Sequence[bytes]) -> FromBroker | None:
    """The typed message of what a worker receives; None for kinds that this version does not know.

    Args:
        frames: Without the worker's routing id: client, kind, id and what follows.

    Raises:
        MalformedMessageError: It does not have the form of its kind.
    """
    if len(frames) < 2:
        raise MalformedMessageError(b"", f"it has {len(frames)} frames")
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
            return ToRun(client, kind, id, unpack(header, "the header"), body)
        case kinds.END:
            id, body = _exactly(2, kind, rest)
            return RunEnd(client, id, End.unpack(body).reason)
        case kinds.RESUME:
            id, header, _body = _exactly(3, kind, rest)
            return RunResume(client, id, unpack(header, "the header"))
        case kinds.GONE | kinds.BACK:
            [id] = _exactly(1, kind, rest)
            return RunClient(client, id, kind == kinds.GONE)
        case _ if kind in kinds.RUN_KINDS:
            id, header, body, lease = _exactly(4, kind, rest)
            return RunStart(client, kind, id, unpack(header, "the header"), body, _read_lease(kind, lease))
        case _:
            return None


def _read_lease(kind: bytes, packed: bytes) -> Lease:
    try:
        return Lease.from_wire(unpack(packed, "the lease"))
    except _FieldError as fault:
        raise MalformedMessageError(kind, f"the lease: {fault}") from None


def _exactly(count: int, kind: bytes, frames: list[bytes]) -> list[bytes]:
    if len(frames) != count:
        raise MalformedMessageError(kind, f"it has {len(frames) + 2} frames instead of {count + 2}")
    return frames


# --- reading and writing fields --------------------------------------------------------------------------

Reader = Callable[[Any], Any]
"""Takes an unpacked value; returns the field's value or raises `_FieldError`."""
_NAMES: Final = {bytes: "binary", str: "a string", int: "an integer", float: "a number", bool: "true or false"}


class _FieldError(Exception):
    """A value that a field cannot hold.

    Args:
        pointer: JSON pointer to it, below the body.
        fault: What is wrong.
    """

    def __init__(self, pointer: str, fault: str) -> None:
        super().__init__(f"{pointer or '/'} {fault}")
        self._pointer, self._fault = pointer, fault

    def within(self, name: str) -> _FieldError:
        """The same fault, seen from the map or list around it."""
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
    """How each field of a body is read, and whether its key must be there."""
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
            raise _FieldError("", f"is {value!r:.64}; known are {', '.join(each.value for each in choices)}") from None

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
