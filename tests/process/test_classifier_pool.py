"""Classifier processes: effects of a hang, a crash, and the end of the worker."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from PIL import Image

from core.bundles.bundle import read_bundle
from core.bundles.python_bundle import read_any_bundle
from core.child_process import without_network
from core.domain.records import Classification, Status, release
from core.errors import BundleError, NotFound, Unavailable, UndecodableImage
from core.settings import Settings
from tests.support.bundles import write_slow_bundle
from tests.support.clock import turns
from tests.support.pictures import encode, picture, sha256
from tests.support.predictors import write_python_bundle
from tests.support.records import claimed
from tests.support.scripted_worker import until
from tests.support.signals import standing_still
from tests.support.worker import classifier_processes, running_worker, settings_in
from worker.errors import ClassifierLost, PredictionFailed
from worker.inference.pool import ClassifierPool, RemoteClassifier, spawn_process
from worker.inference.process import ADDRESS_SPACE
from worker.inference.protocol import MAX_BATCH

ROOT = Path(__file__).resolve().parents[2]
FOREVER = 10**7  # rounds of the slow bundle: hours, inside one native call
TIMEOUT = 3.0  # seconds per image; only an image that hangs needs them
RED = picture(1)
BLACK = encode(Image.new("RGB", (16, 16)), "PNG")  # without a bright pixel, which would take time
WHITE = picture(7, (250, 250, 250))


@asynccontextmanager
async def pool_of(
    folder: Path, rounds: int = 0, classify_seconds: float | None = None, **changes: object
) -> AsyncIterator[tuple[ClassifierPool, RemoteClassifier]]:
    """A pool with a bundle that needs `rounds` rounds for a white picture."""
    if rounds:
        changes["model_uri"] = str(write_slow_bundle(folder / "slow", rounds))
    settings: Settings = settings_in(folder, **{"worker_concurrency": 1, **changes})
    pool = ClassifierPool(settings, spawn_process)
    with pytest.MonkeyPatch.context() as patch:
        if classify_seconds is not None:
            patch.setattr(Settings, "classify_seconds", classify_seconds)
        await pool.start()
        try:
            yield pool, await pool.load(read_bundle(settings.model_uri))
        finally:
            await pool.close()


def alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


async def test_each_caller_gets_its_own_answer(tmp_path: Path) -> None:
    async with pool_of(tmp_path, worker_concurrency=2) as (_, classifier):
        colours = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220)}
        asked = [(name, picture(seed, rgb)) for seed in range(20) for name, rgb in colours.items()]
        found = await asyncio.gather(*(classifier.classify(image) for _, image in asked))
        assert [each.annotations[0].label for each in found] == [name for name, _ in asked]
        assert [note.index for note in found[0].annotations] == [1, 2, 3, 4, 5, 6]


async def test_python_bundle_costs_an_image_at_most_that_image(tmp_path: Path) -> None:
    """Exceptions, crashes and endless loops of a predictor, among images that it classifies."""
    code = """
import os, time
class Predictor:
    def load(self, folder):
        pass
    def predict(self, images):
        return [self.predict_one(image) for image in images]
    def predict_one(self, image):
        red, green, blue = image.resize((1, 1)).getpixel((0, 0))
        if red < 60 and blue < 60 and green < 60:
            os._exit(1)
        if red > 180 and green > 180:
            time.sleep(1000)
        if green > 150:
            raise KeyError("secret")
        return {"labels": {"fine": 0.5}, "output": {"red": red}}
"""
    folder = write_python_bundle(tmp_path / "python", code)
    settings = settings_in(tmp_path, model_uri=str(folder), worker_concurrency=1)
    pool = ClassifierPool(settings, spawn_process)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Settings, "classify_seconds", TIMEOUT)
        await pool.start()
        try:
            classifier = await pool.load(read_any_bundle(folder))
            colours = {
                "crash": (10, 10, 10), "hang": (240, 240, 240), "raise": (20, 200, 20),
                "fine": (220, 20, 20), "good": (220, 20, 220),
            }  # fmt: skip
            images = [picture(1, colour) for colour in colours.values()] * 2
            asked = (classifier.classify(image) for image in images)
            found = await asyncio.gather(*asked, return_exceptions=True)
        finally:
            await pool.close()
    for name, outcome in zip([*colours] * 2, found, strict=True):
        if name in ("crash", "hang"):
            assert isinstance(outcome, ClassifierLost), (name, outcome)
        elif name == "raise":
            assert isinstance(outcome, PredictionFailed)
            assert outcome.detail == "The predictor raised KeyError."
        else:
            assert isinstance(outcome, Classification), (name, outcome)
            assert outcome.best == "fine"
            assert json.loads(outcome.output)["red"] > 200


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
async def test_process_that_decodes_has_no_secrets_and_no_privileges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "of the worker")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))  # where Python's libraries may be
    async with pool_of(tmp_path) as (_, classifier):
        await classifier.classify(RED)
        (child,) = classifier_processes()
        folder = Path("/proc") / str(child.pid)
        # Python itself sets LC_CTYPE where no locale is set (PEP 538), which proc(5) does not show.
        assert (folder / "environ").read_bytes() == f"LD_LIBRARY_PATH={tmp_path}\0".encode()
        assert "NoNewPrivs:\t1" in (folder / "status").read_text()
        limits = (folder / "limits").read_text()
        (space,) = [line.split()[3] for line in limits.splitlines() if "address space" in line]
        assert ADDRESS_SPACE < int(space) < ADDRESS_SPACE + 4 * 2**30
        (core,) = [line.split()[4] for line in limits.splitlines() if "core file" in line]
        assert core == "0"


def network_namespace(pid: int) -> Path:
    return Path(f"/proc/{pid}/ns/net").readlink()


@linux
async def test_process_that_decodes_has_no_network(tmp_path: Path) -> None:
    if not without_network():
        pytest.skip("no user namespaces here")
    async with pool_of(tmp_path) as (_, classifier):
        await classifier.classify(RED)
        (child,) = classifier_processes()
        assert network_namespace(child.pid) != network_namespace(os.getpid())
        interfaces = (Path("/proc") / str(child.pid) / "net/dev").read_text().splitlines()[2:]
        assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]


async def test_large_image_arrives_complete(tmp_path: Path) -> None:
    async with pool_of(tmp_path) as (_, classifier):
        padded = RED + bytes(9_000_000)  # more than the buffer of a socket
        assert (await classifier.classify(padded)).annotations[0].label == "red"


async def test_classifier_process_reads_the_file(tmp_path: Path) -> None:
    async with pool_of(tmp_path) as (_, classifier):
        whole, damaged = tmp_path / sha256(RED), tmp_path / sha256(WHITE)
        whole.write_bytes(RED)
        assert (await classifier.classify(whole)).annotations[0].label == "red"
        damaged.write_bytes(RED)
        with pytest.raises(NotFound):
            await classifier.classify(damaged)
        with pytest.raises(NotFound):
            await classifier.classify(tmp_path / "absent")
        with pytest.raises(Unavailable):
            await classifier.classify(tmp_path)  # a folder cannot be read


async def test_broken_image_fails_alone(tmp_path: Path) -> None:
    async with pool_of(tmp_path) as (_, classifier):
        before = classifier_processes()
        for broken in (b"", b"no picture", RED[:200]):
            with pytest.raises(UndecodableImage):
                await classifier.classify(broken)
        assert (await classifier.classify(RED)).annotations[0].label == "red"
        assert classifier_processes() == before


async def test_only_the_hanging_image_fails(tmp_path: Path) -> None:
    async with pool_of(tmp_path, FOREVER, classify_seconds=TIMEOUT) as (_, classifier):
        (before,) = classifier_processes()
        hanging = asyncio.create_task(classifier.classify(WHITE))
        await asyncio.sleep(0)
        behind = [asyncio.create_task(classifier.classify(BLACK)) for _ in range(5)]
        with pytest.raises(ClassifierLost, match=f"longer than {TIMEOUT:g} s"):
            await hanging
        assert len(await asyncio.gather(*behind)) == 5
        (after,) = classifier_processes()
        assert after.pid != before.pid
        assert not before.is_running()


async def test_only_the_hanging_image_of_a_batch_fails(tmp_path: Path) -> None:
    async with pool_of(tmp_path, FOREVER, classify_seconds=TIMEOUT) as (_, classifier):
        await classifier.classify(BLACK)  # a measured model runs batches
        with standing_still(*classifier_processes()):
            asked = [
                asyncio.create_task(classifier.classify(image))
                for image in (BLACK, WHITE, BLACK, BLACK, BLACK)
            ]
            await turns()
        before = classifier_processes()
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [isinstance(each, ClassifierLost) for each in found] == [
            *(False, True, False, False, False)
        ]
        assert f"longer than {TIMEOUT:g} s" in str(found[1])
        assert classifier_processes() != before


async def test_cancelled_request_is_not_repeated(tmp_path: Path) -> None:
    async with pool_of(tmp_path, FOREVER, classify_seconds=1000) as (_, classifier):
        leaving = [asyncio.create_task(classifier.classify(WHITE)) for _ in range(2)]
        staying = asyncio.create_task(classifier.classify(BLACK))
        await turns()
        for task in leaving:
            task.cancel()
        classifier_processes()[0].kill()
        # A white image would occupy the new process for a thousand seconds.
        assert len((await asyncio.wait_for(staying, 60)).annotations) == 6


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
async def test_only_the_image_in_work_fails_in_a_crash(tmp_path: Path, how: signal.Signals) -> None:
    # Each image of the batch is tried again by itself. The white one then takes too long.
    async with pool_of(tmp_path, FOREVER, classify_seconds=TIMEOUT) as (_, classifier):
        crashing = asyncio.create_task(classifier.classify(WHITE))
        await asyncio.sleep(0)
        behind = [asyncio.create_task(classifier.classify(BLACK)) for _ in range(5)]
        await turns()
        classifier_processes()[0].send_signal(how)
        with pytest.raises(ClassifierLost):
            await crashing
        assert len(await asyncio.gather(*behind)) == 5


async def test_fast_model_prefetches_more_images_than_a_slow_one(
    tmp_path: Path,
) -> None:
    async with pool_of(tmp_path, rounds=1500, worker_concurrency=2) as (pool, classifier):
        assert pool.prefetch() == 2 * 2

        async def after(image: bytes, at_hand: int) -> bool:
            # The time per image is an average, so one delayed image does not make a model slow.
            await asyncio.gather(*(classifier.classify(image) for _ in range(2)))
            return pool.prefetch() == at_hand

        await until(lambda: after(BLACK, 2 * 2 * MAX_BATCH))
        await until(lambda: after(WHITE, 2 * 2))


async def test_cancelled_caller_does_not_affect_others(tmp_path: Path) -> None:
    async with pool_of(tmp_path, rounds=300) as (_, classifier):
        leaving = asyncio.create_task(classifier.classify(WHITE))
        await turns()
        leaving.cancel()
        notes = await asyncio.gather(*(classifier.classify(image) for image in (BLACK, WHITE)))
        assert notes[0] != notes[1]


async def test_each_load_reports_a_broken_bundle(tmp_path: Path) -> None:
    async with pool_of(tmp_path) as (pool, classifier):
        broken = write_slow_bundle(tmp_path / "broken", 1)
        (broken / "model.onnx").write_bytes(b"no network")
        with pytest.raises(BundleError):
            await pool.load(read_bundle(broken))
        assert (await classifier.classify(RED)).annotations[0].label == "red"


async def test_close_ends_busy_processes(tmp_path: Path) -> None:
    async with pool_of(tmp_path, FOREVER, worker_concurrency=2) as (pool, classifier):
        hanging = asyncio.create_task(classifier.classify(WHITE))
        await turns()
        assert len(classifier_processes()) == 2
        await pool.close()
        with pytest.raises(Unavailable, match="stopping"):
            await hanging
        assert not classifier_processes()
        with pytest.raises(Unavailable, match="stopping"):
            await classifier.classify(BLACK)


async def test_classifier_processes_end_with_a_killed_worker(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys\n"
        "from core.bundles.bundle import read_bundle\n"
        "from core.settings import Settings\n"
        "from worker.inference.pool import ClassifierPool, spawn_process\n"
        "async def main():\n"
        "    pool = ClassifierPool(Settings(worker_concurrency=2), spawn_process)\n"
        "    await pool.start()\n"
        "    classifier = await pool.load(read_bundle(sys.argv[1]))\n"
        "    asyncio.ensure_future(classifier.classify(open(sys.argv[2], 'rb').read()))\n"
        "    await asyncio.sleep(0.2)\n"
        "    print('hanging', flush=True)\n"
        "    await asyncio.sleep(1000)\n"
        "asyncio.run(main())\n"
    )
    bundle = write_slow_bundle(tmp_path / "slow", FOREVER)
    (tmp_path / "white.png").write_bytes(WHITE)
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, str(bundle), str(tmp_path / "white.png")),
        cwd=ROOT,
        env={**os.environ, "DATA_DIR": str(tmp_path / "data")},
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    assert await parent.stdout.readline() == b"hanging\n"
    children = classifier_processes(parent.pid)
    assert len(children) == 2
    parent.kill()
    await parent.wait()

    async def gone() -> bool:
        return not any(map(alive, children))

    await until(gone)
    assert await parent.stdout.read() == b"", "no other process has it open, so it is closed"


async def test_image_that_crashes_classifiers_ends_as_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image is delivered again, because the machine may be at fault, but not without limit."""
    uri = str(write_slow_bundle(tmp_path / "slow", FOREVER))
    monkeypatch.setattr(Settings, "classify_seconds", TIMEOUT)
    settings = settings_in(tmp_path, model_uri=uri, worker_concurrency=1)
    async with running_worker(settings, spawn=spawn_process) as worker:
        key = await worker.submit(WHITE)
        statuses = [(await worker.push(key)).status_code for _ in range(3)]
        assert statuses == [503, 503, 204]
        record = await worker.record(key)
        assert record.status is Status.ERROR
        assert record.error is not None
        assert (record.error.code, record.error.retryable) == ("classifier_lost", True)
        # The worker continues.
        assert (await worker.push(await worker.submit(BLACK))).status_code == 204


async def test_load_fails_if_the_process_dies(tmp_path: Path) -> None:
    async with pool_of(tmp_path) as (pool, classifier):
        other = read_bundle(write_slow_bundle(tmp_path / "other", 1))
        classifier_processes()[0].suspend()
        loading = asyncio.create_task(pool.load(other))

        async def asked() -> bool:
            return pool._members[0].open_requests() == 1

        await until(asked)
        classifier_processes()[0].kill()
        with pytest.raises(ClassifierLost):
            await loading
        assert (await classifier.classify(RED)).annotations[0].label == "red"


async def test_failed_load_is_not_blamed_on_waiting_images(tmp_path: Path) -> None:
    """No classifier has seen these images. They are retried as any delivery."""
    async with pool_of(tmp_path) as (pool, classifier):
        (process,) = classifier_processes()
        process.kill()
        await until(lambda: not alive(process) and bool(classifier_processes()))
        replacement = classifier_processes()[0]
        replacement.suspend()
        waiting = asyncio.create_task(classifier.classify(RED))

        async def asked() -> bool:
            return pool._members[0].open_requests() >= 1

        await until(asked)
        replacement.kill()
        with pytest.raises(Unavailable, match="not loaded"):
            await waiting
        assert (await classifier.classify(RED)).annotations[0].label == "red"


async def test_other_failures_do_not_count_as_crashes_of_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(write_slow_bundle(tmp_path / "slow", FOREVER))
    monkeypatch.setattr(Settings, "classify_seconds", 0.3)
    settings = settings_in(tmp_path, model_uri=uri, worker_concurrency=1)
    async with running_worker(settings, spawn=spawn_process) as worker:
        key = await worker.submit(WHITE)
        for _ in range(5):
            claim = await claimed(worker.backend.records, key, timedelta(seconds=30))
            assert claim is not None
            await worker.backend.records.change(claim.key, release(claim))
        assert (await worker.push(key)).status_code == 503
        assert (await worker.record(key)).status is Status.RUNNING
