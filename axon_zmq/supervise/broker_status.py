"""Status of a running broker, requested over its socket in the run directory."""

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
"""Seconds to wait for the broker's answer. A running broker answers within milliseconds."""


class PoolStatus(TypedDict):
    """Status of one mode: its workers and the runs that wait for them."""

    workers: int
    free: int
    queued: int
    degraded: bool
    reasons: list[str]


class WorkerStatus(TypedDict):
    """Status of one registered worker."""

    name: str
    identity: str
    mode: str
    pid: int
    state: str
    broken: NotRequired[list[str] | None]
    """Agents that the worker could not load; None if the worker is too old to report them; the key is missing if the
    broker is too old."""
    slots: int
    busy: int
    waiting: NotRequired[int]
    """Runs that only wait for tools of their clients; the key is missing if the broker is too old."""
    silent_ms: int
    crashes: int
    """Number of crashes within the last minute."""


class BrokerStatus(TypedDict):
    """Body of the answer to `status`, as `docs/backend.md` defines it."""

    boot: str
    settling: bool
    draining: bool
    modes: dict[str, PoolStatus]
    workers: list[WorkerStatus]
    quarantined: int
    takeovers: NotRequired[int]
    """Number of routing ids that another connection took over; missing if the broker is too old."""


def status(run_dir: Path, seconds: float = STATUS_TIMEOUT_S) -> BrokerStatus:
    """Request the status of the broker.

    Args:
        run_dir: Run directory of the daemon.
        seconds: How long to wait for the answer.

    Raises:
        UnavailableError: `unreachable`: no broker answers in time.
        ConfigurationError: The path of the run directory is too long for a socket.
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
