"""The API waits for a bundle that is missing from its bucket, and refuses an invalid one."""

import asyncio
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.models.default_bundle import read_model, wait_for_model
from core.bundles.bundle import read_bundle
from core.errors import BundleError
from core.settings import Settings
from tests.process.test_app import TIMEOUT, environment, run
from tests.support.api import open_api
from tests.support.buckets import fill_bundle, remove
from tests.support.signals import heard


@pytest.fixture
def bucket() -> str:
    return f"models-{secrets.token_hex(4)}"


@pytest.fixture
def settings(storage_url: str, tmp_path: Path, bucket: str) -> Settings:
    return Settings(
        _env_file=None,
        host="127.0.0.1",
        data_dir=tmp_path / "data",
        storage_emulator_host=storage_url,
        model_uri=f"gs://{bucket}/colours",
    )


def test_bundle_that_is_missing_from_the_bucket_is_awaited(
    settings: Settings, bucket: str, colour_bundle: Path
) -> None:
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        without = ("model.onnx", "labels.txt") if len(pauses) == 3 else ()
        if len(pauses) > 2:
            asyncio.run(fill_bundle(settings, bucket, "colours", colour_bundle, without))

    bundle = wait_for_model(settings, sleep)
    assert pauses == [1, 2, 4, 8]
    assert bundle.identity == read_bundle(colour_bundle).identity
    assert {path.name for path in bundle.folder.iterdir()} == {
        *("SHA256SUMS", "model.json", "labels.txt")
    }


def test_missing_local_bundle_is_an_error(settings: Settings, tmp_path: Path) -> None:
    local = settings.model_copy(update={"model_uri": str(tmp_path / "nowhere")})
    with pytest.raises(BundleError, match="nowhere is not a model bundle"):
        wait_for_model(local, lambda _: pytest.fail("it waits"))


async def test_invalid_bundle_is_an_error(
    settings: Settings, bucket: str, colour_bundle: Path
) -> None:
    await fill_bundle(settings, bucket, "colours", colour_bundle)
    await fill_bundle(settings, bucket, "colours", Path("models/default"), ["SHA256SUMS"])
    with pytest.raises(BundleError, match=r"model\.json differs from SHA256SUMS"):
        await asyncio.to_thread(wait_for_model, settings, lambda _: pytest.fail("it waits"))


async def test_loaded_bundle_does_not_need_the_bucket(
    settings: Settings, bucket: str, colour_bundle: Path
) -> None:
    await fill_bundle(settings, bucket, "colours", colour_bundle)
    async with open_api(settings) as api:
        assert api.services.model == read_bundle(colour_bundle).identity
        await remove(settings, bucket, "colours/SHA256SUMS")
        response = await api.client.get("/ready")
        assert response.json()["checks"]["model"] == "ok"
    with pytest.raises(BundleError):
        await asyncio.to_thread(read_model, settings)


def test_process_exits_with_the_reason(
    settings: Settings, bucket: str, colour_bundle: Path, tmp_path: Path
) -> None:
    asyncio.run(fill_bundle(settings, bucket, "colours", colour_bundle))
    asyncio.run(fill_bundle(settings, bucket, "colours", Path("models/default"), ["SHA256SUMS"]))
    values = {"STORAGE_EMULATOR_HOST": settings.storage_emulator_host}
    ended = run(
        environment(tmp_path, Path(), **{**values, "MODEL_URI": settings.model_uri}), tmp_path
    )
    assert ended.returncode == 1
    assert f"cannot start: {settings.model_uri}: model.json differs" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_waiting_process_can_be_stopped(
    settings: Settings, tmp_path: Path, number: signal.Signals
) -> None:
    values = {"STORAGE_EMULATOR_HOST": settings.storage_emulator_host, "LOG_FORMAT": "json"}
    with heard(signal.SIGINT):
        process = subprocess.Popen(
            [sys.executable, "-m", "app"],
            cwd=tmp_path,
            env=environment(tmp_path, Path(), **{**values, "MODEL_URI": settings.model_uri}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "waiting for the model" in line
    assert f"there is no bucket {settings.model_uri.split('/')[2]}" in line
    process.send_signal(number)
    rest, _ = process.communicate(timeout=TIMEOUT)
    assert "Traceback" not in rest
    assert process.returncode in (0, -number)
