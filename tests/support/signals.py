"""Signals as a terminal's processes hear them, whoever started the test run."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


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
