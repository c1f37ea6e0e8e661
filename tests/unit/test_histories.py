"""API, queue and worker together, through random histories (P1 to P4).

Two API processes' applications, one queue and one worker share a real data folder. The test is the
clock and the network: it decides what is delivered, how often, how late, and who dies in between.
After every step, and after everything was drained, the promises must hold.
"""

import asyncio
import sqlite3
import tempfile
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from core.backends.embedded import open_queue_store
from core.backends.embedded.queue import envelope
from core.backends.embedded.queue_store import (
    Acknowledged,
    DeadLettered,
    Message,
    Outcome,
    QueueStore,
    Refused,
    Slots,
)
from core.domain.channels import ALL_CHANNELS, DEAD_LETTERS, Lane
from core.domain.messages import ClassifyImage
from core.domain.policy import ACKNOWLEDGING_STATUS, RECONCILE_PATH
from core.domain.records import (
    Annotation,
    Claim,
    Record,
    RecordKey,
    Status,
    complete,
    new_record,
    retry,
)
from tests.support.api import Api, open_api
from tests.support.clock import MovableClock
from tests.support.pictures import picture, sha256
from tests.support.records import claimed, delete_image
from tests.support.worker import RunningWorker, running_worker, settings_in

# Thousands of steps, each of which writes to a disk: a busy machine takes minutes over them.
pytestmark = pytest.mark.timeout(900)

T = TypeVar("T")
ORDER = {status: rank for rank, status in enumerate(Status)}
ORDER[Status.ERROR] = ORDER[Status.SUCCESS]
COLOURS = {"red": (250, 5, 5), "green": (5, 250, 5), "blue": (5, 5, 250)}
DRAIN_ROUNDS = 20
MOST_IMAGES = 3
DELIVERY_SECONDS = 0.01
EVERYTHING = [Slots(50, ALL_CHANNELS)]
NUMBERS = st.integers(0, 9)


@dataclass
class World:
    """The parts of one Glimpse, opened once: each example uses images that no other has."""

    runner: asyncio.Runner
    clock: MovableClock
    apis: list[Api]
    worker: RunningWorker
    queue: QueueStore
    images: int = 0

    def wait(self, step: Coroutine[Any, Any, T]) -> T:
        # Not `Runner.run`, which sets a handler of SIGINT for each of 20,000 steps.
        return self.runner.get_loop().run_until_complete(step)


WORLD: list[World] = []  # hypothesis creates the machines, so they cannot get a fixture


@pytest.fixture(scope="module", autouse=True)
def world() -> Iterator[None]:
    clock = MovableClock()
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory() as folder,
        asyncio.Runner() as runner,
    ):
        patch.setattr("worker.tasks.classify_image.DUPLICATE_WAIT_SECONDS", 0.02)
        # A process must see at once that another has deleted an image.
        patch.setattr("app.images.service.CACHE_ENTRIES", 0)
        stack = AsyncExitStack()
        chosen = settings_in(Path(folder), worker_concurrency=1, delivery_attempts=2)

        async def opened() -> World:
            apis = [await stack.enter_async_context(open_api(chosen, clock)) for _ in range(2)]
            worker = await stack.enter_async_context(running_worker(chosen, clock))
            queue = await stack.enter_async_context(open_queue_store(chosen))
            return World(runner, clock, apis, worker, queue)

        try:
            WORLD.append(runner.run(opened()))
            yield
        finally:
            WORLD.clear()
            runner.run(stack.aclose())


@dataclass
class Image:
    """The model of one image."""

    data: bytes
    key: RecordKey
    label: str  # empty for a damaged image
    accepted: bool = False  # a client has a 202, and the attempt has not ended since
    exists: bool = False  # it has a record
    may_restart: bool = False  # this step may retry the record
    in_a_job: bool = False  # a job may end and retry the record in one step
    seen: Record | None = None


class Histories(RuleBasedStateMachine):
    """Clients upload, read and delete; messages are delivered or not; processes die."""

    images = Bundle("images")

    def __init__(self) -> None:
        super().__init__()
        self.world = WORLD[0]
        self.clock = self.world.clock
        self.policy = self.world.apis[0].settings.delivery
        self.records = self.world.worker.backend.records
        self.blobs = self.world.worker.backend.blobs
        self.known: list[Image] = []
        # Chosen by number, not from bundles: the interleaving of concurrent requests varies, but a
        # repetition must make the same choices.
        self.in_flight: list[Message] = []
        self.delivered: list[Message] = []
        self.claims: list[Claim] = []  # of workers that have died or stall

    # --- Clients ----------------------------------------------------------------------------------

    # Few images, so that each takes part in many steps.
    @initialize(target=images)
    def first_picture(self) -> Image:
        image = self._picture("red")
        self.world.wait(self._upload(image, 1))
        return image

    @initialize(target=images, steps=st.integers(1, 3))
    def second_picture(self, steps: int) -> Image:
        image = self._picture("green")
        self.world.wait(self._half_an_upload(image, steps))
        return image

    @precondition(lambda self: len(self.known) < MOST_IMAGES)
    @rule(target=images, label=st.sampled_from([*COLOURS, ""]))
    def another_picture(self, label: str) -> Image:
        return self._picture(label)

    def _picture(self, label: str) -> Image:
        self.world.images += 1
        data = picture(self.world.images, COLOURS.get(label, (9, 9, 9)), size=(48, 48))
        data = data if label else data[: len(data) * 9 // 10]
        image = Image(data, RecordKey("public", sha256(data), self.world.worker.model), label)
        self.known.append(image)
        return image

    @rule(image=images, times=st.integers(1, 3))
    def upload(self, image: Image, times: int) -> None:
        """Several clients upload it concurrently, to both processes."""
        self.world.wait(self._upload(image, times))

    async def _upload(self, image: Image, times: int) -> None:
        image.may_restart = True
        apis = self.world.apis
        answers = await asyncio.gather(
            *(
                apis[n % 2].client.post("/api/v1/images", content=image.data)
                for n in range(1, times + 1)
            )
        )
        for api in apis:
            await api.finish_submissions()
        image.exists = True
        for answer in answers:
            assert answer.status_code in (200, 202), answer.text
            image.accepted = image.accepted or answer.status_code == 202
            final = answer.json()["status"] in ("success", "error")
            assert final == (answer.status_code == 200)

    @rule(image=images, steps=st.integers(1, 3))
    def api_dies_during_an_upload(self, image: Image, steps: int) -> None:
        """After it creates the record, stores the blob, or publishes. No client gets an answer."""
        self.world.wait(self._half_an_upload(image, steps))

    async def _half_an_upload(self, image: Image, steps: int) -> None:
        backend = self.world.apis[0].services.backend
        record = await backend.records.get(image.key)
        if record is None:
            await backend.records.create(new_record(image.key, self.clock()))
        elif await backend.records.change(image.key, retry()):
            image.may_restart = True
            image.accepted = False  # the promised attempt has ended
        image.exists = True
        if steps > 1:
            await backend.blobs.put(image.key.blob_name, image.data, "image/jpeg")
        if steps > 2:
            await backend.publisher.publish(ClassifyImage(image.key))

    @rule(image=images)
    def delete(self, image: Image) -> None:
        api = self.world.apis[0]
        stored = self.world.wait(self.blobs.exists(image.key.blob_name))
        answer = self.world.wait(api.client.delete(f"/api/v1/images/{image.key.image_hash}"))
        assert answer.status_code == (204 if image.exists or stored else 404)
        image.exists = image.accepted = False
        image.seen = None

    # --- The queue --------------------------------------------------------------------------------

    @rule()
    def everything_is_delivered(self) -> None:
        for message in self.world.wait(
            self.world.queue.record_and_lease([], EVERYTHING, self.clock())
        ):
            self.world.wait(self._deliver(message))

    @rule()
    def all_deliveries_fail(self) -> None:
        """Every remaining delivery of each message fails."""
        now = self.clock.move(DELIVERY_SECONDS)
        messages = self.world.wait(self.world.queue.record_and_lease([], EVERYTHING, now))
        letters = [
            DeadLettered(m.id, "HTTP 503") for m in messages if m.channel is not DEAD_LETTERS
        ]
        notices = [Refused(m.id, now) for m in messages if m.channel is DEAD_LETTERS]
        self.world.wait(self.world.queue.record_and_lease([*letters, *notices], [], now))

    @rule(draw=NUMBERS, copies=st.integers(1, 2))
    def deliver(self, draw: int, copies: int) -> None:
        """Possibly twice concurrently; the queue gets one of the answers."""
        message = self._begun(draw)
        if message is not None:
            self.in_flight.remove(message)
            self.delivered.append(message)
            self.world.wait(self._deliver(message, copies))

    @rule(draw=NUMBERS)
    def deliver_old_message(self, draw: int) -> None:
        """Deliver an old message again; the queue does not get the answer."""
        if self.delivered:
            self.world.wait(self._push(self.delivered[draw % len(self.delivered)]))

    @rule(draw=NUMBERS)
    def refuse(self, draw: int) -> None:
        """The worker cannot be reached, or fails."""
        message = self._begun(draw)
        if message is not None:
            self.in_flight.remove(message)
            self.world.wait(self._settle(message, acknowledged=False))

    @rule()
    def queue_dies(self) -> None:
        """Messages in flight are delivered again."""
        self.in_flight.clear()
        self.world.wait(self.world.queue.release_leases())

    @rule(draw=NUMBERS)
    def replay_a_dead_letter(self, draw: int) -> None:
        self.world.wait(self._replay(draw))

    async def _replay(self, draw: int) -> None:
        letters = await self._letters()
        if not letters:
            return
        letter = letters[draw % len(letters)]
        self._is_replayed(letter)
        client = self.world.apis[0].client
        answer = await client.post(f"/api/v1/dead-letters/{letter['id']}/replay")
        assert answer.status_code in (200, 409, 503), answer.text

    def _is_replayed(self, letter: dict[str, Any]) -> None:
        for image in self.known:
            image.may_restart |= image.key.image_hash == letter["image_hash"]

    async def _letters(self) -> list[dict[str, Any]]:
        answer = await self.world.apis[0].client.get("/api/v1/dead-letters")
        return sorted(answer.json()["dead_letters"], key=self._place)

    def _place(self, letter: dict[str, Any]) -> tuple[Any, ...]:
        """Orders the letters of one moment as a repetition does: their ids vary."""
        hashes = [image.key.image_hash for image in self.known]
        image = letter["image_hash"]
        return (letter["dead_lettered_at"], hashes.index(image) if image in hashes else -1)

    def _begun(self, draw: int) -> Message | None:
        """A message in flight; due messages are leased first."""
        begun = self.world.queue.record_and_lease([], [Slots(4, ALL_CHANNELS)], self.clock())
        self.in_flight += self.world.wait(begun)
        return self.in_flight[draw % len(self.in_flight)] if self.in_flight else None

    async def _deliver(self, message: Message, copies: int = 1) -> None:
        answers = await asyncio.gather(*(self._push(message) for _ in range(copies)))
        await self._settle(message, answers[-1].status_code in ACKNOWLEDGING_STATUS)

    async def _push(self, message: Message) -> httpx.Response:
        worker = self.world.worker.client
        answer = await worker.post(message.channel.path, content=envelope(message))
        assert answer.status_code in (204, 404, 503), answer.text
        return answer

    async def _settle(self, message: Message, acknowledged: bool) -> None:
        now = self.clock.move(DELIVERY_SECONDS)
        outcome: Outcome
        if acknowledged:
            outcome = Acknowledged(message.id)
        elif message.channel is not DEAD_LETTERS and message.attempt >= self.policy.attempts:
            outcome = DeadLettered(message.id, "HTTP 503")
        else:
            wait = timedelta(seconds=self.policy.backoff(message.attempt))
            outcome = Refused(message.id, now + wait)
        await self.world.queue.record_and_lease([outcome], [], now)

    # --- Workers that die, time, the reconciler ---------------------------------------------------

    @rule(draw=NUMBERS, noticed=st.booleans(), silence=st.sampled_from([0.0, 31.0]))
    def worker_dies_after_its_claim(self, draw: int, noticed: bool, silence: float) -> None:
        """The queue notices it by the broken connection, or by its deadline."""
        message = self._begun(draw)
        if message is None or message.channel.lane is not Lane.IMAGES:
            return
        key = ClassifyImage.from_attributes(message.attributes).key
        claim = self.world.wait(claimed(self.records, key, timedelta(seconds=self.policy.lease)))
        if claim is not None:
            self.claims.append(claim)
        if noticed:
            self.in_flight.remove(message)
            self.world.wait(self._settle(message, acknowledged=False))
        self.clock.move(silence)

    @rule(draw=NUMBERS)
    def a_stalled_worker_wakes_up(self, draw: int) -> None:
        """A stalled worker completes its claim.

        The store accepts the result only while the record is running under this claim. A deletion
        ends a claim even when the image is uploaded again: the new record counts its tokens from
        zero, and its later `submitted_at` tells the two apart.
        """
        if not self.claims:
            return
        claim = self.claims[draw % len(self.claims)]
        image = next(each for each in self.known if each.key == claim.key)
        before = self.world.wait(self.records.get(claim.key))
        label = image.label or "red"
        stored = self.world.wait(
            self.records.change(claim.key, complete(claim, (Annotation(1, label, 1.0),)))
        )
        current = (
            before is not None
            and before.status is Status.RUNNING
            and (before.token, before.submitted_at) == (claim.token, claim.submitted_at)
        )
        assert (stored is not None) == current

    @rule(seconds=st.sampled_from([0.5, 5.0, 31.0, 61.0, 700.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.move(seconds)

    @rule(at_once=st.integers(1, 2))
    def reconcile(self, at_once: int) -> None:
        self.world.wait(self._reconcile(at_once))

    async def _reconcile(self, at_once: int = 1) -> None:
        worker = self.world.worker.client
        for answer in await asyncio.gather(*(worker.post(RECONCILE_PATH) for _ in range(at_once))):
            assert answer.status_code == 200, answer.text

    # --- The promises -----------------------------------------------------------------------------

    @invariant()
    def what_was_accepted_is_kept(self) -> None:
        """P1: the bytes are stored, and a message leads to the end, or the record has ended."""
        waiting = self.world.wait(self._messages())
        for image in self.known:
            record = self.world.wait(self.records.get(image.key))
            assert (record is not None) == image.exists
            if record is None or not image.accepted:
                continue
            assert self.world.wait(self.blobs.get(image.key.blob_name)) == image.data
            assert record.status.terminal or image.key.image_hash in waiting, "no message remains"

    @invariant()
    def status_moves_forward_and_results_stay(self) -> None:
        """P2, P3: one result, and no way back except after a retryable error."""
        for image in self.known:
            record = self.world.wait(self.records.get(image.key))
            seen, image.seen = image.seen, record
            restarted, image.may_restart = image.may_restart, False
            if seen is None or record is None:
                continue
            if seen.status.terminal and record != seen:
                assert seen.may_retry, "a final state changed"
                assert restarted, "an attempt without a request"
            elif not seen.status.terminal:
                assert image.in_a_job or ORDER[record.status] >= ORDER[seen.status]
            assert record.token >= seen.token
            assert record.attempts >= seen.attempts

    async def _messages(self) -> set[str]:
        """The images of the messages in the queue, including messages in flight."""
        read = self.world.queue._database.read
        rows = await read(
            lambda connection: connection.execute(
                "SELECT json_extract(attributes, '$.image_hash') FROM messages"
            ).fetchall()
        )
        return {image_hash for (image_hash,) in rows}

    def teardown(self) -> None:
        try:
            self._all_ends()
        finally:
            self.world.wait(self._forget())

    async def _forget(self) -> None:
        """Delete everything, so that examples do not affect each other."""
        for image in self.known:
            await delete_image(self.records, image.key.image)

        def empty(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM messages")

        await self.world.queue._database.write(empty, durable=False)
        while letters := await self._letters():
            for letter in letters:
                await self.world.apis[0].client.delete(f"/api/v1/dead-letters/{letter['id']}")

    def _all_ends(self) -> None:
        self.world.wait(self._drain())
        for image in self.known:
            record = self.world.wait(self.records.get(image.key))
            if not image.exists:
                assert record is None, "a deleted image came back"
                continue
            assert record is not None
            assert record.status.terminal, f"never ended: {record}"
            if record.status is Status.SUCCESS and image.label:
                assert record.annotations[0].label == image.label
            if record.error is not None and not record.error.retryable:
                assert not image.label, f"a good picture was refused: {record.error}"
        self.status_moves_forward_and_results_stay()

    async def _drain(self) -> None:
        """P4: with a working worker, the queue and the reconciler end every record."""
        self.in_flight.clear()
        await self.world.queue.release_leases()
        for _ in range(DRAIN_ROUNDS):
            while leased := await self.world.queue.record_and_lease([], EVERYTHING, self.clock()):
                for message in leased:
                    await self._deliver(message)
            found = [await self.records.get(image.key) for image in self.known if image.exists]
            ended = all(record is not None and record.status.terminal for record in found)
            if ended and not await self._messages():
                return
            self.clock.move(self.policy.stale_after + 1)
            await self._reconcile()
        raise AssertionError("a record has not ended")


def test_claim_from_before_a_deletion_does_not_complete_the_new_record() -> None:
    """Claim, delete, upload again, claim; then the first worker wakes up.

    Both claims hold token 1. `TestHistories` once drew this history.
    """
    history = Histories()
    try:
        history.first_picture()
        (image,) = history.known
        history.worker_dies_after_its_claim(draw=0, noticed=False, silence=31.0)
        history.delete(image)
        history.upload(image, times=1)
        # The first message is still in flight, and is about the new record as well.
        history.worker_dies_after_its_claim(draw=0, noticed=False, silence=0.0)
        first, second = history.claims
        assert (first.key, first.token) == (second.key, second.token)
        history.a_stalled_worker_wakes_up(draw=0)
        record = history.world.wait(history.records.get(image.key))
        assert record is not None
        assert record.status is Status.RUNNING
        history.what_was_accepted_is_kept()
        history.status_moves_forward_and_results_stay()
    finally:
        history.teardown()


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=60,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
