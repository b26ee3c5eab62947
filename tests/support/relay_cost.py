"""The broker's relay path and a minimal pyzmq loop, for callgrind: `tests/system/test_relay_cost.py` runs this.

callgrind starts a new count at each call of `zmq_version` (`--dump-before`), so `mark` separates the counts.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import zmq

from axon_zmq.broker.core.broker import Broker
from axon_zmq.broker.journal import Journal
from axon_zmq.broker.server import RECEIVE_BATCH
from axon_zmq.protocol import limits
from axon_zmq.protocol.backend import VERSION
from axon_zmq.protocol.kinds import CONTROL
from axon_zmq.protocol.msgpack import pack
from bench.source import CHUNK
from tests.support.stepped_server import SteppedServer

BOUNDS = limits.BrokerLimits()
CLIENT, WORKER, ID = b"client", b"worker", b"0123456789abcdef"


def mark() -> None:
    """Start a new count of instructions."""
    zmq.zmq_version_info()


def dealer(context: zmq.Context[zmq.Socket[bytes]], identity: bytes, address: str) -> zmq.Socket[bytes]:
    """A DEALER without a high-water mark, so that no send waits."""
    made = context.socket(zmq.DEALER)
    made.setsockopt(zmq.IDENTITY, identity)
    made.setsockopt(zmq.SNDHWM, 0)
    made.setsockopt(zmq.RCVHWM, 0)
    made.connect(address)
    return made


def fill(worker: zmq.Socket[bytes], count: int) -> None:
    """Send all messages to relay before the count begins."""
    for _ in range(count):
        worker.send_multipart([CLIENT, b"chunk", ID, CHUNK])


Socket = zmq.Socket[bytes]


def joined(folder: Path, slots: int) -> tuple[SteppedServer, Socket, Socket]:
    """A server with a registered worker and a client, which are plain sockets in the same context."""
    server = SteppedServer(
        core=Broker(boot="boot", bounds=BOUNDS, version="0", expected_workers=1, now=time.monotonic()),
        journal=Journal(folder / "journal", (), time.monotonic()),
        frontend="inproc://front",
        backend="inproc://back",
    )
    worker = dealer(server.context, WORKER, "inproc://back")
    client = dealer(server.context, CLIENT, "inproc://front")
    ready = {"v": VERSION, "mode": "run_stream", "slots": slots, "name": "worker", "holds": []}
    worker.send_multipart([CONTROL, b"ready", pack(ready)])
    server.read_workers()
    return server, worker, client


def echo(folder: Path, count: int) -> None:
    """Relay this many requests and answers; the work of client and worker is not counted."""
    server, worker, client = joined(folder, count)
    for number in range(count):
        client.send_multipart([b"run_stream", b"%d" % number, b"", pack({"agent": "echo", "prompt": "hello"})])
    mark()
    for _ in range(count // RECEIVE_BATCH + 1):
        server.read_clients()
    mark()
    for _ in range(count):
        routing_id, _kind, id, *_ = worker.recv_multipart()
        worker.send_multipart([routing_id, b"complete", id, CHUNK])
    mark()
    while not server.read_workers():
        pass
    mark()
    assert arrived(client) == count


def ours(folder: Path, count: int) -> None:
    """Relay chunks of one run with our server."""
    server, worker, client = joined(folder, 1)
    client.send_multipart([b"run_stream", ID, b"", pack({})])
    server.read_clients()
    assert worker.poll(60_000), "the run was not started"
    fill(worker, count)
    mark()
    while not server.read_workers():
        pass
    mark()
    assert arrived(client) == count


def plain(count: int) -> None:
    """Relay the same messages between two ROUTERs, as in pyzmq's documentation."""
    context = zmq.Context()
    front, back = context.socket(zmq.ROUTER), context.socket(zmq.ROUTER)
    front.setsockopt(zmq.SNDHWM, 0)
    front.bind("inproc://front")
    back.bind("inproc://back")
    worker, client = dealer(context, WORKER, "inproc://back"), dealer(context, CLIENT, "inproc://front")
    fill(worker, count)
    mark()
    for _ in range(count):
        _worker, *message = back.recv_multipart()
        front.send_multipart(message)
    mark()
    assert arrived(client) == count


def arrived(client: zmq.Socket[bytes]) -> int:
    """The number of chunks that have arrived."""
    count = 0
    while client.poll(0):
        count += client.recv_multipart()[-1] == CHUNK
    return count


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        if sys.argv[2:] == ["echo"]:
            echo(Path(folder), int(sys.argv[1]))
        else:
            ours(Path(folder), int(sys.argv[1]))
            plain(int(sys.argv[1]))
