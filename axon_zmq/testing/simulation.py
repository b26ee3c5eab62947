"""Simulation of a daemon and its clients in memory, without sockets, processes or real time.

The cores of broker, workers and clients are the real ones. Queues, called pipes, connect them. A test delivers one
message at a time, drops messages that are in flight, or kills the process at either end. Only the test moves the clock.

`World._from_worker` and `World.notice` replace the socket code of the broker's server: they relay messages, and read
the last messages of a dead worker. A script replaces the agent of a run: it sends chunks, calls tools, and ends.
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
from axon_zmq.worker.core.concurrency import Slot
from axon_zmq.worker.core.effects import (
    AskToEnd,
    AwaitTurns,
    Continue,
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
    Answered,
    CodeReturned,
    Completed,
    Connected,
    Disconnected,
    Failed,
    GraceOver,
    HandoverRead,
    HandoverWritten,
    OnlyWaits,
    Received,
    Sent,
)
from axon_zmq.worker.core.events import Event as WorkerEvent
from axon_zmq.worker.core.events import Tick as WorkerTick
from axon_zmq.worker.core.worker import Phase, WorkerCore
from axon_zmq.worker.delivery.replay_buffer import ReplayBuffer

Frames = tuple[bytes, ...]
STEP_S: Final = 0.25
"""Seconds by which the clock moves in one step."""
DRAIN_S: Final = 20.0
"""Drain time of a leaving worker, in seconds."""
PART_MESSAGES: Final = 3
"""Number of messages in a part of the replays: so few that most replays have several parts."""
MAX_ROUNDS: Final = 1000
"""Deliveries from each pipe after which `deliver_all` assumes an endless exchange of messages, and fails."""
CHUNK, TOOL, STUBBORN = "chunk", "tool", "stubborn"
"""Steps of a script: send a chunk, call a tool of the client, or ignore all later attempts to end the run."""


@dataclass(slots=True, kw_only=True)
class Script:
    """Simulated code of one run."""

    steps: deque[str]
    """Remaining steps."""
    open_calls: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    """Tool calls that wait for an answer, by id."""
    is_stubborn: bool = False
    """Whether the code continues although the run must end."""
    has_slot: bool = True
    """Whether the code may execute."""

    def listed(self) -> list[dict[str, Any]]:
        """Return the open calls as `resumed` reports them."""
        return list(self.open_calls.values())


class Worker:
    """A simulated worker process: the real core, with scripts in place of agents.

    Args:
        world: World that the worker belongs to.
        name: Name of its program.
        pid: Process id.
        mode: Mode of the runs that it executes.
        slots: Concurrency: how many runs it executes at a time.
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
            part_messages=PART_MESSAGES,
        )
        self.sent: deque[Frames] = deque()
        """Messages in flight to the broker."""
        self.inbox: deque[Frames] = deque()
        """Messages in flight from the broker."""
        self.started: list[tuple[RunKey, int]] = []
        """Runs that the worker started, each with the number of the attempt."""
        self.terminals: Counter[RunKey] = Counter()
        """Number of terminal messages that the worker sent for each run, without replays."""
        self.most_running = 0
        """Maximum number of runs that held a slot at the same time, including stuck runs."""
        self.was_overfull = False
        """Whether more runs ever held a slot than there were. If stuck runs occupy all slots, one more run may have
        one."""
        self.is_hung = self.is_dead = False
        self.reading: deque[str] = deque()
        """Names of handover files that the worker must read."""
        self.boot = ""
        """Boot name of the broker that the worker connected to last."""
        self._files_written = 0
        self._world = world
        self._scripts: dict[ActiveRun, Script] = {}
        self._events = EventQueue(self.core.receive, lambda: world.now, self._apply)

    def __repr__(self) -> str:
        return f"<Worker {self.name} {self.core!r}>"

    @property
    def runs(self) -> list[RunKey]:
        """Keys of the runs that have not ended."""
        return [run.key for run in self.core if not run.ended]

    @property
    def is_leaving(self) -> bool:
        """Whether the worker is stopping and accepts no more runs."""
        return self.core.phase is not Phase.SERVING

    def put(self, event: WorkerEvent) -> None:
        """Pass an event to the core, and apply the effects."""
        self._events.put(event)

    def take(self, frames: Frames) -> None:
        """Process one message of the broker."""
        self.put(Received(frames))

    def read_file(self) -> None:
        """Read the next handover file."""
        file = self.reading.popleft()
        runs = self._world.files.pop(file, None)
        self.put(HandoverRead(runs or [], is_whole=runs is not None))

    def step(self, key: RunKey) -> None:
        """Execute the next step of a run's script; a run that waits for a tool leaves its slot."""
        run = self.core.get(key)
        script = None if run is None else self._scripts.get(run)
        if run is None or script is None or not script.has_slot:
            return
        if script.open_calls:
            script.has_slot = False
            self.put(OnlyWaits(run))
            return
        match script.steps.popleft() if script.steps else None:
            case None:
                script.is_stubborn = False  # the code has nothing left to do
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
        """Let the code of stuck runs return, with a result that is no longer needed."""
        for run in [run for run, script in self._scripts.items() if script.is_stubborn and run.ended]:
            self.put(Completed(run, {"result": "too late", "usage": {}, "messages": []}))
            self._returned(run)

    def pass_time(self) -> None:
        """Process the timers that are due."""
        if self.core.next_timer() <= self._world.now:
            self.put(WorkerTick())

    def _send(self, run: ActiveRun, kind: bytes, body: dict[str, Any]) -> None:
        packed = run.buffer.put(kind, body)
        if not run.is_replaying:
            self.sent.append((run.client, kind, run.id, packed))

    def _returned(self, run: ActiveRun) -> None:
        del self._scripts[run]
        self.put(CodeReturned(run))

    def _apply(self, effect: WorkerEffect) -> None:
        match effect:
            case Send():
                self.sent.append(tuple(effect))
            case Control(message):
                self.sent.append((CONTROL, message.kind, message.pack()))
            case Start(run, message, has_slot):
                self._start(run, message, has_slot)
            case Continue(run):
                self._scripts[run].has_slot = True
                self._count_running()
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
                self._take_answer(run, message.header["call_id"])
            case ReadHandover(file):
                self.reading.append(file)
            case WriteHandover(runs):
                self._write(runs)
            case Exit():
                self.is_dead = True
            case _:
                pass

    def _take_answer(self, run: ActiveRun, call_id: str) -> None:
        script = self._scripts[run]
        if script.open_calls.pop(call_id, None) is not None and not script.open_calls and not script.has_slot:
            self.put(Answered(run))

    def _count_running(self) -> None:
        # A run that is ending without a slot needs none: its code returns, or the run becomes stuck.
        none = Slot.NONE
        running = sum(script.has_slot and self.core.slot_of(run) is not none for run, script in self._scripts.items())
        stuck = sum(script.is_stubborn and run.ended for run, script in self._scripts.items())
        self.most_running = max(self.most_running, running + stuck)
        if running > max(1, self.slots - stuck):
            self.was_overfull = True

    def _start(self, run: ActiveRun, message: RunStart, has_slot: bool) -> None:
        script = Script(steps=deque(self._world.script_of(message.body)), has_slot=has_slot)
        self._scripts[run] = script
        self._count_running()
        run.open_calls = script.listed
        self.started.append((run.key, message.lease.attempt))

    def _write(self, runs: Sequence[tuple[RunKey, ReplayBuffer]]) -> None:
        self._files_written += 1
        file = f"{self.routing_id.decode()}-{self._files_written}" if runs else None
        if file is not None:
            self._world.files[file] = list(runs)
        self.put(HandoverWritten(file))


class Client:
    """A simulated client process: the real core, and an application that records events and tool calls."""

    def __init__(self, identity: bytes, now: float) -> None:
        self.identity = identity
        self.core = ClientCore()
        self.sent: deque[list[bytes]] = deque()
        """Messages in flight to the broker."""
        self.inbox: deque[list[bytes]] = deque()
        """Messages in flight from the broker."""
        self.is_connected = True
        self.requests: dict[bytes, client_core.Run] = {}
        """Requests by id."""
        self.events: dict[bytes, list[Any]] = {}
        """All items that the application read for each request; the terminal one is the last."""
        self.called: Counter[tuple[bytes, str]] = Counter()
        """How often the application received each tool call: request id and call id."""
        self.to_answer: list[tuple[bytes, str]] = []
        """Tool calls that the application has not answered: request id and call id."""
        self.core.connected(now)

    def take(self, frames: list[bytes], now: float) -> None:
        """Process one message of the broker, and let the application read."""
        self.core.receive(frames, now)
        self.read()

    def read(self) -> None:
        """Let the application read all inboxes and record its tool calls, and send the core's messages if connected."""
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
        """Return the terminal events of a request."""
        return [event for event in self.events[id] if isinstance(event, Complete | AxonError)]


class World:
    """A simulated broker, its workers and clients, the pipes between them, and the clock.

    Args:
        script_of: Returns the steps of a run's script for its request body; see `CHUNK`, `TOOL` and `STUBBORN`.
        bounds: Limits of the broker: fields of `BrokerLimits`.
    """

    def __init__(self, script_of: Callable[[bytes], Iterable[str]], **bounds: int) -> None:
        self.now = 1000.0
        """Simulated time in seconds."""
        self.workers: dict[bytes, Worker] = {}
        """Workers that the broker has not declared lost, by routing id."""
        self.clients: dict[bytes, Client] = {}
        """Clients by routing id."""
        self.files: dict[str, list[tuple[RunKey, ReplayBuffer]]] = {}
        """Handover files by name."""
        self.starts: list[Worker] = []
        """All workers that were ever started."""
        self.late: list[Worker] = []
        """Workers that were declared lost while messages of theirs were still unread."""
        self.broker: Broker | None = None
        """The broker; None while it is down."""
        self._events: EventQueue[Event, Effect] | None = None
        self.script_of = script_of
        """Returns the steps of a run's script for its request body."""
        self._bounds = limits.BrokerLimits(**bounds)
        self._journal = JournalState(PreviousState(), self.now)
        self._boots = 0
        self.start_broker()

    # --- starts and ends of processes and connections ------------------------------------------------

    def start_broker(self) -> None:
        """Start a broker, which recovers from the journal of its predecessor and the handover files."""
        self._boots += 1
        previous = self._journal.previous_state(tuple(self.files)) if self._boots > 1 else PreviousState()
        self._journal = JournalState(previous, self.now)
        self.broker = Broker(
            boot=f"boot-{self._boots}",
            bounds=self._bounds,
            version="0",
            expected_workers=0,
            now=self.now,
            previous=previous,
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
        """Kill the broker as SIGKILL does; some of the messages in flight are lost.

        Args:
            survives: Takes the number of messages in flight in a pipe, and returns how many of them are delivered. Of
                messages from the broker, the oldest are delivered; of messages to the broker, the newest.
        """
        self.broker = None
        self.late.clear()
        self._disconnect_workers()
        # The buffers of a dead process are lost. The first messages that it sent had already left these buffers. The
        # last messages sent to it are still in the sender's socket, which delivers them to the next broker.
        for peer in (*self.workers.values(), *self.clients.values()):
            _keep_first(peer.inbox, survives(len(peer.inbox)))
            _keep_last(peer.sent, survives(len(peer.sent)))

    def stop_broker(self) -> None:
        """Stop the broker as SIGTERM does: it sends its last messages, and all of them are delivered."""
        self._feed(Stop())
        while self.broker is not None and not self.broker.stopped:
            self.pass_time(STEP_S)
        self.broker = None
        self.late.clear()
        self._disconnect_workers()

    def add_worker(self, name: str, mode: str, slots: int) -> Worker:
        """Start a worker process, and connect it to the broker if there is one."""
        worker = Worker(world=self, name=name, pid=len(self.starts) + 1, mode=mode, slots=slots)
        self.workers[worker.routing_id] = worker
        self.starts.append(worker)
        if self.broker is not None:
            self._connect_worker(worker)
        return worker

    def kill_worker(self, worker: Worker, survives: int) -> None:
        """Kill a worker as SIGKILL does.

        Args:
            worker: The worker.
            survives: How many of its messages in flight are delivered, the oldest first.
        """
        worker.is_dead = True
        worker.inbox.clear()
        _keep_first(worker.sent, survives)

    def wake_worker(self, worker: Worker) -> None:
        """Let a hung worker continue; if the broker was restarted in the meantime, the worker connects to it."""
        worker.is_hung = False
        if self.broker is not None and worker.boot != self.broker.boot:
            self._connect_worker(worker)

    def notice(self, worker: Worker, unread: int = 0) -> None:
        """Let the broker's server detect a dead worker, read the worker's last messages, and report it to the core.

        Args:
            worker: The worker; nothing happens if it is alive.
            unread: How many of its messages are read only after the report, because the server reads a limited number
                of messages at a time.
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
        """Start a client process, which replaces an earlier one with the same routing id."""
        client = self.clients[identity] = Client(identity, self.now)
        client.read()
        return client

    def cut(self, client: Client, survives: Callable[[int], int]) -> None:
        """Break the connection of a client.

        Args:
            client: The client.
            survives: Takes the number of messages in flight in a pipe, and returns how many of them are delivered, the
                oldest first.
        """
        client.is_connected = False
        _keep_first(client.inbox, survives(len(client.inbox)))
        _keep_first(client.sent, survives(len(client.sent)))

    def block(self, client: Client) -> None:
        """Report to the broker that the send queue of a client is full."""
        if self.broker is not None:
            self._feed(ClientBlocked(client.identity))

    def restore(self, client: Client) -> None:
        """Connect a client again."""
        client.is_connected = True
        client.core.connected(self.now)
        client.read()

    # --- delivery of messages, and the clock ---------------------------------------------------------

    def pipes(self) -> list[Callable[[], None]]:
        """Return a function for each pipe that has messages; each call delivers the next message of its pipe."""
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
        """Deliver all messages that a worker or client has sent."""
        while peer.sent:
            if isinstance(peer, Worker):
                self._from_worker(peer)
            else:
                self._from_client(peer)

    def deliver_to(self, worker: Worker) -> None:
        """Deliver all messages in flight to a worker."""
        while worker.inbox:
            self._to_worker(worker)

    def deliver_all(self) -> None:
        """Deliver all messages in flight, and the messages sent in response, until no pipe has any.

        Raises:
            AssertionError: The messages never end.
        """
        for _ in range(MAX_ROUNDS):
            if not (ready := self.pipes()):
                return
            for deliver in ready:
                deliver()
        raise AssertionError(f"messages are still in flight after {MAX_ROUNDS} rounds of deliveries")

    def pass_time(self, seconds: float) -> None:
        """Move the clock in steps of `STEP_S` seconds, and process all timers that are due.

        Messages are delivered within one step, so that none is in flight for longer than any time limit.
        """
        until = self.now + seconds
        while self.now < until:
            self.now += STEP_S
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
                while client.inbox:
                    client.take(client.inbox.popleft(), self.now)
                client.core.tick(self.now)
                client.read()

    # --- internals ---------------------------------------------------------------------------------

    def _let_workers_work(self) -> None:
        for worker in [each for each in self.workers.values() if not each.is_dead and not each.is_hung]:
            while worker.inbox:
                self._to_worker(worker)
            worker.pass_time()
            while worker.reading:
                worker.read_file()

    def _notice_late(self) -> None:
        """Report lost workers again if a late `ready` has registered them.

        The broker's server does the same, because it finds again that the link of the worker is down.
        """
        late, self.late = self.late, []
        for worker in late:
            if self.broker is not None and worker.routing_id in self.broker.workers:
                self._feed(WorkerGone(worker.routing_id))

    def _connect_worker(self, worker: Worker) -> None:
        while worker.inbox:  # messages of an earlier broker are read before the worker registers with the next one
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
        """Process the next message of a worker as the broker's server does."""
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
        receiver = self.clients.get(client)
        if receiver is None or not receiver.is_connected:
            self._feed(ClientGone(client))
            return
        flags = self.broker.relay.flags_of(client) or 0
        receiver.inbox.append(framed(flags, kind, id, body))
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
