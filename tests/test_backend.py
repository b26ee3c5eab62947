"""A worker towards the broker, frame by frame, as `docs/backend.md` has it: what no broker of today would send."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pytest
import zmq

from axon_zmq import endpoints, wire
from tests.conftest import PATIENCE, Daemon


def of_worker(router: zmq.Socket[bytes], kind: bytes) -> list[bytes]:
    """The next message whose third frame that is: of the worker itself, or of a run."""
    while router.poll(int(PATIENCE * 1000)):
        frames = router.recv_multipart()
        if frames[2] == kind:
            return frames
    raise AssertionError(f"the worker never said {kind!r}")


@pytest.mark.parametrize("told", [True, False])
def test_a_broker_of_before_that_tells_no_digest_is_understood(told):
    body = wire.pack({"agent": "echo", "prompt": "hello"})
    digest = wire.digest(body)
    with tempfile.TemporaryDirectory(prefix="axon-") as folder, zmq.Context() as context:
        router = context.socket(zmq.ROUTER)
        router.linger = 0
        router.bind(endpoints.backend_endpoint(Path(folder)))
        own = Daemon(Path(folder))
        own.start_worker("run")
        try:
            worker, *_, ready = of_worker(router, b"ready")
            assert wire.unpack(ready, "ready")["holds"] == []
            lease = {"deadline": time.monotonic() + 60, "attempt": 1, **({"digest": digest} if told else {})}
            router.send_multipart([worker, b"client", b"run", b"1", wire.pack({}), body, wire.pack(lease)])
            assert wire.unpack(of_worker(router, b"complete")[-1], "it")["result"] == "hello"
            router.unbind(endpoints.backend_endpoint(Path(folder)))
            router.close()
            router = context.socket(zmq.ROUTER)  # the broker has been started again: what is held has the digest
            router.linger = 0
            router.bind(endpoints.backend_endpoint(Path(folder)))
            [held] = wire.unpack(of_worker(router, b"ready")[-1], "ready")["holds"]
            assert (held["id"], held["digest"]) == (b"1", digest)
        finally:
            router.close()
            own.stop()
