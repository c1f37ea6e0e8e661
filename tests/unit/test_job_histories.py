"""Random histories with jobs, in addition to the steps of `test_histories`.

What is promised of jobs must hold after every step, and all of them must end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from core.backends.embedded.queue_store import DeadLettered, Message
from core.clock import rfc3339
from core.domain.channels import JOBS
from core.domain.jobs import Job, JobItem, JobKey, JobStatus, new_job, new_job_id, seal
from core.domain.messages import KIND, RunJob
from core.domain.policy import SCHEDULE_PATH
from core.domain.records import Status, new_record
from tests.unit import test_histories
from tests.unit.test_histories import COLOURS, DRAIN_ROUNDS, NUMBERS, Histories, Image, world

__all__ = ["world"]  # the fixture

pytestmark = pytest.mark.timeout(900)  # like `test_histories`

MOST_JOBS = 4
RUN_JOB = RunJob("public", new_job_id()).attributes()[KIND]
UNCLASSIFIED = {"cancelled", "expired", "upload_lost", "delivery_exhausted", "image_missing"}


@dataclass
class Batch:
    """The model of one job."""

    key: JobKey
    images: Sequence[Image]
    seen: Job | None = None
    cancelled: bool = False  # and the client has the answer
    may_restart: bool = False  # this step may replay the dead letter of the message that runs it


class JobHistories(Histories):
    """Jobs are created, run, cancelled and scheduled; processes die."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs = self.world.worker.backend.jobs
        self.batches: list[Batch] = []
        self.cancelled_images: list[Image] = []  # images that only cancelled jobs have requested

    # --- Creating ---------------------------------------------------------------------------------

    @initialize(delay=st.sampled_from([0, 0, 0, 100]), begun=st.sampled_from([True, True, False]))
    def first_job(self, delay: int, begun: bool) -> None:
        image = self._picture("blue")
        self.world.wait(self._create([image, *self.known[:1], image], delay, 0))
        if begun:
            self.everything_is_delivered()

    @precondition(lambda self: len(self.batches) < MOST_JOBS)
    @rule(
        draws=st.lists(NUMBERS, min_size=1, max_size=4),
        delay=st.sampled_from([0, 0, 100]),
        cut_off=st.sampled_from([0, 0, 300]),
    )
    def create_a_job(self, draws: list[int], delay: int, cut_off: int) -> None:
        """With any images, some of them twice."""
        chosen = [self.known[draw % len(self.known)] for draw in draws]
        self.world.wait(self._create(chosen, delay, cut_off))

    async def _create(self, images: list[Image], delay: int, cut_off: int) -> None:
        await self._asked(images)
        parameters: dict[str, Any] = {"priority": "low"}
        if delay:
            parameters["not_before"] = rfc3339(self.clock() + timedelta(seconds=delay))
        answer = await self.world.apis[0].client.post(
            "/api/v1/jobs/batch-predict",
            files=[("imgs", (f"{n}.jpg", image.data)) for n, image in enumerate(images)],
            params=parameters,
            headers={"Cancel-After": f"{cut_off}s"} if cut_off else {},
        )
        assert answer.status_code == 202, answer.text
        for image in images:
            image.exists = True
        self.batches.append(Batch(JobKey("public", answer.json()["job_id"]), images))

    @precondition(lambda self: len(self.batches) < MOST_JOBS)
    @rule(draw=NUMBERS, steps=st.integers(1, 4))
    def api_dies_while_it_creates_a_job(self, draw: int, steps: int) -> None:
        """After it stores the job, the items, or the record, or after it seals the job."""
        image = self.known[draw % len(self.known)]
        self.world.wait(self._half_a_job(image, steps))

    async def _half_a_job(self, image: Image, steps: int) -> None:
        await self._asked([image])
        backend, now = self.world.apis[0].services.backend, self.clock()
        key = JobKey("public", new_job_id())
        await backend.blobs.put(image.key.blob_name, image.data, "image/jpeg")
        await backend.jobs.create(new_job(key, "", image.key.model, 1, now))
        if steps > 1:
            await backend.jobs.add_items(key, [JobItem(0, image.key.image_hash)])
        if steps > 2:
            if await backend.records.create(new_record(image.key, now, job=key.id)):
                image.accepted = False
            image.exists = True
        if steps > 3:
            assert await backend.jobs.change(key, seal())
            self.batches.append(Batch(key, [image]))

    async def _asked(self, images: Sequence[Image]) -> None:
        """Note that these images are requested, so they may be classified."""
        for image in images:
            image.in_a_job = image.may_restart = True
            record = await self.records.get(image.key)
            if record is not None and record.may_retry:
                image.accepted = False  # the promised attempt has ended; the job starts another
            self._request(image)

    # --- Cancelling -------------------------------------------------------------------------------

    @precondition(lambda self: self.batches)
    @rule(draw=NUMBERS, delivered=st.booleans())
    def cancel(self, draw: int, delivered: bool) -> None:
        """With `delivered`, its messages arrive at that moment."""
        self.world.wait(self._cancel(self.batches[draw % len(self.batches)]))
        if delivered:
            self.everything_is_delivered()

    async def _cancel(self, batch: Batch) -> None:
        before = await self.jobs.get(batch.key)
        answer = await self.world.apis[1].client.delete(f"/api/v1/jobs/{batch.key.id}")
        if before is None:
            assert answer.status_code == 404
            return
        over = before.status in (JobStatus.COMPLETED, JobStatus.FAILED)
        assert answer.status_code == (409 if over else 200), answer.text
        if over:
            return
        assert answer.json()["status"] == "cancelled"
        batch.cancelled = True
        for image in batch.images:
            record = await self.records.get(image.key)
            if (
                record is not None
                and record.job == batch.key.id
                # No worker has claimed it, not even one that has died.
                and record.status in (Status.PENDING, Status.QUEUED)
                and not await self._others_wait(image)
            ):
                self.cancelled_images.append(image)

    async def _others_wait(self, image: Image) -> bool:
        for batch in self.batches:
            job = await self.jobs.get(batch.key)
            if image in batch.images and job is not None and not job.over(self.clock()):
                return True
        return False

    def _request(self, image: Image) -> None:
        self.cancelled_images = [each for each in self.cancelled_images if each is not image]

    @precondition(lambda self: len(self.batches) < MOST_JOBS)
    @rule(label=st.sampled_from([*COLOURS, ""]), delivered=st.booleans())
    def a_job_is_cancelled_on_its_way(self, label: str, delivered: bool) -> None:
        """Its messages are published, and arrive now or later."""
        self.world.wait(self._create([self._picture(label)], 0, 0))
        self.everything_is_delivered()
        self.cancel(len(self.batches) - 1, delivered)

    # --- Other requests for images ----------------------------------------------------------------

    async def _upload(self, image: Image, times: int) -> None:
        self._request(image)
        await super()._upload(image, times)

    async def _half_an_upload(self, image: Image, steps: int) -> None:
        self._request(image)
        await super()._half_an_upload(image, steps)

    async def _replay(self, draw: int) -> None:
        self.cancelled_images.clear()  # the letter may be of any of them
        await super()._replay(draw)

    def _is_replayed(self, letter: dict[str, Any]) -> None:
        super()._is_replayed(letter)
        attributes = letter["attributes"]
        if attributes.get(KIND) == RUN_JOB:
            for batch in self.batches:
                batch.may_restart |= batch.key.id == attributes["job"]

    def _place(self, letter: dict[str, Any]) -> tuple[Any, ...]:
        attributes = letter["attributes"]
        jobs = [batch.key.id for batch in self.batches]
        number = jobs.index(attributes["job"]) if attributes.get("job") in jobs else -1
        rest = [attributes.get(name, "") for name in (KIND, "position", "event")]
        return (*super()._place(letter), number, *rest)

    async def _push(self, message: Message) -> httpx.Response:
        for image in self.known:
            image.may_restart |= image.in_a_job  # the job may retry the record
        return await super()._push(message)

    @rule(draw=NUMBERS)
    def a_stalled_worker_wakes_up(self, draw: int) -> None:
        if self.claims:
            claim = self.claims[draw % len(self.claims)]
            if any(image.key == claim.key for image in self.cancelled_images):
                return  # a worker checks the job before it classifies
        super().a_stalled_worker_wakes_up(draw)

    # --- The scheduler ----------------------------------------------------------------------------

    @rule(at_once=st.integers(1, 2))
    def schedule(self, at_once: int) -> None:
        for _ in range(at_once):
            self.world.wait(self._schedule())

    async def _reconcile(self, at_once: int = 1) -> None:
        await super()._reconcile(at_once)
        await self._schedule()

    async def _schedule(self) -> None:
        answer = await self.world.worker.client.post(SCHEDULE_PATH)
        assert answer.status_code == 200, answer.text

    @rule()
    def run_uses_up_its_deliveries(self) -> None:
        """The message that runs a job uses up its deliveries."""
        for message in self.in_flight:
            if message.channel is JOBS:
                self.in_flight.remove(message)
                self.world.wait(self._settle_as_dead(message))
                return

    async def _settle_as_dead(self, message: Message) -> None:
        outcome = DeadLettered(message.id, "HTTP 503")
        await self.world.queue.record_and_lease([outcome], [], self.clock())

    # --- The promises -----------------------------------------------------------------------------

    @invariant()
    def jobs_move_forward(self) -> None:
        for batch in self.batches:
            self.world.wait(self._look_at(batch))

    async def _look_at(self, batch: Batch) -> None:
        seen, job = batch.seen, await self.jobs.get(batch.key)
        restarted, batch.may_restart = batch.may_restart, False
        batch.seen = job
        if job is None:
            assert seen is not None
            assert seen.status.terminal, "a job disappeared before its end"
            return
        items = await self.jobs.items(batch.key, 10)
        ended = [item for item in items if item.state.value != "open"]
        assert len(items) == job.counts.total
        assert job.counts.completed <= len(ended)
        if batch.cancelled:
            assert job.status is JobStatus.CANCELLED, "a cancelled job continued"
        if job.status is JobStatus.COMPLETED:
            assert job.counts.completed == len(ended) == len(items), (
                "a completed job has open items"
            )
            failed = sum(item.error is not None for item in items)
            assert job.counts.failed == failed
        if seen is not None:
            assert job.revision >= seen.revision
            assert job.counts.completed >= seen.counts.completed
            assert (job.revision == seen.revision) == (
                (job.status, job.counts) == (seen.status, seen.counts)
            )
            if seen.status.terminal and job.status is not seen.status:
                # A job that could not be run begins again when its dead letter is replayed.
                assert restarted, "a final state changed"
                assert seen.status is JobStatus.FAILED
                assert seen.error is not None
                assert seen.error.retryable
                assert job.status is JobStatus.PENDING

    @invariant()
    def nothing_runs_after_its_cancellation(self) -> None:
        for image in self.cancelled_images:
            record = self.world.wait(self.records.get(image.key))
            if record is None or not record.status.terminal:
                continue
            assert record.status is Status.ERROR, "a cancelled image was classified"
            assert record.error is not None
            assert record.error.code in UNCLASSIFIED, "a cancelled image was decoded"

    async def _drain(self) -> None:
        """Like `super`; and with the scheduler, every job ends and is announced."""
        for _ in range(DRAIN_ROUNDS):
            await super()._drain()
            await self._schedule()
            found = [await self.jobs.get(batch.key) for batch in self.batches]
            if all(job is None or (job.status.terminal and job.announced) for job in found):
                await self._deliver_all()
                return
            self.clock.move(31)
        raise AssertionError("a job has not ended")

    async def _deliver_all(self) -> None:
        now = self.clock()
        while leased := await self.world.queue.record_and_lease([], test_histories.EVERYTHING, now):
            for message in leased:
                await self._deliver(message)

    def _all_ends(self) -> None:
        super()._all_ends()
        self.jobs_move_forward()
        self.nothing_runs_after_its_cancellation()

    async def _forget(self) -> None:
        await super()._forget()
        for job in await self.jobs.due(self.clock() + timedelta(days=1000), 1000):
            await self.jobs.delete(job.key)


def test_job_that_could_not_be_run_begins_again_by_a_replay_only() -> None:
    """The message that runs it uses up its deliveries. `TestJobHistories` drew this history."""
    history = JobHistories()

    def status() -> JobStatus:
        history.jobs_move_forward()
        (batch,) = history.batches
        assert batch.seen is not None
        return batch.seen.status

    try:
        history.first_job(delay=0, begun=False)
        assert status() is JobStatus.PENDING
        history.all_deliveries_fail()
        history.everything_is_delivered()
        assert status() is JobStatus.FAILED
        history.schedule(at_once=2)
        history.reconcile(at_once=1)
        assert status() is JobStatus.FAILED
        history.replay_a_dead_letter(draw=0)
        assert status() is JobStatus.PENDING
        history.replay_a_dead_letter(draw=0)
        history.everything_is_delivered()
        history.everything_is_delivered()
        assert status() is JobStatus.COMPLETED
    finally:
        history.teardown()


TestJobHistories = JobHistories.TestCase
TestJobHistories.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
