"""Who pushes: the OpenID Connect token that Pub/Sub and Cloud Scheduler send with a push.

https://cloud.google.com/pubsub/docs/authenticate-push-subscriptions
Keys are kept as long as the answer that brought them allows, and fetched anew for a key id that is
not among them, at most once a minute.
"""

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import jwt
import structlog

from core.errors import Forbidden, Unauthenticated, Unavailable

log = structlog.get_logger(__name__)

ALGORITHM = "RS256"
ISSUERS = ("https://accounts.google.com", "accounts.google.com")
CLAIMS = ("aud", "email", "email_verified", "exp", "iat", "iss", "sub")
LEEWAY = 30.0  # seconds by which clocks may differ
MAX_TOKEN = 8192  # characters
FETCH_SECONDS = 3.0
DEFAULT_VALIDITY, LEAST_VALIDITY, MOST_VALIDITY = 3600.0, 60.0, 24 * 3600.0  # seconds of a key set
UNKNOWN_KEY_PAUSE = 60.0  # seconds between fetches for keys that we do not know
FAILURE_PAUSE = 5.0  # seconds after a fetch that failed
_MAX_AGE = re.compile(r"(?:^|[\s,])max-age=([0-9]{1,9})")


class SigningKeys:
    """The key set at one address. Fetches do not overlap; `clock` is in seconds and only rises."""

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._clock = clock
        self._keys: Mapping[str, jwt.PyJWK] = {}
        self._expires_at = self._next_fetch_at = clock()
        self._fetching = asyncio.Lock()

    async def get(self, key_id: str) -> jwt.PyJWK | None:
        """The key, or None where the issuer has none by that name. Raises Unavailable."""
        if self._is_fresh(key_id):
            return self._keys[key_id]
        async with self._fetching:
            # Whoever waited for another's fetch finds its outcome here.
            expired = self._clock() >= self._expires_at
            if self._clock() < self._next_fetch_at:
                if expired:
                    raise Unavailable("The keys that sign pushes cannot be fetched.")
            elif expired or key_id not in self._keys:
                await self._fetch()
        return self._keys.get(key_id)

    def _is_fresh(self, key_id: str) -> bool:
        return key_id in self._keys and self._clock() < self._expires_at

    async def _fetch(self) -> None:
        self._next_fetch_at = self._clock() + FAILURE_PAUSE
        timeout = aiohttp.ClientTimeout(total=FETCH_SECONDS)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(self._url, allow_redirects=False) as response,
            ):
                if response.status != 200:
                    raise ValueError(f"HTTP {response.status}")
                keys = _key_set(await response.json(content_type=None))
                validity = _validity(response.headers.get("Cache-Control", ""))
        except (aiohttp.ClientError, TimeoutError, ValueError, jwt.PyJWTError) as error:
            log.error("signing keys not fetched", reason=f"{type(error).__name__}: {error}"[:200])
            if self._clock() < self._expires_at:
                return  # those at hand are still good
            raise Unavailable("The keys that sign pushes cannot be fetched.") from error
        self._keys = keys
        self._expires_at = self._clock() + validity
        # Not past the expiry, or an answer that is good for less would lock us out.
        self._next_fetch_at = self._clock() + min(UNKNOWN_KEY_PAUSE, validity)


class PushTokenVerifier:
    """Admits pushes of one service account for one audience."""

    def __init__(self, keys: SigningKeys, audience: str, service_account: str) -> None:
        self._keys = keys
        self._audience = audience
        self._service_account = service_account

    async def verify(self, authorization: str) -> None:
        """Return if the Authorization header proves the caller.

        Raises Unauthenticated where it does not, Forbidden where it proves somebody else, and
        Unavailable where the issuer's keys cannot be had.
        """
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token or len(token) > MAX_TOKEN:
            raise Unauthenticated("A push needs a bearer token.")
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            raise Unauthenticated("The token is malformed.") from None
        key_id = header.get("kid")
        if header.get("alg") != ALGORITHM or not isinstance(key_id, str):
            raise Unauthenticated(f"The token is not signed with {ALGORITHM} and a named key.")
        key = await self._keys.get(key_id)
        if key is None:
            raise Unauthenticated("The token is signed with an unknown key.")
        self._check(self._claims(token, key))

    def _claims(self, token: str, key: jwt.PyJWK) -> dict[str, Any]:
        try:
            return jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                audience=self._audience,
                issuer=ISSUERS,
                leeway=LEEWAY,
                options={"require": list(CLAIMS), "strict_aud": True},
            )
        except jwt.PyJWTError as error:
            # The library's own sentences name the claim and hold nothing of the token's.
            log.warning("push refused", reason=f"{type(error).__name__}: {error}"[:200])
            raise Unauthenticated("The token is not valid here.") from None

    def _check(self, claims: dict[str, Any]) -> None:
        if claims["email_verified"] is not True:
            raise Forbidden("The token's e-mail is not verified.")
        if claims["email"] != self._service_account:
            log.warning(
                "push refused", reason="another account", account=str(claims["email"])[:100]
            )
            raise Forbidden("This account may not push.")


def _key_set(document: object) -> dict[str, jwt.PyJWK]:
    """The RSA keys of a JWK set by their ids. Raises ValueError or PyJWTError."""
    if not isinstance(document, dict):
        raise ValueError("not a JWK set")
    keys = jwt.PyJWKSet.from_dict(document).keys
    found = {key.key_id: key for key in keys if key.key_id and key.key_type == "RSA"}
    if not found:
        raise ValueError("no RSA keys in the JWK set")
    return found


def _validity(cache_control: str) -> float:
    """Seconds for which an answer with this header may be kept."""
    match = _MAX_AGE.search(cache_control.lower())
    seconds = float(match[1]) if match else DEFAULT_VALIDITY
    return min(max(seconds, LEAST_VALIDITY), MOST_VALIDITY)
