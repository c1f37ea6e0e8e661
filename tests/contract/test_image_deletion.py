"""Deletions and uploads of one image by two services on one store, in every order of their steps.

P1 and P5: afterwards either the whole image is stored and its message is published, or nothing of
the image is left.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import pytest

from app.images.submission import SubmittedImage, submit
from core.backends import Backend
from core.domain import deletions
from core.domain.channels import Channel
from core.domain.deletions import Deletion, Stage
from core.domain.messages import ClassifyImage, Message
from core.domain.records import (
    Annotation,
    Record,
    RecordKey,
    Status,
    advance,
    complete,
    embedding_name,
    new_record,
    thumbnail_name,
)
from core.errors import Conflict, NotFound, Unavailable
from core.ports import Publisher
from core.services.image_deletion import (
    DELETE_SECONDS,
    complete_unconfirmed,
    delete_image,
    process_due_deletion,
)
from core.settings import Settings
from tests.support.clock import MovableClock
from tests.support.faults import Once, watched
from tests.support.interleavings import Death, Run, every_order, run_in_order, some_orders
from tests.support.pictures import picture, sha256
from tests.support.records import claimed
from worker.tasks.reconcile import MAX_RECORDS, reconcile

MODEL = "m@0123456789ab"
BASES = ("base@0123456789ab", "other@0123456789ab")  # models with embeddings of the images
POLL = "records.deletion"
EMULATED_ORDERS, EMULATED_ORDERS_OF_A_DEATH = 12, 4
UPLOAD, DELETE = "upload", "delete"
OWNER, OTHER = "00000000000000aa", "00000000000000bb"  # calls that begin a deletion


class Lost:
    """The first answer of one method is lost, after the call took effect."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.answers = 0

    async def __call__(self, name: str, ended: bool) -> None:
        if (name, ended) == (self.name, True) and not self.answers:
            self.answers += 1
            raise Unavailable("The answer is lost.")


class Messages:
    """A publisher that keeps the messages."""

    system = "test"

    def __init__(self) -> None:
        self.keys: list[RecordKey] = []

    def topic(self, channel: Channel) -> str:
        return channel.name

    async def publish(self, message: Message) -> str:
        assert isinstance(message, ClassifyImage)
        self.keys.append(message.key)
        return "1"

    async def ping(self) -> None:
        pass

    async def backlog(self) -> None:
        return None


@dataclass
class Services:
    """Two services on one store. Each run uses another image."""

    backend: Backend
    messages: Messages
    clock: MovableClock
    settings: Settings
    number: int = 0

    def next_image(self) -> SubmittedImage:
        self.number += 1
        data = picture(self.number, size=(8, 8))
        return SubmittedImage(RecordKey("public", sha256(data), MODEL), data, "image/jpeg")

    async def upload(self, backend: Backend, image: SubmittedImage) -> Record:
        return await submit(backend, image, 10**6, self.clock, self.settings.delivery)

    async def run(
        self, image: SubmittedImage, order: Sequence[int], dies: tuple[str, int] = ("", 0)
    ) -> Run:
        actors: dict[str, Callable[[Backend], Awaitable[object]]] = {
            UPLOAD: lambda backend: self.upload(backend, image),
            DELETE: lambda backend: delete_image(backend, image.key.image, self.clock),
        }
        return await run_in_order(self.backend, actors, order, POLL, "publisher.", dies)

    def orders(
        self,
        new_run: Callable[[Sequence[int]], Awaitable[Run]],
        emulated: int = EMULATED_ORDERS,
    ) -> AsyncIterator[Run]:
        """Every order; on an emulator, which takes a second for each, some."""
        if self.settings.backend == "embedded":
            return every_order(new_run)
        return some_orders(new_run, emulated)

    async def check(self, image: SubmittedImage, run: Run) -> bool:
        """All or nothing is stored; whether the image is."""
        record = await self.backend.records.get(image.key)
        stored = await self.backend.blobs.exists(image.key.blob_name)
        assert stored == (record is not None), run.calls
        if record is not None:
            assert record.status is Status.SUCCESS or image.key in self.messages.keys, run.calls
        deletion = await self.backend.records.deletion(image.key.image)
        assert deletion is None or not deletion.in_progress, run.calls
        return stored

    async def store_bytes(self, image: SubmittedImage) -> None:
        assert image.data is not None
        await self.backend.blobs.put(image.key.blob_name, image.data, image.content_type)

    async def reconcile(self) -> None:
        now = self.clock.move(self.settings.delivery.stale_after + 1)
        await reconcile(self.backend, self.settings.delivery, now)


@pytest.fixture
def services(
    backend: Backend, settings: Settings, clock: MovableClock, monkeypatch: pytest.MonkeyPatch
) -> Services:
    for pause in ("MIN_POLL_SECONDS", "MAX_POLL_SECONDS"):
        monkeypatch.setattr(f"core.services.image_deletion.{pause}", 0)
    monkeypatch.setattr("core.services.image_deletion.RETRY_PAUSES", (0, 0))
    monkeypatch.setattr("core.services.image_deletion.UNCONFIRMED_PAUSES", (0, 0))
    messages = Messages()
    publisher: Publisher = messages
    return Services(replace(backend, publisher=publisher), messages, clock, settings)


async def absent(services: Services, image: SubmittedImage) -> None:
    pass


async def queued(services: Services, image: SubmittedImage) -> None:
    await services.upload(services.backend, image)
    await services.backend.records.change(image.key, advance(Status.PENDING, Status.QUEUED))


async def finished(services: Services, image: SubmittedImage) -> None:
    await services.upload(services.backend, image)
    claim = await claimed(services.backend.records, image.key, services.settings.lease)
    assert claim is not None
    result = [Annotation(1, "red", 1.0)]
    assert await services.backend.records.change(image.key, complete(claim, result))


async def half_uploaded(services: Services, image: SubmittedImage) -> None:
    """Another upload has died before it published its message."""
    run = await services.run(image, [0] * 3, dies=(UPLOAD, 5))
    assert isinstance(run.outcomes[UPLOAD], Death)


async def deleted_before(services: Services, image: SubmittedImage) -> None:
    await services.upload(services.backend, image)
    await delete_image(services.backend, image.key.image, services.clock)


Before = Callable[[Services, SubmittedImage], Awaitable[None]]


@pytest.mark.parametrize("before", [absent, queued, finished, half_uploaded, deleted_before])
async def test_upload_and_deletion_in_every_order(services: Services, before: Before) -> None:
    seen = {True: 0, False: 0}

    async def new_run(order: Sequence[int]) -> Run:
        image = services.next_image()
        await before(services, image)
        services.messages.keys.clear()
        run = await services.run(image, order)
        uploaded, deleted = run.outcomes[UPLOAD], run.outcomes[DELETE]
        assert isinstance(uploaded, Record), (run.calls, uploaded)
        assert deleted is None or isinstance(deleted, NotFound), (run.calls, deleted)
        if before is not queued and before is not finished:  # they publish nothing here
            assert image.key in services.messages.keys
        else:
            services.messages.keys.append(image.key)  # the first upload's
        stored = await services.check(image, run)
        seen[stored] += 1
        actors = [actor for actor, _ in run.calls]
        if actors == sorted(actors, reverse=True):  # the upload has ended first
            assert not stored, run.calls
        if actors == sorted(actors):
            assert stored, run.calls
        return run

    orders = [tuple(run.calls) async for run in services.orders(new_run)]
    if services.settings.backend == "embedded":
        # An upload of a finished image makes only two calls.
        assert len(set(orders)) == len(orders) > (4 if before is finished else 10)
    else:
        assert len(orders) > 10
    assert seen[True]
    assert seen[False] or services.settings.backend != "embedded"


@pytest.mark.parametrize("call", ["blobs.put", "publisher.publish", "records.get_with_deletion"])
async def test_deletion_is_noticed_behind_the_record_of_a_third_service(
    services: Services, call: str
) -> None:
    """It begins another upload after the deletion, and dies before it stores the bytes."""
    image = services.next_image()

    async def delete_and_begin_again() -> None:
        await delete_image(services.backend, image.key.image, services.clock)
        assert await services.backend.records.create(new_record(image.key, services.clock()))

    hooked = watched(services.backend, Once(call, 1, delete_and_begin_again))
    assert await services.upload(hooked, image)
    assert await services.backend.blobs.exists(image.key.blob_name)


@pytest.mark.parametrize("dying", [UPLOAD, DELETE])
async def test_death_of_one_service_leaves_nothing_half_done(
    services: Services, dying: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the reconciler has run, in every order, and for a death before each call."""
    monkeypatch.setattr("core.services.image_deletion.WAIT_SECONDS", 0)
    runs: list[tuple[SubmittedImage, Run]] = []

    async def all_orders(number: int) -> bool:
        """Whether the service has so many calls."""

        async def new_run(order: Sequence[int]) -> Run:
            image = services.next_image()
            await services.backend.records.create(new_record(image.key, services.clock()))
            await services.store_bytes(image)
            run = await services.run(image, order, (dying, number))
            runs.append((image, run))
            return run

        orders = services.orders(new_run, EMULATED_ORDERS_OF_A_DEATH)
        return any([isinstance(run.outcomes[dying], Death) async for run in orders])

    number = 1
    while await all_orders(number):
        number += 1
    assert number > 3
    other = DELETE if dying == UPLOAD else UPLOAD
    for _ in range(2 + len(runs) // MAX_RECORDS):
        await services.reconcile()
        services.clock.move(deletions.CLEAN_UP_AFTER.total_seconds())
    for image, run in runs:
        outcome = run.outcomes[other]
        assert outcome is None or isinstance(outcome, Record | Unavailable), outcome
        if isinstance(outcome, Record):
            await services.check(image, run)
        elif not await services.backend.records.get(image.key):
            assert not await services.backend.blobs.exists(image.key.blob_name), run.calls


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "call", ["records.begin_deletion", "blobs.delete", "models.bases", "records.end_deletion"]
)
async def test_transient_error_does_not_leave_a_deletion_in_progress(
    services: Services, call: str, after: bool
) -> None:
    """Otherwise, uploads and deletions of the image would wait for its lease."""
    image = services.next_image()
    await services.upload(services.backend, image)
    failed = 0

    async def fail_once(name: str, ended: bool) -> None:
        nonlocal failed
        if (name, ended) == (call, after) and not failed:
            failed += 1
            raise Unavailable("A fault was injected.")

    faulty = watched(services.backend, fail_once)
    await delete_image(faulty, image.key.image, services.clock)
    assert failed
    deletion = await services.backend.records.deletion(image.key.image)
    assert deletion is not None
    assert not deletion.in_progress
    assert not await services.backend.blobs.exists(image.key.blob_name)
    assert await services.upload(services.backend, image)


def without_answers(services: Services, call: str) -> Backend:
    """The backend after which `call` takes effect each time, and each answer is lost."""

    async def fail(name: str, ended: bool) -> None:
        if (name, ended) == (call, True):
            raise Unavailable("The answer is lost.")

    return watched(services.backend, fail)


@pytest.mark.parametrize("call", ["records.begin_deletion", "blobs.delete", "records.end_deletion"])
async def test_deletion_without_an_answer_is_completed_afterwards(
    services: Services, call: str
) -> None:
    """Uploads and deletions of the image need not wait for its lease."""
    image = services.next_image()
    await services.upload(services.backend, image)
    faulty = without_answers(services, call)
    with pytest.raises(Unavailable):
        await delete_image(faulty, image.key.image, services.clock, OWNER)
    await complete_unconfirmed(services.backend, image.key.image, OWNER, services.clock)
    deletion = await services.backend.records.deletion(image.key.image)
    assert deletion is not None
    assert not deletion.in_progress
    assert deletion.token == 1
    assert not await services.backend.blobs.exists(image.key.blob_name)
    with pytest.raises(NotFound):
        await delete_image(services.backend, image.key.image, services.clock)
    assert await services.upload(services.backend, image)


async def test_deletion_that_has_not_begun_does_not_begin_afterwards(services: Services) -> None:
    """An upload was accepted since the deletion failed."""
    image = services.next_image()
    await services.upload(services.backend, image)

    async def fail(name: str, ended: bool) -> None:
        if name == "records.begin_deletion":
            raise Unavailable("A fault was injected.")

    with pytest.raises(Unavailable):
        faulty = watched(services.backend, fail)
        await delete_image(faulty, image.key.image, services.clock, OWNER)
    assert await services.upload(services.backend, image)
    await complete_unconfirmed(services.backend, image.key.image, OWNER, services.clock)
    assert await services.backend.records.get(image.key) is not None
    assert await services.backend.blobs.exists(image.key.blob_name)


@pytest.mark.parametrize("seconds", [0.0, deletions.LEASE.total_seconds() - DELETE_SECONDS + 1])
async def test_deletion_is_left_to_others_when_its_lease_is_about_to_expire(
    services: Services, seconds: float
) -> None:
    image = services.next_image()
    await services.upload(services.backend, image)
    await services.backend.records.begin_deletion(image.key.image, OWNER, has_blob=True)
    services.clock.move(seconds)
    await complete_unconfirmed(services.backend, image.key.image, OWNER, services.clock)
    deletion = await services.backend.records.deletion(image.key.image)
    assert deletion is not None
    assert deletion.in_progress is bool(seconds)


async def test_upload_after_a_deletion_whose_end_was_not_confirmed_is_kept(
    services: Services,
) -> None:
    """The deletion tries again, but deletes no bytes of an upload that was accepted since."""
    image = services.next_image()
    await services.upload(services.backend, image)
    accepted: list[Record] = []

    async def upload_and_fail(name: str, ended: bool) -> None:
        if (name, ended) == ("records.end_deletion", True) and not accepted:
            accepted.append(await services.upload(services.backend, image))
            raise Unavailable("The answer is lost.")

    faulty = watched(services.backend, upload_and_fail)
    await delete_image(faulty, image.key.image, services.clock)
    assert accepted
    assert await services.backend.records.get(image.key)
    assert await services.backend.blobs.exists(image.key.blob_name)


# --- What belongs to an image ---------------------------------------------------------------------


def names_of(image: SubmittedImage, bases: Sequence[str] = BASES) -> list[str]:
    """The blobs that an image may have."""
    tenant, image_hash = image.key.image
    embeddings = [embedding_name(tenant, base, image_hash) for base in bases]
    return [image.key.blob_name, thumbnail_name(tenant, image_hash), *embeddings]


async def store_everything(services: Services, image: SubmittedImage) -> None:
    assert image.data is not None
    for base in BASES:
        await services.backend.models.add_base("public", base)
    for name in names_of(image):
        await services.backend.blobs.put(name, image.data, "image/jpeg")


async def stored_names(services: Services, image: SubmittedImage) -> list[str]:
    return [each for each in names_of(image) if await services.backend.blobs.exists(each)]


async def by_request(services: Services, image: SubmittedImage) -> None:
    await store_everything(services, image)
    await delete_image(services.backend, image.key.image, services.clock)


async def after_a_death(services: Services, image: SubmittedImage) -> None:
    """The process of the deletion dies, and the reconciler completes it."""
    await store_everything(services, image)
    await services.backend.records.begin_deletion(image.key.image, OWNER, has_blob=True)
    await services.reconcile()


async def after_the_deletion(services: Services, image: SubmittedImage) -> None:
    """A worker that was busy with the image stores a thumbnail and embeddings afterwards."""
    await delete_image(services.backend, image.key.image, services.clock)
    await store_everything(services, image)
    services.clock.move(deletions.CLEAN_UP_AFTER.total_seconds())
    await services.reconcile()


@pytest.mark.parametrize("delete", [by_request, after_a_death, after_the_deletion])
async def test_deletion_leaves_no_thumbnail_and_no_embedding(
    services: Services, delete: Before
) -> None:
    image, other = services.next_image(), services.next_image()
    for each in (image, other):
        await services.upload(services.backend, each)
    await store_everything(services, other)
    await delete(services, image)
    assert await stored_names(services, image) == []
    assert await stored_names(services, other) == names_of(other)


# --- The store ------------------------------------------------------------------------------------


async def test_one_of_two_deletions_waits_for_the_other(
    services: Services, clock: MovableClock
) -> None:
    records, image = services.backend.records, services.next_image()
    await services.upload(services.backend, image)
    first = await records.begin_deletion(image.key.image, OWNER, has_blob=True)
    assert first == Deletion(image.key.image, 1, Stage.DELETING, clock() + deletions.LEASE, OWNER)
    with pytest.raises(Conflict):
        await records.begin_deletion(image.key.image, OTHER, has_blob=True)
    clock.move(deletions.LEASE.total_seconds())
    second = await records.begin_deletion(image.key.image, OTHER, has_blob=True)
    assert second.token == 2
    assert not await records.end_deletion(first)
    assert await records.end_deletion(second)
    assert not await records.end_deletion(second)


async def test_repeated_beginning_of_a_deletion_is_recognised(
    services: Services, clock: MovableClock
) -> None:
    """Its answer was lost. The record of an upload that waits for the deletion stays."""
    records, image = services.backend.records, services.next_image()
    assert await records.create(new_record(image.key, clock()))
    first = await records.begin_deletion(image.key.image, OWNER, has_blob=False)
    assert await records.create(new_record(image.key, clock()))
    clock.move(1)
    assert await records.begin_deletion(image.key.image, OWNER, has_blob=False) == first
    assert await records.get(image.key) is not None
    assert await records.end_deletion(first)
    assert (await records.begin_deletion(image.key.image, OWNER, has_blob=False)).token == 2


async def test_repeated_clean_up_of_a_deletion_is_recognised(
    services: Services, clock: MovableClock
) -> None:
    records, image = services.backend.records, services.next_image()
    await records.end_deletion(await records.begin_deletion(image.key.image, OWNER, has_blob=True))
    clock.move(deletions.CLEAN_UP_AFTER.total_seconds())
    first = await records.clean_up_deletion(image.key.image, OTHER)
    assert first is not None
    assert (first.stage, first.token) == (Stage.CLEANING, 2)
    clock.move(1)
    assert await records.clean_up_deletion(image.key.image, OTHER) == first
    assert await records.clean_up_deletion(image.key.image, OWNER) is None


async def test_clean_up_without_an_answer_does_not_block_the_image(
    services: Services, clock: MovableClock
) -> None:
    image = services.next_image()
    await services.upload(services.backend, image)
    await delete_image(services.backend, image.key.image, clock)
    clock.move(deletions.CLEAN_UP_AFTER.total_seconds())
    (due,) = await services.backend.records.due_deletions(clock(), 10)
    lost = Lost("records.clean_up_deletion")
    await process_due_deletion(watched(services.backend, lost), due)
    assert lost.answers == 1
    deletion = await services.backend.records.deletion(image.key.image)
    assert deletion is not None
    assert deletion.stage is Stage.CLEANED


async def test_due_deletion_is_cleaned_up_and_forgotten(
    services: Services, clock: MovableClock
) -> None:
    """Bytes that an upload stored before it died are deleted, unless they belong to a record."""
    records, image = services.backend.records, services.next_image()
    kept = services.next_image()
    for each in (image, kept):
        await services.upload(services.backend, each)
        await delete_image(services.backend, each.key.image, clock)
    await services.store_bytes(image)
    await services.upload(services.backend, kept)
    assert await records.due_deletions(clock(), 10) == []
    clock.move(deletions.CLEAN_UP_AFTER.total_seconds())
    due = await records.due_deletions(clock(), 10)
    assert {each.image for each in due} == {image.key.image, kept.key.image}
    assert len(await records.due_deletions(clock(), 1)) == 1
    for deletion in due:
        await process_due_deletion(services.backend, deletion)
        await process_due_deletion(services.backend, deletion)  # by two reconcilers
    assert not await services.backend.blobs.exists(image.key.blob_name)
    assert await services.backend.blobs.exists(kept.key.blob_name)
    found = [await records.deletion(each.key.image) for each in (image, kept)]
    assert [each and each.stage for each in found] == [Stage.CLEANED, Stage.CLEANED]
    assert [each and each.token for each in found] == [2, 1]
    assert await records.due_deletions(clock(), 10) == []
    clock.move(deletions.REMEMBER.total_seconds())
    for deletion in await records.due_deletions(clock(), 10):
        await process_due_deletion(services.backend, deletion)
    assert await records.deletion(image.key.image) is None
    assert await records.get(kept.key) is not None
