"""Channels: each is one topic with one push subscription, as frozen data.

The embedded queue and the set-up of the emulators use this table, and tests check Terraform against
it. A slow or failing channel does not delay another.
"""

from dataclasses import dataclass
from enum import StrEnum

from core.domain.policy import CLASSIFY_PATH, DEAD_LETTER_PATH, JOBS_PATH, NOTIFICATIONS_PATH
from core.domain.priority import Priority


class Lane(StrEnum):
    """Channels of one lane share its concurrency; messages of the most urgent go first."""

    IMAGES = "images"
    JOBS = "jobs"
    NOTIFICATIONS = "notifications"
    DEAD_LETTERS = "dead-letters"


@dataclass(frozen=True, slots=True, eq=False)
class Channel:
    """`name` is part of the names of topic and subscription; messages are POSTed to `path`."""

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
# Receives the messages of all other channels that used up their deliveries.
DEAD_LETTERS = Channel("dead-letters", DEAD_LETTER_PATH, Lane.DEAD_LETTERS)

# Channels that services publish to, most urgent first.
CHANNELS = (*IMAGES.values(), JOBS, NOTIFICATIONS)
ALL_CHANNELS = (*CHANNELS, DEAD_LETTERS)
BY_NAME = {channel.name: channel for channel in ALL_CHANNELS}
