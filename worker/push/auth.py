"""Authenticates the sender of a push, if the settings require it."""

from collections.abc import Awaitable, Callable

from core.settings import Settings

# The keys that sign Google's identity tokens, as a JWK set.
GOOGLE_KEYS_URL = "https://www.googleapis.com/oauth2/v3/certs"

Authenticator = Callable[[str], Awaitable[None]]


def push_authenticator(settings: Settings) -> Authenticator:
    """Returns a function of the Authorization header that raises for a caller who may not push.

    It raises Unauthenticated, Forbidden, or Unavailable.
    """
    if not settings.verifies_pushes:
        return _accept
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
    return verifier.verify


async def _accept(authorization: str) -> None:
    """For a queue on the same machine and for emulators, which send no token."""
