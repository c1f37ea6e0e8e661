"""Which of many images the service has already, so that only the others need be sent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from core.backends import Backend
from core.concurrency import for_each
from core.domain.records import Record, RecordKey

AT_ONCE = 8  # questions to the image storage, so that uploads beside them are not kept waiting


@dataclass(frozen=True, slots=True)
class Presence:
    """What there is of an image: its record, and whether its bytes are known to be stored."""

    record: Record | None
    stored: bool

    @property
    def known(self) -> bool:
        """Whether it need not be sent: it has ended for good, or its bytes are there."""
        return self.stored or (self.record is not None and _final(self.record))


async def look_up(backend: Backend, keys: Sequence[RecordKey]) -> Mapping[RecordKey, Presence]:
    """What there is of each. Bytes are asked for only where a result would need them.

    A record that has not ended is no proof of them: whoever created it may not have got as far.
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
