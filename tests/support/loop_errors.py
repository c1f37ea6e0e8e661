"""Errors that asyncio reports by itself, such as an exception that no caller retrieved."""

import asyncio
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loop_errors() -> Iterator[list[str]]:
    """The errors that the event loop reports in the block. Complete after the block."""
    loop, errors = asyncio.get_running_loop(), list[str]()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: errors.append(str(context["message"])))
    try:
        yield errors
    finally:
        gc.collect()  # a task reports its exception when it is deleted
        loop.set_exception_handler(before)
