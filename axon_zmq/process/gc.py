"""Python's garbage collector, for a process that imports much, and then serves."""

from __future__ import annotations

import gc


def tune_gc() -> None:
    """What was imported stays: it need not be looked at again at every collection, and those may be rarer."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 50, 100)
    gc.enable()
