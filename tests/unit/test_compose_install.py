"""What `make run` installs: the locked packages that the services and the command line need."""

import re
import sys
from pathlib import Path

import pytest

from compose import install
from compose.install import CannotInstall, Progress, in_use, requirements

PACKAGE = {"name": "one", "version": "1.0", "groups": ["main"], "files": [{"hash": "sha256:aa"}]}


def lines_of(**changes: object) -> list[str]:
    return requirements({"package": [{**PACKAGE, **changes}]})


def test_line_pins_version_and_hashes() -> None:
    files = [{"hash": "sha256:aa"}, {"hash": "sha256:bb"}]
    assert lines_of(files=files) == ["one==1.0 --hash=sha256:aa --hash=sha256:bb"]


def test_other_groups_are_left_out() -> None:
    assert lines_of(groups=["dev"]) == []
    assert lines_of(groups=["dev", "cli"]) == lines_of()


@pytest.mark.parametrize(
    ("markers", "condition"),
    [
        ('extra == "worker"', '(python_version >= "0")'),
        ('extra == "google"', '(python_version < "0")'),
        (
            'extra == "google" or extra == "worker" and python_version < "3.13"',
            '(python_version < "0" or python_version >= "0" and python_version < "3.13")',
        ),
        ({"main": 'sys_platform == "win32"', "dev": "x"}, '(sys_platform == "win32")'),
    ],
)
def test_extras_in_markers_are_decided(markers: object, condition: str) -> None:
    assert lines_of(markers=markers) == [f"one==1.0 ; {condition} --hash=sha256:aa"]


def test_package_of_two_groups_has_either_marker() -> None:
    both = {"main": 'extra == "worker"', "cli": 'sys_platform == "linux"'}
    (line,) = lines_of(groups=["main", "cli"], markers=both)
    assert line.startswith('one==1.0 ; (python_version >= "0") or (sys_platform == "linux") ')
    (line,) = lines_of(groups=["main", "cli"], markers={"main": 'extra == "google"'})
    assert ";" not in line  # the group cli needs it in any case


def test_lock_gives_the_services_and_the_command_line_and_no_tools() -> None:
    lines = requirements(install._read_lock())
    assert all(" --hash=sha256:" in line for line in lines)
    always = {line.partition("==")[0] for line in lines if 'python_version < "0"' not in line}
    assert {"fastapi", "uvicorn", "aiohttp", "pillow", "onnxruntime", "numpy"} <= always
    assert {"click", "rich", "httpx2", "poetry-core"} <= always
    others = {"pytest", "mypy", "scikit-image", "google-cloud-storage", "opentelemetry-sdk"}
    assert not others & always
    assert len(always) < 60


def test_services_and_demo_import_only_what_make_run_installs() -> None:
    """Each module that `make run` and `make demo` load, by its import statements."""
    names = ("app", "worker", "core", "compose", "client/glimpse_client")
    folders = [install.ROOT / name for name in names]
    imports = re.compile(r"^(?:import|from) (\w+)", re.MULTILINE)
    found = {
        name
        for folder in folders
        for path in folder.rglob("*.py")
        if "google" not in path.parts and path.name != "settings_docs.py"
        for name in imports.findall(path.read_text("utf-8"))
    }
    lines = requirements(install._read_lock())
    installed = {
        line.partition("==")[0].lower().replace("-", "_")
        for line in lines
        if 'python_version < "0"' not in line
    }
    modules = {"PIL": "pillow", "dotenv": "python_dotenv"}
    own = {"app", "worker", "core", "compose", "glimpse_client"}
    missing = {
        name
        for name in found - own - sys.stdlib_module_names
        if modules.get(name, name).lower() not in installed
    }
    # OpenTelemetry's API is a namespace. The others are for push tokens and HEIC.
    assert missing <= {"jwt", "opentelemetry", "pillow_heif"}, missing


def test_environment_in_use_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "package").touch()
    with (
        in_use(tmp_path),
        pytest.raises(CannotInstall, match="Stop it with make stop, then repeat"),
    ):
        install.install("runtime", tmp_path)
    assert (tmp_path / "package").is_file()


def test_environment_without_write_access_can_be_used(tmp_path: Path) -> None:
    with in_use(tmp_path / "absent"):
        pass


def test_progress_counts_the_packages_of_this_platform(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    progress = Progress(3)
    for line in (
        "Ignoring three: markers 'sys_platform == \"win32\"' don't match your environment\n",
        "Collecting one==1.0 (from -r requirements.txt (line 1))\n",
        "  Downloading one-1.0-py3-none-any.whl (1 kB)\n",
        "Collecting two==2.0\n",
        "Installing collected packages: one, two\n",
    ):
        progress.read(line)
    progress.clear()
    shown = [part.strip("━ ") for part in capsys.readouterr().out.split("\r\x1b[K")]
    assert shown == ["", "1/2 one", "2/2 two", "2/2 unpacking", ""]
