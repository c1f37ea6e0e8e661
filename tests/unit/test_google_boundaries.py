"""Google's packages are loaded where Google's backend is used, and nowhere else.

So are OpenTelemetry's parts that record and send, where traces are on.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stack import ROOT

VENDOR = {"google", "grpc", "proto", "jwt", "cryptography"}
ALLOWED = {"core/backends/google": VENDOR, "worker/push/token.py": {"jwt"}}
# FastAPI brings OpenTelemetry's bare interface; what records and sends is another matter.
TELEMETRY = {"opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.proto"}


def imported(path: Path) -> set[str]:
    """The top-level packages that a module names, at its top or inside its functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_only_googles_backend_and_the_token_check_name_its_packages() -> None:
    seen = 0
    for folder in ("app", "worker", "core", "compose", "models"):
        for path in (ROOT / folder).rglob("*.py"):
            name = str(path.relative_to(ROOT))
            allowed = {p for where, ps in ALLOWED.items() if name.startswith(where) for p in ps}
            assert not (imported(path) & VENDOR) - allowed, name
            seen += 1
    assert seen > 50


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
print(sorted(loaded & {VENDOR | TELEMETRY!r}))
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
