"""Signals that processes hear, whoever started the test run, and those that hold them up."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from tests.support.stack import until

_STILL = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)


@contextmanager
def heard(number: signal.Signals) -> Iterator[None]:
    """Processes started inside hear `number`.

    A test run that a shell started in the background, or `nohup`, ignores some, and what is ignored
    is inherited; what is handled is not (POSIX, exec).
    """
    before = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextmanager
def standing_still(*processes: psutil.Process) -> Iterator[None]:
    """Meanwhile they do nothing, and what they are asked waits for them."""
    for process in processes:
        process.suspend()
    try:
        until(lambda: all(each.status() in _STILL for each in processes), "they stand still")
        yield
    finally:
        for process in processes:
            process.resume()
