"""Memory of this process: how much it uses, how free memory is returned, and a limit that the kernel enforces.

Everything here works on Linux with glibc. On other systems, the functions do nothing, or report that they cannot.

Internal: may change in any release.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Sequence
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
_UNKNOWN: Final = (0,) * 7


def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None


def tune_allocator() -> None:
    """Make the C library return free memory early; call it before threads are started."""
    libc = _libc()
    if libc is not None and hasattr(libc, "mallopt"):  # musl has no mallopt
        libc.mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, LARGE_BLOCK_BYTES)
        libc.mallopt(_M_ARENA_MAX, _ARENAS)


class ProcessMemory:
    """The memory of this process."""

    def __init__(self) -> None:
        # The file stays open: opening it takes longer than reading it.
        self._file = os.open(_STATM, os.O_RDONLY | os.O_CLOEXEC) if _STATM.exists() else None
        self._page = resource.getpagesize()

    @property
    def is_known(self) -> bool:
        """Whether this system reports and limits the memory of a process."""
        return self._file is not None

    def used(self) -> int:
        """Return the bytes that are in memory (RSS), in about 2 µs; 0 if the system does not report it."""
        return self._pages()[1] * self._page

    def private(self) -> int:
        """Return the same without pages of files, which grow when code is executed for the first time."""
        _, resident, of_files, *_ = self._pages()
        return (resident - of_files) * self._page

    def limit_growth(self, more: int) -> None:
        """Have the kernel refuse private memory beyond what this process has now plus a number of bytes.

        An allocation above the limit raises MemoryError in Python code; C and Rust code may end the process instead.
        The limit (RLIMIT_DATA) counts memory that is reserved and was never written, such as the stacks of threads. It
        is therefore set relative to what is reserved now, and must be set again from time to time.

        Processes that this one starts inherit the soft limit; the hard limit stays, so that they may raise it.

        Args:
            more: Bytes by which the process may grow; a negative number counts as 0.
        """
        if self._file is None:
            return
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        soft = self._pages()[5] * self._page + max(0, more)
        resource.setrlimit(resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))

    def return_free(self) -> None:
        """Return free memory inside the heaps to the kernel. It takes a few milliseconds for each 100 MiB of heap."""
        libc = _libc()
        if libc is not None and hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)

    def close(self) -> None:
        """Close the file from which the memory is read. The object must not be used any more."""
        if self._file is not None:
            os.close(self._file)

    def _pages(self) -> Sequence[int]:
        """Return the fields of `/proc/self/statm`: numbers of pages."""
        return _UNKNOWN if self._file is None else [int(field) for field in os.pread(self._file, 128, 0).split()]
