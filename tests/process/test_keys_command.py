"""`python -m app.keys` and `make key`."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.keys.service import duration
from core.backends import open_access
from core.domain.principals import Scope
from tests.support.api import api_settings, open_api
from tests.support.commands import run_module
from tests.support.settings import isolated_settings

ROOT = Path(__file__).resolve().parents[2]
KEY = re.compile(r"glp_[0-9a-z]{12}[0-9A-Za-z]{51}\n")


class Command:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = {"API_KEYS": "required"}

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_module("app.keys", self.folder, *arguments, **self.settings)

    def made(self, *arguments: str) -> str:
        done = self("create", *arguments)
        assert done.returncode == 0, done.stderr
        assert KEY.fullmatch(done.stdout)
        return done.stdout.strip()


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    yield Command(tmp_path)


async def test_command_creates_the_first_key(
    command: Command, tmp_path: Path, colour_bundle: Path
) -> None:
    """The routes that create keys need a key themselves."""
    key = command.made("laptop", "--tenant", "acme", "--scopes", "all")
    async with open_api(api_settings(tmp_path, colour_bundle, api_keys="required")) as api:
        answer = await api.client.get("/api/v1/keys", headers={"X-API-Key": key})
        assert answer.status_code == 200
        (listed,) = answer.json()["keys"]
        assert (listed["name"], listed["tenant"]) == ("laptop", "acme")


async def test_key_is_created_listed_rotated_and_revoked(command: Command, tmp_path: Path) -> None:
    first = command.made(
        "camera",
        *("--scopes", "read,classify", "--expires", "90d"),
        *("--rate-limit", "5/second", "--daily-quota", "100"),
    )
    listed = command("list")
    assert first not in listed.stdout + listed.stderr
    key_id = first[4:16]
    (row,) = [line for line in listed.stdout.splitlines() if line.startswith(key_id)]
    for text in ("camera", "public", "classify,read", "5/second,100/day", "active"):
        assert text in row
    (document,) = json.loads(command("list", "--json").stdout)
    assert (document["id"], document["daily_quota"]) == (key_id, 100)

    rotated = command("rotate", key_id, "--overlap", "1h")
    assert KEY.fullmatch(rotated.stdout)
    assert rotated.stdout[4:16] == key_id
    assert "The old text is valid until" in rotated.stderr
    revoked = command("revoke", key_id)
    assert revoked.returncode == 0
    assert "within 30 s" in revoked.stderr
    assert "revoked" in command("list").stdout
    async with open_access(isolated_settings(data_dir=tmp_path / "data")) as access:
        key = await access.keys.get(key_id)
        assert key is not None
        assert key.scopes == {Scope.READ, Scope.CLASSIFY}


def test_limits_of_a_tenant_are_shown_and_replaced(command: Command) -> None:
    shown = command("limits", "acme").stderr
    assert "rate 600/minute (RATE_LIMIT), daily quota none (DAILY_QUOTA)" in shown
    shown = command("limits", "acme", "--rate-limit", "5/second", "--daily-quota", "100").stderr
    assert "rate 5/second, daily quota 100." in shown
    assert command("limits", "acme").stderr == shown
    shown = command("limits", "acme", "--rate-limit", "default", "--daily-quota", "0").stderr
    assert "rate 600/minute (RATE_LIMIT), daily quota none." in shown
    for wrong in (("--rate-limit", "5"), ("--daily-quota", "many"), ("--daily-quota", "-1")):
        refused = command("limits", "acme", *wrong)
        assert refused.returncode != 0, wrong
        assert "Traceback" not in refused.stderr


def test_key_can_be_written_to_a_private_file(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "key"
    done = command("create", "job", "--output", str(file))
    assert done.returncode == 0
    assert done.stdout == ""
    assert KEY.fullmatch(file.read_text())
    assert file.read_text().strip() not in done.stderr
    assert file.stat().st_mode & 0o777 == 0o600
    again = command("create", "job", "--output", str(file))
    assert again.returncode == 1
    assert "File exists" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("create", "x", "--scopes", "root"), "'root' is not a scope"),
        (("create", "x", "--scopes", "Admin"), "'Admin' is not a scope"),
        (("create", "x", "--tenant", "No Tenant"), "tenant is malformed"),
        (
            ("create", "x", "--expires", "soon"),
            "A time is written like 90d, 2027-01-31 or 2027-01-31T12:00Z.",
        ),
        (("create", "x", "--expires", "2020-01-01"), "already be expired"),
        (("create", "x", "--expires", "9999-12-31T23:59-12:00"), "A time is written like 90d"),
        (("create", "x", "--rate-limit", "fast"), "600/minute"),
        (("create", "x", "--daily-quota", "-1"), "daily quota must be between 0 and"),
        (("create", "x", "--daily-quota", str(2**63)), "daily quota must be between 0 and"),
        (("create", ""), "name is malformed"),
        (("rotate", "0" * 12), "no such key"),
        (("rotate", "../../etc"), "no such key"),
        (("revoke", "0" * 12), "no such key"),
        (("rotate", "0" * 12, "--overlap", "1y"), "90d"),
        (("rotate", "0" * 12, "--overlap", "31d"), "overlap must be at most 30 days"),
    ],
)
def test_invalid_arguments_are_explained(
    command: Command, arguments: tuple[str, ...], complaint: str
) -> None:
    done = command(*arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_failing_store_leaves_standard_output_empty(command: Command, tmp_path: Path) -> None:
    """A script would take any output for the key."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "keys.db").write_bytes(b"no database" * 100)
    done = command("create", "laptop")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "file is not a database" in done.stderr
    assert "The keys database does not answer." in done.stderr


def test_hint_is_printed_if_the_api_requires_no_keys(command: Command) -> None:
    command.settings["API_KEYS"] = "off"
    done = command("create", "early")
    assert "API_KEYS=required" in done.stderr
    assert "There are no keys" not in command("list").stdout


def test_empty_list_tells_how_to_create_a_key(command: Command) -> None:
    assert command("list").stdout == "There are no keys: make key NAME=…\n"


def test_make_key_passes_all_arguments(tmp_path: Path) -> None:
    given = ["NAME=camera 3", "TENANT=acme", "SCOPES=read", "EXPIRES=90d"]
    shown = subprocess.run(
        ["make", "--dry-run", "--old-file=setup", "key", *given],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    wanted = 'python -m app.keys create "camera 3" --tenant "acme" --scopes "read" --expires "90d"'
    assert wanted in shown


@pytest.mark.parametrize("text", ["90d", "12h", "30m", "45s"])
def test_durations_are_parsed(text: str) -> None:
    units = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
    assert duration(text).total_seconds() == int(text[:-1]) * units[text[-1]]
