"""The test cases: the script of the broker, and the messages that the application must receive."""

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
    """One test case.

    Args:
        name: Name of the case, and prompt of the run that starts it.
        about: The tested situation.
        script: Function that plays the broker.
        words: Numbers of the chunks that the application must have received, in order; None to accept any.
        ends: Terminal messages with which the run may have ended for the application.
        calls: Texts of the tool calls that must have been executed, in order.
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
    peer.expect_nothing("rule 1, a message with a lower seq is ignored", 0.5)
    peer.complete(4)


def _gap(peer: Peer) -> None:
    peer.chunks(1, 1)
    peer.chunks(3, 5)
    peer.expect_resume(2, "rule 1, a gap before a message is requested with resume")
    peer.expect_nothing("rule 1, a gap is requested only once", 1.0)
    peer.resumed(2, 5)
    peer.chunks(2, 5)
    peer.complete(6)


def _gap_before_the_end(peer: Peer) -> None:
    peer.chunks(1, 1)
    peer.complete(4)
    peer.expect_resume(2, "rule 1, a terminal message after a gap does not end the run yet")
    peer.resumed(2, 4)
    peer.chunks(2, 3)
    peer.complete(4)


def _no_longer_kept(peer: Peer) -> None:
    peer.chunks(1, 1)
    peer.chunks(5, 5)
    peer.expect_resume(2, "rule 1, a gap is requested with resume")
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
    peer.send_of(b"unknown id", "chunk", seq=2, type="text", data="not yours ", step=1, part=0)
    error = {"status": "error", "error_type": "internal", "message": "", "details": {}, "retryable": False}
    peer.send_of(b"unknown id", "error", **error)
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
    peer.send("refused", of="steer", error_type="invalid_request", message="empty message")
    peer.chunks(2, 3)
    peer.complete(4)


def _new_error(peer: Peer) -> None:
    peer.chunks(1, 1)
    peer.fail("quite_new", retryable=True, seq=2)


def _by_the_broker(peer: Peer) -> None:
    peer.chunks(1, 2)
    peer.fail("worker_lost", retryable=True, details={"by": "broker"})


def _slow(peer: Peer) -> None:
    """The broker is alive all the time: it sends `alive`, and a client that pings or resumes is wrong."""
    # Longer than the 5 s of silence after which a client must ping.
    ends_at = time.monotonic() + 6.5
    while time.monotonic() < ends_at:
        peer.expect_nothing("rule 6, alive messages are not silence", 0.5)
    peer.chunks(1, 3)
    peer.complete(4)


def _silence(peer: Peer) -> None:
    peer.chunks(1, 1)
    peer.is_silent = True
    _, id, _, _ = peer.expect("ping", "rule 6, a client pings after 5 s of silence")
    peer.pong(id)
    peer.is_silent = False
    peer.expect_resume(2, "rule 6, a client resumes when its ping is answered after silence")
    peer.resumed(2, 3)
    peer.chunks(2, 3)
    peer.complete(4)


def _new_boot(peer: Peer) -> None:
    peer.alive()
    peer.chunks(1, 1)
    peer.succeed()
    peer.alive()
    peer.expect_resume(2, "rule 6, a client resumes after a new boot")
    peer.resumed(2, 1)
    peer.chunks(2, 3)
    peer.complete(4)


def _miscounted_once(peer: Peer) -> None:
    peer.alive()
    peer.alive(2)
    peer.alive()
    peer.expect_nothing("rule 6, a client does not resume when alive.open differs once", 1.0)
    peer.chunks(1, 3)
    peer.complete(4)


def _miscounted_twice(peer: Peer) -> None:
    peer.alive()
    peer.alive(0)
    peer.alive(0)
    peer.expect_resume(1, "rule 6, a client resumes when alive.open differs twice in a row")
    peer.resumed(1, 3)
    peer.chunks(1, 3)
    peer.complete(4)


def _restart(peer: Peer) -> None:
    peer.alive()
    peer.chunks(1, 2)
    peer.expect_nothing("a client is silent if no message is missing", 0.5)
    peer.restart()
    peer.expect_resume(3, "rule 6, a client resumes after a restart of the broker", seconds=15.0)
    peer.resumed(3, 3)
    peer.chunks(3, 4)
    peer.complete(5)


def _may_have_run(peer: Peer) -> None:
    peer.alive()
    peer.restart()
    peer.expect_resume(1, "rule 6, a client resumes after a restart of the broker", seconds=15.0)
    peer.fail("unknown_request", details={"may_have_run": True, "never_ran_within_ms": 0})


def _answered(peer: Peer, text: str, rule: str) -> None:
    _, _, header, body = peer.expect("tool_result", rule)
    if header.get("call_id") != f"call-{text}" or body.get("result") != text:
        raise BrokenRuleError(f"{rule}: expected the result of call {text}, received {header} {body}")


def _tool(peer: Peer) -> None:
    peer.send("tool_call", **peer.call(1, "one"))
    _answered(peer, "one", "each tool call is answered")
    peer.send("tool_call", **peer.call(2, "two"))
    _answered(peer, "two", "each tool call is answered")
    peer.complete(3)


def _tool_replayed(peer: Peer) -> None:
    """Play four tool calls across a restart of the broker.

    Before it, the client answers the first two calls, and the second answer is lost. After it, the client receives the
    other two calls for the first time, and the third one is no longer open.
    """
    peer.alive()
    peer.send("tool_call", **peer.call(1, "arrived"))
    _answered(peer, "arrived", "each tool call is answered")
    peer.send("tool_call", **peer.call(2, "lost"))
    _answered(peer, "lost", "each tool call is answered")
    peer.succeed()
    peer.alive()
    peer.expect_resume(3, "rule 6, a client resumes after a new boot")
    listed = [peer.call(2, "lost"), peer.call(4, "missed")]
    peer.resumed(3, 4, open_calls=listed)
    peer.send("tool_call", **peer.call(3, "over"))
    peer.send("tool_call", **peer.call(4, "missed"))
    answers = {peer.expect("tool_result", "rule 7, a lost result is sent again")[2]["call_id"] for _ in range(2)}
    if answers != {"call-lost", "call-missed"}:
        raise BrokenRuleError(f"rule 7: expected the results of call-lost and call-missed, received {answers}")
    peer.expect_nothing("rule 7, closed calls are not executed, and results that arrived are not sent again", 1.0)
    peer.complete(5)


def _tool_cancelled(peer: Peer) -> None:
    peer.send("tool_call", **peer.call(1, "one"))
    _answered(peer, "one", "each tool call is answered")
    peer.send("tool_cancelled", seq=2, call_id="call-one")
    peer.send("tool_cancelled", seq=3, call_id="call-never")
    peer.complete(4)


def _late_result(peer: Peer) -> None:
    peer.send("tool_call", **peer.call(1, "one"))
    _answered(peer, "one", "each tool call is answered")
    peer.send("refused", of="tool_result", error_type="unknown_request", message="too late", call_id="call-one")
    peer.expect_nothing("a refused result is not sent again", 1.0)
    peer.complete(2)


_CALLS: Final = range(2, 22)
_AFTER_CALLS: Final = range(22, 62)


def _credit(peer: Peer) -> None:
    peer.chunks(1, 1)
    for seq in _CALLS:
        peer.send("tool_call", **peer.call(seq, f"{seq}"))
        while (received := peer.receive(time.monotonic() + CLIENT_TIMEOUT_S)) is None or received[0] != "tool_result":
            peer.expect_credit(received)
    for seq in _AFTER_CALLS:
        while seq > peer.credit:
            peer.expect_credit(peer.receive(time.monotonic() + CLIENT_TIMEOUT_S))
        peer.chunks(seq, seq)
    peer.complete(_AFTER_CALLS.stop)


def _unreadable(peer: Peer) -> None:
    peer.chunks(1, 1)
    peer.send_frames(kinds.CHUNK, peer.id, b"\xc1")
    peer.send_frames(kinds.ALIVE, b"", b"\xc1")
    time.sleep(0.2)
    peer.fail("internal")
    peer.receive(time.monotonic() + 0.5)  # the cancel of a client that gave up the run by itself


CASES: Final = (
    Case(name="plain", about="a stream and its end", script=_plain, words=range(1, 4)),
    Case(name="repeated", about="repeated messages", script=_repeated, words=range(1, 4)),
    Case(name="gap", about="missing messages", script=_gap, words=range(1, 6)),
    Case(name="gap-before-end", about="a terminal message after a gap", script=_gap_before_the_end, words=range(1, 4)),
    Case(
        name="no-longer-kept",
        about="missing messages that are no longer kept: the run ends with an error",
        script=_no_longer_kept,
        words=None,
        ends=ERROR,
    ),
    Case(name="stale", about="stale frames before a message", script=_stale, words=range(1, 4)),
    Case(name="unknown", about="unknown kinds, chunk types and keys", script=_unknown, words=range(3, 4)),
    Case(name="foreign", about="unknown request ids", script=_foreign, words=range(1, 4)),
    Case(
        name="twice", about="a second terminal message, and messages after the first", script=_twice, words=range(1, 4)
    ),
    Case(name="refused", about="`refused` does not end the run", script=_refused, words=range(1, 4)),
    Case(name="new-error", about="an unknown error type", script=_new_error, words=range(1, 2), ends=ERROR),
    Case(name="by-the-broker", about="an error without seq", script=_by_the_broker, words=range(1, 3), ends=ERROR),
    Case(name="slow", about="a slow run", script=_slow, words=range(1, 4)),
    Case(name="silence", about="a silent broker", script=_silence, words=range(1, 4)),
    Case(name="new-boot", about="a new boot on the same connection", script=_new_boot, words=range(1, 4)),
    Case(name="miscounted-once", about="`alive.open` differs once", script=_miscounted_once, words=range(1, 4)),
    Case(name="miscounted-twice", about="`alive.open` differs twice", script=_miscounted_twice, words=range(1, 4)),
    Case(name="restart", about="a broker that restarts", script=_restart, words=range(1, 5)),
    Case(
        name="may-have-run",
        about="a broker that does not know the run",
        script=_may_have_run,
        words=range(0),
        ends=ERROR,
    ),
    Case(name="tool", about="tool calls and their results", script=_tool, words=range(0), calls=("one", "two")),
    Case(
        name="tool-replayed",
        about="tool calls across a restart",
        script=_tool_replayed,
        words=range(0),
        calls=("arrived", "lost", "missed"),
    ),
    Case(
        name="tool-cancelled",
        about="a cancelled tool call",
        script=_tool_cancelled,
        words=range(0),
        calls=("one",),
    ),
    Case(
        name="late-result", about="a result that arrives too late", script=_late_result, words=range(0), calls=("one",)
    ),
    Case(
        name="credit",
        about="tool calls among chunks that need credit",
        script=_credit,
        words=(1, *_AFTER_CALLS),
        calls=tuple(map(str, _CALLS)),
    ),
    Case(name="unreadable", about="a body that is not msgpack", script=_unreadable, words=None, ends=ERROR),
)
"""All cases, in the order in which the tool `cases` lists them."""
