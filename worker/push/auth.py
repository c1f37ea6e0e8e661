"""Whether a push has to prove who sends it, as the settings say."""

from collections.abc import Awaitable, Callable

from fastapi import Request

from core.settings import Settings

# Keys that sign Google's identity tokens, as a JWK set.
GOOGLE_KEYS_URL = "https://www.googleapis.com/oauth2/v3/certs"

Guard = Callable[[Request], Awaitable[None]]


def push_guard(settings: Settings) -> Guard | None:
    """What to call before each push, or None where anybody may push."""
    if not settings.verifies_pushes:
        return None
    # Imported here: a worker that checks no tokens needs no cryptography installed.
    from worker.push.token import PushTokenVerifier, SigningKeys

    verifier = PushTokenVerifier(
        SigningKeys(GOOGLE_KEYS_URL), settings.push_audience, settings.push_service_account
    )

    async def admit(request: Request) -> None:
        await verifier.verify(request.headers.get("authorization", ""))

    return admit
