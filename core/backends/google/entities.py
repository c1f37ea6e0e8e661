"""Records as Datastore entities, and keys of all entities.

The key of a record is `Image/{image_hash}` (a parent without an entity) and `Record/{model}`, in
the namespace of the tenant. So a lookup uses the key, and one ancestor query finds the records of
an image under all models. Five properties have an index, the one that Datastore makes by itself.
Only unfinished records have `unfinished_at`, so its index contains what the reconciler searches
for. The other four serve lists: each has the record's sort key behind what the list selects, so
that a range of one property is a page (https://cloud.google.com/datastore/docs/concepts/indexes).

These are the raw protocol-buffer classes; Google's wrappers around them take twice the time.
"""

import hashlib
import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from google.cloud.datastore_v1.types import Entity, Key, PartitionId, Value

from core.domain.deletions import Deletion, Stage
from core.domain.priority import Priority
from core.domain.record_lists import terms_of
from core.domain.records import Annotation, ImageKey, Record, RecordError, RecordKey, Status

IMAGE_KIND, RECORD_KIND, TENANT_KIND = "Image", "Record", "Tenant"
DELETION_KIND = "Deletion"
UNFINISHED, WAKE_AT = "unfinished_at", "wake_at"
BY_AGE, BY_STATUS, BY_MODEL = "by_age", "by_status", "by_model"
BY_TERM = "by_term"  # an array: one text for each term of `core.domain.record_lists`

RawKey, RawEntity, RawValue = Key.pb(), Entity.pb(), Value.pb()
_PathElement = Key.PathElement.pb()


class Keys:
    """Makes the keys of one database. The namespace of a tenant is `prefix` and its name."""

    def __init__(self, project: str, database: str, prefix: str) -> None:
        self.project = project
        self.database = database
        self.prefix = prefix

    def namespace(self, tenant: str) -> str:
        return f"{self.prefix}{tenant}"

    def partition(self, namespace: str) -> Any:
        return PartitionId.pb()(
            project_id=self.project, database_id=self.database, namespace_id=namespace
        )

    def path(self, namespace: str, *pairs: tuple[str, str]) -> Any:
        """The key with these pairs of kind and name."""
        return RawKey(
            partition_id=self.partition(namespace),
            path=[_PathElement(kind=kind, name=name) for kind, name in pairs],
        )

    @property
    def tenants_namespace(self) -> str:
        """The namespace of the list of tenants. The name of a tenant has no underscore."""
        return f"{self.prefix}_tenants"

    def tenant(self, tenant: str) -> Any:
        return self.path(self.tenants_namespace, (TENANT_KIND, tenant))

    def image(self, tenant: str, image_hash: str) -> Any:
        return self.path(self.namespace(tenant), (IMAGE_KIND, image_hash))

    def record(self, key: RecordKey) -> Any:
        return self.path(
            self.namespace(key.tenant), (IMAGE_KIND, key.image_hash), (RECORD_KIND, key.model)
        )

    def deletion(self, image: ImageKey) -> Any:
        pairs = ((IMAGE_KIND, image.image_hash), (DELETION_KIND, "deletion"))
        return self.path(self.namespace(image.tenant), *pairs)

    def tenant_of(self, raw: Any) -> str:
        namespace: str = raw.partition_id.namespace_id
        return namespace.removeprefix(self.prefix)

    def key_of(self, raw: Any) -> RecordKey:
        return RecordKey(self.tenant_of(raw), raw.path[0].name, raw.path[1].name)


def entity_of(record: Record, key: Any) -> Any:
    """The entity to store under the raw `key`."""
    entity = RawEntity(key=key)
    fields = entity.properties
    set_text(fields["status"], record.status.value)
    if record.annotations:
        set_text(fields["annotations"], json.dumps([asdict(each) for each in record.annotations]))
    if record.categories:
        set_text(fields["categories"], json.dumps([asdict(each) for each in record.categories]))
    if record.confident is not None:
        set_flag(fields["confident"], record.confident)
    if record.output:
        set_text(fields["output"], record.output)
    if record.error is not None:
        set_text(fields["error"], json.dumps(asdict(record.error)))
    set_number(fields["attempts"], record.attempts)
    set_number(fields["token"], record.token)
    set_time(fields["created_at"], record.created_at)
    set_time(fields["updated_at"], record.updated_at)
    set_time(fields["submitted_at"], record.submitted_at)
    if record.priority is not Priority.HIGH:
        set_text(fields["priority"], record.priority.value)
    if record.job:
        set_text(fields["job"], record.job)
    if record.claims:
        set_number(fields["claims"], record.claims)
    _set_optional_times(fields, record)
    if not record.status.terminal:
        fields[UNFINISHED].timestamp_value.FromDatetime(record.updated_at)
    sort_key = record.sort_key
    fields[BY_AGE].string_value = sort_key
    fields[BY_STATUS].string_value = f"{record.status}:{sort_key}"
    fields[BY_MODEL].string_value = f"{record.key.model}:{sort_key}"
    if record.status is Status.SUCCESS:
        terms = fields[BY_TERM].array_value.values
        for term in terms_of(record):
            terms.add(string_value=f"{hashed_term(term)}:{sort_key}")
    return entity


def _set_optional_times(fields: Any, record: Record) -> None:
    for name in ("lease_expires_at", "republished_at"):
        if (moment := getattr(record, name)) is not None:
            set_time(fields[name], moment)


def hashed_term(term: str) -> str:
    """A term as 16 hex digits: an indexed text has at most 1,500 bytes, and a label any length."""
    return hashlib.sha256(term.encode()).hexdigest()[:16]


def record_of(entity: Any, keys: Keys) -> Record:
    """The inverse of `entity_of`."""
    fields = entity.properties
    error = json.loads(fields["error"].string_value) if "error" in fields else None
    return Record(
        key=keys.key_of(entity.key),
        status=Status(fields["status"].string_value),
        annotations=_annotations_of(fields, "annotations"),
        categories=_annotations_of(fields, "categories"),
        confident=fields["confident"].boolean_value if "confident" in fields else None,
        output=fields["output"].string_value if "output" in fields else "",
        error=None if error is None else RecordError(**error),
        attempts=fields["attempts"].integer_value,
        token=fields["token"].integer_value,
        lease_expires_at=moment_of(fields["lease_expires_at"])
        if "lease_expires_at" in fields
        else None,
        created_at=moment_of(fields["created_at"]),
        updated_at=moment_of(fields["updated_at"]),
        submitted_at=moment_of(fields["submitted_at"]),
        priority=Priority(fields["priority"].string_value)
        if "priority" in fields
        else Priority.HIGH,
        job=fields["job"].string_value if "job" in fields else "",
        claims=fields["claims"].integer_value if "claims" in fields else 0,
        republished_at=moment_of(fields["republished_at"]) if "republished_at" in fields else None,
    )


def entity_of_deletion(deletion: Deletion, key: Any) -> Any:
    """The entity to store under the raw `key`."""
    entity = RawEntity(key=key)
    set_text(entity.properties["stage"], deletion.stage)
    set_number(entity.properties["token"], deletion.token)
    set_text(entity.properties["owner"], deletion.owner)
    entity.properties[WAKE_AT].timestamp_value.FromDatetime(deletion.wake_at)
    return entity


def deletion_of(entity: Any, keys: Keys) -> Deletion:
    """The inverse of `entity_of_deletion`."""
    image = ImageKey(keys.tenant_of(entity.key), entity.key.path[0].name)
    fields = entity.properties
    return Deletion(
        image,
        fields["token"].integer_value,
        Stage(fields["stage"].string_value),
        moment_of(fields[WAKE_AT]),
        fields["owner"].string_value if "owner" in fields else "",
    )


def _annotations_of(fields: Any, name: str) -> tuple[Annotation, ...]:
    if name not in fields:
        return ()
    return tuple(Annotation(**each) for each in json.loads(fields[name].string_value))


def time_value(moment: datetime) -> Any:
    """Datastore has microseconds, like datetime."""
    value = RawValue()
    value.timestamp_value.FromDatetime(moment)
    return value


def set_text(value: Any, text: str) -> None:
    """Set the value of a property without an index, like the four functions below."""
    value.string_value, value.exclude_from_indexes = text, True


def set_blob(value: Any, data: bytes) -> None:
    value.blob_value, value.exclude_from_indexes = data, True


def set_number(value: Any, number: int) -> None:
    value.integer_value, value.exclude_from_indexes = number, True


def set_flag(value: Any, flag: bool) -> None:
    value.boolean_value = flag
    value.exclude_from_indexes = True


def set_time(value: Any, moment: datetime) -> None:
    value.timestamp_value.FromDatetime(moment)
    value.exclude_from_indexes = True


def moment_of(value: Any) -> datetime:
    moment: datetime = value.timestamp_value.ToDatetime(tzinfo=UTC)
    return moment
