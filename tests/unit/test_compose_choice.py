"""Which backend `make run` takes, and what it says when it cannot."""

from pathlib import Path

import pytest

from compose import emulators
from compose.choice import CannotRun, Choice, Probe, Way, asked_backend, choose


def works() -> list[str]:
    return []


def no_engine() -> list[str]:
    return ["No Docker engine answers."]


def no_gcloud() -> list[str]:
    return ["gcloud is not installed.", "Java is not installed."]


def unasked() -> list[str]:
    raise AssertionError("its answer does not matter")


@pytest.mark.parametrize(
    ("compose_lacks", "emulators_lack", "way", "said"),
    [
        (works, unasked, "compose", ["Docker engine answers"]),
        (no_engine, works, "emulator", ["No Docker engine answers.", "gcloud"]),
        (no_engine, no_gcloud, "embedded", [*no_engine(), *no_gcloud(), "nothing but Python"]),
    ],
)
def test_takes_the_nearest_to_google_cloud(
    compose_lacks: Probe, emulators_lack: Probe, way: Way, said: list[str]
) -> None:
    choice = choose("", compose_lacks, emulators_lack)
    assert choice.way == way
    assert all(text in choice.reason for text in said)


@pytest.mark.parametrize(
    ("asked", "probes"),
    [
        ("embedded", (unasked, unasked)),
        ("emulator", (unasked, works)),
        ("compose", (works, unasked)),
    ],
)
def test_does_as_it_is_told(asked: Way, probes: tuple[Probe, Probe]) -> None:
    assert choose(asked, *probes) == Choice(asked, "BACKEND asks for it.")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("compose", no_engine()),
        ("emulator", no_gcloud()),
        ("gcp", ["BACKEND=gcp", "compose, emulator, embedded"]),
        ("Embedded", ["BACKEND=Embedded"]),
    ],
)
def test_says_what_is_missing(asked: str, said: list[str]) -> None:
    with pytest.raises(CannotRun) as refused:
        choose(asked, no_engine, no_gcloud)
    assert all(text in str(refused.value) for text in said)


def test_environment_asks_before_the_file(tmp_path: Path) -> None:
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
