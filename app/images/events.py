"""Events about the states of an image, each with the labels of the view that the client asked for.

A poller describes a state once for all subscribers of a key, so the view is part of the key.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from app.images.representation import encode
from app.images.view import View
from app.streams.events import Event, Kind
from app.streams.poller import Poller
from core.domain.records import Record, RecordKey, Status


class ViewedKey(NamedTuple):
    """The key of a record, and the view of it."""

    record: RecordKey
    view: View


class ViewedRecord(NamedTuple):
    """A record, and the view of it."""

    record: Record
    view: View


ImagePoller = Poller[ViewedKey, ViewedRecord, Event]
GetMany = Callable[[Sequence[RecordKey]], Awaitable[Mapping[RecordKey, Record]]]

_KINDS = {Status.SUCCESS: Kind.COMPLETE, Status.ERROR: Kind.FAILED}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


async def look_up_views(
    get_many: GetMany, keys: Sequence[ViewedKey]
) -> Mapping[ViewedKey, ViewedRecord]:
    """The records that exist, each for every view of it among `keys`."""
    records = await get_many(list({key.record for key in keys}))
    return {
        key: ViewedRecord(record, key.view)
        for key in keys
        if (record := records.get(key.record)) is not None
    }


def image_event(viewed: ViewedRecord, public_url: str) -> Event:
    """The event with the state of a record. Its id is `updated_at` in microseconds since 1970."""
    record, view = viewed
    id_ = (record.updated_at - _EPOCH) // _MICROSECOND
    return Event(id_, _KINDS.get(record.status, Kind.UPDATE), encode(record, view, public_url))
