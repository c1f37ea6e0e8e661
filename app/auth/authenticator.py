"""Authenticates API keys, enforces their rate limits and counts their usage.

A response does not wait for a store that it does not need: a verified key is trusted for
`KEY_CACHE_SECONDS`, a process consumes limits from shares that it reserves in advance, and usage
counts are written in the background.
"""

import asyncio
import hashlib
import math
import time
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from cachetools import TTLCache

from app.auth.credentials import key_in, ticket_in
from app.auth.key_state import KeyState, Share, TenantState
from core.backends import Access, open_access
from core.clock import Clock, rfc3339, utc_now
from core.concurrency import in_background
from core.domain.api_keys import KEY_CACHE_SECONDS, USE_NOTE_INTERVAL, ApiKey, note_use
from core.domain.key_tokens import KeyHasher
from core.domain.principals import Principal, Scope
from core.domain.rate_limits import DAY, Grant, Limit, TenantLimits
from core.domain.tickets import TicketSigner
from core.domain.usage import UsageBatch
from core.errors import Forbidden, GlimpseError, RateLimited, Unauthenticated, Unavailable
from core.observability.request_middleware import set_headers
from core.settings import Settings

log = structlog.get_logger(__name__)

WRITE_SECONDS = 10.0  # interval between writes of usage counts; a killed process loses this much
CLOSE_SECONDS = 3.0
SHARE_SECONDS = 2.0  # longest wait of a request for the next share of its limit
MAX_VERIFIED_KEYS = 10_000
EMAIL_LIMIT = Limit("email", 100, DAY, strict=True, divided=False)  # for each address
MAX_REFUSED_KEYS = 4_096
IDLE_TIME = timedelta(hours=1)  # longer than any request lasts
_TICKET_OF = "glimpse.ticket_of"  # in a request's scope: the id of the key of its ticket
_REFUSED = "The API key is not valid."


@dataclass(frozen=True, slots=True)
class _StoredKey:
    """A key in the store, and the limits of its tenant."""

    key: ApiKey | None
    limits: TenantLimits = field(default_factory=TenantLimits)


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
        self.hasher = KeyHasher(*access.secrets)
        self.tickets = TicketSigner(access.secrets[0])
        self._settings = settings
        self._rate = settings.rate
        self.clock = clock
        self._monotonic = monotonic
        self.trusted_seconds = KEY_CACHE_SECONDS
        # By digest, so that no key's text stays in memory longer than its request.
        self._verified: dict[bytes, _VerifiedKey] = {}
        self._refused: TTLCache[bytes, str] = TTLCache(
            MAX_REFUSED_KEYS, KEY_CACHE_SECONDS, monotonic
        )
        self._lookups: dict[str, asyncio.Task[_StoredKey]] = {}
        self._states: dict[str, KeyState] = {}
        self._tenants: dict[str, TenantState] = {}
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
                set_headers(scope, state.headers(seconds))
                raise _rate_limited(share, seconds)
        state.count_request(seconds)
        set_headers(scope, state.headers(seconds))
        principal = state.principal
        structlog.contextvars.bind_contextvars(key=principal.key_id)
        _check_scope(principal, required)
        return principal

    async def spend_images(
        self, scope: MutableMapping[str, Any], principal: Principal, images: int
    ) -> None:
        """Count the images of a request beyond the first, which the request itself has paid for.

        Raises RateLimited if a quota has less than that. A rate is exceeded once, and the rest
        counts in its next windows.
        """
        state = self._states.get(principal.key_id)
        if state is None or images <= 1:
            return
        seconds = self.clock().timestamp()
        try:
            # Strict limits first: a refusal must not have spent the others.
            for share in sorted(state.shares, key=lambda share: not share.limit.strict):
                await self._spend(share, images - 1, seconds)
        except RateLimited:
            state.count_refused(seconds)
            raise
        finally:
            set_headers(scope, state.headers(seconds))

    async def reserve_email(self, address: str) -> None:
        """Count an e-mail to `address`. Raises RateLimited."""
        digest = hashlib.blake2b(address.lower().encode(), digest_size=16).hexdigest()
        try:
            grant = await self.access.allowances.reserve(f"email:{digest}", EMAIL_LIMIT, 1)
        except Unavailable as error:
            log.warning("limit not shared", reason=str(error))
            return
        if grant.refused:
            seconds = max(
                1, math.ceil(grant.window + EMAIL_LIMIT.seconds - self.clock().timestamp())
            )
            raise RateLimited(
                f"The address gets at most {EMAIL_LIMIT.quota} e-mails a day.",
                retry_after=seconds,
                extra={"field": "notify_email", "violated-policies": [EMAIL_LIMIT.name]},
            )

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
        """Write the usage counts. Raises Unavailable, and keeps what failed for the next call."""
        async with self._writing:
            states = list(self._states.values())
            outcomes = await asyncio.gather(
                *(self._write(state, batch) for state in states for batch in state.unwritten()),
                return_exceptions=True,
            )
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome
            for state in states:
                await self._touch(state)
            self._evict()

    async def _write(self, state: KeyState, batch: UsageBatch) -> None:
        await self.access.usage.add(batch)
        state.written([batch])

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
        stored = await self._look_up(key_id)
        now, key = self.clock(), stored.key
        if key is None or not key.active(now):
            self.forget(key_id)
            raise Unauthenticated("The key of the ticket is not valid.")
        return self._trust(stored, key, entry, key.expires_at, now)

    async def _verify(self, text: bytes, digest: bytes) -> KeyState:
        key_id = self.hasher.key_id(text)
        if key_id is None:
            raise Unauthenticated(_REFUSED)
        if (reason := self._refused.get(digest)) is not None:
            raise Unauthenticated(reason)
        stored = await self._look_up(key_id)
        now, key = self.clock(), stored.key
        end = None if key is None else key.good_until(self.hasher.digests(text), now)
        if key is None or end is None:
            self._refused[digest] = _REFUSED
            self.forget(key_id)  # the key's other text may be revoked, too
            log.warning("key refused", key=key_id)
            raise Unauthenticated(_REFUSED)
        return self._trust(stored, key, digest, end, now)

    def _trust(
        self,
        stored: _StoredKey,
        key: ApiKey,
        digest: bytes,
        end: datetime | None,
        now: datetime,
    ) -> KeyState:
        """Trust the key under `digest` for `trusted_seconds`, at most until `end`."""
        tenant = self._tenants.setdefault(key.tenant, TenantState(key.tenant))
        tenant.apply(stored.limits, self._rate, self._settings.daily_quota)
        state = self._states.get(key.id)
        if state is None:
            state = self._states[key.id] = KeyState(key, tenant)
        else:
            state.update(key)
        trusted = self.trusted_seconds
        if end is not None:
            trusted = min(trusted, (end - now).total_seconds())
        self._verified[digest] = _VerifiedKey(state, self._monotonic() + trusted)
        if len(self._verified) > MAX_VERIFIED_KEYS:
            del self._verified[next(iter(self._verified))]
        return state

    async def _look_up(self, key_id: str) -> _StoredKey:
        """Share one lookup among concurrent requests. A cancelled request does not cancel it."""
        task = self._lookups.get(key_id)
        if task is None:
            task = self._lookups[key_id] = asyncio.create_task(self._read(key_id))
            task.add_done_callback(lambda done: self._looked_up(key_id, done))
        return await asyncio.shield(task)

    async def _read(self, key_id: str) -> _StoredKey:
        key = await self.access.keys.get(key_id)
        if key is None:
            return _StoredKey(None)
        return _StoredKey(key, await self.access.keys.limits(key.tenant))

    def _looked_up(self, key_id: str, done: "asyncio.Task[_StoredKey]") -> None:
        del self._lookups[key_id]
        if not done.cancelled():
            done.exception()  # mark it as retrieved: every waiting request may have been cancelled

    async def _refill(self, state: KeyState, share: Share, now: float) -> bool:
        """Reserve a new share and consume one request of it.

        Returns False if the limit is exhausted.
        """
        async with share.lock:
            if share.consume(now):
                return True
            if share.exhausted(now):
                return False
            grant = await self._reserve(share)
            if grant is None:
                # A failing store is no reason to refuse a request or to delay it. In this window
                # the process applies the limit to its own requests only.
                limit = share.limit
                window = limit.window(now)
                asked_before = share.end == window + limit.seconds
                left = share.remaining if asked_before else limit.quota
                grant = Grant(window, max(0, left + min(0, share.available)), 0)
            share.refill(grant)
            return share.consume(now)

    async def _spend(self, share: Share, count: int, now: float) -> None:
        """Count `count` units. Raises RateLimited if a strict limit has fewer."""
        async with share.lock:
            held = max(0, share.available) if now < share.end else 0
            if held >= count:
                share.available -= count
                return
            grant = await self._reserve(share, count - held)
            if grant is None:
                share.available -= count
            elif grant.refused:
                share.remaining = grant.left
                share.end = float(grant.window + share.limit.seconds)
                raise _too_many_images(share, count + 1, now)
            else:
                share.refill(grant)

    async def _reserve(self, share: Share, spent: int = 0) -> Grant | None:
        """The answer of the store, or None if it fails or does not answer in time."""
        try:
            async with asyncio.timeout(SHARE_SECONDS):
                return await self.access.allowances.reserve(share.owner, share.limit, spent)
        except (Unavailable, TimeoutError) as error:
            log.warning("limit not shared", reason=str(error) or "no answer in time")
            return None

    async def _touch(self, state: KeyState) -> None:
        used, stored = state.used_at, state.stored_used_at
        if used is None or (stored is not None and used < stored + USE_NOTE_INTERVAL):
            return
        await self.access.keys.change(state.principal.key_id, note_use(used))
        state.stored_used_at = used

    def _evict(self) -> None:
        """Drop verified keys that must be looked up again, and states of unused keys."""
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
        tenants = {state.principal.tenant for state in self._states.values()}
        self._tenants = {name: state for name, state in self._tenants.items() if name in tenants}


def _check_scope(principal: Principal, required: Scope) -> None:
    if required not in principal.scopes:
        raise Forbidden(
            f"This needs a key with the scope {required.value!r}.", extra={"scope": required.value}
        )


def _rate_limited(share: Share, now: float) -> RateLimited:
    limit, seconds = share.limit, max(1, share.seconds_left(now))
    owner = _owner(share)
    if limit.strict:
        detail = f"{owner} has used its daily quota of {limit.quota}. {_reset(share)}"
    else:
        detail = (
            f"{owner} has used its {limit.quota} requests in {limit.seconds} seconds. "
            f"Retry in {seconds} seconds."
        )
    return _limited(share, detail, seconds)


def _too_many_images(share: Share, images: int, now: float) -> RateLimited:
    detail = (
        f"{_owner(share)} has {share.left} left of its daily quota of {share.limit.quota}, and the "
        f"request has {images} images. {_reset(share)}"
    )
    return _limited(share, detail, max(1, share.seconds_left(now)))


def _limited(share: Share, detail: str, seconds: int) -> RateLimited:
    # The name of the member is that of the RateLimit draft.
    extra: dict[str, object] = {"violated-policies": [share.limit.name]}
    if share.limit.strict:
        extra["resets_at"] = rfc3339(_end(share))
    return RateLimited(detail, retry_after=seconds, extra=extra)


def _owner(share: Share) -> str:
    return "The tenant" if share.owner.startswith("tenant:") else "The key"


def _reset(share: Share) -> str:
    return f"The quota resets at {rfc3339(_end(share))}."


def _end(share: Share) -> datetime:
    return datetime.fromtimestamp(share.end, UTC)


@asynccontextmanager
async def open_authenticator(
    settings: Settings, clock: Clock
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
