"""A scene: one attack on one daemon, what it must not cause, and the row of the table."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import zmq

from attack.target import MODES, Honest, Memory, Target, p99, running
from axon_zmq.protocol.msgpack import pack

FACTOR, FLOOR_MS = 5.0, 250.0
"""Another client's p99 during an attack may be `FACTOR` times its idle p99, or `FLOOR_MS` if that is more."""
SLOW_MACHINE = 20.0
"""Factor by which the limit is relaxed in the short form: it takes a second, and the machine may do other work."""
IDLE_S, QUICK_IDLE_S = 4.0, 1.0
"""Seconds in which the honest clients' idle p99 is measured."""
HEAD: Final = (
    *("attack", "inputs", "crashes", "to a wrong client", "others' p99 idle", "during", "broker", "workers", "verdict"),
)


@dataclass
class Row:
    """The result of a scene."""

    name: str
    inputs: str = ""
    crashes: list[str] = field(default_factory=list[str])
    wrong: int = 0
    """Messages that a client received and that belong to another one."""
    idle_ms: float = math.nan
    attack_ms: float = math.nan
    broker_mib: float = math.nan
    """Growth of the broker up to its peak."""
    workers_mib: float = math.nan
    notes: list[str] = field(default_factory=list[str])
    broken: list[str] = field(default_factory=list[str])
    """What the attack has achieved and must not."""

    def expect(self, true: bool, otherwise: str) -> None:
        """Record what the attack has achieved, if a condition is false."""
        if not true:
            self.broken.append(otherwise)

    def cells(self) -> tuple[str, ...]:
        """Return the cells of the table."""

        def number(value: float, unit: str) -> str:
            return "-" if math.isnan(value) else f"{value:,.0f} {unit}"

        verdict = "; ".join(["held" if not self.broken else f"BROKEN: {'; '.join(self.broken)}", *self.notes])
        return (
            *(self.name, self.inputs, f"{len(self.crashes)}", f"{self.wrong}"),
            *(number(self.idle_ms, "ms"), number(self.attack_ms, "ms")),
            *(number(self.broker_mib, "MiB"), number(self.workers_mib, "MiB"), verdict),
        )


class Stage:
    """A running daemon with honest clients, for one scene."""

    def __init__(self, row: Row, checkout: Path, quick: bool) -> None:
        self.row, self.checkout, self.quick = row, checkout, quick

    def scaled(self, quick: int, full: int) -> int:
        """Return a number for the short or the full form."""
        return quick if self.quick else full

    @contextmanager
    def daemon(
        self, modes: Sequence[str] = MODES, *, is_fair: bool = True, limit: int | None = None, **env: str
    ) -> Generator[Target]:
        """Start a daemon and honest clients, measure before and during the block, and fill the row.

        Args:
            modes: Modes of the workers, each with an honest client.
            is_fair: Whether the p99 of the honest clients is limited during the block.
            limit: Limit on open descriptors of the broker.
            env: Further environment variables of the daemon.
        """
        with running(self.checkout, modes, limit=limit, **env) as target:
            honest = Honest(target.endpoint, modes)
            try:
                honest.wait_for(5, 30.0)
                began = time.monotonic()
                time.sleep(QUICK_IDLE_S if self.quick else IDLE_S)
                attacked = time.monotonic()
                memory = Memory(target)
                try:
                    yield target
                    ended = time.monotonic()
                finally:
                    memory.stop()
                time.sleep(0.3)
                self._measure(target, honest, (began, attacked, ended), is_fair)
                self.row.broker_mib, self.row.workers_mib = memory.peak(broker=True), memory.peak(broker=False)
            finally:
                honest.stop()

    def _measure(self, target: Target, honest: Honest, times: tuple[float, float, float], is_fair: bool) -> None:
        row = self.row
        began, attacked, ended = times
        during = honest.between(attacked, ended)
        row.idle_ms = p99([line for line in honest.between(began, attacked) if line["state"] == "ok"])
        row.attack_ms = p99(during)
        row.wrong += sum(line["state"] == "wrong" for line in during)
        failed = [line["state"] for line in during if line["state"] not in ("ok", "open", "wrong")]
        row.crashes += [f"{name} killed at 1.5 GiB" if name in target.killed else name for name in target.crashed()]
        row.expect(not row.crashes, f"crashed: {', '.join(row.crashes)}")
        row.expect(not row.wrong, f"{row.wrong} messages of another client were received")
        row.expect(not failed, f"{len(failed)} of {len(during)} requests of others failed ({', '.join(set(failed))})")
        limit = max(FLOOR_MS, FACTOR * (0.0 if math.isnan(row.idle_ms) else row.idle_ms))
        limit *= SLOW_MACHINE if self.quick else 1.0
        row.expect(not is_fair or row.attack_ms <= limit, f"others' p99 over {limit:.0f} ms")


@dataclass(frozen=True)
class Scene:
    """An attack.

    Args:
        name: Name for `--only`.
        about: What the attacker does.
        play: Carries out the attack.
        is_quick: Whether the scene is part of the short form in CI.
    """

    name: str
    about: str
    play: Callable[[Stage], None]
    is_quick: bool = False


class Attacker:
    """A DEALER of an attacker.

    Args:
        endpoint: Endpoint of the daemon.
        routing_id: Default: 16 random bytes.
    """

    def __init__(self, endpoint: str, routing_id: bytes | None = None) -> None:
        if not endpoint.startswith("tcp://127.0.0.1:"):
            raise ValueError(f"refusing to attack {endpoint!r}: expected tcp://127.0.0.1:PORT")
        self.socket: Any = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.IDENTITY, routing_id or secrets.token_hex(16).encode())
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.SNDTIMEO, 20_000)
        self.socket.connect(endpoint)
        self.foreign = 0
        """Messages with the id of an honest client's request."""

    def send(self, kind: bytes, id: bytes, header: Any = None, body: Any = None) -> None:
        """Send a message; maps are packed, bytes are sent as they are."""
        parts = [part if isinstance(part, bytes) else pack(part) if part else b"" for part in (header, body)]
        self.socket.send_multipart([kind, id, *parts])

    def receive(self, seconds: float) -> tuple[bytes, bytes, bytes] | None:
        """Return the next message that is not `alive`; None if there is none in time."""
        ends_at = time.monotonic() + seconds
        while (left := ends_at - time.monotonic()) > 0 and self.socket.poll(int(left * 1000) + 1):
            frames = self.socket.recv_multipart()
            if len(frames) >= 3 and frames[-3] != b"alive":
                self.foreign += frames[-2].startswith(b"honest-")
                return frames[-3], frames[-2], frames[-1]
        return None

    def discard(self, seconds: float) -> None:
        """Receive until nothing arrives for some seconds, in any form of message."""
        while self.socket.poll(int(seconds * 1000)):
            self.foreign += any(b"honest-" in frame for frame in self.socket.recv_multipart())

    def drain(self, wanted: int, seconds: float) -> int:
        """Receive until `wanted` terminal messages or refusals have arrived; returns how many have."""
        ends_at, got = time.monotonic() + seconds, 0
        while got < wanted and (left := ends_at - time.monotonic()) > 0:
            message = self.receive(min(left, 5.0))
            if message is None:
                continue
            got += message[0] in (b"complete", b"error", b"refused", b"catalog", b"pong")
        return got

    def close(self) -> None:
        """Close the socket."""
        self.socket.close(0)
