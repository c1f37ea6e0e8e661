"""Which messages the chaos experiment delivers as dead letters, and how."""

import json

import pytest

from core.domain.messages import ClassifyImage, PushEnvelope, RunJob, message_of
from core.domain.records import RecordKey
from tests.chaos.dead_letters import DEAD_JOBS, POSITIONS, JobDeadLetters, dead_letter

KEY = RecordKey("public", "ab" * 32, "colours@0123456789ab")
SELECTED, OTHER = f"{DEAD_JOBS:032x}", f"{DEAD_JOBS + 1:032x}"  # ids of jobs


def push(message: ClassifyImage | RunJob) -> bytes:
    return json.dumps(
        {
            "subscription": "projects/demo/subscriptions/p",
            "message": {
                "messageId": "1",
                "publishTime": "2026-11-21T09:30:00.125Z",
                "publish_time": "2026-11-21T09:30:00.125Z",
                "data": "",
                "attributes": message.attributes(),
            },
        }
    ).encode()


@pytest.mark.parametrize(
    ("message", "selected"),
    [
        (ClassifyImage(KEY, job=OTHER, position=POSITIONS[0]), True),
        (ClassifyImage(KEY, job=OTHER, position=POSITIONS[0] + 1), False),
        (ClassifyImage(KEY), False),
        (RunJob("public", SELECTED), True),
        (RunJob("public", OTHER), False),
    ],
)
def test_some_messages_of_jobs_are_selected_once(
    message: ClassifyImage | RunJob, selected: bool
) -> None:
    letters = JobDeadLetters()
    found = letters.select(push(message))
    assert (found is not None) is selected
    assert letters.select(push(message)) == found  # until it is delivered as a dead letter
    if found is not None:
        letters.done(found)
        assert letters.select(push(message)) is None


def test_damaged_push_is_not_selected() -> None:
    assert JobDeadLetters().select(b"{") is None


def test_dead_letter_has_the_message_and_the_time_of_its_publication() -> None:
    message = RunJob("public", SELECTED)
    envelope = PushEnvelope.parse(dead_letter(push(message)))
    attributes = envelope.message.attributes
    assert message_of(attributes) == message
    assert attributes["CloudPubSubDeadLetterSourceTopicPublishTime"] == "2026-11-21T09:30:00.125Z"
    assert attributes["CloudPubSubDeadLetterSourceDeliveryCount"] == "1"
    assert envelope.message.publishTime > "2026-11-21T09:30:00.125Z"
