"""Harness of the broker core: clients that send anything, workers, lost connections and time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Final

from axon_zmq.broker.core.broker import NO_PREVIOUS, Broker
from axon_zmq.broker.core.effects import Effect, Note, ToClient, ToWorker
from axon_zmq.broker.core.events import (
    ClientBack,
    ClientBlocked,
    ClientGone,
    Ended,
    Event,
    FromClient,
    FromWorker,
    Stop,
    TakenOver,
    Tick,
    WorkerGone,
)
from axon_zmq.broker.core.pools import Run
from axon_zmq.broker.core.recovery import PreviousState
from axon_zmq.broker.core.relay import Verdict, framed
from axon_zmq.errors import RequestError
from axon_zmq.protocol import backend, kinds, limits
from axon_zmq.protocol.frames import RunKey, open_envelope, parse
from axon_zmq.protocol.msgpack import pack, unpack
from fuzz import corpus
from fuzz.harness import Harness, Outcome, check, check_text
from fuzz.parsers import MAX_BODY, MAX_ECHOED
from fuzz.steps import Step

MAX_QUEUED, MAX_QUEUED_PER_CLIENT, MAX_QUEUED_BYTES = 6, 3, 3 * MAX_BODY
"""Limits of the broker under test: small, so that a few messages reach them."""
MAX_FRAMES: Final = 64
MAX_UNDELIVERED: Final = 16
"""Documented limits, repeated so that the harness notices if the code no longer enforces them."""
FROM_CLIENT, FROM_WORKER, RELAYED, OTHER = 0, 140, 190, 200
"""Lowest `op` of each kind of step."""
MAX_EFFECTS: Final = 600
"""Effects of one event: at the end of a run, up to 16 kept messages are refused."""


PREVIOUS: Final = PreviousState(
    waiting=frozenset((client, corpus.IDS[0]) for client in corpus.CLIENTS),
    workers={corpus.WORKERS[0]: 4711, corpus.WORKERS[1]: 4712},
    lost_at=990.0,
    handover_files=("0123456789abcdef.msgpack",),
)
"""What an earlier broker left, for a part of the inputs."""


class _World:
    """A broker, clients that never read, and workers that finish their runs when the input says so."""

    def __init__(self, outcome: Outcome, previous: PreviousState) -> None:
        self.now = 1000.0
        bounds = limits.BrokerLimits(
            max_body=MAX_BODY,
            max_queued=MAX_QUEUED,
            max_queued_per_client=MAX_QUEUED_PER_CLIENT,
            max_queued_bytes=MAX_QUEUED_BYTES,
        )
        self.broker = Broker(
            boot="boot", bounds=bounds, version="0", expected_workers=1, now=self.now, previous=previous
        )
        self.outcome = outcome
        self.asked: dict[bytes, set[bytes]] = {}
        """Ids that each client has used, or that a worker reported for it."""
        self.untrusted: set[RunKey] = set()
        """Runs about which a worker has sent messages of its own; it may send two terminal messages."""
        self.held: dict[bytes, list[RunKey]] = {}
        """Runs that each worker executes."""
        self.live: dict[RunKey, Run] = {}
        """Runs that the broker knows."""
        self.ends: dict[RunKey, set[tuple[bytes, bytes]]] = {}
        """Terminal messages of each run that the broker knows."""
        self.is_recovered = False
        """Whether the effects of the event that has ended recovery are being applied."""
        self.returned = 0
        """Runs that may have returned to their queue because their worker was lost."""
        self.finished = 0
        self.answered: list[tuple[bytes, bytes]] = []
        """Kind and id of the messages to clients since the last event."""

    # --- events --------------------------------------------------------------------------------------

    def client(self, client: bytes, frames: list[bytes]) -> None:
        """Receive a message of a client."""
        envelope = open_envelope(frames)
        self.asked.setdefault(client, set()).add(envelope.id)
        self.answered.clear()
        self.feed(FromClient(client, frames, self.now))
        if len(frames) > MAX_FRAMES:
            check(not self.answered, f"a message of {len(frames)} frames was answered, the limit is {MAX_FRAMES}")
        try:
            kind = parse(envelope.frames, MAX_BODY).kind
        except RequestError as error:
            self.outcome.signs.add(error.message[:24])
            if envelope.id and len(frames) <= MAX_FRAMES:
                check(len(self.answered) == 1, f"a malformed message has {len(self.answered)} answers")
            return
        self.outcome.passed += 1
        self.outcome.signs.update((kind, answer) for answer, _ in self.answered)

    def worker(self, worker: bytes, kind: bytes, body: bytes) -> None:
        """Receive a control message of a worker."""
        try:
            message = backend.decode(backend.TO_BROKER, kind, body)
        except backend.MalformedMessageError:
            message = None
        for held in getattr(message, "holds", ()):
            self.asked.setdefault(held.client, set()).add(held.id)
            self.untrusted.add((held.client, held.id))
        self.outcome.passed += message is not None
        if isinstance(message, backend.Ready) and worker in self.held:
            self.held[worker] = [key for key in self.held[worker] if key in self.live]
        self.feed(FromWorker(worker, kind, body))

    def relay(self, worker: bytes, frames: Sequence[bytes]) -> None:
        """Receive a message of a worker about a run, as the server does."""
        client, kind, id, body = frames
        verdict = self.broker.relay.accept(worker, client, kind, id)
        if verdict is not Verdict.DROP and len(id) <= MAX_ECHOED:
            self._to_client(ToClient(client, kind, id, body))
        if verdict is Verdict.END:
            self.feed(Ended(worker, client, id, kind))

    def relay_any(self, worker: bytes, frames: list[bytes]) -> None:
        """Receive any message of a worker about a run; the worker may be wrong about it."""
        if len(frames) != 4 or not frames[0]:
            return
        self.outcome.passed += 1
        self.asked.setdefault(frames[0], set()).add(frames[2])
        self.untrusted.add((frames[0], frames[2]))
        self.relay(worker, frames)

    def finish(self, op: int) -> None:
        """Let a worker send a chunk of its oldest run, or end it."""
        for worker, runs in self.held.items():
            if runs and worker in self.broker.workers:
                client, id = runs[0]
                if op % 3:
                    runs.pop(0)
                    self.finished += 1
                    kind = kinds.COMPLETE if op % 2 else kinds.ERROR
                    self.relay(worker, (client, kind, id, pack({"seq": self.finished})))
                else:
                    self.relay(worker, (client, kinds.CHUNK, id, pack({"seq": 1})))
                return

    def lose(self, worker: bytes) -> None:
        """Lose a worker with its runs."""
        self.returned += len(self.held.pop(worker, ()))
        self.feed(WorkerGone(worker))

    def pass_time(self, seconds: float) -> None:
        """Move the clock; the workers report progress."""
        self.now += seconds
        for worker in list(self.held):
            self.feed(FromWorker(worker, kinds.PROGRESS, b""))
        self.feed(Tick())

    # --- effects and invariants ------------------------------------------------------------------------

    def feed(self, event: Event) -> None:
        """Pass an event to the core, and check its effects and its state."""
        was_recovering = self.broker.recovering
        effects = self.broker.receive(event, self.now)
        check(len(effects) <= MAX_EFFECTS, f"{len(effects)} effects of one event")
        self._track_runs()
        self.is_recovered = was_recovering and not self.broker.recovering
        for effect in effects:
            self._apply(effect)
        self.is_recovered = False
        self._check_queues()
        self._forget_runs()

    def _apply(self, effect: Effect) -> None:
        match effect:
            case ToClient():
                self._to_client(effect)
            case ToWorker():
                self._to_worker(effect)
            case Note():
                check_text(effect.text)
            case _:
                pass

    def _to_client(self, sent: ToClient) -> None:
        check(len(sent.id) <= MAX_ECHOED, f"a message to a client has an id of {len(sent.id)} bytes")
        if sent.kind != kinds.ALIVE:
            check(sent.id in self.asked.get(sent.client, ()), f"{sent.kind!r} is sent to a client that did not ask")
        self.answered.append((sent.kind, sent.id))
        framed(self.broker.relay.flags_of(sent.client) or 0, sent.kind, sent.id, sent.body)
        key = sent.client, sent.id
        if sent.kind not in kinds.TERMINAL_KINDS or key not in self.live or key in self.untrusted:
            return
        if self.is_recovered:
            # The event that ends recovery processes all held messages: it may answer one with an error, then start a
            # run with the same id, and end that run, too.
            self.ends[key] = {(sent.kind, sent.body)} if self.live[key].state.value == "ended" else set()
        elif not (self.ends[key] and _is_lost(sent)):
            self.ends[key].add((sent.kind, sent.body))
            check(len(self.ends[key]) == 1, "a run has two different terminal messages")

    def _to_worker(self, sent: ToWorker) -> None:
        if sent.kind in kinds.RUN_KINDS:
            key = sent.client, sent.id
            check(not self.ends.get(key), "a run is started after its end")
            self.held.setdefault(sent.worker, []).append(key)
        elif sent.kind == kinds.DESCRIBE:
            self.held.setdefault(sent.worker, []).append((sent.client, sent.id))
        elif sent.client:
            holders = self.held.get(sent.worker, ())
            is_known = (sent.client, sent.id) in holders or (sent.client, sent.id) in self.live
            check(is_known or (sent.client, sent.id) in self.untrusted, f"{sent.kind!r} about an unknown run")

    def _track_runs(self) -> None:
        for run in self.broker.runs:
            if self.live.get(run.key) is not run:
                self.live[run.key] = run
                self.ends[run.key] = set()

    def _forget_runs(self) -> None:
        for key, run in list(self.live.items()):
            if self.broker.runs.get(key) is not run:
                del self.live[key]
                if key not in self.untrusted:
                    check(self.ends[key], "a run was forgotten without a terminal message")
                del self.ends[key]

    def _check_queues(self) -> None:
        waiting = queued_bytes = 0
        of_client: Counter[bytes] = Counter()
        for run in self.broker.runs:
            if run.state.value == "queued":
                waiting += 1
                queued_bytes += run.size
                of_client[run.client] += 1
                check(len(run.undelivered) <= MAX_UNDELIVERED, f"{len(run.undelivered)} messages wait for a queued run")
        pools = len(list(self.broker.workers.all_pools()))
        # A run that returns from a lost worker is queued even if the queue is full.
        most = max(of_client.values(), default=0)
        check(most <= pools * MAX_QUEUED_PER_CLIENT + self.returned, f"{most} runs of one client are queued")
        check(waiting <= pools * MAX_QUEUED + self.returned, f"{waiting} runs are queued")
        check(queued_bytes <= MAX_QUEUED_BYTES + self.returned * MAX_BODY, f"{queued_bytes} bytes are queued")

    def drain(self) -> None:
        """Let all workers finish, and all time limits pass: then each run has ended, and none is remembered."""
        self.pass_time(3.0)
        for _ in range(400):
            if not any(runs and worker in self.broker.workers for worker, runs in self.held.items()):
                break
            self.finish(1)
        for worker in [each.routing_id for each in self.broker.workers]:
            self.lose(worker)
        for _ in range(3):
            self.pass_time(limits.RESUME_WINDOW + 5.0)
        check(not self.live, f"{len(self.live)} runs are still known after all time limits")
        check(not len(self.broker.runs.in_flight), f"bytes of ended runs count: {self.broker.runs.in_flight!r}")
        for pool in self.broker.workers.all_pools():
            left = (pool.waiting, pool.waiting_bytes, len(pool.shares), len(pool.resumes))
            check(left == (0, 0, 0, 0), f"records of ended runs are left in the pool of {pool.mode}: {left}")


def _is_lost(sent: ToClient) -> bool:
    """Whether a replay of an ended run has failed: the messages were lost with the worker."""
    return sent.kind == kinds.ERROR and unpack(sent.body, "error")["error_type"] == "unknown_request"


def examine(steps: Sequence[Step]) -> Outcome:
    """Give each event to a broker core."""
    outcome = Outcome()
    world = _World(outcome, PREVIOUS if steps and steps[0].op % 4 == 1 else NO_PREVIOUS)
    for op, frames in steps:
        if op < FROM_WORKER:
            outcome.messages += 1
            world.client(corpus.CLIENTS[op % 3], frames)
        elif op < RELAYED:
            outcome.messages += 1
            kind, body = (*frames, b"", b"")[:2]
            world.worker(corpus.WORKERS[op % 4], kind, body)
        elif op < OTHER:
            outcome.messages += 1
            world.relay_any(corpus.WORKERS[op % 4], frames)
        else:
            _OTHERS[(op - OTHER) % len(_OTHERS)](world, op)
    world.drain()
    return outcome


_OTHERS: Final[Sequence[Callable[[_World, int], None]]] = (
    lambda world, op: world.finish(op // 16),
    lambda world, op: world.finish(op // 16),
    lambda world, op: world.finish(op),
    lambda world, _: world.pass_time(0.5),
    lambda world, _: world.pass_time(3.0),
    lambda world, _: world.pass_time(3.0),
    lambda world, _: world.pass_time(16.0),
    lambda world, _: world.pass_time(limits.RESUME_WINDOW),
    lambda world, op: world.feed(ClientGone(corpus.CLIENTS[op % 3])),
    lambda world, op: world.feed((ClientBack if op % 2 else TakenOver)(corpus.CLIENTS[op % 3])),
    lambda world, op: world.feed(ClientBlocked(corpus.CLIENTS[op % 3])),
    lambda world, op: world.lose(corpus.WORKERS[op % 4]),
    lambda world, op: world.feed(Stop()) if op > 250 else None,
)


def more(rng: Random) -> Step:
    """Make one event: most often a valid message of a client."""
    choice = rng.random()
    if choice < 0.62:
        kind, _, *rest = rng.choice(corpus.from_client())
        frames = [kind, rng.choice(corpus.IDS), *rest]
        if rng.random() < 0.02:
            frames += [b""] * 70
        return Step(rng.randrange(FROM_WORKER), frames)
    if choice < 0.74:
        return Step(rng.randrange(FROM_WORKER, RELAYED), list(rng.choice(corpus.to_broker())))
    if choice < 0.78:
        kind, id, body = rng.choice(corpus.to_client())
        return Step(rng.randrange(RELAYED, OTHER), [rng.choice(corpus.CLIENTS), kind, id, body])
    return Step(rng.randrange(OTHER, 256), [])


_LOSE: Final = (224, 237, 250)
"""`op` of the step that loses each of the first three workers."""


def begin(rng: Random) -> list[Step]:
    """Make a history. Most have a worker; some are a flood of one client."""
    steps: list[Step] = []
    if rng.random() < 0.7:
        ready = backend.Ready(v=1, mode="run", slots=rng.choice((1, 2)), name="run-1", holds=(), pid=11)
        steps += [Step(rng.randrange(FROM_WORKER, RELAYED), [ready.kind, ready.pack()]), Step(OTHER + 4, [])]
    elif rng.random() < 0.5:
        steps.append(Step(OTHER + 4, []))
    match rng.randrange(10):
        case 0:  # more requests than the queue of one client may have
            body = pack({"agent": "echo", "prompt": "hi"})
            steps += [Step(0, [kinds.RUN_STREAM, b"flood-%d" % each, b"", body]) for each in range(12)]
            steps += [Step(0, [kinds.RUN, b"flood-%d" % each, b"", body]) for each in range(12, 24)]
        case 1:  # messages for a queued run
            steps += [Step(0, [kinds.RUN_SYNC, b"1", b"", pack({"agent": "echo", "prompt": "hi"})])]
            steps += [Step(0, [kinds.STEER, b"1", b"", pack({"content": "x"})])] * 20
        case 2:  # a request during which workers die
            for number in range(3):
                name = f"run-{number}"
                ready = backend.Ready(v=1, mode="run", slots=1, name=name, holds=(), pid=number + 1)
                programs = backend.Processes({name: backend.Program("RUNNING", number + 1)})
                steps += [Step(FROM_WORKER + number, [each.kind, each.pack()]) for each in (ready, programs)]
                steps += [Step(OTHER + 4, []), Step(0, [kinds.RUN, b"p-%d" % number, b"", b""])]
                steps.append(Step(_LOSE[number], []))
        case _:
            pass
    return steps + [more(rng) for _ in range(rng.choice((2, 4, 8, 12)))]


BROKER: Final = Harness(
    name="broker",
    about="broker/core, with the relay as the server uses it",
    legal="none: the core answers bad input, or drops it and counts it",
    invariants=(
        "each run that the broker accepts gets exactly one terminal message, or copies of it, before it is forgotten",
        "a malformed message with a readable id has exactly one answer; one with over 64 frames has none",
        "a message goes only to the client that used its request id, or whose run a worker has reported",
        "the queues of each client and mode are within their limits, and at most 16 messages wait for a queued run",
        "log lines and the effects of one event are limited in size and number",
    ),
    examine=examine,
    begin=begin,
    more=more,
    share=3,
    ci_inputs=300,
)
