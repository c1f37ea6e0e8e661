"""Claims and deletes records in tests, as other processes do."""

from datetime import timedelta

from core.domain import records
from core.domain.deletions import Deletion, new_owner
from core.domain.records import Claim, ImageKey, RecordKey
from core.ports import RecordStore


async def claimed(store: RecordStore, key: RecordKey, lease: timedelta) -> Claim | None:
    """Claim the record. None if the claim is refused."""
    record = await store.change(key, records.claim(lease))
    return None if record is None else records.claim_of(record)


async def delete_image(store: RecordStore, image: ImageKey) -> Deletion:
    """Delete the image's records, as another process does; its bytes are the caller's."""
    deletion = await store.begin_deletion(image, new_owner(), has_blob=True)
    assert await store.end_deletion(deletion)
    return deletion
