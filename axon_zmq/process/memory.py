"""Memory of this process: how much it uses, how the C library returns free memory, and a limit that the kernel enforces.

Everything here works on Linux with glibc. On other systems, the functions do nothing, or report that they cannot.

Internal: may change in any release.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path
from typing import Final

LARGE_BLOCK_BYTES: Final = 256 * 1024
"""Size in bytes from which the C library takes a block directly from the kernel, and returns it as soon as it is free.

By default this threshold grows to 32 MiB once such a block was freed. From then on, request bodies of 16 MiB are cut
from the heap, and small blocks that outlive them keep the heap from shrinking."""
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
"""Parameters of `mallopt`, from glibc's `malloc.h`."""
_ARENAS: Final = 2
"""Maximum number of heaps. By default there are 8 for each core, and each keeps its own free memory. Python code holds
the GIL while it allocates, so more heaps would save no waiting."""
_STATM: Final = Path("/proc/self/statm")


def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None


def tune_allocator() -> None:
    """Make the C library return free memory early; call it before threads are started."""
    libc = _libc()
    if libc is not None and hasattr(libc, "mallopt"):  # musl has no mallopt
        libc.mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, LARGE_BLOCK_BYTES)
        libc.mallopt(_M_ARENA_MAX, _ARENAS)


def return_free_memory() -> None:
    """Return free memory inside the heaps to the kernel. It takes a few milliseconds for each 100 MiB of heap."""
    libc = _libc()
    if libc is not None and hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


class ResidentMemory:
    """Reads how many bytes of this process are in memory (RSS), in about 2 µs."""

    def __init__(self) -> None:
        # The file stays open: opening it takes longer than reading it.
        self._file = os.open(_STATM, os.O_RDONLY | os.O_CLOEXEC) if _STATM.exists() else None
        self._page = resource.getpagesize()

    @property
    def is_known(self) -> bool:
        """Whether this system reports it."""
        return self._file is not None

    def bytes(self) -> int:
        """Return the bytes that are in memory; 0 if the system does not report it."""
        if self._file is None:
            return 0
        return int(os.pread(self._file, 64, 0).split()[1]) * self._page


def limit_data(most: int) -> bool:
    """Have the kernel refuse memory above a limit to this process, and to the processes that it starts.

    Private memory counts as soon as it is reserved, even if it was never written: the stacks of threads, for example.
    An allocation above the limit raises MemoryError in Python code. C and Rust code may end the process instead.

    Args:
        most: The limit in bytes (RLIMIT_DATA). The hard limit stays, so that child processes may raise theirs.

    Returns:
        Whether the system enforces such a limit.
    """
    if sys.platform != "linux":
        return False
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    return True
