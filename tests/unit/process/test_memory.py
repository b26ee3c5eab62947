"""The memory of this process."""

from __future__ import annotations

import sys

import pytest

from axon_zmq.process.memory import ProcessMemory
from axon_zmq.protocol.limits import MIB


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_used_and_private_memory_grow_with_what_the_process_allocates():
    memory = ProcessMemory()
    used, private = memory.used(), memory.private()
    held = bytearray(b"x") * (64 * MIB)
    assert memory.is_known
    assert memory.used() - used > 60 * MIB
    assert memory.private() - private > 60 * MIB
    assert memory.private() < memory.used()
    del held
    memory.close()
