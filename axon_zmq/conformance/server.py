"""Runs the cases against one client, and reports which rules of the protocol it breaks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from axon_zmq.conformance.cases import CASES, Case
from axon_zmq.conformance.peer import BrokenRuleError, Peer, Received
from axon_zmq.errors import RequestError

AGENT: Final = "conformance"
"""Agent of the runs that start a case."""
REPORT: Final = "report"
LIST: Final = "cases"
"""Tools of the scripted broker: `cases` lists the cases, and `report` receives the messages that the application got in
a case."""


@dataclass(frozen=True)
class Verdict:
    """Result of one case; `broken` describes the broken rule and is empty if there is none."""

    case: Case
    broken: str

    @property
    def passed(self) -> bool:
        """Whether the client kept all rules."""
        return not self.broken


class Server:
    """A scripted broker.

    Args:
        host: A loopback address.
        port: The port; 0 for any free one.
        cases: The cases to run.
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
        self._decode_error = ""
        """End of an error message: why the last malformed message could not be decoded."""

    @property
    def endpoint(self) -> str:
        """Endpoint to which the client connects."""
        return self._peer.endpoint

    def run(self, patience: float) -> list[Verdict]:
        """Run until the client has reported each case, or has sent nothing for `patience` seconds.

        Returns:
            A verdict for each case. A case that the client has not run has failed.
        """
        try:
            while len(self._verdicts) < len(self._cases):
                received = self._receive(time.monotonic() + patience)
                if received is None:
                    break
                self._serve(received)
            self._receive(time.monotonic() + 0.5)  # lets the last answer reach the client before the socket closes
        finally:
            self._peer.close()
        for name, case in self._cases.items():
            if name not in self._verdicts:
                self._conclude(Verdict(case, f"the case was not reported{self._decode_error}"))
        return [self._verdicts[name] for name in self._cases]

    def _receive(self, deadline: float) -> Received | None:
        """Return the next message that can be decoded, between two scripts; None after the deadline."""
        self._peer.id = b""  # no run, so no `alive` messages
        while time.monotonic() < deadline:
            try:
                return self._peer.receive(deadline)
            except (RequestError, BrokenRuleError) as fault:
                self._decode_error = f"; a malformed message was received: {fault}"
        return None

    def _serve(self, received: Received) -> None:
        kind, id, header, body = received
        match kind, body:
            case "run_stream", {"agent": agent, "prompt": str(name)} if agent == AGENT and name in self._cases:
                self._play(self._cases[name], id, header)
            case "call_tool", {"tool": tool} if tool == LIST:
                self._answer(id, list(self._cases))
            case "call_tool", {"tool": tool, "args": dict(reported)} if tool == REPORT:
                self._judge(reported)
                self._answer(id, "noted")
            case "resume" | "cancel" | "credit" | "tool_result" | "steer", _:
                pass  # late messages about a run whose script has ended
            case _:
                expected = (
                    f"run_stream of agent {AGENT!r} with a case as its prompt, or call_tool {LIST!r} or {REPORT!r}"
                )
                error = {"error_type": "invalid_request", "message": f"this is a scripted broker: expected {expected}"}
                self._peer.send_of(id, "error", status="error", details={}, retryable=False, **error)

    def _answer(self, id: bytes, result: object) -> None:
        self._peer.send_of(
            id, "complete", seq=1, result=result, usage={}, messages=[], finish_reason=None, model="", run_id=""
        )

    def _play(self, case: Case, id: bytes, header: dict[str, Any]) -> None:
        if case.name in self._broken:
            self._broken[case.name] = (
                "rule 4, a client does not send a run again by itself: it was received a second time"
            )
            return
        self._peer.begin(self._peer.client, id, header)
        try:
            case.script(self._peer)
            self._broken[case.name] = ""
        except (BrokenRuleError, RequestError) as broken:
            self._broken[case.name] = str(broken)
            self._peer.fail("internal")

    def _judge(self, reported: dict[str, Any]) -> None:
        case = self._cases.get(str(reported.get("case")))
        if case is None or case.name in self._verdicts:
            return
        broken = self._broken.get(case.name, "the case was reported before it was run") or _difference(case, reported)
        self._conclude(Verdict(case, broken))

    def _conclude(self, verdict: Verdict) -> None:
        self._verdicts[verdict.case.name] = verdict
        self._on_verdict(verdict)


def _difference(case: Case, reported: Mapping[str, Any]) -> str:
    """Return how the report of the application differs from the expected one; empty if it does not."""
    text = None if case.words is None else "".join(f"{number} " for number in case.words)
    if text is not None and reported.get("text") != text:
        return f"the application received the text {reported.get('text')!r}, expected {text!r}"
    if reported.get("end") not in case.ends:
        return f"the run ended as {reported.get('end')!r} for the application, expected {' or '.join(case.ends)}"
    if list(reported.get("calls") or ()) != list(case.calls):
        return f"the tool calls {reported.get('calls')} were executed, expected {list(case.calls)}"
    return ""
