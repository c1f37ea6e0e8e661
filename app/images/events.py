"""An image's states as events."""

from datetime import UTC, datetime, timedelta

from app.images.representation import encode
from app.streams.events import Event, Kind
from app.streams.poller import Poller
from core.domain.records import Record, RecordKey, Status

ImagePoller = Poller[RecordKey, Record, Event]

_KINDS = {Status.SUCCESS: Kind.COMPLETE, Status.ERROR: Kind.ERROR}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def image_event(record: Record, public_url: str) -> Event:
    """The event that tells of `record`. Its id is when the record changed, in microseconds."""
    id_ = (record.updated_at - _EPOCH) // _MICROSECOND
    return Event(id_, _KINDS.get(record.status, Kind.UPDATE), encode(record, public_url))
