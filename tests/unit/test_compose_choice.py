"""Which backend `make run` chooses, and its messages if it cannot run one."""

from pathlib import Path

import pytest

from compose import emulators
from compose.choice import CannotRun, Choice, Probe, Way, asked_backend, choose


def complete() -> list[str]:
    return []


def no_engine() -> list[str]:
    return ["No Docker engine is running."]


def no_gcloud() -> list[str]:
    return ["gcloud is not installed.", "Java is not installed."]


def not_called() -> list[str]:
    raise AssertionError("the choice does not depend on this probe")


@pytest.mark.parametrize(
    ("compose_lacks", "emulators_lack", "way", "said"),
    [
        (complete, not_called, "compose", ["Docker engine is running"]),
        (no_engine, complete, "emulator", ["No Docker engine is running.", "gcloud"]),
        (no_engine, no_gcloud, "embedded", [*no_engine(), *no_gcloud(), "only Python"]),
    ],
)
def test_backend_most_like_google_cloud_is_chosen(
    compose_lacks: Probe, emulators_lack: Probe, way: Way, said: list[str]
) -> None:
    choice = choose("", compose_lacks, emulators_lack)
    assert choice.way == way
    assert all(text in choice.reason for text in said)


@pytest.mark.parametrize(
    ("asked", "probes"),
    [
        ("embedded", (not_called, not_called)),
        ("emulator", (not_called, complete)),
        ("compose", (complete, not_called)),
    ],
)
def test_selected_backend_is_chosen(asked: Way, probes: tuple[Probe, Probe]) -> None:
    assert choose(asked, *probes) == Choice(asked, "BACKEND selects it.")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("compose", no_engine()),
        ("emulator", no_gcloud()),
        ("gcp", ["BACKEND=gcp", "compose, emulator, embedded"]),
        ("Embedded", ["BACKEND=Embedded"]),
    ],
)
def test_missing_requirements_are_named(asked: str, said: list[str]) -> None:
    with pytest.raises(CannotRun) as refused:
        choose(asked, no_engine, no_gcloud)
    assert all(text in str(refused.value) for text in said)


def test_environment_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    assert asked_backend({}, file) == ""
    file.write_text("# BACKEND=compose\nBACKEND=emulator\n")
    assert asked_backend({}, file) == "emulator"
    assert asked_backend({"BACKEND": ""}, file) == "emulator"
    assert asked_backend({"BACKEND": "embedded"}, file) == "embedded"


def test_emulators_are_probed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CLOUDSDK_ROOT_DIR", raising=False)
    assert [s.split(" is ")[0] for s in emulators.missing()] == ["gcloud", "Java"]
    (tmp_path / "sdk" / "platform").mkdir(parents=True)
    monkeypatch.setenv("CLOUDSDK_ROOT_DIR", str(tmp_path / "sdk"))
    assert "gcloud components install pubsub-emulator" in " ".join(emulators.missing())
