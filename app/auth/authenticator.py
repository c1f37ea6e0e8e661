"""Who may come in: keys verified once and then remembered for a moment, limits, counts.

An answer must not wait for a store that it does not need: a key that was verified is trusted for
`KEY_CACHE_SECONDS`, limits are spent out of shares, counts are written behind the answers.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import structlog
from cachetools import TTLCache

from app.auth.credentials import key_in
from app.auth.key_state import Account, Share
from core.backends import Access, open_access
from core.clock import Clock, utc_now
from core.concurrency import in_background
from core.domain.api_keys import TOUCH_EVERY, ApiKey
from core.domain.key_tokens import KeyHasher
from core.domain.principals import Principal, Scope
from core.domain.rate_limits import Grant
from core.errors import Forbidden, GlimpseError, RateLimited, Unauthenticated, Unavailable
from core.observability.request_middleware import add_headers
from core.settings import Settings

log = structlog.get_logger(__name__)

WRITE_SECONDS = 10.0  # between two writings of counts; a process that is killed loses as much
CLOSE_SECONDS = 3.0
SHARE_SECONDS = 2.0  # that a request may wait for its limit's next share
MOST_KNOWN = 10_000  # keys
MOST_REFUSED = 4_096
_REFUSED = "The API key is not valid."


@dataclass(slots=True)
class _Known:
    account: Account
    until: float  # on the monotonic clock


class Gate:
    """One process's gate. `admit` is all that a request meets."""

    def __init__(
        self,
        access: Access,
        settings: Settings,
        clock: Clock = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.access = access
        self.hasher = KeyHasher(access.secret)
        self._settings = settings
        self._rate = settings.rate
        self.clock = clock
        self._monotonic = monotonic
        # By digest: the text of a key is nowhere in memory for longer than its request.
        self._known: dict[bytes, _Known] = {}
        self._refused: TTLCache[bytes, str] = TTLCache(
            MOST_REFUSED, settings.key_cache_seconds, monotonic
        )
        self._lookups: dict[str, asyncio.Task[ApiKey | None]] = {}
        self._accounts: dict[str, Account] = {}
        self._writing = asyncio.Lock()

    async def admit(self, scope: MutableMapping[str, Any], needed: Scope) -> Principal:
        """The caller of this HTTP or WebSocket request (an ASGI scope).

        Raises Unauthenticated, RateLimited, Forbidden where the key lacks the scope `needed`, and
        Unavailable where the store of keys does not answer.
        """
        text = key_in(scope["headers"])
        digest = self.hasher.digest(text)
        known = self._known.get(digest)
        if known is None or self._monotonic() >= known.until:
            known = await self._verify(text, digest)
        account = known.account
        now = self.clock()
        seconds = now.timestamp()
        account.used_at = now
        for share in account.shares:
            if not (share.spend(seconds) or await self._refill(account, share, seconds)):
                account.count_refused(seconds)
                add_headers(scope, account.headers(seconds))
                raise _beyond(share, seconds)
        account.count_request(seconds)
        add_headers(scope, account.headers(seconds))
        principal = account.principal
        structlog.contextvars.bind_contextvars(key=principal.key_id)
        if needed not in principal.scopes:
            raise Forbidden(
                f"This needs a key with the scope {needed.value!r}.", extra={"scope": needed.value}
            )
        return principal

    @property
    def trusted_seconds(self) -> float:
        """How long a key may go on to be used after it was verified."""
        return self._settings.key_cache_seconds

    async def readmit(self, scope: MutableMapping[str, Any], needed: Scope) -> None:
        """As `admit`, of a connection that was admitted before and lasts: nothing is counted."""
        text = key_in(scope["headers"])
        digest = self.hasher.digest(text)
        known = self._known.get(digest)
        if known is None or self._monotonic() >= known.until:
            known = await self._verify(text, digest)
        if needed not in known.account.principal.scopes:
            raise Forbidden(
                f"This needs a key with the scope {needed.value!r}.", extra={"scope": needed.value}
            )

    def count_image(self, principal: Principal, size: int) -> None:
        """Note that an image of `size` bytes was uploaded."""
        account = self._accounts.get(principal.key_id)
        if account is not None:
            account.count_image(size)

    def forget(self, key_id: str) -> None:
        """Ask the store again when this key comes next."""
        for digest in [d for d, k in self._known.items() if k.account.principal.key_id == key_id]:
            del self._known[digest]

    async def write(self) -> None:
        """Write what was counted. Raises Unavailable, and then nothing is lost yet."""
        async with self._writing:
            taken = {account: account.take_counts() for account in self._accounts.values()}
            try:
                if counts := [usage for each in taken.values() for usage in each]:
                    await self.access.usage.add(counts)
            except BaseException:
                for account, counts in taken.items():
                    account.give_back(counts)
                raise
            for account in taken:
                await self._touch(account)
            self._tidy()

    async def check(self) -> None:
        """What readiness asks."""
        await self.access.keys.get("0" * 12)

    async def run(self) -> None:
        """Write now and then, until cancelled."""
        while True:
            await asyncio.sleep(WRITE_SECONDS)
            try:
                await self.write()
            except GlimpseError as error:
                log.warning("usage not written", detail=error.detail)
            except Exception:
                log.exception("usage not written")

    async def close(self) -> None:
        """Write what is left, if the store answers soon."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.write()
        except (GlimpseError, TimeoutError) as error:
            log.warning("usage lost", reason=str(error))

    async def _verify(self, text: bytes, digest: bytes) -> _Known:
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
            self.forget(key_id)  # its other text may be as bad by now
            log.warning("key refused", key=key_id)
            raise Unauthenticated(_REFUSED)
        account = self._accounts.get(key_id)
        if account is None:
            account = self._accounts[key_id] = Account(key, self._rate, self._settings.daily_quota)
        else:
            account.update(key, self._rate, self._settings.daily_quota)
        trusted = min(self._settings.key_cache_seconds, (end - now).total_seconds())
        known = self._known[digest] = _Known(account, self._monotonic() + trusted)
        if len(self._known) > MOST_KNOWN:
            del self._known[next(iter(self._known))]
        return known

    async def _look_up(self, key_id: str) -> ApiKey | None:
        """One look-up for all who bring the same key at once; it belongs to none of them."""
        task = self._lookups.get(key_id)
        if task is None:
            task = self._lookups[key_id] = asyncio.create_task(self.access.keys.get(key_id))
            task.add_done_callback(lambda done: self._looked_up(key_id, done))
        return await asyncio.shield(task)

    def _looked_up(self, key_id: str, done: "asyncio.Task[ApiKey | None]") -> None:
        del self._lookups[key_id]
        if not done.cancelled():
            done.exception()  # whoever asked hears it; nobody may have stayed

    async def _refill(self, account: Account, share: Share, now: float) -> bool:
        """Take a new share and spend one of it; False where the limit is used up."""
        async with share.lock:
            if share.spend(now):
                return True
            if share.used_up(now):
                return False
            limit = share.limit
            try:
                async with asyncio.timeout(SHARE_SECONDS):
                    grant = await self.access.allowances.take(account.principal.key_id, limit)
            except (Unavailable, TimeoutError) as error:
                # Counting is worth neither a refusal nor a long wait: for this window the process
                # keeps to the limit by itself.
                log.warning("limit not shared", reason=str(error) or "no answer in time")
                window = limit.window(now)
                asked_before = share.end == window + limit.seconds
                grant = Grant(window, share.left if asked_before else limit.quota, 0)
            share.receive(grant)
            return share.spend(now)

    async def _touch(self, account: Account) -> None:
        used, noted = account.used_at, account.noted_at
        if used is None or (noted is not None and used < noted + TOUCH_EVERY):
            return
        await self.access.keys.touch(account.principal.key_id, used)
        account.noted_at = used

    def _tidy(self) -> None:
        """Forget keys that were last seen so long ago that they would be asked for again anyway."""
        now = self._monotonic()
        for digest in [digest for digest, known in self._known.items() if known.until < now]:
            del self._known[digest]


def _beyond(share: Share, now: float) -> RateLimited:
    limit, seconds = share.limit, max(1, share.seconds_left(now))
    return RateLimited(
        f"More than {limit.quota} requests in {limit.seconds} seconds; more in {seconds}.",
        retry_after=seconds,
        extra={"violated-policies": [limit.name]},  # as the draft of RateLimit names it
    )


@asynccontextmanager
async def open_gate(settings: Settings, clock: Clock = utc_now) -> AsyncIterator[Gate | None]:
    """The gate, or None where no keys are asked for: then nothing of it is in any path."""
    if not settings.keys_required:
        yield None
        return
    async with open_access(settings, clock) as access:
        gate = Gate(access, settings, clock)
        try:
            async with in_background(gate.run()):
                yield gate
        finally:
            await gate.close()
