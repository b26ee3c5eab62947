"""The relay decision: whether a worker's message is passed on to its client, made without unpacking the message.

The broker sends a worker's message `[client, kind, id, body]` to the client as `[kind, id, body]`, unless the worker no
longer owns the run. `Relay.accept` decides this from the routing ids, the request id and the kind. It uses three sets:

- **Lost workers** were declared dead. Their runs have ended as `worker_lost` or were started again on other workers. A
  message that still arrives from a lost worker is dropped: it would be a second end or a second stream.
- **Disowned runs** continued on another worker, or ended, while their worker was not registered with this broker. The
  worker was asked to end the run. All its messages about the run are dropped, up to and including the terminal one.
- **Relayed runs** are runs of which at least one message was relayed. They are never started again, because the client
  would receive the beginning twice.

For each client there are a few flags: whether its replies start with the empty delimiter frame of a REQ socket, whether
they consist of a single frame, and whether the client is gone. Nearly all clients have no flag, so for each message
`flags_of` is one unsuccessful dictionary lookup. `framed` is called for clients with flags only.

`docs/architecture.md` lists the calls that the broker executes for a relayed chunk; `test_relay_cost.py` bounds
the number of instructions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from collections.abc import Set as AbstractSet
from enum import Enum
from typing import Final

from axon_zmq.protocol import kinds
from axon_zmq.protocol.frames import RunKey, single_frame
from axon_zmq.protocol.kinds import TERMINAL_KINDS

DELIMITER: Final = 1
"""Flag: the client has a REQ socket, so its replies start with an empty frame."""
SINGLE: Final = 2
"""Flag: the client's replies consist of a single frame."""
GONE: Final = 4
"""Flag: the client has unfinished runs, and the last send did not reach it."""
LOST_WORKERS_KEPT: Final = 1000
"""Number of lost workers at which all of them are forgotten. Their late messages arrive within milliseconds of the
loss, so the old entries are useless."""
_ABOUT_ENDED_RUNS: Final = frozenset((kinds.RESUMED, kinds.REFUSED))
"""Kinds that may follow a run's terminal message. They must not mark the run as relayed again, because a terminal
message that would remove the mark may never follow."""


class Verdict(Enum):
    """The possible decisions about a message of a worker."""

    DROP = "drop"
    PASS = "pass"  # noqa: S105
    END = "end"
    """The message is relayed, and it is the terminal message of its run."""


class Relay:
    """Decides which messages of workers are relayed, and keeps the flags of clients."""

    def __init__(self) -> None:
        self._relayed: set[RunKey] = set()
        self._lost: set[bytes] = set()
        self._disowned: set[tuple[bytes, bytes, bytes]] = set()
        """Routing id of the worker, routing id of the client and request id of each disowned run."""
        self._flags: dict[bytes, int] = {}
        self.flags_of: Callable[[bytes], int | None] = self._flags.get
        """Returns a client's flags; None or 0 for a connected client that receives three plain frames.

        This is the dictionary's own `get`, because it is called for each message sent to a client. A method that wraps
        it would cost several times as much."""

    def __repr__(self) -> str:
        return (
            f"<Relay {len(self._relayed)} relayed runs, {len(self._lost)} lost workers, "
            f"{len(self._disowned)} disowned runs, {len(self._flags)} clients with flags>"
        )

    # --- messages of workers ---------------------------------------------------------------------------

    def accept(self, worker: bytes, client: bytes, kind: bytes, id: bytes) -> Verdict:
        """Decide about one message, and record that its run was relayed or has ended.

        Args:
            worker: Routing id of the worker.
            client: Routing id of the client.
            kind: The message's kind.
            id: The request id.
        """
        # Relay path: called for each message. The emptiness test saves a call, because disowned runs are rare.
        if worker in self._lost or (self._disowned and self._is_disowned(worker, client, kind, id)):
            return _DROP
        if kind in TERMINAL_KINDS:
            self._relayed.discard((client, id))
            return _END
        if kind not in _ABOUT_ENDED_RUNS:
            self._relayed.add((client, id))
        return _PASS

    def was_relayed(self, key: RunKey) -> bool:
        """Whether any message of an unfinished run was relayed to its client."""
        return key in self._relayed

    def forget(self, key: RunKey) -> None:
        """Forget that a run was relayed, because the broker itself has ended it."""
        self._relayed.discard(key)

    def forget_unknown(self, known: AbstractSet[RunKey]) -> None:
        """Forget the marks of runs that the broker does not know.

        Messages of workers that have not registered with a restarted broker are relayed, too. If such a worker dies
        before it registers, nothing else removes the marks of its runs. If it registers, the marks are not needed: runs
        that were adopted are never started again.

        Args:
            known: The run keys that the broker knows.
        """
        self._relayed &= known

    # --- workers ---------------------------------------------------------------------------------------

    def worker_registered(self, worker: bytes) -> None:
        """Relay a worker's messages, because it has registered."""
        self._lost.discard(worker)

    def worker_lost(self, worker: bytes) -> None:
        """Drop all further messages of a worker: its link is down, and all messages that it had sent were read."""
        if len(self._lost) >= LOST_WORKERS_KEPT:
            self._lost.clear()
        self._lost.add(worker)
        # All messages of a lost worker are dropped, so its disowned runs need no entries any more.
        if self._disowned:
            self._disowned = {entry for entry in self._disowned if entry[0] != worker}

    @property
    def relayed_runs(self) -> frozenset[RunKey]:
        """Run keys of the unfinished runs of which any message was relayed."""
        return frozenset(self._relayed)

    @property
    def disowned_runs(self) -> frozenset[tuple[bytes, bytes, bytes]]:
        """Routing id of the worker, routing id of the client and request id of each disowned run."""
        return frozenset(self._disowned)

    def disown(self, worker: bytes, key: RunKey) -> None:
        """Drop a worker's messages about a run that continued elsewhere, up to and including the terminal one."""
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
        """The clients with flags, in the order in which each got its first flag."""
        return self._flags.keys()


_DROP, _PASS, _END = Verdict.DROP, Verdict.PASS, Verdict.END
"""`Relay.accept` returns these: a global name costs less than the attribute of an enum."""


def framed(flags: int, kind: bytes, id: bytes, body: bytes) -> list[bytes]:
    """The frames of a reply to a client with flags, without its routing id."""
    frames = [single_frame(kind, id, body)] if flags & SINGLE else [kind, id, body]
    return [b"", *frames] if flags & DELIMITER else frames
