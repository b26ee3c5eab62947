"""Dead-peer detection: decisions from the kernel's TCP counters."""

from __future__ import annotations

import struct

import pytest

from axon_zmq.broker.dead_peers import UNANSWERED_PACKETS, evaluate
from axon_zmq.broker.tcp import TcpInfo, parse_info


def tcp_info(answered: float, resent: int = 0, probes: int = 0) -> TcpInfo:
    """TCP_INFO of a connection; `answered` is the time in seconds since the last acknowledgement."""
    return parse_info(struct.pack("=8B24I4Q", 1, 0, resent, probes, *[0] * 16, int(answered * 1000), *[0] * 15))


@pytest.mark.parametrize("counted", ["resent", "probes"])
def test_a_host_is_dead_if_it_has_acknowledged_nothing_for_the_time_limit(counted: str):
    since, dead = evaluate(tcp_info(300), None, 100.0, 10.0)
    assert (since, dead) == (None, False)  # idle
    since, dead = evaluate(tcp_info(301, **{counted: UNANSWERED_PACKETS}), since, 101.0, 10.0)
    assert (since, dead) == (101.0, False)  # idle before: that does not count
    since, dead = evaluate(tcp_info(310.9, **{counted: UNANSWERED_PACKETS}), since, 110.9, 10.0)
    assert (since, dead) == (101.0, False)
    assert evaluate(tcp_info(311, **{counted: UNANSWERED_PACKETS}), since, 111.0, 10.0) == (101.0, True)
    assert evaluate(tcp_info(311, **{counted: UNANSWERED_PACKETS - 1}), since, 111.0, 10.0) == (101.0, False)


def test_a_host_with_a_full_receive_window_is_not_dead():
    since, _ = evaluate(tcp_info(60, probes=1), None, 100.0, 10.0)
    assert evaluate(tcp_info(1, probes=1), since, 160.0, 10.0) == (
        160.0,
        False,
    )  # that probe was acknowledged, the next one was sent
    assert evaluate(tcp_info(0), since, 160.0, 10.0) == (None, False)
