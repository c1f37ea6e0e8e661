"""Representations of jobs and their results for clients: JSON, lines of JSON, and CSV."""

import csv
import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from app.images.representation import annotation_documents
from app.images.view import View
from app.jobs.service import ItemResult
from core.domain.job_document import error_document, images, job_path
from core.domain.jobs import ItemState, Job
from core.domain.record_lists import RecordFilter
from core.domain.records import RecordError, Status

RESULT_DELETED = "result_deleted"  # error code: the image was deleted after it succeeded

COLUMNS = (
    *("index", "image_hash", "name", "status", "label", "confidence"),
    *("annotations", "error_code", "error_detail", "metadata", "output", "confident", "categories"),
)
# Characters with which spreadsheets begin a formula:
# https://owasp.org/www-community/attacks/CSV_Injection
# Some spreadsheets end a cell at `;` as well, and interpret quotes after it.
_FORMULA = re.compile(r'(^|;"*)(?=[=+\-@\t\r])')
_DELETED = RecordError(RESULT_DELETED, "The image and its result were deleted.", False)


class ItemStatus(StrEnum):
    """The status of one image of a job."""

    PENDING = "pending"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ResultFormat(StrEnum):
    """How the results of a job are encoded."""

    JSON = "json"
    NDJSON = "ndjson"
    CSV = "csv"
    CSV_EXCEL = "csv-excel"


@dataclass(frozen=True, slots=True)
class ResultSelection:
    """Selects results by status and by label, as lists of images do. Empty: all."""

    statuses: frozenset[ItemStatus] = frozenset()
    label: str = ""

    def includes(self, job: Job, result: ItemResult) -> bool:
        status, _ = _state_of(job, result)
        if self.statuses and status not in self.statuses:
            return False
        if not self.label:
            return True
        if status is not ItemStatus.SUCCEEDED or result.record is None:
            return False
        return RecordFilter(job.key.tenant, label=self.label).matches(result.record)


def accepted_document(job: Job, public_url: str, skipped: int = 0) -> dict[str, Any]:
    """The response to the creation of a job. `skipped` counts files that are no images."""
    path = public_url + job_path(job.key.id)
    files = f", {skipped} other {'file' if skipped == 1 else 'files'} skipped" if skipped else ""
    accepted = f"{images(job.counts.total)} accepted{files}."
    secret = {"webhook_secret": job.webhook.secret} if job.webhook else {}
    return secret | {
        "job_id": job.key.id,
        "status": job.status,
        "skipped": skipped,
        "message": f"{accepted} Poll poll_url or stream stream_url.",
        "poll_url": path,
        "stream_url": f"{path}/stream",
    }


def result_document(job: Job, result: ItemResult, view: View) -> dict[str, Any]:
    """The state of one item, with the labels of its image in the view."""
    item, record = result.item, result.record
    status, error = _state_of(job, result)
    succeeded = record is not None and status is ItemStatus.SUCCEEDED
    stored = record if record is not None and succeeded else None
    return {
        "index": item.position,
        "image_hash": item.image_hash or None,
        "name": item.name or None,
        "status": status,
        "annotations": annotation_documents(view.of_labels(stored.annotations)) if stored else [],
        "categories": annotation_documents(view.of_categories(stored.categories)) if stored else [],
        "confident": stored.confident if stored else None,
        "output": json.loads(stored.output) if stored and stored.output else None,
        "error": error and error_document(error),
        "metadata": dict(item.metadata),
    }


def json_lines(job: Job, results: Iterable[ItemResult], view: View) -> bytes:
    """One result per line (https://github.com/ndjson/ndjson-spec)."""
    lines = (_compact(result_document(job, each, view)) + "\n" for each in results)
    return "".join(lines).encode()


def csv_header() -> bytes:
    return _csv([COLUMNS])


def csv_lines(job: Job, results: Iterable[ItemResult], view: View) -> bytes:
    """One result per line (RFC 4180). Spreadsheets do not interpret any text as a formula."""
    return _csv(_row(result_document(job, each, view)) for each in results)


def _row(document: dict[str, Any]) -> tuple[object, ...]:
    labels, error = document["annotations"], document["error"] or {}
    best = labels[0] if labels else {}
    return (
        document["index"],
        document["image_hash"],
        _text(document["name"]),
        document["status"],
        _text(best.get("label")),
        best.get("confidence"),
        _json(labels) if labels else "",
        error.get("code"),
        _text(error.get("detail")),
        _json(document["metadata"]) if document["metadata"] else "",
        "" if document["output"] is None else _json(document["output"]),
        "" if document["confident"] is None else _json(document["confident"]),
        _json(document["categories"]) if document["categories"] else "",
    )


def _csv(rows: Iterable[Iterable[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _text(value: str | None) -> str:
    return _FORMULA.sub(r"\1'", value or "")


def _json(document: object) -> str:
    """The document as JSON without `;`, which only strings contain."""
    return _compact(document).replace(";", r"\u003b")


def _state_of(job: Job, result: ItemResult) -> tuple[ItemStatus, RecordError | None]:
    item, record = result.item, result.record
    if item.state is ItemState.FAILED:
        return ItemStatus.FAILED, item.error
    if item.state is ItemState.SUCCEEDED:
        deleted = record is None or record.status is not Status.SUCCESS
        if deleted and job.training is None:  # the items of a training have no records
            return ItemStatus.FAILED, _DELETED
        return ItemStatus.SUCCEEDED, None
    if job.status.terminal:
        return ItemStatus.CANCELLED, None
    if record is None:
        return ItemStatus.PENDING, None
    # The item of a terminal record is about to be completed.
    return (ItemStatus.RUNNING if record.status.terminal else ItemStatus(record.status)), None


def _compact(document: object) -> str:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))
