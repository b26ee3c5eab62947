"""Tools for tests: a fake model provider, and a simulation of broker, workers and clients.

Internal: may change in any release.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from axon_zmq.testing.provider import FakeProvider as FakeProvider
    from axon_zmq.testing.provider import Stats as Stats

__all__ = ["FakeProvider", "Stats"]


def __getattr__(name: str) -> Any:
    # Imported here instead of above, because `python -m axon_zmq.testing.provider` would load the module twice.
    if name in __all__:
        from axon_zmq.testing import provider

        return getattr(provider, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
