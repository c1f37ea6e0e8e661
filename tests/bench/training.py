"""Training of a model: what it consists of, what it costs, and classification by the model."""

import asyncio
import io
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
from PIL import Image

from core.backends import open_backend
from core.bundles.bundle import read_bundle
from core.concurrency import for_each
from core.domain.records import PUBLIC_TENANT, embedding_name
from tests.bench.processes import WorkerWatch, processor_seconds
from tests.support.pictures import encode, photo, sha256
from tests.support.stack import ROOT, Stack
from worker.tasks.embeddings import MEDIA_TYPE

if TYPE_CHECKING:
    from tests.bench.__main__ import Bench

LABELS = 10
JOBS = "/api/v1/jobs"
AT_ONCE = 16
SPREAD = 8.0  # of drawn embeddings around the centre of their label, whose parts have 1
DEADLINE = 900.0


@dataclass(frozen=True)
class Training:
    """One training. Times are seconds, `memory` bytes above the worker's usual.

    `processor` is that of each process of the stack; that of the worker has no fit in it.
    """

    seconds: float
    embedding: float
    fit_processor: float
    memory: int
    processor: Mapping[str, float]


def measure_training(bench: "Bench") -> None:
    count = 100 if bench.quick else 1000
    photos = _photos(count)
    for round_ in range(bench.rounds):
        settings = {"EXTRA_MODEL_URIS": str(bench.colours)}
        with bench.stack(f"training-{round_}", bench.bundle, **settings) as stack:
            rate, bare = _bare_loops(bench, photos)
            classified = _classify(stack, photos)
            examples = [
                {"image_hash": sha256(data), "label": f"label {number % LABELS}"}
                for number, data in enumerate(photos)
            ]
            first = _train(stack, "photos", examples)
            again = _train(stack, "again", examples)
            if round_ == bench.rounds - 1:
                _report(bench, count, rate, bare, classified, first, again)
                _measure_size(bench, stack, examples)
                _measure_answers(bench, stack, examples, bare)


def _report(
    bench: "Bench",
    count: int,
    rate: float,
    bare: float,
    classified: tuple[float, Mapping[str, float]],
    first: Training,
    again: Training,
) -> None:
    what = f"training on {count} stored photos of {LABELS} labels"
    bench.row(
        what,
        f"{first.seconds:.1f} s: embeddings {first.embedding:.1f} s, "
        f"fit {first.seconds - first.embedding:.1f} s",
        f"{count / rate:.1f} s, decoding and model",
        f"{count / rate / first.embedding:.2f}",
        "20 s",
    )
    others = sum(first.processor.values()) - first.processor["worker"]
    bench.row(
        f"{what}, processor time an image",
        f"worker {_ms(first.processor['worker'], count)}, other processes {_ms(others, count)}",
        f"{bare:.1f} ms, decoding and model",
        f"{bare / (1000 * first.processor['worker'] / count):.2f}",
    )
    seconds, processor = classified
    others = sum(processor.values()) - processor["worker"]
    bench.row(
        "classification of the same photos in a job",
        f"{seconds:.1f} s; an image: worker {_ms(processor['worker'], count)}, "
        f"other processes {_ms(others, count)}",
        f"{bare:.1f} ms, decoding and model",
        f"{bare / (1000 * processor['worker'] / count):.2f}",
    )
    bench.row(f"{what}, memory above usual", f"{first.memory / 1e6:.0f} MB", target="100 MB")
    bench.row(
        f"{what}, embeddings stored",
        f"{again.seconds:.1f} s, of which {again.fit_processor:.1f} s of processor for the fit",
        target="5 s",
    )


def _measure_size(bench: "Bench", stack: Stack, examples: Sequence[Mapping[str, str]]) -> None:
    """The time for ten times as many images, with drawn embeddings, which are stored."""
    count, base = len(examples), read_bundle(bench.bundle).identity
    known, seconds = examples[0]["image_hash"], []
    for images in (count, 10 * count):
        drawn = asyncio.run(_store_embeddings(stack, base, known, images))
        found = _train(stack, f"drawn-{images}", drawn)
        seconds.append(found.seconds)
        bench.row(
            f"training on {images} stored embeddings, drawn",
            f"{found.seconds:.1f} s, {found.memory / 1e6:.0f} MB of memory above usual",
            f"{seconds[0]:.1f} s for {count}" if len(seconds) > 1 else "",
            f"{seconds[-1] / seconds[0]:.1f}" if len(seconds) > 1 else "",
            "100 MB",
        )


def _measure_answers(
    bench: "Bench", stack: Stack, examples: Sequence[Mapping[str, str]], bare: float
) -> None:
    """Classification of images whose embedding is stored, one at a time."""
    some = [each["image_hash"] for each in examples[: 50 if bench.quick else 200]]

    def under(model: str) -> Callable[[str], httpx.Response]:
        headers = {"Prefer": "wait=10"}
        path = f"/api/v1/images/%s/classify?model={model}"
        return lambda image: stack.api.post(path % image, headers=headers)

    before = processor_seconds(stack)["worker"]
    by_head = _median_ms(under("photos"), some)
    spent = 1000 * (processor_seconds(stack)["worker"] - before) / len(some)
    by_matrix = _median_ms(under(read_bundle(bench.colours).manifest.name), some)
    known = _median_ms(lambda image: stack.api.get(f"/api/v1/images/{image}"), some)
    bench.row(
        "classification by the trained model, embedding stored, c=1",
        f"p50 {by_head:.1f} ms; look-up of a known image {known:.1f} ms",
        f"p50 {by_matrix:.1f} ms, no-op model",
        f"{by_matrix / by_head:.2f}",
        "1",
    )
    bench.row(
        "classification by the trained model, embedding stored, processor time",
        f"worker {spent:.1f} ms",
        f"{bare:.1f} ms, decoding and model",
        f"{bare / spent:.1f}",
    )


def _photos(count: int) -> list[bytes]:
    """Photos of `LABELS` kinds, in turns: parts of five photographs, upright and on their side."""

    def of(number: int) -> bytes:
        data = photo(number)
        if number % LABELS < LABELS // 2:
            return data
        with Image.open(io.BytesIO(data)) as image:
            return encode(image.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=88)

    return [of(number) for number in range(count)]


def _bare_loops(bench: "Bench", photos: Sequence[bytes]) -> tuple[float, float]:
    """Images per second of a bare loop on each core, together, and processor ms an image."""

    def loop(core: int) -> tuple[float, float]:
        command = ["loop", str(bench.bundle), str(folder), "--core", str(core)]
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.bare", *command],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            check=True,
        )
        rate, milliseconds = map(float, done.stdout.split())
        return rate, milliseconds

    folder = bench.folder / "training-photos"
    folder.mkdir(exist_ok=True)
    for number, data in enumerate(photos[:200]):
        (folder / f"{number:04}.jpg").write_bytes(data)
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(loop, sorted(bench.all_cores)))
    return sum(rate for rate, _ in found), statistics.fmean(each for _, each in found)


def _classify(stack: Stack, photos: Sequence[bytes]) -> tuple[float, dict[str, float]]:
    """Upload the photos in one job, while the queue is stopped, and then classify them.

    Returns the seconds that this takes, and the processor seconds of each process.
    """
    stack.stop("queue")
    upload = [("imgs", (f"{number}.jpg", data)) for number, data in enumerate(photos)]
    job = stack.api.post(f"{JOBS}/batch-predict", files=upload).json()
    before, began = {**processor_seconds(stack), "queue": 0.0}, time.perf_counter()
    stack.start("queue")
    _ended(stack, job)
    return time.perf_counter() - began, _since(before, stack)


def _train(stack: Stack, name: str, examples: Sequence[Mapping[str, str]]) -> Training:
    body = {"name": name, "examples": examples}
    before = processor_seconds(stack)
    with WorkerWatch(stack) as watch:
        began = time.perf_counter()
        answer = stack.api.post(f"{JOBS}/train-model", json=body)
        assert answer.status_code == 202, answer.text
        _ended(stack, answer.json())
        seconds = time.perf_counter() - began
    processor = _since(before, stack)
    processor["worker"] -= watch.fit_seconds
    embedding = (watch.fit_began or began + seconds) - began
    return Training(seconds, embedding, watch.fit_seconds, watch.peak - watch.usual, processor)


def _ended(stack: Stack, job: dict[str, Any]) -> None:
    """Wait until the job has succeeded."""
    deadline = time.monotonic() + DEADLINE
    while job["status"] in ("pending", "running"):
        assert time.monotonic() < deadline, job
        time.sleep(0.02)
        job = stack.api.get(f"{JOBS}/{job['job_id']}").json()
    assert job["succeeded"] == job["total"], job


def _since(before: Mapping[str, float], stack: Stack) -> dict[str, float]:
    return {name: after - before[name] for name, after in processor_seconds(stack).items()}


async def _store_embeddings(
    stack: Stack, base: str, known: str, count: int
) -> list[dict[str, str]]:
    """Store drawn embeddings of images that need not exist; the examples for a training.

    They are as long as those of the base model.
    """
    draw = np.random.default_rng(count)
    async with open_backend(stack.settings) as backend:
        name = embedding_name(PUBLIC_TENANT, base, known)
        length = len(np.frombuffer(await backend.blobs.get(name), "<f4"))
        centres = draw.normal(size=(LABELS, length))
        examples = [
            {"image_hash": f"{count + number:064x}", "label": f"label {number % LABELS}"}
            for number in range(count)
        ]

        async def store(example: dict[str, str]) -> None:
            label = int(example["label"].split()[1])
            drawn = (centres[label] + SPREAD * draw.normal(size=length)).astype("<f4")
            name = embedding_name(PUBLIC_TENANT, base, example["image_hash"])
            await backend.blobs.put(name, drawn.tobytes(), MEDIA_TYPE)

        await for_each(examples, store, AT_ONCE)
    return examples


def _median_ms(send: Callable[[str], Any], images: Sequence[str]) -> float:
    times = []
    for image in images:
        began = time.perf_counter()
        answer = send(image)
        times.append(1000 * (time.perf_counter() - began))
        assert answer.status_code == 200, answer.text
    return statistics.median(times)


def _ms(seconds: float, images: int) -> str:
    return f"{1000 * seconds / images:.1f} ms"
