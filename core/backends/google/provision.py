"""Creates topics, push subscriptions and the bucket on the emulators, as Terraform does on gcp.

Running it again changes what differs. Messages stay.
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
from core.backends.push_secret import local_push_secret
from core.clock import utc_now
from core.domain.channels import ALL_CHANNELS, DEAD_LETTERS, Channel
from core.settings import Settings

TIMEOUT = 20.0  # seconds for each request. The first ones to an emulator are slow
_CHANGEABLE = ("push_config", "ack_deadline_seconds", "dead_letter_policy")


async def provision(settings: Settings, *, pushing: bool = True) -> None:
    """Create or update everything. Raises Unavailable if an emulator does not answer.

    Without `pushing` there are no subscriptions: the emulator keeps three threads busy for each.
    """
    endpoints = await open_endpoints(settings, utc_now)
    secret = await asyncio.to_thread(local_push_secret, settings) if pushing else ""
    with translated("emulator"):
        await _queues(settings, endpoints, secret)
        await asyncio.to_thread(_bucket, settings, endpoints)


def subscriptions(settings: Settings, project: str, secret: str) -> list[Subscription]:
    """A push subscription for each channel, by its delivery policy except for the backoff.

    The emulator sends no header that a worker could verify, so the endpoint has the secret.

    With a retry policy the emulator (0.8.20) loses messages whose push met a closed port: of ten,
    one to five were not delivered again. Without one it retries every second.

    Its ack deadline also runs for messages that wait for one of its two pushes, and it redelivers
    the messages of a dead worker only after the deadline. With 10 s, the last ten of 300 messages
    took more than four minutes. With 600 s, a job stopped for that long after its worker died.
    """
    root, prefix = f"projects/{project}", settings.topic_prefix
    dead_letters = f"{root}/topics/{DEAD_LETTERS.topic(prefix)}"

    def push(channel: Channel) -> Subscription:
        policy = settings.channel_delivery(channel)
        subscription = Subscription(
            name=f"{root}/subscriptions/{channel.subscription(prefix)}",
            topic=f"{root}/topics/{channel.topic(prefix)}",
            push_config=PushConfig(
                push_endpoint=f"{settings.push_url}{channel.path}?token={secret}"
            ),
            ack_deadline_seconds=int(policy.ack_deadline),
            message_retention_duration=timedelta(seconds=policy.retention),
            expiration_policy=ExpirationPolicy(),  # without a TTL it never expires
        )
        if channel is not DEAD_LETTERS:
            subscription.dead_letter_policy = DeadLetterPolicy(
                dead_letter_topic=dead_letters, max_delivery_attempts=policy.attempts
            )
        return subscription

    return [push(channel) for channel in ALL_CHANNELS]


async def _queues(settings: Settings, endpoints: Endpoints, secret: str) -> None:
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
        for wanted in subscriptions(settings, endpoints.project, secret) if secret else ():
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
