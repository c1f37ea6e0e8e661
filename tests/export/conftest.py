"""These tests need PyTorch and transformers, which the services' environment leaves out.

There they are not collected, and the summary says so; `make test-export` runs them.
"""

import importlib.util
from pathlib import Path

import pytest

MISSING = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
HERE = Path(__file__).parent

collect_ignore = [file.name for file in HERE.glob("test_*.py")] if MISSING else []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if MISSING:
        terminalreporter.write_line(
            f"tests/export: {len(collect_ignore)} files not collected, this environment has no "
            f"{' and no '.join(MISSING)}; `make test-export` runs them"
        )
