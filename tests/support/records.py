"""Claiming records in tests, as a worker does."""

from datetime import timedelta

from core.domain import records
from core.domain.records import Claim, RecordKey
from core.ports import RecordStore


async def claimed(store: RecordStore, key: RecordKey, lease: timedelta) -> Claim | None:
    """Claim the record. None if the claim is refused."""
    record = await store.change(key, records.claim(lease))
    return None if record is None else records.claim_of(record)
