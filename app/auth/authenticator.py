"""Authenticates API keys, enforces their rate limits and counts their usage.

A response does not wait for a store that it does not need: a verified key is trusted for
`KEY_CACHE_SECONDS`, a process consumes limits from shares that it reserves in advance, and usage
counts are written in the background.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from cachetools import TTLCache

from app.auth.credentials import key_in, ticket_in
from app.auth.key_state import KeyState, Share
from core.backends import Access, open_access
from core.clock import Clock, utc_now
from core.concurrency import in_background
from core.domain.api_keys import USE_NOTE_INTERVAL, ApiKey, note_use
from core.domain.key_tokens import KeyHasher
from core.domain.principals import Principal, Scope
from core.domain.rate_limits import Grant
from core.domain.tickets import TicketSigner
from core.errors import Forbidden, GlimpseError, RateLimited, Unauthenticated, Unavailable
from core.observability.request_middleware import add_headers
from core.settings import Settings

log = structlog.get_logger(__name__)

WRITE_SECONDS = 10.0  # interval between writes of usage counts; a killed process loses this much
CLOSE_SECONDS = 3.0
SHARE_SECONDS = 2.0  # longest wait of a request for the next share of its limit
MAX_VERIFIED_KEYS = 10_000
MAX_REFUSED_KEYS = 4_096
IDLE_TIME = timedelta(hours=1)  # longer than any request lasts
_TICKET_OF = "glimpse.ticket_of"  # in a request's scope: the id of the key of its ticket
_REFUSED = "The API key is not valid."


@dataclass(slots=True)
class _VerifiedKey:
    state: KeyState
    until: float  # on the monotonic clock


class Authenticator:
    """Authenticates the requests of one process."""

    def __init__(
        self,
        access: Access,
        settings: Settings,
        clock: Clock = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.access = access
        self.hasher = KeyHasher(access.secret)
        self.tickets = TicketSigner(access.secret)
        self._settings = settings
        self._rate = settings.rate
        self.clock = clock
        self._monotonic = monotonic
        # By digest, so that no key's text stays in memory longer than its request.
        self._verified: dict[bytes, _VerifiedKey] = {}
        self._refused: TTLCache[bytes, str] = TTLCache(
            MAX_REFUSED_KEYS, settings.key_cache_seconds, monotonic
        )
        self._lookups: dict[str, asyncio.Task[ApiKey | None]] = {}
        self._states: dict[str, KeyState] = {}
        self._writing = asyncio.Lock()

    async def authenticate(self, scope: MutableMapping[str, Any], required: Scope) -> Principal:
        """Return the caller of an HTTP or WebSocket request, given its ASGI scope.

        Raises Unauthenticated, RateLimited, Forbidden if the key lacks the scope `required`, and
        Unavailable if the key store does not answer.
        """
        state = await self._state_of(scope)
        now = self.clock()
        seconds = now.timestamp()
        state.used_at = now
        for share in state.shares:
            if not (share.consume(seconds) or await self._refill(state, share, seconds)):
                state.count_refused(seconds)
                add_headers(scope, state.headers(seconds))
                raise _rate_limited(share, seconds)
        state.count_request(seconds)
        add_headers(scope, state.headers(seconds))
        principal = state.principal
        structlog.contextvars.bind_contextvars(key=principal.key_id)
        _check_scope(principal, required)
        return principal

    @property
    def trusted_seconds(self) -> float:
        """How long a process accepts a key after it verified the key."""
        return self._settings.key_cache_seconds

    async def recheck(self, scope: MutableMapping[str, Any], required: Scope) -> None:
        """Check the key of an open connection again, without counting a request.

        Raises Unauthenticated, Forbidden and Unavailable as `authenticate` does.
        """
        state = await self._state_of(scope)
        _check_scope(state.principal, required)

    def count_image(self, principal: Principal, size: int) -> None:
        """Count an uploaded image of `size` bytes."""
        state = self._states.get(principal.key_id)
        if state is not None:
            state.count_image(size)

    def forget(self, key_id: str) -> None:
        """Look the key up in the store when a request uses it next."""
        found = [
            digest
            for digest, verified in self._verified.items()
            if verified.state.principal.key_id == key_id
        ]
        for digest in found:
            del self._verified[digest]

    async def write_usage(self) -> None:
        """Write the usage counts. Raises Unavailable, and keeps the counts for the next call."""
        async with self._writing:
            taken = {state: state.take_counts() for state in self._states.values()}
            try:
                if counts := [usage for each in taken.values() for usage in each]:
                    await self.access.usage.add(counts)
            except BaseException:
                for state, counts in taken.items():
                    state.restore_counts(counts)
                raise
            for state in taken:
                await self._touch(state)
            self._evict()

    async def check(self) -> None:
        """Raise Unavailable if the key store does not answer."""
        await self.access.keys.get("0" * 12)

    async def run(self) -> None:
        """Write usage counts periodically, until cancelled."""
        while True:
            await asyncio.sleep(WRITE_SECONDS)
            try:
                await self.write_usage()
            except GlimpseError as error:
                log.warning("usage not written", detail=error.detail)
            except Exception:
                log.exception("usage not written")

    async def close(self) -> None:
        """Write the remaining usage counts. Gives up after `CLOSE_SECONDS`."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.write_usage()
        except (GlimpseError, TimeoutError) as error:
            log.warning("usage lost", reason=str(error))

    async def _state_of(self, scope: MutableMapping[str, Any]) -> KeyState:
        if ticket := ticket_in(scope.get("query_string", b"")):
            return await self._state_of_ticket(scope, ticket)
        text = key_in(scope["headers"])
        digest = self.hasher.digest(text)
        verified = self._verified.get(digest)
        if verified is None or self._monotonic() >= verified.until:
            return await self._verify(text, digest)
        return verified.state

    async def _state_of_ticket(self, scope: MutableMapping[str, Any], ticket: str) -> KeyState:
        """The state of the key that the ticket was issued for.

        The ticket may end while its stream is open: later checks compare the key only.
        """
        key_id: str | None = scope.get(_TICKET_OF)
        if key_id is None:
            key_id = self.tickets.key_id(ticket, scope["path"], self.clock())
            if key_id is None:
                raise Unauthenticated("The ticket is not valid for this stream, or has expired.")
            scope[_TICKET_OF] = key_id
        entry = key_id.encode()  # differs from every digest by its length
        verified = self._verified.get(entry)
        if verified is not None and self._monotonic() < verified.until:
            return verified.state
        key, now = await self._look_up(key_id), self.clock()
        if key is None or not key.active(now):
            self.forget(key_id)
            raise Unauthenticated("The key of the ticket is not valid.")
        return self._trust(key, entry, key.expires_at, now)

    async def _verify(self, text: bytes, digest: bytes) -> KeyState:
        key_id = self.hasher.key_id(text)
        if key_id is None:
            raise Unauthenticated(_REFUSED)
        if (reason := self._refused.get(digest)) is not None:
            raise Unauthenticated(reason)
        key = await self._look_up(key_id)
        now = self.clock()
        end = None if key is None else key.good_until(digest, now)
        if key is None or end is None:
            self._refused[digest] = _REFUSED
            self.forget(key_id)  # the key's other text may be revoked, too
            log.warning("key refused", key=key_id)
            raise Unauthenticated(_REFUSED)
        return self._trust(key, digest, end, now)

    def _trust(self, key: ApiKey, digest: bytes, end: datetime | None, now: datetime) -> KeyState:
        """Trust the key under `digest` for `KEY_CACHE_SECONDS`, at most until `end`."""
        state = self._states.get(key.id)
        if state is None:
            state = self._states[key.id] = KeyState(key, self._rate, self._settings.daily_quota)
        else:
            state.update(key, self._rate, self._settings.daily_quota)
        trusted = self._settings.key_cache_seconds
        if end is not None:
            trusted = min(trusted, (end - now).total_seconds())
        self._verified[digest] = _VerifiedKey(state, self._monotonic() + trusted)
        if len(self._verified) > MAX_VERIFIED_KEYS:
            del self._verified[next(iter(self._verified))]
        return state

    async def _look_up(self, key_id: str) -> ApiKey | None:
        """Share one lookup among concurrent requests. A cancelled request does not cancel it."""
        task = self._lookups.get(key_id)
        if task is None:
            task = self._lookups[key_id] = asyncio.create_task(self.access.keys.get(key_id))
            task.add_done_callback(lambda done: self._looked_up(key_id, done))
        return await asyncio.shield(task)

    def _looked_up(self, key_id: str, done: "asyncio.Task[ApiKey | None]") -> None:
        del self._lookups[key_id]
        if not done.cancelled():
            done.exception()  # mark it as retrieved: every waiting request may have been cancelled

    async def _refill(self, state: KeyState, share: Share, now: float) -> bool:
        """Reserve a new share and consume one request of it; False if the limit is exhausted."""
        async with share.lock:
            if share.consume(now):
                return True
            if share.exhausted(now):
                return False
            limit = share.limit
            try:
                async with asyncio.timeout(SHARE_SECONDS):
                    grant = await self.access.allowances.reserve(state.principal.key_id, limit)
            except (Unavailable, TimeoutError) as error:
                # A failing store is no reason to refuse a request or to delay it. In this window
                # the process applies the limit to its own requests only.
                log.warning("limit not shared", reason=str(error) or "no answer in time")
                window = limit.window(now)
                asked_before = share.end == window + limit.seconds
                grant = Grant(window, share.remaining if asked_before else limit.quota, 0)
            share.refill(grant)
            return share.consume(now)

    async def _touch(self, state: KeyState) -> None:
        used, stored = state.used_at, state.stored_used_at
        if used is None or (stored is not None and used < stored + USE_NOTE_INTERVAL):
            return
        await self.access.keys.change(state.principal.key_id, note_use(used))
        state.stored_used_at = used

    def _evict(self) -> None:
        """Drop verified keys that must be looked up again, and states of keys out of use."""
        now = self._monotonic()
        for digest in [digest for digest, key in self._verified.items() if key.until < now]:
            del self._verified[digest]
        in_use = {id(key.state) for key in self._verified.values()}
        since = self.clock() - IDLE_TIME
        self._states = {
            key_id: state
            for key_id, state in self._states.items()
            if id(state) in in_use or not state.idle(since)
        }


def _check_scope(principal: Principal, required: Scope) -> None:
    if required not in principal.scopes:
        raise Forbidden(
            f"This needs a key with the scope {required.value!r}.", extra={"scope": required.value}
        )


def _rate_limited(share: Share, now: float) -> RateLimited:
    limit, seconds = share.limit, max(1, share.seconds_left(now))
    return RateLimited(
        f"The key has used its {limit.quota} requests in {limit.seconds} seconds. "
        f"Retry in {seconds} seconds.",
        retry_after=seconds,
        extra={"violated-policies": [limit.name]},  # the member's name in the RateLimit draft
    )


@asynccontextmanager
async def open_authenticator(
    settings: Settings, clock: Clock = utc_now
) -> AsyncIterator[Authenticator | None]:
    """Open the authenticator, or return None if the settings require no keys."""
    if not settings.keys_required:
        yield None
        return
    async with open_access(settings, clock) as access:
        authenticator = Authenticator(access, settings, clock)
        try:
            async with in_background(authenticator.run()):
                yield authenticator
        finally:
            await authenticator.close()
