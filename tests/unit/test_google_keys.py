"""The databases of keys, limits and usage."""

from collections import defaultdict
from datetime import date
from pathlib import Path

import pytest

from core.backends import open_access, open_usage
from core.clock import utc_now
from core.domain.api_keys import ApiKey, note_use
from core.domain.principals import Scope
from core.domain.rate_limits import Limit, Rate, TenantLimits
from core.domain.usage import Usage, UsageBatch
from core.settings import Settings
from tests.support.scripted_datastore import ScriptedDatastore, serving
from tests.support.settings import isolated_settings

KEYS = {"ApiKey", "TenantLimits", "Allowance"}
COUNTS = {"Usage", "Tenant", "Due"}


def settings_for(address: str, folder: Path, **databases: str) -> Settings:
    return isolated_settings(
        backend="emulator", data_dir=folder, datastore_emulator_host=address, **databases
    )


async def kinds_by_database(settings: Settings, scripted: ScriptedDatastore) -> dict[str, set[str]]:
    """The kinds of all entities that the API stores for keys, by their database."""
    async with open_access(settings) as access:
        key = ApiKey("key000000001", "acme", "a", frozenset({Scope.READ}), bytes(32), utc_now())
        assert await access.keys.create(key)
        assert await access.keys.change(key.id, note_use(utc_now()))
        await access.keys.set_limits("acme", TenantLimits(Rate(5, 60), 100))
        await access.allowances.reserve("tenant:acme", Limit("rate", 80, 60))
        usage = Usage("acme", key.id, date(2026, 11, 30), 1, 1, 1, 0)
        await access.usage.add(UsageBatch(usage, "batch"))
    found = defaultdict(set)
    for entity in scripted.entities.values():
        found[entity.key.partition_id.database_id].add(entity.key.path[-1].kind)
    return dict(found)


async def test_keys_and_limits_have_a_separate_database(tmp_path: Path) -> None:
    scripted = ScriptedDatastore()
    async with serving(scripted) as address:
        databases = {"datastore_database": "records", "datastore_keys_database": "keys"}
        settings = settings_for(address, tmp_path, **databases)
        found = await kinds_by_database(settings, scripted)
    assert found == {"keys": KEYS, "records": COUNTS}


@pytest.mark.parametrize("database", ["", "records"])
async def test_without_a_separate_database_all_are_in_that_of_the_records(
    tmp_path: Path, database: str
) -> None:
    scripted = ScriptedDatastore()
    async with serving(scripted) as address:
        settings = settings_for(address, tmp_path, datastore_database=database)
        found = await kinds_by_database(settings, scripted)
    assert found == {database: KEYS | COUNTS}


async def test_worker_does_not_use_the_database_of_the_keys(tmp_path: Path) -> None:
    scripted = ScriptedDatastore()
    async with serving(scripted) as address:
        settings = settings_for(address, tmp_path, datastore_keys_database="keys")
        async with open_usage(settings) as usage:
            counts = Usage("acme", "key000000001", date(2026, 11, 30), 1, 1, 1, 0)
            await usage.add(UsageBatch(counts, "batch"))
    used = {entity.key.partition_id.database_id for entity in scripted.entities.values()}
    assert used == {""}
