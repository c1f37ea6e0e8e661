"""The client and the command line against a real API, queue and worker."""

import csv
import io
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from glimpse_client import AsyncGlimpse, Glimpse
from glimpse_client.errors import Conflict, NotFound
from PIL import Image

from tests.support.bundles import write_slow_bundle
from tests.support.pictures import picture
from tests.support.signals import heard
from tests.support.stack import Stack, until
from tests.support.training import pictures

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}
ROUNDS = 120  # about 0.05 s for a picture


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("client")
    with Stack(folder, write_slow_bundle(folder / "model", ROUNDS)) as running:
        yield running


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of pictures, one of them broken, one of them twice."""
    folder = tmp_path / "photos"
    for n, colour in enumerate([*COLOURS] * 5):
        file = folder / f"{colour}/{n:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(secrets.randbits(30), COLOURS[colour], (32, 24), "PNG"))
    (folder / "again.png").write_bytes((folder / "red/00.png").read_bytes())
    (folder / "broken.jpg").write_bytes(b"no image" + os.urandom(8))
    return folder


def url(stack: Stack) -> str:
    return f"http://127.0.0.1:{stack.api_port}"


def glimpse(
    stack: Stack,
    home: Path,
    *arguments: str,
    typed: str = "",
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "glimpse_client.cli", *arguments],
        env=environment(stack, home),
        input=typed,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def environment(stack: Stack, home: Path) -> dict[str, str]:
    client = Path(__file__).resolve().parents[2] / "client"
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / "config"),
        "PYTHONPATH": str(client),
        "PYTHONUTF8": "1",
        "GLIMPSE_URL": url(stack),
    }


def test_three_lines_of_python(stack: Stack, photos: Path) -> None:
    with Glimpse(url(stack)) as client:
        first = client.images.classify(photos / "red/00.png")
        again = client.images.classify((photos / "red/00.png").read_bytes())
        assert (first.label, first.uploaded) == ("red", True)
        assert (again.label, again.uploaded) == ("red", False)
        assert client.images.content(first.hash) == (photos / "red/00.png").read_bytes()
        assert list(client.images.watch(first.hash))[-1].label == "red"
        assert next(client.images.list(label="red", status="success")).hash == first.hash
        with Image.open(io.BytesIO(client.images.thumbnail(first.hash))) as thumbnail:
            assert (thumbnail.format, thumbnail.size) == ("WEBP", (32, 24))
        client.images.delete(first.hash)
        with pytest.raises(NotFound):
            client.images.get(first.hash)


async def test_a_folder_as_a_job_by_asyncio(stack: Stack, photos: Path) -> None:
    created = []
    async with AsyncGlimpse(url(stack)) as client:
        batch = await client.jobs.create(photos, created=lambda job: created.append(job.id))
        assert tuple(created) == batch.ids
        states = [job.status async for job in client.jobs.watch(batch)]
        assert states[-1] == "completed"
        done = await client.jobs.wait(batch, timeout=60)
        assert (done.total, done.succeeded, done.failed) == (16, 15, 1)
        results = [each async for each in client.jobs.results(done)]
        by_name = {name: each for each in results for name in each.names}
        assert by_name["again.png"].hash == by_name["red/00.png"].hash
        broken = by_name["broken.jpg"].error
        assert broken is not None
        assert broken.code == "unsupported_image"
        for colour in COLOURS:
            labels = {each.label for name, each in by_name.items() if name.startswith(colour)}
            assert labels == {colour}
        failed = [each async for each in client.jobs.results(done, status="failed")]
        assert [each.names for each in failed] == [("broken.jpg",)]
        with pytest.raises(Conflict):
            await client.jobs.retry(batch.ids[0])
        again = await client.jobs.create(photos)
        assert again.uploaded == 1, "only what the service refused is sent again"


def test_label_prints_data_on_standard_output_alone(
    stack: Stack, photos: Path, tmp_path: Path
) -> None:
    done = glimpse(stack, tmp_path, "label", "-r", str(photos), "--csv")
    assert done.returncode == 1, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert len(rows) == 17
    assert {row["file"] for row in rows} >= {"red/00.png", "again.png", "broken.jpg"}
    for row in rows:
        colour = row["file"].partition("/")[0]
        if colour in COLOURS:
            assert (row["label"], row["status"]) == (colour, "success")
    assert "1 of 17 images failed." in done.stderr
    assert "  broken.jpg: " in done.stderr
    few = [str(photos / "blue/02.png"), str(photos / "green/01.png")]
    done = glimpse(stack, tmp_path, "label", *few, "--ndjson")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["annotations"][0]["label"] for line in lines] == ["blue", "green"]
    assert done.stderr == ""
    view = ["--labels", "2", "--min-confidence", "0.5", "--model", "colours", "--ndjson"]
    for paths in (few, ["-r", str(photos)]):  # images one by one, and a job
        done = glimpse(stack, tmp_path, "label", *paths, *view)
        for line in map(json.loads, done.stdout.splitlines()):
            labels = line["annotations"]
            assert len(labels) == (line["status"] == "success")
            assert all(each["confidence"] >= 0.5 for each in labels)
    out = tmp_path / "labels.json"
    assert glimpse(stack, tmp_path, "label", *few, "-o", str(out)).returncode == 0
    assert [each["status"] for each in json.loads(out.read_text())] == ["success", "success"]


def test_exit_codes(stack: Stack, photos: Path, tmp_path: Path) -> None:
    photo = str(photos / "red/00.png")
    assert glimpse(stack, tmp_path, "label", photo, "-q").returncode == 0
    assert glimpse(stack, tmp_path, "label", str(photos / "nowhere.png")).returncode == 2
    assert glimpse(stack, tmp_path, "label", "--wait", "0", photo).returncode == 2
    assert glimpse(stack, tmp_path, "label", "--labels", "0", photo).returncode == 2
    assert glimpse(stack, tmp_path, "label", "--min-confidence", "2", photo).returncode == 2
    done = glimpse(stack, tmp_path, "label", "--model", "cats", photo)
    assert (done.returncode, "Known models: slow@" in done.stderr) == (2, True), done.stderr
    assert glimpse(stack, tmp_path, "images", "get", "0" * 64).returncode == 3
    done = glimpse(stack, tmp_path, "--url", "http://127.0.0.1:9", "doctor")
    assert done.returncode == 6
    assert "does not answer" in done.stdout
    assert glimpse(stack, tmp_path, "doctor").returncode == 0
    assert "_GLIMPSE_COMPLETE" in glimpse(stack, tmp_path, "completion", "bash").stdout
    assert (
        glimpse(stack, tmp_path, "label", photo, "--dry-run").stderr
        == "1 image would be labelled.\n"
    )


def test_an_interrupted_label_leaves_the_job_running(stack: Stack, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for n in range(200):
        file = folder / f"{n}.png"
        file.write_bytes(picture(secrets.randbits(30), COLOURS["green"], (32, 24), "PNG"))
    with heard(signal.SIGINT):
        process = subprocess.Popen(
            [sys.executable, "-m", "glimpse_client.cli", "label", str(folder)],
            env=environment(stack, tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    with Glimpse(url(stack)) as client:
        before = {job.id for job in client.jobs.list()}
        until(lambda: {job.id for job in client.jobs.list()} - before, "a job of the folder")
        process.send_signal(signal.SIGINT)
        _, messages = process.communicate(timeout=60)
        assert process.returncode == 130
        (job_id,) = {job.id for job in client.jobs.list()} - before
        # The signal may arrive before the response to the creation does.
        assert f"glimpse jobs watch {job_id}" in messages or "glimpse jobs list" in messages
        (job,) = client.jobs.wait(job_id, timeout=60).jobs
        assert (job.status, job.succeeded) == ("completed", 200)
    done = glimpse(stack, tmp_path, "jobs", "watch", job_id, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["succeeded"] == 200


def test_login_stores_a_profile_for_its_owner_alone(stack: Stack, tmp_path: Path) -> None:
    done = glimpse(stack, tmp_path, "login", "--no-check", typed=f"{url(stack)}\nglp_of_mine\n")
    assert done.returncode == 0, done.stderr
    assert "glp_of_mine" not in done.stdout + done.stderr
    file = tmp_path / "config/glimpse/profiles.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert json.loads(file.read_text())["profiles"]["default"]["api_key"] == "glp_of_mine"


def test_folder_becomes_a_model_by_command(stack: Stack, tmp_path: Path) -> None:
    folder = tmp_path / "sorted"
    for number, (data, label) in enumerate(pictures(6).items()):
        file = folder / label / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    done = glimpse(stack, tmp_path, "models", "train", str(folder), "--name", "moods")
    assert done.returncode == 0, done.stderr
    version = done.stdout.strip()
    assert version.startswith("moods@")
    assert "Accuracy: 100.0 %." in done.stderr
    labelled = glimpse(
        stack, tmp_path, "label", str(folder / "cool" / "9.jpg"), "--model", "moods", "--json"
    )
    assert labelled.returncode == 0, labelled.stderr
    assert '"cool"' in labelled.stdout
    assert glimpse(stack, tmp_path, "models", "activate", version).returncode == 0
    with Glimpse(url(stack)) as client:
        job = client.models.train(folder, "moods", activate=False)
        (job,) = client.jobs.wait(job).jobs
        assert job.raw["trained_model"] == version  # the same images make the same version
    assert glimpse(stack, tmp_path, "models", "delete", "moods").returncode == 0
    assert glimpse(stack, tmp_path, "models", "show", "moods").returncode != 0
