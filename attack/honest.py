"""The honest clients, in a process of their own: one for each mode, each with one request at a time.

The process writes one line of JSON for each request: mode, time of sending, milliseconds, and the result. It ends with
its standard input. `python -m attack.honest ENDPOINT MODE…` starts it.
"""

from __future__ import annotations

import json
import secrets
import sys
import threading
import time
from typing import Any, Final

import msgpack
import zmq

PAUSE_S: Final = 0.02
"""Seconds between an answer and the next request."""
TIMEOUT_S: Final = 10.0
"""Seconds after which a request counts as unanswered."""


def main(endpoint: str, modes: list[str]) -> None:
    """Send requests until standard input is closed."""
    stopped = threading.Event()
    threads = [threading.Thread(target=_client, args=(endpoint, mode, stopped), daemon=True) for mode in modes]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stopped.set()
    for thread in threads:
        thread.join(1.0)


def _client(endpoint: str, mode: str, stopped: threading.Event) -> None:
    context = zmq.Context.instance()
    number = 0
    with context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.IDENTITY, secrets.token_bytes(16).replace(b"\x00", b"x"))
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RECONNECT_IVL, 20)
        socket.connect(endpoint)
        while not stopped.is_set():
            number += 1
            began = time.monotonic()
            id, prompt = b"honest-%d" % number, f"honest-{secrets.token_hex(8)}"
            _write({"mode": mode, "at": began, "state": "sent"})
            socket.send_multipart([mode.encode(), id, b"", _pack({"agent": "echo", "prompt": prompt})])
            state = _answer(socket, id, prompt, began + TIMEOUT_S)
            _write({"mode": mode, "at": began, "ms": (time.monotonic() - began) * 1000, "state": state})
            time.sleep(PAUSE_S)


def _answer(socket: Any, id: bytes, prompt: str, until: float) -> str:
    """Return `ok`, `late`, `wrong` for a message of another client, or the error type."""
    while (left := until - time.monotonic()) > 0:
        if not socket.poll(int(left * 1000) + 1):
            break
        kind, of, body = socket.recv_multipart()[-3:]
        if kind == b"alive":
            continue
        if not of.startswith(b"honest-"):
            return "wrong"
        if of != id or kind not in (b"complete", b"error"):
            continue
        value = msgpack.unpackb(body, timestamp=3)
        if kind == b"error":
            return str(value["error_type"])
        return "ok" if value["result"] == prompt else "wrong"
    return "late"


def _pack(value: dict[str, Any]) -> bytes:
    return bytes(msgpack.packb(value) or b"")


_lock = threading.Lock()


def _write(line: dict[str, Any]) -> None:
    with _lock:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
