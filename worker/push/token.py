"""Verifies the OpenID Connect token that Pub/Sub and Cloud Scheduler send with a push.

https://cloud.google.com/pubsub/docs/authenticate-push-subscriptions

Cloud Run checks the token before the container gets the request, and may pass it on with the text
`SIGNATURE_REMOVED_BY_GOOGLE` in place of the signature:
https://cloud.google.com/run/docs/troubleshooting#signature-removed
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jwt
import structlog

from core.errors import Forbidden, Unauthenticated, Unavailable

log = structlog.get_logger(__name__)

ALGORITHM = "RS256"
ISSUERS = ("https://accounts.google.com", "accounts.google.com")
CLAIMS = ("aud", "email", "email_verified", "exp", "iat", "iss", "sub")
REMOVED_SIGNATURE = "SIGNATURE_REMOVED_BY_GOOGLE"
LEEWAY = 30.0  # seconds by which clocks may differ
MAX_TOKEN = 8192  # characters
FETCH_SECONDS = 3.0
KEYS_SECONDS = 3600.0  # how long fetched keys stay valid
UNKNOWN_KEY_PAUSE = 60.0  # seconds between a fetch and the next one for an unknown key
FAILURE_PAUSE = 5.0  # seconds between a failed fetch and the next one


class SigningKeys:
    """The signing keys at a URL, which `jwt.PyJWKClient` fetches and caches.

    The client's own lookup blocks callers while it fetches, and repeats a failed fetch for every
    caller. Therefore this class fetches in a thread, once for all concurrent callers, and pauses
    between fetches. Lookups of cached keys never wait.
    """

    def __init__(self, url: str) -> None:
        self._client = jwt.PyJWKClient(url, lifespan=KEYS_SECONDS, timeout=FETCH_SECONDS)
        # A single thread, so that a fetch that hangs does not occupy further threads.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="signing-keys")
        self._fetching = asyncio.Lock()
        self._next_fetch = time.monotonic()

    async def get(self, key_id: str) -> jwt.PyJWK | None:
        """The key, or None if the issuer has no key with this id. Raises Unavailable."""
        key = self._cached().get(key_id)
        if key is not None:
            return key
        async with self._fetching:
            # Another caller may have fetched the key in between.
            if key_id not in self._cached() and time.monotonic() >= self._next_fetch:
                await self._fetch()
        keys = self._cached()
        if not keys:
            raise Unavailable("The keys that sign pushes cannot be fetched.")
        return keys.get(key_id)

    def _cached(self) -> dict[str, jwt.PyJWK]:
        """The keys by id; empty if they have expired or were never fetched."""
        cache = self._client.jwk_set_cache
        found = None if cache is None else cache.get()
        return {
            key.key_id: key
            for key in (found.keys if found else ())
            if key.key_id and key.public_key_use in ("sig", None)
        }

    async def _fetch(self) -> None:
        """Replace the cached keys. After a failure, they stay until they expire."""
        loop = asyncio.get_running_loop()
        pause = FAILURE_PAUSE
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                await loop.run_in_executor(self._thread, self._client.get_jwk_set, True)
            pause = UNKNOWN_KEY_PAUSE
        except (jwt.PyJWTError, OSError, ValueError) as error:  # ValueError: not JSON
            log.error("signing keys not fetched", reason=f"{type(error).__name__}: {error}"[:200])
        finally:
            self._next_fetch = time.monotonic() + pause


@dataclass(frozen=True, slots=True)
class PushTokenVerifier:
    """Accepts tokens of one service account for one audience.

    With `signature_optional`, it also accepts a token whose signature Cloud Run has removed. That
    is safe only behind Cloud Run's own check of callers. A signature that is present is always
    verified.
    """

    keys: SigningKeys
    audience: str
    service_account: str
    signature_optional: bool = False

    async def verify(self, authorization: str) -> None:
        """Return if the Authorization header has a valid token of the service account.

        Raises Unauthenticated for no or an invalid token, Forbidden for another account's token,
        and Unavailable if the issuer's keys cannot be fetched.
        """
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token or len(token) > MAX_TOKEN:
            raise Unauthenticated("A push requires a bearer token.")
        signed, _, signature = token.rpartition(".")
        if self.signature_optional and signature == REMOVED_SIGNATURE:
            self._check(self._claims(f"{signed}.", None))
            return
        try:
            key_id = jwt.get_unverified_header(token).get("kid", "")
        except jwt.PyJWTError:
            raise Unauthenticated("The token is malformed.") from None
        key = await self.keys.get(key_id)
        if key is None:
            raise Unauthenticated("The token is signed with an unknown key.")
        self._check(self._claims(token, key))

    def _claims(self, token: str, key: jwt.PyJWK | None) -> dict[str, Any]:
        """The token's claims. `key` verifies the signature; None accepts any. Checks the rest."""
        try:
            return jwt.decode(
                token,
                key or "",
                algorithms=[ALGORITHM],
                audience=self.audience,
                issuer=ISSUERS,
                leeway=LEEWAY,
                options={
                    "require": list(CLAIMS),
                    "strict_aud": True,
                    "verify_signature": key is not None,
                    # Without a signature, the library checks only what is named here.
                    "verify_aud": True,
                    "verify_iss": True,
                    "verify_exp": True,
                    "verify_iat": True,
                    "verify_nbf": True,
                },
            )
        except jwt.PyJWTError as error:
            # The library's messages name the claim and contain no part of the token.
            log.warning("push refused", reason=f"{type(error).__name__}: {error}"[:200])
            raise Unauthenticated("The token is not valid.") from None

    def _check(self, claims: dict[str, Any]) -> None:
        if claims["email_verified"] is not True:
            raise Forbidden("The e-mail address of the token is not verified.")
        if claims["email"] != self.service_account:
            log.warning(
                "push refused", reason="another account", account=str(claims["email"])[:100]
            )
            raise Forbidden("This account may not push.")
