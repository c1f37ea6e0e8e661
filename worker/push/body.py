"""Reads the body of a push, up to the size of the largest Pub/Sub message."""

from fastapi import Request

from core.http.content_length import announced_bytes
from worker.errors import EnvelopeTooLarge

# https://cloud.google.com/pubsub/quotas#resource_limits
MAX_ENVELOPE_BYTES = 10_000_000


async def read_body(request: Request) -> bytes:
    """The whole body. Raises EnvelopeTooLarge as soon as the size is known to exceed the limit."""
    announced = announced_bytes(request)
    if announced is not None and announced > MAX_ENVELOPE_BYTES:
        raise _too_large()
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_ENVELOPE_BYTES:
            raise _too_large()
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large() -> EnvelopeTooLarge:
    return EnvelopeTooLarge(f"A push envelope has at most {MAX_ENVELOPE_BYTES} bytes.")
