"""Finds out which of many images the service has, so that clients upload only the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from core.backends import Backend
from core.concurrency import for_each
from core.domain.records import Record, RecordKey

AT_ONCE = 8  # requests to the image storage, so that they do not delay uploads


@dataclass(frozen=True, slots=True)
class Presence:
    """The record of an image, if any, and whether its bytes are known to be stored."""

    record: Record | None
    stored: bool

    @property
    def known(self) -> bool:
        """Whether no upload is needed: the result is final, or the bytes are stored."""
        return self.stored or (self.record is not None and _final(self.record))


async def look_up(backend: Backend, keys: Sequence[RecordKey]) -> Mapping[RecordKey, Presence]:
    """The presence of each image. Looks for bytes only if there is no final result.

    A record without a final result does not prove that the bytes are stored: the upload that
    created it may have been interrupted.
    """
    records = await backend.records.get_many(keys)
    unfinished = list(
        dict.fromkeys(k for k in keys if (found := records.get(k)) is None or not _final(found))
    )
    exist = await for_each(unfinished, lambda k: backend.blobs.exists(k.blob_name), AT_ONCE)
    stored = dict(zip(unfinished, exist, strict=True))
    return {key: Presence(records.get(key), stored.get(key, False)) for key in keys}


def _final(record: Record) -> bool:
    return record.status.terminal and not record.may_retry
