"""Dead-peer detection on real connections."""

from __future__ import annotations

import os
import socket
import sys

import pytest

from axon_zmq.broker.dead_peers import CHECK_INTERVAL_S, DeadPeerDetector


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_closed_connections_and_other_descriptors_are_forgotten():
    listener = socket.create_server(("127.0.0.1", 0))
    there = socket.create_connection(listener.getsockname())
    accepted, _ = listener.accept()
    reading, writing = os.pipe()
    cables = DeadPeerDetector()
    for fd in (accepted.fileno(), reading, there.fileno()):
        cables.opened(fd)
    gone = there.detach()
    os.close(gone)
    assert cables.check(100.0) == 0
    assert cables.check_at == 100.0 + CHECK_INTERVAL_S
    assert repr(cables) == "<DeadPeerDetector 1 connections, 0 without an answer>"
    cables.closed(accepted.fileno())
    assert repr(cables) == "<DeadPeerDetector 0 connections, 0 without an answer>"
    os.fstat(reading)  # not ours to close
    for fd in (reading, writing):
        os.close(fd)
    accepted.close()
    listener.close()
