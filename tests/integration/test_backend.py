"""A worker and a scripted broker, frame by frame: messages that only an earlier version of the broker sends."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pytest
import zmq

from axon_zmq.process.run_dir import backend_endpoint
from axon_zmq.protocol import frames
from axon_zmq.protocol.msgpack import pack, unpack
from tests.support.daemon import WAIT_TIMEOUT_S, Daemon


def of_worker(router: zmq.Socket[bytes], kind: bytes) -> list[bytes]:
    """The next message whose third frame is the given one: about the worker itself, or about a run."""
    while router.poll(int(WAIT_TIMEOUT_S * 1000)):
        frames = router.recv_multipart()
        if frames[2] == kind:
            return frames
    raise AssertionError(f"the worker never said {kind!r}")


@pytest.mark.parametrize("told", [True, False])
def test_a_lease_without_a_digest_is_accepted(told):
    body = pack({"agent": "echo", "prompt": "hello"})
    digest = frames.body_digest(body)
    with tempfile.TemporaryDirectory(prefix="axon-") as folder, zmq.Context() as context:
        router = context.socket(zmq.ROUTER)
        router.linger = 0
        router.bind(backend_endpoint(Path(folder)))
        own = Daemon(Path(folder))
        own.start_worker("run")
        try:
            worker, *_, ready = of_worker(router, b"ready")
            assert unpack(ready, "ready")["holds"] == []
            lease = {"deadline": time.monotonic() + 60, "attempt": 1, **({"digest": digest} if told else {})}
            router.send_multipart([worker, b"client", b"run", b"1", pack({}), body, pack(lease)])
            assert unpack(of_worker(router, b"complete")[-1], "it")["result"] == "hello"
            router.unbind(backend_endpoint(Path(folder)))
            router.close()
            router = context.socket(zmq.ROUTER)  # as after a restart of the broker: the held run has its digest
            router.linger = 0
            router.bind(backend_endpoint(Path(folder)))
            [held] = unpack(of_worker(router, b"ready")[-1], "ready")["holds"]
            assert (held["id"], held["digest"]) == (b"1", digest)
        finally:
            router.close()
            own.stop()
