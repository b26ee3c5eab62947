"""Broker, workers and clients joined in memory: no socket, no process, and a clock that stands still until it is moved.

The three cores are the real ones; between them are pipes, from which a test takes one message at a time, cuts off what
was in flight, or kills the process at either end. What the broker's server does with a socket (sending what the relay
accepts, reading a dead worker's last messages) is `World._from_worker` and `World.notice`; in place of an agent there
is a script: so many chunks, a tool call here and there, an end.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from axon_zmq.broker.core.broker import Broker
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
from axon_zmq.process.event_queue import EventQueue
from axon_zmq.protocol import kinds, limits
from axon_zmq.protocol.backend import RunStart
from axon_zmq.protocol.frames import RunKey
from axon_zmq.protocol.kinds import CONTROL
from axon_zmq.protocol.plain import packer
from axon_zmq.worker.core.active_run import ActiveRun
from axon_zmq.worker.core.effects import (
    AskToEnd,
    AwaitTurns,
    Control,
    Deliver,
    Exit,
    Finish,
    ReadHandover,
    Send,
    Start,
    WriteHandover,
)
from axon_zmq.worker.core.effects import Effect as WorkerEffect
from axon_zmq.worker.core.events import (
    CodeReturned,
    Completed,
    Connected,
    Disconnected,
    Failed,
    GraceOver,
    HandoverRead,
    HandoverWritten,
    Received,
    Sent,
)
from axon_zmq.worker.core.events import Event as WorkerEvent
from axon_zmq.worker.core.events import Tick as WorkerTick
from axon_zmq.worker.core.worker import Phase, WorkerCore
from axon_zmq.worker.delivery.replay_buffer import ReplayBuffer

Frames = tuple[bytes, ...]
STEP: Final = 0.25
"""Seconds that the clock moves at a time."""
DRAIN_S: Final = 20.0
"""How long a leaving worker lets its runs go on."""
MOST_ROUNDS: Final = 1000
"""Deliveries from each pipe after which messages are taken to go round in circles."""
CHUNK, TOOL, STUBBORN = "chunk", "tool", "stubborn"
"""What a script may do before it ends: send a chunk, call a tool of the client's, or stop listening to being ended."""


@dataclass(slots=True)
class Script:
    """The code of one run: the steps that are left, and the tool calls that wait for an answer."""

    steps: deque[str]
    open_calls: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    is_stubborn: bool = False
    """It does not end when it is asked to."""

    def listed(self) -> list[dict[str, Any]]:
        """The open calls, as `resumed` reports them."""
        return list(self.open_calls.values())


class Worker:
    """A worker process: the real core, and scripts in place of agents.

    Args:
        world: Where its messages and handover files go.
        name: The program's.
        pid: Its own.
        mode: Whose runs it takes.
        slots: How many at a time.
    """

    def __init__(self, *, world: World, name: str, pid: int, mode: str, slots: int) -> None:
        self.name, self.pid, self.slots = name, pid, slots
        self.routing_id = f"{name}.{pid}".encode()
        self.core = WorkerCore(
            name=name,
            mode=mode,
            served=frozenset((kinds.RUN, kinds.RUN_STREAM)),
            slots=slots,
            pid=pid,
            broken=None,
            drain_s=DRAIN_S,
            pack_body=packer(),
            now=world.now,
        )
        self.sent: deque[Frames] = deque()
        """On its way to the broker."""
        self.inbox: deque[Frames] = deque()
        """On its way from the broker."""
        self.started: list[tuple[RunKey, int]] = []
        """Each run that it was given, and which attempt that was."""
        self.terminals: Counter[RunKey] = Counter()
        """How many terminal messages it has sent for each run, replays not counted."""
        self.most_running = 0
        """How many runs' code has occupied it at once, at most, stuck code included."""
        self.is_hung = self.is_dead = False
        self.reading: deque[str] = deque()
        """Handover files that it was told to take, and has not read yet."""
        self.boot = ""
        """Of the broker that it registered with last."""
        self._files_written = 0
        self._world = world
        self._scripts: dict[ActiveRun, Script] = {}
        self._events = EventQueue(self.core.receive, lambda: world.now, self._apply)

    def __repr__(self) -> str:
        return f"<Worker {self.name} {self.core!r}>"

    @property
    def runs(self) -> list[RunKey]:
        """Runs that have not ended."""
        return [run.key for run in self.core if not run.ended]

    @property
    def is_leaving(self) -> bool:
        """Whether it takes no more runs."""
        return self.core.phase is not Phase.SERVING

    def put(self, event: WorkerEvent) -> None:
        """Have its core take an event."""
        self._events.put(event)

    def take(self, frames: Frames) -> None:
        """Take one message of the broker's."""
        self.put(Received(frames))

    def read_file(self) -> None:
        """Read one handover file that it was told to take."""
        file = self.reading.popleft()
        runs = self._world.files.pop(file, None)
        self.put(HandoverRead(runs or [], is_whole=runs is not None))

    def step(self, key: RunKey) -> None:
        """Let a run do what is next in its script; one that waits for a tool does nothing."""
        run = self.core.get(key)
        script = None if run is None else self._scripts.get(run)
        if run is None or script is None or script.open_calls:
            return
        match script.steps.popleft() if script.steps else None:
            case None:
                self.put(Completed(run, {"result": self.name, "usage": {}, "messages": []}))
                self._returned(run)
            case "tool":
                call_id = f"call-{run.buffer.seq + 1}"
                call = {"call_id": call_id, "name": "tool", "args": {}}
                self._send(run, kinds.TOOL_CALL, call)
                script.open_calls[call_id] = {"seq": run.buffer.seq, **call}
            case "stubborn":
                script.is_stubborn = True
            case _:
                data = f"{self.routing_id.decode()}:{run.buffer.seq + 1}"
                self._send(run, kinds.CHUNK, {"type": "text", "data": data, "step": 1, "part": 0})

    def release_stuck(self) -> None:
        """Let code that did not end when it was asked to return at last, with a result that nobody waits for."""
        for run in [run for run, script in self._scripts.items() if script.is_stubborn and run.ended]:
            self.put(Completed(run, {"result": "too late", "usage": {}, "messages": []}))
            self._returned(run)

    def pass_time(self) -> None:
        """Let its timers fire."""
        if self.core.next_timer() <= self._world.now:
            self.put(WorkerTick())

    def _send(self, run: ActiveRun, kind: bytes, body: dict[str, Any]) -> None:
        self.sent.append((run.client, kind, run.id, run.buffer.put(kind, body)))

    def _returned(self, run: ActiveRun) -> None:
        del self._scripts[run]
        self.put(CodeReturned(run))

    def _apply(self, effect: WorkerEffect) -> None:
        match effect:
            case Send():
                self.sent.append(tuple(effect))
            case Control(message):
                self.sent.append((CONTROL, message.kind, message.pack()))
            case Start(run, message):
                self._start(run, message)
            case Finish(run, kind, bodies):
                self.terminals[run.key] += 1
                self._send(run, kind, bodies[0])
                self.put(Sent(run))
            case AskToEnd(run) if not self._scripts[run].is_stubborn:
                self.put(Failed(run, AxonError.of("cancelled", "")))
                self._returned(run)
            case AwaitTurns(run):
                self.put(GraceOver(run))
            case Deliver(run, message) if message.kind == kinds.TOOL_RESULT:
                self._scripts[run].open_calls.pop(message.header["call_id"], None)
            case ReadHandover(file):
                self.reading.append(file)
            case WriteHandover(runs):
                self._write(runs)
            case Exit():
                self.is_dead = True
            case _:
                pass

    def _start(self, run: ActiveRun, message: RunStart) -> None:
        script = self._scripts[run] = Script(deque(self._world.script_of(message.body)))
        self.most_running = max(self.most_running, len(self._scripts))
        run.open_calls = script.listed
        self.started.append((run.key, message.lease.attempt))

    def _write(self, runs: Sequence[tuple[RunKey, ReplayBuffer]]) -> None:
        self._files_written += 1
        file = f"{self.routing_id.decode()}-{self._files_written}" if runs else None
        if file is not None:
            self._world.files[file] = list(runs)
        self.put(HandoverWritten(file))


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
        script_of: What a run does, by its body; see `CHUNK`, `TOOL` and `STUBBORN`.
        bounds: Of the broker.
    """

    def __init__(self, script_of: Callable[[bytes], Iterable[str]], **bounds: int) -> None:
        self.now = 1000.0
        self.workers: dict[bytes, Worker] = {}
        self.clients: dict[bytes, Client] = {}
        self.files: dict[str, list[tuple[RunKey, ReplayBuffer]]] = {}
        """Handover files by name."""
        self.starts: list[Worker] = []
        """All workers that ever were."""
        self.late: list[Worker] = []
        """Workers that were declared lost before all that they had sent was read."""
        self.broker: Broker | None = None
        self._events: EventQueue[Event, Effect] | None = None
        self.script_of = script_of
        self._bounds = limits.BrokerLimits(**bounds)
        self._journal = JournalState(PreviousState(), self.now)
        self._boots = 0
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
        self._events = EventQueue(self.broker.receive, lambda: self.now, self._apply)
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
        self.late.clear()
        self._disconnect_workers()
        for peer in (*self.workers.values(), *self.clients.values()):
            _keep_first(peer.inbox, survives(len(peer.inbox)))
            _keep_last(peer.sent, survives(len(peer.sent)))

    def stop_broker(self) -> None:
        """SIGTERM: it says what it has to say, and all of it arrives."""
        self._feed(Stop())
        while self.broker is not None and not self.broker.stopped:
            self.pass_time(STEP)
        self.broker = None
        self.late.clear()
        self._disconnect_workers()

    def add_worker(self, name: str, mode: str, slots: int) -> Worker:
        """A new process."""
        worker = Worker(world=self, name=name, pid=len(self.starts) + 1, mode=mode, slots=slots)
        self.workers[worker.routing_id] = worker
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

    def notice(self, worker: Worker, unread: int = 0) -> None:
        """The broker's server finds that a worker is dead, reads all that it had sent, and then tells the core.

        Args:
            worker: Nothing happens if it is alive.
            unread: How many of its messages arrive after that: the server reads only so many at a time.
        """
        if self.broker is None or not worker.is_dead:
            return
        while len(worker.sent) > unread:
            self._from_worker(worker)
        del self.workers[worker.routing_id]
        if worker.sent:
            self.late.append(worker)
        self._feed(WorkerGone(worker.routing_id))

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
        """It has not read for so long that its send queue is full."""
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
        for worker in (*self.workers.values(), *self.late):
            if worker.sent and self.broker is not None:
                ready.append(lambda worker=worker: self._from_worker(worker))
            if worker.inbox and not worker.is_dead and not worker.is_hung:
                ready.append(lambda worker=worker: self._to_worker(worker))
            if worker.reading and not worker.is_dead and not worker.is_hung:
                ready.append(worker.read_file)
        for client in self.clients.values():
            if client.sent and self.broker is not None:
                ready.append(lambda client=client: self._from_client(client))
            if client.inbox:
                ready.append(lambda client=client: client.take(client.inbox.popleft(), self.now))
        return ready

    def deliver_from(self, peer: Worker | Client) -> None:
        """Deliver whatever a worker or client has sent, and nothing else."""
        while peer.sent:
            if isinstance(peer, Worker):
                self._from_worker(peer)
            else:
                self._from_client(peer)

    def deliver_to(self, worker: Worker) -> None:
        """Deliver whatever is on its way to a worker, and nothing else."""
        while worker.inbox:
            self._to_worker(worker)

    def deliver_all(self) -> None:
        """Deliver whatever is under way, and what comes of it."""
        for _ in range(MOST_ROUNDS):
            if not (ready := self.pipes()):
                return
            for deliver in ready:
                deliver()
        raise AssertionError("the parties never stop answering each other")

    def pass_time(self, seconds: float) -> None:
        """Move the clock; timers fire on the way."""
        until = self.now + seconds
        while self.now < until:
            self.now += STEP
            self._let_workers_work()
            for worker in list(self.workers.values()):
                self.notice(worker)
            if self.broker is not None:
                for worker in [each for each in (*self.workers.values(), *self.late) if each.sent]:
                    self.deliver_from(worker)
                self._notice_late()
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
            while worker.inbox:  # nothing is under way for longer than a step, which is shorter than any time limit
                self._to_worker(worker)
            worker.pass_time()
            while worker.reading:
                worker.read_file()

    def _notice_late(self) -> None:
        """A lost worker's late `ready` has registered it again: the server finds that its link is down, as before."""
        late, self.late = self.late, []
        for worker in late:
            if self.broker is not None and worker.routing_id in self.broker.workers:
                self._feed(WorkerGone(worker.routing_id))

    def _connect_worker(self, worker: Worker) -> None:
        while worker.inbox:  # what an earlier broker had sent is taken first
            self._to_worker(worker)
        assert self.broker is not None
        worker.boot = self.broker.boot
        worker.put(Connected())

    def _disconnect_workers(self) -> None:
        for worker in self.workers.values():
            if not worker.is_dead and not worker.is_hung:
                worker.put(Disconnected())

    def _to_worker(self, worker: Worker) -> None:
        worker.take(worker.inbox.popleft())

    def _from_client(self, client: Client) -> None:
        self._feed(FromClient(client.identity, client.sent.popleft(), self.now))

    def _from_worker(self, worker: Worker) -> None:
        """What the broker's server does with a worker's message."""
        assert self.broker is not None
        client, kind, *rest = worker.sent.popleft()
        if client == CONTROL:
            self._feed(FromWorker(worker.routing_id, kind, rest[0]))
            return
        id, body = rest
        verdict = self.broker.relay.accept(worker.routing_id, client, kind, id)
        if verdict is not Verdict.DROP:
            self._to_client(client, kind, id, body)
        if verdict is Verdict.END:
            self._feed(Ended(worker.routing_id, client, id, kind))

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
            case Kill(identity) if identity in self.workers:
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
