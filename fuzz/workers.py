"""Harness of the worker core: messages of the broker, with headers and bodies of clients, and runs that end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any, Final

from axon_zmq.errors import AxonError
from axon_zmq.protocol import kinds, limits
from axon_zmq.protocol.frames import RunKey
from axon_zmq.protocol.plain import packer
from axon_zmq.worker.core import effects, events
from axon_zmq.worker.core.active_run import ActiveRun
from axon_zmq.worker.core.worker import WorkerCore
from axon_zmq.worker.delivery.replay_buffer import ReplayBuffer, RunInfo
from fuzz import corpus
from fuzz.harness import Harness, Outcome, check, check_text
from fuzz.steps import Step

RECEIVED, OTHER = 0, 190
"""Lowest `op` of each kind of step."""
MAX_EFFECTS: Final = 400
"""Effects of one event: the replay of a run has a message for each chunk of the input."""
_SERVED: Final = frozenset((kinds.RUN, kinds.CALL_TOOL))


class _World:
    """A worker core, and runs whose code ends when the input says so."""

    def __init__(self, outcome: Outcome) -> None:
        self.now = 1000.0
        self.outcome = outcome
        self._pack = packer()
        self.core = WorkerCore(
            name="run-1",
            mode="run",
            served=_SERVED,
            slots=4,
            pid=4711,
            broken=None,
            drain_s=5.0,
            pack_body=self._pack,
            now=self.now,
        )
        self.executing: list[ActiveRun] = []
        self.ends: Counter[int] = Counter()
        """Terminal messages of each run, by the `id` of the run."""
        self.runs: list[ActiveRun] = []
        """All runs, so that no `id` is used again."""
        self.asked: set[RunKey] = set()
        """Runs about which the broker has sent a message."""
        self.files: list[str] = []
        self.exited = False

    def receive(self, frames: list[bytes]) -> None:
        """Receive a message of the broker."""
        if len(frames) > 2:
            self.asked.add((frames[0], frames[2]))
        self.feed(events.Received(frames))

    def feed(self, event: events.Event) -> None:
        """Pass an event to the core, and apply its effects."""
        made = self.core.receive(event, self.now)
        check(len(made) <= MAX_EFFECTS, f"{len(made)} effects of one event")
        for effect in made:
            self.outcome.signs.add(type(effect).__name__)
            self._apply(effect)

    def _apply(self, effect: effects.Effect) -> None:
        match effect:
            case effects.Start(run):
                self.runs.append(run)
                self.executing.append(run)
            case effects.Send(client, kind, name, _):
                check((client, name) in self.asked, f"{kind!r:.40} is sent to a client that did not ask")
            case effects.Finish(run, kind, bodies):
                self.ends[id(run)] += 1
                check(self.ends[id(run)] == 1, "a run has two terminal messages")
                run.buffer.put(kind, bodies[0])
                self.feed(events.Sent(run))
            case effects.AwaitTurns(run):
                self.feed(events.GraceOver(run))
            case effects.Control(message):
                message.pack()
            case effects.ReadHandover(file):
                self.files.append(file)
            case effects.WriteHandover(runs):
                self.feed(events.HandoverWritten("0" * 16 + ".msgpack" if runs else None))
            case effects.Exit():
                self.exited = True
            case effects.Note():
                check_text(effect.text)
            case _:
                pass

    def act(self, op: int) -> None:
        """Let something else happen than a message of the broker."""
        run = self.executing[op % len(self.executing)] if self.executing else None
        match op % 11:
            case 0 if run is not None:
                run.buffer.put(kinds.CHUNK, {"type": "text", "data": "x", "step": 1, "part": 0})
            case 1 | 2 if run is not None:
                self.feed(events.Completed(run, {"result": "x", "usage": {}, "messages": []}))
                self._returned(run)
            case 3 if run is not None:
                self.feed(events.Failed(run, AxonError.of("internal", "x")))
                self._returned(run)
            case 4:
                self.feed(events.Connected())
            case 5:
                self.feed(events.Disconnected())
            case 6 if op > 240:
                self.feed(events.Leave())
            case 7 if self.files:
                self.files.pop()
                buffer = ReplayBuffer(self._pack, RunInfo("run", corpus.DIGEST, 2000.0, keep=False))
                buffer.put(kinds.COMPLETE, {"result": 1})
                buffer.ended_at = self.now
                key = corpus.CLIENTS[0], corpus.IDS[2]
                self.feed(events.HandoverRead([(key, buffer)], is_whole=op % 2 == 0))
            case 8:
                self.pass_time(0.1)
            case 9:
                self.pass_time(9.0)
            case _:
                self.pass_time(limits.RESUME_WINDOW)

    def pass_time(self, seconds: float) -> None:
        """Move the clock, and process the timers that are due."""
        self.now += seconds
        self.feed(events.Tick())

    def _returned(self, run: ActiveRun) -> None:
        self.executing.remove(run)
        self.feed(events.CodeReturned(run))

    def drain(self) -> None:
        """Let all deadlines pass: then each run has ended, and nothing is left."""
        self.now = max(self.now, min(1e12, max((run.deadline for run in self.runs), default=0.0))) + 1.0
        for _ in range(4):
            self.pass_time(30.0)
        for run in self.runs:
            if run.deadline < 1e12:
                check(self.ends[id(run)] == 1, f"a run has {self.ends[id(run)]} terminal messages after its deadline")
        for run in list(self.executing):
            self._returned(run)
        check(self.core.timers <= 200, f"{self.core.timers} timers are left")


def examine(steps: Sequence[Step]) -> Outcome:
    """Give each event to a worker core."""
    outcome = Outcome()
    world = _World(outcome)
    world.feed(events.Connected())
    for op, frames in steps:
        if op < OTHER:
            outcome.messages += 1
            before = len(outcome.signs)
            outcome.passed += _is_readable(frames)
            world.receive(frames)
            outcome.signs.add((bytes(frames[1][:16]) if len(frames) > 1 else b"", before == len(outcome.signs)))
        else:
            world.act(op)
    world.drain()
    return outcome


def _is_readable(frames: list[bytes]) -> bool:
    from axon_zmq.protocol.backend import MalformedMessageError, decode_at_worker

    try:
        return decode_at_worker(frames) is not None
    except MalformedMessageError:
        return False


def more(rng: Random) -> Step:
    """Make a valid message of the broker, or another event."""
    if rng.random() < 0.3:
        return Step(rng.randrange(OTHER, 256), [])
    frames: list[Any] = list(rng.choice(corpus.to_worker()))
    if frames[0]:
        frames[0] = rng.choice(corpus.CLIENTS[:2])
        frames[2] = rng.choice(corpus.IDS[:3])
    return Step(rng.randrange(OTHER), frames)


WORKER: Final = Harness(
    name="worker",
    about="worker/core, with worker/delivery's replay buffers",
    legal="none: a malformed message is logged, and answered if it is a request",
    invariants=(
        "each run gets exactly one terminal message, at the latest after its deadline",
        "a message goes only to a client about which the broker has sent a message with that request id",
        "log lines and the effects of one event are limited in size and number; no timer is left",
    ),
    examine=examine,
    begin=lambda rng: [more(rng) for _ in range(rng.choice((2, 4, 8, 12)))],
    more=more,
    share=3,
    ci_inputs=300,
)
