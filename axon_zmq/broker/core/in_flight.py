"""Bytes in flight: the request bodies that workers have, of runs that have not ended. No I/O.

A worker needs several times the size of a body until its run has ended. Without a bound, a client that sends many large
bodies would fill the memory of every worker that has free slots. A run that would exceed a bound waits, and runs with
small bodies do not wait for it.

Messages to a run, such as tool results, never wait, so they may take a client beyond its bound. The excess does not
count against the bound of a worker: otherwise one client could occupy the whole bound with tool results, and the
large bodies of all others would wait until its runs end. `AXON_WORKER_MEMORY` limits the memory of such messages.
"""

from __future__ import annotations

from typing import Final, TypeVar

from axon_zmq.broker.core.pools import Run, Worker
from axon_zmq.protocol import limits

SMALL_BODY_BYTES: Final = 64 * limits.KIB
"""Size in bytes up to which a body is not counted: the number of slots already bounds the sum of such bodies."""
K = TypeVar("K")


class InFlight:
    """Counts the bytes of each worker and of each client.

    Args:
        bounds: The limits that the operator may set.
    """

    def __init__(self, bounds: limits.BrokerLimits) -> None:
        self._per_worker = bounds.max_in_flight_bytes
        self._per_client = bounds.max_in_flight_bytes_per_client
        self._per_run = max(limits.MIN_RUN_BYTES, 4 * bounds.max_body)
        self._workers: dict[bytes, int] = {}
        """Bytes that count against the bound of each worker."""
        self._clients: dict[bytes, int] = {}
        self._at_workers: dict[tuple[bytes, bytes], int] = {}
        """Bytes by worker and client."""

    def __len__(self) -> int:
        return len(self._at_workers)

    def __repr__(self) -> str:
        return f"<InFlight {sum(self._clients.values())} bytes of {len(self._clients)} clients>"

    def of_worker(self, routing_id: bytes) -> int:
        """Bytes that a worker has, of each client at most the client's bound."""
        return self._workers.get(routing_id, 0)

    def of_client(self, client: bytes) -> int:
        """Bytes that all workers have of a client's runs."""
        return self._clients.get(client, 0)

    def client_has_room(self, run: Run) -> bool:
        """Whether the client's bound allows that the run is dispatched."""
        return run.size <= SMALL_BODY_BYTES or run.size <= _room(self.of_client(run.client), self._per_client)

    def worker_has_room(self, run: Run, worker: Worker) -> bool:
        """Whether the worker's bound allows that it gets the run."""
        return run.size <= SMALL_BODY_BYTES or run.size <= self.room(worker)

    def room(self, worker: Worker) -> float:
        """How many bytes a large run may have that the worker gets; infinity if the worker has none."""
        return _room(self.of_worker(worker.routing_id), self._per_worker)

    def add(self, run: Run, size: int) -> None:
        """Count bytes that the run's worker gets: the body of the run, or of a message to it."""
        if size > SMALL_BODY_BYTES:
            run.in_flight += size
            self._count(run, size)

    def remove(self, run: Run) -> bool:
        """Stop counting the bytes of a run that has ended, or is taken back from its worker.

        Returns:
            Whether it had any, so that another run may now have room.
        """
        if not run.in_flight:
            return False
        self._count(run, -run.in_flight)
        run.in_flight = 0
        return True

    def _count(self, run: Run, change: int) -> None:
        assert run.worker is not None
        place, most = (run.worker, run.client), self._per_client
        before = self._at_workers.get(place, 0)
        _change(self._at_workers, place, change)
        _change(self._clients, run.client, change)
        _change(self._workers, run.worker, min(before + change, most) - min(before, most))

    def refusal(self, run: Run, size: int) -> str | None:
        """Why a message of the client to its run is refused; None if it may be passed on.

        Args:
            run: A run that a worker executes.
            size: Bytes of the message's body.
        """
        if size <= SMALL_BODY_BYTES or run.in_flight + size <= self._per_run:
            return None
        return (
            f"the bodies of the run and of the messages to it would have {run.in_flight + size} bytes, the limit is "
            f"{self._per_run} (4 * max_body); send smaller results, or a reference to them"
        )


def _room(used: int, most: int) -> float:
    # A body that exceeds the bound on its own must fit if nothing else is there, or its run would never start.
    return most - used if used else float("inf")


def _change(counts: dict[K, int], key: K, change: int) -> None:
    if count := counts.get(key, 0) + change:
        counts[key] = count
    else:
        counts.pop(key, None)
