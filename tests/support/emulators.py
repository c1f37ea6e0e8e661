"""Google's emulators for tests, on free ports."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import grpc
import grpc.aio

from compose.emulators import (
    EmulatorsMissing,
    RunningEmulators,
    emulators,
    firestore_emulator,
    storage_emulator,
)
from core.settings import Settings
from tests.support.requirements import EMULATORS, FIRESTORE
from tests.support.stack import free_port

WARM_UP_SECONDS = 60.0


def free_addresses() -> dict[str, str]:
    """Addresses for the three, as settings of the environment."""
    return {
        "DATASTORE_EMULATOR_HOST": f"127.0.0.1:{free_port()}",
        "PUBSUB_EMULATOR_HOST": f"127.0.0.1:{free_port()}",
        "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{free_port()}",
    }


def addresses_in(namespace: Mapping[str, str]) -> dict[str, str]:
    """The addresses of a namespace's emulators, as `free_addresses` returns them."""
    return {name: value for name, value in namespace.items() if name.endswith("_HOST")}


def own_namespace(addresses: Mapping[str, str]) -> dict[str, str]:
    """Settings for one test on shared emulators: a project of its own, since they take any.

    Bucket and topics have names of their own as well, so that nothing works by a default.
    """
    unique = secrets.token_hex(4)
    return {
        "BACKEND": "emulator",
        "GOOGLE_CLOUD_PROJECT": f"test-{unique}",
        "BUCKET": f"images-{unique}",
        "TOPIC_PREFIX": f"topics-{unique}",
        **addresses,
    }


@asynccontextmanager
async def first_messages(
    settings: Settings, topics: Sequence[str]
) -> AsyncIterator[Callable[[str], Awaitable[dict[str, str]]]]:
    """Gives a function that waits for the first message of a topic, for its attributes.

    It listens from now on, beside the subscriptions that there are.
    """
    from google.pubsub_v1 import SubscriberAsyncClient
    from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcAsyncIOTransport
    from google.pubsub_v1.types import PullRequest, Subscription

    root = f"projects/{settings.google_cloud_project}"

    def listener(topic: str) -> str:
        return f"{root}/subscriptions/{topic}-listener"

    async with grpc.aio.insecure_channel(settings.pubsub_emulator_host) as channel:
        subscriber = SubscriberAsyncClient(
            transport=SubscriberGrpcAsyncIOTransport(channel=channel)
        )
        for topic in topics:
            wanted = Subscription(name=listener(topic), topic=f"{root}/topics/{topic}")
            await subscriber.create_subscription(request=wanted)

        async def first(topic: str) -> dict[str, str]:
            request = PullRequest(subscription=listener(topic), max_messages=1)
            async with asyncio.timeout(60):
                # A pull may end with nothing, and be asked for again.
                while not (found := await pulled(request)):
                    pass
            return found

        async def pulled(request: PullRequest) -> dict[str, str]:
            response = await subscriber.pull(request=request, timeout=20)
            received = response.received_messages
            return dict(received[0].message.attributes) if received else {}

        yield first


def delete_subscriptions(namespace: Mapping[str, str]) -> None:
    """Delete every subscription of a namespace's project, with the messages that are left in it.

    The emulator pushes such a message again every second, in a thread of its own, for as long as
    the subscription exists.
    """
    from google.pubsub_v1 import SubscriberClient
    from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
    from google.pubsub_v1.types import DeleteSubscriptionRequest

    project = f"projects/{namespace['GOOGLE_CLOUD_PROJECT']}"
    with grpc.insecure_channel(namespace["PUBSUB_EMULATOR_HOST"]) as channel:
        subscriber = SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
        for each in subscriber.list_subscriptions(project=project, timeout=60):
            subscriber.delete_subscription(DeleteSubscriptionRequest(subscription=each.name))


async def delete_topic(settings: Settings, topic: str) -> None:
    from google.pubsub_v1 import PublisherAsyncClient
    from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport
    from google.pubsub_v1.types import DeleteTopicRequest

    async with grpc.aio.insecure_channel(settings.pubsub_emulator_host) as channel:
        publisher = PublisherAsyncClient(transport=PublisherGrpcAsyncIOTransport(channel=channel))
        name = f"projects/{settings.google_cloud_project}/topics/{topic}"
        await publisher.delete_topic(request=DeleteTopicRequest(topic=name))


@contextmanager
def running_emulators(folder: Path, addresses: dict[str, str]) -> Iterator[RunningEmulators]:
    """All three, at these addresses."""
    values = {name.lower(): value for name, value in addresses.items()}
    settings = Settings(backend="emulator", **values)  # type: ignore[arg-type]  # names are theirs
    try:
        wanted = emulators(settings, folder)
    except EmulatorsMissing:
        EMULATORS.absent()
    with RunningEmulators(wanted, folder) as running:
        warm_up(settings.datastore_emulator_host)
        yield running


def warm_up(datastore: str) -> None:
    """Write and read once: Java loads what it needs for that, slowly, on a busy machine for
    seconds. No user of a database waits that long for a response.
    """
    from google.cloud.datastore_v1 import DatastoreClient
    from google.cloud.datastore_v1.services.datastore.transports import DatastoreGrpcTransport
    from google.cloud.datastore_v1.types import CommitRequest, Entity, Key, Mutation, PartitionId

    project = "warm-up"
    key = Key(
        partition_id=PartitionId(project_id=project),
        path=[Key.PathElement(kind="Any", name="one")],
    )
    with grpc.insecure_channel(datastore) as channel:
        client = DatastoreClient(transport=DatastoreGrpcTransport(channel=channel))
        written = CommitRequest(
            project_id=project,
            mode=CommitRequest.Mode.NON_TRANSACTIONAL,
            mutations=[Mutation(upsert=Entity(key=key))],
        )
        client.commit(written, timeout=WARM_UP_SECONDS)
        client.lookup(project_id=project, keys=[key], timeout=WARM_UP_SECONDS)


@contextmanager
def running_storage(folder: Path, url: str = "") -> Iterator[str]:
    """Cloud Storage's alone, which every machine can run; its URL."""
    url = url or f"http://127.0.0.1:{free_port()}"
    with RunningEmulators([storage_emulator(folder, url)], folder):
        yield url


@contextmanager
def running_firestore(folder: Path) -> Iterator[str]:
    """Firestore's emulator in Datastore mode; its address."""
    try:
        wanted = firestore_emulator("127.0.0.1", free_port())
    except EmulatorsMissing:
        FIRESTORE.absent()
    address = f"{wanted.host}:{wanted.port}"
    with RunningEmulators([wanted], folder):
        warm_up(address)
        yield address


@contextmanager
def emulators_at_free_addresses(folder: Path) -> Iterator[dict[str, str]]:
    addresses = free_addresses()
    with running_emulators(folder, addresses):
        yield addresses


@contextmanager
def storage_at_free_address(folder: Path) -> Iterator[dict[str, str]]:
    with running_storage(folder) as url:
        yield {"url": url}


@contextmanager
def firestore_at_free_address(folder: Path) -> Iterator[dict[str, str]]:
    with running_firestore(folder) as address:
        yield {"address": address}
