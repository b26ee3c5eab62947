"""Handover files: they pass the ended runs of a leaving worker to its successor.

A leaving worker writes the messages of its ended runs into a file in the run directory and reports the file's name to
the broker. The broker gives the file to another worker or, if there is none, waits until one registers. Clients'
`resume` messages for these runs wait until the successor has reported what the file contained.
"""

from __future__ import annotations

from typing import Final

from axon_zmq.broker.core.outgoing import Outgoing
from axon_zmq.broker.core.pools import Worker
from axon_zmq.broker.core.runs import Runs
from axon_zmq.broker.core.states import WorkerState
from axon_zmq.broker.core.workers import Workers
from axon_zmq.protocol.backend import Handed, Take

GIVEN_FILES_KEPT: Final = 1_000
"""Maximum number of files for which the broker remembers the worker that it gave them to. After the resume window, the
information is useless."""


class Handovers:
    """Handover files that no worker has read yet, and the workers that are reading files.

    Args:
        outgoing: Collects the effects.
        workers: All workers; a successor is chosen from them.
        runs: All runs; those in a file are assigned to the successor.
        files: Names of the files that existed when this broker started.
    """

    def __init__(self, *, outgoing: Outgoing, workers: Workers, runs: Runs, files: tuple[str, ...]) -> None:
        self._out = outgoing
        self._workers = workers
        self._runs = runs
        self._files = list(files)
        """Files that were not given to a worker yet."""
        self._given: dict[str, bytes] = {}
        """The worker to which each of the newest files was given, in case the file's writer reports it later."""
        self._reading: dict[bytes, int] = {}
        """Number of files that each worker is reading: they were given to it, and it has not sent `holds` for them."""

    def __repr__(self) -> str:
        return f"<Handovers {len(self._files)} files wait, {len(self._reading)} workers read>"

    @property
    def are_read(self) -> bool:
        """Whether no worker is reading a file; files that were not given to a worker do not count."""
        return not self._reading

    @property
    def are_complete(self) -> bool:
        """Whether all files have been read."""
        return not self._reading and not self._files

    def written(self, leaving: Worker, file: str) -> None:
        """Choose a successor for a leaving worker, and give it the file that the leaving worker has written."""
        if file in self._given:
            # The file was found at this broker's start and given to a worker before its writer could report it.
            self._runs.hand_over(leaving.routing_id, self._given[file])
        else:
            successor = self._workers.successor_of(leaving)
            self._runs.hand_over(leaving.routing_id, None if successor is None else successor.routing_id)
            if file not in self._files:  # it is in the list if this broker found it at its start
                self._files.append(file)
            if successor is not None:
                self.give_to(successor)
        self._out.control(leaving.routing_id, Handed())

    def give_to(self, successor: Worker) -> None:
        """Give all waiting files to a worker, unless it is leaving."""
        if successor.state is not WorkerState.READY or not self._files:
            return
        for file in self._files:
            self._out.control(successor.routing_id, Take(file))
            self._given[file] = successor.routing_id
            if len(self._given) > GIVEN_FILES_KEPT:
                del self._given[next(iter(self._given))]
        self._reading[successor.routing_id] = self._reading.get(successor.routing_id, 0) + len(self._files)
        self._files.clear()
        self._runs.hand_over(None, successor.routing_id)

    def read(self, successor: Worker) -> None:
        """Record that a worker has read one file, and that the runs in it were adopted."""
        left = self._reading.pop(successor.routing_id, 1) - 1
        if left > 0:
            self._reading[successor.routing_id] = left

    def worker_lost(self, worker: Worker) -> None:
        """Forget the files that a lost worker was reading."""
        self._reading.pop(worker.routing_id, None)
