"""What a key may grant to the keys that it creates, and how many keys a tenant has."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from app.keys import service
from app.keys.service import Keys, Wanted
from core.backends import open_access
from core.domain.api_keys import ApiKey
from core.domain.key_tokens import KeyHasher
from core.domain.principals import ALL_SCOPES, Scope
from core.domain.rate_limits import Rate, TenantLimits
from core.errors import Conflict, Forbidden, InvalidRequest
from tests.support.clock import MovableClock
from tests.support.settings import isolated_settings

ADMIN = frozenset({Scope.ADMIN})


@pytest.fixture
async def keys(tmp_path: Path) -> AsyncIterator[Keys]:
    async with open_access(isolated_settings(data_dir=tmp_path)) as access:
        yield Keys(access.keys, KeyHasher(*access.secrets), MovableClock())


def wanted(**changes: Any) -> Wanted:
    return Wanted(**{"tenant": "acme", "name": "x", "scopes": ADMIN, **changes})


async def made(keys: Keys, creator: ApiKey | None = None, **changes: Any) -> ApiKey:
    return (await keys.create(wanted(**changes), creator)).key


async def test_created_key_has_at_most_the_expiry_of_its_creator(keys: Keys) -> None:
    end = MovableClock()() + timedelta(days=7)
    creator = await made(keys, expires_at=end)
    assert (await made(keys, creator)).expires_at == end
    sooner = end - timedelta(days=1)
    assert (await made(keys, creator, expires_at=sooner)).expires_at == sooner
    with pytest.raises(Forbidden) as refused:
        await made(keys, creator, expires_at=end + timedelta(seconds=1))
    assert refused.value.extra == {"field": "expires"}


@pytest.mark.parametrize("rate", [Rate(601, 60), Rate(11, 1), Rate(40_000, 3600)])
async def test_created_key_has_at_most_the_rate_of_its_creator(keys: Keys, rate: Rate) -> None:
    creator = await made(keys, rate=Rate(600, 60))
    assert (await made(keys, creator)).rate == Rate(600, 60)
    assert (await made(keys, creator, rate=Rate(10, 1))).rate == Rate(10, 1)
    with pytest.raises(Forbidden) as refused:
        await made(keys, creator, rate=rate)
    assert refused.value.extra == {"field": "rate_limit"}


@pytest.mark.parametrize("quota", [101, 0])
async def test_created_key_has_at_most_the_quota_of_its_creator(keys: Keys, quota: int) -> None:
    creator = await made(keys, daily_quota=100)
    assert (await made(keys, creator)).daily_quota == 100
    assert (await made(keys, creator, daily_quota=100)).daily_quota == 100
    with pytest.raises(Forbidden) as refused:
        await made(keys, creator, daily_quota=quota)
    assert refused.value.extra == {"field": "daily_quota"}


async def test_only_an_operator_creates_operators(keys: Keys) -> None:
    with pytest.raises(Forbidden) as refused:
        await made(keys, await made(keys), scopes=ALL_SCOPES)
    assert refused.value.extra == {"field": "scopes"}
    operator = await made(keys, scopes=ALL_SCOPES)
    assert (await made(keys, operator, scopes=ALL_SCOPES)).scopes == ALL_SCOPES


async def test_number_of_active_keys_of_a_tenant_is_limited(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MAX_KEYS", 2)
    first = await made(keys)
    await made(keys)
    with pytest.raises(Conflict, match="2 active keys"):
        await made(keys)
    await made(keys, tenant="other")
    await keys.revoke(first.id)
    await made(keys)


@pytest.mark.parametrize(
    ("tenant", "quota"), [("Acme", 1), ("", 1), ("acme", -1), ("acme", 10**12 + 1)]
)
async def test_invalid_limits_of_a_tenant_are_refused(keys: Keys, tenant: str, quota: int) -> None:
    with pytest.raises(InvalidRequest):
        await keys.set_limits(tenant, TenantLimits(daily_quota=quota))
