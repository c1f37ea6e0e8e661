"""Where each backend's clients lead, signed links through IAM, and settings that Google refuses."""

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from aiohttp import web
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from google.auth.credentials import AnonymousCredentials
from pydantic import ValidationError

from core.backends.google import signed_links
from core.backends.google.endpoints import (
    CHANNEL_OPTIONS,
    STORAGE_URL,
    authorized_session,
    bucket_client,
    open_endpoints,
)
from core.backends.google.provision import subscriptions
from core.backends.google.signed_links import IamLinks
from core.clock import utc_now
from core.errors import Unavailable
from core.settings import Settings
from tests.support.settings import isolated_settings

ACCOUNT = "api@demo.iam.gserviceaccount.com"
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
NAME = f"public/{'a' * 64}"


def cloud(**changes: Any) -> Settings:
    values = {"bucket": "b-c", "push_audience": "a", "push_service_account": "s", **changes}
    return isolated_settings(backend="gcp", **values)


@pytest.fixture
def service_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Application default credentials: a key file, of a key that no service trusts."""
    pem = KEY.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    document = {
        "type": "service_account",
        "project_id": "from-credentials",
        "private_key": pem.decode(),
        "client_email": ACCOUNT,
        "token_uri": "https://oauth2.googleapis.com/token",
    }
    path = tmp_path / "key.json"
    path.write_text(json.dumps(document))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    # What a developer's shell may hold must not lead a real deployment to an emulator.
    for name in ("STORAGE_EMULATOR_HOST", "PUBSUB_EMULATOR_HOST", "DATASTORE_EMULATOR_HOST"):
        monkeypatch.setenv(name, "http://127.0.0.1:9" if name.startswith("S") else "127.0.0.1:9")


@pytest.mark.usefixtures("service_account")
async def test_gcp_backend_ignores_emulator_variables() -> None:
    endpoints = await open_endpoints(cloud(), utc_now)
    assert endpoints.project == "from-credentials"
    assert endpoints.credentials is not None
    assert (endpoints.datastore_host, endpoints.pubsub_host) == (
        "datastore.googleapis.com",
        "pubsub.googleapis.com",
    )
    assert endpoints.local_links is None
    client = endpoints.storage_client()
    assert client.api_endpoint == STORAGE_URL
    client.close()
    await endpoints.links.close()
    named = await open_endpoints(cloud(google_cloud_project="named"), utc_now)
    assert named.project == "named"
    await named.links.close()


@pytest.mark.usefixtures("service_account")
def test_buckets_beside_the_backends_own_are_where_the_settings_say(tmp_path: Path) -> None:
    for settings, url in (
        (cloud(), STORAGE_URL),
        (isolated_settings(backend="emulator"), "http://127.0.0.1:9"),  # the environment's
        (
            isolated_settings(storage_emulator_host="http://127.0.0.1:1"),
            "http://127.0.0.1:1",
        ),
    ):
        client = bucket_client(settings, 1)
        assert client.api_endpoint == url
        client.close()


async def test_start_without_credentials_gives_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    with pytest.raises(Unavailable, match="no Google credentials"):
        await open_endpoints(cloud(), utc_now)


async def test_emulators_are_called_without_credentials(tmp_path: Path) -> None:
    settings = isolated_settings(backend="emulator", data_dir=tmp_path)
    endpoints = await open_endpoints(settings, utc_now)
    assert endpoints.credentials is None
    assert endpoints.local_links is not None
    assert endpoints.datastore_host == settings.datastore_emulator_host
    client = endpoints.storage_client()
    assert client.api_endpoint == settings.storage_emulator_host
    client.close()


def test_recovered_service_is_used_within_seconds() -> None:
    assert dict(CHANNEL_OPTIONS)["grpc.max_reconnect_backoff_ms"] <= 2000


class Iam:
    """IAM's signBlob with a real key."""

    def __init__(self) -> None:
        self.url = ""
        self.status = 200
        self.asked: list[str] = []
        self.answering = asyncio.Event()
        self.answering.set()

    async def sign(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        await self.answering.wait()
        payload = base64.b64decode((await request.json())["payload"])
        signature = KEY.sign(payload, padding.PKCS1v15(), hashes.SHA256())
        body = {"keyId": "1", "signedBlob": base64.b64encode(signature).decode()}
        return web.json_response(body, status=self.status)


@pytest.fixture
async def iam() -> AsyncIterator[Iam]:
    iam = Iam()
    app = web.Application()
    app.router.add_post("/v1/{name:.*}", iam.sign)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    iam.url = f"http://{host}:{port}"
    yield iam
    await runner.cleanup()


@pytest.fixture
def deadline() -> float:
    """The time limit for a link in seconds. Tests may override it by `parametrize`."""
    return signed_links.DEADLINE


class ServiceAccount(AnonymousCredentials):
    """Credentials that impersonate `ACCOUNT`."""

    service_account_email = ACCOUNT


@pytest.fixture
async def links(
    iam: Iam, deadline: float, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[IamLinks]:
    monkeypatch.setattr(signed_links, "DEADLINE", deadline)
    account = ServiceAccount()  # type: ignore[no-untyped-call]  # google-auth has no types
    links = IamLinks(
        account,
        authorized_session(account, IamLinks.THREADS),
        "images",
        iam_url=iam.url,
        storage_url=STORAGE_URL,
    )
    yield links
    iam.answering.set()
    await links.close()


def canonical_request(url: str) -> str:
    """https://cloud.google.com/storage/docs/authentication/canonical-requests"""
    parts = urlsplit(url)
    query = "&".join(q for q in parts.query.split("&") if not q.startswith("X-Goog-Signature="))
    host = f"host:{parts.netloc}\n"
    return f"GET\n{parts.path}\n{query}\n{host}\nhost\nUNSIGNED-PAYLOAD"


async def test_links_are_signed_by_iam(iam: Iam, links: IamLinks) -> None:
    url = await links.url(NAME, timedelta(minutes=15))
    assert url.startswith(f"{STORAGE_URL}/images/{NAME}?")
    assert iam.asked == [f"/v1/projects/-/serviceAccounts/{ACCOUNT}:signBlob"]
    query = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    assert query["X-Goog-Expires"] == "900"
    credential = query["X-Goog-Credential"]
    assert credential.startswith(f"{ACCOUNT}/")
    digest = hashlib.sha256(canonical_request(url).encode()).hexdigest()
    scope = credential.removeprefix(f"{ACCOUNT}/")
    text = f"GOOG4-RSA-SHA256\n{query['X-Goog-Date']}\n{scope}\n{digest}"
    # Raises where the signature is of anything else.
    KEY.public_key().verify(
        bytes.fromhex(query["X-Goog-Signature"]),
        text.encode(),
        padding.PKCS1v15(),
        hashes.SHA256(),
    )


@pytest.mark.parametrize("status", [403, 429, 500, 503])
async def test_refusal_by_iam_is_503(iam: Iam, links: IamLinks, status: int) -> None:
    iam.status = status
    with pytest.raises(Unavailable, match="signing service"):
        await links.url(NAME, timedelta(minutes=15))
    assert len(iam.asked) == 1  # no two minutes of retries


@pytest.mark.parametrize("deadline", [0.3])
async def test_caller_does_not_wait_while_iam_hangs(
    iam: Iam, links: IamLinks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not wait for a free thread either, while all of them wait for IAM."""
    monkeypatch.setattr(signed_links, "TIMEOUT", (60.0, 60.0))
    iam.answering.clear()
    calls = [links.url(NAME, timedelta(minutes=15)) for _ in range(IamLinks.THREADS + 1)]
    async with asyncio.timeout(30):
        ended = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(each) for each in ended} == {Unavailable}


@pytest.mark.parametrize("deadline", [60.0])
async def test_hanging_request_to_iam_frees_its_thread(
    iam: Iam, links: IamLinks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signed_links, "TIMEOUT", (0.1, 0.1))
    iam.answering.clear()
    async with asyncio.timeout(30):
        with pytest.raises(Unavailable):
            await links.url(NAME, timedelta(minutes=15))


async def test_credentials_that_are_no_service_accounts_sign_nothing(iam: Iam) -> None:
    nobody = AnonymousCredentials()
    links = IamLinks(
        nobody, authorized_session(nobody, 1), "b", iam_url=iam.url, storage_url=STORAGE_URL
    )
    with pytest.raises(Unavailable):
        await links.url(NAME, timedelta(minutes=15))
    await links.close()


def test_subscriptions_follow_the_delivery_policy() -> None:
    settings = Settings(
        _env_file=None,
        backend="emulator",
        push_endpoint="http://worker:8081",
        topic_prefix="other",
        delivery_attempts=20,
    )
    made = {each.name: each for each in subscriptions(settings, "demo", "s3cret")}
    root, policy = "projects/demo", settings.delivery
    assert {name: each.push_config.push_endpoint for name, each in made.items()} == {
        f"{root}/subscriptions/other-{name}-push": f"http://worker:8081{path}?token=s3cret"
        for name, path in {
            "images-high": "/generate_annotations",
            "images-normal": "/generate_annotations",
            "images-low": "/generate_annotations",
            "jobs": "/jobs",
            "notifications": "/notifications",
            "dead-letters": "/generate_annotations_dlq",
        }.items()
    }
    for name, each in made.items():
        assert each.topic == name.replace("subscriptions", "topics").removesuffix("-push")
        assert each.ack_deadline_seconds == policy.ack_deadline
        assert each.message_retention_duration == timedelta(seconds=policy.retention)
        assert "ttl" not in each.expiration_policy
        dead = each.dead_letter_policy
        if name.endswith("dead-letters-push"):
            assert not dead.dead_letter_topic
        else:
            assert dead.dead_letter_topic == f"{root}/topics/other-dead-letters"
            patient = name.endswith("notifications-push")
            assert dead.max_delivery_attempts == (80 if patient else 20)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"delivery_attempts": 4}, "DELIVERY_ATTEMPTS between 5 and 100"),
        ({"topic_prefix": "1"}, "topic_prefix"),
        ({"pubsub_emulator_host": "http://localhost:8085"}, "pubsub_emulator_host"),
        ({"storage_emulator_host": "localhost:9023"}, "storage_emulator_host"),
    ],
    ids=str,
)
def test_settings_that_google_would_refuse_are_refused_at_the_start(
    wrong: dict[str, Any], message: str
) -> None:
    isolated_settings(backend="emulator")
    with pytest.raises(ValidationError, match=message):
        isolated_settings(backend="emulator", **wrong)


def test_gcp_needs_a_bucket() -> None:
    with pytest.raises(ValidationError, match="BUCKET"):
        Settings(
            _env_file=None, backend="gcp", push_audience="audience", push_service_account="a@b.c"
        )
