"""Ended runs on their way from a leaving worker to its successor, as files in the run directory.

A leaving worker writes its ended runs into a file and names it. The broker gives the file to a worker that stays, or
keeps its name until one registers. Until the successor reports what was in it, requests to resume those runs wait.
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
"""Files of which the broker remembers to which worker it gave them; useless after the resume window."""


class Handovers:
    """The files that no worker has read yet, and the workers that are reading some.

    Args:
        outgoing: Where effects go.
        workers: Among whom successors are found.
        runs: Whose messages are in the files.
        files: Files that were left before this broker started.
    """

    def __init__(self, *, outgoing: Outgoing, workers: Workers, runs: Runs, files: tuple[str, ...]) -> None:
        self._out = outgoing
        self._workers = workers
        self._runs = runs
        self._files = list(files)
        """Files that no worker was told to take."""
        self._given: dict[str, bytes] = {}
        """The worker that was told to take each file, in case its writer names it later: the newest files."""
        self._reading: dict[bytes, int] = {}
        """How many files each worker was told to take and has not reported."""

    def __repr__(self) -> str:
        return f"<Handovers {len(self._files)} files wait, {len(self._reading)} workers read>"

    @property
    def are_read(self) -> bool:
        """Whether no worker is reading a file."""
        return not self._reading

    @property
    def are_complete(self) -> bool:
        """Whether every file was read."""
        return not self._reading and not self._files

    def written(self, leaving: Worker, file: str) -> None:
        """A leaving worker has written its ended runs into a file."""
        if file in self._given:  # it was found at the start, and given away before its writer could name it
            self._runs.hand_over(leaving.routing_id, self._given[file])
        else:
            successor = self._workers.successor_of(leaving)
            self._runs.hand_over(leaving.routing_id, None if successor is None else successor.routing_id)
            if file not in self._files:
                self._files.append(file)
            if successor is not None:
                self.give_to(successor)
        self._out.control(leaving.routing_id, Handed())

    def give_to(self, successor: Worker) -> None:
        """Give a worker all files that wait, if it stays."""
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
        """A worker has read one file, and its runs were adopted."""
        left = self._reading.pop(successor.routing_id, 1) - 1
        if left > 0:
            self._reading[successor.routing_id] = left

    def worker_lost(self, worker: Worker) -> None:
        """A worker is lost, and what it was reading with it."""
        self._reading.pop(worker.routing_id, None)
