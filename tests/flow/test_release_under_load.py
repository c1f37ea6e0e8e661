"""Uploads and jobs during releases: nothing is lost, nothing is classified twice (P1, P2, P4).

Processes of the old and the new version run behind the stand-in for Cloud Run, on the same data.
The queue pushes to the address of the worker's service. A process gets SIGTERM as soon as its
revision has lost its traffic.
"""

import asyncio
import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.support.cloud_run import CloudRun
from tests.support.pictures import picture, sha256
from tests.support.plain_http import NO_TLS
from tests.support.predictors import write_python_bundle
from tests.support.process import with_constants
from tests.support.releases import REAL, Instances, ended, image, install_gcloud, start
from tests.support.stack import Stack

CLIENTS = 4
JOB_IMAGES = 20
OLD, BROKEN, NEW = 1, 2, 3
# Each inference adds a line to a file. It takes long enough that each move meets some.
PREDICTOR = """
import hashlib, time
class Predictor:
    def load(self, folder):
        pass
    def predict(self, images):
        with open({file!r}, "a") as file:
            for image in images:
                file.write("{name}:" + hashlib.sha256(image.tobytes()).hexdigest() + "\\n")
        time.sleep(0.2)
        return [{{"labels": {{"image": 1.0}}}} for _ in images]
"""


@dataclass
class Load:
    """Clients that send new images until `stopping`, one after the other.

    A client repeats an upload that is refused with 503, and waits for the labels of each image.
    """

    client: httpx.AsyncClient
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    answers: Counter[int] = field(default_factory=Counter)
    accepted: dict[bytes, str] = field(default_factory=dict)  # image: where its result will be
    sent: int = 0

    async def run(self, wait: bool) -> None:
        while not self.stopping.is_set():
            self.sent += 1
            data = small_image(self.sent)
            await self._upload(data, wait)
            if data in self.accepted:
                await ends(self.client, self.accepted[data], "success", "error")
            await asyncio.sleep(0.1)

    async def _upload(self, data: bytes, wait: bool) -> None:
        headers = {"content-type": "image/png"} | ({"prefer": "wait=10"} if wait else {})
        while True:
            answer = await self.client.post("/api/v1/images", content=data, headers=headers)
            self.answers[answer.status_code] += 1
            if answer.status_code in (200, 202):
                self.accepted[data] = answer.headers.get("location") or address(data)
                return
            if answer.status_code != 503:
                return
            await asyncio.sleep(0.1)


def small_image(seed: int) -> bytes:
    return picture(seed, size=(8, 8), format_="PNG")


def address(data: bytes) -> str:
    return f"/api/v1/images/{sha256(data)}"


def pixels(data: bytes) -> str:
    """What the predictor writes for an image."""
    with Image.open(io.BytesIO(data)) as decoded:
        return hashlib.sha256(decoded.convert("RGB").tobytes()).hexdigest()


@pytest.fixture
def inferences(tmp_path: Path) -> Path:
    return tmp_path / "inferences"


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[CloudRun]:
    fake = CloudRun(tmp_path)
    fake.create("worker", image("worker", OLD), "internal")
    fake.create("api", image("api", OLD))
    install_gcloud(fake)
    yield fake
    fake.close()


@pytest.fixture
def versions(tmp_path: Path, cloud: CloudRun, inferences: Path) -> Iterator[dict[int, Stack]]:
    """The old version runs.

    The API of the broken one refuses the image of the smoke test. The new one has another model.
    """
    old, new = (
        write_python_bundle(tmp_path / name, PREDICTOR.format(name=name, file=str(inferences)))
        for name in ("old-model", "new-model")
    )
    settings = {
        "DATA_DIR": tmp_path / "data",
        "PUSH_ENDPOINT": cloud.urls["worker", ""],
        "WORKER_CONCURRENCY": 2,
        "RATE_LIMIT": "off",
        # No lease expires while a worker that got SIGTERM completes its claims.
        "LEASE_SECONDS": 60,
        **with_constants(SHUTDOWN_SECONDS=25),
    }
    with ExitStack() as opened:
        stacks = {
            OLD: Stack(tmp_path / "1", old, **settings),
            BROKEN: Stack(tmp_path / "2", old, **settings, MAX_IMAGE_BYTES=1000),
            NEW: Stack(tmp_path / "3", new, **settings, EXTRA_MODEL_URIS=old),
        }
        for stack in stacks.values():
            stack.folder.mkdir()
            opened.callback(stack.__exit__)
        instances = Instances(cloud, stacks)
        instances.start(image("worker", OLD))
        instances.start(image("api", OLD))
        stacks[OLD].start("queue")
        yield stacks


def options(version: int, *more: str) -> list[str]:
    return [
        *("run", "--project=p", "--region=europe-west1", "--api=api", "--workers=worker"),
        f"--api-image={image('api', version)}",
        f"--worker-image={image('worker', version)}",
        *more,
    ]


async def create_job(client: httpx.AsyncClient, images: list[bytes]) -> str:
    files = [("imgs", (f"{number}.png", data)) for number, data in enumerate(images)]
    answer = await client.post("/api/v1/jobs/batch-predict", files=files)
    assert answer.status_code == 202, answer.text
    return f"/api/v1/jobs/{answer.json()['job_id']}"


async def ends(client: httpx.AsyncClient, path: str, *states: str) -> str:
    """The status of an image or a job, once it is one of `states`."""
    async with asyncio.timeout(120):
        while True:
            answer = await client.get(path)
            if answer.status_code == 200 and answer.json()["status"] in states:
                return str(answer.json()["status"])
            await asyncio.sleep(0.1)


@pytest.mark.timeout(600 if REAL else 300)
async def test_release_and_roll_back_lose_no_image_and_classify_none_twice(
    cloud: CloudRun, versions: dict[int, Stack], inferences: Path
) -> None:
    """First, a release fails when its API is in service. Then another release is good."""
    url = cloud.urls["api", ""]
    in_jobs = [[small_image(10**6 * k + n) for n in range(JOB_IMAGES)] for k in (1, 2)]
    async with httpx.AsyncClient(base_url=url, timeout=90, verify=NO_TLS) as client:
        load = Load(client)
        clients = [asyncio.create_task(load.run(wait=number == 0)) for number in range(CLIENTS)]
        jobs = [await create_job(client, in_jobs[0])]
        # With the public address, the first test of the new API is in service.
        broken = start(cloud, *options(BROKEN, f"--api-url={url}", "--timeout=60"))
        code, said = await asyncio.to_thread(ended, broken)
        assert code == 1, said
        assert "`api` has its traffic back" in said
        assert cloud.traffic("worker") == cloud.traffic("api") == {"00001": 100}
        jobs.append(await create_job(client, in_jobs[1]))
        code, said = await asyncio.to_thread(ended, start(cloud, *options(NEW, "--timeout=60")))
        assert code == 0, said
        load.stopping.set()
        await asyncio.gather(*clients)
        print(f"answers: {dict(load.answers)}")

        assert set(load.answers) <= {200, 202, 503}
        for location in load.accepted.values():
            assert await ends(client, location, "success", "error") == "success"
        for job in jobs:
            assert await ends(client, job, "completed", "failed", "cancelled") == "completed"
    lines = (await asyncio.to_thread(inferences.read_text)).split()
    models = defaultdict(list)
    for line in lines:
        model, _, image_pixels = line.partition(":")
        models[image_pixels].append(model)
    for data in [*load.accepted, *in_jobs[0], *in_jobs[1]]:
        classified_by = models[pixels(data)]
        # An upload that was refused and repeated during a move may have a result of each model.
        assert len(classified_by) == len(set(classified_by)) > 0, (address(data), classified_by)
    # Each version had its part: the load was there at every move.
    for version, stack in versions.items():
        classified = [line for line in stack.log_lines("worker") if line["message"] == "classified"]
        assert classified, f"version {version} classified nothing"
