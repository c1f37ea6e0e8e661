"""Releases against real processes of Glimpse. A scripted gcloud replaces Cloud Run."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.release import TAG, CloudRun
from deploy.smoke import SmokeFailed, Target, random_image, smoke
from tests.support.gcloud import FakeCloudRun
from tests.support.pictures import sha256
from tests.support.requirements import GCLOUD
from tests.support.stack import ROOT, Stack, free_port

REGISTRY = "europe-west1-docker.pkg.dev/p/glimpse"
BEFORE = {name: f"{REGISTRY}/{name}@sha256:{'0' * 64}" for name in ("api", "worker")}
AFTER = {name: f"{REGISTRY}/{name}@sha256:{'1' * 64}" for name in ("api", "worker")}
OLD = {"api": {"api-00001": 100}, "worker": {"worker-00001": 100}}
NEW = {"api": {"api-00002": 100}, "worker": {"worker-00002": 100}}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, colour_bundle: Path) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("release"), colour_bundle) as running:
        yield running


@pytest.fixture
def cloud(tmp_path: Path, stack: Stack) -> FakeCloudRun:
    fake = FakeCloudRun(tmp_path)
    url = str(stack.api.base_url)
    fake.install({"api": url, "worker": "http://127.0.0.1:1"}, BEFORE)
    return fake


def run_release(cloud: FakeCloudRun, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deploy.release", f"--journal={cloud.folder / 'j'}", *arguments],
        cwd=ROOT,
        env={
            **{key: value for key, value in os.environ.items() if key != "GITHUB_STEP_SUMMARY"},
            **cloud.environment,
            "GITHUB_STEP_SUMMARY": str(cloud.folder / "summary.md"),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def release(cloud: FakeCloudRun, *more: str) -> subprocess.CompletedProcess[str]:
    return run_release(
        cloud,
        *("run", "--project=p", "--region=europe-west1", "--api=api", "--worker=worker"),
        *(f"--api-image={AFTER['api']}", f"--worker-image={AFTER['worker']}", "--timeout=20"),
        *more,
    )


def traffic(cloud: FakeCloudRun) -> dict[str, dict[str, int]]:
    return {name: cloud.traffic(name) for name in OLD}


def summary(cloud: FakeCloudRun) -> str:
    return (cloud.folder / "summary.md").read_text()


def test_release_moves_the_worker_first_and_then_the_api(
    cloud: FakeCloudRun,
) -> None:
    done = release(cloud)
    assert done.returncode == 0, done.stdout + done.stderr
    assert traffic(cloud) == NEW
    changes = [c for c in cloud.read()["calls"] if "describe" not in c]
    assert [(c[2], c[3]) for c in changes] == [
        ("update", "worker"),
        ("update", "api"),
        ("update-traffic", "worker"),
        ("update-traffic", "api"),
    ]
    assert f"--image={AFTER['worker']}" in changes[0]
    # The journal is closed, and no tag keeps a revision warm.
    assert not (cloud.folder / "j").exists()
    assert [s["tags"] for s in cloud.read()["services"].values()] == [{}, {}]
    assert summary(cloud).startswith("## Release of api and worker\n\n- ")
    assert all(image in summary(cloud) for image in AFTER.values())
    assert summary(cloud).count("works") == 3
    assert "❌" not in summary(cloud)


def test_new_api_that_fails_its_test_gets_no_traffic(cloud: FakeCloudRun) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    cloud.change(candidate_url={"api": nowhere})
    done = release(cloud)
    assert done.returncode == 1
    assert "rolled back" in done.stderr
    assert traffic(cloud) == OLD
    api = [c for c in cloud.calls("update-traffic") if "api" in c]
    assert [c[4] for c in api] == ["--to-revisions=api-00001=100"]
    assert "❌" in summary(cloud)
    assert not (cloud.folder / "j").exists()


def test_failure_after_the_move_rolls_the_api_back_before_the_worker(
    cloud: FakeCloudRun, stack: Stack
) -> None:
    """The API in service does not respond, but its new revision does."""
    state = cloud.read()
    state["services"]["api"]["url"] = f"http://127.0.0.1:{free_port()}"
    state["services"]["api"]["images"] = ["us-docker.pkg.dev/cloudrun/container/hello"]
    state["services"]["api"]["traffic"] = {"api-00001": 90, "api-00000": 10}
    state["candidate_url"] = {"api": str(stack.api.base_url)}
    cloud.write(state)
    done = release(cloud)
    assert done.returncode == 1
    assert "placeholder" in summary(cloud)
    shifts = [(c[3], c[4]) for c in cloud.calls("update-traffic")]
    assert shifts == [
        ("worker", "--to-revisions=worker-00002=100"),
        ("api", "--to-revisions=api-00002=100"),
        ("api", "--to-revisions=api-00001=90,api-00000=10"),
        ("worker", "--to-revisions=worker-00001=100"),
    ]


def test_release_behind_a_load_balancer_tests_the_public_address(
    cloud: FakeCloudRun, stack: Stack
) -> None:
    state = cloud.read()
    state["services"]["api"]["url"] = ""
    cloud.write(state)
    done = release(cloud)
    assert done.returncode == 1
    assert "give --api-url" in summary(cloud)
    assert traffic(cloud) == OLD

    (cloud.folder / "summary.md").unlink()
    done = release(cloud, f"--api-url={stack.api.base_url}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary(cloud).count("works") == 2
    assert {n: list(t) for n, t in traffic(cloud).items()} == {
        "api": ["api-00003"], "worker": ["worker-00003"],
    }  # fmt: skip


def test_revision_that_does_not_start_changes_no_traffic(cloud: FakeCloudRun) -> None:
    cloud.change(fail="update worker")
    done = release(cloud)
    assert done.returncode == 1
    assert traffic(cloud) == OLD


def test_roll_back_tries_both_services_and_can_be_repeated(cloud: FakeCloudRun) -> None:
    """The first attempt rolls back only the worker, the second one both services."""
    cloud.change(fail="update-traffic api")
    done = release(cloud)
    assert done.returncode == 1
    assert "roll these back by hand: api" in done.stderr
    assert traffic(cloud) == OLD
    assert "could NOT be rolled back" in summary(cloud)
    cloud.change(fail="")
    assert "rolled back" in run_release(cloud, "roll-back").stdout
    assert "nothing to roll back" in run_release(cloud, "roll-back").stdout


def test_service_without_traffic_is_refused_before_any_change(cloud: FakeCloudRun) -> None:
    state = cloud.read()
    state["services"]["api"]["traffic"] = {}
    cloud.write(state)
    done = release(cloud)
    assert done.returncode == 1
    assert "there is no revision to roll back to" in done.stderr
    assert not cloud.calls("update")


def test_smoke_test_deletes_its_image(stack: Stack) -> None:
    lines: list[str] = []
    model = smoke(Target(str(stack.api.base_url)), 60, lines.append)
    assert "@" in model
    assert lines[0].startswith("uploaded: 202")
    assert lines[-1] == "deleted"


def test_smoke_test_fails_without_a_worker(tmp_path: Path, colour_bundle: Path) -> None:
    with Stack(tmp_path / "s", colour_bundle) as alone:
        alone.stop("worker")
        with pytest.raises(SmokeFailed, match="no labels in time"):
            smoke(Target(str(alone.api.base_url)), 1.5)


def test_random_images_differ_and_are_accepted(stack: Stack) -> None:
    first, second = random_image(b"1"), random_image(b"2")
    assert sha256(first) != sha256(second)
    answer = stack.api.post(
        "/api/v1/images", content=first, headers={"content-type": "image/png", "prefer": "wait=20"}
    )
    assert answer.json()["status"] == "success"


def test_secrets_are_not_sent_over_plain_http() -> None:
    with pytest.raises(ValueError, match="plain HTTP"):
        Target("http://glimpse.example", api_key="k")
    assert "secret" not in repr(Target("https://glimpse.example", "secret", "secret"))


@pytest.mark.parametrize(
    "words",
    [
        ("run", "services", "describe", "api"),
        ("run", "services", "update", "api", "--image=i", "--no-traffic", f"--tag={TAG}"),
        ("run", "services", "update-traffic", "api", "--to-revisions=a=90,b=10",
         f"--remove-tags={TAG}"),
    ],
    ids=lambda words: words[2],
)  # fmt: skip
def test_gcloud_accepts_these_commands(words: tuple[str, ...], tmp_path: Path) -> None:
    """gcloud rejects one unknown flag, so it sends no request to Google."""
    command = [*CloudRun("p", "europe-west1").command(*words), "--no-such-flag"]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "CLOUDSDK_CONFIG": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    except FileNotFoundError:
        GCLOUD.absent()
    assert done.returncode == 2
    assert "unrecognized arguments: --no-such-flag" in done.stderr
