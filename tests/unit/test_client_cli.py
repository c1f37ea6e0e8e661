"""The command line against a scripted service: exit codes, URLs, and files that are skipped."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from glimpse_client import RetryPolicy, client
from glimpse_client.cli import commands, label, profiles
from glimpse_client.cli.context import Context
from glimpse_client.jobs import Jobs

from tests.support.pictures import picture
from tests.support.scripted_service import Drop, Reply, ScriptedService, Step

HASH = "0" * 64
DONE = {
    "image_hash": HASH,
    "status": "success",
    "model": "m@000000000000",
    "annotations": [{"index": 1, "label": "owl", "confidence": 0.9}],
    "error": None,
}
LATER = {"retry-after": "3600"}  # longer than the client waits
URL = "https://example.com/owl.jpg"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("GLIMPSE_URL", "GLIMPSE_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run `glimpse` in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["glimpse", *arguments])
    with pytest.raises(SystemExit) as ended:
        commands.run()
    return int(ended.value.code or 0)


def problem(status: int, code: str, **more: Any) -> Reply:
    document = {"code": code, "title": "T", "detail": "Because.", **more}
    return Reply(status, document, LATER if status in (429, 503) else {})


@pytest.mark.parametrize(
    ("step", "code"),
    [
        (Reply(200, DONE), 0),
        (problem(422, "invalid_request"), 2),
        (problem(404, "not_found"), 3),
        (problem(401, "unauthenticated"), 4),
        (problem(403, "forbidden"), 4),
        (problem(429, "rate_limited"), 5),
        (problem(503, "overloaded"), 5),
    ],
)
def test_exit_code_says_how_the_service_answered(
    step: Step, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedService(step) as service:
        assert run(monkeypatch, "--url", service.url, "images", "get", HASH) == code
    out, err = capsys.readouterr()
    assert bool(out) == (code == 0)
    assert err == ("" if code == 0 else "Error: Because.\n")


def test_service_that_does_not_answer_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(client, "RetryPolicy", lambda: RetryPolicy(retries=0))
    with ScriptedService(Drop()) as service:
        assert run(monkeypatch, "--url", service.url, "images", "get", HASH) == 6
    assert f"Does Glimpse run at {service.url}? glimpse doctor" in capsys.readouterr().err


def test_exit_code_of_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "run_label", interrupt)
    assert run(monkeypatch, "label", "photo.jpg") == 130


def test_interruption_while_a_job_is_created_names_the_list_of_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The service may have the job already."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Jobs, "create_from", interrupt)
    for number in range(100):
        (tmp_path / f"{number}.png").write_bytes(picture(number, size=(8, 8)))
    assert run(monkeypatch, "label", str(tmp_path)) == 130
    assert "glimpse jobs list" in capsys.readouterr().err


def test_url_is_labelled_among_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedService(Reply(200, DONE)) as service:
        assert run(monkeypatch, "--url", service.url, "label", URL, "--ndjson") == 0
        (seen,) = service.seen
    assert (seen.path, json.loads(seen.body)) == ("/api/v1/images/from-url", {"url": URL})
    document = json.loads(capsys.readouterr().out)
    assert (document["file"], document["annotations"][0]["label"]) == (URL, "owl")


@pytest.mark.parametrize(
    "refusal",
    [
        problem(422, "invalid_request", field="url"),
        problem(422, "private_address"),
        problem(415, "unsupported_image"),
    ],
)
def test_url_without_an_image_fails_alone(
    refusal: Reply, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedService(refusal, Reply(200, DONE)) as service:
        assert run(monkeypatch, "--url", service.url, "label", URL, URL + "2", "--csv") == 1
    out, err = capsys.readouterr()
    assert out.count("success") == 1
    assert "1 of 2 images failed." in err
    assert f"  {URL}" in err


def test_urls_beside_a_job_are_requests_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("no job without files")

    files = [label.Wanted(f"{n}.jpg", refused="is empty") for n in range(label.SINGLE + 1)]
    with ScriptedService(Reply(200, DONE)) as service:
        ctx = Context("default", service.url, None)
        monkeypatch.setattr(ctx.client.jobs, "create_from", refused)
        images = iter([*files, label.Wanted(URL, url=URL)])
        found = list(label.label_images(ctx, images, label.Choice(), lambda count, note: None))
        ctx.close()
    assert [each.name for each in found] == [*(f"{n}.jpg" for n in range(9)), URL]
    assert [each.status for each in found] == [*["error"] * 9, "success"]
    assert [seen.path for seen in service.seen] == ["/api/v1/images/from-url"]


def test_images_are_counted_for_the_progress_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.jpg", "b.HEIC", "notes.txt", "below/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    monkeypatch.setattr(label, "heic_decoder", lambda: None)
    paths = [str(tmp_path), str(tmp_path / "notes.txt"), "-", URL]
    assert label.count_images(paths, recursive=False) == 4
    assert label.count_images(paths, recursive=True) == 5
    monkeypatch.setattr(label, "heic_decoder", lambda: bytes)
    assert label.count_images(paths, recursive=True) == 6


def test_heic_without_a_decoder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.jpg", "b.HEIC", "c.heif"):
        (tmp_path / name).write_bytes(b"x")
    monkeypatch.setattr(label, "heic_decoder", lambda: None)
    assert run(monkeypatch, "label", str(tmp_path), "--dry-run") == 0
    err = capsys.readouterr().err
    assert "1 image would be labelled." in err
    assert "Skipped 2 HEIC files (b.HEIC, c.heif)" in err


def test_environment_wins_over_the_profile(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedService(Reply(200, DONE)) as service:
        profiles.save("default", profiles.Profile("http://127.0.0.1:9", "glp_a"))
        monkeypatch.setenv("GLIMPSE_URL", service.url)
        monkeypatch.setenv("GLIMPSE_API_KEY", "glp_b")
        assert run(monkeypatch, "images", "get", HASH) == 0
        monkeypatch.delenv("GLIMPSE_API_KEY")
        assert run(monkeypatch, "images", "get", HASH) == 0
    keys = [seen.headers.get("authorization") for seen in service.seen]
    assert keys == ["Bearer glp_b", None], "the key of another address is not sent"


# That for bash asks bash for its version: see tests/flow/test_client.py.
@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_of_each_shell(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "completion", shell) == 0
    assert "_GLIMPSE_COMPLETE" in capsys.readouterr().out


def test_service_that_drops_each_connection_is_unreachable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedService(Drop()) as service:
        assert run(monkeypatch, "--url", service.url, "doctor") == 6
    assert "does not answer" in capsys.readouterr().out
