"""Plays the cases with one client, and says which of the contract's rules it keeps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from axon_zmq.conformance.cases import CASES, Case
from axon_zmq.conformance.peer import BrokenRuleError, Heard, Peer
from axon_zmq.errors import RequestError

AGENT: Final = "conformance"
"""The agent of the runs that ask for a case."""
REPORT: Final = "report"
LIST: Final = "cases"
"""Tools of the server's: what a client saw is told to one, what there is to play the other tells."""


@dataclass(frozen=True)
class Verdict:
    """How a client did in one case; `broken` is empty if it kept the rules."""

    case: Case
    broken: str

    @property
    def passed(self) -> bool:
        """Whether it kept the rules."""
        return not self.broken


class Server:
    """A scripted broker.

    Args:
        host: A loopback address.
        port: 0: any that is free.
        cases: What is played.
        on_verdict: Called with each verdict as soon as it is known.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        cases: Sequence[Case] = CASES,
        on_verdict: Callable[[Verdict], None] = lambda _: None,
    ) -> None:
        self._peer = Peer(host, port)
        self._cases = {case.name: case for case in cases}
        self._on_verdict = on_verdict
        self._broken: dict[str, str] = {}
        self._verdicts: dict[str, Verdict] = {}
        self._unreadable = ""
        """What was wrong with the last message that nothing can be made of."""

    @property
    def endpoint(self) -> str:
        """Where a client connects to."""
        return self._peer.endpoint

    def run(self, patience: float) -> list[Verdict]:
        """Play until each case has been reported, or nothing came for so many seconds.

        Returns:
            A verdict for each case; what was not played has one too.
        """
        try:
            while len(self._verdicts) < len(self._cases):
                heard = self._hear(time.monotonic() + patience)
                if heard is None:
                    break
                self._serve(heard)
            self._hear(time.monotonic() + 0.5)  # what was sent last has left by then
        finally:
            self._peer.close()
        for name, case in self._cases.items():
            if name not in self._verdicts:
                self._conclude(Verdict(case, f"it was not reported{self._unreadable}"))
        return [self._verdicts[name] for name in self._cases]

    def _hear(self, give_up: float) -> Heard | None:
        """The next message that can be read; no script is played, so nobody is told that the broker is alive."""
        self._peer.id = b""
        while time.monotonic() < give_up:
            try:
                return self._peer.hear(give_up)
            except (RequestError, BrokenRuleError) as fault:
                self._unreadable = f"; a message came that cannot be read: {fault}"
        return None

    def _serve(self, heard: Heard) -> None:
        kind, id, header, body = heard
        match kind, body:
            case "run_stream", {"agent": agent, "prompt": str(name)} if agent == AGENT and name in self._cases:
                self._play(self._cases[name], id, header)
            case "call_tool", {"tool": tool} if tool == LIST:
                self._answer(id, list(self._cases))
            case "call_tool", {"tool": tool, "args": dict(seen)} if tool == REPORT:
                self._judge(seen)
                self._answer(id, "noted")
            case "resume" | "cancel" | "credit" | "tool_result" | "steer", _:
                pass  # of a run that is over here
            case _:
                what = f"a run_stream of agent {AGENT!r} with a case as its prompt, or call_tool {LIST!r} or {REPORT!r}"
                error = {"error_type": "invalid_request", "message": f"this is a scripted broker: send {what}"}
                self._peer.send_of(id, "error", status="error", details={}, retryable=False, **error)

    def _answer(self, id: bytes, result: object) -> None:
        self._peer.send_of(
            id, "complete", seq=1, result=result, usage={}, messages=[], finish_reason=None, model="", run_id=""
        )

    def _play(self, case: Case, id: bytes, header: dict[str, Any]) -> None:
        if case.name in self._broken:
            self._broken[case.name] = "rule 4, a run is not sent again unasked: it came a second time"
            return
        self._peer.begin(self._peer.client, id, header)
        try:
            case.script(self._peer)
            self._broken[case.name] = ""
        except (BrokenRuleError, RequestError) as broken:
            self._broken[case.name] = str(broken)
            self._peer.fail("internal")

    def _judge(self, seen: dict[str, Any]) -> None:
        case = self._cases.get(str(seen.get("case")))
        if case is None or case.name in self._verdicts:
            return
        broken = self._broken.get(case.name, "reported before it was played") or _difference(case, seen)
        self._conclude(Verdict(case, broken))

    def _conclude(self, verdict: Verdict) -> None:
        self._verdicts[verdict.case.name] = verdict
        self._on_verdict(verdict)


def _difference(case: Case, seen: Mapping[str, Any]) -> str:
    """What the application saw and should not have, or the other way round."""
    text = None if case.words is None else "".join(f"{number} " for number in case.words)
    if text is not None and seen.get("text") != text:
        return f"the application saw the text {seen.get('text')!r}, and should have seen {text!r}"
    if seen.get("end") not in case.ends:
        return f"it ended as {seen.get('end')!r} for the application, and should have as {' or '.join(case.ends)}"
    if list(seen.get("calls") or ()) != list(case.calls):
        return f"the tool calls {seen.get('calls')} were run, and should have been {list(case.calls)}"
    return ""
