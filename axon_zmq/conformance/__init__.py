"""A scripted broker, for authors of clients in any language: does a client keep the contract's rules?

`axon-zmq conformance --server` plays it; `docs/conformance.md` says what a client does there.

Internal: may change in any release.
"""

from __future__ import annotations

from axon_zmq.conformance.cases import CASES, Case
from axon_zmq.conformance.server import Server, Verdict

__all__ = ["CASES", "Case", "Server", "Verdict"]
