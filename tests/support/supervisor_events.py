"""Events as supervisord writes them to an event listener."""

from __future__ import annotations


def event(name: str, data: str) -> bytes:
    packed = data.encode()
    return f"ver:3.0 server:supervisor serial:1 pool:events eventname:{name} len:{len(packed)}\n".encode() + packed
