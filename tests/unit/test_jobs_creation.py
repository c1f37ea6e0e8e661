"""What makes two requests under one Idempotency-Key the same job."""

import dataclasses
from datetime import timedelta

import pytest

from app.batches.item import BatchItem
from app.jobs.creation import JobOrder
from app.jobs.options import JobOptions
from core.clock import utc_now
from core.domain.principals import ANONYMOUS
from core.domain.priority import Priority
from core.domain.webhooks import JobEvent
from core.errors import InvalidImage

NOW = utc_now()
IMAGE = BatchItem("cat.jpg", "a" * 64, {"shelf": 1})
OPTIONS = JobOptions(
    priority=Priority.LOW,
    not_before=NOW,
    notify_email="ada@example.org",
    cancel_after=timedelta(hours=1),
    idempotency_key="key",
    name="Summer",
    webhook="https://example.org/one",
    webhook_events=frozenset({JobEvent.COMPLETED}),
)
ORDER = JobOrder(ANONYMOUS, "colours@0123456789ab", [IMAGE], OPTIONS, "gs://photos/", [IMAGE])
OTHER_OPTIONS = {
    "model": "colours",
    "priority": Priority.HIGH,
    "not_before": NOW + timedelta(seconds=1),
    "notify_email": "bob@example.org",
    "cancel_after": timedelta(hours=2),
    "name": "Autumn",
    "webhook": "https://example.org/other",
    "webhook_events": frozenset({JobEvent.FAILED}),
}


def test_every_option_is_compared() -> None:
    fields = {field.name for field in dataclasses.fields(JobOptions)}
    assert fields - {"idempotency_key"} == OTHER_OPTIONS.keys()


@pytest.mark.parametrize("option", OTHER_OPTIONS)
def test_another_option_is_another_order(option: str) -> None:
    options = dataclasses.replace(OPTIONS, **{option: OTHER_OPTIONS[option]})  # type: ignore[arg-type]
    assert (
        dataclasses.replace(ORDER, options=options).request_fingerprint != ORDER.request_fingerprint
    )


@pytest.mark.parametrize(
    "image",
    [
        BatchItem("cat.jpg", "b" * 64, {"shelf": 1}),
        BatchItem("cat.jpg", "a" * 64, {"shelf": 2}),
        BatchItem("cat.jpg", "", {"shelf": 1}, InvalidImage("The image is empty.")),
    ],
)
def test_another_image_is_another_order(image: BatchItem) -> None:
    assert (
        dataclasses.replace(ORDER, items=[image]).request_fingerprint != ORDER.request_fingerprint
    )
    other = dataclasses.replace(ORDER, imported=[image])
    assert other.request_fingerprint == ORDER.request_fingerprint
    assert other.fingerprint != ORDER.fingerprint


def test_unread_images_differ_by_name_and_error() -> None:
    """They have no hash."""
    unread = [
        BatchItem("cat.jpg", error=InvalidImage("The image is empty.")),
        BatchItem("dog.jpg", error=InvalidImage("The image is empty.")),
    ]
    one, other = (dataclasses.replace(ORDER, items=[image]).request_fingerprint for image in unread)
    assert one != other


def test_name_of_a_sent_image_does_not_matter_and_that_of_an_object_does() -> None:
    renamed = dataclasses.replace(IMAGE, name="dog.jpg")
    assert (
        dataclasses.replace(ORDER, items=[renamed]).request_fingerprint == ORDER.request_fingerprint
    )
    assert dataclasses.replace(ORDER, imported=[renamed]).fingerprint != ORDER.fingerprint


def test_another_prefix_is_another_order() -> None:
    assert (
        dataclasses.replace(ORDER, gs_prefix="gs://photos/a").request_fingerprint
        != ORDER.request_fingerprint
    )
