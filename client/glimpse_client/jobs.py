"""Jobs: many images as one piece of work.

A batch larger than what one request can have becomes several jobs. `Batch` holds them together and
behaves like one.
"""

import json
import secrets
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from glimpse_client.errors import WaitTimeout
from glimpse_client.flows import (
    Call,
    Clock,
    Effect,
    Flow,
    Follow,
    FormFile,
    Request,
    Response,
    Sleep,
    Together,
    request,
)
from glimpse_client.images import lookup_flow
from glimpse_client.methods import (
    AsyncResource,
    Pages,
    Resource,
    Stream,
    async_blocking,
    async_paged,
    async_streamed,
    blocking,
    paged,
    streamed,
)
from glimpse_client.sources import Content, Source, find_images, source_of
from glimpse_client.types import Job, JobResult, Page, job_of, result_of

JOBS = "/api/v1/jobs"
MOST_IMAGES = 1000  # in one job
# What Cloud Run accepts as one HTTP/1 request is 32 MiB; the rest is for the form's own bytes.
MAX_REQUEST_BYTES = 30 * 1024 * 1024
HASHES_AT_ONCE = 4
RESULTS_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class Item:
    """An image to be sent: its source, hash, size in bytes and every local name."""

    source: Source
    hash: str
    size: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """The jobs of one call to `create`, and the local names of their images by hash."""

    jobs: tuple[Job, ...]
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    uploaded: int = 0

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the jobs."""
        return tuple(job.id for job in self.jobs)

    @property
    def done(self) -> bool:
        """Whether every job is done."""
        return all(job.done for job in self.jobs)

    @property
    def total(self) -> int:
        """Images of all jobs."""
        return sum(job.total for job in self.jobs)

    @property
    def succeeded(self) -> int:
        """Images that have a result."""
        return sum(job.succeeded for job in self.jobs)

    @property
    def failed(self) -> int:
        """Images that failed."""
        return sum(job.failed for job in self.jobs)


@dataclass(frozen=True, slots=True)
class Options:
    """How a job runs; what is None or empty is left to the service."""

    model: str | None = None
    priority: str | None = None
    not_before: str | None = None
    cancel_after: str | None = None
    notify_email: str | None = None
    name: str | None = None

    def params(self) -> dict[str, Any]:
        """The query parameters."""
        return {
            "model": self.model,
            "priority": self.priority,
            "not_before": self.not_before,
            "notify_email": self.notify_email,
            "name": self.name,
        }


Progress = Callable[[str, int, int], None]


def _silent(stage: str, done: int, total: int) -> None:
    return None


def gather(
    paths: Iterable[str | Path | Content], *, recursive: bool = True
) -> Iterator[tuple[Source, str]]:
    """Each source with its local name. Folders are searched; names in them stay relative."""
    for each in paths:
        if isinstance(each, str | Path) and Path(each).is_dir():
            for found in find_images([each], recursive=recursive):
                yield Source(found.path.name, path=found.path), found.name
        else:
            source = source_of(each)
            yield source, source.name


def _hash_flow(source: Source, name: str) -> Flow[tuple[Source, str, int, str]]:
    digest: str = yield Call(source.sha256)
    size: int = yield Call(source.size)
    return source, digest, size, name


def _hashed_flow(
    sources: Iterable[tuple[Source, str]], progress: Progress
) -> Generator[Effect, Any, list[Item]]:
    """The distinct images of `sources`, in order."""
    found: dict[str, tuple[Source, int, list[str]]] = {}
    waiting = list(sources)
    for start in range(0, len(waiting), 64):
        part = waiting[start : start + 64]
        for source, digest, size, name in (
            yield Together([_hash_flow(*each) for each in part], HASHES_AT_ONCE)
        ):
            found.setdefault(digest, (source, size, []))[2].append(name)
        progress("hashing", start + len(part), len(waiting))
    return [
        Item(source, digest, size, tuple(names)) for digest, (source, size, names) in found.items()
    ]


def split(
    items: Sequence[Item], missing: set[str], max_bytes: int = MAX_REQUEST_BYTES
) -> Iterator[list[Item]]:
    """`items` in parts of at most 1,000 images and `max_bytes` to upload, in order."""
    part: list[Item] = []
    size = 0
    for item in items:
        weight = item.size + 1024 if item.hash in missing else 0
        if part and (len(part) == MOST_IMAGES or size + weight > max_bytes):
            yield part
            part, size = [], 0
        part.append(item)
        size += weight
    if part:
        yield part


def _manifest(hashes: Iterable[str]) -> bytes:
    return json.dumps({"image_hashes": list(hashes)}).encode()


def _job_request(part: Sequence[Item], missing: set[str], options: Options, key: str) -> Request:
    """The request that makes a job of `part`: a form if bytes have to be sent, else hashes."""
    known = [item.hash for item in part if item.hash not in missing]
    if len(known) == len(part):
        return _creation(options, key, json={"image_hashes": known})
    files = [FormFile("imgs", item.names[0], item.source) for item in part if item.hash in missing]
    if known:
        document = Source("manifest.json", data=_manifest(known))
        files.append(FormFile("manifest", document.name, document, "application/json"))
    return _creation(options, key, files=files, timeout=300.0)


def _creation(options: Options, key: str, **body: Any) -> Request:
    """The request that creates a job under an idempotency key."""
    headers = {"idempotency-key": key}
    if options.cancel_after:
        headers["cancel-after"] = options.cancel_after
    path = f"{JOBS}/batch-predict"
    return Request("POST", path, params=options.params(), headers=headers, **body)


def create_flow(
    *,
    sources: Iterable[tuple[Source, str]],
    hashes: Sequence[str],
    options: Options,
    idempotency_key: str | None,
    progress: Progress,
    created: Callable[[Job], None],
) -> Flow[Batch]:
    """Hash, look up, and make jobs: one for each part that fits into a request."""
    items = yield from _hashed_flow(sources, progress)
    distinct = {item.hash for item in items}
    items += [
        Item(Source(""), each, 0, ()) for each in dict.fromkeys(hashes) if each not in distinct
    ]
    own = [item.hash for item in items if item.names]
    missing = (yield from lookup_flow(own, options.model)) if own else set()
    key = idempotency_key or secrets.token_hex(16)
    jobs: list[Job] = []
    sent = 0
    for number, part in enumerate(split(items, missing)):
        response: Response = yield _job_request(part, missing, options, f"{key}-{number}")
        job = job_of({"total": len(part), **response.document})
        created(job)
        jobs.append(job)
        sent += len(part)
        progress("uploading", sent, len(items))
    return Batch(tuple(jobs), {item.hash: item.names for item in items if item.names}, len(missing))


def import_flow(prefix: str, options: Options, idempotency_key: str | None) -> Flow[Batch]:
    """A job of the images below `gs://bucket/prefix`."""
    key = idempotency_key or secrets.token_hex(16)
    response: Response = yield _creation(options, key, json={"gs_prefix": prefix}, timeout=300.0)
    return Batch((job_of(response.document),))


def get_flow(job_id: str) -> Flow[Job]:
    """One job."""
    return request("GET", f"{JOBS}/{job_id}", job_of)


def list_flow(
    status: str | None, type_: str | None, cursor: str | None, limit: int | None = None
) -> Flow[Page[Job]]:
    """One page of jobs, newest first."""

    def page(document: Any) -> Page[Job]:
        return Page([job_of(each) for each in document["jobs"]], document.get("next_cursor"))

    params = {"status": status, "type": type_, "cursor": cursor, "limit": limit}
    return request("GET", JOBS, page, params=params)


def results_flow(
    job_id: str, names: Mapping[str, Sequence[str]], params: Mapping[str, Any], cursor: str | None
) -> Flow[Page[JobResult]]:
    """One page of a job's results, in their order."""

    def page(document: Any) -> Page[JobResult]:
        results = [result_of(each, names) for each in document["results"]]
        return Page(results, document.get("next_cursor"))

    params = {**params, "cursor": cursor, "limit": RESULTS_AT_ONCE}
    return request("GET", f"{JOBS}/{job_id}/results", page, params=params)


def wait_flow(job_id: str, seconds: float | None) -> Flow[Job]:
    """Wait until the job is done: by its event stream, then by polling."""
    began: float = yield Clock()
    while True:
        job = yield from get_flow(job_id)
        if job.done:
            return job
        now: float = yield Clock()
        left = 3600.0 if seconds is None else seconds - (now - began)
        if left <= 0:
            raise WaitTimeout(f"the job {job_id} is still {job.status} after the wait", job)
        yield Follow(f"{JOBS}/{job_id}/stream", {}, left)
        yield Sleep(min(0.2, left))


def _several(images: str | Path | Iterable[Any]) -> Iterable[Any]:
    return [images] if isinstance(images, str | Path) else images


def _ids(job: Job | Batch | str) -> tuple[str, ...]:
    if isinstance(job, Batch):
        return job.ids
    return (job.id,) if isinstance(job, Job) else (job,)


def _names(job: Job | Batch | str) -> Mapping[str, tuple[str, ...]]:
    return job.names if isinstance(job, Batch) else {}


def _state(document: Mapping[str, Any]) -> Job | None:
    return job_of(document) if "job_id" in document else None


class Jobs(Resource):
    """`client.jobs`."""

    @blocking
    def create(
        self,
        images: str | Path | Iterable[str | Path | Content] = (),
        *,
        hashes: Sequence[str] = (),
        gs_prefix: str | None = None,
        recursive: bool = True,
        options: Options | None = None,
        idempotency_key: str | None = None,
        progress: Progress = _silent,
        created: Callable[[Job], None] = lambda _: None,
    ) -> Flow[Batch]:
        """Make jobs of images: paths, folders, bytes, hashes that the service knows, or a bucket.

        Sends only bytes that the service does not have, and the same bytes once. `progress` gets
        a stage (`hashing`, `uploading`), the number done and the total. `created` gets each job as
        soon as the service has accepted it. One idempotency key covers all attempts.

        Raises ApiError, ConnectionFailed, OSError, TypeError.
        """
        chosen = options or Options()
        if gs_prefix is not None:
            return import_flow(gs_prefix, chosen, idempotency_key)
        return create_flow(
            sources=gather(_several(images), recursive=recursive),
            hashes=hashes,
            options=chosen,
            idempotency_key=idempotency_key,
            progress=progress,
            created=created,
        )

    @blocking
    def create_from(
        self,
        sources: Iterable[tuple[Source, str]],
        *,
        options: Options | None = None,
        idempotency_key: str | None = None,
        progress: Progress = _silent,
        created: Callable[[Job], None] = lambda _: None,
    ) -> Flow[Batch]:
        """As `create`, of sources with their local names."""
        return create_flow(
            sources=sources,
            hashes=(),
            options=options or Options(),
            idempotency_key=idempotency_key,
            progress=progress,
            created=created,
        )

    @blocking
    def get(self, job_id: str) -> Flow[Job]:
        """A job. Raises NotFound."""
        return get_flow(job_id)

    @paged
    def list(self, *, status: str | None = None, type: str | None = None) -> Pages[Job]:  # noqa: A002
        """All jobs, newest first."""
        return [partial(list_flow, status, type)]

    @blocking
    def page(
        self, *, status: str | None = None, cursor: str | None = None, limit: int | None = None
    ) -> Flow[Page[Job]]:
        """One page of jobs, newest first."""
        return list_flow(status, None, cursor, limit)

    @blocking
    def wait(self, job: Job | Batch | str, *, timeout: float | None = None) -> Flow[Batch]:
        """Wait until every job is done; `timeout` is in seconds for each. Raises WaitTimeout."""
        done: list[Job] = []
        for each in _ids(job):
            done.append((yield from wait_flow(each, timeout)))
        return Batch(tuple(done), _names(job), job.uploaded if isinstance(job, Batch) else 0)

    @streamed
    def watch(self, job: Job | Batch | str) -> Sequence[Stream[Job]]:
        """The states of each job as they change, one job after the other, until all are done."""
        return [Stream(f"{JOBS}/{each}/stream", _state, {}) for each in _ids(job)]

    @paged
    def results(
        self,
        job: Job | Batch | str,
        *,
        labels: int | None = None,
        min_confidence: float | None = None,
        status: str | None = None,
    ) -> Pages[JobResult]:
        """The results, in order. Those of a running job have the states of that moment.

        `labels` (1 to 20) and `min_confidence` (0 to 1) select which labels they have. `status` is
        `succeeded` or `failed`, for these results only.
        """
        params = {"labels": labels, "min_confidence": min_confidence, "status": status}
        return [partial(results_flow, each, _names(job), params) for each in _ids(job)]

    @blocking
    def cancel(self, job: Job | Batch | str) -> Flow[Sequence[Job]]:
        """Cancel the jobs. Work that has not started does not start."""
        cancelled: list[Job] = []
        for each in _ids(job):
            cancelled.append((yield from request("DELETE", f"{JOBS}/{each}", job_of)))
        return cancelled

    @blocking
    def retry(self, job: Job | str) -> Flow[Job]:
        """A new job of the images of `job` that failed and may succeed now, or did not start.

        Raises Conflict if the job has not ended, or has no such image.
        """
        (job_id,) = _ids(job)
        return request("POST", f"{JOBS}/{job_id}/retry", job_of)


class AsyncJobs(AsyncResource):
    """`client.jobs` of the asynchronous client."""

    create = async_blocking(Jobs.create)
    create_from = async_blocking(Jobs.create_from)
    get = async_blocking(Jobs.get)
    list = async_paged(Jobs.list)
    page = async_blocking(Jobs.page)
    wait = async_blocking(Jobs.wait)
    watch = async_streamed(Jobs.watch)
    results = async_paged(Jobs.results)
    cancel = async_blocking(Jobs.cancel)
    retry = async_blocking(Jobs.retry)
