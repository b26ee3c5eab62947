"""Broker, workers and clients joined in memory: no socket, no process, and a clock that stands still until it is moved.

The broker's core, the workers' outboxes and the clients' core are the real ones; between them are pipes, of which a
test takes one message at a time, cuts off what was under way, or kills what is at their ends. What a real loop does
with a socket (relaying, telling the core of terminals, reading a dead worker's last words) is `World._from_worker` and
`World.notice`; what a worker does with a run is a script: so many chunks, a tool call here and there, an end.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from axon_zmq.broker.core.broker import Broker, EventQueue
from axon_zmq.broker.core.effects import Dequeued, Effect, Enqueued, Kill, Registered, ToClient, ToWorker, Unregistered
from axon_zmq.broker.core.events import (
    ClientBack,
    ClientBlocked,
    ClientGone,
    Ended,
    Event,
    FromClient,
    FromWorker,
    Stop,
    Tick,
    WorkerGone,
)
from axon_zmq.broker.core.recovery import PreviousState
from axon_zmq.broker.core.relay import GONE, Verdict, framed
from axon_zmq.broker.journal import JournalState
from axon_zmq.client import core as client_core
from axon_zmq.client.core import ClientCore
from axon_zmq.errors import AxonError
from axon_zmq.events import Complete, ToolCall
from axon_zmq.protocol import kinds, limits
from axon_zmq.protocol.backend import VERSION
from axon_zmq.protocol.frames import RunKey, body_digest, error_body, refused_body
from axon_zmq.protocol.kinds import CONTROL, TERMINAL_KINDS
from axon_zmq.protocol.msgpack import pack, unpack
from axon_zmq.worker.delivery.replay_buffer import ReplayBuffer, ReplayStore, RunInfo

Frames = tuple[bytes, ...]
STEP: Final = 0.25
"""Seconds that the clock moves at a time."""
CHUNK, TOOL = "chunk", "tool"
"""What a script may do before it ends."""


@dataclass
class Run:
    """A run in a worker: what is left of its script, and the calls that wait."""

    outbox: ReplayBuffer
    script: deque[str]
    deadline: float
    open_calls: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])


class Worker:
    """A worker process, but for what executes agents.

    Args:
        name: The program's.
        pid: Its own.
        mode: Whose runs it takes.
        slots: How many at a time.
        script_of: What a run does, by its body.
    """

    def __init__(self, name: str, pid: int, mode: str, slots: int, script_of: Callable[[bytes], Iterable[str]]) -> None:
        self.name, self.pid, self.mode, self.slots = name, pid, mode, slots
        self.identity = f"{name}.{pid}".encode()
        self.sent: deque[Frames] = deque()
        """On its way to the broker."""
        self.inbox: deque[Frames] = deque()
        """On its way from the broker."""
        self.runs: dict[RunKey, Run] = {}
        self.started: list[tuple[RunKey, int]] = []
        """Each run that it was given, and which attempt that was."""
        self.is_hung = self.is_dead = self.is_leaving = self.may_go = self.is_handed = False
        self._has_written = False
        self.reading: deque[str] = deque()
        """Files that it was told to take, and has not read yet."""
        self._asked_early: list[tuple[RunKey, int]] = []
        self.boot = ""
        """Of the broker that it registered with last."""
        self._shelf = ReplayStore()
        self._script_of = script_of

    def register(self) -> None:
        """Tell a broker what it is and what it holds."""
        ready = {"v": VERSION, "mode": self.mode, "slots": self.slots, "name": self.name}
        self.control(kinds.READY, {**ready, "pid": self.pid, **self._shelf.to_wire()})
        if self.is_leaving:
            self.control(kinds.LEAVING, {})

    @property
    def kept(self) -> int:
        """How many runs it keeps the messages of."""
        return len(list(self._shelf))

    def control(self, kind: bytes, body: dict[str, Any]) -> None:
        """Say something to the broker itself."""
        self.sent.append((CONTROL, kind, pack(body)))

    def take(self, frames: Frames, world: World) -> None:
        """Take one message of the broker's."""
        client, kind, id, *rest = frames
        match kind:
            case kinds.LEFT:
                self.may_go = True
            case kinds.HANDED:
                self.is_handed = True
            case kinds.TAKE:
                self.reading.append(unpack(rest[0], "take")["file"])
            case kinds.END:
                self._end((client, id), unpack(rest[0], "end")["reason"], world.now)
            case kinds.RESUME:
                self._resume((client, id), unpack(rest[0], "resume").get("from", 1))
            case kinds.TOOL_RESULT:
                self._answered((client, id), unpack(rest[0], "header")["call_id"])
            case kinds.RUN | kinds.RUN_STREAM:
                self._start((client, id), kind, *rest)
            case _:
                pass

    def read_file(self, world: World) -> None:
        """Take up what another worker has left, and answer who asked for it meanwhile."""
        taken = self._shelf.merge(world.files.pop(self.reading.popleft(), []))
        self.control(kinds.HOLDS, self._shelf.to_wire(taken))
        if not self.reading:
            asked, self._asked_early = self._asked_early, []
            for key, start in asked:
                self._resume(key, start)

    def step(self, key: RunKey, now: float) -> None:
        """Let a run do what is next in its script; one that waits for a tool does nothing."""
        run = self.runs[key]
        if run.open_calls:
            return
        if not run.script:
            self._put(key, kinds.COMPLETE, {"result": self.name, "usage": {}, "messages": []}, now)
        elif run.script.popleft() == TOOL:
            call_id = f"call-{run.outbox.seq + 1}"
            call = {"call_id": call_id, "name": "tool", "args": {}}
            self._put(key, kinds.TOOL_CALL, call, now)
            run.open_calls[call_id] = {"seq": run.outbox.seq, **call}
        else:
            data = f"{self.identity.decode()}:{run.outbox.seq + 1}"
            self._put(key, kinds.CHUNK, {"type": "text", "data": data, "step": 1, "part": 0}, now)

    def pass_time(self, now: float) -> None:
        """End what is late, and forget what is out of time."""
        for key in [key for key, run in self.runs.items() if run.deadline <= now]:
            self._fail(key, "deadline_exceeded", now)
        self._shelf.tidy(now)

    def leave(self, world: World) -> bool:
        """Go, once everything has ended and was handed over; whether it has gone."""
        if not self.may_go or self.runs or self.reading:
            return False
        if not self.is_handed and (ended := list(self._shelf.ended(world.now))):
            if not self._has_written:
                self._has_written = True
                file = self.identity.decode()
                world.files[file] = ended
                self.control(kinds.HANDOVER, {"file": file, "forgot_at": self._shelf.forgot_at})
            return False
        return True

    def _start(self, key: RunKey, kind: bytes, header: bytes, body: bytes, lease: bytes) -> None:
        told = unpack(lease, "the lease")
        keep = unpack(header, "the header").get("on_disconnect") == "keep"
        identity = RunInfo(kind.decode(), body_digest(body), told["deadline"], keep)
        run = self.runs[key] = Run(ReplayBuffer(pack, identity), deque(self._script_of(body)), told["deadline"])
        self._shelf.add(key, run.outbox)
        self.started.append((key, told["attempt"]))

    def _put(self, key: RunKey, kind: bytes, body: dict[str, Any], now: float) -> None:
        run = self.runs[key]
        self.sent.append((key[0], kind, key[1], run.outbox.put(kind, body)))
        if kind in TERMINAL_KINDS:
            del self.runs[key]
            self._shelf.end(key, now)

    def _fail(self, key: RunKey, error_type: str, now: float) -> None:
        self._put(key, kinds.ERROR, AxonError.of(error_type, "").to_body(), now)

    def _end(self, key: RunKey, reason: str, now: float) -> None:
        if key in self.runs:
            self._fail(key, "slow_consumer" if reason == "slow_consumer" else "cancelled", now)
        elif reason == "cancelled":
            body = refused_body(kinds.CANCEL, AxonError.of("invalid_request", "the run has already ended"))
            self.sent.append((key[0], kinds.REFUSED, key[1], body))

    def _resume(self, key: RunKey, start: int) -> None:
        client, id = key
        outbox = self._shelf.get(key)
        if outbox is None:
            if self.reading:
                self._asked_early.append((key, start))
                return
            error = AxonError.of("unknown_request", "no longer kept", {"may_have_run": True})
            self.sent.append((client, kinds.ERROR, id, error_body(error)))
            return
        replay = outbox.replay(start)
        calls = list(self.runs[key].open_calls.values()) if key in self.runs else []
        resumed = {"from": replay.start, "gap": replay.gap, "open_calls": calls, "last": outbox.seq}
        self.sent.append((client, kinds.RESUMED, id, pack(resumed)))
        self.sent.extend((client, message.kind, id, message.body) for message in replay.messages)

    def _answered(self, key: RunKey, call_id: str) -> None:
        if key in self.runs:
            self.runs[key].open_calls.pop(call_id, None)


class Client:
    """A client process: the real core, and an application that answers tools and remembers what it was told."""

    def __init__(self, identity: bytes, now: float) -> None:
        self.identity = identity
        self.core = ClientCore()
        self.sent: deque[list[bytes]] = deque()
        """On its way to the broker."""
        self.inbox: deque[list[bytes]] = deque()
        """On its way from the broker."""
        self.is_connected = True
        self.requests: dict[bytes, client_core.Run] = {}
        self.events: dict[bytes, list[Any]] = {}
        """All that came for each request, the end last."""
        self.called: Counter[tuple[bytes, str]] = Counter()
        """How often each tool call was handed to the application."""
        self.to_answer: list[tuple[bytes, str]] = []
        self.core.connected(now)

    def take(self, frames: list[bytes], now: float) -> None:
        """Take one message of the broker's."""
        self.core.receive(frames, now)
        self.read()

    def read(self) -> None:
        """Let the application read all that there is, and note the tools that it is asked to run."""
        for id, request in self.requests.items():
            while request.inbox:
                self.events[id].append(request.inbox.popleft())
        while self.core.tool_events:
            request, event = self.core.tool_events.popleft()
            if isinstance(event, ToolCall):
                self.called[request.id, event.call_id] += 1
                self.to_answer.append((request.id, event.call_id))
        if self.is_connected:
            self.sent.extend(self.core.outgoing)
            self.core.outgoing.clear()

    def ends(self, id: bytes) -> list[Any]:
        """The terminal events of a request."""
        return [event for event in self.events[id] if isinstance(event, Complete | AxonError)]


class World:
    """The three of them, and what lies between.

    Args:
        script_of: What a run does, by its body; see `CHUNK` and `TOOL`.
        bounds: Of the broker.
    """

    def __init__(self, script_of: Callable[[bytes], Iterable[str]], **bounds: int) -> None:
        self.now = 1000.0
        self.workers: dict[bytes, Worker] = {}
        self.clients: dict[bytes, Client] = {}
        self.files: dict[str, list[tuple[RunKey, ReplayBuffer]]] = {}
        """What leaving workers have left, by the file's name."""
        self.starts: list[Worker] = []
        """All workers that ever were."""
        self.broker: Broker | None = None
        self._events: EventQueue | None = None
        self._script_of = script_of
        self._bounds = limits.BrokerLimits(**bounds)
        self._journal = JournalState(PreviousState(), self.now)
        self._boots = 0
        self._progress_at = self.now
        self.start_broker()

    # --- processes that come and go ----------------------------------------------------------------

    def start_broker(self) -> None:
        """A broker, with what the one before has left behind."""
        self._boots += 1
        past = self._journal.previous_state(tuple(self.files)) if self._boots > 1 else PreviousState()
        self._journal = JournalState(past, self.now)
        self.broker = Broker(
            boot=f"boot-{self._boots}",
            bounds=self._bounds,
            version="0",
            expected_workers=0,
            now=self.now,
            previous=past,
        )
        self._events = EventQueue(self.broker, lambda: self.now, self._apply)
        for worker in self.workers.values():
            if not worker.is_dead and not worker.is_hung:
                self._connect_worker(worker)
        for client in self.clients.values():
            if client.is_connected:
                client.core.connected(self.now)
                client.read()

    def kill_broker(self, survives: Callable[[int], int]) -> None:
        """SIGKILL.

        Args:
            survives: Told how many messages were under way on a pipe, says how many of them get through: the first
                of those that it had sent, the last of those that were sent to it.
        """
        self.broker = None
        for peer in (*self.workers.values(), *self.clients.values()):
            _keep_first(peer.inbox, survives(len(peer.inbox)))
            _keep_last(peer.sent, survives(len(peer.sent)))

    def stop_broker(self) -> None:
        """SIGTERM: it says what it has to say, and all of it arrives."""
        self._feed(Stop())
        while self.broker is not None and not self.broker.stopped:
            self.pass_time(STEP)
        self.broker = None

    def add_worker(self, name: str, mode: str, slots: int) -> Worker:
        """A new process."""
        worker = Worker(name, len(self.starts) + 1, mode, slots, self._script_of)
        self.workers[worker.identity] = worker
        self.starts.append(worker)
        if self.broker is not None:
            self._connect_worker(worker)
        return worker

    def kill_worker(self, worker: Worker, survives: int) -> None:
        """SIGKILL; so many of the messages that it had sent get through."""
        worker.is_dead = True
        worker.inbox.clear()
        _keep_first(worker.sent, survives)

    def wake_worker(self, worker: Worker) -> None:
        """One that was hung, or stopped, goes on, and connects to the broker that may have come meanwhile."""
        worker.is_hung = False
        if self.broker is not None and worker.boot != self.broker.boot:
            self._connect_worker(worker)

    def notice(self, worker: Worker) -> None:
        """The broker's loop looks: of a worker that is dead it reads all that it had sent, and then tells the core."""
        if self.broker is None or not worker.is_dead:
            return
        while worker.sent:
            self._from_worker(worker)
        del self.workers[worker.identity]
        self._feed(WorkerGone(worker.identity))

    def add_client(self, identity: bytes) -> Client:
        """A new process; whoever had the identity before is gone."""
        client = self.clients[identity] = Client(identity, self.now)
        client.read()
        return client

    def cut(self, client: Client, survives: Callable[[int], int]) -> None:
        """Its connection breaks; of what was under way the first get through."""
        client.is_connected = False
        _keep_first(client.inbox, survives(len(client.inbox)))
        _keep_first(client.sent, survives(len(client.sent)))

    def block(self, client: Client) -> None:
        """It has not read for so long that its outbox is full."""
        if self.broker is not None:
            self._feed(ClientBlocked(client.identity))

    def restore(self, client: Client) -> None:
        """Its connection is there again."""
        client.is_connected = True
        client.core.connected(self.now)
        client.read()

    # --- what is under way -------------------------------------------------------------------------

    def pipes(self) -> list[Callable[[], None]]:
        """What can be delivered now: each call delivers one message."""
        ready: list[Callable[[], None]] = []
        for worker in self.workers.values():
            if worker.sent and self.broker is not None:
                ready.append(lambda worker=worker: self._from_worker(worker))
            if worker.inbox and not worker.is_dead and not worker.is_hung:
                ready.append(lambda worker=worker: self._to_worker(worker))
            if worker.reading and not worker.is_dead and not worker.is_hung:
                ready.append(lambda worker=worker: worker.read_file(self))
        for client in self.clients.values():
            if client.sent and self.broker is not None:
                ready.append(
                    lambda client=client: self._feed(FromClient(client.identity, client.sent.popleft(), self.now))
                )
            if client.inbox:
                ready.append(lambda client=client: client.take(client.inbox.popleft(), self.now))
        return ready

    def deliver_all(self) -> None:
        """Deliver whatever is under way, and what comes of it."""
        while ready := self.pipes():
            for deliver in ready:
                deliver()

    def pass_time(self, seconds: float) -> None:
        """Move the clock; timers fire on the way."""
        until = self.now + seconds
        while self.now < until:
            self.now += STEP
            self._let_workers_work()
            if self.now >= self._progress_at:
                self._progress_at = self.now + limits.PROGRESS_INTERVAL
            for worker in list(self.workers.values()):
                self.notice(worker)
            if self.broker is not None:
                for worker in [each for each in self.workers.values() if each.sent]:
                    while worker.sent:
                        self._from_worker(worker)
                if self.broker.next_timer() <= self.now:
                    self._feed(Tick())
            for client in self.clients.values():
                while client.inbox:  # nothing is under way for longer than a step
                    client.take(client.inbox.popleft(), self.now)
                client.core.tick(self.now)
                client.read()

    # --- inside ------------------------------------------------------------------------------------

    def _let_workers_work(self) -> None:
        for worker in [each for each in self.workers.values() if not each.is_dead and not each.is_hung]:
            worker.pass_time(self.now)
            while worker.reading:
                worker.read_file(self)
            if self.broker is not None and self.now >= self._progress_at:
                worker.control(kinds.PROGRESS, {})
            if worker.is_leaving and worker.leave(self):
                worker.is_dead = True

    def _connect_worker(self, worker: Worker) -> None:
        while worker.inbox:  # what an earlier broker had sent is read first
            self._to_worker(worker)
        assert self.broker is not None
        worker.boot = self.broker.boot
        worker.register()

    def _to_worker(self, worker: Worker) -> None:
        worker.take(worker.inbox.popleft(), self)

    def _from_worker(self, worker: Worker) -> None:
        """What the broker's server does with a worker's message."""
        assert self.broker is not None
        client, kind, *rest = worker.sent.popleft()
        if client == CONTROL:
            self._feed(FromWorker(worker.identity, kind, rest[0]))
            return
        id, body = rest
        verdict = self.broker.relay.accept(worker.identity, client, kind, id)
        if verdict is not Verdict.DROP:
            self._to_client(client, kind, id, body)
        if verdict is Verdict.END:
            self._feed(Ended(worker.identity, client, id, kind))

    def _to_client(self, client: bytes, kind: bytes, id: bytes, body: bytes) -> None:
        assert self.broker is not None
        there = self.clients.get(client)
        if there is None or not there.is_connected:
            self._feed(ClientGone(client))
            return
        flags = self.broker.relay.flags_of(client) or 0
        there.inbox.append(framed(flags, kind, id, body))
        if flags & GONE:
            self._feed(ClientBack(client))

    def _feed(self, event: Event) -> None:
        assert self._events is not None
        self._events.put(event)

    def _apply(self, effect: Effect) -> None:
        match effect:
            case ToClient(client, kind, id, body):
                self._to_client(client, kind, id, body)
            case ToWorker(identity, client, kind, id, rest):
                worker = self.workers.get(identity)
                if worker is not None and not worker.is_dead:
                    worker.inbox.append((client, kind, id, *rest))
            case Kill(identity):
                self.kill_worker(self.workers[identity], len(self.workers[identity].sent))
            case Enqueued() | Dequeued() | Registered() | Unregistered():
                self._journal.remember(effect)
            case _:
                pass


def _keep_first(pipe: deque[Any], count: int) -> None:
    while len(pipe) > count:
        pipe.pop()


def _keep_last(pipe: deque[Any], count: int) -> None:
    while len(pipe) > count:
        pipe.popleft()
