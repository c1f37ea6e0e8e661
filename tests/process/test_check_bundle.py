"""`make bundle` for a bundle in Python: its predictor runs in another process, within limits."""

import json
import sys
from pathlib import Path

import pytest

from core.errors import BundleError, GlimpseError
from models.check_bundle import check_apart
from tests.support.predictors import predicting, write_python_bundle


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("__import__('os')._exit(0)", "predictor.py ended its process."),
        ("int('x')", "The predictor raised ValueError."),
        pytest.param(
            "[{'output': len(bytearray(3 * 2**30))}]",
            "The predictor raised MemoryError.",
            marks=pytest.mark.skipif(
                sys.platform != "linux", reason="only Linux enforces RLIMIT_DATA"
            ),
        ),
    ],
)
def test_predictor_that_ends_its_process_is_a_fault(tmp_path: Path, code: str, reason: str) -> None:
    with pytest.raises(GlimpseError, match=reason):
        check_apart(write_python_bundle(tmp_path / "bundle", predicting(code)))


def test_predictor_that_takes_too_long_is_a_fault(tmp_path: Path) -> None:
    expression = "__import__('time').sleep(15) or [{'output': 1}]"
    folder = write_python_bundle(tmp_path, predicting(expression))
    with pytest.raises(BundleError, match="took longer than 3 s"):
        check_apart(folder, 3)


def test_bundle_in_python_is_checked_apart(tmp_path: Path) -> None:
    bundle, found = check_apart(write_python_bundle(tmp_path / "bundle"))
    assert bundle.identity.startswith("brightness@")
    assert json.loads(found.output) == {"size": [640, 480]}
