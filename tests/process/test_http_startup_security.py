"""Services that other machines could reach without protection do not start."""

from pathlib import Path

import pytest

from tests.support.commands import run_module
from tests.support.stack import free_port


@pytest.mark.parametrize("module", ["app", "worker"])
def test_process_exits_and_says_which_settings_to_change(
    tmp_path: Path, colour_bundle: Path, module: str
) -> None:
    settings = {"MODEL_URI": str(colour_bundle), "HOST": "0.0.0.0", "PORT": str(free_port())}
    ended = run_module(module, tmp_path, **settings)
    assert ended.returncode == 1
    assert "Glimpse cannot start: HOST=0.0.0.0 lets other machines in" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "data").exists()
