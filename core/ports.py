"""The ports: small protocols that a backend implements, independent of any vendor.

Every method may raise `core.errors.Unavailable` (retryable); no vendor error leaves a backend.
`tests/contract` runs one suite against each backend.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Protocol, TypeVar

from core.domain.api_keys import ApiKey
from core.domain.channels import Channel
from core.domain.dead_letters import DeadLetter, LetterFilter, LetterKey
from core.domain.deletions import Deletion
from core.domain.jobs import ItemState, Job, JobFilter, JobItem, JobKey
from core.domain.messages import Message
from core.domain.rate_limits import Grant, Limit, TenantLimits
from core.domain.record_lists import RecordFilter, RecordPage
from core.domain.records import Claim, ImageKey, Record, RecordError, RecordKey
from core.domain.trained_models import ModelKey, TrainedModel
from core.domain.transitions import Transition
from core.domain.usage import Usage, UsageBatch
from core.domain.webhooks import Webhook, WebhookKey

K_contra = TypeVar("K_contra", contravariant=True)
T = TypeVar("T")


class Store(Protocol[K_contra, T]):
    """What the stores share: the domain decides, they apply."""

    async def get(self, key: K_contra) -> T | None: ...

    async def change(self, key: K_contra, transition: Transition[T]) -> T | None:
        """Apply a transition in a transaction, durably if it says so.

        Returns the state after it, or None if it is refused or if nothing is stored under `key`.
        What is written survives the death of every process. A power loss may undo the newest writes
        that are not durable.
        """
        ...


class RecordStore(Store[RecordKey, Record], Protocol):
    """Records (`core.domain.records`)."""

    async def get_many(self, keys: Sequence[RecordKey]) -> Mapping[RecordKey, Record]:
        """The records that exist, of any number of keys, with few requests.

        A key may occur twice. The records may be of different instants.
        """
        ...

    async def create(self, record: Record) -> bool:
        """Store a new record, durably. Returns False if the key already exists."""
        ...

    async def list(self, wanted: RecordFilter, limit: int, after: str = "") -> RecordPage:
        """At most `limit` records, newest first; only those after the sort key `after`.

        The cost depends on `limit`, not on the number of records (`core.domain.record_lists`).
        """
        ...

    async def stale(self, before: datetime, limit: int) -> Sequence[Record]:
        """At most `limit` non-terminal records last updated before `before`, oldest first.

        If there are more, they are taken in turns from the tenants, so that no tenant with many
        delays the others.
        """
        ...

    async def of_image(self, tenant: str, image_hash: str) -> Sequence[Record]:
        """The image's records under every model."""
        ...

    async def discard(self, claim: Claim) -> bool:
        """Delete the record that is claimed, durably.

        Returns False if `records.discardable` refuses.
        """
        ...

    async def begin_deletion(self, image: ImageKey, owner: str, *, has_blob: bool) -> Deletion:
        """Delete the image's records under every model, and note that its bytes are next.

        One transaction, durably. Raises NotFound if there is no record and `has_blob` is false,
        and Conflict while another process deletes the image. A repeated call with the same `owner`
        (`deletions.new_owner`) returns the deletion that the first one began.
        """
        ...

    async def end_deletion(self, deletion: Deletion) -> bool:
        """Note that the image's bytes are deleted.

        Returns False if another deletion has begun since.
        """
        ...

    async def deletion(self, image: ImageKey) -> Deletion | None:
        """The newest deletion of the image, if it is still remembered."""
        ...

    async def get_with_deletion(self, key: RecordKey) -> tuple[Record | None, Deletion | None]:
        """`get` and `deletion` in one request, not of one instant."""
        ...

    async def due_deletions(self, now: datetime, limit: int) -> Sequence[Deletion]:
        """At most `limit` deletions of all tenants whose `wake_at` is not after `now`."""
        ...

    async def clean_up_deletion(self, image: ImageKey, owner: str) -> Deletion | None:
        """Apply `deletions.clean_up` in a transaction, if the deletion is due.

        Returns the deletion if the caller must delete the image's bytes once more, and end it. So
        does a repeated call with the same `owner`.
        """
        ...

    async def delete_model(self, tenant: str, model: str, limit: int) -> int:
        """Delete at most `limit` of the tenant's records under this model. Returns how many."""
        ...

    async def ping(self) -> None:
        """Return if the store answers, else raise Unavailable."""
        ...


class BlobStore(Protocol):
    """Private, immutable blobs, named by content, so that a repeated `put` changes nothing."""

    async def put(self, name: str, data: bytes | bytearray, content_type: str) -> None: ...

    async def get(self, name: str) -> bytes:
        """The bytes. Raises NotFound if there is no such blob."""
        ...

    def file(self, name: str) -> Path | None:
        """The path of the blob's file, which other local processes may read.

        None if blobs are not files. Checks nothing: the file may not exist.
        """
        ...

    async def exists(self, name: str) -> bool: ...

    async def delete(self, name: str) -> bool:
        """Delete the blob. Returns False if there is none."""
        ...

    async def signed_url(self, name: str, expires_in: timedelta) -> str:
        """A link that reads the blob without other credentials until it expires."""
        ...

    async def free_bytes(self) -> int | None:
        """The free space, or None if storage grows."""
        ...

    async def ping(self) -> None:
        """Return if the store answers and has space for an upload.

        Else raise Unavailable, or DiskFull.
        """
        ...


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object in a bucket; `size` in bytes."""

    name: str
    size: int


class ObjectSource(Protocol):
    """Objects in other buckets, as far as the account of the service may read them."""

    async def list(self, bucket: str, prefix: str, limit: int) -> Sequence[StoredObject]:
        """At most `limit` objects whose names start with `prefix`, ordered by name.

        Without the names that end in a slash, which stand for folders. Raises NotFound if there
        is no such bucket.
        """
        ...

    async def read(self, bucket: str, name: str, max_bytes: int) -> bytes:
        """The object's bytes as stored; of a larger object the first `max_bytes + 1`.

        Raises NotFound if there is no such object.
        """
        ...


@dataclass(frozen=True, slots=True)
class Backlog:
    """Messages that wait for a delivery; `oldest_age` is in seconds."""

    messages: int
    oldest_age: float


class Publisher(Protocol):
    """`system` names the queue in traces (OpenTelemetry's `messaging.system`)."""

    system: str

    def topic(self, channel: Channel) -> str:
        """The name of the channel's topic."""
        ...

    async def publish(self, message: Message) -> str:
        """Publish the message, durably. Returns its id in the queue."""
        ...

    async def ping(self) -> None: ...

    async def backlog(self) -> Backlog | None:
        """The backlog of the image channels, or None if Cloud Monitoring has it."""
        ...


class JobStore(Store[JobKey, Job], Protocol):
    """Jobs and their items (`core.domain.jobs`)."""

    async def create(self, job: Job) -> bool:
        """Store a new job, durably. Returns False if the id exists."""
        ...

    async def add_items(self, key: JobKey, items: Sequence[JobItem]) -> None:
        """Store items of an unsealed job, durably. Items whose position is taken stay as stored."""
        ...

    async def get_many(self, keys: Sequence[JobKey]) -> Mapping[JobKey, Job]:
        """The jobs that exist, of any number of keys, with few requests."""
        ...

    async def list(self, wanted: JobFilter, limit: int, after: str = "") -> Sequence[Job]:
        """At most `limit` sealed jobs, newest first; only those after the sort key `after`."""
        ...

    async def items(
        self, key: JobKey, limit: int, after: int = -1, state: ItemState | None = None
    ) -> Sequence[JobItem]:
        """At most `limit` items after the position `after`, in order."""
        ...

    async def complete_item(
        self, key: JobKey, position: int, error: RecordError | None, interval: timedelta
    ) -> Job | None:
        """End an open item: as failed with `error`, otherwise as succeeded.

        Then `refresh_counts`. A power loss may undo the newest: the item is open then, and its
        message is published again.
        """
        ...

    async def complete_items(self, key: JobKey, outcomes: Mapping[int, RecordError | None]) -> None:
        """Like `complete_item` for each of these positions, without counting."""
        ...

    async def refresh_counts(self, key: JobKey, interval: timedelta = timedelta(0)) -> Job | None:
        """Count the items if `jobs.count_is_due`. Returns the job if that changed it.

        A count without open items completes the job.
        """
        ...

    async def due(self, now: datetime, limit: int) -> Sequence[Job]:
        """At most `limit` jobs of all tenants whose `wake_at` is not after `now`, oldest first.

        If there are more, they are taken in turns from the tenants.
        """
        ...

    async def delete(self, key: JobKey) -> bool:
        """Delete the job and its items, durably. Returns False if there is none."""
        ...


class DeadLetterStore(Store[LetterKey, DeadLetter], Protocol):
    """Dead letters by tenant, until they are deleted or purged (`core.domain.dead_letters`)."""

    async def add(self, letter: DeadLetter) -> bool:
        """Store a new letter, durably. Returns False and changes nothing if its key exists."""
        ...

    async def list(self, wanted: LetterFilter, limit: int, after: str = "") -> Sequence[DeadLetter]:
        """At most `limit` letters, newest first; only those after the sort key `after`."""
        ...

    async def delete(self, key: LetterKey) -> bool:
        """Delete the letter, durably. Returns False if there is none."""
        ...

    async def purge(self, before: datetime, limit: int) -> int:
        """Delete at most `limit` letters that died before `before`, of all tenants.

        Returns how many.
        """
        ...


class WebhookStore(Store[WebhookKey, Webhook], Protocol):
    """Webhooks by tenant, with their secrets (`core.domain.webhooks`)."""

    async def create(self, webhook: Webhook, most: int) -> bool:
        """Store a new webhook, durably.

        Returns False if its key exists or the tenant has `most`.
        """
        ...

    async def list(self, tenant: str) -> list[Webhook]:
        """All webhooks of the tenant, oldest first."""
        ...

    async def delete(self, key: WebhookKey) -> bool:
        """Delete the webhook, durably. Returns False if there is none."""
        ...


class ModelStore(Store[ModelKey, TrainedModel], Protocol):
    """Trained models by tenant (`core.domain.trained_models`)."""

    async def create(self, model: TrainedModel) -> bool:
        """Store a new model, durably. Returns False if its key exists."""
        ...

    async def list(self, tenant: str) -> Sequence[TrainedModel]:
        """All models of the tenant, ordered by name."""
        ...

    async def delete(self, key: ModelKey) -> bool:
        """Delete the model, durably. Returns False if there is none."""
        ...

    async def add_base(self, tenant: str, base: str) -> None:
        """Note, durably, that the tenant may have embeddings under this base model."""
        ...

    async def bases(self, tenant: str) -> Sequence[str]:
        """The base models that were added, in order."""
        ...


# --- What the API needs if API keys are required. ----------------------------------------------


class KeyStore(Store[str, ApiKey], Protocol):
    """API keys, by id (`core.domain.api_keys`)."""

    async def create(self, key: ApiKey) -> bool:
        """Store a new key, durably. Returns False if the id exists."""
        ...

    async def keys(self, tenant: str | None = None) -> list[ApiKey]:
        """All keys of a tenant, or of all tenants, oldest first."""
        ...

    async def limits(self, tenant: str) -> TenantLimits:
        """The limits of a tenant."""
        ...

    async def set_limits(self, tenant: str, limits: TenantLimits) -> None:
        """Replace the limits of a tenant, durably."""
        ...


class AllowanceStore(Protocol):
    """The shares of limits, across processes (`core.domain.rate_limits`)."""

    async def reserve(self, owner: str, limit: Limit, spent: int = 0) -> Grant:
        """Count `spent` units of a limit, and reserve its next share. `owner` has the limit."""
        ...


class UsageStore(Protocol):
    """Usage counts by key and day (`core.domain.usage`)."""

    async def add(self, batch: UsageBatch) -> None:
        """Add the counts of a batch to the stored ones, once.

        After an error, the batch may have been added. Adding it again is safe.
        """
        ...

    async def read(self, tenant: str, since: date) -> list[Usage]:
        """The tenant's counts from this day on, ordered by day and key."""
        ...

    async def purge(self, before: date, limit: int) -> int:
        """Delete at most `limit` counts of all tenants, of days before this. Returns how many."""
        ...
