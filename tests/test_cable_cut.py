"""A cable is cut without a word (rule 8), in a network namespace of the test's own."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sys

import pytest

from axon_zmq.broker.dead_peers import CHECK_INTERVAL_S, UNANSWERED_PACKETS, DeadPeerDetector, evaluate
from tests.conftest import ROOT


def unshared(*command: str) -> list[str]:
    return ["unshare", "--net", *command]


def why_not() -> str:
    """Why no namespace can be made here; empty where one can."""
    if not shutil.which("unshare") or not shutil.which("ip"):
        return "needs unshare and ip (Debian: util-linux, iproute2)"
    tried = subprocess.run(unshared("ip", "link", "set", "lo", "up"), capture_output=True, text=True)
    return "" if tried.returncode == 0 else f"no network namespace can be made here: {tried.stderr.strip()}"


@pytest.mark.timeout(240)
def test_what_is_promised_of_a_cut_cable():
    if reason := why_not():
        pytest.skip(reason)
    tests = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "tests/namespaced/cable_cut.py"]
    done = subprocess.run(unshared(*tests), cwd=ROOT, capture_output=True, text=True, timeout=230)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def tcp_info(answered: float, resent: int = 0, probes: int = 0) -> bytes:
    """What the kernel says; `answered`: seconds since the last answer."""
    return struct.pack("=8B13I", 1, 0, resent, probes, *[0] * 16, int(answered * 1000))


@pytest.mark.parametrize("counted", ["resent", "probes"])
def test_a_host_is_dead_when_it_answered_nothing_for_a_while(counted: str):
    since, dead = evaluate(tcp_info(300), None, 100.0, 10.0)
    assert (since, dead) == (None, False)  # idle
    since, dead = evaluate(tcp_info(301, **{counted: UNANSWERED_PACKETS}), since, 101.0, 10.0)
    assert (since, dead) == (101.0, False)  # idle before: that does not count
    since, dead = evaluate(tcp_info(310.9, **{counted: UNANSWERED_PACKETS}), since, 110.9, 10.0)
    assert (since, dead) == (101.0, False)
    assert evaluate(tcp_info(311, **{counted: UNANSWERED_PACKETS}), since, 111.0, 10.0) == (101.0, True)
    assert evaluate(tcp_info(311, **{counted: UNANSWERED_PACKETS - 1}), since, 111.0, 10.0) == (101.0, False)


def test_who_answers_but_has_no_room_is_not_dead():
    since, _ = evaluate(tcp_info(60, probes=1), None, 100.0, 10.0)
    assert evaluate(tcp_info(1, probes=1), since, 160.0, 10.0) == (160.0, False)  # answered; another one is in flight
    assert evaluate(tcp_info(0), since, 160.0, 10.0) == (None, False)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_connections_that_are_gone_or_none_at_all_are_forgotten():
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
