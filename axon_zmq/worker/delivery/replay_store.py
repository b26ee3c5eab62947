"""What a worker's runs have sent, for who asks again: `resume`, what a broker is told of it, and handing it over."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from axon_zmq.errors import RequestError
from axon_zmq.protocol import kinds
from axon_zmq.protocol.frames import RunKey, error_body
from axon_zmq.protocol.plain import packer
from axon_zmq.worker.delivery import handover
from axon_zmq.worker.delivery.replay_buffer import ReplayBuffer, ReplayStore
from axon_zmq.worker.link import Link
from axon_zmq.worker.run import Run

log = logging.getLogger(__name__)


class Replays:
    """The outboxes of one worker, open and ended. On the link's loop only.

    Args:
        link: Where what is asked for goes.
        run_dir: Where leaving workers leave their ended runs.
        job_of: The job of a run that has not ended.
    """

    def __init__(self, link: Link, run_dir: Path, job_of: Callable[[RunKey], Run | None]) -> None:
        self._link = link
        self._run_dir = run_dir
        self._job_of = job_of
        self._shelf = ReplayStore()
        self._pack = packer()
        self._taking = 0
        self._settled = asyncio.Event()
        """No file is being read."""
        self._settled.set()
        self._asked_early: list[tuple[RunKey, Mapping[str, Any]]] = []
        """What was asked of runs that may be in a file which is being read."""
        self.handed = asyncio.Event()
        """The broker knows of the file that this worker has left."""

    def __repr__(self) -> str:
        return f"<Replays {self._shelf!r}>"

    def to_wire(self, keys: Iterable[RunKey] | None = None) -> dict[str, Any]:
        """What the broker is told of runs; see `ReplayStore.to_wire`."""
        return self._shelf.to_wire(keys)

    def add(self, key: RunKey, outbox: ReplayBuffer) -> None:
        """Keep a new run's outbox."""
        self._shelf.add(key, outbox)

    def end(self, key: RunKey) -> None:
        """A run has ended: it is kept for the resume window."""
        self._shelf.end(key, time.monotonic())

    def tidy(self) -> None:
        """Forget what is out of time or over the bound."""
        self._shelf.tidy(time.monotonic())

    def resume(self, key: RunKey, header: Mapping[str, Any]) -> None:
        """Send a run's messages again, from the `seq` that was asked for."""
        outbox = self._shelf.get(key)
        if outbox is not None:
            self._send(key, outbox, header)
        elif self._taking:
            self._asked_early.append((key, header))
        else:
            error = RequestError("unknown_request", "the run's messages are no longer kept", {"may_have_run": True})
            self._link.send(key[0], kinds.ERROR, key[1], error_body(error))

    def _send(self, key: RunKey, outbox: ReplayBuffer, header: Mapping[str, Any]) -> None:
        client, id = key
        job = self._job_of(key)
        replay = outbox.replay(header.get("from") or 1)
        body = {
            "from": replay.start,
            "gap": replay.gap,
            "open_calls": [] if job is None else job.remote.listed(),
            "last": outbox.seq,
        }
        self._link.send(client, kinds.RESUMED, id, self._pack(body))
        for message in replay.messages:
            self._link.send(client, message.kind, id, message.body)
        if job is not None and job.credit.is_given and "upto" in header:
            job.grant(header["upto"])

    # --- from one worker to another ----------------------------------------------------------------

    async def hand_over(self, most_seconds: float) -> None:
        """Leave the ended runs to another worker, and see that the broker knows.

        Args:
            most_seconds: How long to wait for what is being taken over, and again for the broker's word.
        """
        with suppress(TimeoutError):
            await asyncio.wait_for(self._settled.wait(), most_seconds)
        self.tidy()
        ended = list(self._shelf.ended(time.monotonic()))
        file = await asyncio.to_thread(handover.write, self._run_dir, ended)
        if file is None:
            return
        log.info("leaves %d ended runs to another worker", len(ended))
        self._link.control(kinds.HANDOVER, {"file": file, "forgot_at": self._shelf.forgot_at})
        try:
            await asyncio.wait_for(self.handed.wait(), most_seconds)
        except TimeoutError:
            log.warning("no broker took note of %s: the next one will find it", file)

    def take(self, file: str) -> Coroutine[Any, Any, None]:
        """Take over what another worker has left; what is asked of it from now on waits until it is there."""
        self._taking += 1
        self._settled.clear()
        return self._take(file)

    async def _take(self, file: str) -> None:
        try:
            found = await asyncio.to_thread(handover.take, self._run_dir, file, self._pack, time.monotonic())
            if not found.whole:
                self._shelf.forgot_at = time.monotonic()
            taken = self._shelf.merge(found.runs)
            self.tidy()
            self._link.control(kinds.HOLDS, self.to_wire(taken))
            log.info("took over %d ended runs", len(taken))
        finally:
            self._taking -= 1
            if not self._taking:
                self._settled.set()
            asked, self._asked_early = self._asked_early, []
            for key, header in asked:
                self.resume(key, header)
