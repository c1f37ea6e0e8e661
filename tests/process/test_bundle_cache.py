"""A cache of bundles that several processes share."""

import asyncio
import subprocess
import sys

from core.backends.bundles import Bundles
from core.bundles import cache
from core.bundles.bundle import verify_bundle
from core.settings import Settings
from tests.support.scripted_storage import URI, WEIGHTS, ScriptedStorage
from tests.support.stack import ROOT
from tests.unit.test_google_bundles import bundles, cloud, complete, settings

__all__ = ["bundles", "cloud", "settings"]  # fixtures


FETCH = """
import sys
from pathlib import Path
from core.backends.bundles import open_bundles
from core.bundles.bundle import verify_bundle
from core.settings import Settings
data, host, uri = sys.argv[1:]
settings = Settings(_env_file=None, data_dir=Path(data), storage_emulator_host=host, model_uri=uri)
bundles = open_bundles(settings, (uri,))
bundle = bundles.manifest(uri)
bundles.weights(uri, bundle)
verify_bundle(bundle)
"""


def start_fetching(settings: Settings, cloud: ScriptedStorage) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, str(settings.data_dir), cloud.url, URI],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


async def output(process: "subprocess.Popen[str]") -> str:
    return (await asyncio.to_thread(process.communicate))[0]


async def test_one_of_several_processes_fetches(settings: Settings, cloud: ScriptedStorage) -> None:
    processes = [start_fetching(settings, cloud) for _ in range(3)]
    found = await asyncio.gather(*(output(process) for process in processes))
    assert [process.returncode for process in processes] == [0, 0, 0], found
    assert cloud.asked.count(WEIGHTS) == 1


async def test_killed_fetch_does_not_block_other_processes(
    settings: Settings, cloud: ScriptedStorage, bundles: Bundles
) -> None:
    cloud.endless = True
    process = start_fetching(settings, cloud)
    await cloud.reading.wait()
    part = next(settings.model_cache.glob(f"*/{cache.PART}"))
    process.kill()
    await asyncio.to_thread(process.communicate)
    cloud.endless = False
    assert part.exists(), "the process died before it deleted the file"
    verify_bundle(await complete(bundles))
