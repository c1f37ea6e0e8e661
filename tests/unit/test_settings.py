"""Settings are validated at start, and each invalid one is named."""

import os
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from core.settings import DEFAULT_BUNDLE, REMOVED, Settings, load_settings
from tests.support.settings import isolated_settings


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, and an environment without settings."""
    monkeypatch.chdir(tmp_path)
    names = {name.upper() for name in Settings.model_fields}
    for name in [name for name in os.environ if name.upper() in names]:
        monkeypatch.delenv(name)


def test_defaults_are_complete() -> None:
    settings = load_settings()
    assert (settings.api_port, settings.worker_port) == (8080, 8081)
    assert settings.backend == "embedded"
    assert settings.host == "127.0.0.1"
    assert settings.max_image_bytes == 20 * 2**20
    assert settings.pixel_limits == (64_000_000, 120_000_000)
    assert Path(settings.model_uri) == DEFAULT_BUNDLE
    assert settings.worker_url == "http://127.0.0.1:8081"
    assert settings.classifier_processes >= 1


def test_ipv6_address_is_valid_in_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOST", "::1")
    settings = load_settings()
    assert settings.worker_url == "http://[::1]:8081"
    assert settings.api_url == "http://[::1]:8080"


def test_every_setting_has_a_description() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name


def test_environment_variables_are_case_insensitive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_PORT", "9000")
    monkeypatch.setenv("data_dir", "/tmp/elsewhere")
    settings = load_settings()
    assert settings.api_port == 9000
    assert settings.data_dir == Path("/tmp/elsewhere")


def test_environment_wins_over_dotenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("API_PORT=9000\nWORKER_PORT=9001\n# a comment\nPUBLIC_URL=\n")
    monkeypatch.setenv("WORKER_PORT", "9002")
    settings = load_settings()
    assert (settings.api_port, settings.worker_port) == (9000, 9002)
    assert settings.public_url == ""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("API_PROT=9000", "API_PROT: there is no such setting. Did you mean API_PORT?"),
        ("max_image_byte=", "MAX_IMAGE_BYTE: there is no such setting. Did you mean MAX_IMAGE_BYT"),
        ("SOMETHING_ELSE=1", "SOMETHING_ELSE: there is no such setting. .env is read by Glimpse o"),
        ("HEADER_SECONDS=3", "HEADER_SECONDS: this setting was removed: it is always 10 seconds."),
    ],
)
def test_unknown_name_in_dotenv_is_an_error(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"API_PORT=9001\n{line}\nWORKER_PORT=many\n")
    with pytest.raises(SystemExit) as ended:
        load_settings()
    assert f"\n  {message}" in str(ended.value)
    assert "\n  WORKER_PORT: " in str(ended.value)


def test_dotenv_may_set_variables_of_compose_and_opentelemetry(tmp_path: Path) -> None:
    lines = ("COMPOSE_PROJECT_NAME=a", "DOCKER_HOST=b", "OTEL_EXPORTER_OTLP_ENDPOINT=http://c:4318")
    (tmp_path / ".env").write_text("\n".join(lines))
    load_settings()


def test_unknown_names_in_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_PROT", "HEADER_SECONDS", "SOMETHING_ELSE"):
        monkeypatch.setenv(name, "1")
    assert load_settings() == isolated_settings()


def test_unknown_argument_is_an_error() -> None:
    with pytest.raises(ValidationError, match="header_seconds"):
        isolated_settings(header_seconds=3)


def test_removed_settings_are_gone() -> None:
    assert not REMOVED.keys() & {name.upper() for name in Settings.model_fields}
    known = {name.upper() for name in Settings.model_fields}
    named = {word for reason in REMOVED.values() for word in re.findall(r"[A-Z]+_[A-Z_]+", reason)}
    assert named <= known


def test_empty_values_mean_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_PORT", "")
    assert load_settings().api_port == 8080


@pytest.mark.parametrize(
    "name", ["extra_model_uris", "cors_origins", "allowed_hosts", "trusted_proxies"]
)
def test_lists_are_comma_separated(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name.upper(), "models/a, models/b ,,")
    assert getattr(load_settings(), name) == ("models/a", "models/b")


def test_import_buckets_are_bucket_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().import_buckets == ()
    monkeypatch.setenv("IMPORT_BUCKETS", "photos, more.photos")
    assert load_settings().import_buckets == ("photos", "more.photos")
    for wrong in ("gs://photos", "photos/2026", "*", "Photos"):
        monkeypatch.setenv("IMPORT_BUCKETS", f"photos,{wrong}")
        with pytest.raises(SystemExit, match="IMPORT_BUCKETS"):
            load_settings()


def test_import_bucket_is_not_the_bucket_of_all_tenants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKEND", "emulator")
    monkeypatch.setenv("BUCKET", "images")
    monkeypatch.setenv("IMPORT_BUCKETS", "photos,images")
    with pytest.raises(SystemExit, match="every tenant's"):
        load_settings()


def test_rate_limit_can_be_off(monkeypatch: pytest.MonkeyPatch) -> None:
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
        ("LABELS_PER_IMAGE", "0"),
        ("LOADED_MODELS", "0"),
        ("WORKER_CONCURRENCY", "-1"),
        ("LOG_FORMAT", "xml"),
        ("API_KEYS", "maybe"),
        ("ALLOW_PUBLIC", "perhaps"),
        ("KEY_SECRET", "short"),
        ("RATE_LIMIT", "600"),
        ("RATE_LIMIT", "0/minute"),
        ("DAILY_QUOTA", "-1"),
        ("DAILY_QUOTA", str(10**20)),
        ("LOG_LEVEL", "loud"),
        ("LEASE_SECONDS", "nan"),
        ("RETENTION_DAYS", "0"),
        ("RETENTION_DAYS", "inf"),
        ("RETENTION_DAYS", "36501"),
    ],
)
def test_invalid_value_stops_the_start_and_is_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        load_settings()
    assert f"  {name}: " in str(ended.value)


def test_all_invalid_values_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_PORT", "many")
    monkeypatch.setenv("LOG_LEVEL", "loud")
    with pytest.raises(SystemExit) as ended:
        load_settings()
    assert "API_PORT" in str(ended.value)
    assert "LOG_LEVEL" in str(ended.value)


def test_ports_must_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_PORT", "9000")
    monkeypatch.setenv("WORKER_PORT", "9000")
    with pytest.raises(SystemExit, match="API_PORT and WORKER_PORT must differ"):
        load_settings()


def test_port_applies_to_a_service_that_runs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cloud Run sets PORT=8080 for every container, including the worker's."""
    monkeypatch.setenv("PORT", "8080")
    monkeypatch.setenv("WORKER_PORT", "8080")
    assert load_settings().port == 8080


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"DELIVERY_ATTEMPTS": "0"}, "attempts"),
        ({"MAX_BACKOFF_SECONDS": "601"}, "max_backoff"),
        ({"LEASE_SECONDS": "0"}, "lease"),
        ({"LEASE_SECONDS": "601"}, "lease"),
    ],
)
def test_contradictory_delivery_settings_are_refused(
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


@pytest.mark.parametrize(
    ("lease", "deadline"), [("2", 10), ("30", 60), ("300", 600), ("450", 600), ("600", 600)]
)
def test_delivery_may_take_twice_the_lease_within_the_bounds_of_pubsub(
    lease: str, deadline: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEASE_SECONDS", lease)
    assert load_settings().delivery.ack_deadline == deadline


def test_notifications_are_delivered_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load_settings().notification_delivery
    assert (policy.attempts, policy.min_backoff, policy.max_backoff) == (100, 10, 600)
    monkeypatch.setenv("DELIVERY_ATTEMPTS", "7")
    monkeypatch.setenv("MAX_BACKOFF_SECONDS", "6")
    policy = load_settings().notification_delivery
    assert (policy.attempts, policy.min_backoff, policy.max_backoff) == (28, 0.1, 30)
    monkeypatch.setenv("DELIVERY_ATTEMPTS", "100")
    monkeypatch.setenv("MAX_BACKOFF_SECONDS", "600")
    policy = load_settings().notification_delivery
    assert (policy.attempts, policy.min_backoff, policy.max_backoff) == (100, 10, 600)


@pytest.mark.parametrize(("lease", "seconds"), [("2", 20), ("30", 20), ("60", 40)])
def test_classification_ends_within_the_lease(
    lease: str, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEASE_SECONDS", lease)
    assert load_settings().classify_seconds == seconds


@pytest.mark.parametrize("name", ["MODEL_URI", "EXTRA_MODEL_URIS"])
def test_model_is_a_path_or_a_folder_in_a_bucket(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for right in ("bundles/x", "/srv/x", "gs://models/x", "gs://models/2026/x/"):
        monkeypatch.setenv(name, right)
        assert right in load_settings().model_uris
    for wrong in ("gs://models", "gs://models/", "gs://Models/x", "s3://models/x", "gs://m/../x"):
        monkeypatch.setenv(name, wrong)
        with pytest.raises(SystemExit, match=rf"{name}.*: is neither a path nor"):
            load_settings()


def test_model_cache_is_in_the_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_DIR", "/srv/data")
    assert load_settings().model_cache == Path("/srv/data/model-cache")


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
def test_emulated_buckets(
    changes: dict[str, str], emulated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    assert load_settings().emulated_buckets is emulated
