"""Output of `axon-zmq conformance --server`: a line for each case, as text or JSON."""

from __future__ import annotations

from collections.abc import Sequence

from axon_zmq.cli.options import prints_json
from axon_zmq.cli.output import out, print_line
from axon_zmq.conformance.cases import CASES
from axon_zmq.conformance.server import Server, Verdict
from axon_zmq.errors import ConfigurationError
from axon_zmq.net import endpoints
from axon_zmq.suggestions import suggestion


def run_server(endpoint: str, only: Sequence[str], patience: float, as_json: bool) -> bool:
    """Run the cases against the client that connects, and print each verdict.

    Args:
        endpoint: `tcp://127.0.0.1:PORT`, on which the scripted broker listens.
        only: Names of cases; all cases if empty.
        patience: Seconds without a message after which the remaining cases count as not reported.
        as_json: Whether to print JSON lines even on a terminal.

    Returns:
        Whether the client passed every case.

    Raises:
        ConfigurationError: A case is unknown, the endpoint is invalid, or its port is in use.
    """
    names = [case.name for case in CASES]
    for name in only:
        if name not in names:
            raise ConfigurationError(f"unknown case {name!r}; {suggestion(name, names, 'known cases')}")
    host, port = endpoints.tcp_address(endpoints.check_frontend(endpoint))
    in_lines = prints_json(as_json)
    chosen = [case for case in CASES if not only or case.name in only]
    server = Server(host=host, port=port, cases=chosen, on_verdict=lambda verdict: _show(verdict, in_lines))
    if not in_lines:
        out.print(f"running {len(chosen)} cases on {server.endpoint}", markup=False)
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
        outcome = "passed" if verdict.passed else f"FAILED: {verdict.broken}"
        out.print(f"{verdict.case.name:<18}{outcome}", markup=False, style=None if verdict.passed else "red")
