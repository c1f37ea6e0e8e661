"""What the emulators need to exist: topics, push subscriptions, a bucket. Terraform's part there.

Running it again changes what differs and leaves the rest, messages included.
"""

import asyncio
from contextlib import suppress
from datetime import timedelta

from google.api_core.exceptions import AlreadyExists, Conflict
from google.protobuf.field_mask_pb2 import FieldMask
from google.pubsub_v1 import PublisherAsyncClient, SubscriberAsyncClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcAsyncIOTransport
from google.pubsub_v1.types import (
    DeadLetterPolicy,
    ExpirationPolicy,
    PushConfig,
    Subscription,
    Topic,
    UpdateSubscriptionRequest,
)

from core.backends.google.endpoints import Endpoints, open_endpoints
from core.backends.google.errors import translated
from core.clock import utc_now
from core.domain.channels import ALL_CHANNELS, DEAD_LETTERS, Channel
from core.settings import Settings

TIMEOUT = 20.0  # seconds for each request; an emulator's first ones are slow
_CHANGEABLE = ("push_config", "ack_deadline_seconds", "dead_letter_policy")


async def provision(settings: Settings, *, pushing: bool = True) -> None:
    """Create or adjust everything. Raises Unavailable where an emulator does not answer.

    Without `pushing`, no subscriptions: the emulator keeps three threads busy for each, for ever.
    """
    endpoints = await open_endpoints(settings, utc_now)
    with translated("emulator"):
        await _queues(settings, endpoints, pushing)
        await asyncio.to_thread(_bucket, settings, endpoints)


def subscriptions(settings: Settings, project: str) -> list[Subscription]:
    """One push subscription a channel, as its delivery policy wants it, but for the backoff.

    The emulator (0.8.20) forgets messages whose push met a closed port if there is a retry policy:
    of ten, one to five never came again. Without one it repeats every second.

    Its ack deadline also runs for messages that wait for one of its two pushes, and messages that a
    dead worker had come back only after it. With 10 s, of 300 published at once the last ten had
    not come after four minutes; with 600 s, a job stood still for as long after its worker died.
    """
    root, prefix = f"projects/{project}", settings.topic_prefix
    dead_letters = f"{root}/topics/{DEAD_LETTERS.topic(prefix)}"

    def push(channel: Channel) -> Subscription:
        policy = settings.channel_delivery(channel)
        subscription = Subscription(
            name=f"{root}/subscriptions/{channel.subscription(prefix)}",
            topic=f"{root}/topics/{channel.topic(prefix)}",
            push_config=PushConfig(push_endpoint=f"{settings.push_url}{channel.path}"),
            ack_deadline_seconds=int(policy.ack_deadline),
            message_retention_duration=timedelta(seconds=policy.retention),
            expiration_policy=ExpirationPolicy(),  # without a time: never
        )
        if channel is not DEAD_LETTERS:
            subscription.dead_letter_policy = DeadLetterPolicy(
                dead_letter_topic=dead_letters, max_delivery_attempts=policy.attempts
            )
        return subscription

    return [push(channel) for channel in ALL_CHANNELS]


async def _queues(settings: Settings, endpoints: Endpoints, pushing: bool) -> None:
    channel = endpoints.pubsub_channel()
    try:
        publisher = PublisherAsyncClient(transport=PublisherGrpcAsyncIOTransport(channel=channel))
        subscriber = SubscriberAsyncClient(
            transport=SubscriberGrpcAsyncIOTransport(channel=channel)
        )
        for each in ALL_CHANNELS:
            name = each.topic(settings.topic_prefix)
            topic = Topic(name=f"projects/{endpoints.project}/topics/{name}")
            with suppress(AlreadyExists):
                await publisher.create_topic(request=topic, timeout=TIMEOUT)
        for wanted in subscriptions(settings, endpoints.project) if pushing else ():
            try:
                await subscriber.create_subscription(request=wanted, timeout=TIMEOUT)
            except AlreadyExists:
                paths = [name for name in _CHANGEABLE if name in wanted]
                await subscriber.update_subscription(
                    request=UpdateSubscriptionRequest(
                        subscription=wanted, update_mask=FieldMask(paths=paths)
                    ),
                    timeout=TIMEOUT,
                )
    finally:
        await channel.close()


def _bucket(settings: Settings, endpoints: Endpoints) -> None:
    client = endpoints.storage_client()
    try:
        with suppress(Conflict):
            client.create_bucket(settings.bucket, timeout=TIMEOUT)
    finally:
        client.close()
