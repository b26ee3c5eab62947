"""The relay's flags of clients, and how replies are framed."""

from __future__ import annotations

import pytest

from axon_zmq.broker.core.clients import Clients
from axon_zmq.broker.core.relay import DELIMITER, GONE, SINGLE, Relay, Verdict, framed
from axon_zmq.protocol.frames import single_frame

PLAIN = [b"chunk", b"1", b"body"]
ONE = [single_frame(b"chunk", b"1", b"body")]


@pytest.mark.parametrize(
    ("flags", "frames"),
    [
        (0, PLAIN),
        (DELIMITER, [b"", *PLAIN]),
        (SINGLE, ONE),
        (DELIMITER | SINGLE, [b"", *ONE]),
        (GONE, PLAIN),
        (GONE | DELIMITER, [b"", *PLAIN]),
        (GONE | SINGLE, ONE),
        (GONE | DELIMITER | SINGLE, [b"", *ONE]),
    ],
)
def test_a_reply_has_the_framing_of_its_request(flags, frames):
    assert framed(flags, b"chunk", b"1", b"body") == frames


def test_a_client_that_returns_keeps_its_framing():
    relay = Relay()
    relay.set_flag(b"c", SINGLE)
    relay.set_flag(b"c", GONE)
    assert relay.flags_of(b"c") == SINGLE | GONE
    relay.clear_flag(b"c", GONE)
    assert relay.flags_of(b"c") == SINGLE
    relay.clear_flag(b"c", SINGLE)
    assert relay.flags_of(b"c") is None


def test_the_framing_of_idle_clients_is_forgotten_over_a_limit(monkeypatch):
    monkeypatch.setattr("axon_zmq.broker.core.clients.CLIENTS_KEPT", 3)
    relay = Relay()
    clients = Clients(relay)
    for number in range(5):
        clients.set_framing(b"%d" % number, DELIMITER)
    assert [number for number in range(5) if clients.takes_one_reply(b"%d" % number)] == [2, 3, 4]


def test_messages_after_the_terminal_message_do_not_make_a_run_relayed():
    relay = Relay()
    assert relay.accept(b"w", b"c", b"chunk", b"1") is Verdict.PASS
    assert relay.was_relayed((b"c", b"1"))
    assert relay.accept(b"w", b"c", b"complete", b"1") is Verdict.END
    assert relay.accept(b"w", b"c", b"resumed", b"1") is Verdict.PASS
    assert relay.accept(b"w", b"c", b"refused", b"1") is Verdict.PASS
    assert not relay.was_relayed((b"c", b"1"))
