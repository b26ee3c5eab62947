"""A process that sends large requests and receives them back, for `bench.isolation`.

A line on stdin, such as `["pass", 2.0]`, starts the transfers for that many seconds; a line of JSON on stdout then
reports their number.
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
"""Mode of the worker that sends the bodies back. The streams have another worker, because they keep it busy."""
SIZE = 10_000_000
"""Bytes of a request and of its reply."""


def _passed(crowd: Crowd, request: Request, seconds: float) -> int:
    """Number of replies received within `seconds`, with one request at a time."""
    count, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        count += len(crowd.exchange(request))
    return count


def main(endpoint: str) -> None:
    """Transfer on request until stdin ends."""
    said = "x" * SIZE
    request = Request("echo", {"echo": said}, said)
    with closing(Dealers(endpoint, 1, kinds={"echo": MODE})) as crowd:
        for line in sys.stdin:
            _what, seconds = json.loads(line)
            print(json.dumps({"passed": _passed(crowd, request, seconds)}), flush=True)


if __name__ == "__main__":
    lifeline.die_with_parent()
    main(*sys.argv[1:])
