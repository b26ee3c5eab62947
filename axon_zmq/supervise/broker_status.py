"""What a running broker tells an operator's tools, over its socket in the run directory."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NotRequired, TypedDict, cast

import zmq

from axon_zmq.errors import UnavailableError
from axon_zmq.process.run_dir import backend_endpoint
from axon_zmq.protocol import kinds
from axon_zmq.protocol.kinds import CONTROL
from axon_zmq.protocol.msgpack import unpack

STATUS_TIMEOUT_S: Final = 2.0
"""Seconds to wait for the answer of the broker; a running broker answers within milliseconds."""


class PoolStatus(TypedDict):
    """One mode: its workers and the runs that wait for them."""

    workers: int
    free: int
    queued: int
    degraded: bool
    reasons: list[str]


class WorkerStatus(TypedDict):
    """One registered worker."""

    name: str
    identity: str
    mode: str
    pid: int
    state: str
    broken: NotRequired[list[str] | None]
    """Agents that it could not load. An old broker leaves it out; None if the worker is too old to say."""
    slots: int
    busy: int
    silent_ms: int
    crashes: int
    """Within the last minute."""


class BrokerStatus(TypedDict):
    """The answer to `status`, as docs/backend.md defines it."""

    boot: str
    settling: bool
    draining: bool
    modes: dict[str, PoolStatus]
    workers: list[WorkerStatus]
    quarantined: int


def status(run_dir: Path, seconds: float = STATUS_TIMEOUT_S) -> BrokerStatus:
    """The broker's own view: `modes` and `workers`, as `docs/backend.md` has them.

    Args:
        run_dir: The daemon's.
        seconds: How long to wait for it.

    Raises:
        UnavailableError: `unreachable`: no broker answers.
        ConfigurationError: The run directory's path is too long for a socket.
    """
    context = zmq.Context()
    try:
        dealer = context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(backend_endpoint(run_dir))
        dealer.send_multipart([CONTROL, kinds.STATUS, b""])
        if not dealer.poll(int(seconds * 1000)):
            where = str(run_dir)
            raise UnavailableError(
                "unreachable", f"no broker answers in {where!r} within {seconds:g} s", retryable=True
            )
        return cast("BrokerStatus", unpack(dealer.recv_multipart()[-1], "status"))
    finally:
        context.destroy(linger=0)
