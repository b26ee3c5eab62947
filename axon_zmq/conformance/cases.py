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


@dataclass(frozen=True, kw_only=True)
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
    Case(name="plain", about="a stream, and its end", script=_plain, words=range(1, 4)),
    Case(name="repeated", about="messages that come twice", script=_repeated, words=range(1, 4)),
    Case(name="gap", about="messages that are missing", script=_gap, words=range(1, 6)),
    Case(name="gap-before-end", about="an end behind a gap", script=_gap_before_the_end, words=range(1, 4)),
    Case(
        name="no-longer-kept",
        about="what is missing is gone: never a silent hole",
        script=_no_longer_kept,
        words=None,
        ends=ERROR,
    ),
    Case(name="stale", about="stale frames in front", script=_stale, words=range(1, 4)),
    Case(name="unknown", about="kinds, chunk types and keys that nobody knows", script=_unknown, words=range(3, 4)),
    Case(name="foreign", about="ids that nobody asked with", script=_foreign, words=range(1, 4)),
    Case(name="twice", about="a second end, and what comes after the first", script=_twice, words=range(1, 4)),
    Case(name="refused", about="`refused` ends nothing", script=_refused, words=range(1, 4)),
    Case(name="new-error", about="an error type that nobody knows", script=_new_error, words=range(1, 2), ends=ERROR),
    Case(name="by-the-broker", about="an error without seq", script=_by_the_broker, words=range(1, 3), ends=ERROR),
    Case(name="slow", about="a run that takes its time", script=_slow, words=range(1, 4)),
    Case(name="silence", about="a broker that says nothing", script=_silence, words=range(1, 4)),
    Case(name="new-boot", about="a new broker on the same connection", script=_new_boot, words=range(1, 4)),
    Case(name="miscounted-once", about="a count that differs once", script=_miscounted_once, words=range(1, 4)),
    Case(name="miscounted-twice", about="a count that differs twice", script=_miscounted_twice, words=range(1, 4)),
    Case(name="restart", about="a broker that dies and comes back", script=_restart, words=range(1, 5)),
    Case(
        name="may-have-run", about="a broker that knows nothing of it", script=_may_have_run, words=range(0), ends=ERROR
    ),
    Case(name="tool", about="tool calls and their answers", script=_tool, words=range(0), calls=("one", "two")),
    Case(
        name="tool-replayed",
        about="tool calls over a restart",
        script=_tool_replayed,
        words=range(0),
        calls=("arrived", "lost", "unheard"),
    ),
    Case(
        name="tool-cancelled",
        about="an answer that is not wanted",
        script=_tool_cancelled,
        words=range(0),
        calls=("one",),
    ),
    Case(name="late-result", about="an answer that came too late", script=_late_result, words=range(0), calls=("one",)),
    Case(
        name="credit",
        about="tool calls among chunks that need credit",
        script=_credit,
        words=(1, *_AFTER_CALLS),
        calls=tuple(map(str, _CALLS)),
    ),
    Case(name="unreadable", about="a body that is no msgpack", script=_unreadable, words=None, ends=ERROR),
)
"""All of them, in the order in which `cases` names them."""
