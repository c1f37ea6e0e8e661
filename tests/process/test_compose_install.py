"""Environments: created for another lock, kept for the same one, also while Glimpse runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from compose import install
from compose.install import CannotInstall, in_use


def recording_python(environment: Path, status: int = 0) -> Path:
    """A Python that writes its arguments to a file, which is returned."""
    calls = environment / "calls"
    python = environment / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@" >> {calls}\necho no such package\nexit {status}\n')
    python.chmod(0o755)
    return calls


def test_environment_of_the_same_lock_stays(tmp_path: Path) -> None:
    """The development tools are added to it, also while Glimpse runs."""
    calls = recording_python(tmp_path)
    (tmp_path / install.RUNTIME_MARK).write_text(install.lock_digest())
    wanted = tmp_path / "requirements.txt"
    wanted.touch()
    with in_use(tmp_path):
        install.install("runtime", tmp_path)
        assert not calls.exists()
        install.install("development", tmp_path, wanted)
    tools, client = calls.read_text().splitlines()
    assert tools.endswith(f"--require-hashes --no-deps --requirement {wanted}")
    assert client.endswith(f"--editable {install.ROOT / 'client'}")
    assert (tmp_path / install.DEVELOPMENT_MARK).is_file()


def test_failure_shows_the_output_of_pip_and_leaves_no_mark(tmp_path: Path) -> None:
    recording_python(tmp_path, status=1)
    (tmp_path / install.RUNTIME_MARK).write_text(install.lock_digest())
    wanted = tmp_path / "requirements.txt"
    wanted.touch()
    with pytest.raises(CannotInstall, match="pip failed:\nno such package"):
        install.install("development", tmp_path, wanted)
    assert not (tmp_path / install.DEVELOPMENT_MARK).exists()


def test_environment_of_another_lock_is_created_again(tmp_path: Path) -> None:
    (tmp_path / install.RUNTIME_MARK).write_text("another lock")
    (tmp_path / "package").touch()
    install._create(tmp_path)
    assert not (tmp_path / "package").exists()
    python = tmp_path / "bin" / "python"
    assert subprocess.run([python, "-c", "pass"], check=True, timeout=60).returncode == 0


def test_running_supervisor_keeps_its_environment(tmp_path: Path) -> None:
    """The lock of a process counts, and ends with it."""
    code = (
        "import sys; from pathlib import Path; from compose.install import in_use\n"
        "with in_use(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=install.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        (tmp_path / "package").touch()
        with pytest.raises(CannotInstall, match="make stop"):
            install.install("runtime", tmp_path)
        holder.kill()
    install._create(tmp_path)
    assert not (tmp_path / "package").exists()
