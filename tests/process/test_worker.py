"""The worker with real classifier processes."""

import asyncio
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from PIL import Image

from core.bundles.bundle import read_bundle
from tests.support.bundles import write_slow_bundle
from tests.support.metrics import samples
from tests.support.pictures import encode, picture
from tests.support.worker import (
    RunningWorker,
    classifier_processes,
    running_worker,
    settings_in,
)
from worker.inference.classifier import Classifier
from worker.inference.pool import spawn_process
from worker.inference.protocol import MAX_BATCH


async def test_worker_process_neither_decodes_nor_infers(tmp_path: Path) -> None:
    """Records each call into the blocking modules, from any thread of this process."""
    seen: set[str] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        path = Path(frame.f_code.co_filename)
        # The body of a module runs at its first import.
        if event == "call" and "worker" in path.parent.parts and frame.f_code.co_name != "<module>":
            seen.add(path.name)

    settings = settings_in(tmp_path)
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        async with running_worker(settings, spawn=spawn_process) as worker:
            assert await worker.labelled(picture()) == "red"
        assert "pool.py" in seen
        assert not seen & {"preprocessing.py", "classifier.py"}
        classifier = Classifier(
            read_bundle(settings.model_uri), max_pixels=10**6, labels_per_image=5
        )
        assert classifier.classify(picture()).annotations[0].label == "red"
        assert seen >= {"preprocessing.py", "classifier.py"}, "the detector would have seen it"
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


async def inference_seconds(worker: RunningWorker) -> float:
    answer = await worker.client.get("/metrics")
    return samples(answer.text)["glimpse_inference_duration_seconds_sum"]


async def test_images_inferred_together_share_its_time(tmp_path: Path) -> None:
    uri = str(write_slow_bundle(tmp_path / "slow", 600))
    settings = settings_in(tmp_path, model_uri=uri, worker_concurrency=1)
    async with running_worker(settings, spawn=spawn_process) as worker:
        black = encode(Image.new("RGB", (16, 16)), "PNG")
        assert (await worker.push(await worker.submit(black))).status_code == 204
        before = await inference_seconds(worker)
        keys = [await worker.submit(picture(seed, (250, 250, 250))) for seed in range(MAX_BATCH)]
        (process,) = classifier_processes()
        process.suspend()
        pushes = asyncio.gather(*(worker.push(key) for key in keys))
        await asyncio.sleep(0.3)
        began = time.perf_counter()
        process.resume()
        assert {answer.status_code for answer in await pushes} == {204}
        waited = time.perf_counter() - began
        after = await inference_seconds(worker)
    # Each image waited for the whole batch. The cost counts once.
    assert 0 < after - before < waited
