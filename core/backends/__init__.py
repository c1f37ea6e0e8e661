"""Backends: where records, blobs and messages are kept. `open_backend` is the one that chooses."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from core.clock import Clock, utc_now
from core.ports import BlobStore, DeadLetterStore, Publisher, RecordStore
from core.settings import Settings

if TYPE_CHECKING:
    from core.backends.links import LinkSigner


@dataclass(frozen=True)
class Backend:
    """The four ports of one process. `links` verifies local signed links, where they are local."""

    records: RecordStore
    blobs: BlobStore
    publisher: Publisher
    dead_letters: DeadLetterStore
    links: "LinkSigner | None" = None


class BackendOpener(Protocol):
    """What `open_backend` is; tests open theirs with faults."""

    def __call__(
        self, settings: Settings, clock: Clock
    ) -> AbstractAsyncContextManager[Backend]: ...


@asynccontextmanager
async def open_backend(settings: Settings, clock: Clock = utc_now) -> AsyncIterator[Backend]:
    """Open what `BACKEND` names, once a process and after any fork; close it on the way out."""
    # Imported here so that a backend's packages are loaded only where it is used.
    if settings.backend == "embedded":
        from core.backends.embedded import open_embedded as open_chosen
    else:
        from core.backends.google import open_google as open_chosen

    async with open_chosen(settings, clock) as backend:
        yield backend
