"""Hostile connections to a broker: each can hurt only itself, and the broker's memory stays bounded."""

from __future__ import annotations

import secrets
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import zmq

from axon_zmq.broker.unfinished import Bounds
from axon_zmq.protocol.limits import MIB
from axon_zmq.protocol.msgpack import pack
from axon_zmq.supervise import broker_status
from tests.support import ROOT
from tests.support.daemon import Daemon, Dealer, running, wait_until
from tests.support.zmtp import RawClient, frame, message, prop

BOUNDS = Bounds.of(16 * MIB)
MARGIN = 64 * MIB
"""Bytes that the broker may need beyond a bound: for what arrives between two measurements, and for other causes."""


def process(daemon: Daemon) -> psutil.Process:
    return psutil.Process(daemon.processes["broker"].pid)


@contextmanager
def growth_at_most(daemon: Daemon, limit: int) -> Iterator[None]:
    """Check the highest number of bytes by which the broker grows, as far as samples of it show."""
    broker = process(daemon)
    before = broker.memory_info().rss
    peak = Path(f"/proc/{broker.pid}/clear_refs")
    peak.write_text("5")  # resets VmHWM
    yield
    [line] = [line for line in Path(f"/proc/{broker.pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    grown = int(line.split()[1]) * 1024 - before
    print(f"the broker grew by {grown / MIB:.0f} MiB, the limit is {limit / MIB:.0f}")
    assert grown < limit
    with RawClient(daemon.endpoint, secrets.token_bytes(16)) as honest:
        assert honest.ping()


@pytest.fixture(scope="module")
def broker() -> Iterator[Daemon]:
    with running() as daemon:
        yield daemon


# --- routing ids ---------------------------------------------------------------------------------------------


def test_squatters_on_the_ids_that_zeromq_assigns_do_not_abort_the_broker(broker: Daemon):
    with ExitStack() as stack:
        for number in range(40):  # the counter starts at this value in every process that does not seed libc's rand
            stack.enter_context(RawClient(broker.endpoint, b"\0" + (0x6B8B4567 + number).to_bytes(4, "big")))
        for _ in range(5):
            assert stack.enter_context(RawClient(broker.endpoint)).ping()
    assert broker.processes["broker"].poll() is None


def test_a_connection_that_chose_a_reserved_routing_id_is_closed_at_its_first_message(broker: Daemon):
    with RawClient(broker.endpoint) as anonymous, RawClient(broker.endpoint, b"\0chosen") as other:
        assert anonymous.ping()
        assert not other.ping()
        assert other.is_closed()
        with RawClient(broker.endpoint, b"\0\x6b\x8b\x45\x67") as squatter:
            assert not squatter.ping()
        assert anonymous.ping()
    assert "begins with a zero byte" in broker.log("broker")


def shared(dealer: Dealer) -> bool:
    return dealer.ask(b"ping", b"p")[1]["shared"]


def is_reported(dealer: Dealer) -> bool:
    dealer.send(b"ping", b"p")
    return not dealer.silent(0.2) and dealer.recv()[2]["shared"]


def test_a_takeover_is_reported_to_both_sides_in_the_log_and_in_the_status(broker: Daemon):
    before = broker_status.status(broker.run_dir)["takeovers"]
    name = secrets.token_hex(16).encode()
    with Dealer(broker.endpoint, name) as victim:
        assert not shared(victim)
        with RawClient(broker.endpoint, name) as taker:
            assert taker.pong()["shared"]
        # What it sends before its connection is closed is lost, so it asks again, as clients do after a reconnect.
        wait_until(lambda: is_reported(victim), "the report to the victim")
    log = broker.log("broker")
    assert f"routing id {name.decode()} was taken over by another connection" in log
    assert f"routing id {name.decode()} has" not in log  # it is long enough
    assert broker_status.status(broker.run_dir)["takeovers"] > before


def test_a_client_that_reconnects_or_restarts_is_not_reported(broker: Daemon):
    before = broker_status.status(broker.run_dir)["takeovers"]
    name = secrets.token_hex(16).encode()
    for _ in range(50):
        with RawClient(broker.endpoint, name) as client:
            assert client.ping()
    dealer = Dealer(broker.endpoint, name)
    assert not shared(dealer)
    dealer.close()
    client = f"Client({broker.endpoint!r}, identity={name.decode()!r}).__enter__()"
    script = f"import os; from axon_zmq import Client; {client}.ping(); os._exit(7)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=240, check=False).returncode == 7
    with RawClient(broker.endpoint, name) as restarted:
        assert restarted.ping()
    assert broker_status.status(broker.run_dir)["takeovers"] == before


def test_a_short_routing_id_is_warned_about_once(broker: Daemon):
    for _ in range(3):
        with RawClient(broker.endpoint, b"worker-7") as client:
            assert client.ping()
    assert broker.log("broker").count("routing id worker-7 has 8 bytes") == 1


# --- unfinished messages ---------------------------------------------------------------------------------------


def test_a_message_of_endless_frames_is_cut_at_twice_max_body(broker: Daemon):
    with growth_at_most(broker, BOUNDS.one + MARGIN), RawClient(broker.endpoint, secrets.token_bytes(16)) as client:
        many = frame(bytes(65_000), more=True) * 16
        while client.sent < 512 * MIB and client.send(many):
            pass
        assert client.sent < 512 * MIB
        assert "unfinished message has more than" in broker.log("broker")


def test_a_message_of_empty_frames_is_cut_long_before_its_bytes_reach_the_limit():
    with running() as own, growth_at_most(own, MARGIN), RawClient(own.endpoint, secrets.token_bytes(16)) as client:
        for _ in range(400):
            if not client.send(frame(b"", more=True) * 25_000):
                break
        assert client.is_closed()
        assert "very many small frames" in own.log("broker")


def test_a_body_that_looks_like_small_frames_is_accepted(broker: Daemon):
    with RawClient(broker.endpoint, secrets.token_bytes(16)) as client:
        body = pack({"agent": "echo", "prompt": b"\1\0" * (2 * MIB)})
        whole = message(b"run", b"r", b"", body)
        for at in range(0, len(whole), 128 * 1024):
            assert client.send(whole[at : at + 128 * 1024])
            time.sleep(0.002)
        assert client.send(message(b"cancel", b"r"))  # there is no worker that could execute it
        kinds = iter(client.receive_message, [])
        assert next(frames for frames in kinds if frames[0] == b"error")[1] == b"r"


def test_many_unfinished_messages_are_bounded_together_and_an_honest_upload_is_answered(broker: Daemon):
    with growth_at_most(broker, BOUNDS.total + 32 * MIB + 2 * MARGIN), ExitStack() as stack:
        attackers = [stack.enter_context(RawClient(broker.endpoint, secrets.token_bytes(16))) for _ in range(16)]
        for attacker in attackers:
            attacker.send(message(b"run", b"1")[:-3] + b"\3" + (32 * MIB).to_bytes(8, "big"))
            for _ in range(30):
                attacker.send(bytes(MIB))
        honest = stack.enter_context(RawClient(broker.endpoint, secrets.token_bytes(16)))
        assert honest.send(message(b"run", b"large", b"", bytes(32 * MIB - 100)))
        assert [honest.receive() for _ in range(2)] == [b"error", b"large"]
        assert b"too_large" in honest.receive()
        assert any(attacker.is_closed(1.0) for attacker in attackers)


def test_a_handshake_with_very_many_properties_is_cut(broker: Daemon):
    with growth_at_most(broker, MARGIN), RawClient(broker.endpoint, None) as client:
        many = b"".join(prop(number.to_bytes(3, "big")) for number in range(1, 500_000))
        start = b"\6" + (4 * len(many)).to_bytes(8, "big") + b"\x05READY" + prop(b"Socket-Type", b"DEALER")
        client.send(start)
        for _ in range(3):
            if not client.send(many):
                break
        assert client.is_closed()
        assert "very many properties in its handshake" in broker.log("broker")


def test_a_handshake_larger_than_a_frame_may_be_is_cut(broker: Daemon):
    with growth_at_most(broker, MARGIN), RawClient(broker.endpoint, None) as client:
        client.send(b"\6" + (60 * MIB).to_bytes(8, "big") + b"\x05READY")
        for _ in range(60):
            if not client.send(bytes(MIB)):
                break
        assert client.is_closed()


def test_long_routing_ids_are_not_kept_in_memory_and_their_connections_are_closed(broker: Daemon):
    with growth_at_most(broker, MARGIN):
        for number in range(50):
            with RawClient(broker.endpoint, b"id %d " % number + b"x" * 2 * MIB) as client:
                assert not client.ping()
                assert client.is_closed()
    assert "its routing id has more than 255 bytes" in broker.log("broker")


# --- numbers of connections --------------------------------------------------------------------------------------


def test_connections_beyond_the_limit_are_closed_and_the_others_are_served():
    with running(broker=("--max-connections=10",)) as own, ExitStack() as stack:
        wait_until(lambda: open_connections(own) == 0, "the end of the first client")
        served = [stack.enter_context(RawClient(own.endpoint, secrets.token_bytes(16))) for _ in range(10)]
        for _ in range(5):
            assert refused(own.endpoint)
        assert all(each.ping() for each in served)
        assert "10 connections are open, the limit is 10 (AXON_MAX_CONNECTIONS)" in own.log("broker")
        served[0].close()
        wait_until(lambda: not refused(own.endpoint), "a free place")


def test_unfinished_handshakes_on_all_connections_do_not_keep_an_honest_client_out():
    with running(broker=("--max-connections=10",)) as own, ExitStack() as stack:
        wait_until(lambda: open_connections(own) == 0, "the end of the first client")
        served = stack.enter_context(RawClient(own.endpoint, secrets.token_bytes(16)))
        assert served.ping()
        address = (urlsplit(own.endpoint).hostname, urlsplit(own.endpoint).port)
        silent = [stack.enter_context(socket.create_connection(address)) for _ in range(9)]
        for each in silent:
            each.send(b"\xff")  # the first byte of a greeting
        wait_until(lambda: not refused(own.endpoint), "a place for an honest client")
        assert served.ping()
        assert "closed the oldest connection without a message" in own.log("broker")


def open_connections(daemon: Daemon) -> int:
    return sum(each.status == psutil.CONN_ESTABLISHED for each in process(daemon).net_connections("tcp"))


def refused(endpoint: str) -> bool:
    """Whether a new connection is closed at once."""
    try:
        with RawClient(endpoint, secrets.token_bytes(16)) as client:
            return not client.ping()
    except OSError:
        return True


LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
sys.argv = ["broker", *sys.argv[1:]]
runpy.run_module("axon_zmq.broker", run_name="__main__")
"""


def test_at_the_descriptor_limit_connections_are_refused_and_the_broker_does_not_spin():
    with tempfile.TemporaryDirectory(prefix="axon-") as folder, ExitStack() as stack:
        own = Daemon(Path(folder))
        stack.callback(own.stop)
        with (own.run_dir / "broker.log").open("ab") as log:
            arguments = [sys.executable, "-c", LIMITED, f"--frontend={own.endpoint}", f"--run-dir={own.run_dir}"]
            own.processes["broker"] = subprocess.Popen(arguments, cwd=ROOT, stdout=log, stderr=log)
        own.wait()
        first = stack.enter_context(RawClient(own.endpoint, secrets.token_bytes(16)))
        assert first.ping()
        held: list[RawClient] = []
        for _ in range(200):
            try:
                held.append(RawClient(own.endpoint, None))
            except OSError:
                continue
        stack.callback(lambda: [each.close() for each in held])
        assert first.ping()
        log_text = own.log("broker")
        assert "AXON_MAX_CONNECTIONS 4096 is lowered to 64" in log_text
        assert "refused a connection: 64 connections are open" in log_text
        broker = process(own)
        wait_until(lambda: is_idle(broker), "an idle broker")
        for each in held:
            each.close()
        wait_until(lambda: not refused(own.endpoint), "a free place")
        assert own.kill("broker", signal.SIGTERM) == 0


def is_idle(broker: psutil.Process) -> bool:
    used = broker.cpu_times()
    time.sleep(0.3)
    now = broker.cpu_times()
    return now.user + now.system - used.user - used.system < 0.1


# --- Unix sockets --------------------------------------------------------------------------------------------------


def test_the_sockets_of_ipc_endpoints_are_for_their_owner_only():
    with tempfile.TemporaryDirectory(prefix="axon-") as folder:
        own = Daemon(Path(folder))
        own.endpoint = f"ipc://{folder}/front.sock"
        try:
            own.start_broker()
            own.wait()
            for name in ("front.sock", "broker.sock"):
                assert stat.S_IMODE((own.run_dir / name).stat().st_mode) == 0o600
            with zmq.Context() as context, context.socket(zmq.DEALER) as unknown:
                unknown.setsockopt(zmq.LINGER, 0)
                unknown.setsockopt(zmq.IDENTITY, b"\1chosen")
                unknown.connect(own.endpoint)
                unknown.send_multipart([b"ping", b"1"])
                assert unknown.poll(30_000)
            assert "routing id \\x01chosen has 7 bytes" in own.log("broker")
        finally:
            own.stop()
