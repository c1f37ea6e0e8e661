"""A limit on the memory that a block of code may allocate, enforced by the operating system."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STATM = Path("/proc/self/statm")  # proc(5): the sixth number is data and stack, in pages
_DATA = 5


@contextmanager
def memory_limit(size: int) -> Iterator[None]:
    """Let this process allocate at most `size` bytes more than it has now; Linux only.

    An allocation beyond that fails, which Python code sees as MemoryError. The limit counts private
    memory (RLIMIT_DATA), so mapped files and libraries are free. It holds for all threads.
    Elsewhere than on Linux the block runs without a limit: macOS does not enforce one.
    """
    if sys.platform != "linux":
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    allowed = int(_STATM.read_text().split()[_DATA]) * resource.getpagesize() + size
    for inherited in (soft, hard):
        if inherited != resource.RLIM_INFINITY:
            allowed = min(allowed, inherited)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
