"""Deletes images, so that a concurrent upload is either deleted as well or stored as a whole.

A process that dies leaves the deletion to the reconciler, or to the next upload of the image
(`core.domain.deletions`).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

import structlog

from core.backends import Backend
from core.clock import Clock, utc_now
from core.domain.deletions import Deletion, new_owner
from core.domain.records import ImageKey, embedding_name, thumbnail_name
from core.errors import Conflict, Unavailable

log = structlog.get_logger(__name__)

T = TypeVar("T")

DELETE_SECONDS = 20.0  # shorter than the lease of a deletion
WAIT_SECONDS = 3.0  # longest wait for a deletion by another process
# A deletion that is not completed keeps its lease: other requests for the image wait for its end.
RETRY_PAUSES = (0.1, 0.3, 1.0)  # seconds
# Before each look for a deletion that may have begun: together less than the lease.
UNCONFIRMED_PAUSES = (1.0, 2.0, 4.0, 8.0, 8.0, 8.0)  # seconds
MIN_POLL_SECONDS, MAX_POLL_SECONDS = 0.02, 0.25


async def delete_image(
    backend: Backend, image: ImageKey, clock: Clock = utc_now, owner: str = ""
) -> None:
    """Delete the image and its records. Raises NotFound, Unavailable.

    If another process is deleting the image, waits until it has. After Unavailable, the deletion
    may have begun: `complete_unconfirmed` with the same `owner` (`new_owner`) completes it.
    """
    await _in_time(_delete_image(backend, image, clock, owner or new_owner()))


async def complete_unconfirmed(
    backend: Backend, image: ImageKey, owner: str, clock: Clock = utc_now
) -> None:
    """Complete the deletion that `delete_image` may have begun before it raised Unavailable.

    Otherwise, other requests for the image would wait for its lease. Begins no deletion, because
    an upload may have been accepted since. Does nothing if too little of the lease is left.
    """
    for pause in UNCONFIRMED_PAUSES:
        await asyncio.sleep(pause)
        try:
            deletion = await backend.records.deletion(image)
            # The store may still be applying the transaction, so a later look may find it.
            if deletion is not None and deletion.begun_by(owner):
                if deletion.wake_at - clock() > timedelta(seconds=DELETE_SECONDS):
                    await _in_time(complete_deletion(backend, deletion))
                    log.warning("deletion without an answer is completed")
                return
        except Unavailable as unavailable:
            log.warning("deletion is tried again", reason=unavailable.detail)


async def _delete_image(backend: Backend, image: ImageKey, clock: Clock, owner: str) -> None:
    has_blob = await backend.blobs.exists(image.blob_name)
    try:
        deletion = await _retry(
            lambda: backend.records.begin_deletion(image, owner, has_blob=has_blob)
        )
    except Conflict:
        await wait_for_deletion(backend, image, clock)
    else:
        await complete_deletion(backend, deletion)


async def complete_deletion(backend: Backend, deletion: Deletion) -> None:
    """Delete what the image has besides its records, and end the deletion.

    Repeats either step after a transient error. Raises Unavailable.
    """
    await _retry(lambda: _delete_blobs(backend, deletion.image))
    # From its end on, an upload may store the bytes. So an end without an answer is repeated alone.
    await _retry(lambda: backend.records.end_deletion(deletion))


async def _delete_blobs(backend: Backend, image: ImageKey) -> None:
    await backend.blobs.delete(image.blob_name)
    await backend.blobs.delete(thumbnail_name(*image))
    for base in await backend.models.bases(image.tenant):
        await backend.blobs.delete(embedding_name(image.tenant, base, image.image_hash))


async def _retry(step: Callable[[], Awaitable[T]]) -> T:
    for pause in RETRY_PAUSES:
        try:
            return await step()
        except Unavailable as unavailable:
            log.warning("deletion is tried again", reason=unavailable.detail)
            await asyncio.sleep(pause)
    return await step()


async def wait_for_deletion(backend: Backend, image: ImageKey, clock: Clock = utc_now) -> int:
    """Return when the image is not being deleted: the token of its newest deletion, or 0.

    Completes the deletion of a process that has died. Raises Unavailable after `WAIT_SECONDS`.
    """
    deadline, pause = time.monotonic() + WAIT_SECONDS, MIN_POLL_SECONDS
    while True:
        deletion = await backend.records.deletion(image)
        if deletion is None:
            return 0
        if not deletion.in_progress:
            return deletion.token
        if not deletion.leased(clock()):
            await _take_over(backend, image)
            continue
        if time.monotonic() > deadline:
            raise Unavailable("The image is being deleted. Try again.")
        await asyncio.sleep(pause)
        pause = min(2 * pause, MAX_POLL_SECONDS)


async def process_due_deletion(backend: Backend, deletion: Deletion) -> None:
    """Take the next step of a deletion that is due. Raises Unavailable."""
    await _in_time(_process_due_deletion(backend, deletion))


async def _process_due_deletion(backend: Backend, deletion: Deletion) -> None:
    if deletion.in_progress:
        await _take_over(backend, deletion.image)
        return
    owner = new_owner()
    again = await _retry(lambda: backend.records.clean_up_deletion(deletion.image, owner))
    if again is not None:
        await complete_deletion(backend, again)


async def _in_time(work: Awaitable[None]) -> None:
    """Do the work, or raise Unavailable before the lease of the deletion expires."""
    try:
        async with asyncio.timeout(DELETE_SECONDS):
            await work
    except TimeoutError:
        raise Unavailable("The image is not deleted yet. Try again.") from None


async def _take_over(backend: Backend, image: ImageKey) -> None:
    """Complete a deletion whose process has died. No upload of the image was accepted since."""
    owner = new_owner()
    try:
        deletion = await _retry(lambda: backend.records.begin_deletion(image, owner, has_blob=True))
    except Conflict:
        return  # another process has taken it over
    log.warning("deletion of a process that died is completed", tenant=image.tenant)
    await complete_deletion(backend, deletion)
