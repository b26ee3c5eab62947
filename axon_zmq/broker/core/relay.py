"""The relay decision: what the broker does with a worker's message for a client, without opening it.

A worker's message `[client, kind, id, body]` goes to its client as `[kind, id, body]`, unless the run is no longer the
worker's to speak of. `Relay.accept` decides that from the kind alone:

- A **lost worker** was declared dead: its runs have ended as `worker_lost` or were started again, so what still arrives
  from it would be a second end or a second stream.
- A **disowned run** went on elsewhere, or ended, while its worker was unknown to this broker. The worker was asked to
  end it; until its terminal message arrives, everything it says about that run is dropped.
- A **relayed run** is one of which at least one message was relayed. It is never started again: its client would see
  the beginning twice.

Per client there are a few flags: whether its replies carry the empty delimiter frame of a REQ socket, whether they are
one frame, and whether the last send did not reach it. Nearly all clients have none, so that `flags_of` is one failed
dictionary lookup for each message; `framed` is called for the others only.

`docs/architecture.md` says where the instructions of a relayed chunk go; `test_relay_cost.py` bounds them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from enum import Enum
from typing import Final

from axon_zmq.protocol import kinds
from axon_zmq.protocol.frames import RunKey, single_frame
from axon_zmq.protocol.kinds import TERMINAL_KINDS

DELIMITER: Final = 1
"""Flag: the client is a REQ socket, its replies start with an empty frame."""
SINGLE: Final = 2
"""Flag: the client's replies are one frame."""
GONE: Final = 4
"""Flag: the client has unfinished requests, and the last send did not reach it."""
LOST_WORKERS_KEPT: Final = 1000
"""Lost workers whose late messages are recognized; they can only arrive within milliseconds of the loss."""
_ABOUT_ENDED_RUNS: Final = frozenset((kinds.RESUMED, kinds.REFUSED))
"""Kinds that may follow a run's terminal message: they do not make it a relayed run again."""


class Verdict(Enum):
    """What happens to one message of a worker."""

    DROP = "drop"
    PASS = "pass"  # noqa: S105
    END = "end"
    """It is relayed, and it is the terminal message of its run."""


class Relay:
    """Which messages of workers are relayed, and how each client wants its replies."""

    def __init__(self) -> None:
        self._relayed: set[RunKey] = set()
        self._lost: set[bytes] = set()
        self._disowned: set[tuple[bytes, bytes, bytes]] = set()
        """Routing id of the worker, and run key."""
        self._flags: dict[bytes, int] = {}
        self.flags_of: Callable[[bytes], int | None] = self._flags.get
        """The flags of a client; None or 0 for a client that is there and takes plain three frames.

        It is the dictionary's own method, because it is called for each message that is sent: a method around it would
        cost several times as much."""

    def __repr__(self) -> str:
        return (
            f"<Relay {len(self._relayed)} relayed runs, {len(self._lost)} lost workers, "
            f"{len(self._disowned)} disowned runs, {len(self._flags)} clients with flags>"
        )

    # --- messages of workers ---------------------------------------------------------------------------

    def accept(self, worker: bytes, client: bytes, kind: bytes, id: bytes) -> Verdict:
        """Decide about one message, and note that its run has been relayed or has ended.

        Args:
            worker: Routing id of the worker.
            client: Routing id of the client.
            kind: The message's kind.
            id: The request id.
        """
        if worker in self._lost or (self._disowned and self._is_disowned(worker, client, kind, id)):
            return _DROP
        if kind in TERMINAL_KINDS:
            self._relayed.discard((client, id))
            return _END
        if kind not in _ABOUT_ENDED_RUNS:
            self._relayed.add((client, id))
        return _PASS

    def was_relayed(self, key: RunKey) -> bool:
        """Whether something of an unfinished run went to its client."""
        return key in self._relayed

    def forget(self, key: RunKey) -> None:
        """The broker itself has ended a run."""
        self._relayed.discard(key)

    # --- workers ---------------------------------------------------------------------------------------

    def worker_registered(self, worker: bytes) -> None:
        """A worker says that it is there: its messages are relayed."""
        self._lost.discard(worker)

    def worker_lost(self, worker: bytes) -> None:
        """A worker's link is down, and all that it had sent was read: what still arrives is dropped."""
        if len(self._lost) >= LOST_WORKERS_KEPT:
            self._lost.clear()
        self._lost.add(worker)
        if self._disowned:
            self._disowned = {entry for entry in self._disowned if entry[0] != worker}

    @property
    def relayed_runs(self) -> frozenset[RunKey]:
        """Unfinished runs of which something was relayed."""
        return frozenset(self._relayed)

    @property
    def disowned_runs(self) -> frozenset[tuple[bytes, bytes, bytes]]:
        """Routing id of the worker, and run key, of each disowned run."""
        return frozenset(self._disowned)

    def disown(self, worker: bytes, key: RunKey) -> None:
        """A run went on elsewhere: drop what this worker says about it, up to its terminal message."""
        self._disowned.add((worker, *key))

    def _is_disowned(self, worker: bytes, client: bytes, kind: bytes, id: bytes) -> bool:
        entry = worker, client, id
        if entry not in self._disowned:
            return False
        if kind in TERMINAL_KINDS:
            self._disowned.discard(entry)
        return True

    # --- clients ---------------------------------------------------------------------------------------

    def set_flag(self, client: bytes, flag: int) -> None:
        """Set one of a client's flags."""
        self._flags[client] = self._flags.get(client, 0) | flag

    def clear_flag(self, client: bytes, flag: int) -> None:
        """Clear one of a client's flags."""
        flags = self._flags.get(client, 0) & ~flag
        if flags:
            self._flags[client] = flags
        else:
            self._flags.pop(client, None)

    def forget_client(self, client: bytes) -> None:
        """Forget all flags of a client."""
        self._flags.pop(client, None)

    def has(self, client: bytes, flag: int) -> bool:
        """Whether a client has a flag."""
        return bool(self._flags.get(client, 0) & flag)

    def flagged(self) -> Collection[bytes]:
        """The clients with flags, in the order in which they got the first."""
        return self._flags.keys()


_DROP, _PASS, _END = Verdict.DROP, Verdict.PASS, Verdict.END


def framed(flags: int, kind: bytes, id: bytes, body: bytes) -> list[bytes]:
    """The frames of a reply to a client with flags, without its routing id."""
    frames = [single_frame(kind, id, body)] if flags & SINGLE else [kind, id, body]
    return [b"", *frames] if flags & DELIMITER else frames
