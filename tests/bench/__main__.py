"""Run every measurement and print tables: `make bench`, or `make bench BENCH_ARGS=--quick`.

Servers are pinned to one core and the load to another, so that they do not affect each other. The
whole pipeline uses all cores. Baseline and subject take turns, and a ratio is a ratio of medians.
Absolute figures depend on the machine; ratios do so much less.

`--backend emulator` measures the same on Google's emulators. Those figures mostly show the speed of
the emulators: Pub/Sub's has at most two concurrent pushes, and all share this machine.
"""

import argparse
import asyncio
import base64
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from core.backends import open_backend
from core.bundles.bundle import read_bundle
from core.clock import utc_now
from core.domain.messages import ClassifyImage
from core.domain.policy import MAX_JOB_ITEMS
from core.domain.records import PUBLIC_TENANT, RecordKey, complete, new_record
from core.settings import DEFAULT_BUNDLE
from tests.bench import load
from tests.bench.machine import machine
from tests.bench.processes import family
from tests.bench.streams import open_streams
from tests.bench.training import measure_training
from tests.support.bundles import write_colour_bundle
from tests.support.emulators import free_addresses, own_namespace, running_emulators
from tests.support.jobs import complete_item, running_job
from tests.support.metrics import samples
from tests.support.pictures import photo, picture, sha256
from tests.support.plain_http import NO_TLS
from tests.support.records import claimed
from tests.support.stack import ROOT, Stack, free_port

CONNECTIONS = 16


@dataclass(frozen=True)
class Row:
    """One measured figure, with its baseline, if any, and its target."""

    name: str
    figure: str
    baseline: str
    ratio: str
    target: str


class Bench:
    def __init__(
        self,
        quick: bool,
        bundle: Path,
        folder: Path,
        progress: Progress,
        emulators: Mapping[str, str] | None = None,
    ) -> None:
        """`emulators` are addresses of running emulators. Without them the backend is embedded."""
        self.quick = quick
        self.emulators = emulators
        self.bundle = bundle
        self.folder = folder
        self.progress = progress
        self.rounds = 1 if quick else 3
        self.seconds = 1.0 if quick else 4.0
        self.rows: list[Row] = []
        cores = sorted(os.sched_getaffinity(0))
        self.server_core, self.load_core = {cores[0]}, {cores[-1]}
        self.all_cores = set(cores)
        self.colours = write_colour_bundle(folder / "colours")

    # --- measurements ----------------------------------------------------------------------------

    def answers(self) -> None:
        """Cached GET and upload of a known image, against bare FastAPI."""
        self._answers("answers", "")
        # Limits that are counted but never reached.
        limits = {"RATE_LIMIT": "900000000/minute", "DAILY_QUOTA": "900000000"}
        self._answers("keyed-answers", ", with a key", API_KEYS="required", **limits)

    def _answers(self, folder: str, suffix: str, **settings: str) -> None:
        image = photo(0)
        with self.stack(folder, self.colours, **settings) as stack:
            key: dict[str, Any] = (
                {"X_API_Key": stack.make_key("--scopes", "all")} if settings else {}
            )
            self._pin(stack, "api")
            stack.upload(image)
            body = stack.result(sha256(image))
            bare_port = free_port()
            bare = self._spawn("serve", str(bare_port), json.dumps(body))
            try:
                _wait_for(bare_port)
                pairs = {
                    "cached GET": (
                        (
                            stack.api_port,
                            load.request("GET", f"/api/v1/images/{sha256(image)}", **key),
                        ),
                        (bare_port, load.request("GET", "/result")),
                    ),
                    f"known image, multipart upload of {len(image) // 1000} KB": (
                        (stack.api_port, load.multipart("/what/fast", image, **key)),
                        (bare_port, load.multipart("/upload", image)),
                    ),
                    f"known image, raw body of {len(image) // 1000} KB": (
                        (
                            stack.api_port,
                            load.request(
                                "POST", "/api/v1/images", image, Content_Type="image/jpeg", **key
                            ),
                        ),
                        (bare_port, load.multipart("/upload", image)),
                    ),
                }
                for name, (ours, theirs) in pairs.items():
                    rates: tuple[list[float], list[float]] = ([], [])
                    for _ in range(self.rounds):
                        for kept, (port, wanted) in zip(rates, (ours, theirs), strict=True):
                            seen = self._load(port, [wanted], self.seconds)
                            assert set(seen.statuses) == {200}, seen.statuses
                            kept.append(seen.rate)
                    self._compare(name + suffix, rates[0], rates[1], "requests/s", "0.7")
            finally:
                bare.kill()
                bare.wait()

    def accepting(self) -> None:
        """Uploads of new images until their 202, while the worker and the queue are stopped."""
        count = 300 if self.quick else 1500
        with self.stack("accepting", self.colours) as stack:
            self._leave(stack, "api")
            self._pin(stack, "api")
            for size, name in ((2, "2 KB"), (110, "110 KB")):
                images = [_padded(n + 10_000 * size, size * 1000) for n in range(count)]
                seen = self._load(
                    stack.api_port, [load.multipart("/what/fast", image) for image in images], None
                )
                # A slow emulator refuses some uploads, and a client repeats them.
                refused = seen.statuses.pop(503, 0) if self.emulators else 0
                assert set(seen.statuses) == {202}, seen.statuses
                timing = f"p50 {seen.percentile(50):.0f}, p99 {seen.percentile(99):.0f} ms"
                figure = f"{seen.statuses[202] / seen.seconds:.0f} images/s ({timing})"
                figure += f", {refused} refused" if refused else ""
                self.row(f"new image of {name} to its 202, c={CONNECTIONS}", figure, target="300/s")

    def working(self) -> None:
        """The worker's images per second against a bare loop on the same core.

        The loop makes no thumbnails, so a second row says what they cost.
        """
        count = 100 if self.quick else 400
        pictures = self.folder / "pictures"
        pictures.mkdir()
        images = [photo(n) for n in range(count)]
        for number, image in enumerate(images):
            (pictures / f"{number:04}.jpg").write_bytes(image)
        name = f"worker, {read_bundle(self.bundle).manifest.name}, one core"
        for thumbnails, suffix, target in (("false", "", "0.9"), ("true", ", with thumbnails", "")):
            settings = {"WORKER_CONCURRENCY": 1, "THUMBNAILS": thumbnails}
            ours, theirs = [], []
            for round_ in range(self.rounds):
                with self.stack(f"working-{thumbnails}-{round_}", self.bundle, **settings) as stack:
                    self._leave(stack, "worker")
                    pushes = self._prepare(stack, images)
                    self._pin(stack, "worker")
                    theirs.append(self._bare_loop(pictures))
                    seen = self._load(stack.worker_port, pushes, None, connections=8)
                    assert set(seen.statuses) == {204}, seen.statuses
                    ours.append(seen.rate)
            self._compare(f"{name}{suffix}", ours, theirs, "images/s", target)

    def pipeline(self) -> None:
        """From upload to stored result with a tiny model, on all cores."""
        count = (500 if self.quick else 2000) // (4 if self.emulators else 1)
        images = [picture(seed=n, size=(16, 16)) for n in range(count)]
        rates = []
        for round_ in range(self.rounds):
            with self.stack(f"pipeline-{round_}", self.colours) as stack:
                began = time.perf_counter()
                seen = load.run(
                    stack.api_port, [load.multipart("/what/fast", i) for i in images], CONNECTIONS
                )
                assert set(seen.statuses) == {202}, seen.statuses
                asyncio.run(_finished(stack))
                rates.append(count / (time.perf_counter() - began))
                last = stack.result(sha256(images[-1]))
                assert last["status"] == "success"
        self.row(
            f"pipeline, {count} images, no-op model",
            f"{statistics.median(rates):.0f} images/s end to end",
            target="420/s (Celery)",
        )

    def batches(self) -> None:
        """Jobs of a thousand images, from the first byte of the upload to the last result."""
        count = 250 if self.quick or self.emulators else MAX_JOB_ITEMS
        images = {
            "no-op model": (self.colours, [picture(seed=n, size=(16, 16)) for n in range(count)]),
            "photos of 110 KB": (self.bundle, [photo(n) for n in range(count)]),
        }
        for work, (bundle, files) in images.items():
            accepted, ended = [], []
            for round_ in range(self.rounds):
                name = f"batch-{work.split()[0]}-{round_}"
                with self.stack(name, bundle) as stack:
                    began = time.perf_counter()
                    upload = [("imgs", (f"{n}.jpg", data)) for n, data in enumerate(files)]
                    job = stack.api.post("/api/v1/jobs/batch-predict", files=upload).json()
                    accepted.append(time.perf_counter() - began)
                    while job["status"] in ("pending", "running"):
                        time.sleep(0.02)
                        job = stack.api.get(f"/api/v1/jobs/{job['job_id']}").json()
                    ended.append(time.perf_counter() - began)
                    assert job["succeeded"] == count, job
            seconds = statistics.median(ended)
            self.row(
                f"a job of {count}, {work}",
                f"{seconds:.1f} s, {60 / seconds:.1f} a minute, {count / seconds:.0f} images/s;"
                f" 202 after {statistics.median(accepted):.1f} s",
            )

    def training(self) -> None:
        """Training of a model, and classification by it."""
        measure_training(self)

    def footprint(self) -> None:
        """Memory of each process, and the time from start to ready."""
        with self.stack("footprint", self.bundle) as stack:
            for number in range(20):
                stack.upload(photo(number))
            stack.results([sha256(photo(number)) for number in range(20)])
            for name, process in stack.processes.items():
                resident = sum(each.memory_info().rss for each in family(process.pid)) / 1e6
                self.row(f"memory, {name}", f"{resident:.0f} MB", target="120 MB" * (name == "api"))
            for name in ("api", "worker"):
                times = []
                for _ in range(self.rounds):
                    stack.stop(name)
                    began = time.perf_counter()
                    stack.start(name)
                    times.append(time.perf_counter() - began)
                seconds = statistics.median(times)
                self.row(f"start to ready, {name}", f"{seconds:.2f} s", target="1.5 s")

    def responsiveness(self) -> None:
        """The latency of `GET /health`, and so the lag of the event loop, under large uploads."""
        images = [_padded(n, 9_900_000) for n in range(4)]
        requests = [load.multipart("/what/fast", image) for image in images]
        with self.stack("responsiveness", self.bundle) as stack:
            photos = [load.multipart("/what/fast", photo(n)) for n in range(400)]
            with ThreadPoolExecutor(2) as pool:
                large = pool.submit(load.run, stack.api_port, requests, 4, 2 * self.seconds)
                small = pool.submit(load.run, stack.api_port, photos, 4)
                health = [load.request("GET", "/health")]
                for name, port in (("API", stack.api_port), ("worker", stack.worker_port)):
                    seen = load.run(port, health, 1, self.seconds)
                    timing = f"p50 {seen.percentile(50):.1f}, p99 {seen.percentile(99):.1f} ms"
                    self.row(f"{name} /health under 10 MB uploads and inference", timing)
                large.result()
                small.result()

    def streaming(self) -> None:
        """The cost of a thousand streams on one API process, idle and busy."""
        with self.stack("streaming", self.colours) as stack:
            self._leave(stack, "api")
            self._pin(stack, "api")
            os.sched_setaffinity(0, self.load_core)
            try:
                asyncio.run(self._stream(stack, 100 if self.quick else 1000))
            finally:
                os.sched_setaffinity(0, self.all_cores)

    async def _stream(self, stack: Stack, count: int) -> None:
        seconds = 2 * self.seconds + 2
        process = psutil.Process(stack.processes["api"].pid)
        model = read_bundle(self.colours).identity
        keys = [RecordKey(PUBLIC_TENANT, f"{n:064x}", model) for n in range(count)]
        paths = [f"/api/v1/images/{key.image_hash}/stream" for key in keys]
        async with open_backend(stack.settings) as backend:
            for key in keys:
                await backend.records.create(new_record(key, utc_now()))
            async with open_streams(stack.api_port, paths[:20]):
                pass  # the first streams load modules, which are not part of the cost
            before = process.memory_info().rss
            async with open_streams(stack.api_port, paths) as readers:
                held = process.memory_info().rss - before
                self.row(
                    f"{count} streams of as many images, memory",
                    f"{held / count / 1e3:.0f} KB each",
                )
                meter = _Meter(process, stack)
                await asyncio.sleep(seconds)
                self.row(f"{count} streams of as many images, quiet", meter.read())
                meter = _Meter(process, stack)
                began, late = time.monotonic(), []
                for number, (key, reader) in enumerate(zip(keys, readers, strict=True)):
                    await asyncio.sleep(began + seconds * number / count - time.monotonic())
                    claim = await claimed(backend.records, key, timedelta(seconds=60))
                    assert claim is not None
                    assert await backend.records.change(claim.key, complete(claim, []))
                    late.append((time.monotonic(), reader))
                figures = meter.read()
                await asyncio.gather(*(reader.over.wait() for reader in readers))
                delays = [1000 * (reader.last_at - ended) for ended, reader in late]
                figures += f"; p50 {statistics.median(delays):.0f} ms from an end to its event"
                self.row(f"{count} streams, {count / seconds:.0f} images end a second", figures)
            key_ = await running_job(backend, count)
            async with open_streams(
                stack.api_port, [f"/api/v1/jobs/{key_.id}/stream"] * count
            ) as all_:
                meter, began = _Meter(process, stack), time.monotonic()
                for number in range(count):
                    await asyncio.sleep(began + seconds * number / count - time.monotonic())
                    await complete_item(backend, key_, number)
                figures = meter.read()
                await asyncio.gather(*(reader.over.wait() for reader in all_))
                events = sum(reader.events for reader in all_) / count
                figures += f"; {events:.0f} events each"
                self.row(
                    f"{count} streams of one job, {count / seconds:.0f} items a second", figures
                )

    # --- helpers ---------------------------------------------------------------------------------

    def stack(self, name: str, bundle: Path, **settings: object) -> Stack:
        namespace = own_namespace(self.emulators) if self.emulators else {}
        settings = {"LOG_LEVEL": "warning", "WORKER_CONCURRENCY": 0, **namespace, **settings}
        return Stack(self.folder / name, bundle, **settings)

    def _leave(self, stack: Stack, name: str) -> None:
        """Stop every other process of the stack."""
        for other in stack.processes.keys() - {name}:
            stack.stop(other)

    def _pin(self, stack: Stack, name: str) -> None:
        for process in family(stack.processes[name].pid):
            for thread in process.threads():
                os.sched_setaffinity(thread.id, self.server_core)
            os.sched_setaffinity(process.pid, self.server_core)

    def _load(
        self,
        port: int,
        requests: list[bytes],
        seconds: float | None,
        connections: int = CONNECTIONS,
    ) -> load.Load:
        os.sched_setaffinity(0, self.load_core)
        try:
            return load.run(port, requests, connections, seconds)
        finally:
            os.sched_setaffinity(0, self.all_cores)

    def _spawn(self, *argv: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.bench.bare", *argv],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            preexec_fn=partial(os.sched_setaffinity, 0, self.server_core),  # noqa: PLW1509 - no thread runs yet
        )

    def _bare_loop(self, pictures: Path) -> float:
        output, _ = self._spawn("loop", str(self.bundle), str(pictures)).communicate()
        return float(output.split()[0])

    def _prepare(self, stack: Stack, images: list[bytes]) -> list[bytes]:
        """Store the images as the API does, and return the pushes that request classification."""
        model = read_bundle(self.bundle).identity
        keys = [RecordKey(PUBLIC_TENANT, sha256(image), model) for image in images]

        async def store() -> None:
            async with open_backend(stack.settings) as backend:
                for key, image in zip(keys, images, strict=True):
                    await backend.records.create(new_record(key, utc_now()))
                    await backend.blobs.put(key.blob_name, image, "image/jpeg")

        asyncio.run(store())
        headers = {"Content_Type": "application/json", **stack.push_headers()}
        pushes = []
        for number, key in enumerate(keys):
            message = {
                "messageId": str(number),
                "publishTime": "2026-01-01T00:00:00Z",
                "data": base64.b64encode(b"").decode(),
                "attributes": ClassifyImage(key).attributes(),
            }
            envelope = {"message": message, "subscription": "bench", "deliveryAttempt": 1}
            body = json.dumps(envelope).encode()
            pushes.append(load.request("POST", "/generate_annotations", body, **headers))
        return pushes

    def _compare(
        self, name: str, ours: list[float], theirs: list[float], unit: str, target: str
    ) -> None:
        subject, baseline = statistics.median(ours), statistics.median(theirs)
        self.row(
            name,
            f"{subject:.0f} {unit}",
            f"{baseline:.0f} {unit}",
            f"{subject / baseline:.2f}",
            target,
        )

    def row(
        self, name: str, figure: str, baseline: str = "", ratio: str = "", target: str = ""
    ) -> None:
        if self.emulators:
            # The targets are for the embedded backend. The emulators serve to test correctness.
            name, target = f"emulators: {name}", ""
        self.rows.append(Row(name, figure, baseline, ratio, target))
        self.progress.console.print(f"{name}: {figure} {ratio and f'= {ratio} of bare'}")


class _Meter:
    """The share of a core that a process uses, and its lookups, since the creation."""

    def __init__(self, process: psutil.Process, stack: Stack) -> None:
        self._process = process
        self._stack = stack
        self._since = self._now()

    def read(self) -> str:
        (began, cpu, looks), (ended, cpu_then, looks_then) = self._since, self._now()
        seconds = ended - began
        share = 100 * (cpu_then - cpu) / seconds
        return f"{share:.1f} % of a core, {(looks_then - looks) / seconds:.1f} look-ups/s"

    def _now(self) -> tuple[float, float, float]:
        seen = samples(self._stack.api.get("/metrics").text)
        looks = sum(v for name, v in seen.items() if name.startswith("glimpse_live_lookups_total"))
        times = self._process.cpu_times()
        return time.monotonic(), times.user + times.system, looks


async def _finished(stack: Stack) -> None:
    """Wait until every record is final. Polling costs little compared with what is measured."""
    async with open_backend(stack.settings) as backend:
        # Another process completes the records, so there is no event to wait for.
        while await backend.records.stale(utc_now() + timedelta(days=1), 1):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def _padded(number: int, size: int) -> bytes:
    """A small valid JPEG with padding after its end marker, `size` bytes in all."""
    image = picture(seed=number, size=(16, 16))
    return image + bytes(max(0, size - len(image)))


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            httpx.get(f"http://127.0.0.1:{port}/result", verify=NO_TLS)
        except httpx.TransportError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(f"nothing answers on port {port}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short round of each")
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE)
    parser.add_argument("--backend", choices=("embedded", "emulator"), default="embedded")
    parser.add_argument(
        "--only",
        help="comma-separated: answers,accepting,working,pipeline,batches,training,footprint,"
        "responsiveness,streaming",
    )
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    console = Console(width=max(Console().width, 120))
    console.print(machine())
    with ExitStack() as opened, Progress(console=console) as progress:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        emulators = None
        if args.backend == "emulator":
            emulators = free_addresses()
            opened.enter_context(running_emulators(folder / "emulators", emulators))
        bench = Bench(args.quick, args.bundle, folder, progress, emulators)
        steps: list[Callable[[], None]] = [
            # Responses come from the cache of the process with every backend.
            *(() if emulators else (bench.answers,)),
            bench.accepting,
            bench.working,
            bench.pipeline,
            bench.batches,
            bench.training,
            bench.footprint,
            bench.responsiveness,
            # This measures the API alone. An emulator would add its own time.
            *(() if emulators else (bench.streaming,)),
        ]
        if args.only:
            steps = [step for step in steps if step.__name__ in args.only.split(",")]
        bar = progress.add_task("measuring", total=len(steps))
        for step in steps:
            progress.update(bar, description=step.__name__)
            step()
            progress.advance(bar)
    table = Table(title="Glimpse beside bare baselines")
    columns = ("what", "Glimpse", "bare", "ratio", "target")
    for column in columns:
        table.add_column(column)
    for row in bench.rows:
        table.add_row(row.name, row.figure, row.baseline, row.ratio, row.target)
    console.print(table)
    if args.markdown:
        lines = [
            f"Measured on {machine()}.",
            "",
            "| " + " | ".join(columns) + " |",
            "|---" * 5 + "|",
        ]
        lines += [
            f"| {r.name} | {r.figure} | {r.baseline} | {r.ratio} | {r.target} |" for r in bench.rows
        ]
        args.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
