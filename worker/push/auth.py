"""Authenticates the sender of a push: Google's queue by its token, a local one by a secret."""

import hmac
from collections.abc import Awaitable, Callable

from fastapi import Request

from core.backends.push_secret import local_push_secret
from core.errors import Unauthenticated
from core.settings import Settings

# The keys that sign Google's identity tokens, as a JWK set.
GOOGLE_KEYS_URL = "https://www.googleapis.com/oauth2/v3/certs"

Authenticator = Callable[[Request], Awaitable[None]]


def push_authenticator(settings: Settings) -> Authenticator:
    """Return a function that raises for a caller who may not push. Blocks.

    It raises Unauthenticated, Forbidden, or Unavailable. This function raises Unavailable if the
    secret of the data folder cannot be read.
    """
    if settings.pushes_with_secret:
        return _secret_authenticator(local_push_secret(settings))
    # Imported here: a worker that verifies no tokens needs no cryptography package.
    from worker.push.token import PushTokenVerifier, SigningKeys

    verifier = PushTokenVerifier(
        SigningKeys(GOOGLE_KEYS_URL),
        settings.push_audience,
        settings.push_service_account,
        # `check_worker` refuses this mode anywhere but on Cloud Run. The check is repeated here
        # because the mode accepts tokens that anyone can write.
        signature_optional=settings.push_authentication == "iam" and settings.on_cloud_run,
    )

    async def authenticate(request: Request) -> None:
        await verifier.verify(request.headers.get("authorization", ""))

    return authenticate


def _secret_authenticator(secret: str) -> Authenticator:
    expected = secret.encode()

    async def authenticate(request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            # The Pub/Sub emulator sends no header. It pushes to an address with the secret.
            given = request.query_params.get("token", "")
        if not hmac.compare_digest(given.encode("utf-8", "replace"), expected):
            raise Unauthenticated("A push requires the secret of DATA_DIR.")

    return authenticate
