"""Conformance suite: a scripted broker that checks whether a client, in any language, keeps the rules of the protocol.

The command is `axon-zmq conformance --server`; `docs/conformance.md` describes what the client under test must do.

Internal: may change in any release.
"""

from __future__ import annotations

from axon_zmq.conformance.cases import CASES, Case
from axon_zmq.conformance.server import Server, Verdict

__all__ = ["CASES", "Case", "Server", "Verdict"]
