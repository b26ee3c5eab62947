"""Baseline for the relay: the textbook loop between two ROUTER sockets, one whole message for each poll.

It has no checks, no bookkeeping and no limits.
"""

from __future__ import annotations

import sys

import zmq

from axon_zmq.process import lifeline
from axon_zmq.protocol.kinds import CONTROL
from axon_zmq.protocol.msgpack import pack


def relay(frontend: str, backend: str) -> None:
    """Relay between clients and one worker until the process is killed."""
    context = zmq.Context()
    front, back = context.socket(zmq.ROUTER), context.socket(zmq.ROUTER)
    # Without ROUTER_MANDATORY, a ROUTER drops messages for a client whose pipe is full.
    front.setsockopt(zmq.SNDHWM, 0)
    back.bind(backend)
    worker = back.recv_multipart()[0]
    front.bind(frontend)
    # A worker expects a lease as the last frame of a run.
    lease = pack({"deadline": float("inf"), "attempt": 1})
    poller = zmq.Poller()
    poller.register(front, zmq.POLLIN)
    poller.register(back, zmq.POLLIN)
    while True:
        ready = dict(poller.poll())
        if back in ready:
            _worker, client, *message = back.recv_multipart()
            if client != CONTROL:
                front.send_multipart([client, *message])
        if front in ready:
            back.send_multipart([worker, *front.recv_multipart(), lease])


if __name__ == "__main__":
    lifeline.die_with_parent()
    relay(*sys.argv[1:])
