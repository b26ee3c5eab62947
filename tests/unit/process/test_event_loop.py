"""Event loops: which one is used, and the turns of a loop."""

from __future__ import annotations

import asyncio
import sys
import time

import pytest

from axon_zmq.errors import ConfigurationError
from axon_zmq.process.event_loop import Turns, new_loop


def test_without_uvloop_auto_selects_asyncio_and_uvloop_is_rejected(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvloop", None)
    loop = new_loop("auto")
    assert isinstance(loop, asyncio.SelectorEventLoop)
    loop.close()
    with pytest.raises(ConfigurationError, match=r"pip install 'axon-zmq\[uvloop\]'"):
        new_loop("uvloop")


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_callbacks_run_after_ready_callbacks_and_before_their_deadline(kind):
    turns, passed = Turns(10), list[str]()

    async def look() -> None:
        start = time.monotonic()
        turns.call_after(lambda: passed.append("first"), start + 60)
        for _ in range(5):
            await asyncio.sleep(0)
        turns.call_after(lambda: passed.append("second"), start + 60)
        assert passed == []
        for _ in range(6):
            await asyncio.sleep(0)
        assert passed == ["first"]
        for _ in range(6):
            await asyncio.sleep(0)
        assert passed == ["first", "second"]
        turns.call_after(lambda: passed.append("late"), start)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert passed[2:] == ["late"]

    loop = new_loop(kind)
    loop.run_until_complete(look())
    loop.close()
