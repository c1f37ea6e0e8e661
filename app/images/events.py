"""Events about the states of an image."""

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
    """The event with the state of `record`. Its id is `updated_at` in microseconds since 1970."""
    id_ = (record.updated_at - _EPOCH) // _MICROSECOND
    return Event(id_, _KINDS.get(record.status, Kind.UPDATE), encode(record, public_url))
