"""A training job in the worker, from its message to the model, and where it can be interrupted."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest

from core.domain import jobs, trained_models
from core.domain.jobs import ItemState, Job, JobKey, JobStatus
from core.domain.messages import EmbedImage, FitModel, Message, RunJob
from core.domain.records import (
    RecordKey,
    Status,
    blob_name,
    embedding_name,
    head_name,
    new_record,
    report_name,
)
from core.domain.trained_models import ModelKey, ModelVersion, TrainedModel, new_model
from core.domain.training_report import report_of_bytes
from core.errors import Unavailable
from tests.support.bundles import write_colour_bundle
from tests.support.clock import MovableClock
from tests.support.faults import FaultAt
from tests.support.pictures import picture, sha256
from tests.support.training import BLUE, RED, fit_in_thread, pictures, stored_training
from tests.support.worker import RunningWorker, running_worker, settings_in
from worker.inference import head_file

KEY = ModelKey("public", "moods")


@pytest.fixture
async def worker(tmp_path: Path, clock: MovableClock) -> AsyncIterator[RunningWorker]:
    async with running_worker(settings_in(tmp_path), clock) as running:
        yield running


async def job_of(worker: RunningWorker, key: JobKey) -> Job:
    job = await worker.backend.jobs.get(key)
    assert job is not None
    return job


async def model_of(worker: RunningWorker, key: ModelKey = KEY) -> TrainedModel:
    model = await worker.backend.models.get(key)
    assert model is not None
    return model


async def stored(
    worker: RunningWorker, examples: int | Mapping[bytes, str] = 5, **options: Any
) -> JobKey:
    """`stored_training` of these images, or of as many drawn ones for each of two labels."""
    images = pictures(examples) if isinstance(examples, int) else examples
    return await stored_training(
        worker.backend, images, worker.model, worker.context.clock, **options
    )


async def embed_all(worker: RunningWorker, key: JobKey) -> None:
    """Run the job, and deliver the messages of its images, but not that of the fit."""
    await worker.send(RunJob(key.tenant, key.id))
    for message in worker.published():
        if isinstance(message, EmbedImage) and message.job == key.id:
            await worker.send(message)


async def deliver(worker: RunningWorker, key: JobKey, rounds: int = 20) -> list[Message]:
    """Deliver the job's messages until no new one is published; the messages."""
    delivered: list[Message] = [RunJob(key.tenant, key.id)]
    await worker.send(delivered[0])
    seen = 0
    for _ in range(rounds):
        new = [
            each
            for each in worker.published()[seen:]
            if isinstance(each, EmbedImage | FitModel) and each.job == key.id
        ]
        seen = len(worker.published())
        for message in new:
            delivered.append(message)
            answer = await worker.send(message)
            assert answer.status_code == 204, answer.text
        if not new:
            break
    return delivered


async def train(worker: RunningWorker, each: int = 6, name: str = "moods") -> JobKey:
    key = await stored(worker, each, name=name)
    await deliver(worker, key)
    return key


async def test_training_makes_an_active_version(worker: RunningWorker) -> None:
    key = await train(worker)
    job, model = await job_of(worker, key), await model_of(worker)
    assert (job.status, job.progress) == (JobStatus.COMPLETED, 100)
    assert (job.counts.total, job.counts.succeeded) == (13, 13)
    assert job.training is not None
    (version,) = model.versions
    assert model.active == version.id == job.training.model
    assert (version.job, version.base) == (key.id, worker.model)
    assert (version.images, version.labels, version.accuracy) == (12, 2, 1.0)
    assert job.training.accuracy == 1.0
    report = report_of_bytes(await worker.backend.blobs.get(report_name("public", version.id)))
    assert [each.label for each in report.labels] == ["cool", "warm"]


async def test_each_image_is_one_message_and_the_fit_is_the_last(worker: RunningWorker) -> None:
    key = await stored(worker, 5)
    messages = await deliver(worker, key)
    kinds = [type(each) for each in messages]
    assert kinds == [RunJob, *[EmbedImage] * 10, FitModel]


async def test_new_image_is_classified_into_the_labels(worker: RunningWorker) -> None:
    await train(worker)
    model = (await model_of(worker)).active
    for colour, label in ((RED, "warm"), (BLUE, "cool")):
        data = picture(77, colour)
        key = await worker.submit(data, model=model)
        assert (await worker.push(key)).status_code == 204
        record = await worker.record(key)
        assert record.annotations[0].label == label
        assert record.confident is True
        assert sum(each.confidence for each in record.annotations) == pytest.approx(1)


async def test_stored_embedding_is_classified_without_the_image(worker: RunningWorker) -> None:
    """The bytes of the image are replaced: an inference would see another colour."""
    await train(worker)
    model = (await model_of(worker)).active
    data = picture(1000, BLUE, (24, 24))  # of the training set
    assert data in pictures(6)
    file = worker.backend.blobs.file(blob_name("public", sha256(data)))
    assert file is not None
    file.write_bytes(b"no image")
    key = RecordKey("public", sha256(data), model)
    await worker.backend.records.create(new_record(key, worker.context.clock()))
    await worker.push(key)
    assert (await worker.record(key)).annotations[0].label == "cool"


async def test_classification_stores_the_embedding(worker: RunningWorker) -> None:
    await train(worker)
    key = await worker.submit(picture(5), model=(await model_of(worker)).active)
    name = embedding_name("public", worker.model, key.image_hash)
    assert not await worker.backend.blobs.exists(name)
    await worker.push(key)
    assert len(await worker.backend.blobs.get(name)) == 3 * 4


async def test_training_again_computes_only_new_embeddings(worker: RunningWorker) -> None:
    await train(worker, 5)
    again = await stored(worker, 6)
    messages = await deliver(worker, again)
    assert sum(isinstance(each, EmbedImage) for each in messages) == 2  # one more of each label
    assert (await job_of(worker, again)).status is JobStatus.COMPLETED
    assert len((await model_of(worker)).versions) == 2


async def test_two_trainings_of_one_name_give_two_versions(worker: RunningWorker) -> None:
    first = await stored(worker, 5)
    second = await stored(worker, 7)
    await asyncio.gather(deliver(worker, first), deliver(worker, second))
    versions = (await model_of(worker)).versions
    assert {each.job for each in versions} == {first.id, second.id}
    assert {each.images for each in versions} == {10, 14}


async def test_same_training_set_is_the_same_version(worker: RunningWorker) -> None:
    await train(worker)
    again = await train(worker)
    job = await job_of(worker, again)
    assert job.status is JobStatus.COMPLETED
    assert [each.id for each in (await model_of(worker)).versions] == [
        job.training and job.training.model
    ]


async def test_version_can_wait_for_its_activation(worker: RunningWorker) -> None:
    await train(worker, 5)
    first = (await model_of(worker)).active
    key = await stored(worker, 7, activate=False)
    await deliver(worker, key)
    model = await model_of(worker)
    assert (len(model.versions), model.active) == (2, first)


async def test_broken_image_fails_its_item_and_is_left_out(worker: RunningWorker) -> None:
    examples = {**pictures(6), b"no picture at all": "warm"}
    key = await stored(worker, examples)
    await deliver(worker, key)
    job = await job_of(worker, key)
    assert (job.status, job.counts.failed) == (JobStatus.COMPLETED, 1)
    (failed,) = await worker.backend.jobs.items(key, 100, state=ItemState.FAILED)
    assert failed.error is not None
    assert failed.error.code == "undecodable_image"
    assert (await model_of(worker)).versions[0].images == 12


async def test_too_few_images_after_failures_fail_the_job(worker: RunningWorker) -> None:
    examples = {**pictures(5, {"warm": RED}), b"broken 1": "cool", b"broken 2": "cool"}
    key = await stored(worker, examples)
    await deliver(worker, key)
    job = await job_of(worker, key)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error.code == "too_few_images"
    assert "'cool' has 0" in job.error.detail
    assert await worker.backend.models.get(KEY) is None


async def test_deleted_image_is_left_out_of_the_fit(worker: RunningWorker) -> None:
    examples = pictures(6)
    key = await stored(worker, examples)
    await embed_all(worker, key)
    victim = sha256(next(iter(examples)))
    await worker.backend.blobs.delete(blob_name("public", victim))
    await worker.backend.blobs.delete(embedding_name("public", worker.model, victim))
    assert (await worker.send(FitModel("public", key.id))).status_code == 204
    assert (await model_of(worker)).versions[0].images == 11


async def test_lost_embedding_is_computed_again_for_the_fit(worker: RunningWorker) -> None:
    examples = pictures(6)
    key = await stored(worker, examples)
    await embed_all(worker, key)
    victim = sha256(next(iter(examples)))
    await worker.backend.blobs.delete(embedding_name("public", worker.model, victim))
    await worker.send(FitModel("public", key.id))
    assert (await model_of(worker)).versions[0].images == 12


async def test_embedding_of_an_image_that_was_deleted_meanwhile_is_not_kept(
    worker: RunningWorker,
) -> None:
    examples = pictures(5)
    key = await stored(worker, examples)
    await worker.send(RunJob("public", key.id))
    message = next(each for each in worker.published() if isinstance(each, EmbedImage))
    name = embedding_name("public", worker.model, message.key.image_hash)

    async def delete_image(call: str, done: bool) -> None:
        if call == "blobs.put" and not done:
            await worker.backend.blobs.delete(message.key.blob_name)

    with worker.watching(delete_image):
        assert (await worker.send(message)).status_code == 204
    assert not await worker.backend.blobs.exists(name)
    item = (await worker.backend.jobs.items(key, 1, message.position - 1))[0]
    assert item.state is ItemState.FAILED


async def test_fit_before_all_images_are_embedded_does_nothing(worker: RunningWorker) -> None:
    key = await stored(worker, 5)
    await worker.send(RunJob("public", key.id))
    assert (await worker.send(FitModel("public", key.id))).status_code == 204
    assert (await job_of(worker, key)).status is JobStatus.RUNNING
    assert await worker.backend.models.get(KEY) is None


async def test_cancelled_job_leaves_no_model(worker: RunningWorker) -> None:
    """The job is cancelled after the fit, before the decision."""
    backend = worker.backend
    key = await stored(worker, 5)
    heads: list[str] = []

    async def cancel(call: str, done: bool) -> None:
        if call == "jobs.decide_model" and not done:
            heads.extend(
                str(each.relative_to(worker.context.settings.data_dir))
                for each in worker.context.settings.data_dir.glob("blobs/public/heads/*")
            )
            assert await backend.jobs.change(key, jobs.cancel())

    with worker.watching(cancel):
        await deliver(worker, key)
    assert (await job_of(worker, key)).status is JobStatus.CANCELLED
    assert await backend.models.get(KEY) is None
    assert heads
    data_dir = worker.context.settings.data_dir
    assert not list(data_dir.glob("blobs/public/heads/*"))
    assert not list(data_dir.glob("blobs/public/reports/*"))


async def test_cancelled_training_keeps_the_same_version_of_an_earlier_one(
    worker: RunningWorker,
) -> None:
    await train(worker)
    backend = worker.backend
    again = await stored(worker, 6)

    async def cancel(call: str, done: bool) -> None:
        if call == "jobs.decide_model" and not done:
            await backend.jobs.change(again, jobs.cancel())

    with worker.watching(cancel):
        await deliver(worker, again)
    model = await model_of(worker)
    assert await backend.blobs.exists(head_name("public", model.active))


async def test_decided_job_can_only_complete(worker: RunningWorker, clock: MovableClock) -> None:
    """The worker ends after the decision; the deadline passes; a client cancels in vain."""
    backend = worker.backend
    key = await stored(worker, 5)

    async def crash(call: str, done: bool) -> None:
        if call.startswith("models.") and await decided(worker, key):
            raise Unavailable("The worker ended.")

    with worker.watching(crash), pytest.raises(AssertionError):
        await deliver(worker, key)
    assert await decided(worker, key)
    assert await backend.models.get(KEY) is None
    assert await backend.jobs.change(key, jobs.cancel()) is None
    assert (await worker.send(FitModel("public", key.id))).status_code == 204
    assert (await job_of(worker, key)).status is JobStatus.COMPLETED
    assert len((await model_of(worker)).versions) == 1


async def decided(worker: RunningWorker, key: JobKey) -> bool:
    return (await job_of(worker, key)).decided


async def test_scheduler_repeats_a_fit_whose_message_was_lost(
    worker: RunningWorker, clock: MovableClock
) -> None:
    key = await stored(worker, 5)
    await embed_all(worker, key)
    clock.move(worker.context.job_policy.stale_after + 1)
    assert await worker.schedule() == {"run": 1}
    fits = len([each for each in worker.published() if isinstance(each, FitModel)])
    await worker.send(RunJob("public", key.id))
    again = [each for each in worker.published() if isinstance(each, FitModel)]
    assert len(again) == fits + 1
    await worker.send(again[-1])
    assert (await job_of(worker, key)).status is JobStatus.COMPLETED


async def test_deadline_ends_a_training(worker: RunningWorker, clock: MovableClock) -> None:
    key = await stored(worker, 5)
    job = await job_of(worker, key)
    assert job.training is not None
    late = replace(job, deadline=clock() + timedelta(seconds=5))
    assert late.over(clock.move(6))
    assert not replace(late, training=replace(job.training, model="moods@0123456789ab")).over(
        clock()
    )


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_model_appears_once_whichever_call_fails(tmp_path: Path, after: bool) -> None:
    """Each call of a port fails once, before or after its work; then the message is repeated."""
    number, seen = 1, set[str]()
    while True:
        fault = FaultAt(number, after)
        async with running_worker(settings_in(tmp_path / f"{number}")) as worker:
            key = await stored(worker, 2)
            await embed_all(worker, key)
            fit = FitModel("public", key.id)
            with worker.watching(fault):
                first = await worker.send(fit)
            # A failed announcement does not fail the delivery: the scheduler repeats it.
            assert first.status_code == 204 or fault.failed
            assert (await worker.send(fit)).status_code == 204
            job, model = await job_of(worker, key), await model_of(worker)
            assert job.status is JobStatus.COMPLETED
            assert [each.job for each in model.versions] == [key.id]
        if not fault.failed:
            break
        seen.add(fault.failed)
        number += 1
    assert {"jobs.decide_model", "models.add_version", "models.create", "blobs.put"} <= seen


async def test_deliveries_of_one_fit_share_it(tmp_path: Path) -> None:
    fits = 0

    async def counting(chunks: AsyncIterator[bytes]) -> bytes:
        nonlocal fits
        fits += 1
        return await fit_in_thread(chunks)

    async with running_worker(settings_in(tmp_path)) as worker:
        worker.app.state.context = replace(worker.context, fit=counting)
        key = await stored(worker, 5)
        await embed_all(worker, key)
        fit = FitModel("public", key.id)
        answers = await asyncio.gather(*(worker.send(fit) for _ in range(5)))
        assert [each.status_code for each in answers] == [204] * 5
        assert fits == 1


async def test_full_model_fails_the_training(worker: RunningWorker, clock: MovableClock) -> None:
    backend = worker.backend
    assert await backend.models.create(new_model(KEY, clock()))
    for number in range(trained_models.MAX_VERSIONS):
        identity = f"moods@{number:012x}"
        version = ModelVersion(
            identity, "a" * 32, worker.model, clock(), 10, 2, 0.9, (0.8, 1.0), 0.9
        )
        await backend.models.change(KEY, trained_models.add_version(version, activate=True))
    key = await train(worker)
    job = await job_of(worker, key)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error.code == "too_many_versions"


async def test_unknown_version_asks_for_another_worker(worker: RunningWorker) -> None:
    key = await worker.submit(model="moods@0123456789ab")
    answer = await worker.push(key)
    assert answer.status_code == 503
    assert (await worker.record(key)).status is Status.PENDING


async def test_head_of_a_newer_format_asks_for_another_worker(worker: RunningWorker) -> None:
    await train(worker)
    old = (await model_of(worker)).active
    data = await worker.backend.blobs.get(head_name("public", old))
    newer = data.replace(b'"format":1', b'"format":2')
    assert newer != data
    identity = f"moods@{sha256(newer)[:12]}"
    await worker.backend.blobs.put(head_name("public", identity), newer, "x/y")
    key = await worker.submit(picture(5), model=identity)
    answer = await worker.push(key)
    assert answer.status_code == 503
    assert answer.json()["code"] == "model_unavailable"
    assert (await worker.record(key)).status is Status.PENDING


async def test_newer_worker_takes_the_message_that_an_older_one_refused(
    worker: RunningWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older release refuses the head's format, and its claim must not keep the other away."""

    class NewerHeader(head_file.HeadHeader):
        format: Literal[1, 2] = 2  # type: ignore[assignment]  # a later release widens it

    await train(worker)
    data = await worker.backend.blobs.get(head_name("public", (await model_of(worker)).active))
    newer = data.replace(b'"format":1', b'"format":2')
    identity = f"moods@{sha256(newer)[:12]}"
    await worker.backend.blobs.put(head_name("public", identity), newer, "x/y")
    key = await worker.submit(picture(5), model=identity)
    assert (await worker.push(key)).status_code == 503
    monkeypatch.setattr(head_file, "HeadHeader", NewerHeader)
    async with running_worker(settings_in(tmp_path)) as other:
        assert (await other.push(key)).status_code == 204
    record = await worker.record(key)
    assert (record.status, record.attempts) == (Status.SUCCESS, 1)
    assert record.annotations[0].label == "warm"


async def test_embedding_of_another_base_is_not_used(tmp_path: Path) -> None:
    """Each base has its own embeddings of the same images."""
    other = write_colour_bundle(tmp_path / "other", "other", sharpness=10.0)
    settings = settings_in(tmp_path, extra_model_uris=(str(other),))
    async with running_worker(settings) as worker:
        bases = worker.context.models.identities
        assert len(bases) == 2
        names = []
        for base in bases:
            name = base.partition("@")[0]
            key = await stored_training(
                worker.backend, pictures(5), base, worker.context.clock, name=f"on-{name}"
            )
            messages = await deliver(worker, key)
            assert sum(isinstance(each, EmbedImage) for each in messages) == 10
            names.append(f"on-{name}")
        data = picture(77, RED)
        for name, base in zip(names, bases, strict=True):
            model = await model_of(worker, ModelKey("public", name))
            key_ = await worker.submit(data, model=model.active)
            await worker.push(key_)
            kept = embedding_name("public", base, key_.image_hash)
            assert await worker.backend.blobs.exists(kept)


async def test_deadline_during_a_fit_leaves_nothing(tmp_path: Path) -> None:
    clock = MovableClock()

    async def slow(chunks: AsyncIterator[bytes]) -> bytes:
        output = await fit_in_thread(chunks)
        clock.move(61)
        return output

    async with running_worker(settings_in(tmp_path), clock) as worker:
        worker.app.state.context = replace(worker.context, fit=slow)
        key = await stored(worker, deadline=clock() + timedelta(seconds=60))
        await embed_all(worker, key)
        assert (await worker.send(FitModel("public", key.id))).status_code == 204
        assert not await decided(worker, key)
        assert await worker.schedule() == {"cancel": 1}
        assert (await job_of(worker, key)).status is JobStatus.CANCELLED
        assert await worker.backend.models.get(KEY) is None
        blobs = worker.context.settings.data_dir / "blobs/public"
        assert not [*blobs.glob("heads/*"), *blobs.glob("reports/*")]


async def test_model_of_another_tenant_is_not_used(worker: RunningWorker) -> None:
    await train(worker)
    model = (await model_of(worker)).active
    data = picture(5)
    key = RecordKey("acme", sha256(data), model)
    await worker.backend.records.create(new_record(key, worker.context.clock()))
    await worker.backend.blobs.put(key.blob_name, data, "image/jpeg")
    assert (await worker.push(key)).status_code == 503


async def test_dead_letter_of_an_image_lets_the_fit_go_on(worker: RunningWorker) -> None:
    key = await stored(worker, 6)
    await worker.send(RunJob("public", key.id))
    first, *others = [each for each in worker.published() if isinstance(each, EmbedImage)]
    for message in others:
        await worker.send(message)
    assert (await worker.dead_letter(first)).status_code == 204
    assert len(await worker.letters()) == 1
    assert isinstance(worker.published()[-1], FitModel)
    await worker.send(worker.published()[-1])
    job = await job_of(worker, key)
    assert (job.status, job.counts.failed) == (JobStatus.COMPLETED, 1)


async def test_dead_letter_of_a_fit_fails_the_job(
    worker: RunningWorker, clock: MovableClock
) -> None:
    key = await stored(worker, 5)
    await worker.send(RunJob("public", key.id))
    clock.move(60)
    assert (await worker.dead_letter(FitModel("public", key.id))).status_code == 204
    assert (await job_of(worker, key)).status is JobStatus.FAILED
