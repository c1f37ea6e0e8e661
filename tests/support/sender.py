"""The body of a request, without a network."""

from collections.abc import Sequence

from starlette.types import Message


class Sender:
    """Sends a body in chunks, as ASGI messages. `taken` counts the messages that were read."""

    def __init__(self, chunks: Sequence[bytes], *, leaves: bool = False) -> None:
        self.chunks = list(chunks)
        self.leaves = leaves
        self.taken = 0

    async def __call__(self) -> Message:
        self.taken += 1
        if self.taken > len(self.chunks):
            assert self.leaves, "read beyond the end"
            return {"type": "http.disconnect"}
        more = self.leaves or self.taken < len(self.chunks)
        return {"type": "http.request", "body": self.chunks[self.taken - 1], "more_body": more}
