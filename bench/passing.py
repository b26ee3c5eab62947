"""Large requests and replies of other clients, from a process of its own: `bench.isolation` has them pass.

A line on stdin, such as `["pass", 2.0]`, has them pass for so many seconds; a line of JSON on stdout says how many did.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import closing

from axon_zmq.process import lifeline
from bench.clients import Crowd, Request
from bench.dealers import Dealers

MODE = "run"
"""Whose worker sends them back: the streams' has its hands full."""
SIZE = 10_000_000
"""Bytes of a request, and of its reply."""


def _passed(crowd: Crowd, request: Request, seconds: float) -> int:
    """How many came back while so much time went by, one client's after the other's."""
    count, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        count += len(crowd.exchange(request))
    return count


def main(endpoint: str) -> None:
    """Answer until stdin ends."""
    said = "x" * SIZE
    request = Request("echo", {"echo": said}, said)
    with closing(Dealers(endpoint, 1, kinds={"echo": MODE})) as crowd:
        for line in sys.stdin:
            _what, seconds = json.loads(line)
            print(json.dumps({"passed": _passed(crowd, request, seconds)}), flush=True)


if __name__ == "__main__":
    lifeline.die_with_parent()
    main(*sys.argv[1:])
