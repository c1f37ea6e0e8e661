"""A round trip with the client that openapi-python-client makes: see tests/clients/__main__.py."""

import hashlib
import os
import sys
import time
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

from glimpse_client import Client
from glimpse_client.api.images import get_image, put_image, upload_image
from glimpse_client.api.jobs import (
    cancel_job,
    create_job,
    create_zip_job,
    get_job,
    get_job_results,
    list_jobs,
)
from glimpse_client.api.operations import get_readiness
from glimpse_client.models import BatchUpload, ImageUpload, JobStatus, Problem, Status
from glimpse_client.types import File

folder = Path(os.environ["FILES"])
client = Client(base_url=os.environ["GLIMPSE_URL"], timeout=60)


def check(holds: object, what: str, *details: object) -> None:
    if not holds:
        sys.exit(f"FAILED {what} {details}")
    print("ok", what)


def part(name: str) -> File:
    return File(payload=BytesIO((folder / name).read_bytes()), file_name=name)


image = upload_image.sync(client=client, body=ImageUpload(img=part("1.jpg")), prefer="wait=30")
check(image.status == Status.STATUS_SUCCESS and image.annotations, "upload", image)
data = (folder / "2.jpg").read_bytes()
image_hash = hashlib.sha256(data).hexdigest()
image = put_image.sync(image_hash, client=client, body=File(BytesIO(data)), prefer="wait=30")
check(image.image_hash == image_hash, "put", image)
image = get_image.sync(image_hash, client=client)
check(image.status == Status.STATUS_SUCCESS, "get", image)

three = BatchUpload(imgs=[part(f"{number}.jpg") for number in (1, 2, 3)])
accepted = create_job.sync(client=client, body=three)
for _ in range(300):
    job = get_job.sync(accepted.job_id, client=client)
    if job.status == JobStatus.JOB_STATUS_COMPLETED:
        break
    time.sleep(0.1)
check(job.succeeded == 3, "job of three", job)
check(len(get_job_results.sync(accepted.job_id, client=client).results) == 3, "results")
check(list_jobs.sync(client=client).jobs[0].job_id == accepted.job_id, "list jobs")
body = File(BytesIO((folder / "images.zip").read_bytes()))
check(create_zip_job.sync_detailed(client=client, body=body).status_code == 202, "job from a zip")
tomorrow = datetime.now(UTC) + timedelta(days=1)
later = create_job.sync(client=client, body=BatchUpload(imgs=[part("3.jpg")]), not_before=tomorrow)
job = cancel_job.sync(later.job_id, client=client)
check(job.status == JobStatus.JOB_STATUS_CANCELLED, "cancel", job)

for name, status, code in (
    ("text.txt", 415, "unsupported_image"),
    ("large.jpg", 413, "image_too_large"),
):
    answer = upload_image.sync_detailed(client=client, body=ImageUpload(img=part(name)))
    check(isinstance(answer.parsed, Problem), f"{status} is a Problem", answer)
    check((answer.status_code, answer.parsed.code) == (status, code), str(status), answer)
answer = get_image.sync_detailed("0" * 64, client=client)
check((answer.status_code, answer.parsed.code) == (404, "not_found"), "404", answer)
check(get_readiness.sync(client=client).checks["records"] == "ok", "ready")
