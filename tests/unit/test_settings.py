"""Settings are validated at start, and each wrong one is named."""

import os
from pathlib import Path

import pytest

from core.settings import DEFAULT_BUNDLE, Settings, load_settings


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, and none of our names in the environment."""
    monkeypatch.chdir(tmp_path)
    names = {name.upper() for name in Settings.model_fields}
    for name in [name for name in os.environ if name.upper() in names]:
        monkeypatch.delenv(name)


def test_the_defaults_stand_alone() -> None:
    settings = load_settings()
    assert (settings.api_port, settings.worker_port) == (8080, 8081)
    assert settings.backend == "embedded"
    assert settings.host == "127.0.0.1"
    assert settings.max_image_bytes == 10 * 2**20
    assert settings.max_image_pixels == 50_000_000
    assert settings.max_wait_seconds == 30
    assert Path(settings.model_uri) == DEFAULT_BUNDLE
    assert settings.worker_url == "http://127.0.0.1:8081"
    assert settings.classifier_processes >= 1


def test_an_ipv6_address_makes_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOST", "::1")
    settings = load_settings()
    assert settings.worker_url == "http://[::1]:8081"
    assert settings.api_url == "http://[::1]:8080"


def test_every_setting_is_documented() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name


def test_the_environment_is_read_whatever_its_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_PORT", "9000")
    monkeypatch.setenv("data_dir", "/tmp/elsewhere")
    settings = load_settings()
    assert settings.api_port == 9000
    assert settings.data_dir == Path("/tmp/elsewhere")


def test_a_dotenv_is_read_and_the_environment_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text(
        "API_PORT=9000\nWORKER_PORT=9001\n# a comment\nPUBLIC_URL=\nSOMETHING_ELSE=1\n"
    )
    monkeypatch.setenv("WORKER_PORT", "9002")
    settings = load_settings()
    assert (settings.api_port, settings.worker_port) == (9000, 9002)
    assert settings.public_url == ""


def test_empty_values_mean_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_PORT", "")
    assert load_settings().api_port == 8080


@pytest.mark.parametrize(
    "name", ["extra_model_uris", "cors_origins", "allowed_hosts", "trusted_proxies"]
)
def test_lists_are_written_with_commas(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name.upper(), "models/a, models/b ,,")
    assert getattr(load_settings(), name) == ("models/a", "models/b")


def test_buckets_to_import_from_are_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().import_buckets == ()
    monkeypatch.setenv("IMPORT_BUCKETS", "photos, more.photos")
    assert load_settings().import_buckets == ("photos", "more.photos")
    for wrong in ("gs://photos", "photos/2026", "*", "Photos"):
        monkeypatch.setenv("IMPORT_BUCKETS", f"photos,{wrong}")
        with pytest.raises(SystemExit, match="IMPORT_BUCKETS"):
            load_settings()


def test_nobody_imports_from_the_bucket_of_all_tenants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKEND", "emulator")
    monkeypatch.setenv("BUCKET", "images")
    monkeypatch.setenv("IMPORT_BUCKETS", "photos,images")
    with pytest.raises(SystemExit, match="every tenant's"):
        load_settings()


def test_a_rate_may_be_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(load_settings().rate) == "600/minute"
    monkeypatch.setenv("RATE_LIMIT", "off")
    assert load_settings().rate is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("API_PORT", "many"),
        ("API_PORT", "0"),
        ("WORKER_PORT", "65536"),
        ("BACKEND", "floppy"),
        ("PUBLIC_URL", "glimpse.example"),
        ("PUBLIC_URL", "https://glimpse.example/"),
        ("MAX_IMAGE_BYTES", "0"),
        ("MAX_IMAGE_PIXELS", "-1"),
        ("MAX_WAIT_SECONDS", "61"),
        ("SLOW_WAIT_SECONDS", "0"),
        ("LABELS_PER_IMAGE", "0"),
        ("RESULT_CACHE_ENTRIES", "-1"),
        ("RESULT_CACHE_SECONDS", "0"),
        ("RESULT_MAX_AGE_SECONDS", "soon"),
        ("LINK_SECONDS", "43201"),
        ("LOADED_MODELS", "0"),
        ("PUSH_CONCURRENCY", "0"),
        ("WORKER_CONCURRENCY", "-1"),
        ("LOG_FORMAT", "xml"),
        ("API_KEYS", "maybe"),
        ("ALLOW_PUBLIC", "perhaps"),
        ("KEY_SECRET", "short"),
        ("KEY_CACHE_SECONDS", "61"),
        ("RATE_LIMIT", "600"),
        ("RATE_LIMIT", "0/minute"),
        ("DAILY_QUOTA", "-1"),
        ("DAILY_QUOTA", str(10**20)),
        ("LOG_LEVEL", "loud"),
        ("STALE_SECONDS", "0"),
        ("STALE_SECONDS", "nan"),
        ("RETENTION_SECONDS", "inf"),
        ("RETENTION_SECONDS", "1e11"),
        ("DEAD_LETTER_RETENTION_SECONDS", "inf"),
        ("DEAD_LETTER_RETENTION_SECONDS", "1e11"),
        ("JOB_RETENTION_SECONDS", "inf"),
        ("JOB_RETENTION_SECONDS", "1e11"),
        ("JOB_REFRESH_SECONDS", "inf"),
        ("SHUTDOWN_SECONDS", "inf"),
    ],
)
def test_a_wrong_value_ends_the_start_and_is_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        load_settings()
    assert f"  {name}: " in str(ended.value)


def test_all_wrong_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_PORT", "many")
    monkeypatch.setenv("LOG_LEVEL", "loud")
    with pytest.raises(SystemExit) as ended:
        load_settings()
    assert "API_PORT" in str(ended.value)
    assert "LOG_LEVEL" in str(ended.value)


def test_the_ports_must_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_PORT", "9000")
    monkeypatch.setenv("WORKER_PORT", "9000")
    with pytest.raises(SystemExit, match="API_PORT and WORKER_PORT must differ"):
        load_settings()


def test_a_service_that_runs_alone_may_have_any_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cloud Run gives every container PORT=8080, the worker's as well."""
    monkeypatch.setenv("PORT", "8080")
    monkeypatch.setenv("WORKER_PORT", "8080")
    assert load_settings().port == 8080


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"DELIVERY_ATTEMPTS": "0"}, "attempts"),
        ({"MIN_BACKOFF_SECONDS": "9", "MAX_BACKOFF_SECONDS": "3"}, "min_backoff"),
        ({"LEASE_SECONDS": "90"}, "lease"),
        ({"ACK_DEADLINE_SECONDS": "601"}, "ack_deadline"),
        ({"RETENTION_SECONDS": "60"}, "retention"),
    ],
)
def test_a_delivery_that_contradicts_itself_is_refused(
    changes: dict[str, str], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=complaint):
        load_settings()


def test_delivery_settings_reach_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELIVERY_ATTEMPTS", "7")
    monkeypatch.setenv("LEASE_SECONDS", "12")
    settings = load_settings()
    assert settings.delivery.attempts == 7
    assert settings.delivery.lease == settings.lease.total_seconds() == 12


@pytest.mark.parametrize("name", ["MODEL_URI", "EXTRA_MODEL_URIS"])
def test_a_model_is_a_path_or_a_folder_of_a_bucket(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for right in ("bundles/x", "/srv/x", "gs://models/x", "gs://models/2026/x/"):
        monkeypatch.setenv(name, right)
        assert right in load_settings().model_uris
    for wrong in ("gs://models", "gs://models/", "gs://Models/x", "s3://models/x", "gs://m/../x"):
        monkeypatch.setenv(name, wrong)
        with pytest.raises(SystemExit, match=rf"{name}.*: is neither a path nor"):
            load_settings()


def test_the_model_cache_is_in_the_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_DIR", "/srv/data")
    monkeypatch.setenv("MODEL_CACHE_DIR", "")
    assert load_settings().model_cache == Path("/srv/data/model-cache")
    monkeypatch.setenv("MODEL_CACHE_DIR", "/srv/models")
    assert load_settings().model_cache == Path("/srv/models")


@pytest.mark.parametrize(
    ("changes", "emulated"),
    [
        ({}, False),
        ({"STORAGE_EMULATOR_HOST": "http://127.0.0.1:9"}, True),
        ({"BACKEND": "emulator"}, True),
        (
            {
                **{"BACKEND": "gcp", "BUCKET": "images", "PUSH_AUDIENCE": "a"},
                **{"PUSH_SERVICE_ACCOUNT": "s", "STORAGE_EMULATOR_HOST": "http://127.0.0.1:9"},
            },
            False,
        ),
    ],
    ids=["embedded", "embedded with an emulator", "emulator", "gcp"],
)
def test_whose_buckets_are_meant(
    changes: dict[str, str], emulated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    assert load_settings().emulated_buckets is emulated
