"""The second part of `make demo`: one job with many images, and its live updates."""

import io
import json
import random
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx2
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

IMAGES = 120
CROP = 192  # pixels
BROKEN = 3  # files that are not images: each fails its item, not the job
COMMON = 6  # labels in the table
NOT_SURE = "not sure"  # shown instead of a label below the model's threshold


def crops(paths: Sequence[Path], count: int) -> Iterator[tuple[str, bytes]]:
    """Random sections of the photos, which Glimpse has not seen before."""
    draw = random.Random()
    photos = [Image.open(path).convert("RGB") for path in paths]
    for number in range(count):
        photo = draw.choice(photos)
        left = draw.randrange(photo.width - CROP)
        top = draw.randrange(photo.height - CROP)
        file = io.BytesIO()
        photo.crop((left, top, left + CROP, top + CROP)).save(file, "JPEG", quality=85)
        yield f"{number:03d}.jpg", file.getvalue()


def follow(
    client: httpx2.Client, created: dict[str, str], name: str, items: int, console: Console
) -> dict[str, object]:
    """Show the live updates of a job to its end. Returns its last document.

    `created` is the response to the creation of the job, and `items` how many items it has.
    """
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]} failed"),
        TimeElapsedColumn(),
        console=console,
    )
    job: dict[str, object] = {}
    with bar, client.sse(created["stream_url"], timeout=60) as stream:
        if stream.response.is_error:
            stream.response.read()  # a closed stream has no text for the error
        stream.response.raise_for_status()
        task = bar.add_task(name, total=items, failed=0)
        for event in stream:
            job = json.loads(event.data)
            completed = int(str(job["succeeded"])) + int(str(job["failed"]))
            bar.update(task, completed=completed, failed=job["failed"])
    if not job:  # the service has closed the stream before its first event
        job = client.get(created["poll_url"]).raise_for_status().json()
    return job


def show_batch(client: httpx2.Client, paths: Sequence[Path], console: Console) -> bool:
    """Upload a batch and follow it to its end. Returns whether the job ended as expected."""
    images = [*crops(paths, IMAGES), *((f"note-{n}.jpg", b"a note") for n in range(BROKEN))]
    upload = [("imgs", image) for image in images]
    once = {"Idempotency-Key": secrets.token_hex(16)}  # a repeated request creates no second job
    answer = client.post("/api/v1/jobs/batch-predict", files=upload, headers=once)
    created = answer.raise_for_status().json()
    job = follow(client, created, "one job", len(images), console)
    labels: Counter[str] = Counter()
    results = client.get(
        f"{created['poll_url']}/results", headers={"Accept": "application/x-ndjson"}
    )
    for line in results.raise_for_status().iter_lines():
        result = json.loads(line)
        if result["annotations"]:
            sure = result["confident"] is not False
            labels[result["annotations"][0]["label"] if sure else NOT_SURE] += 1
    console.print(f"Job {created['job_id']}: {job['status']}. The most frequent labels:")
    table = Table()
    table.add_column("label")
    table.add_column("images", justify="right")
    for label, number in labels.most_common(COMMON):
        table.add_row(label, str(number))
    console.print(table)
    return job["status"] == "completed" and job["failed"] == BROKEN
