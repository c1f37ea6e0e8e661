"""What a delivery answers when the server stops before it has ended."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from core.errors import Unavailable


@contextmanager
def unless_stopped() -> Iterator[None]:
    """Turn a cancellation into a refusal.

    Only a server that stops and can wait no longer cancels a request. Its claim is given up by now,
    and the queue should hear more than a broken connection.
    """
    try:
        yield
    except asyncio.CancelledError:
        raise Unavailable("The worker is stopping.") from None
