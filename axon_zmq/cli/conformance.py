"""The cases at a terminal or in a pipe."""

from __future__ import annotations

from collections.abc import Sequence

from axon_zmq.cli.output import out, print_line
from axon_zmq.conformance.cases import CASES
from axon_zmq.conformance.server import Server, Verdict
from axon_zmq.errors import ConfigurationError
from axon_zmq.net import endpoints


def play(endpoint: str, only: Sequence[str], patience: float, as_json: bool) -> bool:
    """Play the cases, and show each verdict; whether the client kept all rules.

    Args:
        endpoint: `tcp://127.0.0.1:PORT`.
        only: Names of cases; all if empty.
        patience: Seconds without a message after which the rest counts as not reported.
        as_json: JSON lines, as in a pipe.

    Raises:
        ConfigurationError: There is no such case, or the endpoint is none that can be listened on.
    """
    names = [case.name for case in CASES]
    if unknown := set(only) - set(names):
        raise ConfigurationError(f"no case is called {min(unknown)!r}; there are {', '.join(names)}")
    host, port = endpoints.tcp_address(endpoints.check_frontend(endpoint))
    in_lines = as_json or not out.is_terminal
    chosen = [case for case in CASES if not only or case.name in only]
    server = Server(host=host, port=port, cases=chosen, on_verdict=lambda verdict: _show(verdict, in_lines))
    if not in_lines:
        out.print(f"plays {len(chosen)} cases on {server.endpoint}", markup=False)
    verdicts = server.run(patience)
    passed = sum(verdict.passed for verdict in verdicts)
    if in_lines:
        print_line({"passed": passed, "of": len(verdicts)})
    else:
        out.print(f"{passed} of {len(verdicts)} passed", markup=False)
    return passed == len(verdicts)


def _show(verdict: Verdict, in_lines: bool) -> None:
    if in_lines:
        print_line({"case": verdict.case.name, "broken": verdict.broken or None})
    else:
        told = "passed" if verdict.passed else f"FAILED: {verdict.broken}"
        out.print(f"{verdict.case.name:<18}{told}", markup=False, style=None if verdict.passed else "red")
