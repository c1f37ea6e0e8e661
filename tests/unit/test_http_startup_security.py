"""The start-up security check: a reachable service authenticates callers, or does not start."""

from pathlib import Path
from typing import Any

import pytest

from app.main import create_app
from core.hosts import is_loopback
from core.http.startup_security import InsecureSettings, check_api, check_worker
from core.settings import Settings
from tests.support.settings import isolated_settings

SECRET = "k" * 32
GCP = {
    "backend": "gcp",
    "bucket": "images",
    "push_audience": "a",
    "push_service_account": "b",
}


def settings(**values: Any) -> Settings:
    return isolated_settings(**{"host": "127.0.0.1", **values})


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.5", False),
        ("glimpse.example", False),
        ("localhost.evil.example", False),
        ("", False),
    ],
)
def test_loopback_addresses_are_recognised(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"host": "::1"},
        {"host": "0.0.0.0", "api_keys": "required"},
        {"host": "0.0.0.0", "allow_public": True},
        {**GCP, "api_keys": "required", "key_secret": SECRET},
        {**GCP, "allow_public": True},
    ],
)
def test_api_with_secure_settings_may_start(values: dict[str, Any]) -> None:
    check_api(settings(**values))


@pytest.mark.parametrize(
    ("values", "what_to_set"),
    [
        ({"host": "0.0.0.0"}, "API_KEYS=required"),
        ({"host": "10.0.0.7"}, "ALLOW_PUBLIC=true"),
        (GCP, "API_KEYS=required"),
        ({**GCP, "host": "0.0.0.0"}, "API_KEYS=required"),
        ({**GCP, "api_keys": "required"}, "KEY_SECRET"),
    ],
)
def test_api_with_insecure_settings_may_not_start(values: dict[str, Any], what_to_set: str) -> None:
    with pytest.raises(InsecureSettings, match=what_to_set):
        check_api(settings(**values))
    with pytest.raises(InsecureSettings):
        create_app(settings(**values))


def test_worker_requires_push_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    check_worker(settings())
    check_worker(settings(host="0.0.0.0", allow_public=True))
    push = {"push_auth": "oidc", "push_audience": "a", "push_service_account": "b"}
    check_worker(settings(host="0.0.0.0", **push))
    with pytest.raises(InsecureSettings, match="PUSH_AUTH"):
        check_worker(settings(host="0.0.0.0", api_keys="required"))
    monkeypatch.setenv("K_SERVICE", "worker")
    check_worker(settings(**GCP, host="0.0.0.0"))


@pytest.mark.parametrize("values", [{}, {"push_auth": "iam"}, {"backend": "embedded"}])
def test_worker_may_rely_on_cloud_run_only_there(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    iam = {**GCP, "push_auth": "iam", **values}
    with pytest.raises(InsecureSettings, match="PUSH_AUTH=oidc"):
        check_worker(settings(**iam))
    with pytest.raises(InsecureSettings, match="PUSH_AUTH=oidc"):
        check_worker(settings(**iam, allow_public=True))
    monkeypatch.setenv("K_SERVICE", "worker")
    check_worker(settings(**iam))


def test_secret_settings_are_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from core.settings import load_settings

    assert SECRET not in repr(settings(key_secret=SECRET))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEY_SECRET", "too-short-but-mine")
    with pytest.raises(SystemExit) as ended:
        load_settings()
    assert "KEY_SECRET" in str(ended.value)
    assert "too-short-but-mine" not in str(ended.value)
