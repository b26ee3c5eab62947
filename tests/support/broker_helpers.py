"""Broker, workers and clients joined in memory: no socket, no clock, no sleep."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from axon_zmq.broker.core.broker import NO_PREVIOUS, RECOVERY_S, Broker
from axon_zmq.broker.core.effects import Dequeued, Effect, Enqueued, Kill, Note, ToClient, ToWorker, Unregistered
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
from axon_zmq.broker.core.relay import Verdict
from axon_zmq.protocol import kinds, limits
from axon_zmq.protocol.backend import VERSION
from axon_zmq.protocol.kinds import CONTROL, TERMINAL_KINDS
from axon_zmq.protocol.msgpack import pack, unpack

Key = tuple[bytes, bytes]


class FakeWorker:
    """A fake worker that records the runs which it holds."""

    def __init__(self, identity: bytes, mode: str, slots: int) -> None:
        self.identity, self.mode, self.slots = identity, mode, slots
        self.pid = 4711
        self.runs: dict[Key, int] = {}
        """Open runs, and the `seq` of the last message of each."""
        self.asked_to_end: list[tuple[bytes, str]] = []
        self.resumed: list[tuple[Key, int]] = []
        self.told: list[tuple[str, bytes, bytes]] = []
        """Kind, id and body of each other message about a run."""


class Bench:
    """A broker core under test, with all messages that it sent."""

    def __init__(
        self,
        expected_workers: int = 0,
        recovered: bool = True,
        previous: PreviousState = NO_PREVIOUS,
        **bounds: int,
    ) -> None:
        self.now = 1000.0
        self.broker = Broker(
            boot="boot",
            bounds=limits.BrokerLimits(**bounds),
            version="0",
            expected_workers=expected_workers,
            now=self.now,
            previous=previous,
        )
        self.journal = set(previous.waiting)
        self.unregistered: list[Unregistered] = []
        self.killed: list[bytes] = []
        self.controls: list[tuple[bytes, str, dict[str, Any]]] = []
        """Peer, kind and body of each message that is not about a run."""
        self.workers: dict[bytes, FakeWorker] = {}
        self.to_clients: list[ToClient] = []
        self.dispatched: list[tuple[bytes, Key, dict[str, Any]]] = []
        """Worker, run and lease of each start."""
        self.notes: list[Note] = []
        if recovered:
            self.pass_time(RECOVERY_S)
            assert not self.broker.recovering

    # --- events ------------------------------------------------------------------------------------

    def feed(self, event: Event) -> list[Effect]:
        effects = self.broker.receive(event, self.now)
        for effect in effects:
            match effect:
                case ToClient():
                    self.to_clients.append(effect)
                case ToWorker():
                    self._at_worker(effect)
                case Kill():
                    self.killed.append(effect.worker)
                case Enqueued():
                    self.journal.add((effect.client, effect.id))
                case Dequeued():
                    self.journal.discard((effect.client, effect.id))
                case Unregistered():
                    self.unregistered.append(effect)
                case Note():
                    self.notes.append(effect)
        return effects

    def send(self, client: bytes, kind: str, id: bytes, header: Any = None, body: Any = None) -> list[ToClient]:
        """Receive a message from a client; returns the immediate replies to clients."""
        frames = [
            kind.encode(),
            id,
            *(part if isinstance(part, bytes) else pack(part or {}) for part in (header, body)),
        ]
        before = len(self.to_clients)
        self.feed(FromClient(client, frames, self.now))
        return self.to_clients[before:]

    def pass_time(self, seconds: float) -> list[ToClient]:
        before = len(self.to_clients)
        self.now += seconds
        for worker in self.workers.values():
            self.feed(FromWorker(worker.identity, b"progress", b""))
        self.feed(Tick())
        return self.to_clients[before:]

    def add_worker(self, identity: bytes, mode: str = "run", slots: int = 1, holds: Collection[Any] = ()) -> FakeWorker:
        worker = self.workers[identity] = FakeWorker(identity, mode, slots)
        self.register(worker, holds)
        return worker

    def register(self, worker: FakeWorker, holds: Collection[Any] = (), slots: int | None = None) -> None:
        ready = {
            "v": VERSION,
            "mode": worker.mode,
            "slots": worker.slots if slots is None else slots,
            "name": worker.identity.decode(),
            "pid": worker.pid,
            "holds": list(holds),
        }
        self.feed(FromWorker(worker.identity, b"ready", pack(ready)))

    def feed_control(self, worker: FakeWorker, kind: bytes, **body: Any) -> None:
        self.feed(FromWorker(worker.identity, kind, pack(body) if body else b""))

    def chunk(self, worker: FakeWorker, key: Key) -> None:
        worker.runs[key] += 1
        self.relay(worker, key, kinds.CHUNK, worker.runs[key])

    def finish(self, worker: FakeWorker, key: Key, kind: bytes = b"complete") -> None:
        """Relay the terminal message of a worker and report it to the core, as the server does."""
        if self.relay(worker, key, kind, worker.runs.pop(key) + 1):
            self.feed(Ended(worker.identity, *key, kind))

    def relay(self, worker: FakeWorker, key: Key, kind: bytes, seq: int) -> bool:
        """Relay a message of a worker if the relay of the core accepts it; returns whether it did."""
        if self.broker.relay.accept(worker.identity, key[0], kind, key[1]) is Verdict.DROP:
            return False
        self.to_clients.append(ToClient(key[0], kind, key[1], pack({"seq": seq})))
        return True

    def lose(self, worker: FakeWorker) -> None:
        del self.workers[worker.identity]
        self.feed(WorkerGone(worker.identity))

    def client_gone(self, client: bytes) -> None:
        self.feed(ClientGone(client))

    def client_back(self, client: bytes) -> None:
        self.feed(ClientBack(client))

    def client_blocked(self, client: bytes) -> None:
        self.feed(ClientBlocked(client))

    def stop(self) -> None:
        self.feed(Stop())

    def _at_worker(self, effect: ToWorker) -> None:
        if effect.client == CONTROL:
            body = unpack(effect.rest[0], "a control message") if effect.rest else {}
            self.controls.append((effect.worker, effect.kind.decode(), body))
            return
        worker = self.workers.get(effect.worker)
        if worker is None:
            return
        key = effect.client, effect.id
        match effect.kind:
            case b"end":
                worker.asked_to_end.append((effect.id, unpack(effect.rest[0], "end")["reason"]))
            case b"resume":
                worker.resumed.append((key, unpack(effect.rest[0], "resume").get("from", 1)))
            case b"gone" | b"back":
                worker.told.append((effect.kind.decode(), effect.id, b""))
            case b"tool_result" | b"steer" | b"credit":
                worker.told.append((effect.kind.decode(), effect.id, effect.rest[1]))
            case _:
                assert key not in worker.runs, "started twice on one worker"
                worker.runs[key] = 0
                self.dispatched.append((worker.identity, key, unpack(effect.rest[2], "the lease")))

    # --- results -------- ---------------------------------------------------------------------------

    def replies(self, client: bytes, id: bytes) -> list[tuple[str, dict[str, Any]]]:
        """Kind and body of each message that this request received."""
        return [
            (sent.kind.decode(), unpack(sent.body, "a reply"))
            for sent in self.to_clients
            if (sent.client, sent.id) == (client, id)
        ]

    def terminals(self, key: Key) -> list[tuple[str, dict[str, Any]]]:
        return [(kind, body) for kind, body in self.replies(*key) if kind.encode() in TERMINAL_KINDS]

    def holders(self, key: Key) -> list[FakeWorker]:
        return [worker for worker in self.workers.values() if key in worker.runs]

    def assert_idle(self) -> None:
        """Check that no run is queued, no slot is occupied and no client is remembered."""
        modes = self.pong()["modes"]
        for mode, pool in modes.items():
            slots = sum(worker.slots for worker in self.workers.values() if worker.mode == mode)
            assert pool["queued"] == 0
            assert pool["free"] == slots, (mode, modes)

    def pong(self) -> dict[str, Any]:
        [pong] = self.send(b"prober", "ping", b"ping")
        return unpack(pong.body, "pong")


def error_type(replies: list[tuple[str, dict[str, Any]]]) -> str:
    """The error type of a request that received one error and nothing else."""
    [(kind, body)] = replies
    assert kind == "error", replies
    return body["error_type"]
