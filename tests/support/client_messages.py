"""Messages to a client, packed."""

from __future__ import annotations

from axon_zmq.client.core import ClientCore
from axon_zmq.protocol.msgpack import pack


def message(core: ClientCore, kind: bytes, now: float = 0.0, **body):
    return core.receive([kind, b"1", pack(body)], now)


def chunk(core: ClientCore, seq: int, now: float = 0.0):
    return message(core, b"chunk", now, seq=seq, type="text", data=str(seq), step=1, part=0)
