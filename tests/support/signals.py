"""Signals that processes receive however the test run was started, and stopped processes."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from tests.support.stack import until

_STILL = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)


@contextmanager
def heard(number: signal.Signals) -> Iterator[None]:
    """Let processes that are started inside the block receive `number`.

    A test run that a shell or `nohup` started in the background ignores some signals. Children
    inherit ignored signals, but not handled ones (POSIX, exec).
    """
    before = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextmanager
def standing_still(*processes: psutil.Process) -> Iterator[None]:
    """Stop the processes for the duration of the block. Requests to them wait."""
    for process in processes:
        process.suspend()
    try:
        until(lambda: all(each.status() in _STILL for each in processes), "they are stopped")
        yield
    finally:
        for process in processes:
            process.resume()
