"""The embedded backend runs where Google's libraries are not installed."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stack import ROOT
from tests.unit.test_google_boundaries import VENDOR

# FastAPI depends on OpenTelemetry's API. The SDK and the exporters are separate packages.
TELEMETRY = {"opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.proto"}
SLOW = {"aiohttp"}  # the first request to a URL of a user imports it


@pytest.mark.parametrize("service", ["app.main", "worker.main"])
def test_the_embedded_backend_runs_without_them(
    tmp_path: Path, colour_bundle: Path, service: str
) -> None:
    program = f"""
import asyncio, sys
from pathlib import Path
from core.settings import Settings
from {service} import create_app

async def main():
    data_dir, model = Path({str(tmp_path / "data")!r}), {str(colour_bundle)!r}
    app = create_app(Settings(_env_file=None, host="127.0.0.1", data_dir=data_dir, model_uri=model))
    async with app.router.lifespan_context(app):
        pass

asyncio.run(main())
loaded = {{name.split(".")[0] for name in sys.modules}}
loaded |= {{".".join(name.split(".")[:2]) for name in sys.modules}}
print(sorted(loaded & {VENDOR | TELEMETRY | SLOW!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
