"""What a client must get right, one script for each: what the broker does, and what the application must have seen."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from axon_zmq.conformance.peer import CLIENT_TIMEOUT_S, BrokenRuleError, Peer
from axon_zmq.protocol import kinds
from axon_zmq.protocol.msgpack import pack

COMPLETE: Final = frozenset(("complete",))
ERROR: Final = frozenset(("error",))


@dataclass(frozen=True)
class Case:
    """One script.

    Args:
        name: The prompt of the run that asks for it.
        about: What it is about.
        script: What the broker does.
        words: The numbers of the chunks that the application must have seen, in order; None: any.
        ends: How the run may have ended for it.
        calls: The texts of the tool calls that must have been run, in order.
    """

    name: str
    about: str
    script: Callable[[Peer], None]
    words: Sequence[int] | None
    ends: frozenset[str] = COMPLETE
    calls: tuple[str, ...] = ()


def _plain(peer: Peer) -> None:
    peer.send("accepted", duplicate=False)
    peer.chunks(1, 3)
    peer.complete(4)


def _repeated(peer: Peer) -> None:
    peer.chunks(1, 2)
    peer.chunks(2, 2)
    peer.chunks(1, 3)
    peer.expect_nothing("rule 1, a lower seq is ignored", 0.5)
    peer.complete(4)


def _gap(peer: Peer) -> None:
    peer.chunks(1, 1)
    peer.chunks(3, 5)
    peer.expect_resume(2, "rule 1, a higher seq is asked for")
    peer.expect_nothing("rule 1, a gap is asked for once", 1.0)
    peer.resumed(2, 5)
    peer.chunks(2, 5)
    peer.complete(6)


def _gap_before_the_end(peer: Peer) -> None:
    peer.chunks(1, 1)
    peer.complete(4)
    peer.expect_resume(2, "rule 1, an end behind a gap is no end yet")
    peer.resumed(2, 4)
    peer.chunks(2, 3)
    peer.complete(4)


def _no_longer_kept(peer: Peer) -> None:
    peer.chunks(1, 1)
    peer.chunks(5, 5)
    peer.expect_resume(2, "rule 1")
    peer.resumed(4, 5, gap=True)
    peer.chunks(4, 5)
    peer.complete(6)


def _stale(peer: Peer) -> None:
    peer.chunks(1, 1)
    body = {"seq": 2, "type": "text", "data": "2 ", "step": 1, "part": 0}
    peer.send_frames(kinds.CHUNK, b"an earlier id", kinds.CHUNK, peer.id, pack(body))
    peer.chunks(3, 3)
    peer.complete(4)


def _unknown(peer: Peer) -> None:
    peer.send("telegram", seq=1, stop="stop")
    peer.send("chunk", seq=2, type="smell", data=["rose"], step=1, part=0, colour="red")
    peer.send("pigeon", message="without a seq")
    peer.chunks(3, 3)
    peer.complete(4)


def _foreign(peer: Peer) -> None:
    peer.chunks(1, 1)
    peer.send_of(b"nobody's", "chunk", seq=2, type="text", data="not yours ", step=1, part=0)
    error = {"status": "error", "error_type": "internal", "message": "", "details": {}, "retryable": False}
    peer.send_of(b"nobody's", "error", **error)
    peer.chunks(2, 3)
    peer.complete(4)


def _twice(peer: Peer) -> None:
    peer.chunks(1, 3)
    peer.complete(4)
    peer.complete(4)
    peer.fail("internal", "too late")
    peer.chunks(5, 6)


def _refused(peer: Peer) -> None:
    peer.chunks(1, 1)
    peer.send("refused", of="steer", error_type="invalid_request", message="nobody said anything")
    peer.chunks(2, 3)
    peer.complete(4)


def _new_error(peer: Peer) -> None:
    peer.chunks(1, 1)
    peer.fail("quite_new", retryable=True, seq=2)


def _by_the_broker(peer: Peer) -> None:
    peer.chunks(1, 2)
    peer.fail("worker_lost", retryable=True, details={"by": "broker"})


def _slow(peer: Peer) -> None:
    """The broker is there all the time, and says so."""
    began = time.monotonic()
    while time.monotonic() < began + 6.5:
        peer.expect_nothing("a run that takes its time", 0.5)
    peer.chunks(1, 3)
    peer.complete(4)


def _silence(peer: Peer) -> None:
    peer.chunks(1, 1)
    peer.is_silent = True
    _, id, _, _ = peer.expect("ping", "rule 6, who hears nothing for 5 s asks who is there")
    peer.pong(id)
    peer.is_silent = False
    peer.expect_resume(2, "rule 6, an answer after silence is reason to resume")
    peer.resumed(2, 3)
    peer.chunks(2, 3)
    peer.complete(4)


def _new_boot(peer: Peer) -> None:
    peer.alive()
    peer.chunks(1, 1)
    peer.succeed()
    peer.alive()
    peer.expect_resume(2, "rule 6, a new boot is reason to resume")
    peer.resumed(2, 1)
    peer.chunks(2, 3)
    peer.complete(4)


def _miscounted_once(peer: Peer) -> None:
    peer.alive()
    peer.alive(2)
    peer.alive()
    peer.expect_nothing("rule 6, a count that differs once is no reason", 1.0)
    peer.chunks(1, 3)
    peer.complete(4)


def _miscounted_twice(peer: Peer) -> None:
    peer.alive()
    peer.alive(0)
    peer.alive(0)
    peer.expect_resume(1, "rule 6, a count that differs twice is reason to resume")
    peer.resumed(1, 3)
    peer.chunks(1, 3)
    peer.complete(4)


def _restart(peer: Peer) -> None:
    peer.alive()
    peer.chunks(1, 2)
    peer.expect_nothing("nothing is missing", 0.5)
    peer.restart()
    peer.expect_resume(3, "rule 6, a restart of the broker is reason to resume", seconds=15.0)
    peer.resumed(3, 3)
    peer.chunks(3, 4)
    peer.complete(5)


def _may_have_run(peer: Peer) -> None:
    peer.alive()
    peer.restart()
    peer.expect_resume(1, "rule 6", seconds=15.0)
    peer.fail("unknown_request", details={"may_have_run": True, "never_ran_within_ms": 0})


def _answered(peer: Peer, text: str, rule: str) -> None:
    _, _, header, body = peer.expect("tool_result", rule)
    if header.get("call_id") != f"call-{text}" or body.get("result") != text:
        raise BrokenRuleError(f"{rule}: {header} {body} is not the answer to {text}")


def _tool(peer: Peer) -> None:
    peer.send("tool_call", **peer.call(1, "one"))
    _answered(peer, "one", "a tool is answered")
    peer.send("tool_call", **peer.call(2, "two"))
    _answered(peer, "two", "a tool is answered")
    peer.complete(3)


def _tool_replayed(peer: Peer) -> None:
    """One answer has arrived and one was lost; one call was never heard, and one is over."""
    peer.alive()
    peer.send("tool_call", **peer.call(1, "arrived"))
    _answered(peer, "arrived", "a tool is answered")
    peer.send("tool_call", **peer.call(2, "lost"))
    _answered(peer, "lost", "a tool is answered")
    peer.succeed()
    peer.alive()
    peer.expect_resume(3, "rule 6")
    listed = [peer.call(2, "lost"), peer.call(4, "unheard")]
    peer.resumed(3, 4, open_calls=listed)
    peer.send("tool_call", **peer.call(3, "over"))
    peer.send("tool_call", **peer.call(4, "unheard"))
    answers = {peer.expect("tool_result", "rule 7, a lost answer is given again")[2]["call_id"] for _ in range(2)}
    if answers != {"call-lost", "call-unheard"}:
        raise BrokenRuleError(f"rule 7: {answers} were answered")
    peer.expect_nothing("rule 7, what is over is not run, and what has arrived not said again", 1.0)
    peer.complete(5)


def _tool_cancelled(peer: Peer) -> None:
    peer.send("tool_call", **peer.call(1, "one"))
    _answered(peer, "one", "a tool is answered")
    peer.send("tool_cancelled", seq=2, call_id="call-one")
    peer.send("tool_cancelled", seq=3, call_id="call-never")
    peer.complete(4)


def _late_result(peer: Peer) -> None:
    peer.send("tool_call", **peer.call(1, "one"))
    _answered(peer, "one", "a tool is answered")
    peer.send("refused", of="tool_result", error_type="unknown_request", message="too late", call_id="call-one")
    peer.expect_nothing("an answer that came too late is left at that", 1.0)
    peer.complete(2)


_CALLS: Final = range(2, 22)
_AFTER_CALLS: Final = range(22, 62)


def _credit(peer: Peer) -> None:
    peer.chunks(1, 1)
    for seq in _CALLS:
        peer.send("tool_call", **peer.call(seq, f"{seq}"))
        while (heard := peer.hear(time.monotonic() + CLIENT_TIMEOUT_S)) is None or heard[0] != "tool_result":
            peer.expect_credit(heard)
    for seq in _AFTER_CALLS:
        while seq > peer.credit:
            peer.expect_credit(peer.hear(time.monotonic() + CLIENT_TIMEOUT_S))
        peer.chunks(seq, seq)
    peer.complete(_AFTER_CALLS.stop)


def _unreadable(peer: Peer) -> None:
    peer.chunks(1, 1)
    peer.send_frames(kinds.CHUNK, peer.id, b"\xc1")
    peer.send_frames(kinds.ALIVE, b"", b"\xc1")
    time.sleep(0.2)
    peer.fail("internal")
    peer.hear(time.monotonic() + 0.5)  # a cancel, where it gave up by itself


CASES: Final = (
    Case("plain", "a stream, and its end", _plain, range(1, 4)),
    Case("repeated", "messages that come twice", _repeated, range(1, 4)),
    Case("gap", "messages that are missing", _gap, range(1, 6)),
    Case("gap-before-end", "an end behind a gap", _gap_before_the_end, range(1, 4)),
    Case("no-longer-kept", "what is missing is gone: never a silent hole", _no_longer_kept, None, ERROR),
    Case("stale", "stale frames in front", _stale, range(1, 4)),
    Case("unknown", "kinds, chunk types and keys that nobody knows", _unknown, range(3, 4)),
    Case("foreign", "ids that nobody asked with", _foreign, range(1, 4)),
    Case("twice", "a second end, and what comes after the first", _twice, range(1, 4)),
    Case("refused", "`refused` ends nothing", _refused, range(1, 4)),
    Case("new-error", "an error type that nobody knows", _new_error, range(1, 2), ERROR),
    Case("by-the-broker", "an error without seq", _by_the_broker, range(1, 3), ERROR),
    Case("slow", "a run that takes its time", _slow, range(1, 4)),
    Case("silence", "a broker that says nothing", _silence, range(1, 4)),
    Case("new-boot", "a new broker on the same connection", _new_boot, range(1, 4)),
    Case("miscounted-once", "a count that differs once", _miscounted_once, range(1, 4)),
    Case("miscounted-twice", "a count that differs twice", _miscounted_twice, range(1, 4)),
    Case("restart", "a broker that dies and comes back", _restart, range(1, 5)),
    Case("may-have-run", "a broker that knows nothing of it", _may_have_run, range(0), ERROR),
    Case("tool", "tool calls and their answers", _tool, range(0), calls=("one", "two")),
    Case("tool-replayed", "tool calls over a restart", _tool_replayed, range(0), calls=("arrived", "lost", "unheard")),
    Case("tool-cancelled", "an answer that is not wanted", _tool_cancelled, range(0), calls=("one",)),
    Case("late-result", "an answer that came too late", _late_result, range(0), calls=("one",)),
    Case(
        "credit",
        "tool calls among chunks that need credit",
        _credit,
        (1, *_AFTER_CALLS),
        calls=tuple(map(str, _CALLS)),
    ),
    Case("unreadable", "a body that is no msgpack", _unreadable, None, ERROR),
)
"""All of them, in the order in which `cases` names them."""
