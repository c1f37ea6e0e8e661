"""Verification of push tokens: claims, signatures, and the keys of a local server."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from pydantic import ValidationError

from core.errors import Forbidden, Unauthenticated, Unavailable
from core.settings import Settings
from tests.support.clock import LoopClock
from tests.support.problems import assert_problem
from tests.support.receivers import listening
from tests.support.scripted_worker import until
from tests.support.settings import isolated_settings
from tests.support.worker import envelope, running_worker, settings_in
from worker.push.token import KEYS_SECONDS, PushTokenVerifier, SigningKeys

AUDIENCE = "https://worker.example/push"
ACCOUNT = "pusher@demo.iam.gserviceaccount.com"
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def jwk(key: rsa.RSAPrivateKey, key_id: str) -> dict[str, Any]:
    document: dict[str, Any] = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return {**document, "kid": key_id, "alg": "RS256", "use": "sig"}


class KeyServer:
    """Serves a JWK set and counts requests."""

    def __init__(self) -> None:
        self.keys = [jwk(KEY, "one")]
        self.status = 200
        self.body: str | None = None
        self.responding = asyncio.Event()
        self.responding.set()
        self.fetches = 0
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.fetches += 1
        await self.responding.wait()
        body = json.dumps({"keys": self.keys}) if self.body is None else self.body
        headers = {"Location": "/elsewhere"} if self.status == 302 else {}
        return web.Response(
            text=body, status=self.status, headers=headers, content_type="application/json"
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator["KeyServer"]:
        app = web.Application()
        app.router.add_get("/certs", self.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}/certs"
        try:
            yield self
        finally:
            await runner.cleanup()


class MovableTime:
    """Replaces the module `time` where keys are cached."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
async def server() -> AsyncIterator[KeyServer]:
    async with KeyServer().running() as running:
        yield running


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> MovableTime:
    moved = MovableTime()
    for module in ("worker.push.token", "jwt.api_jwk", "jwt.jwk_set_cache", "jwt.jwks_client"):
        monkeypatch.setattr(f"{module}.time", moved)
    return moved


@pytest.fixture(params=[False, True], ids=["oidc", "iam"])
def verifier(
    server: KeyServer, clock: MovableTime, request: pytest.FixtureRequest
) -> PushTokenVerifier:
    return PushTokenVerifier(
        SigningKeys(server.url), AUDIENCE, ACCOUNT, signature_optional=request.param
    )


@pytest.fixture
def lenient(server: KeyServer, clock: MovableTime) -> PushTokenVerifier:
    """A verifier that accepts tokens without their signature."""
    return PushTokenVerifier(SigningKeys(server.url), AUDIENCE, ACCOUNT, signature_optional=True)


def claims(**changes: object) -> dict[str, object]:
    """The claims that Pub/Sub sends; None removes a claim."""
    now = int(time.time())
    made: dict[str, object] = {
        "aud": AUDIENCE,
        "azp": "113774264463038321964",
        "email": ACCOUNT,
        "email_verified": True,
        "exp": now + 3600,
        "iat": now,
        "iss": "https://accounts.google.com",
        "sub": "113774264463038321964",
        **changes,
    }
    return {name: value for name, value in made.items() if value is not None}


def token(
    key: Any = KEY, key_id: str | None = "one", algorithm: str = "RS256", **changes: object
) -> str:
    headers = {} if key_id is None else {"kid": key_id}
    return jwt.encode(claims(**changes), key, algorithm=algorithm, headers=headers)


def token_with(wrong: dict[str, object]) -> str:
    return jwt.encode(claims(**wrong), KEY, algorithm="RS256", headers={"kid": "one"})


def without_signature(made: str) -> str:
    """The token as Cloud Run passes it on."""
    return f"{made.rpartition('.')[0]}.SIGNATURE_REMOVED_BY_GOOGLE"


async def test_token_of_the_service_account_is_accepted(verifier: PushTokenVerifier) -> None:
    await verifier.verify(f"Bearer {token()}")
    await verifier.verify(f"bearer {token(iss='accounts.google.com')}")
    await verifier.verify(f"Bearer {token(exp=time.time() - 20)}")  # clocks may differ


WRONG_CLAIMS: list[dict[str, object]] = [
    {"aud": "https://worker.example/push/"},
    {"aud": "https://worker.example"},
    {"aud": [AUDIENCE]},
    {"aud": [AUDIENCE, "https://elsewhere.example"]},
    {"aud": None},
    {"iss": "https://accounts.google.com.evil.example"},
    {"iss": "https://evil.example"},
    {"iss": None},
    {"exp": -120},
    {"exp": None},
    {"iat": 3600},
    {"iat": None},
    {"nbf": 3600},
    {"email": None},
    {"email_verified": None},
    {"sub": None},
]


def at(wrong: dict[str, object]) -> dict[str, object]:
    """The claims with times in place of seconds from now."""
    return {k: time.time() + v if isinstance(v, int) else v for k, v in wrong.items()}


@pytest.mark.parametrize("wrong", WRONG_CLAIMS, ids=str)
async def test_wrong_claim_is_401(verifier: PushTokenVerifier, wrong: dict[str, object]) -> None:
    with pytest.raises(Unauthenticated):
        await verifier.verify(f"Bearer {token_with(at(wrong))}")


@pytest.mark.parametrize("wrong", WRONG_CLAIMS, ids=str)
async def test_wrong_claim_without_signature_is_401(
    lenient: PushTokenVerifier, wrong: dict[str, object]
) -> None:
    with pytest.raises(Unauthenticated):
        await lenient.verify(f"Bearer {without_signature(token_with(at(wrong)))}")


WRONG_ACCOUNTS: list[dict[str, object]] = [
    {"email": "other@demo.iam.gserviceaccount.com"},
    {"email": ACCOUNT.upper()},
    {"email": f"{ACCOUNT} "},
    {"email_verified": False},
    {"email_verified": "true"},
    {"email_verified": 1},
]


@pytest.mark.parametrize("wrong", WRONG_ACCOUNTS, ids=str)
async def test_token_of_another_account_is_403(
    verifier: PushTokenVerifier, wrong: dict[str, object]
) -> None:
    with pytest.raises(Forbidden):
        await verifier.verify(f"Bearer {token_with(wrong)}")


@pytest.mark.parametrize("wrong", WRONG_ACCOUNTS, ids=str)
async def test_token_of_another_account_without_signature_is_403(
    lenient: PushTokenVerifier, wrong: dict[str, object]
) -> None:
    with pytest.raises(Forbidden):
        await lenient.verify(f"Bearer {without_signature(token_with(wrong))}")


async def test_removed_signature_is_accepted_only_where_it_is_optional(
    lenient: PushTokenVerifier, server: KeyServer, clock: MovableTime
) -> None:
    removed = f"Bearer {without_signature(token())}"
    await lenient.verify(removed)
    assert server.fetches == 0
    strict = PushTokenVerifier(SigningKeys(server.url), AUDIENCE, ACCOUNT)
    with pytest.raises(Unauthenticated):
        await strict.verify(removed)


@pytest.mark.parametrize(
    "signature",
    ["", "SIGNATURE_REMOVED", "signature_removed_by_google", "SIGNATURE_REMOVED_BY_GOOGLE.x"],
)
async def test_other_text_in_place_of_the_signature_is_401(
    verifier: PushTokenVerifier, signature: str
) -> None:
    with pytest.raises(Unauthenticated):
        await verifier.verify(f"Bearer {token().rpartition('.')[0]}.{signature}")


@pytest.mark.parametrize("made", ["SIGNATURE_REMOVED_BY_GOOGLE", ".", "a.b", "e30.e30", "..a"])
async def test_malformed_token_without_signature_is_401(
    lenient: PushTokenVerifier, made: str
) -> None:
    with pytest.raises(Unauthenticated):
        await lenient.verify(f"Bearer {made}.SIGNATURE_REMOVED_BY_GOOGLE")


def hmac_with_public_key() -> str:
    """A token that uses the public key as an HMAC secret (algorithm confusion)."""
    pem = KEY.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    parts = [{"alg": "HS256", "kid": "one", "typ": "JWT"}, claims()]
    signed = b".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts
    )
    signature = hmac.new(pem, signed, hashlib.sha256).digest()
    return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def tampered() -> str:
    """A token whose claim was changed after it was signed."""
    header, _, signature = token(email="other@demo.iam.gserviceaccount.com").split(".")
    body = base64.urlsafe_b64encode(json.dumps(claims()).encode()).rstrip(b"=").decode()
    return f"{header}.{body}.{signature}"


@pytest.mark.parametrize(
    "made",
    [
        lambda: token(key=OTHER),
        lambda: token(key_id="unknown"),
        lambda: token(key_id=None),
        lambda: token(algorithm="RS512"),
        lambda: token(key=ec.generate_private_key(ec.SECP256R1()), algorithm="ES256"),
        lambda: token(key="", algorithm="none"),
        hmac_with_public_key,
        tampered,
        lambda: token()[:-4],
        lambda: "a.b.c",
        lambda: token(padding="x" * 9000),
        lambda: "",
    ],
)
async def test_wrong_signature_is_401(verifier: PushTokenVerifier, made: Callable[[], str]) -> None:
    with pytest.raises(Unauthenticated):
        await verifier.verify(f"Bearer {made()}")


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic {token}", "{token}"])
async def test_missing_bearer_token_is_401(verifier: PushTokenVerifier, header: str) -> None:
    with pytest.raises(Unauthenticated):
        await verifier.verify(header.format(token=token()))


async def test_keys_are_fetched_once_until_they_expire(
    verifier: PushTokenVerifier, server: KeyServer, clock: MovableTime
) -> None:
    await asyncio.gather(*(verifier.verify(f"Bearer {token()}") for _ in range(50)))
    assert server.fetches == 1
    clock.move(KEYS_SECONDS)
    await verifier.verify(f"Bearer {token()}")
    assert server.fetches == 1
    clock.move(0.1)
    await verifier.verify(f"Bearer {token()}")
    assert server.fetches == 2


async def test_unknown_key_causes_at_most_one_fetch_a_minute(
    verifier: PushTokenVerifier, server: KeyServer, clock: MovableTime
) -> None:
    await verifier.verify(f"Bearer {token()}")
    server.keys.append(jwk(OTHER, "two"))
    rotated = f"Bearer {token(key=OTHER, key_id='two')}"
    for _ in range(20):
        with pytest.raises(Unauthenticated):
            await verifier.verify(rotated)
    clock.move(59)
    with pytest.raises(Unauthenticated):
        await verifier.verify(rotated)
    assert server.fetches == 1
    clock.move(2)
    await verifier.verify(rotated)
    await verifier.verify(f"Bearer {token()}")
    assert server.fetches == 2


async def test_withdrawn_key_is_refused_after_the_keys_expire(
    verifier: PushTokenVerifier, server: KeyServer, clock: MovableTime
) -> None:
    await verifier.verify(f"Bearer {token()}")
    server.keys = [jwk(OTHER, "two")]
    clock.move(KEYS_SECONDS + 1)
    with pytest.raises(Unauthenticated):
        await verifier.verify(f"Bearer {token()}")


async def test_key_for_encryption_is_not_accepted(
    verifier: PushTokenVerifier, server: KeyServer
) -> None:
    server.keys = [jwk(KEY, "one") | {"use": "enc"}, jwk(OTHER, "two")]
    with pytest.raises(Unauthenticated):
        await verifier.verify(f"Bearer {token()}")


BROKEN: list[dict[str, Any]] = [
    {"status": 500},
    {"status": 302},
    {"body": "<html>"},
    {"body": "\ufffd{"},
    {"body": "[]"},
    {"keys": []},
]


@pytest.mark.parametrize("broken", BROKEN, ids=str)
async def test_failed_fetch_is_503_and_repeated_after_a_pause(
    verifier: PushTokenVerifier, server: KeyServer, clock: MovableTime, broken: dict[str, Any]
) -> None:
    whole = {name: getattr(server, name) for name in broken}
    for name, value in broken.items():
        setattr(server, name, value)
    for _ in range(5):
        with pytest.raises(Unavailable):
            await verifier.verify(f"Bearer {token()}")
    assert server.fetches == 1
    for name, value in whole.items():
        setattr(server, name, value)
    clock.move(5)
    await verifier.verify(f"Bearer {token()}")


async def test_failed_fetch_for_an_unknown_key_keeps_the_cached_keys(
    verifier: PushTokenVerifier, server: KeyServer, clock: MovableTime
) -> None:
    await verifier.verify(f"Bearer {token()}")
    server.status = 503
    clock.move(61)
    for _ in range(5):
        with pytest.raises(Unauthenticated):
            await verifier.verify(f"Bearer {token(key_id='two')}")
    await verifier.verify(f"Bearer {token()}")
    assert server.fetches == 2
    clock.move(KEYS_SECONDS)
    with pytest.raises(Unavailable):
        await verifier.verify(f"Bearer {token()}")


async def test_cached_key_does_not_wait_for_a_fetch(
    verifier: PushTokenVerifier, server: KeyServer, clock: MovableTime
) -> None:
    await verifier.verify(f"Bearer {token()}")
    clock.move(61)
    server.responding.clear()
    unknown = asyncio.create_task(verifier.verify(f"Bearer {token(key_id='two')}"))
    await until(lambda: server.fetches == 2)
    await verifier.verify(f"Bearer {token()}")
    assert not unknown.done()
    server.responding.set()
    with pytest.raises(Unauthenticated):
        await unknown


async def test_fetch_has_a_time_limit(loop_clock: LoopClock) -> None:
    """A server that sends single bytes slowly is not ended by a read timeout."""

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
        while True:
            writer.write(b" ")
            await writer.drain()
            await loop_clock.move(0.02)

    async with listening(drip) as port:
        keys = SigningKeys(f"http://127.0.0.1:{port}/")
        async with asyncio.timeout(10):
            with pytest.raises(Unavailable):
                await keys.get("one")


PATHS = (
    *("/generate_annotations", "/generate_annotations_dlq", "/jobs", "/notifications"),
    *("/reconcile", "/schedule"),
)


async def test_worker_requires_a_token_before_it_reads_a_body(
    tmp_path: Path, server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.push.auth.GOOGLE_KEYS_URL", server.url)
    settings = settings_in(
        tmp_path, push_auth="oidc", push_audience=AUDIENCE, push_service_account=ACCOUNT
    )
    bodies_read = 0

    async with running_worker(settings) as worker:
        key = await worker.submit()

        async def body() -> AsyncIterator[bytes]:
            nonlocal bodies_read
            bodies_read += 1
            yield envelope(key)

        async def push(path: str, **headers: str) -> httpx.Response:
            return await worker.client.post(path, content=body(), headers=headers)

        for path in PATHS:
            missing = await push(path)
            assert_problem(missing, 401, "unauthenticated")
            assert missing.headers["www-authenticate"] == "Bearer"
            other = await push(path, authorization=f"Bearer {token(email='a@b.example')}")
            assert_problem(other, 403, "forbidden")
        assert bodies_read == 0
        assert (await worker.record(key)).attempts == 0

        good = f"Bearer {token()}"
        assert (await push("/generate_annotations", authorization=good)).status_code == 204
        assert (await push("/reconcile", authorization=good)).status_code == 200
        assert (await worker.record(key)).status == "success"
        assert (await worker.client.get("/health")).status_code == 204


@pytest.mark.parametrize(
    ("push_auth", "k_service", "status"),
    [("oidc", "worker", 401), ("iam", "", 401), ("iam", "worker", 204)],
)
async def test_worker_accepts_a_removed_signature_only_with_iam_on_cloud_run(
    tmp_path: Path,
    push_auth: str,
    k_service: str,
    status: int,
    server: KeyServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.push.auth.GOOGLE_KEYS_URL", server.url)
    monkeypatch.setenv("K_SERVICE", k_service)
    settings = settings_in(
        tmp_path,
        push_auth=push_auth,
        push_audience=AUDIENCE,
        push_service_account=ACCOUNT,
    )
    async with running_worker(settings) as worker:
        response = await worker.client.post(
            "/generate_annotations",
            content=envelope(await worker.submit()),
            headers={"authorization": f"Bearer {without_signature(token())}"},
        )
    assert response.status_code == status


PUSH: dict[str, Any] = {"push_audience": AUDIENCE, "push_service_account": ACCOUNT}


@pytest.mark.parametrize(
    "values",
    [
        {"backend": "gcp", "bucket": "images"},
        {"backend": "emulator", "push_auth": "oidc"},
        {"push_auth": "iam"},
    ],
)
@pytest.mark.parametrize("absent", ["push_audience", "push_service_account"])
def test_audience_and_service_account_are_required(values: dict[str, Any], absent: str) -> None:
    assert isolated_settings(**values, **PUSH).verifies_pushes
    with pytest.raises(ValidationError, match="PUSH_AUDIENCE and PUSH_SERVICE_ACCOUNT"):
        isolated_settings(**values, **{**PUSH, absent: ""})


def test_gcp_always_verifies_tokens() -> None:
    values: dict[str, Any] = {"_env_file": None, "backend": "gcp", "bucket": "b-c", **PUSH}
    assert Settings(**values).push_authentication == "iam"
    assert Settings(**values, push_auth="oidc").push_authentication == "oidc"
    with pytest.raises(ValidationError, match="PUSH_AUTH=iam or PUSH_AUTH=oidc"):
        Settings(**values, push_auth="off")
