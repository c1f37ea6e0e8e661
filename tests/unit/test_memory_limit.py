"""The operating system refuses what a limited block allocates beyond its limit."""

import resource
import sys

import numpy as np
import pytest

from worker.inference.memory_limit import memory_limit

MIB = 2**20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces RLIMIT_DATA")


def allocate(size: int) -> int:
    return np.zeros(size, np.uint8).nbytes


def test_allocation_above_the_limit_fails() -> None:
    with memory_limit(64 * MIB), pytest.raises(MemoryError):
        allocate(512 * MIB)


def test_allocation_below_the_limit_passes_beside_earlier_memory() -> None:
    held = np.zeros(256 * MIB, np.uint8)
    with memory_limit(128 * MIB):
        assert allocate(64 * MIB)
    assert held.nbytes


def test_limit_ends_with_the_block() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(ZeroDivisionError), memory_limit(64 * MIB):
        1 / 0  # noqa: B018 - leaves the block by an exception
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert allocate(512 * MIB)
