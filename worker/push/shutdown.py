"""Answers deliveries that the server cancels during its shutdown."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from core.errors import Unavailable


@contextmanager
def refuse_on_shutdown() -> Iterator[None]:
    """Raise Unavailable in place of a cancellation.

    The server cancels a request only if it shuts down before the request ends. The claim is
    released by then, and a refusal tells the queue more than a broken connection.
    """
    try:
        yield
    except asyncio.CancelledError:
        raise Unavailable("The worker is shutting down.") from None
