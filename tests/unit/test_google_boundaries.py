"""Google's packages are loaded where Google's backend is used, and nowhere else.

So are OpenTelemetry's parts that record and send, where traces are on.
"""

import ast
from pathlib import Path

from tests.support.stack import ROOT

VENDOR = {"google", "grpc", "proto", "jwt", "cryptography"}
ALLOWED = {"core/backends/google": VENDOR, "worker/push/token.py": {"jwt"}}


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
