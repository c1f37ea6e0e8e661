"""The ways that messages take: one topic and one push subscription each, as frozen data.

The embedded queue, the emulators' set-up and Terraform are made from this table or checked against
it. What is slow or fails on one channel delays nothing on another.
"""

from dataclasses import dataclass
from enum import StrEnum

from core.domain.policy import CLASSIFY_PATH, DEAD_LETTER_PATH, JOBS_PATH, NOTIFICATIONS_PATH
from core.domain.priority import Priority


class Lane(StrEnum):
    """Channels of one lane share its concurrency, the most urgent first."""

    IMAGES = "images"
    JOBS = "jobs"
    NOTIFICATIONS = "notifications"
    DEAD_LETTERS = "dead-letters"


@dataclass(frozen=True, slots=True)
class Channel:
    """`name` ends the names of topic and subscription; its messages are POSTed to `path`."""

    name: str
    path: str
    lane: Lane

    def topic(self, prefix: str) -> str:
        return f"{prefix}-{self.name}"

    def subscription(self, prefix: str) -> str:
        return f"{prefix}-{self.name}-push"


IMAGES = {
    priority: Channel(f"images-{priority}", CLASSIFY_PATH, Lane.IMAGES) for priority in Priority
}
JOBS = Channel("jobs", JOBS_PATH, Lane.JOBS)
NOTIFICATIONS = Channel("notifications", NOTIFICATIONS_PATH, Lane.NOTIFICATIONS)
# Where messages of all others end that used up their deliveries.
DEAD_LETTERS = Channel("dead-letters", DEAD_LETTER_PATH, Lane.DEAD_LETTERS)

# Those that are published to, most urgent first.
CHANNELS = (*IMAGES.values(), JOBS, NOTIFICATIONS)
ALL_CHANNELS = (*CHANNELS, DEAD_LETTERS)
BY_NAME = {channel.name: channel for channel in ALL_CHANNELS}
